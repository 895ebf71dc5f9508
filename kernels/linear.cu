// Linear layers with everything that belongs to them: adapters, bias, activation, gate, residual.
//
//   y = x Wᵀ + b + s (h Bᵀ),  h = x Aᵀ            for the rows each adapter is given; h is made by linear_shrink
//   linear: out = y | out + y | out + g y | f(y)     gated: out = f(y of gate) y of up
//
// in      x bf16 [T, K]; W bf16 [N, K]; b, g bf16 [N] or null; A bf16 [R, K], B bf16 [N, R], 1 <= R <= 512; up to 32
//         adapters, those of a side for disjoint ranges of rows, s finite; h bf16 [sides, T, pitch], pitch a multiple of 8
// out     bf16 [T, N], or f32 for `store`; read and written where the ending adds to it
// work    for split launches: partial f32 [slots, T, sides, N rounded up to 8], tickets i32 [tiles], zero before and after
// launch  1-D grid of tiles, times slots if split (partial not null: a slot per chunk of K, and one for adapters if
//         there are any); for linear_shrink also y = adapters. Block and shared bytes: GemmTile's THREADS and SHARED.
//         Any sizes >= 1; copies of 16 bytes where rows are 16-byte aligned (K a multiple of 8)
// floor   flops 2TNK + 2TR(N + K), bytes 2(TK + NK + TN), all of it for both sides if gated. T = 4096, K = 2048, N = 2048,
//         R = 16 at 790 TFLOP/s: 44 us; gated, T = 1, K = 2048, N = 11008 at 4.3 TB/s: 21 us
// order   chunks of 512 of K from zero in order, each by mma.sync of k16 in order; + b; + s times the adapter's chunk; the
//         ending; one rounding. h is rounded to bf16. All tiles, split or not, give the same bits
// pair    backward: below; CPU reference: backend::plain linear and gated_linear; emulated: yes
#include "common/gemm.cuh"
#include "common/linear.cuh"

constexpr int ADAPTERS = 32;
constexpr int TILE_GROUP = 8;  // tiles of rows that share their columns' weights in L2

// Laid out by src/backend/gpu/linear.rs.
struct Adapters {
    const __nv_bfloat16 *a[ADAPTERS], *b[ADAPTERS];
    int first[ADAPTERS], end[ADAPTERS], rank[ADAPTERS], side[ADAPTERS];
    float scale[ADAPTERS];
    int count, unused;
};

// What a block does of `slots` blocks a tile; `tile` is -1 if there is none for it.
struct Share {
    int tile, slot, row, column;

    template <int M, int WIDTH>
    static __device__ __forceinline__ Share of(int rows, int columns, int slots) {
        const int tiles_m = (rows + M - 1) / M, tiles_n = (columns + WIDTH - 1) / WIDTH;
        const int slot = blockIdx.x % slots, tile = blockIdx.x / slots;
        const int group = tile / (TILE_GROUP * tiles_n), within = tile % (TILE_GROUP * tiles_n);
        const int height = min(tiles_m - group * TILE_GROUP, TILE_GROUP);
        if (tile >= tiles_m * tiles_n) return {-1, 0, 0, 0};
        return {tile, slot, (group * TILE_GROUP + within % height) * M, within / height * WIDTH};
    }
};

template <class Tile, int SIDES>
__device__ __forceinline__ void linear_tile(const LinearTask<SIDES>& task, const Adapters* adapters) {
    DYN_SMEM(memory);
    constexpr bool BACK = Tile::B == K_OUTER;                     // W and B as they lie in memory are [K, N], [R, N]
    const int of_x = (task.inner + GEMM_CHUNK - 1) / GEMM_CHUNK;  // chunks
    const int slots = task.partial ? of_x + (adapters != nullptr) : 1;
    const Share share = Share::of<Tile::M, Tile::N / SIDES>(task.end - task.first, task.columns, slots);
    if (share.tile < 0) return;
    const int row = task.first + share.row, column = share.column, slot = share.slot;

    unsigned served = 0;  // adapters with rows in this tile
    for (int i = 0; adapters && i < adapters->count; i++) {
        if (adapters->first[i] < row + Tile::M && adapters->end[i] > row) served |= 1u << i;
    }
    const auto adapter = [&](int c) {  // which one chunk c is of
        unsigned left = served;
        for (int before = of_x; before < c; before++) left &= left - 1;
        return __ffs(int(left)) - 1;
    };
    const auto chunks = [&](int c, int side) -> GemmChunk {
        if (c < of_x) {
            const int k = c * GEMM_CHUNK;
            const __nv_bfloat16* weight = side ? task.weight[SIDES - 1] : task.weight[0];
            return {{task.x + k, task.inner, task.first, task.end},
                    {weight + (BACK ? int64_t(k) * task.columns : k), BACK ? task.columns : task.inner, 0, task.columns},
                    min(task.inner - k, GEMM_CHUNK)};
        }
        const int i = adapter(c), of = adapters->side[i], rank = adapters->rank[i];
        const __nv_bfloat16* h = task.h + int64_t(of) * task.rows * task.h_pitch;
        return {{h, task.h_pitch, adapters->first[i], adapters->end[i]},
                {adapters->b[i], BACK ? task.columns : rank, 0, side == of ? task.columns : 0},
                rank};
    };

    typename Tile::Sums total = {};
    const int lane = threadIdx.x % 32;
    const auto done = [&](int c, const typename Tile::Sums& sums) {
        // An adapter's product goes to its own rows alone: to others it is zero only where B is finite.
        const int of = c < of_x ? -1 : adapter(c);
        const float scale = of < 0 ? 1.0f : adapters->scale[of];
        const unsigned first = of < 0 ? row : adapters->first[of], count = of < 0 ? Tile::M : adapters->end[of] - first;
        const unsigned at = row + Tile::row() + lane / 4 - first;
        const bool biased = c == of_x - 1 && !task.partial;
#pragma unroll
        for (int j = 0; j < Tile::BLOCKS_N; j++) {
            const int n = column + (Tile::column() + j / SIDES * SIDES * 8) / SIDES + lane % 4 * 2;
            const __nv_bfloat16* bias = task.bias[j % SIDES];
            float b[2] = {};
#pragma unroll
            for (int e = 0; e < 2; e++) {
                if (biased && bias && n + e < task.columns) b[e] = __bfloat162float(bias[n + e]);
            }
#pragma unroll
            for (int i = 0; i < Tile::BLOCKS_M; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float more = __fmul_rn(scale, sums[i][j][e]);
                    if (at + i * 16 + e / 2 * 8 < count) total[i][j][e] = __fadd_rn(total[i][j][e], more);
                    if (biased) total[i][j][e] = __fadd_rn(total[i][j][e], b[e % 2]);
                }
            }
        }
    };

    const int end = task.partial && slot < of_x ? slot + 1 : of_x + __popc(served);
    if (slot < end) gemm<Tile, SIDES>(memory, row, column, slot, end, chunks, done);
    __syncthreads();
    Tile::leave(memory, total);
    __syncthreads();
    end_tile<Tile, SIDES>(memory, task, row, column, share.tile, slot, slots, of_x, served != 0);
}

// Kernels of the plain product, the gated one and x Aᵀ; one of each per tile, of which an SM has room for BLOCKS.
#define LINEAR(NAME, TILE, BLOCKS)                                                                                            \
    KERNEL void __launch_bounds__(TILE::THREADS, BLOCKS)                                                                 \
        NAME(void* out, const __nv_bfloat16* x, const __nv_bfloat16* weight, const __nv_bfloat16* bias,               \
             const __nv_bfloat16* gain, const __nv_bfloat16* h, float* partial, int* tickets, int rows, int inner,    \
             int columns, int h_pitch, int ending, const __grid_constant__ Adapters adapters) {                       \
        const LinearTask<1> task = {out, x, {weight}, {bias}, gain, h, partial, tickets, rows, 0, rows, inner,        \
                                    columns, columns, h_pitch, (columns + 7) / 8 * 8, ending};                        \
        linear_tile<TILE, 1>(task, adapters.count ? &adapters : nullptr);                                             \
    }                                                                                                                 \
    EMU_REGISTER(NAME)

#define GATED_LINEAR(NAME, TILE, BLOCKS)                                                                                      \
    KERNEL void __launch_bounds__(TILE::THREADS, BLOCKS)                                                                 \
        NAME(void* out, const __nv_bfloat16* x, const __nv_bfloat16* gate, const __nv_bfloat16* up,                   \
             const __nv_bfloat16* gate_bias, const __nv_bfloat16* up_bias, const __nv_bfloat16* h, float* partial,    \
             int* tickets, int rows, int inner, int columns, int h_pitch, int ending,                                 \
             const __grid_constant__ Adapters adapters) {                                                             \
        const LinearTask<2> task = {out, x, {gate, up}, {gate_bias, up_bias}, nullptr, h, partial, tickets, rows, 0,  \
                                    rows, inner, columns, columns, h_pitch, (columns + 7) / 8 * 8, ending};           \
        linear_tile<TILE, 2>(task, adapters.count ? &adapters : nullptr);                                             \
    }                                                                                                                 \
    EMU_REGISTER(NAME)

#define LINEAR_SHRINK(NAME, TILE, BLOCKS)                                                                                     \
    KERNEL void __launch_bounds__(TILE::THREADS, BLOCKS)                                                                 \
        NAME(__nv_bfloat16* h, const __nv_bfloat16* x, float* partial, int* tickets, int rows, int inner,             \
             int h_pitch, const __grid_constant__ Adapters adapters) {                                                \
        const int i = blockIdx.y, slots = partial ? (inner + GEMM_CHUNK - 1) / GEMM_CHUNK : 1;                        \
        const int64_t side = int64_t(adapters.side[i]) * rows * h_pitch;                                              \
        const LinearTask<1> task = {h + side, x, {adapters.a[i]}, {}, nullptr, nullptr,                               \
                                    partial ? partial + side * slots : nullptr,                                       \
                                    tickets + i * (gridDim.x / slots), rows, adapters.first[i], adapters.end[i],      \
                                    inner, adapters.rank[i], h_pitch, 0, h_pitch, STORE};                             \
        linear_tile<TILE, 1>(task, nullptr);                                                                          \
    }                                                                                                                 \
    EMU_REGISTER(NAME)

using Wide = GemmTile<128, 128, 2, 4, 3>;       // 96 KiB: a block an SM
using Middle = GemmTile<64, 64, 2, 2, 3>;       // 48 KiB
using Narrow = GemmTile<16, 64, 1, 4, 6>;       // 60 KiB
using NarrowGated = GemmTile<16, 128, 1, 4, 4>; // 72 KiB
using Slim = GemmTile<64, 16, 4, 1, 5>;         // 50 KiB

LINEAR(linear_wide, Wide, 1)
LINEAR(linear_middle, Middle, 3)
LINEAR(linear_narrow, Narrow, 4)
GATED_LINEAR(gated_linear_wide, Wide, 1)
GATED_LINEAR(gated_linear_middle, Middle, 3)
GATED_LINEAR(gated_linear_narrow, NarrowGated, 3)
LINEAR_SHRINK(linear_shrink_middle, Middle, 3)
LINEAR_SHRINK(linear_shrink_narrow, Narrow, 4)
LINEAR_SHRINK(linear_shrink_slim, Slim, 4)

// Backward. Of x: the same kernels with the matrices met from behind, K and N having changed places,
//
//   dx = dy W + s (g A),  g = dy B            g is made by linear_backward_shrink; out = dx | out + dx, bf16
//
// and of parameters, sums over packed rows:
//
//   out += s (aᵀ b)            dW: dy, x; dA: g, x; dB: dy, h; of an adapter its own rows alone
//
// in      a bf16 [T, M] and b bf16 [T, N], a row every a_pitch, b_pitch elements; s finite
// inout   out f32 [M, N]
// work    for split launches: partial f32 [chunks of T, M, N rounded up to 8], tickets i32 [tiles], zero before and after
// launch  as above; of parameters a slot is a chunk of T. Any sizes >= 1; copies of 16 bytes where rows are 16-byte aligned
// floor   of x as forward; of parameters flops 2TMN, bytes 2T(M + N) + 8MN. T = 4096, N = K = 2048: dx and dW 44 us each at
//         790 TFLOP/s; dA with R = 16 at 4.3 TB/s: 4 us
// order   of x as forward, chunks being of N. Of parameters chunks of 512 rows from zero in order, each by mma.sync of k16 in
//         order, times s; then out + that. Tiles and splits change no bit
// pair    forward: above; CPU reference: backend::plain linear_backward; emulated: yes
template <class Tile>
__device__ __forceinline__ void grad_tile(const LinearTask<1>& task, const __nv_bfloat16* a, int a_pitch,
                                          const __nv_bfloat16* b, int b_pitch, float scale) {
    DYN_SMEM(memory);
    const int of_rows = (task.inner + GEMM_CHUNK - 1) / GEMM_CHUNK, slots = task.partial ? of_rows : 1;
    const Share share = Share::of<Tile::M, Tile::N>(task.rows, task.columns, slots);
    if (share.tile < 0) return;
    const auto chunks = [&](int c, int) -> GemmChunk {
        const int64_t t = c * GEMM_CHUNK;
        return {{a + t * a_pitch, a_pitch, 0, task.rows},
                {b + t * b_pitch, b_pitch, 0, task.columns},
                min(task.inner - int(t), GEMM_CHUNK)};
    };
    typename Tile::Sums total = {};
    const auto done = [&](int, const typename Tile::Sums& sums) {
#pragma unroll
        for (int i = 0; i < Tile::BLOCKS_M * Tile::BLOCKS_N * 4; i++) {
            float& sum = total[i / 4 / Tile::BLOCKS_N][i / 4 % Tile::BLOCKS_N][i % 4];
            sum = __fadd_rn(sum, __fmul_rn(scale, sums[i / 4 / Tile::BLOCKS_N][i / 4 % Tile::BLOCKS_N][i % 4]));
        }
    };
    gemm<Tile, 1>(memory, share.row, share.column, share.slot, task.partial ? share.slot + 1 : of_rows, chunks, done);
    __syncthreads();
    Tile::leave(memory, total);
    __syncthreads();
    end_tile<Tile, 1>(memory, task, share.row, share.column, share.tile, share.slot, slots, of_rows, false);
}

#define LINEAR_GRAD(NAME, TILE, BLOCKS)                                                                                  \
    KERNEL void __launch_bounds__(TILE::THREADS, BLOCKS)                                                                 \
        NAME(float* out, const __nv_bfloat16* a, const __nv_bfloat16* b, float* partial, int* tickets, int rows, int m,  \
             int n, int a_pitch, int b_pitch, float scale) {                                                             \
        const LinearTask<1> task = {out,  nullptr, {}, {}, nullptr, nullptr, partial,         tickets, m, 0, m,          \
                                    rows, n,       n,  0,  (n + 7) / 8 * 8, ADD_F32};                                    \
        grad_tile<TILE>(task, a, a_pitch, b, b_pitch, scale);                                                            \
    }                                                                                                                    \
    EMU_REGISTER(NAME)

using WideBack = GemmTile<128, 128, 2, 4, 3, K_INNER, K_OUTER>;
using MiddleBack = GemmTile<64, 64, 2, 2, 3, K_INNER, K_OUTER>;
using NarrowBack = GemmTile<16, 64, 1, 4, 6, K_INNER, K_OUTER>;
using SlimBack = GemmTile<64, 16, 4, 1, 5, K_INNER, K_OUTER>;
using WideGrad = GemmTile<128, 128, 2, 4, 3, K_OUTER, K_OUTER>;
using MiddleGrad = GemmTile<64, 64, 2, 2, 3, K_OUTER, K_OUTER>;
using NarrowGrad = GemmTile<16, 64, 1, 4, 6, K_OUTER, K_OUTER>;
using SlimGrad = GemmTile<64, 16, 4, 1, 5, K_OUTER, K_OUTER>;

LINEAR(linear_backward_wide, WideBack, 1)
LINEAR(linear_backward_middle, MiddleBack, 2)
LINEAR(linear_backward_narrow, NarrowBack, 4)
LINEAR_SHRINK(linear_backward_shrink_middle, MiddleBack, 3)
LINEAR_SHRINK(linear_backward_shrink_narrow, NarrowBack, 4)
LINEAR_SHRINK(linear_backward_shrink_slim, SlimBack, 4)
LINEAR_GRAD(linear_grad_wide, WideGrad, 1)
LINEAR_GRAD(linear_grad_middle, MiddleGrad, 3)
LINEAR_GRAD(linear_grad_narrow, NarrowGrad, 4)
LINEAR_GRAD(linear_grad_slim, SlimGrad, 4)
