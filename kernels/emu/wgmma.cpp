// wgmma: issued by the 128 threads of a warpgroup together, executed at the first wait that covers it, from operands
// in shared memory that descriptors lay out.
#include <cstring>

#include "machine.h"

namespace emu {
namespace {

// A shared-memory operand: where 8 neighbouring elements (16 bytes) lie.
struct Operand {
    uint32_t start, leading, stride, span;  // bytes; span: of the swizzle, 0 without
    bool transposed;                        // MN-major

    Operand(Machine& m, uint64_t d, bool transposed, const char* name) : transposed(transposed) {
        constexpr uint64_t reserved = 3ull << 14 | 3ull << 30 | 7ull << 46 | 1023ull << 52;
        constexpr uint32_t spans[] = {0, 128, 64, 32};
        start = uint32_t(d & 0x3FFF) << 4, leading = uint32_t(d >> 16 & 0x3FFF) << 4;
        stride = uint32_t(d >> 32 & 0x3FFF) << 4, span = spans[d >> 62];
        if (d & reserved) m.fail("wgmma", "the descriptor of %s has reserved bits set", name);
        if (d >> 49 & 7) m.fail("wgmma", "the descriptor of %s has a base offset; align its tile instead", name);
        if (span && start % (8 * span) >= span) {
            m.fail("wgmma", "the descriptor of %s starts outside the first row of a swizzle atom", name);
        }
        if (span && !transposed && start % span + 32 > span) {
            m.fail("wgmma", "the 16 columns of %s leave their swizzled row", name);
        }
    }

    // Of element (mn, k); the inner of the two is a multiple of 8.
    uint32_t at(uint32_t mn, uint32_t k) const {
        if (span == 0) {
            return start + mn / 8 * stride + k / 8 * leading + (transposed ? k % 8 : mn % 8) * 16;
        }
        const uint32_t across = span / 2;
        const uint32_t flat = transposed ? start + mn / across * leading + mn % across * 2 + k / 8 * stride + k % 8 * span
                                         : start + mn / 8 * stride + mn % 8 * span + k * 2;
        return flat ^ ((flat >> 7 & (span / 16 - 1)) << 4);
    }

    template <typename F>
    void pieces(uint32_t extent, F body) const {  // body(mn, k, address) for each 8 elements
        for (uint32_t mn = 0; mn < extent; mn += transposed ? 8 : 1) {
            for (uint32_t k = 0; k < 16; k += transposed ? 1 : 8) body(mn, k, at(mn, k));
        }
    }

    // As f32, k-major rows of `width` for the inner product's order.
    void read(const Machine& m, uint32_t extent, float* out, uint32_t mn_step, uint32_t k_step) const {
        pieces(extent, [&](uint32_t mn, uint32_t k, uint32_t address) {
            for (uint32_t i = 0; i < 8; i++) {
                uint16_t half;
                memcpy(&half, m.window + address + 2 * i, 2);
                const uint32_t bits = uint32_t(half) << 16;
                memcpy(out + (mn + (transposed ? i : 0)) * mn_step + (k + (transposed ? 0 : i)) * k_step, &bits, 4);
            }
        });
    }
};

// Row and column of register `i` of the accumulator, and of pair `i` of A's registers.
uint32_t row_of(uint32_t thread, uint32_t i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
uint32_t column_of(uint32_t thread, uint32_t i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

}  // namespace

void Machine::read_operands(const Operation& o) {
    const Record reads{serial, o.clock, uint16_t(WGMMA_SLOT + now->id / 128), Kind::plain};
    auto check = [&](const Operand& operand, uint32_t extent, const char* name) {
        operand.pieces(extent, [&](uint32_t, uint32_t, uint32_t address) {
            shared(address, 16, name);
            note_shared(address, 16, false, reads);
        });
    };
    if (!o.registers) check(Operand(*this, o.shape.a, o.shape.a_transposed, "A"), 64, "operand A of a wgmma");
    check(Operand(*this, o.shape.b, o.shape.b_transposed, "B"), o.shape.columns, "operand B of a wgmma");
}

void Machine::execute(const Operation& o) {
    const uint32_t n = o.shape.columns;
    float a[64 * 16], b[16 * 256], d[64 * 256];
    Operand(*this, o.shape.b, o.shape.b_transposed, "B").read(*this, n, b, 1, n);
    if (o.registers) {
        for (uint32_t thread = 0; thread < 128; thread++) {
            for (uint32_t i = 0; i < 8; i++) {
                const uint32_t row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
                const uint32_t k = i / 4 * 8 + thread % 4 * 2 + i % 2;
                const uint32_t bits = o.a[thread][i / 2] >> (i % 2 * 16) << 16;
                memcpy(&a[row * 16 + k], &bits, 4);
            }
        }
    } else {
        Operand(*this, o.shape.a, o.shape.a_transposed, "A").read(*this, 64, a, 16, 1);
    }
    for (uint32_t thread = 0; thread < 128; thread++) {
        for (uint32_t i = 0; i < n / 2; i++) {
            d[row_of(thread, i) * n + column_of(thread, i)] = o.shape.accumulate ? o.d[thread][i] : 0.0f;
        }
    }
    for (uint32_t row = 0; row < 64; row++) {
        for (uint32_t k = 0; k < 16; k++) {
            const float left = a[row * 16 + k];
            for (uint32_t column = 0; column < n; column++) d[row * n + column] += left * b[k * n + column];
        }
    }
    for (uint32_t thread = 0; thread < 128; thread++) {
        for (uint32_t i = 0; i < n / 2; i++) o.d[thread][i] = d[row_of(thread, i) * n + column_of(thread, i)];
    }
}

static bool same(const Wgmma& x, const Wgmma& y, bool registers) {
    return x.columns == y.columns && x.a_transposed == y.a_transposed && x.b_transposed == y.b_transposed &&
           (registers || x.a == y.a) && x.b == y.b && x.accumulate == y.accumulate;
}

void wgmma(float* d, const Wgmma& shape, const uint32_t* a) {
    Machine& m = *machine;
    Fiber& f = *m.now;
    const uint32_t group = f.id / 128, first = group * 128;
    Warpgroup& w = m.warpgroups[group];
    if (first + 128 > m.threads) m.fail("wgmma", "the warpgroup has less than 128 threads");
    if (shape.columns % 8 != 0 || shape.columns == 0 || shape.columns > 256) m.fail("wgmma", "N is %u", shape.columns);
    if (!f.wgmma_fenced) m.fail("wgmma", "no wgmma_fence since the accumulators were last free to touch");
    Operation& o = w.next;
    if (w.arrived == 0) o.shape = shape, o.registers = a != nullptr;
    if (o.registers != (a != nullptr) || !same(o.shape, shape, o.registers)) {
        m.fail("divergence", "threads of a warpgroup issue one wgmma with different operands");
    }
    o.d[f.id - first] = d;
    if (a) memcpy(o.a[f.id - first], a, sizeof o.a[0]);
    const size_t index = f.wgmma_issued++;
    if (!f.accumulators.empty() && f.accumulators.back().start == reinterpret_cast<char*>(d)) {
        f.accumulators.back().operation = index;
    } else {
        f.accumulators.push_back({reinterpret_cast<char*>(d), shape.columns / 2 * sizeof(float), index});
    }
    if (++w.arrived < 128) return m.wait("the other threads of warpgroup %llu to issue a wgmma", group);
    w.arrived = 0;
    o.clock = m.engine(WGMMA_SLOT + group, Kind::plain).clock;
    m.read_operands(o);
    w.queue.push_back(o);
    w.clocks.push_back(o.clock);
    for (uint32_t i = 0; i < 128; i++) m.wake(first + i);
}

void wgmma_fence() { machine->now->wgmma_fenced = true; }

void wgmma_commit() { machine->now->wgmma_groups.push_back(machine->now->wgmma_issued); }

void wgmma_wait(uint32_t groups_left) {
    Machine& m = *machine;
    Fiber& f = *m.now;
    f.wgmma_fenced = false;
    auto& groups = f.wgmma_groups;
    if (groups.size() <= groups_left) return;
    const size_t end = groups[groups.size() - 1 - groups_left];
    groups.erase(groups.begin(), groups.end() - long(groups_left));
    Warpgroup& w = m.warpgroups[f.id / 128];
    for (; w.done < end; w.done++) {
        m.execute(w.queue.front());
        w.queue.pop_front();
    }
    if (end) m.clocks(&f)[WGMMA_SLOT + f.id / 128] = w.clocks[end - 1];
    auto& pending = f.accumulators;
    for (size_t i = pending.size(); i-- > 0;) {
        if (pending[i].operation < end) pending.erase(pending.begin() + long(i));
    }
    f.wgmma_waited = end;
    m.preempt();
}

}  // namespace emu
