// Attention of few queries, or of wide heads: 16 lines at a time, the warps of a block share every tile of keys.
//
// As attention.cu, and the same bits. Warp w scores keys 16w to 16w + 15 of a tile; the scores go through shared memory, so
// that every warp knows them all and takes the same softmax; then warp w weighs its quarter of the value columns.
//
// With grid z = 1 a block takes all splits and writes out and lse. With more, block z takes split z alone and leaves its
// greatest score, sum and weighted values in `parts`; attention_merge then merges them in order.
//
// in      p as attention.cu
// out     z = 1: out bf16 [T, H, D], lse f32 [T, H] or null; else parts f32 [Z, T, H, WIDTH + 2]: WIDTH values, the
//         greatest score (times scale log2(e)), the sum; blocks whose split no query sees write nothing
// launch  grid (B, G S, 1 or Z), block (128), shared 256 (2 WIDTH + 16) + 4608 bytes; the S blocks of a sequence and head
//         take its lines 16 at a time in turn. Z at least the splits of the longest sequence; the width of parts is P's.
// floor   bytes 4GD a key and 4HD a query: bound by memory. 64 sequences of 1024 keys, G = 2, D = 128 at 4.3 TB/s: 16 us
// order   as attention.cu
// pair    the same bits: attention.cu; CPU reference: backend::plain paged_attention; emulated: yes
#include "common/attention.cuh"

using namespace attention;

constexpr int LINES = 16;
constexpr int SCORES_PITCH = TILE + 8;  // floats; the rows that meet in one access lie in different banks

// What a lane has of all scores of a tile, given 16 columns from each warp.
__device__ __forceinline__ void share_scores(float (&all)[TILE / 8][4], const float (&mine)[2][4], float* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* place = shared + lane / 4 * SCORES_PITCH + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2* to = reinterpret_cast<float2*>(place + i % 2 * 8 * SCORES_PITCH + warp * 16 + i / 2 * 8);
        *to = make_float2(mine[i / 2][i % 2 * 2], mine[i / 2][i % 2 * 2 + 1]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILE / 4; i++) {
        const float2 pair = *reinterpret_cast<const float2*>(place + i % 2 * 8 * SCORES_PITCH + i / 2 * 8);
        all[i / 2][i % 2 * 2] = pair.x;
        all[i / 2][i % 2 * 2 + 1] = pair.y;
    }
}

template <int WIDTH>
__device__ __forceinline__ void attend(const Problem& p, __nv_bfloat16* out, float* lse, float* parts, int rows) {
    constexpr int COUNT = (WIDTH / 8 + 3) / 4;  // 8 columns each, of a warp's quarter
    DYN_SMEM(memory);
    float* shared = reinterpret_cast<float*>(memory + STAGES * 2 * Ring<WIDTH>::TILE_BYTES);
    const Sequence s = sequence_of(p, int(blockIdx.x));
    const int kv_head = int(blockIdx.y) % p.kv_heads, count = s.queries * p.group;
    const int warp = threadIdx.x / 32, column = warp * COUNT * 8;
    const bool whole = gridDim.z == 1;

    for (int first = int(blockIdx.y) / p.kv_heads * LINES; first < count; first += int(gridDim.y) / p.kv_heads * LINES) {
        const int seen_by_first = sees(p, s, first), seen_by_last = sees(p, s, min(first + LINES, count) - 1);
        const int begin = int(blockIdx.z) * SPLIT_TILES, tiles = (seen_by_last + TILE - 1) / TILE;
        const int end = whole ? tiles : min(tiles, begin + SPLIT_TILES);
        if (begin >= end) continue;
        Ring<WIDTH> ring{p, s, memory, kv_head, begin, end};
        ring.start();
        const Lines lines(p, s, kv_head, first);
        const Queries<WIDTH> q(p, lines, memory);

        Sums total, split;
        float total_o[COUNT][4] = {}, o[COUNT][4] = {};
        for (int tile = begin; tile < end; tile++) {
            const uint32_t place = ring.wait(tile);
            float mine[2][4], score[TILE / 8][4], factor[2];
            scores<WIDTH, 1>(mine, q, place, warp * 16);
            share_scores(score, mine, shared);
            uint32_t probability[4][4];
            softmax(probability, score, split, factor, lines, tile * TILE, (tile + 1) * TILE <= seen_by_first, p.scale);
            weigh<WIDTH, COUNT>(o, probability, factor, place + Ring<WIDTH>::TILE_BYTES, column);
            if (tile % SPLIT_TILES == SPLIT_TILES - 1 || tile == end - 1) take_split(total, total_o, split, o);
        }
        __syncthreads();  // the ring begins anew
        if (whole) {
            write_lines<WIDTH, COUNT>(p, out, lse, lines, total, total_o, column);
            continue;
        }
        const int t = threadIdx.x % 4 * 2;
        for (int r = 0; r < 2; r++) {
            if (!lines.exists(r)) continue;
            const int heads = p.kv_heads * p.group;
            float* part = parts + (int64_t(blockIdx.z) * rows * heads + lines.at(r)) * (WIDTH + 2);
#pragma unroll
            for (int n = 0; n < COUNT; n++) {
                if (column + n * 8 >= WIDTH) break;
                float2* to = reinterpret_cast<float2*>(part + column + n * 8 + t);
                *to = make_float2(total_o[n][r * 2], total_o[n][r * 2 + 1]);
            }
            if (warp == 0 && t == 0) {
                *reinterpret_cast<float2*>(part + WIDTH) = make_float2(total.greatest[r], total.sum[r]);
            }
        }
    }
}

#define ATTENTION_SPLIT(WIDTH, BLOCKS)                                                  \
    KERNEL void __launch_bounds__(THREADS, BLOCKS)                                      \
        attention_split_##WIDTH(__nv_bfloat16* out, float* lse, float* parts, int rows, \
                                const __grid_constant__ Problem p) {                    \
        attend<WIDTH>(p, out, lse, parts, rows);                                        \
    }                                                                                   \
    EMU_REGISTER(attention_split_##WIDTH)

ATTENTION_SPLIT(32, 4)
ATTENTION_SPLIT(64, 4)
ATTENTION_SPLIT(80, 3)
ATTENTION_SPLIT(128, 3)
ATTENTION_SPLIT(256, 1)

// Merges the parts that attention_split_WIDTH left: a thread a column, all splits that a query sees in order.
//
// in      parts f32 [Z, T, H, width + 2]; p as above
// out     out bf16 [T, H, D]; lse f32 [T, H] or null
// launch  grid (B, H), block (128); each block takes its sequence's queries in turn
// floor   bytes 4(D + 2)Z + 2D a query and head: bound by memory, and mostly in L2. 64 sequences of 4 splits, H = 16,
//         D = 128 at 4.3 TB/s: 0.6 us
// order   splits in order, as attention.cu
// pair    part of attention_split; emulated: yes
KERNEL void __launch_bounds__(THREADS)
    attention_merge(__nv_bfloat16* out, float* lse, const float* parts, int width, int rows,
                    const __grid_constant__ Problem p) {
    const Sequence s = sequence_of(p, int(blockIdx.x));
    const int head = int(blockIdx.y), heads = p.kv_heads * p.group;
    for (int query = 0; query < s.queries; query++) {
        const int64_t at = int64_t(s.first + query) * heads + head;
        const int splits = (sees(p, s, query * p.group) + SPLIT_TILES * TILE - 1) / (SPLIT_TILES * TILE);
        for (int column = threadIdx.x; column < p.head_dim; column += THREADS) {
            float greatest = -INFINITY, sum = 0.0f, o = 0.0f, keep, add;
#pragma unroll 4
            for (int split = 0; split < splits; split++) {
                const float* part = parts + (int64_t(split) * rows * heads + at) * (width + 2);
                const float2 sums = *reinterpret_cast<const float2*>(part + width);
                merge(greatest, sum, sums.x, sums.y, keep, add);
                o = merged(o, part[column], keep, add);
            }
            out[at * p.head_dim + column] = __float2bfloat16_rn(__fmul_rn(o, __fdiv_rn(1.0f, sum)));
            if (lse && column == 0) lse[at] = log_sum(greatest, sum);
        }
    }
}
EMU_REGISTER(attention_merge)
