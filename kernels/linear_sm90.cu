// Linears of packed rows on Hopper, the twins of those in linear.cu: TMA brings tiles, wgmma multiplies them.
//
//   y = x W^T (+ b) (+ s (h B^T) for an adapter's rows, with h = x A^T from a launch before)
//   linear_sm90, linear_sm90_narrow: out = y, f(y), out + y or out + g y
//   linear_sm90_gated:               out = f(y of W) * (y of U)
//
// in      x bf16 [T, K]; W, U bf16 [N, K]; h bf16 [rows of the adapter, R], B bf16 [N, R], s f32; b, g bf16 [N] or null
// inout   out bf16 [T, N], read if `adds`
// launch  grid: any number of blocks, who share the tiles of 128 rows by 192 columns (narrow: 64, gated: 96); best one
//         for each multiprocessor. block (384), shared LINEAR_SM90_SHARED. K, N, R multiples of 8, tensors 16-aligned:
//         TMA's rules. Boxes: x, h [128, 64] and W, U, B [columns, 64] under the 128-byte swizzle, out [64, 32] under
//         the 64-byte one. At most 8 adapters; those of one weight have rows of their own.
// floor   flops 2T(NK + R(N + K)), bytes 2(TK + NK + TN + R(T + N + K)). T = 4096, K = N = 2048 at 790 TFLOP/s: 43 us
//         (bound by arithmetic from T = 220 on); R = 16 adds 1.6% of flops, of which tiles make 6% (R counts as 64)
// order   K in chunks of 512, each summed from zero by wgmma in steps of 16, chunk sums added in order to zero; + b;
//         + s times the adapter's chunk (all of R); epilogue; one rounding. Fixed by K and R, whatever T.
// pair    linear.cu (portable); CPU reference: backend::plain linear, gated_linear; emulated: yes
//
// Warpgroup 0 gives its registers away and one of its threads keeps a ring of stages full; warpgroups 1 and 2 multiply
// 64 rows each, with one set of accumulators for the chunk and one for the sum of chunks. Blocks are persistent, so the
// next tile's stages fill while this one is finished. Blocks that run at one time work on a patch of 16 tiles by a few,
// that they may find each other's rows in the L2 cache. An adapter's tail is more stages of the same ring: whatever
// lies outside a tensor (ragged K, R, T, N, rows of other adapters) arrives as zeros.
#include "common/wgmma.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace {

constexpr int ROWS = 128, DEPTH = 64, CHUNK = 512, PATCH = 16, ADAPTERS = 8, BOX = 32;
constexpr uint32_t BOX_BYTES = 64 * BOX * 2;

// What the host fills in; see src/backend/gpu/linear_sm90.rs.
struct alignas(128) Adapter {
    CUtensorMap h, b;
    int from, to;  // rows it serves
    int steps;     // stages that R takes
    int up;        // 1: belongs to U
    float scale;
};
struct Adapters {
    Adapter of[ADAPTERS];
};
struct Sizes {
    int rows, inner, columns;  // T, K, N
    int adapters;
    int adds;      // out is added to
    int function;  // of the epilogue: 0 none, 1 SiLU, 2 GELU, 3 GELU by tanh, 4 quick GELU
};

// A kernel's tile, and where it keeps what in shared memory.
template <int WIDTH, bool GATED>
struct Form {
    static constexpr int OUT = GATED ? WIDTH / 2 : WIDTH;  // columns of out
    static constexpr int STAGES = WIDTH == 192 ? 4 : 8;
    static constexpr uint32_t A = ROWS * DEPTH * 2, B = WIDTH * DEPTH * 2, STAGE = A + B;
    static constexpr uint32_t STAGING = ROWS * OUT * 2;
    static constexpr uint32_t FULL = STAGES * STAGE + STAGING, EMPTY = FULL + 8 * STAGES, RESIDUAL = EMPTY + 8 * STAGES;
};
constexpr uint32_t LINEAR_SM90_SHARED = 213136;  // as the host asks for
static_assert(Form<192, false>::RESIDUAL + 16 <= LINEAR_SM90_SHARED, "and the gated form needs less");
static_assert(Form<64, false>::RESIDUAL + 16 <= LINEAR_SM90_SHARED, "of many small stages");

// The stage whose turn it is, and the parity of its use.
template <int STAGES>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

struct Place {
    int row, column;
};
__device__ __forceinline__ int tiles_of(int length, int tile) { return (length + tile - 1) / tile; }

// The tile-th tile: down a patch of PATCH tiles, then along it, then the next patch.
__device__ __forceinline__ Place place(int tile, const Sizes& sizes, int width) {
    const int down = tiles_of(sizes.rows, ROWS), along = tiles_of(sizes.columns, width);
    const int first = tile / (PATCH * along) * PATCH, height = min(PATCH, down - first);
    tile -= first * along;
    return {(first + tile % height) * ROWS, tile / height * width};
}

__device__ __forceinline__ bool serves(const Adapter& adapter, int row) {
    return adapter.from < row + ROWS && row < adapter.to;
}

// One thread: all stages of all this block's tiles.
template <int WIDTH, bool GATED>
__device__ void bring(uint32_t base, const CUtensorMap& x, const CUtensorMap& w, const CUtensorMap& u,
                      const Adapters& adapters, const Sizes& sizes, int tiles) {
    using F = Form<WIDTH, GATED>;
    Ring<F::STAGES> ring;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place at = place(tile, sizes, F::OUT);
        for (int k = 0; k < sizes.inner; k += DEPTH) {
            const uint32_t stage = base + ring.stage * F::STAGE, full = base + F::FULL + 8 * ring.stage;
            mbar_wait(base + F::EMPTY + 8 * ring.stage, ring.parity ^ 1);
            mbar_arrive_expect_tx(full, F::STAGE);
            tma_load_2d(stage, &x, full, k, at.row);
            tma_load_2d(stage + F::A, &w, full, k, at.column);
            if (GATED) tma_load_2d(stage + F::A + F::B / 2, &u, full, k, at.column);
            ring.next();
        }
        for (int i = 0; i < sizes.adapters; i++) {
            const Adapter& adapter = adapters.of[i];
            if (!serves(adapter, at.row)) continue;
            for (int step = 0; step < adapter.steps; step++) {
                const uint32_t stage = base + ring.stage * F::STAGE, full = base + F::FULL + 8 * ring.stage;
                mbar_wait(base + F::EMPTY + 8 * ring.stage, ring.parity ^ 1);
                mbar_arrive_expect_tx(full, F::A + (GATED ? F::B / 2 : F::B));
                tma_load_2d(stage, &adapter.h, full, step * DEPTH, at.row - adapter.from);
                tma_load_2d(stage + F::A + (adapter.up ? F::B / 2 : 0), &adapter.b, full, step * DEPTH, at.column);
                ring.next();
            }
        }
    }
}

enum class Half { both, first, second };

template <int WIDTH, Half HALF>
__device__ __forceinline__ void multiply_slice(float (&d)[WIDTH / 2], uint64_t a, uint64_t b) {
    if constexpr (HALF == Half::first) {
        wgmma_m64n96k16<0, 0, 0>(d, a, b, 1);
    } else if constexpr (HALF == Half::second) {
        wgmma_m64n96k16<0, 0, WIDTH / 4>(d, a, b, 1);
    } else if constexpr (WIDTH == 192) {
        wgmma_m64n192k16<0, 0>(d, a, b, 1);
    } else {
        wgmma_m64n64k16<0, 0>(d, a, b, 1);
    }
}

// d = the product of the next `steps` stages, from zero. A stage is released when the one after it is under way.
template <int WIDTH, bool GATED, Half HALF>
__device__ __forceinline__ void multiply(float (&d)[WIDTH / 2], uint32_t base, Ring<Form<WIDTH, GATED>::STAGES>& ring,
                                         int group, int steps) {
    using F = Form<WIDTH, GATED>;
    const bool speaks = threadIdx.x % 32 == 0;  // for its warp
    uint32_t before = 0;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) d[i] = 0.0f;
    wgmma_fence_regs(d);
    for (int step = 0; step < steps; step++) {
        const uint32_t a = base + ring.stage * F::STAGE + group * (F::A / 2);
        const uint32_t b = base + ring.stage * F::STAGE + F::A + (HALF == Half::second ? F::B / 2 : 0);
        mbar_wait(base + F::FULL + 8 * ring.stage, ring.parity);
        wgmma_fence();
#pragma unroll
        for (int slice = 0; slice < DEPTH / 16; slice++) {
            multiply_slice<WIDTH, HALF>(d, desc_sw128(a + 32 * slice, 0, 1024), desc_sw128(b + 32 * slice, 0, 1024));
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (step && speaks) mbar_arrive(before);
        before = base + F::EMPTY + 8 * ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
    if (speaks) mbar_arrive(before);
    wgmma_fence_regs(d);
}

// The value of a vector at a column, if both are there.
__device__ __forceinline__ float value_at(const __nv_bfloat16* vector, int column, int columns, float otherwise) {
    return vector && column < columns ? __bfloat162float(vector[column]) : otherwise;
}

// f(y) = y sigmoid(y (slope + cubic y^2)) is SiLU with (1, 0), quick GELU with (1.702, 0), and, as tanh is a sigmoid,
// the GELU by tanh with twice sqrt(2 / pi) and 0.044715 of that.
template <int COUNT, int SIZE>
__device__ __forceinline__ void activate(float (&y)[SIZE], int function) {
    if (function == 2) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) y[i] = 0.5f * y[i] * (1.0f + erff(y[i] * 0.70710678f));
    } else if (function != 0) {
        const float slope = function == 1 ? 1.0f : function == 3 ? 1.5957691f : 1.702f;
        const float cubic = function == 3 ? 0.071354816f : 0.0f;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            y[i] = __fdividef(y[i], 1.0f + __expf(-y[i] * __fmaf_rn(cubic, y[i] * y[i], slope)));
        }
    }
}

__device__ __forceinline__ uint32_t packed(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &both, 4);
    return bits;
}

// One of the two warpgroups that multiply: rows 64 group .. 64 group + 64 of each tile.
template <int WIDTH, bool GATED>
__device__ __forceinline__ void work(uint32_t base, int group, const CUtensorMap& out, const __nv_bfloat16* bias,
                                     const __nv_bfloat16* up_bias, const __nv_bfloat16* gain, const Adapters& adapters,
                                     const Sizes& sizes, int tiles) {
    using F = Form<WIDTH, GATED>;
    constexpr int BOXES = F::OUT / BOX, HELD = WIDTH / 2;
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32, pair = lane % 4 * 2;  // of columns
    const uint32_t staging = base + F::STAGES * F::STAGE + group * (F::STAGING / 2);
    const uint32_t residual = base + F::RESIDUAL + 8 * group;
    Ring<F::STAGES> ring;
    uint32_t turn = 0;
    float sum[HELD];
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
        const Place at = place(tile, sizes, F::OUT);
        const int row = at.row + 64 * group;
        if (thread == 0) {
            bulk_wait_read<0>();  // the tile before has left the staging area
            if (sizes.adds) {
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
            multiply<WIDTH, GATED, Half::both>(chunk, base, ring, group, tiles_of(min(CHUNK, sizes.inner - k), DEPTH));
#pragma unroll
            for (int i = 0; i < HELD; i++) sum[i] += chunk[i];
        }
        if (bias || up_bias) {
#pragma unroll
            for (int i = 0; i < HELD; i += 4) {  // 8 columns, of which two are this thread's, in two rows
                const bool second = GATED && i >= HELD / 2;
                const int column = at.column + (i - (second ? HELD / 2 : 0)) * 2 + pair;
                for (int e = 0; e < 2; e++) {
                    const float b = value_at(second ? up_bias : bias, column + e, sizes.columns, 0.0f);
                    sum[i + e] += b, sum[i + e + 2] += b;
                }
            }
        }
        const int own = row + thread / 32 * 16 + lane / 4;  // and own + 8
        for (int i = 0; i < sizes.adapters; i++) {
            const Adapter& adapter = adapters.of[i];
            if (!serves(adapter, at.row)) continue;
            float chunk[HELD];
            const float scale = adapter.scale;
            const auto here = [&](int row) { return adapter.from <= row && row < adapter.to; };
            const bool mine[2] = {here(own), here(own + 8)};
            const auto add = [&](int from, int to) {
#pragma unroll
                for (int i = from; i < to; i++) {
                    if (mine[i / 2 % 2]) sum[i] = __fmaf_rn(scale, chunk[i], sum[i]);
                }
            };
            if constexpr (!GATED) {
                multiply<WIDTH, GATED, Half::both>(chunk, base, ring, group, adapter.steps);
                add(0, HELD);
            } else if (adapter.up) {
                multiply<WIDTH, GATED, Half::second>(chunk, base, ring, group, adapter.steps);
                add(HELD / 2, HELD);
            } else {
                multiply<WIDTH, GATED, Half::first>(chunk, base, ring, group, adapter.steps);
                add(0, HELD / 2);
            }
        }
        activate<GATED ? HELD / 2 : HELD>(sum, sizes.function);
        if constexpr (GATED) {
#pragma unroll
            for (int i = 0; i < HELD / 2; i++) sum[i] *= sum[i + HELD / 2];
        }
        if (sizes.adds) mbar_wait(residual, turn);
        group == 0 ? bar_sync<1>(128) : bar_sync<2>(128);  // nobody writes before thread 0 has seen the area free
#pragma unroll
        for (int i = 0; i < F::OUT / 16; i++) {  // 16 columns of the warp's 16 rows
            const int in_tile = thread / 32 * 16 + lane % 16;
            const uint32_t piece = (i % 2 * 2 + lane / 16) ^ (in_tile / 2 % 4);
            const uint32_t spot = staging + i / 2 * BOX_BYTES + in_tile * (BOX * 2) + piece * 16;
            uint32_t old[4], values[4];
            if (sizes.adds) ldmatrix_x4(old, spot);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float low = sum[8 * i + 2 * e], high = sum[8 * i + 2 * e + 1];
                if (sizes.adds) {
                    const int column = at.column + i * 16 + e / 2 * 8 + pair;
                    low = __fmaf_rn(value_at(gain, column, sizes.columns, 1.0f), low, __uint_as_float(old[e] << 16));
                    high = __fmaf_rn(value_at(gain, column + 1, sizes.columns, 1.0f), high,
                                     __uint_as_float(old[e] & 0xFFFF0000u));
                }
                values[e] = packed(low, high);
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

template <int WIDTH, bool GATED>
__device__ __forceinline__ void linear_by_tiles(const CUtensorMap& out, const CUtensorMap& x, const CUtensorMap& w,
                                                const CUtensorMap& u, const __nv_bfloat16* bias,
                                                const __nv_bfloat16* up_bias, const __nv_bfloat16* gain,
                                                const Adapters& adapters, const Sizes& sizes) {
    using F = Form<WIDTH, GATED>;
    DYN_SMEM(memory);
    const uint32_t base = smem_u32(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < F::STAGES; i++) {
            mbar_init(base + F::FULL + 8 * i, 1);   // the thread that brings
            mbar_init(base + F::EMPTY + 8 * i, 8);  // the warps that multiply
        }
        for (int i = 0; i < 2; i++) mbar_init(base + F::RESIDUAL + 8 * i, 1);  // a warpgroup's thread 0
        fence_mbar_init();
    }
    __syncthreads();
    const int group = __shfl_sync(0xFFFFFFFFu, int(threadIdx.x / 128), 0);  // nvcc now knows that lanes agree
    const int tiles = tiles_of(sizes.rows, ROWS) * tiles_of(sizes.columns, F::OUT);
    if (group == 0) {
        setmaxnreg_dec<24>();
        if (threadIdx.x == 0) bring<WIDTH, GATED>(base, x, w, u, adapters, sizes, tiles);
    } else {
        setmaxnreg_inc<240>();
        work<WIDTH, GATED>(base, group - 1, out, bias, up_bias, gain, adapters, sizes, tiles);
    }
}

}  // namespace

KERNEL void __launch_bounds__(384, 1)
    linear_sm90(const __grid_constant__ CUtensorMap out, const __grid_constant__ CUtensorMap x,
                const __grid_constant__ CUtensorMap w, const __nv_bfloat16* bias, const __nv_bfloat16* gain,
                const __grid_constant__ Adapters adapters, const __grid_constant__ Sizes sizes) {
    linear_by_tiles<192, false>(out, x, w, w, bias, nullptr, gain, adapters, sizes);
}
EMU_REGISTER(linear_sm90)

KERNEL void __launch_bounds__(384, 1)
    linear_sm90_narrow(const __grid_constant__ CUtensorMap out, const __grid_constant__ CUtensorMap x,
                       const __grid_constant__ CUtensorMap w, const __nv_bfloat16* bias, const __nv_bfloat16* gain,
                       const __grid_constant__ Adapters adapters, const __grid_constant__ Sizes sizes) {
    linear_by_tiles<64, false>(out, x, w, w, bias, nullptr, gain, adapters, sizes);
}
EMU_REGISTER(linear_sm90_narrow)

KERNEL void __launch_bounds__(384, 1)
    linear_sm90_gated(const __grid_constant__ CUtensorMap out, const __grid_constant__ CUtensorMap x,
                      const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap u,
                      const __nv_bfloat16* bias, const __nv_bfloat16* up_bias,
                      const __grid_constant__ Adapters adapters, const __grid_constant__ Sizes sizes) {
    linear_by_tiles<192, true>(out, x, w, u, bias, up_bias, nullptr, adapters, sizes);
}
EMU_REGISTER(linear_sm90_gated)

#endif
