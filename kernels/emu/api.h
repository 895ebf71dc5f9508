// What a kernel may ask of the emulator. `device.h` and the wrappers in `kernels/common` are the only callers;
// shared addresses are offsets into the block's shared window, as `cvta.to.shared` gives them on a device.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(128) CUtensorMap {
    unsigned char opaque[128];
};

namespace emu {

// Where the running thread stands.
struct Here {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern __thread Here* here __attribute__((tls_model("initial-exec")));

// Shared memory and plain accesses.
unsigned char* shared_memory();
uint32_t shared_address(const void* pointer);
void access(const void* pointer, size_t bytes, bool write);  // the check of one aligned access, nothing else
void atomic_access(const void* pointer, size_t bytes);
void thread_fence();

// Barriers.
void sync_threads();
void named_barrier(uint32_t id, uint32_t threads, bool wait);

// Warp collectives. `tag` is what all lanes must agree on.
enum class Shuffle : uint32_t { index, up, down, butterfly };
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, uint32_t operand, uint32_t width);
uint32_t ballot(uint32_t mask, bool predicate);
void sync_warp(uint32_t mask);
bool elect();
void ldmatrix(uint32_t (&out)[4], uint32_t address, bool transposed);
void stmatrix(uint32_t address, const uint32_t (&in)[4]);
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// cp.async.
void copy_async(uint32_t to, const void* from, uint32_t bytes);
void copy_commit();
void copy_wait(uint32_t groups_left);

// mbarrier.
void mbarrier_init(uint32_t address, uint32_t arrivals);
void mbarrier_invalidate(uint32_t address);
void mbarrier_arrive(uint32_t address, uint32_t expected_bytes);
void mbarrier_wait(uint32_t address, uint32_t parity);

// TMA.
void tensor_load(uint32_t to, const CUtensorMap* map, uint32_t barrier, const int* at, uint32_t rank);
void tensor_store(const CUtensorMap* map, uint32_t from, const int* at, uint32_t rank);
void bulk_commit();
void bulk_wait(uint32_t groups_left);
void proxy_fence();

// wgmma.
struct Wgmma {
    uint32_t columns;          // N of m64nNk16
    bool a_transposed, b_transposed;  // MN-major operands
    uint64_t a, b;             // descriptors; `a` is ignored with a_registers
    bool accumulate;
};
void wgmma(float* d, const Wgmma& shape, const uint32_t* a_registers);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(uint32_t groups_left);
void set_max_registers(uint32_t count);

// The list of kernels, filled by static constructors before main.
using Target = void (*)();
struct Kernel {
    const char* name;
    Target target;
    void (*call)(Target target, void** arguments);
    const size_t* sizes;  // of the arguments
    size_t count;
};
void add_kernel(const Kernel& kernel);

}  // namespace emu
