// Fibers and who runs next. A fiber switches straight to the next one; the scheduler is a function, not a fiber.
#include <cstdio>
#include <cstring>

#include "machine.h"

namespace emu {

__thread Here* here = nullptr;
__thread Machine* machine = nullptr;

// Keeps what the calling convention lets a callee change; everything else the caller has saved already.
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");

static void run_thread() {
    machine->kernel->call(machine->kernel->target, machine->arguments);
    machine->leave();
}

uint32_t Machine::random(uint32_t below) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return uint32_t((random_state >> 32) * below >> 32);
}

void Machine::start_fibers() {
    floor = ++top;
    runnable_warps = 0, living = threads, at_barrier = 0, dirty = 0;
    memset(runnable, 0, sizeof runnable);
    for (uint32_t id = 0; id < threads; id++) {
        Fiber& f = fibers[id];
        f.thread = {id % block_size.x, id / block_size.x % block_size.y, id / (block_size.x * block_size.y)};
        f.block = block, f.block_size = block_size, f.grid_size = grid_size;
        f.id = id, f.warp = id / LANES, f.lane = id % LANES;
        f.exited = f.dirty = f.wgmma_fenced = false;
        f.clock = top, f.fence = 0, f.dirty_clock = 0, f.waits = nullptr;
        f.copies.clear(), f.copy_groups.clear(), f.stores.clear(), f.store_groups.clear();
        f.accumulators.clear(), f.wgmma_groups.clear();
        f.wgmma_issued = f.wgmma_waited = 0;
        // Tops differ by odd multiples of a cache line, or all lanes' hot lines would share a few cache sets.
        char* end = stacks + (id + 1) * (STACK + PAGE) - 192 * (id % 64);
        void** frame = reinterpret_cast<void**>(end) - 8;
        memset(frame, 0, 8 * sizeof *frame);
        frame[6] = reinterpret_cast<void*>(run_thread);
        f.stack = frame;
        wake(id);
    }
}

void Machine::run_block() {
    start_fibers();
    now = nullptr;
    now = choose();
    here = now;
    emu_switch(&launcher, now->stack);
}

void Machine::wake(uint32_t thread) {
    runnable[thread / LANES] |= 1u << thread % LANES;
    runnable_warps |= 1u << thread / LANES;
}

static uint32_t pick(Machine& m, uint32_t mask) {
    switch (m.order) {
        case Order::ascending: return uint32_t(__builtin_ctz(mask));
        case Order::descending: return 31 - uint32_t(__builtin_clz(mask));
        default: break;
    }
    for (uint32_t skip = m.random(uint32_t(__builtin_popcount(mask))); skip; skip--) mask &= mask - 1;
    return uint32_t(__builtin_ctz(mask));
}

// Null when every fiber is done. Stays in a warp while that has runnable lanes: collectives then stay in cache.
Fiber* Machine::choose() {
    accesses = 0;
    if (order == Order::random && runnable_warps && !loads.empty() && random(8) == 0) deliver();
    while (!runnable_warps) {
        if (!living) return nullptr;
        if (deliver()) continue;
        now = nullptr;
        fail("deadlock", "nothing can go on: %s", deadlock().c_str());
    }
    uint32_t warp = now && runnable[now->warp] ? now->warp : pick(*this, runnable_warps);
    return &fibers[warp * LANES + pick(*this, runnable[warp])];
}

void Machine::switch_to(Fiber* fiber) {
    Fiber* before = now;
    if (fiber == before) return;
    now = fiber;
    here = fiber;
    emu_switch(&before->stack, fiber->stack);
}

static void not_runnable(Machine& m, const Fiber& f) {
    m.runnable[f.warp] &= ~(1u << f.lane);
    if (!m.runnable[f.warp]) m.runnable_warps &= ~(1u << f.warp);
}

void Machine::wait(const char* what, uint64_t a, uint64_t b, uint64_t c) {
    Fiber* self = now;
    self->waits = what;
    self->waits_on[0] = a, self->waits_on[1] = b, self->waits_on[2] = c;
    lonely_turns = 0;
    not_runnable(*this, *self);
    switch_to(choose());
    self->waits = nullptr;
}

void Machine::turn() {
    Fiber* self = now;
    not_runnable(*this, *self);
    bool alone = !runnable_warps && !deliver();
    Fiber* other = alone ? self : choose();
    wake(self->id);
    lonely_turns = alone ? lonely_turns + 1 : 0;
    if (lonely_turns > 256) fail("livelock", "a thread goes on without end while all others wait or are done");
    accesses = 0;
    switch_to(other);
}

void Machine::preempt() {
    if (order == Order::random && random(4) == 0) switch_to(choose());
}

void Machine::leave() {
    Fiber* self = now;
    check_thread_end();
    for (const Collective& open : collectives[self->warp]) {
        if (open.mask >> self->lane & 1) {
            char what[96];
            snprintf(what, sizeof what, open.name, static_cast<unsigned long long>(open.mask));
            fail("divergence", "a thread ends while lanes %08x wait for it in %s", open.arrived, what);
        }
    }
    self->exited = true;
    living--;
    lonely_turns = 0;
    not_runnable(*this, *self);
    if (living == 0) check_block_end();
    if (living && at_barrier == living) threads_meet();
    Fiber* other = choose();
    if (other) switch_to(other);
    emu_switch(&self->stack, launcher);
}

std::string Machine::deadlock() const {
    std::map<std::string, std::vector<uint32_t>> groups;
    for (uint32_t id = 0; id < threads; id++) {
        const Fiber& f = fibers[id];
        if (f.exited || !f.waits) continue;
        using Word = unsigned long long;
        char text[256];
        int n = snprintf(text, sizeof text, f.waits, Word(f.waits_on[0]), Word(f.waits_on[1]), Word(f.waits_on[2]));
        for (const Mbarrier& b : mbarriers) {
            if (strncmp(f.waits, "mbarrier", 8) != 0 || !b.live || b.address != f.waits_on[0]) continue;
            snprintf(text + n, sizeof text - size_t(n), " (phase %llu, %u of %u arrivals and %lld bytes pending)",
                     Word(b.phase), b.pending, b.expected, static_cast<long long>(b.bytes));
        }
        groups[text].push_back(id);
    }
    std::string all;
    for (const auto& [text, who] : groups) {
        all += all.empty() ? "" : "; ";
        all += std::to_string(who.size()) + " of " + std::to_string(threads) + " threads (first " +
               std::to_string(who.front()) + ", last " + std::to_string(who.back()) + ") wait for " + text;
    }
    return all;
}

}  // namespace emu
