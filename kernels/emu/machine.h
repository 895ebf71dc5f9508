// The emulated device: one `Machine` runs the blocks of one launch after another on the calling OS thread.
//
// Every CUDA thread is a fiber that runs until it waits. Asynchronous work (copies, wgmma) is done as late as the
// rules allow. In checked mode every access the kernel makes leaves a record beside the bytes it touched
// (`shadow.cpp`), and vector clocks say which records an access may follow.
#pragma once
#include <deque>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "api.h"

namespace emu {

constexpr uint32_t LANES = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / LANES;
constexpr size_t STACK = 256 << 10, WINDOW = 256 << 10, ARENA = size_t(1) << 32, PAGE = 4096;
constexpr uint32_t SHARED_LIMIT = 232448;

// Who a record belongs to: threads come first, then the engines that work beside them.
constexpr uint32_t BARRIER_SLOTS = 64, WARPGROUPS = MAX_THREADS / 128;
constexpr uint32_t TENSOR_SLOT = MAX_THREADS, WGMMA_SLOT = TENSOR_SLOT + BARRIER_SLOTS;
constexpr uint32_t BULK_SLOT = WGMMA_SLOT + WARPGROUPS, SLOTS = BULK_SLOT + 1;

using Clock = uint32_t;
using Clocks = Clock[SLOTS];

enum class Kind : uint8_t { plain, atomic, flight };  // flight: the destination of a copy under way

// One access: in which block, by whom, when.
struct Record {
    uint32_t block;
    Clock clock;
    uint16_t slot;
    Kind kind;
};
// What is remembered of two bytes of memory.
struct Cell {
    Record write, read[2];
};

struct Fiber;
struct Copy {  // cp.async
    uint32_t to;
    const void* from;
    uint32_t bytes;
};
struct TensorMap {
    uint64_t magic, address;
    uint64_t strides[4];  // bytes, from dimension 1 on
    uint32_t sizes[5], box[5];
    uint32_t rank, element, swizzle;  // swizzle: 0, 32, 64 or 128 bytes
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));
struct Tensor {  // a box under way between global and shared memory
    TensorMap map;
    uint32_t shared;
    int at[5];
    size_t barrier;
    uint64_t phase;
    Clock clock;
    Fiber* issuer;

    uint32_t bytes() const;
};
struct Accumulator {
    const char* start;
    size_t bytes, operation;
};

struct Fiber : Here {
    void* stack;  // stack pointer while it does not run
    uint32_t id, warp, lane;
    bool exited, dirty;  // dirty: has global writes that no __threadfence covers
    Clock clock, fence, dirty_clock;  // fence: accesses up to here are ordered before the async proxy
    const char* waits;  // what for, when it does not run
    uint64_t waits_on[3];
    std::vector<Copy> copies;
    std::vector<size_t> copy_groups;  // ends in `copies`
    std::vector<Tensor> stores;
    std::vector<size_t> store_groups;
    std::vector<Accumulator> accumulators;
    std::vector<size_t> wgmma_groups;  // ends in the warpgroup's operations
    size_t wgmma_issued, wgmma_waited;
    bool wgmma_fenced;
};

struct Collective {
    uint32_t mask, arrived;
    const char* name;
    uint64_t tag;
    void* arguments[LANES];
};
struct NamedBarrier {
    uint32_t threads, arrived;
    std::vector<uint32_t> waiting;
    Clocks known;
};
struct Mbarrier {
    uint32_t address, expected, pending, slot;
    bool live, observed;
    int64_t bytes;  // still expected; below zero while copies are ahead of the expectation
    uint64_t phase;
    uint32_t in_flight;
    uint32_t init_slot;
    Clock init_clock;
    Clocks arriving, completed;
};
struct Operation {
    Wgmma shape;
    float* d[128];
    uint32_t a[128][4];
    bool registers;
    Clock clock;
};
struct Warpgroup {
    Operation next;
    uint32_t arrived;
    std::deque<Operation> queue;
    size_t done;  // operations of this block already executed; the queue begins there
    std::vector<Clock> clocks;  // of all operations
    uint32_t registers;
};
struct Allocation {
    char* start;
    size_t bytes, first_page, pages;
    bool live;
};

enum class Order : uint32_t { ascending, descending, random };

struct Machine {
    Machine();
    ~Machine();

    // How to run.
    Order order = Order::ascending;
    uint64_t random_state = 1;
    bool checked = true, lines = false;

    // The launch.
    const Kernel* kernel = nullptr;
    void** arguments = nullptr;
    dim3 grid_size, block_size;
    uint3 block{};
    uint32_t serial = 0, first_serial = 0;  // this block's and the launch's first block's number, never reused
    uint32_t threads = 0, living = 0;
    uint32_t shared_start = 0, shared_bytes = 0;
    std::string report;

    // Fibers.
    std::vector<Fiber> fibers{MAX_THREADS};
    char* stacks = nullptr;
    void* launcher = nullptr;
    Fiber* now = nullptr;
    uint32_t runnable[MAX_WARPS] = {};
    uint32_t runnable_warps = 0;
    uint64_t accesses = 0, lonely_turns = 0;  // since the last switch, for the watchdog

    // Waiting together.
    std::vector<Collective> collectives[MAX_WARPS];
    NamedBarrier barriers[16] = {};
    uint32_t at_barrier = 0;
    std::deque<Mbarrier> mbarriers;
    std::vector<Tensor> loads;
    Warpgroup warpgroups[WARPGROUPS] = {};

    // Memory.
    char *space = nullptr, *window = nullptr;  // shared
    char* arena = nullptr;   // global
    Cell* shared_cells = nullptr;
    Cell* global_cells = nullptr;
    uint32_t* page_owner = nullptr;  // allocation index + 1 by page of the arena
    std::vector<Allocation> allocations;
    std::vector<uint32_t> spare;          // allocations that are forgotten, by index
    std::map<size_t, uint32_t> used, past;  // live and released allocations by their first page
    size_t next_page = 1, used_pages = 0;

    // Order of accesses.
    std::vector<Clock> known = std::vector<Clock>(size_t(MAX_THREADS) * SLOTS);
    Clock top = 1, floor = 1;  // newest clock; thread accesses older than floor precede everything now
    uint32_t dirty = 0;
    bool engines = false;  // some engine beside the threads was used in this block
    std::unordered_map<uint64_t, std::map<uint32_t, Clock>> published;  // by atomic's address: block, clock
    std::map<uint32_t, Clock> acquired;

    // fiber.cpp
    void run_block();
    void wait(const char* what, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0);  // until somebody wakes it
    void wake(uint32_t thread);
    void preempt();  // in random order, sometimes lets another go first
    void turn();     // lets another go first if there is one
    void leave();    // the fiber is done
    uint32_t random(uint32_t below);
    void switch_to(Fiber* fiber);
    Fiber* choose();
    void start_fibers();
    std::string deadlock() const;

    // launch.cpp
    [[noreturn]] void fail(const char* rule, const char* format, ...) __attribute__((format(printf, 3, 4)));

    // memory.cpp
    size_t find_room(size_t pages);
    void forget(size_t first, size_t pages);
    uint64_t allocate(size_t bytes);
    const char* release(uint64_t address);
    const Allocation* owner(const void* pointer) const;  // null unless inside a live allocation
    std::string nearest(const void* pointer) const;
    char* shared(uint32_t address, size_t bytes, const char* what);  // bounds-checked
    void lay_out_shared(uint32_t bytes);

    // shadow.cpp
    Clock* clocks(const Fiber* f) { return &known[size_t(f->id) * SLOTS]; }
    void touch(const void* pointer, size_t bytes, bool write, Kind kind);
    void note_shared(uint32_t address, size_t bytes, bool write, const Record& record);
    void note_global(const void* pointer, size_t bytes, bool write, const Record& record);
    void land(uint32_t address, size_t bytes, const Record& record);  // what was in flight has come down
    Record mine(Kind kind) const { return {serial, now->clock, uint16_t(now->id), kind}; }
    Record engine(uint32_t slot, Kind kind) { return engines = true, Record{serial, ++top, uint16_t(slot), kind}; }
    bool precedes(uint32_t slot, Clock clock);
    void release_to(Clocks& into);  // what the running thread knows flows into `into`
    void acquire_from(const Clocks& from);
    void merge(Clock* into, const Clock* from) const;
    void all_meet();  // every thread knows everything threads did
    void tick() { top = top > ++now->clock ? top : now->clock; }

    // barrier.cpp
    void threads_meet();
    Mbarrier& mbarrier(uint32_t address, const char* what);
    void settle(Mbarrier& barrier);

    // copy.cpp
    bool deliver();
    Tensor tensor(const CUtensorMap* map, uint32_t address, const int* at, uint32_t rank);  // checked
    void finish_load(const Tensor& load);

    // wgmma.cpp
    void read_operands(const Operation& operation);  // the checks of reading
    void execute(const Operation& operation);

    // Nothing may be left under way when a thread or a block ends.
    void check_thread_end();
    void check_block_end();
};

extern __thread Machine* machine __attribute__((tls_model("initial-exec")));

extern "C" void emu_switch(void** save, void* load);

}  // namespace emu
