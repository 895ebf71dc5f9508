// What the lanes of a warp do together: each lane leaves its arguments, the last one computes for all.
#include <cstdio>
#include <cstring>

#include "api.h"
#include "machine.h"

namespace emu {

// `name` is a format that takes the mask, for reports.
static void together(uint32_t mask, const char* name, uint64_t tag, void* argument, void (*compute)(Collective&)) {
    Machine& m = *machine;
    const Fiber& self = *m.now;
    const uint32_t bit = 1u << self.lane;
    char what[96];
    snprintf(what, sizeof what, name, static_cast<unsigned long long>(mask));
    if (!(mask & bit)) m.fail("divergence", "lane %u calls %s, which does not name it", self.lane, what);
    std::vector<Collective>& all = m.collectives[self.warp];
    size_t found = all.size();
    for (size_t i = 0; i < all.size(); i++) {
        const Collective& open = all[i];
        if (!(open.mask & bit)) continue;
        if (open.mask == mask && open.name == name && open.tag == tag) {
            found = i;
        } else if (open.arrived & mask) {
            char other[96];
            snprintf(other, sizeof other, open.name, static_cast<unsigned long long>(open.mask));
            m.fail("divergence", "lane %u calls %s while lanes %08x wait for it in %s%s", self.lane, what,
                   open.arrived, other, open.mask == mask && open.name == name ? " of another kind" : "");
        }
    }
    if (found == all.size()) {
        for (uint32_t lane = 0; lane < LANES; lane++) {
            const uint32_t id = self.warp * LANES + lane;
            if ((mask >> lane & 1) && (id >= m.threads || m.fibers[id].exited)) {
                m.fail("divergence", "%s names lane %u, which %s", what, lane,
                       id >= m.threads ? "the block does not have" : "has ended");
            }
        }
        all.push_back({mask, 0, name, tag, {}});
    }
    all[found].arrived |= bit;
    all[found].arguments[self.lane] = argument;
    if (all[found].arrived != mask) return m.wait(name, mask);
    Collective complete = all[found];
    all.erase(all.begin() + long(found));
    compute(complete);
    m.runnable[self.warp] |= mask;
    m.runnable_warps |= 1u << self.warp;
}

template <typename T, typename F>
static void each(const Collective& c, F body) {
    for (uint32_t lane = 0; lane < LANES; lane++) {
        if (c.mask >> lane & 1) body(lane, *static_cast<T*>(c.arguments[lane]));
    }
}

struct Shuffled {
    Shuffle kind;
    uint64_t value, result;
    uint32_t operand, width;
};

static uint32_t source(const Shuffled& s, uint32_t lane) {
    const uint32_t first = lane & ~(s.width - 1), last = first + s.width - 1;
    switch (s.kind) {
        case Shuffle::index: return first | (s.operand & (s.width - 1));
        case Shuffle::up: return lane >= first + s.operand ? lane - s.operand : lane;
        case Shuffle::down: return lane + s.operand <= last ? lane + s.operand : lane;
        default: return (lane ^ s.operand) <= last ? lane ^ s.operand : lane;
    }
}

uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, uint32_t operand, uint32_t width) {
    if (width == 0 || width > LANES || (width & (width - 1))) {
        machine->fail("divergence", "a shuffle of width %u, expected a power of two up to 32", width);
    }
    Shuffled mine{kind, value, 0, operand, width};
    together(mask, "a shuffle of lanes %08llx", uint64_t(kind) << 8 | width, &mine, [](Collective& c) {
        each<Shuffled>(c, [&](uint32_t lane, Shuffled& s) {
            const uint32_t from = source(s, lane);
            if (!(c.mask >> from & 1)) {
                machine->fail("divergence", "lane %u shuffles from lane %u, which is not in the mask %08x", lane, from,
                              c.mask);
            }
            s.result = static_cast<Shuffled*>(c.arguments[from])->value;
        });
    });
    return mine.result;
}

uint32_t ballot(uint32_t mask, bool predicate) {
    uint32_t mine = predicate;
    together(mask, "a vote of lanes %08llx", 0, &mine, [](Collective& c) {
        uint32_t votes = 0;
        each<uint32_t>(c, [&](uint32_t lane, uint32_t& v) { votes |= v << lane; });
        each<uint32_t>(c, [&](uint32_t, uint32_t& v) { v = votes; });
    });
    return mine;
}

void sync_warp(uint32_t mask) {
    together(mask, "__syncwarp of lanes %08llx", 0, nullptr, [](Collective& c) {
        Machine& m = *machine;
        if (!m.checked) return;
        const uint32_t first = m.now->warp * LANES;
        Clocks all = {};
        for (uint32_t lane = 0; lane < LANES; lane++) {
            if (!(c.mask >> lane & 1)) continue;
            Fiber& f = m.fibers[first + lane];
            m.clocks(&f)[f.id] = f.clock++;
            m.top = m.top > f.clock ? m.top : f.clock;
            m.merge(all, m.clocks(&f));
        }
        for (uint32_t lane = 0; lane < LANES; lane++) {
            if (c.mask >> lane & 1) m.merge(m.clocks(&m.fibers[first + lane]), all);
        }
    });
}

bool elect() {
    together(~0u, "elect_one of lanes %08llx", 0, nullptr, [](Collective&) {});
    // Any lane will do, as long as it is the same one each time.
    const Machine& m = *machine;
    const uint32_t chosen = m.order == Order::ascending ? 0 : m.order == Order::descending ? 31 : m.first_serial % 32;
    return m.now->lane == chosen;
}

static char* matrix_row(uint32_t address, bool write) {
    Machine& m = *machine;
    if (address % 16 != 0) m.fail("misaligned", "a matrix row at shared address %u, expected a multiple of 16", address);
    char* row = m.shared(address, 16, "matrix row");
    m.note_shared(address, 16, write, m.mine(Kind::plain));
    return row;
}

struct Matrices {
    uint32_t *registers;
    char* row;
};

void ldmatrix(uint32_t (&out)[4], uint32_t address, bool transposed) {
    Matrices mine{out, matrix_row(address, false)};
    auto straight = [](Collective& c) {
        each<Matrices>(c, [&](uint32_t lane, Matrices& m) {
            for (uint32_t i = 0; i < 4; i++) {
                const char* row = static_cast<Matrices*>(c.arguments[8 * i + lane / 4])->row;
                memcpy(&m.registers[i], row + lane % 4 * 4, 4);
            }
        });
    };
    auto turned = [](Collective& c) {
        each<Matrices>(c, [&](uint32_t lane, Matrices& m) {
            for (uint32_t i = 0; i < 4; i++) {
                uint16_t pair[2];
                for (uint32_t e = 0; e < 2; e++) {
                    const char* row = static_cast<Matrices*>(c.arguments[8 * i + lane % 4 * 2 + e])->row;
                    memcpy(&pair[e], row + lane / 4 * 2, 2);
                }
                memcpy(&m.registers[i], pair, 4);
            }
        });
    };
    if (transposed) {
        together(~0u, "ldmatrix.trans of lanes %08llx", 0, &mine, turned);
    } else {
        together(~0u, "ldmatrix of lanes %08llx", 0, &mine, straight);
    }
}

void stmatrix(uint32_t address, const uint32_t (&in)[4]) {
    uint32_t values[4];
    memcpy(values, in, sizeof values);
    Matrices mine{values, matrix_row(address, true)};
    together(~0u, "stmatrix of lanes %08llx", 0, &mine, [](Collective& c) {
        each<Matrices>(c, [&](uint32_t lane, Matrices& m) {
            for (uint32_t i = 0; i < 4; i++) {
                char* row = static_cast<Matrices*>(c.arguments[8 * i + lane / 4])->row;
                memcpy(row + lane % 4 * 4, &m.registers[i], 4);
            }
        });
    });
}

static float low(uint32_t pair) {
    const uint32_t bits = pair << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static float high(uint32_t pair) { return low(pair >> 16); }

struct Mma {
    float* d;
    uint32_t a[4], b[2];
};

// Products of bf16 are exact in f32, sums go in the order of k.
static void multiply(Collective& c) {
    float a[16][16], b[16][8], d[16][8];
    each<Mma>(c, [&](uint32_t lane, Mma& m) {
        const uint32_t g = lane / 4, t = lane % 4 * 2;
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = g + 8 * (i % 2), k = t + 8 * (i / 2);
            a[row][k] = low(m.a[i]), a[row][k + 1] = high(m.a[i]);
        }
        for (uint32_t i = 0; i < 2; i++) b[t + 8 * i][g] = low(m.b[i]), b[t + 8 * i + 1][g] = high(m.b[i]);
        for (uint32_t e = 0; e < 4; e++) d[g + e / 2 * 8][t + e % 2] = m.d[e];
    });
    for (uint32_t row = 0; row < 16; row++) {
        for (uint32_t k = 0; k < 16; k++) {
            for (uint32_t column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
        }
    }
    each<Mma>(c, [&](uint32_t lane, Mma& m) {
        const uint32_t g = lane / 4, t = lane % 4 * 2;
        for (uint32_t e = 0; e < 4; e++) m.d[e] = d[g + e / 2 * 8][t + e % 2];
    });
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    Mma mine{d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    together(~0u, "mma of lanes %08llx", 0, &mine, multiply);
}

void set_max_registers(uint32_t count) {
    Machine& m = *machine;
    if (count < 24 || count > 256 || count % 8 != 0) {
        m.fail("registers", "setmaxnreg of %u, expected a multiple of 8 from 24 to 256", count);
    }
    together(~0u, "setmaxnreg of lanes %08llx", count, nullptr, [](Collective&) {});
    const uint32_t groups = (m.threads + 127) / 128;
    m.warpgroups[m.now->id / 128].registers = count;
    uint32_t sum = 0;
    for (uint32_t g = 0; g < groups; g++) {
        if (m.warpgroups[g].registers == 0) return;
        sum += m.warpgroups[g].registers * 128;
    }
    if (sum > 65536) m.fail("registers", "the warpgroups ask for %u registers together, at most 65536", sum);
}

}  // namespace emu
