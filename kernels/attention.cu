// Attention of many queries: 64 lines a block, each warp 16 of them through all keys.
//
//   out[i] = sum over j of p[i, j] v[j], p = softmax over the keys that i sees of scale (q[i] . k[j]);  lse = log sum exp
//
// Lines are a sequence's queries times the query heads that share a key/value head, so a key loaded once serves the
// group. Queries are the last positions of their sequence; with causal, position i sees keys 0 to i. A sequence with a
// parent, another one without, has that one's rows as its first keys: completions of one prompt need it but once.
//
// in      p.q bf16 [T, H, D]; p.k, p.v bf16 [T, G, D], or with p.tables i32 [B, width] the pages [N, G, 64, D];
//         p.starts i32 [B + 1]; p.lengths i32 [B] or null; p.parents i32 [B] or null, a sequence's own number if it has
//         none; p.scale times log2(e), above 0
// out     out bf16 [T, H, D]; lse f32 [T, H] or null
// launch  grid (T H / G / 64 + B, G), block (128), shared 256 (2 WIDTH + 16) bytes and 2048 for each 16 columns of queries
//         that are not held in registers (128: 6 of them); attention_WIDTH takes D <= WIDTH, a multiple of 8 if above 32;
//         T H below 2^31
// floor   bytes 4THD + 4TGD a pass over the sequences (keys again for each 64 lines, from L2); flops 4HD times the pairs
//         of query and key that see each other: bound by arithmetic. One causal sequence of 4096, H = 16, G = 2,
//         D = 128 at 790 TFLOP/s: 87 us
// order   per line: tiles of 64 keys in order within splits of 256, splits in order (common/attention.cuh). A score is
//         summed by mma of 16 elements in order; a lane adds its 16 probabilities of a tile in order, after the last of a
//         split the four lanes add up as a butterfly; weighted values are summed by mma of 16 keys in order, with
//         probabilities rounded to bf16
// pair    backward: attention_backward.cu; same bits: attention_split.cu; CPU reference: backend::plain attention; emulated: yes
#include "common/attention.cuh"

using namespace attention;

constexpr int LINES = TILE;

// Of the queries, HELD times 16 columns stay in registers.
template <int WIDTH, int HELD>
__device__ __forceinline__ void attend(const Problem& p, __nv_bfloat16* out, float* lse) {
    DYN_SMEM(memory);
    const int block = int(gridDim.x - 1 - blockIdx.x);  // those with most keys to see first
    const int kv_head = int(blockIdx.y), number = find_sequence(p, block, p.group);
    const Sequence s = sequence_of(p, number);
    const int first = int(block - blocks_before(p, number, p.group)) * LINES, count = s.queries * p.group;
    if (first >= count) return;
    const int seen_by_first = sees(p, s, first), seen_by_last = sees(p, s, min(first + LINES, count) - 1);
    const int tiles = (seen_by_last + TILE - 1) / TILE;
    Ring<WIDTH> ring{p, s, memory, kv_head, 0, tiles};
    ring.start();

    const Lines lines(p, s, kv_head, first + int(threadIdx.x) / 32 * 16);
    const Queries<WIDTH, HELD> q(p, p.q, lines, memory + STAGES * 2 * Ring<WIDTH>::TILE_BYTES);

    Sums total, split;
    float total_o[WIDTH / 8][4] = {}, o[WIDTH / 8][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        const uint32_t place = ring.wait(tile);
        float score[TILE / 8][4], factor[2];
        scores<WIDTH, TILE / 16>(score, q, place, 0);
        uint32_t probability[4][4];
        softmax(probability, score, split, factor, lines, tile * TILE, (tile + 1) * TILE <= seen_by_first, p.scale);
        weigh<WIDTH, WIDTH / 8>(o, probability, factor, place + Ring<WIDTH>::TILE_BYTES, 0);
        if (tile % SPLIT_TILES == SPLIT_TILES - 1 || tile == tiles - 1) take_split(total, total_o, split, o);
    }
    write_lines<WIDTH, WIDTH / 8>(p, out, lse, lines, total, total_o, 0);
}

#define ATTENTION(WIDTH, HELD, BLOCKS)                                                         \
    KERNEL void __launch_bounds__(THREADS, BLOCKS)                                             \
        attention_##WIDTH(__nv_bfloat16* out, float* lse, const __grid_constant__ Problem p) { \
        attend<WIDTH, HELD>(p, out, lse);                                                      \
    }                                                                                          \
    EMU_REGISTER(attention_##WIDTH)

ATTENTION(32, 2, 4)
ATTENTION(64, 4, 3)
ATTENTION(80, 5, 2)
ATTENTION(128, 2, 2)
