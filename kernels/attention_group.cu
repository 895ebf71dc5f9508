// Attention over keys that neighbouring sequences have in common: 64 lines of all of them a block, each warp 16.
//
// As attention_split.cu with parts, for the keys that a group shares: what it leaves of them is what each sequence would
// have left, and attention_split goes on from there with the sequence's own keys. A group counts as one sequence whose
// queries are those of its members, which are packed one behind the other, and which all see all of its keys.
//
// in      p as attention.cu, with p.tables and p.shared i32 [B]: leading keys in common, whole pages before the first
//         query, the same for all of a group; groups i32 [N + 1]: the sequence each begins with, and B
// out     parts f32 [Z, T, H, WIDTH + 8]: of each split that begins within the shared keys, and of each line of the group
// launch  grid (N, G S, Z), Z at least the splits of the most keys shared; block (128), shared 256 (2 WIDTH + 16) bytes and
//         2048 for each 16 columns of queries that are not held in registers (none); the S blocks of a group, head and
//         split take its lines 64 at a time in turn
// floor   bytes 4GD a key of each group: bound by memory. 16 groups of 8 with 600 keys in common (576 of them in whole
//         pages), G = 2, D = 128 at 4.3 TB/s: 2.2 us, and as much for 8 (WIDTH + 8) bytes a line, split and head
// order   as attention.cu
// pair    the same bits: attention_split.cu without groups; CPU reference: backend::plain paged_attention; emulated: yes
#include "common/parts.cuh"

using namespace attention;

constexpr int LINES = 64;

template <int WIDTH>
__device__ __forceinline__ void attend(const Problem& p, const int* groups, float* memory_of_parts, int rows) {
    DYN_SMEM(memory);
    const int from = groups[blockIdx.x], to = groups[blockIdx.x + 1], split = int(blockIdx.z);
    if (from == to) return;
    const Parts<WIDTH> parts{memory_of_parts, int64_t(rows) * p.kv_heads * p.group};
    const Sequence s{p.starts[from], p.starts[to] - p.starts[from], p.shared[from], from * p.width, 0};
    const int begin = split * SPLIT_TILES, end = min(begin + SPLIT_TILES, s.length / TILE);
    if (begin >= end) return;
    const bool at_end = end == begin + SPLIT_TILES;
    const int kv_head = int(blockIdx.y) % p.kv_heads, count = s.queries * p.group;
    const int begin_line = int(blockIdx.y) / p.kv_heads * LINES, stride = int(gridDim.y) / p.kv_heads * LINES;

    for (int first = begin_line; first < count; first += stride) {
        Ring<WIDTH> ring{p, s, memory, kv_head, begin, end};
        ring.start();
        const Lines lines(p, s, kv_head, first + int(threadIdx.x) / 32 * 16);
        const Queries<WIDTH> q(p, p.q, lines, memory);

        Sums total, sums;
        float total_o[WIDTH / 8][4] = {}, o[WIDTH / 8][4] = {};
        for (int tile = begin; tile < end; tile++) {
            const uint32_t place = ring.wait(tile);
            float score[TILE / 8][4], factor[2];
            scores<WIDTH, TILE / 16>(score, q, place, 0);
            uint32_t probability[4][4];
            softmax(probability, score, sums, factor, lines, tile * TILE, true, p.scale);
            weigh<WIDTH, WIDTH / 8>(o, probability, factor, place + Ring<WIDTH>::TILE_BYTES, 0);
        }
        __syncthreads();  // the ring begins anew
        if (at_end) {
            take_split(total, total_o, sums, o);
            leave(parts, split, lines, total, total_o, 0, true);
        } else {
            leave(parts, split, lines, sums, o, 0, false);
        }
    }
}

#define ATTENTION_GROUP(WIDTH, BLOCKS)                                                 \
    KERNEL void __launch_bounds__(THREADS, BLOCKS)                                     \
        attention_group_##WIDTH(float* parts, const int* groups, int rows,             \
                                const __grid_constant__ Problem p) {                   \
        attend<WIDTH>(p, groups, parts, rows);                                         \
    }                                                                                  \
    EMU_REGISTER(attention_group_##WIDTH)

ATTENTION_GROUP(32, 4)
ATTENTION_GROUP(64, 3)
ATTENTION_GROUP(80, 3)
ATTENTION_GROUP(128, 2)
