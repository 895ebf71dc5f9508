// Linears of few rows on Hopper: as in linear_sm90.cu, with the operands of wgmma exchanged, so that 64 rows of W fill
// its long side and rows of x its short one. For decoding, and wherever large tiles would leave multiprocessors idle.
//
//   y = x W^T (+ b) (+ s (h B^T) for an adapter's rows, h = x A^T by linear_shrink)
//   linear_few_sm90: out = y | f(y) | out + y | out + g y     gated_linear_few_sm90: out = f(y of W) * (y of U)
//
// in      as in linear_sm90.cu, but out is a pointer, and the boxes are: x, h [64, 64], W, U, B [128 (gated: 64), 64]
// inout   out bf16 [T, N], read if the ending adds to it
// work    for split launches: partial f32 [slots, T, sides, N], tickets i32 [tiles], zero before and after
// launch  grid: tiles of 64 rows by 128 columns (gated: 64), times slots if split (partial not null: a slot per chunk of
//         K, and one for adapters if there are any). block (288), shared LINEAR_FEW_SM90_SHARED
// floor   flops and bytes as in linear_sm90.cu; gated, T = 1, K = 2048, N = 11008 at 4.3 TB/s: 21 us
// order   as in linear_sm90.cu, whoever sums which chunk; the same bits, if wgmma sums 16 products alike on either side
// pair    linear_sm90.cu; CPU reference: backend::plain linear, gated_linear; emulated: yes
//
// Two warpgroups multiply 64 rows of W each (gated: the second those of U), a lane of a ninth warp brings. Rows of x
// past T cost no memory, only zeros in shared memory. Two blocks to a multiprocessor keep 128 KiB of W under way.
#include "common/linear_sm90.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace {

constexpr uint32_t LINEAR_FEW_SM90_SHARED = 98368;  // as the host asks for

struct Few {
    static constexpr int M = 64, N = 128, THREADS = 288, STAGES = 4, WARPS = 8;  // rows of x; of W, of both sides
    static constexpr uint32_t A = N * STAGE_DEPTH * 2, B = M * STAGE_DEPTH * 2, STAGE = A + B;
    static constexpr uint32_t FULL = STAGES * STAGE, EMPTY = FULL + 8 * STAGES;
    static_assert(EMPTY + 8 * STAGES <= LINEAR_FEW_SM90_SHARED, "the host asks for enough");
    static_assert(M * (N + 8) * 4 <= FULL, "sums fit where stages were");

    // As end_tile wants it.
    static __device__ __forceinline__ float* four(unsigned char* memory, int row, int column) {
        return reinterpret_cast<float*>(memory) + row * (N + 8) + column;
    }
};

// What a block does: K from .. to of its tile, and the adapters' tails or not.
struct Share {
    int row, column;
    int from, to;
    bool tails;
};

template <int SIDES>
__device__ __forceinline__ void bring(Ring<Few> ring, const CUtensorMap& x, const CUtensorMap& w, const CUtensorMap& u,
                                      const Tails& tails, const LinearSizes& sizes, const Share& share) {
    for (int k = share.from; k < share.to; k += STAGE_DEPTH) {
        ring.expect(Few::STAGE);
        tma_load_2d(ring.start(), &w, ring.full(), k, share.column);
        if (SIDES == 2) tma_load_2d(ring.start() + Few::A / 2, &u, ring.full(), k, share.column);
        tma_load_2d(ring.start() + Few::A, &x, ring.full(), k, share.row);
        ring.next();
    }
    for (int i = 0; share.tails && i < sizes.tails; i++) {
        const Tail& tail = tails.of[i];
        if (!tail.serves(share.row, Few::M)) continue;
        for (int k = 0; k < tail.steps * STAGE_DEPTH; k += STAGE_DEPTH) {
            ring.expect(Few::A / SIDES + Few::B);
            tma_load_2d(ring.start() + tail.side * (Few::A / 2), &tail.b, ring.full(), k, share.column);
            tma_load_2d(ring.start() + Few::A, &tail.h, ring.full(), k, share.row - tail.from);
            ring.next();
        }
    }
}

// One of the two warpgroups that multiply. Of thread (warp w, g, t), register 4j + e is row 16w + g + 8(e / 2) of W's 64
// and row 8j + t + e % 2 of x's.
template <int SIDES>
__device__ __forceinline__ void work(unsigned char* memory, Ring<Few> ring, int group, const LinearTask<SIDES>& task,
                                     const Tails& tails, const LinearSizes& sizes, const Share& share) {
    constexpr int HELD = Few::M / 2;
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32, pair = lane % 4 * 2;
    const int own = thread / 32 * 16 + lane / 4;  // of W's 64 rows; and own + 8
    const uint32_t a_at = group * (Few::A / 2);
    const auto slice = [](float (&d)[HELD], uint64_t a, uint64_t b) { wgmma_m64n64k16<0, 0>(d, a, b, 1); };
    float sum[HELD] = {};
    for (int k = share.from; k < share.to; k += CHUNK) {
        float chunk[HELD];
        multiply(chunk, ring, a_at, Few::A, tiles_of(min(CHUNK, share.to - k), STAGE_DEPTH), slice);
#pragma unroll
        for (int i = 0; i < HELD; i++) sum[i] = __fadd_rn(sum[i], chunk[i]);
    }
    const int side = SIDES == 2 ? group : 0, first = SIDES == 2 ? 0 : group * 64;
    const __nv_bfloat16* bias = side ? task.bias[SIDES - 1] : task.bias[0];
    if (bias && !task.partial) {
        const float b[2] = {value_at(bias, share.column + first + own, sizes.columns, 0.0f),
                            value_at(bias, share.column + first + own + 8, sizes.columns, 0.0f)};
#pragma unroll
        for (int i = 0; i < HELD; i++) sum[i] = __fadd_rn(sum[i], b[i / 2 % 2]);
    }
    for (int i = 0; share.tails && i < sizes.tails; i++) {
        const Tail& tail = tails.of[i];
        if (!tail.serves(share.row, Few::M)) continue;
        if (SIDES == 2 && tail.side != group) {  // the other warpgroup's
            for (int step = 0; step < tail.steps; step++) {
                mbar_wait(ring.full(), ring.parity);
                if (lane == 0) mbar_arrive(ring.empty());
                ring.next();
            }
            continue;
        }
        float chunk[HELD];
        multiply(chunk, ring, a_at, Few::A, tail.steps, slice);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (tail.serves(share.row + i / 4 * 8 + pair + i % 2)) {
                sum[i] = __fadd_rn(sum[i], __fmul_rn(tail.scale, chunk[i]));
            }
        }
    }
    bar_sync<1>(256);  // both have read their last stage
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int column = first + own + i / 2 % 2 * 8;
        *Few::four(memory, i / 4 * 8 + pair + i % 2, (column / 8 * SIDES + side) * 8 + column % 8) = sum[i];
    }
}

template <int SIDES>
__device__ __forceinline__ void linear_by_few(const CUtensorMap& x, const CUtensorMap& w, const CUtensorMap& u,
                                              const LinearTask<SIDES>& task, const Tails& tails,
                                              const LinearSizes& sizes) {
    DYN_SMEM(memory);
    const Ring<Few> ring(smem_u32(memory));
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    const int of_x = tiles_of(sizes.inner, CHUNK), slots = task.partial ? of_x + (sizes.tails > 0) : 1;
    const int slot = blockIdx.x % slots, tile = blockIdx.x / slots, down = tiles_of(sizes.rows, Few::M);
    Share share = {tile % down * Few::M, tile / down * (Few::N / SIDES), 0, sizes.inner, true};
    if (task.partial) {
        share.from = slot * CHUNK, share.to = min(share.from + CHUNK, sizes.inner);
        share.tails = slot == of_x;
    }
    bool adapted = false;
    for (int i = 0; i < sizes.tails; i++) adapted = adapted || tails.of[i].serves(share.row, Few::M);
    const int group = __shfl_sync(0xFFFFFFFFu, int(threadIdx.x / 128), 0);
    if (group < 2) {
        work<SIDES>(memory, ring, group, task, tails, sizes, share);
    } else if (threadIdx.x % 32 == 0) {
        bring<SIDES>(ring, x, w, u, tails, sizes, share);
    }
    __syncwarp();
    __syncthreads();
    end_tile<Few, SIDES>(memory, task, share.row, share.column, tile, slot, slots, of_x, adapted);
}

}  // namespace

KERNEL void __launch_bounds__(288, 2)
    linear_few_sm90(__nv_bfloat16* out, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                    const __nv_bfloat16* bias, const __nv_bfloat16* gain, float* partial, int* tickets,
                    const __grid_constant__ Tails tails, const __grid_constant__ LinearSizes sizes) {
    const LinearTask<1> task = {out, nullptr, {}, {bias}, gain, nullptr, partial, tickets, sizes.rows, 0, sizes.rows,
                                sizes.inner, sizes.columns, sizes.columns, 0, sizes.columns, sizes.ending};
    linear_by_few<1>(x, w, w, task, tails, sizes);
}
EMU_REGISTER(linear_few_sm90)

KERNEL void __launch_bounds__(288, 2)
    gated_linear_few_sm90(__nv_bfloat16* out, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                          const __grid_constant__ CUtensorMap u, const __nv_bfloat16* bias,
                          const __nv_bfloat16* up_bias, float* partial, int* tickets,
                          const __grid_constant__ Tails tails, const __grid_constant__ LinearSizes sizes) {
    const LinearTask<2> task = {out, nullptr, {}, {bias, up_bias}, nullptr, nullptr, partial, tickets, sizes.rows, 0,
                                sizes.rows, sizes.inner, sizes.columns, sizes.columns, 0, sizes.columns, sizes.ending};
    linear_by_few<2>(x, w, u, task, tails, sizes);
}
EMU_REGISTER(gated_linear_few_sm90)

#endif
