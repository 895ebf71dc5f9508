// Where emulated memory lies. Shared memory is a window of the block, placed so that its end meets a page that
// cannot be touched; each global allocation has such a page behind and before it. Fresh memory is full of NaN.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <new>

#include "machine.h"

namespace emu {

static char* reserve(size_t bytes, int protection) {
    void* at = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(at);
}

constexpr size_t STACKS = MAX_THREADS * (STACK + PAGE), SHARED_CELLS = WINDOW / 2 * sizeof(Cell);
constexpr size_t GLOBAL_CELLS = ARENA / 2 * sizeof(Cell), OWNERS = ARENA / PAGE * sizeof(uint32_t);
constexpr size_t WINDOW_ALIGNMENT = 1 << 20;

// Reserves addresses; memory is used only where it is touched.
Machine::Machine() {
    stacks = reserve(STACKS, PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * (STACK + PAGE), PAGE, PROT_NONE);
    space = reserve(WINDOW + WINDOW_ALIGNMENT, PROT_NONE);
    window = space + (WINDOW_ALIGNMENT - reinterpret_cast<uintptr_t>(space) % WINDOW_ALIGNMENT);
    arena = reserve(ARENA, PROT_NONE);
    shared_cells = reinterpret_cast<Cell*>(reserve(SHARED_CELLS, PROT_READ | PROT_WRITE));
    global_cells = reinterpret_cast<Cell*>(reserve(GLOBAL_CELLS, PROT_READ | PROT_WRITE));
    page_owner = reinterpret_cast<uint32_t*>(reserve(OWNERS, PROT_READ | PROT_WRITE));
}

Machine::~Machine() {
    munmap(stacks, STACKS);
    munmap(space, WINDOW + WINDOW_ALIGNMENT);
    munmap(arena, ARENA);
    munmap(shared_cells, SHARED_CELLS);
    munmap(global_cells, GLOBAL_CELLS);
    munmap(page_owner, OWNERS);
}

// The first page of so many free ones with a page left after them, or 0. Addresses are given out in a circle, so that
// use after release is noticed for as long as possible.
size_t Machine::find_room(size_t pages) {
    for (size_t lap = 0; lap < 2; lap++, next_page = 1) {
        for (;;) {
            const auto above = used.lower_bound(next_page);
            const size_t limit = above == used.end() ? ARENA / PAGE : above->first;
            if (next_page + pages + 1 <= limit) return next_page;
            if (above == used.end()) break;
            next_page = above->first + allocations[above->second].pages + 1;
        }
    }
    return 0;
}

// Forgets what once lay in these pages.
void Machine::forget(size_t first, size_t pages) {
    auto old = past.upper_bound(first);
    if (old != past.begin()) --old;
    while (old != past.end() && old->first < first + pages) {
        Allocation& gone = allocations[old->second];
        if (gone.first_page + gone.pages <= first) {
            ++old;
            continue;
        }
        for (size_t i = 0; i < gone.pages; i++) page_owner[gone.first_page + i] = 0;
        gone.bytes = 0;
        spare.push_back(old->second);
        old = past.erase(old);
    }
}

// 0 when there is no room.
uint64_t Machine::allocate(size_t bytes) {
    const size_t pages = bytes / PAGE + (bytes % PAGE != 0 || bytes == 0);
    if (bytes > ARENA) return 0;
    const size_t first_page = find_room(pages);
    if (first_page == 0) return 0;
    char* first = arena + first_page * PAGE;
    if (mprotect(first, pages * PAGE, PROT_READ | PROT_WRITE) != 0) return 0;
    forget(first_page, pages + 1);
    char* end = first + pages * PAGE;
    char* start = end - (bytes + 15) / 16 * 16;
    memset(start, 0xFF, size_t(end - start));
    if (spare.empty()) {
        spare.push_back(uint32_t(allocations.size()));
        allocations.emplace_back();
    }
    const uint32_t index = spare.back();
    spare.pop_back();
    allocations[index] = {start, bytes, first_page, pages, true};
    for (size_t i = 0; i < pages; i++) page_owner[first_page + i] = index + 1;
    used[first_page] = index;
    used_pages += pages + 1;
    next_page = first_page + pages + 1;
    return reinterpret_cast<uint64_t>(start);
}

const char* Machine::release(uint64_t address) {
    const char* pointer = reinterpret_cast<const char*>(address);
    const size_t offset = size_t(pointer - arena);
    const uint32_t number = offset < ARENA ? page_owner[offset / PAGE] : 0;
    if (number == 0 || !allocations[number - 1].live || allocations[number - 1].start != pointer) {
        return "no allocation begins at this address";
    }
    Allocation& gone = allocations[number - 1];
    char* first = arena + gone.first_page * PAGE;
    madvise(first, gone.pages * PAGE, MADV_DONTNEED);
    mprotect(first, gone.pages * PAGE, PROT_NONE);
    gone.live = false;
    used.erase(gone.first_page);
    past[gone.first_page] = number - 1;
    used_pages -= gone.pages + 1;
    return nullptr;
}

const Allocation* Machine::owner(const void* pointer) const {
    const size_t offset = size_t(static_cast<const char*>(pointer) - arena);
    if (offset >= ARENA) return nullptr;
    const uint32_t number = page_owner[offset / PAGE];
    if (number == 0) return nullptr;
    const Allocation& found = allocations[number - 1];
    const char* at = static_cast<const char*>(pointer);
    return found.live && at >= found.start && at < found.start + found.bytes ? &found : nullptr;
}

std::string Machine::nearest(const void* pointer) const {
    const char* at = static_cast<const char*>(pointer);
    std::string best = "no allocation is near";
    size_t least = ARENA;
    for (const Allocation& a : allocations) {
        if (a.bytes == 0) continue;
        const bool before = at < a.start;
        const size_t distance = before ? size_t(a.start - at) : size_t(at - a.start) - a.bytes;
        if (distance >= least || (!before && at < a.start + a.bytes)) continue;
        least = distance;
        best = std::to_string(distance) + (before ? " bytes before" : " bytes past") + " an allocation of " +
               std::to_string(a.bytes) + " bytes" + (a.live ? "" : ", since released");
    }
    return best;
}

void Machine::lay_out_shared(uint32_t bytes) {
    const size_t end = (1024 + bytes + PAGE - 1) / PAGE * PAGE;
    shared_bytes = bytes;
    shared_start = uint32_t(end - bytes) / 1024 * 1024;
    mprotect(window, end, PROT_READ | PROT_WRITE);
    mprotect(window + end, WINDOW - end, PROT_NONE);
}

char* Machine::shared(uint32_t address, size_t bytes, const char* what) {
    if (address < shared_start || address + bytes > shared_start + shared_bytes) {
        fail("out-of-bounds", "%s of %zu bytes at shared offset %lld, of %u bytes in all", what, bytes,
             static_cast<long long>(address) - shared_start, shared_bytes);
    }
    return window + address;
}

unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(machine->window + machine->shared_start); }

uint32_t shared_address(const void* pointer) {
    const size_t offset = size_t(static_cast<const char*>(pointer) - machine->window);
    if (offset >= WINDOW) machine->fail("out-of-bounds", "an address that is not in shared memory is used as one");
    return uint32_t(offset);
}

}  // namespace emu
