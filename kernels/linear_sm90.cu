// Linears of many rows on Hopper, the twins of those in linear.cu: TMA brings tiles, wgmma multiplies them. Few rows
// are linear_few_sm90.cu's, with the same bits.
//
//   y = x W^T (+ b) (+ s (h B^T) for an adapter's rows, h = x A^T by linear_shrink)
//   linear_sm90: out = y | f(y) | out + y | out + g y     gated_linear_sm90: out = f(y of W) * (y of U)
//
// in      x bf16 [T, K]; W, U bf16 [N, K]; h bf16 [rows of the adapter, R], B bf16 [N, R], s f32; b, g bf16 [N] or null
// inout   out bf16 [T, N], read if the ending adds to it
// launch  grid: any number of blocks, who share the tiles of 128 rows by 192 columns (gated: 96); best one for each
//         multiprocessor. block (384), shared LINEAR_SM90_SHARED. K, N, R multiples of 8, tensors 16-aligned: TMA's
//         rules. Boxes: x, h [128, 64] and W, U, B [columns, 64] under the 128-byte swizzle, out [64, 32] under the
//         64-byte one. At most 8 adapters; those of one weight have rows of their own.
// floor   flops 2T(NK + R(N + K)), bytes 2(TK + NK + TN + R(T + N + K)). T = 4096, K = N = 2048 at 790 TFLOP/s: 43 us
//         (bound by arithmetic from T = 220 on); R = 16 adds 1.6% of flops, of which the tail makes 3% (R counts as 64)
// order   K in chunks of 512, each summed from zero by wgmma in steps of 16, chunk sums added in order to zero; + b;
//         + s times the adapter's chunk (all of R); ending; one rounding. Fixed by K and R, whatever T.
// pair    linear.cu (portable, other bits); CPU reference: backend::plain linear, gated_linear; emulated: yes
//
// Warpgroup 0 gives its registers away and one of its threads keeps a ring of stages full; warpgroups 1 and 2 multiply
// 64 rows each, with one set of accumulators for the chunk and one for the sum of chunks. Blocks are persistent, so the
// next tile's stages fill while this one is finished. Blocks that run at one time work on a patch of 16 tiles by a few,
// that they may find each other's rows in the L2 cache. An adapter's tail is more stages of the same ring: whatever
// lies outside a tensor (ragged K, R, T, N, rows of other adapters) arrives as zeros.
#include "common/linear_sm90.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace {

constexpr int ROWS = 128, WIDTH = 192, PATCH = 16, BOX = 32, HELD = WIDTH / 2;  // HELD: accumulators of a thread
constexpr uint32_t BOX_BYTES = 64 * BOX * 2;
constexpr uint32_t LINEAR_SM90_SHARED = 213072;  // as the host asks for

// Where a block keeps what in shared memory: stages of x and of weights, the tile of out, barriers.
template <bool GATED>
struct Form {
    static constexpr int OUT = GATED ? WIDTH / 2 : WIDTH, STAGES = 4, WARPS = 8;  // OUT: columns of out
    static constexpr uint32_t A = ROWS * STAGE_DEPTH * 2, B = WIDTH * STAGE_DEPTH * 2, STAGE = A + B;
    static constexpr uint32_t STAGING = ROWS * OUT * 2;
    static constexpr uint32_t FULL = STAGES * STAGE + STAGING, EMPTY = FULL + 8 * STAGES, RESIDUAL = EMPTY + 8 * STAGES;
    static_assert(RESIDUAL + 16 <= LINEAR_SM90_SHARED, "the host asks for enough");
};

struct Place {
    int row, column;
};

// The tile-th tile: down a patch of PATCH tiles, then along it, then the next patch.
__device__ __forceinline__ Place place(int tile, const LinearSizes& sizes, int width) {
    const int down = tiles_of(sizes.rows, ROWS), along = tiles_of(sizes.columns, width);
    const int first = tile / (PATCH * along) * PATCH, height = min(PATCH, down - first);
    tile -= first * along;
    return {(first + tile % height) * ROWS, tile / height * width};
}

// One thread: all stages of all this block's tiles.
template <bool GATED>
__device__ __forceinline__ void bring(Ring<Form<GATED>> ring, const CUtensorMap& x, const CUtensorMap& w,
                                      const CUtensorMap& u, const Tails& tails, const LinearSizes& sizes, int tiles) {
    using F = Form<GATED>;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place at = place(tile, sizes, F::OUT);
        for (int k = 0; k < sizes.inner; k += STAGE_DEPTH) {
            ring.expect(F::STAGE);
            tma_load_2d(ring.start(), &x, ring.full(), k, at.row);
            tma_load_2d(ring.start() + F::A, &w, ring.full(), k, at.column);
            if (GATED) tma_load_2d(ring.start() + F::A + F::B / 2, &u, ring.full(), k, at.column);
            ring.next();
        }
        for (int i = 0; i < sizes.tails; i++) {
            const Tail& tail = tails.of[i];
            if (!tail.serves(at.row, ROWS)) continue;
            for (int k = 0; k < tail.steps * STAGE_DEPTH; k += STAGE_DEPTH) {
                ring.expect(F::A + (GATED ? F::B / 2 : F::B));
                tma_load_2d(ring.start(), &tail.h, ring.full(), k, at.row - tail.from);
                tma_load_2d(ring.start() + F::A + (tail.side ? F::B / 2 : 0), &tail.b, ring.full(), k, at.column);
                ring.next();
            }
        }
    }
}

// One of the two warpgroups that multiply: rows 64 group .. 64 group + 64 of each tile.
template <bool GATED>
__device__ __forceinline__ void work(Ring<Form<GATED>> ring, int group, const CUtensorMap& out, const __nv_bfloat16* bias,
                                     const __nv_bfloat16* up_bias, const __nv_bfloat16* gain, const Tails& tails,
                                     const LinearSizes& sizes, int tiles) {
    using F = Form<GATED>;
    constexpr int BOXES = F::OUT / BOX;
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32, pair = lane % 4 * 2;  // of columns
    const uint32_t staging = ring.base + F::STAGES * F::STAGE + group * (F::STAGING / 2), a_at = group * (F::A / 2);
    const uint32_t residual = ring.base + F::RESIDUAL + 8 * group;
    const bool adds = sizes.ending == ADD || sizes.ending == ADD_SCALED;
    const auto slice = [](float (&d)[HELD], uint64_t a, uint64_t b) { wgmma_m64n192k16<0, 0>(d, a, b, 1); };
    uint32_t turn = 0;
    float sum[HELD];
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
        const Place at = place(tile, sizes, F::OUT);
        const int row = at.row + 64 * group;
        if (thread == 0) {
            bulk_wait_read<0>();  // the tile before has left the staging area
            if (adds) {
                mbar_arrive_expect_tx(residual, BOXES * BOX_BYTES);
                for (int i = 0; i < BOXES; i++) {
                    tma_load_2d(staging + i * BOX_BYTES, &out, residual, at.column + i * BOX, row);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) sum[i] = 0.0f;
        for (int k = 0; k < sizes.inner; k += CHUNK) {
            float chunk[HELD];
            multiply(chunk, ring, a_at, F::A, tiles_of(min(CHUNK, sizes.inner - k), STAGE_DEPTH), slice);
#pragma unroll
            for (int i = 0; i < HELD; i++) sum[i] = __fadd_rn(sum[i], chunk[i]);
        }
        if (bias || up_bias) {
#pragma unroll
            for (int i = 0; i < HELD; i += 4) {  // 8 columns, of which two are this thread's, in two rows
                const bool second = GATED && i >= HELD / 2;
                const int column = at.column + (i - (second ? HELD / 2 : 0)) * 2 + pair;
                for (int e = 0; e < 2; e++) {
                    const float b = value_at(second ? up_bias : bias, column + e, sizes.columns, 0.0f);
                    sum[i + e] = __fadd_rn(sum[i + e], b), sum[i + e + 2] = __fadd_rn(sum[i + e + 2], b);
                }
            }
        }
        const int own = row + thread / 32 * 16 + lane / 4;  // and own + 8
        for (int i = 0; i < sizes.tails; i++) {
            const Tail& tail = tails.of[i];
            if (!tail.serves(at.row, ROWS)) continue;
            float chunk[HELD];
            const float scale = tail.scale;
            const bool mine[2] = {tail.serves(own), tail.serves(own + 8)};
            const auto add = [&](int from, int to) {
#pragma unroll
                for (int i = from; i < to; i++) {
                    if (mine[i / 2 % 2]) sum[i] = __fadd_rn(sum[i], __fmul_rn(scale, chunk[i]));
                }
            };
            if constexpr (!GATED) {
                multiply(chunk, ring, a_at, F::A, tail.steps, slice);
                add(0, HELD);
            } else if (tail.side) {
                multiply(chunk, ring, a_at, F::A + F::B / 2, tail.steps, [](float (&d)[HELD], uint64_t a, uint64_t b) {
                    wgmma_m64n96k16<0, 0, HELD / 2>(d, a, b, 1);
                });
                add(HELD / 2, HELD);
            } else {
                multiply(chunk, ring, a_at, F::A, tail.steps, [](float (&d)[HELD], uint64_t a, uint64_t b) {
                    wgmma_m64n96k16<0, 0, 0>(d, a, b, 1);
                });
                add(0, HELD / 2);
            }
        }
        if (adds) mbar_wait(residual, turn);
        group == 0 ? bar_sync<1>(128) : bar_sync<2>(128);  // nobody writes before thread 0 has seen the area free
#pragma unroll
        for (int i = 0; i < F::OUT / 16; i++) {  // 16 columns of the warp's 16 rows
            const int in_tile = thread / 32 * 16 + lane % 16;
            const uint32_t piece = (i % 2 * 2 + lane / 16) ^ (in_tile / 2 % 4);
            const uint32_t spot = staging + i / 2 * BOX_BYTES + in_tile * (BOX * 2) + piece * 16;
            float y[8];
#pragma unroll
            for (int e = 0; e < 8; e++) y[e] = sum[8 * i + e];
            if (sizes.ending >= SILU) {
#pragma unroll
                for (int e = 0; e < 8; e++) y[e] = activate(y[e], sizes.ending);
            }
            if constexpr (GATED) {
#pragma unroll
                for (int e = 0; e < 8; e++) y[e] = __fmul_rn(y[e], sum[HELD / 2 + 8 * i + e]);
            }
            uint32_t old[4], values[4];
            if (adds) ldmatrix_x4(old, spot);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float low = y[2 * e], high = y[2 * e + 1];
                if (adds) {
                    const int column = at.column + i * 16 + e / 2 * 8 + pair;
                    low = __fmaf_rn(value_at(gain, column, sizes.columns, 1.0f), low, __uint_as_float(old[e] << 16));
                    high = __fmaf_rn(value_at(gain, column + 1, sizes.columns, 1.0f), high,
                                     __uint_as_float(old[e] & 0xFFFF0000u));
                }
                const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
                memcpy(&values[e], &both, 4);
            }
            stmatrix_x4(spot, values);
        }
        fence_proxy_async();
        group == 0 ? bar_sync<1>(128) : bar_sync<2>(128);
        if (thread == 0 && row < sizes.rows) {
            for (int i = 0; i < BOXES && at.column + i * BOX < sizes.columns; i++) {
                tma_store_2d(&out, staging + i * BOX_BYTES, at.column + i * BOX, row);
            }
            bulk_commit();
        }
    }
    if (thread == 0) bulk_wait<0>();
}

template <bool GATED>
__device__ __forceinline__ void linear_by_tiles(const CUtensorMap& out, const CUtensorMap& x, const CUtensorMap& w,
                                                const CUtensorMap& u, const __nv_bfloat16* bias,
                                                const __nv_bfloat16* up_bias, const __nv_bfloat16* gain,
                                                const Tails& tails, const LinearSizes& sizes) {
    using F = Form<GATED>;
    DYN_SMEM(memory);
    const Ring<F> ring(smem_u32(memory));
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) mbar_init(ring.base + F::RESIDUAL + 8 * i, 1);  // a warpgroup's thread 0
        ring.init();
    }
    __syncthreads();
    const int group = __shfl_sync(0xFFFFFFFFu, int(threadIdx.x / 128), 0);  // nvcc now knows that lanes agree
    const int tiles = tiles_of(sizes.rows, ROWS) * tiles_of(sizes.columns, F::OUT);
    if (group == 0) {
        setmaxnreg_dec<24>();
        if (threadIdx.x == 0) bring<GATED>(ring, x, w, u, tails, sizes, tiles);
    } else {
        setmaxnreg_inc<240>();
        work<GATED>(ring, group - 1, out, bias, up_bias, gain, tails, sizes, tiles);
    }
}

}  // namespace

KERNEL void __launch_bounds__(384, 1)
    linear_sm90(const __grid_constant__ CUtensorMap out, const __grid_constant__ CUtensorMap x,
                const __grid_constant__ CUtensorMap w, const __nv_bfloat16* bias, const __nv_bfloat16* gain,
                const __grid_constant__ Tails tails, const __grid_constant__ LinearSizes sizes) {
    linear_by_tiles<false>(out, x, w, w, bias, nullptr, gain, tails, sizes);
}
EMU_REGISTER(linear_sm90)

KERNEL void __launch_bounds__(384, 1)
    gated_linear_sm90(const __grid_constant__ CUtensorMap out, const __grid_constant__ CUtensorMap x,
                      const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap u,
                      const __nv_bfloat16* bias, const __nv_bfloat16* up_bias, const __grid_constant__ Tails tails,
                      const __grid_constant__ LinearSizes sizes) {
    linear_by_tiles<true>(out, x, w, u, bias, up_bias, nullptr, tails, sizes);
}
EMU_REGISTER(gated_linear_sm90)

#endif
