// Barriers of a block: `__syncthreads`, named barriers, and mbarriers with their phases and byte counts.
#include <cstring>

#include "machine.h"

namespace emu {

void Machine::threads_meet() {
    at_barrier = 0;
    all_meet();
    for (uint32_t id = 0; id < threads; id++) {
        if (!fibers[id].exited) wake(id);
    }
}

void sync_threads() {
    Machine& m = *machine;
    if (++m.at_barrier == m.living) {
        m.threads_meet();
    } else {
        m.wait("__syncthreads");
    }
}

void named_barrier(uint32_t id, uint32_t threads, bool wait) {
    Machine& m = *machine;
    if (id == 0 || id > 15) m.fail("barrier-count", "named barrier %u, expected 1 to 15 (0 is __syncthreads)", id);
    if (threads == 0 || threads % LANES != 0 || threads > m.threads) {
        m.fail("barrier-count", "named barrier %u of %u threads, expected a multiple of 32 up to the block's %u", id,
               threads, m.threads);
    }
    NamedBarrier& b = m.barriers[id];
    if (b.arrived == 0) b.threads = threads;
    if (b.threads != threads) {
        m.fail("barrier-count", "named barrier %u of %u threads, while %u others wait for %u", id, threads, b.arrived,
               b.threads);
    }
    m.release_to(b.known);
    if (++b.arrived < threads) {
        if (!wait) return m.preempt();
        b.waiting.push_back(m.now->id);
        return m.wait("named barrier %llu of %llu threads", id, threads);
    }
    if (wait) m.acquire_from(b.known);
    for (uint32_t other : b.waiting) {
        m.merge(m.clocks(&m.fibers[other]), b.known);
        m.wake(other);
    }
    b.arrived = 0;
    b.waiting.clear();
    m.preempt();
}

// Its eight bytes hold a word that names it, so that overwriting it is noticed.
static uint64_t cookie(uint32_t address) { return 0x6D62617272696572 ^ uint64_t(address) << 20; }

static char* place(Machine& m, uint32_t address) {
    if (address % 8 != 0) m.fail("misaligned", "mbarrier at shared address %u, expected a multiple of 8", address);
    return m.shared(address, 8, "mbarrier");
}

Mbarrier& Machine::mbarrier(uint32_t address, const char* what) {
    char* word = place(*this, address);
    for (Mbarrier& b : mbarriers) {
        if (!b.live || b.address != address) continue;
        uint64_t found;
        memcpy(&found, word, 8);
        if (found != cookie(address)) fail("mbarrier", "%s on a barrier whose memory was overwritten", what);
        if (checked && !precedes(b.init_slot, b.init_clock)) {
            fail("mbarrier", "%s on a barrier whose initialisation by thread %u is not ordered before it", what,
                 b.init_slot);
        }
        return b;
    }
    fail("mbarrier", "%s at shared offset %u, which is not initialised", what, address - shared_start);
}

void mbarrier_init(uint32_t address, uint32_t arrivals) {
    Machine& m = *machine;
    char* word = place(m, address);
    if (arrivals == 0 || arrivals >= 1 << 20) m.fail("mbarrier", "initialised for %u arrivals", arrivals);
    for (const Mbarrier& b : m.mbarriers) {
        if (b.live && b.address == address) m.fail("mbarrier", "initialised twice without mbar_inval");
    }
    m.note_shared(address, 8, true, m.mine(Kind::plain));
    const uint64_t mark = cookie(address);
    memcpy(word, &mark, 8);
    Mbarrier& b = m.mbarriers.emplace_back();
    b.address = address;
    b.expected = b.pending = arrivals;
    b.slot = TENSOR_SLOT + uint32_t(m.mbarriers.size() - 1) % BARRIER_SLOTS;
    b.live = true;
    b.init_slot = m.now->id, b.init_clock = m.now->clock;
}

void mbarrier_invalidate(uint32_t address) { machine->mbarrier(address, "invalidation").live = false; }

// Completes the phase if nothing is pending, and wakes who waited for it.
void Machine::settle(Mbarrier& b) {
    if (b.pending != 0 || b.bytes > 0) return;
    if (b.bytes < 0) {
        fail("byte-count", "the mbarrier at shared offset %u got %lld bytes more than were expected",
             b.address - shared_start, static_cast<long long>(-b.bytes));
    }
    if (b.in_flight != 0) {
        fail("byte-count", "phase %llu of the mbarrier at shared offset %u completes with %u copies under way",
             static_cast<unsigned long long>(b.phase), b.address - shared_start, b.in_flight);
    }
    b.pending = b.expected;
    b.phase++;
    b.observed = false;
    memcpy(b.completed, b.arriving, sizeof(Clocks));
    for (uint32_t id = 0; id < threads; id++) {
        const Fiber& f = fibers[id];
        if (f.waits && strncmp(f.waits, "mbarrier", 8) == 0 && f.waits_on[0] == b.address) wake(id);
    }
}

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
    Machine& m = *machine;
    Mbarrier& b = m.mbarrier(address, "arrival");
    if (b.phase > 0 && !b.observed) {
        m.fail("mbarrier", "an arrival in phase %llu at shared offset %u before anybody waited for the phase before: "
               "more arrivals than its count of %u, or a missing wait",
               static_cast<unsigned long long>(b.phase), address - m.shared_start, b.expected);
    }
    m.release_to(b.arriving);
    b.bytes += expected_bytes;
    b.pending--;
    m.settle(b);
    m.preempt();
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
    Machine& m = *machine;
    if (parity > 1) m.fail("mbarrier", "a wait for parity %u, expected 0 or 1", parity);
    for (;;) {
        Mbarrier& b = m.mbarrier(address, "wait");
        if ((b.phase & 1) != parity) {
            if (b.phase > 0) b.observed = true;
            m.acquire_from(b.completed);
            return m.preempt();
        }
        m.wait("mbarrier at shared address %llu, parity %llu", address, parity);
    }
}

}  // namespace emu
