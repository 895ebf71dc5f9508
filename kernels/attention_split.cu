// Attention of few queries, or of wide heads: 16 lines at a time, the warps of a block share every tile of keys.
//
// As attention.cu, and the same bits. Warp w scores keys 16w to 16w + 15 of a tile; the scores go through shared memory, so
// that every warp knows them all and takes the same softmax; then warp w weighs its quarter of the value columns.
//
// Without `parts` a block takes all splits. With them, block z takes split z alone and leaves its weighted values, greatest
// score and sum there; the last of a sequence's blocks to finish merges what all have left, in order of splits. Keys that
// attention_group.cu has been through are left to what it has left.
//
// in      p as attention.cu, and with parts p.shared i32 [B] or null, as attention_group.cu
// out     out bf16 [T, H, D]; lse f32 [T, H] or null
// work    parts f32 [Z, T, H, WIDTH + 8] or null; tickets i32 [B, G S], zero before and after
// launch  grid (B, G S, Z), Z = 1 without parts, else at least the splits of the longest sequence; block (128), shared
//         256 (2 WIDTH + 16) + 4608 bytes; the S blocks of a sequence and head take its lines 16 at a time in turn
// floor   bytes 4GD a key and 4HD a query: bound by memory. 64 sequences of 1024 keys, G = 2, D = 128 at 4.3 TB/s: 16 us
// order   as attention.cu
// pair    the same bits: attention.cu; CPU reference: backend::plain paged_attention; emulated: yes
#include "common/parts.cuh"

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

// A warp merges the parts of a line, a lane four columns.
template <int WIDTH>
__device__ __forceinline__ void merge_parts(const Problem& p, const Sequence& s, int kv_head, int line,
                                            const Parts<WIDTH>& parts, __nv_bfloat16* out, float* lse) {
    const int at = place_of(p, s, kv_head, line), lane = threadIdx.x % 32;
    const int splits = (sees(p, s, line) + SPLIT_TILES * TILE - 1) / (SPLIT_TILES * TILE);
    for (int column = lane * 4; column < p.head_dim; column += 128) {
        float greatest = -INFINITY, sum = 0.0f, o[4] = {}, keep, add;
#pragma unroll 4
        for (int split = 0; split < splits; split++) {
            const float* part = parts.of(split, at);
            const float2 sums = *reinterpret_cast<const float2*>(part + Parts<WIDTH>::GREATEST);
            const uint4 bits = load_16(part + column);
            const uint32_t values[4] = {bits.x, bits.y, bits.z, bits.w};
            merge(greatest, sum, sums.x, sums.y, keep, add);
#pragma unroll
            for (int e = 0; e < 4; e++) o[e] = merged(o[e], __uint_as_float(values[e]), keep, add);
        }
        const float inverse = __fdiv_rn(1.0f, sum);
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            write_pair<WIDTH>(out + int64_t(at) * p.head_dim, column + e, p.head_dim, __fmul_rn(o[e], inverse),
                              __fmul_rn(o[e + 1], inverse));
        }
        if (lse && column == 0) lse[at] = log_sum(greatest, sum);
    }
}

// Whether all other blocks of this sequence and share have finished; what they wrote is then seen.
__device__ __forceinline__ bool is_last(int* tickets, int* shared) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        int* ticket = tickets + blockIdx.x * gridDim.y + blockIdx.y;
        *shared = atomicAdd(ticket, 1) == int(gridDim.z) - 1;
        if (*shared) atomicExch(ticket, 0);
    }
    __syncthreads();
    __threadfence();
    return *shared;
}

template <int WIDTH>
__device__ __forceinline__ void attend(const Problem& p, __nv_bfloat16* out, float* lse, float* memory_of_parts,
                                       int* tickets, int rows) {
    constexpr int COUNT = (WIDTH / 8 + 3) / 4;  // 8 columns each, of a warp's quarter
    DYN_SMEM(memory);
    float* shared = reinterpret_cast<float*>(memory + STAGES * 2 * Ring<WIDTH>::TILE_BYTES);
    const Parts<WIDTH> parts{memory_of_parts, int64_t(rows) * p.kv_heads * p.group};
    const Sequence s = sequence_of(p, int(blockIdx.x));
    const int kv_head = int(blockIdx.y) % p.kv_heads, count = s.queries * p.group, split = int(blockIdx.z);
    const int begin_line = int(blockIdx.y) / p.kv_heads * LINES, stride = int(gridDim.y) / p.kv_heads * LINES;
    const int warp = threadIdx.x / 32, column = warp * COUNT * 8;
    const int taken = p.shared ? p.shared[blockIdx.x] / TILE : 0;  // tiles that attention_group has been through

    for (int first = begin_line; first < count; first += stride) {
        const int seen_by_first = sees(p, s, first), seen_by_last = sees(p, s, min(first + LINES, count) - 1);
        const int begin = max(split * SPLIT_TILES, taken), tiles = (seen_by_last + TILE - 1) / TILE;
        const int end = parts.memory ? min(tiles, (split + 1) * SPLIT_TILES) : tiles;
        if (begin >= end) continue;
        Ring<WIDTH> ring{p, s, memory, kv_head, begin, end};
        ring.start();
        const Lines lines(p, s, kv_head, first);
        const Queries<WIDTH> q(p, p.q, lines, memory);

        Sums total, sums;
        float total_o[COUNT][4] = {}, o[COUNT][4] = {};
        if (begin > split * SPLIT_TILES) resume(parts, split, lines, sums, o, column);
        for (int tile = begin; tile < end; tile++) {
            const uint32_t place = ring.wait(tile);
            float mine[2][4], score[TILE / 8][4], factor[2];
            scores<WIDTH, 1>(mine, q, place, warp * 16);
            share_scores(score, mine, shared);
            uint32_t probability[4][4];
            softmax(probability, score, sums, factor, lines, tile * TILE, (tile + 1) * TILE <= seen_by_first, p.scale);
            weigh<WIDTH, COUNT>(o, probability, factor, place + Ring<WIDTH>::TILE_BYTES, column);
            if (tile % SPLIT_TILES == SPLIT_TILES - 1 || tile == end - 1) take_split(total, total_o, sums, o);
        }
        __syncthreads();  // the ring begins anew
        if (parts.memory) {
            leave(parts, split, lines, total, total_o, column, true);
        } else {
            write_lines<WIDTH, COUNT>(p, out, lse, lines, total, total_o, column);
        }
    }
    if (!parts.memory || !is_last(tickets, reinterpret_cast<int*>(memory))) return;
    for (int first = begin_line; first < count; first += stride) {
        const int end = min(first + LINES, count);
        for (int line = first + warp; line < end; line += THREADS / 32) {
            merge_parts(p, s, kv_head, line, parts, out, lse);
        }
    }
}

#define ATTENTION_SPLIT(WIDTH, BLOCKS)                                                                \
    KERNEL void __launch_bounds__(THREADS, BLOCKS)                                                    \
        attention_split_##WIDTH(__nv_bfloat16* out, float* lse, float* parts, int* tickets, int rows, \
                                const __grid_constant__ Problem p) {                                  \
        attend<WIDTH>(p, out, lse, parts, tickets, rows);                                             \
    }                                                                                                 \
    EMU_REGISTER(attention_split_##WIDTH)

ATTENTION_SPLIT(32, 4)
ATTENTION_SPLIT(64, 4)
ATTENTION_SPLIT(80, 3)
ATTENTION_SPLIT(128, 3)
ATTENTION_SPLIT(256, 1)
