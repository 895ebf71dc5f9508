// Which accesses may follow which. Kernel files are compiled with `-fsanitize=thread`, whose runtime is replaced by
// the functions at the end: the compiler calls them for every load and store to memory that could be shared.
//
// Beside every two bytes lies a cell with the last write and two reads. An access is fine if all that conflicts with
// it in the cell happened before it: by program order, by a full barrier (`floor`), or as the thread's clocks know
// from the barriers it passed. Shuffles, votes and mma order nothing; `__syncwarp` does.
#include <cstdio>
#include <cstring>

#include "machine.h"

namespace emu {

bool Machine::precedes(uint32_t slot, Clock clock) {
    return slot == now->id || (slot < MAX_THREADS && clock < floor) || clocks(now)[slot] >= clock;
}

void Machine::merge(Clock* into, const Clock* from) const {
    for (uint32_t i = 0; i < threads; i++) into[i] = into[i] > from[i] ? into[i] : from[i];
    if (!engines) return;
    for (uint32_t i = TENSOR_SLOT; i < SLOTS; i++) into[i] = into[i] > from[i] ? into[i] : from[i];
}

void Machine::release_to(Clocks& into) {
    clocks(now)[now->id] = now->clock;
    merge(into, clocks(now));
    tick();
}

void Machine::acquire_from(const Clocks& from) { merge(clocks(now), from); }

// Threads' own accesses are aged by `floor` at no cost; only what engines did must be spread.
void Machine::all_meet() {
    floor = ++top;
    for (uint32_t i = 0; i < threads; i++) fibers[i].clock = top;
    if (!engines) return;
    Clock all[SLOTS - TENSOR_SLOT] = {};
    for (uint32_t i = 0; i < threads; i++) {
        const Clock* one = clocks(&fibers[i]) + TENSOR_SLOT;
        for (uint32_t s = 0; s < SLOTS - TENSOR_SLOT; s++) all[s] = all[s] > one[s] ? all[s] : one[s];
    }
    for (uint32_t i = 0; i < threads; i++) memcpy(clocks(&fibers[i]) + TENSOR_SLOT, all, sizeof all);
}

namespace {

struct Place {  // of a cell, for reports
    const Machine& m;
    const Cell* cell;
    bool global;

    std::string text() const {
        if (!global) {
            return "shared offset " + std::to_string(2 * (cell - m.shared_cells) - long(m.shared_start));
        }
        const char* at = m.arena + 2 * (cell - m.global_cells);
        const Allocation* in = m.owner(at);
        if (!in) return "global memory";
        return "offset " + std::to_string(at - in->start) + " of a global allocation of " +
               std::to_string(in->bytes) + " bytes";
    }
};

std::string who(const Machine& m, const Record& r) {
    if (r.block != m.serial) return "another block";
    if (r.slot < MAX_THREADS) return "thread " + std::to_string(r.slot);
    if (r.slot < WGMMA_SLOT) return "a TMA load";
    return r.slot < BULK_SLOT ? "a wgmma" : "a TMA store";
}

[[noreturn]] void race(Machine& m, const Place& place, bool write, const Record& mine, const char* what,
                       const Record& other) {
    m.fail("race", "%s %s %s, which %s %s without anything in between that orders the two", who(m, mine).c_str(),
           write ? "writes" : "reads", place.text().c_str(), who(m, other).c_str(), what);
}

template <bool global>
inline bool before(Machine& m, const Record& r) {
    if (r.block == m.serial) return m.precedes(r.slot, r.clock);
    if (!global || r.block < m.first_serial) return true;
    auto seen = m.acquired.find(r.block);
    return seen != m.acquired.end() && r.clock <= seen->second;
}

// A thread's plain access must be fenced before an engine touches the same bytes.
inline void check_fence(Machine& m, const Place& place, const Record& mine, const Record& other, const char* what) {
    if (mine.slot < MAX_THREADS || other.slot >= MAX_THREADS || other.block != m.serial) return;
    if (other.clock <= m.fibers[other.slot].fence) return;
    m.fail("missing-fence", "%s touches %s, which thread %u %s without fence_proxy_async after it",
           who(m, mine).c_str(), place.text().c_str(), other.slot, what);
}

template <bool global>
inline void note(Machine& m, Cell* first, Cell* last, bool write, const Record& mine) {
    for (Cell* cell = first; cell <= last; cell++) {
        const Place place{m, cell, global};
        const bool atomics = mine.kind == Kind::atomic && cell->write.kind == Kind::atomic;
        if (!global) {
            const bool fresh = cell->write.block != m.serial;
            if (fresh && (!write || mine.kind == Kind::atomic)) {
                m.fail("uninitialised", "%s reads %s, which nobody has written", who(m, mine).c_str(),
                       place.text().c_str());
            }
            if (!fresh && cell->write.kind == Kind::flight) {
                m.fail("not-waited", "%s %s %s, where a copy is still under way", who(m, mine).c_str(),
                       write ? "writes" : "reads", place.text().c_str());
            }
            if (!fresh) check_fence(m, place, mine, cell->write, "wrote");
        }
        if (!before<global>(m, cell->write) && !atomics) race(m, place, write, mine, "wrote", cell->write);
        if (write) {
            for (Record& r : cell->read) {
                if (r.block == 0) continue;
                if (!before<global>(m, r) && !atomics) race(m, place, write, mine, "read", r);
                if (!global) check_fence(m, place, mine, r, "read");
                r.block = 0;
            }
            cell->write = mine;
        } else {
            Record* kept = cell->read;
            auto mayReplace = [&](const Record& r) {
                return r.block == 0 || (r.slot == mine.slot && r.block == mine.block) || before<global>(m, r);
            };
            if (!mayReplace(kept[0])) kept += mayReplace(kept[1]) ? 1 : m.random(2);
            *kept = mine;
        }
    }
}

}  // namespace

void Machine::note_shared(uint32_t address, size_t bytes, bool write, const Record& record) {
    if (!checked || bytes == 0) return;
    note<false>(*this, shared_cells + address / 2, shared_cells + (address + bytes - 1) / 2, write, record);
}

void Machine::note_global(const void* pointer, size_t bytes, bool write, const Record& record) {
    if (!checked || bytes == 0) return;
    const Allocation* inside = owner(pointer);
    const char* at = static_cast<const char*>(pointer);
    if (!inside || at + bytes > inside->start + inside->bytes) {
        fail("out-of-bounds", "%s of %zu bytes of global memory, %s", write ? "write" : "read", bytes,
             inside ? (std::to_string(at + bytes - (inside->start + inside->bytes)) + " of them past an allocation of " +
                       std::to_string(inside->bytes) + " bytes").c_str()
                    : nearest(at).c_str());
    }
    if (write && record.kind != Kind::atomic) {
        if (!now->dirty) now->dirty = true, dirty++;
        now->dirty_clock = now->clock;
    }
    const size_t offset = size_t(at - arena);
    note<true>(*this, global_cells + offset / 2, global_cells + (offset + bytes - 1) / 2, write, record);
}

void Machine::land(uint32_t address, size_t bytes, const Record& record) {
    if (!checked || bytes == 0) return;
    for (size_t cell = address / 2; cell <= (address + bytes - 1) / 2; cell++) shared_cells[cell].write = record;
}

void Machine::touch(const void* pointer, size_t bytes, bool write, Kind kind) {
    const char* at = static_cast<const char*>(pointer);
    if (++accesses > 1 << 20) turn();
    if (size_t(at - window) < WINDOW) {
        const uint32_t address = uint32_t(at - window);
        shared(address, bytes, write ? "write" : "read");
        note_shared(address, bytes, write, mine(kind));
    } else if (size_t(at - arena) < ARENA) {
        note_global(at, bytes, write, mine(kind));
    } else {
        for (const Accumulator& a : now->accumulators) {
            if (at + bytes <= a.start || at >= a.start + a.bytes) continue;
            fail("accumulator", "element %td of an accumulator is %s while its wgmma is under way", (at - a.start) / 4,
                 write ? "written" : "read");
        }
    }
}

static inline void aligned(const void* pointer, size_t bytes, bool write, Kind kind = Kind::plain) {
    Machine* m = machine;
    if (!m || !m->checked) return;
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
        m->fail("misaligned", "%s of %zu bytes at an address %zu past a multiple of that", write ? "write" : "read",
                bytes, size_t(reinterpret_cast<uintptr_t>(pointer) % bytes));
    }
    m->touch(pointer, bytes, write, kind);
}

static inline void unaligned(const void* pointer, size_t bytes, bool write) {
    if (machine && machine->checked) machine->touch(pointer, bytes, write, Kind::plain);
}

void access(const void* pointer, size_t bytes, bool write) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
        machine->fail("misaligned", "%s of %zu bytes at an address %zu past a multiple of that",
                      write ? "write" : "read", bytes, size_t(reinterpret_cast<uintptr_t>(pointer) % bytes));
    }
    if (machine->checked) machine->touch(pointer, bytes, write, Kind::plain);
}

// Atomics on one address, with a fence on the writing side, carry what one block wrote to a later one.
void atomic_access(const void* pointer, size_t bytes) {
    Machine& m = *machine;
    aligned(pointer, bytes, true, Kind::atomic);
    if (m.checked && size_t(static_cast<const char*>(pointer) - m.arena) < ARENA) {
        auto& published = m.published[reinterpret_cast<uint64_t>(pointer)];
        for (auto [block, clock] : published) m.acquired[block] = std::max(m.acquired[block], clock);
        if (m.dirty == 0) published[m.serial] = m.top++;
    }
    m.preempt();
}

void thread_fence() {
    Machine& m = *machine;
    for (uint32_t i = 0; m.dirty && i < m.threads; i++) {
        Fiber& f = m.fibers[i];
        if (f.dirty && (&f == m.now || f.dirty_clock < m.floor)) f.dirty = false, m.dirty--;
    }
}

}  // namespace emu

using emu::aligned;
using emu::unaligned;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void __tsan_read1(void* p) { aligned(p, 1, false); }
void __tsan_read2(void* p) { aligned(p, 2, false); }
void __tsan_read4(void* p) { aligned(p, 4, false); }
void __tsan_read8(void* p) { aligned(p, 8, false); }
void __tsan_read16(void* p) { aligned(p, 16, false); }
void __tsan_write1(void* p) { aligned(p, 1, true); }
void __tsan_write2(void* p) { aligned(p, 2, true); }
void __tsan_write4(void* p) { aligned(p, 4, true); }
void __tsan_write8(void* p) { aligned(p, 8, true); }
void __tsan_write16(void* p) { aligned(p, 16, true); }
void __tsan_unaligned_read2(void* p) { unaligned(p, 2, false); }
void __tsan_unaligned_read4(void* p) { unaligned(p, 4, false); }
void __tsan_unaligned_read8(void* p) { unaligned(p, 8, false); }
void __tsan_unaligned_read16(void* p) { unaligned(p, 16, false); }
void __tsan_unaligned_write2(void* p) { unaligned(p, 2, true); }
void __tsan_unaligned_write4(void* p) { unaligned(p, 4, true); }
void __tsan_unaligned_write8(void* p) { unaligned(p, 8, true); }
void __tsan_unaligned_write16(void* p) { unaligned(p, 16, true); }
void __tsan_read_range(void* p, size_t n) { unaligned(p, n, false); }
void __tsan_write_range(void* p, size_t n) { unaligned(p, n, true); }

}  // extern "C"
