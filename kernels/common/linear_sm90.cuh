// What the Hopper forms of a linear share: adapters as TMA sees them, the ring of stages, and the product of stages.
#pragma once
#include "linear.cuh"
#include "wgmma.cuh"

constexpr int STAGE_DEPTH = 64, CHUNK = 512, TAILS = 8;  // elements of K; adapters of one launch

// An adapter's s (h B^T), filled in by src/backend/gpu/linear_sm90.rs.
struct alignas(128) Tail {
    CUtensorMap h, b;
    int from, to;  // rows it serves
    int steps;     // stages that R takes
    int side;      // 1: belongs to the second weight of a gated linear
    float scale;

    __device__ __forceinline__ bool serves(int first, int rows) const { return from < first + rows && first < to; }
    __device__ __forceinline__ bool serves(int row) const { return from <= row && row < to; }
};
struct Tails {
    Tail of[TAILS];
};
struct LinearSizes {
    int rows, inner, columns;  // T, K, N
    int tails;
    int ending;
};

__device__ __forceinline__ int tiles_of(int length, int tile) { return (length + tile - 1) / tile; }

__device__ __forceinline__ float value_at(const __nv_bfloat16* vector, int at, int length, float otherwise) {
    return vector && at < length ? __bfloat162float(vector[at]) : otherwise;
}

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// F::STAGES stages of F::STAGE bytes from `base` on; a barrier each at F::FULL and F::EMPTY, for the thread that brings
// and for F::WARPS warps that multiply. Both sides walk it in the same order.
template <class F>
struct Ring {
    uint32_t base;
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ Ring(uint32_t base) : base(base) {}
    __device__ __forceinline__ uint32_t start() const { return base + stage * F::STAGE; }
    __device__ __forceinline__ uint32_t full() const { return base + F::FULL + 8 * stage; }
    __device__ __forceinline__ uint32_t empty() const { return base + F::EMPTY + 8 * stage; }
    __device__ __forceinline__ void next() {
        if (++stage == F::STAGES) stage = 0, parity ^= 1;
    }

    // One thread, before anybody uses it; a barrier of the block is the caller's.
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < F::STAGES; i++) {
            mbar_init(base + F::FULL + 8 * i, 1);
            mbar_init(base + F::EMPTY + 8 * i, F::WARPS);
        }
        fence_mbar_init();
    }

    // Waits for the stage to be empty and says how much will come.
    __device__ __forceinline__ void expect(uint32_t bytes) const {
        mbar_wait(empty(), parity ^ 1);
        mbar_arrive_expect_tx(full(), bytes);
    }
};

// d = the product of the next `steps` stages, from zero, by slice(d, a, b) for 16 elements of K, whose operands begin at
// those offsets of a stage. A stage is released when the next one is under way.
template <class F, int COUNT, class Slice>
__device__ __forceinline__ void multiply(float (&d)[COUNT], Ring<F>& ring, uint32_t a_at, uint32_t b_at, int steps,
                                         const Slice& slice) {
    const bool speaks = threadIdx.x % 32 == 0;  // for its warp
    uint32_t before = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) d[i] = 0.0f;
    wgmma_fence_regs(d);
    for (int step = 0; step < steps; step++) {
        const uint32_t a = ring.start() + a_at, b = ring.start() + b_at;
        mbar_wait(ring.full(), ring.parity);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < STAGE_DEPTH / 16; k++) {
            slice(d, desc_sw128(a + 32 * k, 0, 1024), desc_sw128(b + 32 * k, 0, 1024));
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (step && speaks) mbar_arrive(before);
        before = ring.empty();
        ring.next();
    }
    wgmma_wait<0>();
    if (speaks) mbar_arrive(before);
    wgmma_fence_regs(d);
}

#endif
