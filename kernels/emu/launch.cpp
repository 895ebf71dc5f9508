// The C interface that `src/backend/gpu/emulator.rs` drives, launches, and reports.
#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#include "machine.h"

namespace emu {

static std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

void add_kernel(const Kernel& kernel) { kernels()[kernel.name] = kernel; }

// Where in a kernel the running thread is, by addr2line; empty where that or the line table is missing.
static std::string source_line() {
    void* frames[32];
    const int count = backtrace(frames, 32);
    std::string command;
    for (int i = 0; i < count; i++) {
        Dl_info in;
        if (!dladdr(frames[i], &in)) continue;
        if (command.empty()) command = std::string("addr2line -i -e '") + in.dli_fname + "'";
        char address[32];  // one byte back: of the call, not of what follows it
        snprintf(address, sizeof address, " %#tx", static_cast<char*>(frames[i]) - 1 - static_cast<char*>(in.dli_fbase));
        command += address;
    }
    FILE* lines = command.empty() ? nullptr : popen((command + " 2>/dev/null").c_str(), "r");
    std::string found;
    char line[1024];
    while (lines && fgets(line, sizeof line, lines)) {
        const char* file = strstr(line, "kernels/");
        const char* number = strstr(line, ".cu:");
        if (found.empty() && file && number) found.assign(file, number + 4 + strspn(number + 4, "0123456789"));
    }
    if (lines) pclose(lines);
    return found;
}

// Writes the report and abandons the launch. Kernels own nothing that would need a destructor.
void Machine::fail(const char* rule, const char* format, ...) {
    char text[1024];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    report = std::string(rule) + ": " + text + "; kernel " + kernel->name;
    snprintf(text, sizeof text, ", block (%u, %u, %u)", block.x, block.y, block.z);
    report += text;
    if (now) {
        snprintf(text, sizeof text, ", thread (%u, %u, %u)", now->thread.x, now->thread.y, now->thread.z);
        report += text;
    }
    const std::string line = now && lines ? source_line() : "";
    if (!line.empty()) report += ", at " + line;
    void* abandoned;
    emu_switch(&abandoned, launcher);
    abort();
}

static struct sigaction before[NSIG];

// A fault in a kernel is a report like any other; elsewhere it is somebody else's.
static void on_fault(int signal, siginfo_t* info, void*) {
    if (!machine || !machine->now) {
        sigaction(signal, &before[signal], nullptr);  // happens again, with its own handler
        return;
    }
    Machine& m = *machine;
    if (signal == SIGFPE) m.fail("arithmetic", "an integer is divided by zero");
    if (signal == SIGILL) m.fail("arithmetic", "an array index, a shift or a division is out of range");
    const char* at = static_cast<const char*>(info->si_addr);
    const long long shared = at - m.window;
    if (shared >= 0 && shared < static_cast<long long>(WINDOW)) {
        m.fail("out-of-bounds", "access at shared offset %lld, of %u bytes in all", shared - m.shared_start,
               m.shared_bytes);
    }
    if (size_t(at - m.stacks) < MAX_THREADS * (STACK + PAGE)) {
        m.fail("out-of-bounds", "the thread's stack of %zu KB is used up", STACK >> 10);
    }
    m.fail("out-of-bounds", "access at %p, %s", static_cast<const void*>(at), m.nearest(at).c_str());
}

// Handlers, installed once, and the stack they need, for the time of a launch.
struct Signals {
    static constexpr int caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    static constexpr size_t size = 64 << 10;
    stack_t stack_before{};
    void* stack = malloc(size);

    static void install() {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int signal : caught) sigaction(signal, &action, &before[signal]);
    }
    Signals() {
        static const bool once = (install(), true);
        (void)once;
        stack_t own{};
        own.ss_sp = stack, own.ss_size = size;
        sigaltstack(&own, &stack_before);
    }
    ~Signals() {
        sigaltstack(&stack_before, nullptr);
        free(stack);
    }
};

static std::string refuse(Machine& m, const char* name, const dim3& grid, const dim3& block, uint32_t shared,
                          const size_t* sizes, size_t count) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return std::string("launch: no kernel is named ") + name;
    m.kernel = &found->second;
    auto complain = [&](const std::string& what) { return "launch: " + what + "; kernel " + name; };
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > MAX_THREADS || block.z > 64) {
        return complain(std::to_string(threads) + " threads in a block, expected 1 to 1024");
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) {
        return complain("a grid of (" + std::to_string(grid.x) + ", " + std::to_string(grid.y) + ", " +
                        std::to_string(grid.z) + "), expected 1 to (2147483647, 65535, 65535)");
    }
    if (shared > SHARED_LIMIT) return complain(std::to_string(shared) + " bytes of shared memory, at most 232448");
    if (count != m.kernel->count) {
        return complain(std::to_string(count) + " arguments, expected " + std::to_string(m.kernel->count));
    }
    for (size_t i = 0; i < count; i++) {
        if (sizes[i] == m.kernel->sizes[i]) continue;
        return complain("argument " + std::to_string(i) + " has " + std::to_string(sizes[i]) + " bytes, expected " +
                        std::to_string(m.kernel->sizes[i]));
    }
    return {};
}

void Machine::check_thread_end() {
    if (!now->stores.empty()) fail("not-waited", "a thread ends with %zu TMA stores under way", now->stores.size());
    if (now->wgmma_waited < now->wgmma_issued) fail("not-waited", "a thread ends with wgmmas under way");
}

void Machine::check_block_end() {
    if (!loads.empty()) fail("not-waited", "the block ends with %zu TMA loads under way", loads.size());
    for (uint32_t id = 0; id < 16; id++) {
        if (barriers[id].arrived) {
            fail("barrier-count", "the block ends with %u of %u arrivals at named barrier %u", barriers[id].arrived,
                 barriers[id].threads, id);
        }
    }
    for (const Mbarrier& b : mbarriers) {
        if (b.live && b.bytes != 0) {
            fail("byte-count", "the block ends with %lld bytes pending at the mbarrier at shared offset %u",
                 static_cast<long long>(b.bytes), b.address - shared_start);
        }
    }
}

// What the block before left is for nobody.
static void start_block(Machine& m) {
    m.serial++;
    m.mbarriers.clear();
    m.loads.clear();
    m.acquired.clear();
    m.engines = false;
    for (auto& open : m.collectives) open.clear();
    for (NamedBarrier& b : m.barriers) b.threads = b.arrived = 0, b.waiting.clear();
    for (Warpgroup& w : m.warpgroups) w.arrived = 0, w.queue.clear(), w.clocks.clear(), w.done = 0, w.registers = 0;
    memset(m.window + m.shared_start, 0xFF, m.shared_bytes);
}

static void run_grid(Machine& m) {
    const uint64_t blocks = uint64_t(m.grid_size.x) * m.grid_size.y * m.grid_size.z;
    m.threads = m.block_size.x * m.block_size.y * m.block_size.z;
    m.first_serial = m.serial + 1;
    m.published.clear();
    // In random order blocks go round the grid by a stride that meets all of them.
    uint64_t stride = 1, index = m.order == Order::descending ? blocks - 1 : 0;
    if (m.order == Order::random) {
        stride = 1 + m.random(uint32_t(blocks));
        while (std::gcd(stride, blocks) != 1) stride++;
    }
    if (m.order == Order::descending) stride = blocks - 1;
    for (uint64_t i = 0; i < blocks && m.report.empty(); i++, index = (index + stride) % blocks) {
        m.block = {unsigned(index % m.grid_size.x), unsigned(index / m.grid_size.x % m.grid_size.y),
                   unsigned(index / m.grid_size.x / m.grid_size.y)};
        start_block(m);
        m.run_block();
    }
}

}  // namespace emu

using namespace emu;

extern "C" {

Machine* emu_new() {
    try {
        return new Machine;
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void emu_delete(Machine* m) { delete m; }

void emu_configure(Machine* m, uint32_t order, uint64_t seed, bool checked, bool lines) {
    m->order = Order(order);
    m->random_state = seed * 0x9E3779B97F4A7C15 | 1;
    m->checked = checked;
    m->lines = lines;
}

uint64_t emu_allocate(Machine* m, size_t bytes) { return m->allocate(bytes); }
size_t emu_free(const Machine* m) { return ARENA - PAGE - m->used_pages * PAGE; }
const char* emu_release(Machine* m, uint64_t address) { return m->release(address); }

// The host pointer to `bytes` of global memory, null if they are not inside one allocation.
char* emu_host(Machine* m, uint64_t address, size_t bytes) {
    char* pointer = reinterpret_cast<char*>(address);
    const Allocation* inside = m->owner(pointer);
    return inside && bytes <= size_t(inside->start + inside->bytes - pointer) ? pointer : nullptr;
}

// The sizes of a kernel's arguments, null if there is no such kernel.
const size_t* emu_parameters(const char* name, size_t* count) {
    const auto found = kernels().find(name);
    if (found == kernels().end()) return nullptr;
    *count = found->second.count;
    return found->second.sizes;
}

// Null, or the report; it stays valid until the next launch.
const char* emu_launch(Machine* m, const char* name, const uint32_t* grid, const uint32_t* block, uint32_t shared,
                       void** arguments, const size_t* sizes, size_t count) {
    m->grid_size = {grid[0], grid[1], grid[2]};
    m->block_size = {block[0], block[1], block[2]};
    m->report = refuse(*m, name, m->grid_size, m->block_size, shared, sizes, count);
    if (m->report.empty()) {
        Signals signals;
        m->arguments = arguments;
        m->lay_out_shared(shared);
        machine = m;
        run_grid(*m);
        machine = nullptr, here = nullptr, m->now = nullptr;
    }
    return m->report.empty() ? nullptr : m->report.c_str();
}

}  // extern "C"
