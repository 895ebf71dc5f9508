// Copies that run beside the threads: cp.async, and TMA boxes in both directions. All are done as late as the rules
// allow, and their destination is NaN from the moment of issue: who reads too early, reads nonsense.
#include <cstring>

#include "machine.h"

namespace emu {

void copy_async(uint32_t to, const void* from, uint32_t bytes) {
    Machine& m = *machine;
    if (bytes > 16) m.fail("misaligned", "cp.async of %u bytes, at most 16", bytes);
    if (to % 16 != 0 || (bytes && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
        m.fail("misaligned", "cp.async to shared address %u from %p, expected multiples of 16", to, from);
    }
    char* target = m.shared(to, 16, "cp.async");
    if (m.checked && bytes) m.touch(from, bytes, false, Kind::plain);
    m.note_shared(to, 16, true, m.mine(Kind::flight));
    memset(target, 0xFF, 16);
    m.now->copies.push_back({to, from, bytes});
}

void copy_commit() { machine->now->copy_groups.push_back(machine->now->copies.size()); }

// Forgets all but the last `left` groups and says how many entries they held.
static size_t finished(std::vector<size_t>& groups, size_t left) {
    if (groups.size() <= left) return 0;
    const size_t end = groups[groups.size() - 1 - left];
    groups.erase(groups.begin(), groups.end() - long(left));
    for (size_t& group : groups) group -= end;
    return end;
}

void copy_wait(uint32_t groups_left) {
    Machine& m = *machine;
    std::vector<Copy>& copies = m.now->copies;
    const size_t end = finished(m.now->copy_groups, groups_left);
    for (size_t i = 0; i < end; i++) {
        char* target = m.window + copies[i].to;
        memset(target, 0, 16);
        memcpy(target, copies[i].from, copies[i].bytes);
        m.land(copies[i].to, 16, m.mine(Kind::plain));
    }
    copies.erase(copies.begin(), copies.begin() + long(end));
    m.preempt();
}

void proxy_fence() {
    Machine& m = *machine;
    m.now->fence = m.now->clock;
    m.tick();
}

constexpr uint64_t MAGIC = 0x70616D726F736E74;

uint32_t Tensor::bytes() const {
    uint32_t all = map.element;
    for (uint32_t i = 0; i < map.rank; i++) all *= map.box[i];
    return all;
}

Tensor Machine::tensor(const CUtensorMap* map, uint32_t address, const int* at, uint32_t rank) {
    Tensor t{};
    memcpy(&t.map, map, sizeof t.map);
    if (t.map.magic != MAGIC) fail("tensor-map", "the descriptor is not a tensor map");
    if (t.map.rank != rank) fail("tensor-map", "%u coordinates for a tensor of rank %u", rank, t.map.rank);
    const uint32_t multiple = t.map.swizzle ? 8 * t.map.swizzle : 128;
    if (address % multiple != 0) {
        fail("misaligned", "a TMA box at shared address %u, expected a multiple of %u", address, multiple);
    }
    if (at[0] * int64_t(t.map.element) % 16 != 0) {
        fail("misaligned", "a TMA box from element %d on, expected a multiple of 16 bytes", at[0]);
    }
    t.shared = address;
    t.issuer = now;
    memcpy(t.at, at, rank * sizeof *at);
    shared(address, t.bytes(), "TMA box");
    uint64_t extent = uint64_t(t.map.sizes[0]) * t.map.element;
    for (uint32_t i = 1; i < rank; i++) extent += (t.map.sizes[i] - 1) * t.map.strides[i - 1];
    const Allocation* inside = owner(reinterpret_cast<const void*>(t.map.address));
    if (!inside || t.map.address + extent > reinterpret_cast<uint64_t>(inside->start) + inside->bytes) {
        fail("out-of-bounds", "a tensor map over %llu bytes, which are not inside one allocation",
             static_cast<unsigned long long>(extent));
    }
    return t;
}

static uint32_t swizzled(uint32_t address, uint32_t span) {
    return span == 0 ? address : address ^ ((address >> 7 & (span / 16 - 1)) << 4);
}

// Calls body(shared address, global address of the piece, bytes of it inside the tensor) for every 16 bytes of the box.
template <typename F>
static void pieces(const Tensor& t, F body) {
    const TensorMap& map = t.map;
    const uint32_t row_bytes = map.box[0] * map.element, rows = t.bytes() / row_bytes;
    for (uint32_t row = 0; row < rows; row++) {
        uint64_t address = map.address;
        bool inside = true;
        for (uint32_t i = 1, rest = row; i < map.rank; rest /= map.box[i], i++) {
            const int64_t c = int64_t(t.at[i]) + rest % map.box[i];
            inside = inside && c >= 0 && c < int64_t(map.sizes[i]);
            address += uint64_t(c) * map.strides[i - 1];
        }
        for (uint32_t piece = 0; piece < row_bytes; piece += 16) {
            const int64_t from = int64_t(t.at[0]) * map.element + piece;
            const int64_t left = int64_t(map.sizes[0]) * map.element - from;
            const size_t valid = !inside || from < 0 || left <= 0 ? 0 : size_t(left < 16 ? left : 16);
            body(swizzled(t.shared + row * row_bytes + piece, map.swizzle), address + uint64_t(from), valid);
        }
    }
}

void tensor_load(uint32_t to, const CUtensorMap* map, uint32_t barrier, const int* at, uint32_t rank) {
    Machine& m = *machine;
    Tensor t = m.tensor(map, to, at, rank);
    Mbarrier& b = m.mbarrier(barrier, "a TMA load");
    while (&m.mbarriers[t.barrier] != &b) t.barrier++;
    t.phase = b.phase;
    b.in_flight++;
    m.note_shared(to, t.bytes(), true, m.engine(b.slot, Kind::flight));
    memset(m.window + to, 0xFF, t.bytes());
    m.loads.push_back(t);
    m.preempt();
}

void Machine::finish_load(const Tensor& t) {
    pieces(t, [&](uint32_t shared, uint64_t global, size_t valid) {
        memset(window + shared, 0, 16);
        if (valid) memcpy(window + shared, reinterpret_cast<const void*>(global), valid);
    });
    Fiber* running = now;
    now = t.issuer;  // for a report
    Mbarrier& b = mbarriers[t.barrier];
    const Record landed = engine(b.slot, Kind::plain);
    land(t.shared, t.bytes(), landed);
    b.arriving[b.slot] = landed.clock;
    b.in_flight--;
    b.bytes -= t.bytes();
    settle(b);
    now = running;
}

// One TMA load, the last issued first: that is legal, and shows who waits for the wrong one.
bool Machine::deliver() {
    if (loads.empty()) return false;
    const size_t which = order == Order::random ? random(uint32_t(loads.size())) : loads.size() - 1;
    const Tensor load = loads[which];
    loads.erase(loads.begin() + long(which));
    finish_load(load);
    return true;
}

void tensor_store(const CUtensorMap* map, uint32_t from, const int* at, uint32_t rank) {
    Machine& m = *machine;
    Tensor t = m.tensor(map, from, at, rank);
    for (uint32_t i = 0; i < rank; i++) {
        if (at[i] < 0) m.fail("out-of-bounds", "a TMA store to coordinate %d", at[i]);
    }
    const Record reads = m.engine(BULK_SLOT, Kind::plain);
    m.note_shared(from, t.bytes(), false, reads);
    t.clock = reads.clock;
    m.now->stores.push_back(t);
    m.preempt();
}

void bulk_commit() { machine->now->store_groups.push_back(machine->now->stores.size()); }

// Shared memory is read here and not at issue, so that reusing it too early shows.
void bulk_wait(uint32_t groups_left) {
    Machine& m = *machine;
    std::vector<Tensor>& stores = m.now->stores;
    const size_t end = finished(m.now->store_groups, groups_left);
    for (size_t i = 0; i < end; i++) {
        pieces(stores[i], [&](uint32_t shared, uint64_t global, size_t valid) {
            if (valid == 0) return;
            void* target = reinterpret_cast<void*>(global);
            m.note_global(target, valid, true, m.mine(Kind::plain));
            memcpy(target, m.window + shared, valid);
        });
        m.clocks(m.now)[BULK_SLOT] = std::max(m.clocks(m.now)[BULK_SLOT], stores[i].clock);
    }
    stores.erase(stores.begin(), stores.begin() + long(end));
    m.preempt();
}

}  // namespace emu

// Fills in a tensor map, whose shape the caller has checked by the driver's rules.
extern "C" void emu_tensor_map(void* out, uint64_t address, uint32_t rank, const uint64_t* sizes,
                               const uint64_t* strides, const uint32_t* box, uint32_t element, uint32_t swizzle) {
    emu::TensorMap map{};
    map.magic = emu::MAGIC;
    map.address = address;
    map.rank = rank, map.element = element, map.swizzle = swizzle;
    for (uint32_t i = 0; i < rank; i++) {
        map.sizes[i] = uint32_t(std::min<uint64_t>(sizes[i], UINT32_MAX));
        map.box[i] = box[i];
        if (i + 1 < rank) map.strides[i] = strides[i];
    }
    memset(out, 0, sizeof(CUtensorMap));
    memcpy(out, &map, sizeof map);
}
