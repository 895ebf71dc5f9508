// Gradients of attention, from what the forward pass gave and read. Probabilities are made again from q, k and lse.
//
//   p = exp(scale q.k - lse),  delta = dout.out,  ds = p (dout.v - delta)
//   dq = scale sum over keys of ds k,   dk = scale sum over lines of ds q,   dv = sum over lines of p dout
//
// attention_delta makes delta. attention_backward_q goes over the lines of queries as attention.cu does, a block 64 of
// them through all keys. attention_backward_k goes over keys, a block 64 of them, each warp 16, through all lines that see
// them: their own sequence's, then those of its children in order. So nothing is added by two blocks; the price is that
// scores are made twice.
//
// in      p as attention.cu, without tables and lengths; dout, out bf16 [T, H, D]; lse, delta f32 [T, H]; scale, without
//         log2(e)
// out     delta f32 [T, H]; dq bf16 [T, H, D]; dk, dv bf16 [T, G, D]
// launch  delta: lanes threads to a line, a power of two of at least D / 8, several lines in a block, grid (lines / lines of
//         a block). q: grid (T H / G / 64 + B, G, Z), block (128), shared 256 (2 WIDTH + 16) and 4096 for each 16 columns
//         that are not held in registers (256: 7 of them). k: grid (T / 64 + B, G, Z), block (128), shared
//         128 (S + 1) (2 WIDTH + 16) + 512 S, S = 2 stages (256: 1). A block writes 128 columns, so Z is 2 for 256, else
//         1. WIDTH as attention.cu; T H below 2^31
// floor   flops 10HD times the pairs of query and key that see each other: bound by arithmetic; bytes 8THD + 8TGD. One causal
//         sequence of 4096, H = 16, D = 128 at 790 TFLOP/s: 218 us; done are 14HD, scores being made twice: 305 us
// order   delta: 8 columns of a lane in order, then a butterfly. A score is summed by mma of 16 elements in order. dq: tiles
//         of 64 keys in order, each by mma of 16 keys in order; dk, dv: sequences in order, tiles of 64 lines in order,
//         each by mma of 16 lines in order. p and ds are rounded to bf16 for these
// pair    forward: attention.cu; CPU reference: backend::plain attention_backward; emulated: yes
#include "common/attention.cuh"
#include "common/pieces.cuh"

using namespace attention;

constexpr float LOG2_E = 1.44269504f;

KERNEL void __launch_bounds__(256)
    attention_delta(float* delta, const __nv_bfloat16* dout, const __nv_bfloat16* out, int64_t lines, int columns,
                    int lanes) {
    const int64_t line = int64_t(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
    const int column = threadIdx.x % lanes * 8;
    float a[8], b[8], sum = 0.0f;
    if (line < lines && column < columns) {
        unpack(a, read_piece(dout + line * columns, column, columns));
        unpack(b, read_piece(out + line * columns, column, columns));
#pragma unroll
        for (int e = 0; e < 8; e++) sum = __fmaf_rn(a[e], b[e], sum);
    }
    for (int step = lanes / 2; step; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    if (line < lines && column == 0) delta[line] = sum;
}
EMU_REGISTER(attention_delta)

// o += a v for 32 rows of a tile at `rows`, COUNT times 8 columns from `first` on.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void add_product(float (&o)[COUNT][4], const uint32_t (&a)[2][4], uint32_t rows, int first) {
    const uint32_t row = rows + threadIdx.x % 32 * PITCH<WIDTH> + first * 2;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
        if (first + n * 8 >= WIDTH) break;
        uint32_t v[4];
        ldmatrix_x4_trans(v, row + n * 16);
        mma_m16n8k16_bf16(o[n], a[0], v[0], v[1]);
        mma_m16n8k16_bf16(o[n], a[1], v[2], v[3]);
    }
}

// Columns of a block's results.
template <int WIDTH>
constexpr int COLUMNS = WIDTH < 128 ? WIDTH : 128;

template <int WIDTH, int HELD>
__device__ __forceinline__ void backward_q(const Problem& p, __nv_bfloat16* dq, const __nv_bfloat16* dout,
                                           const float* lse, const float* delta, float scale) {
    DYN_SMEM(memory);
    const int block = int(gridDim.x - 1 - blockIdx.x);  // those with most keys to see first
    const int kv_head = int(blockIdx.y), number = find_sequence(p, block, p.group);
    const Sequence s = sequence_of(p, number);
    const int first = int(block - blocks_before(p, number, p.group)) * TILE, count = s.queries * p.group;
    if (first >= count) return;
    const int seen_by_first = sees(p, s, first), seen_by_last = sees(p, s, min(first + TILE, count) - 1);
    const int tiles = (seen_by_last + TILE - 1) / TILE;
    Ring<WIDTH> ring{p, s, memory, kv_head, 0, tiles};
    ring.start();

    const Lines lines(p, s, kv_head, first + int(threadIdx.x) / 32 * 16);
    unsigned char* parked = memory + STAGES * 2 * Ring<WIDTH>::TILE_BYTES;
    const Queries<WIDTH, HELD> q(p, p.q, lines, parked);
    const Queries<WIDTH, HELD> g(p, dout, lines, parked + (WIDTH / 16 - HELD) * THREADS * 16);
    const float base[2] = {__fmul_rn(lse[lines.at(0)], LOG2_E), __fmul_rn(lse[lines.at(1)], LOG2_E)};
    const float rest[2] = {delta[lines.at(0)], delta[lines.at(1)]};

    constexpr int COUNT = COLUMNS<WIDTH> / 8;
    const int column = int(blockIdx.z) * COLUMNS<WIDTH>, t = threadIdx.x % 4 * 2;
    float sums[COUNT][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        const uint32_t place = ring.wait(tile);
#pragma unroll 1
        for (int half = 0; half < TILE; half += 32) {
            float score[4][4], slope[4][4];
            scores<WIDTH, 2>(score, q, place, half);
            scores<WIDTH, 2>(slope, g, place + Ring<WIDTH>::TILE_BYTES, half);
            const int key = tile * TILE + half + t;
            const bool all_seen = (tile + 1) * TILE <= seen_by_first;
            const int visible[2] = {all_seen ? 0x7FFFFFFF : lines.visible(0), all_seen ? 0x7FFFFFFF : lines.visible(1)};
            uint32_t ds[2][4];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int j = i / 2, r = i % 2;
                float pair[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float power = exp2_approx(__fmaf_rn(score[j][r * 2 + e], p.scale, -base[r]));
                    const float by = __fadd_rn(slope[j][r * 2 + e], -rest[r]);
                    pair[e] = key + j * 8 + e < visible[r] ? __fmul_rn(power, by) : 0.0f;
                }
                ds[j / 2][j % 2 * 2 + r] = pack_bf16(pair[0], pair[1]);
            }
            add_product<WIDTH, COUNT>(sums, ds, place + half * PITCH<WIDTH>, column);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (!lines.exists(r)) continue;
        __nv_bfloat16* row = dq + int64_t(lines.at(r)) * p.head_dim;
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            write_pair<WIDTH>(row, column + n * 8 + t, p.head_dim, __fmul_rn(sums[n][r * 2], scale),
                              __fmul_rn(sums[n][r * 2 + 1], scale));
        }
    }
}

// Tiles of the lines that see a block's keys, one after another.
struct Walk {
    const Problem& p;
    const int owner;  // the keys' sequence
    int number, first, line, count;

    // The owner's lines from `line` on.
    __device__ __forceinline__ Walk(const Problem& p, int owner, int line) : p(p), owner(owner) { enter(owner, line); }

    __device__ __forceinline__ void enter(int sequence, int from) {
        number = sequence;
        first = p.starts[sequence];
        line = from;
        count = (p.starts[sequence + 1] - first) * p.group;
    }

    __device__ __forceinline__ bool there() const { return number < p.sequences; }
    __device__ __forceinline__ bool own() const { return number == owner; }

    // On to the next tile, or the next child that has one; all lanes of a warp look.
    __device__ __forceinline__ void advance() {
        line += TILE;
        while (line >= count) {
            int next = p.sequences;
            if (p.parents && p.parents[owner] == owner) {
                for (int from = number + 1; from < p.sequences && next == p.sequences; from += 32) {
                    const int mine = from + int(threadIdx.x) % 32;
                    const bool child = mine < p.sequences && p.parents[mine] == owner;
                    const unsigned found = __ballot_sync(0xFFFFFFFFu, child);
                    if (found) next = from + __ffs(int(found)) - 1;
                }
            }
            if (next == p.sequences) {
                number = next;
                return;
            }
            enter(next, 0);
        }
    }
};

// q and dout of 64 lines, their log-sums and deltas: on their way to a stage. What does not exist is zero and adds nothing.
template <int WIDTH>
struct Stage {
    static constexpr int TILE_BYTES = TILE * PITCH<WIDTH>, BYTES = 2 * TILE_BYTES + 2 * TILE * 4;
    unsigned char* memory;

    __device__ __forceinline__ float* numbers() const { return reinterpret_cast<float*>(memory + 2 * TILE_BYTES); }

    __device__ __forceinline__ void fetch(const Problem& p, const Walk& walk, int kv_head, const __nv_bfloat16* dout,
                                          const float* lse, const float* delta) const {
        const auto place = [&](int line) {
            return int64_t((walk.first + line / p.group) * p.kv_heads + kv_head) * p.group + line % p.group;
        };
        const int mine = walk.line + int(threadIdx.x) % TILE;
        const float* from = int(threadIdx.x) < TILE ? lse : delta;
        const float number = mine < walk.count ? from[place(mine)] : 0.0f;
        const int first = int(threadIdx.x) / 8, piece = int(threadIdx.x) % 8 * 8;
        unsigned char* to = memory + first * PITCH<WIDTH> + piece * 2;
#pragma unroll
        for (int row = first; row < first + TILE; row += THREADS / 8, to += THREADS / 8 * PITCH<WIDTH>) {
            const bool is = walk.line + row < walk.count;
            const int64_t at = place(is ? walk.line + row : 0) * p.head_dim + piece;
            fetch_row<WIDTH>(to, p.q + at, piece, p.head_dim, is);
            fetch_row<WIDTH>(to + TILE_BYTES, dout + at, piece, p.head_dim, is);
        }
        numbers()[threadIdx.x] = threadIdx.x < TILE ? __fmul_rn(number, LOG2_E) : number;
        cp_async_commit();
    }
};

// Scores of a warp's 16 keys against 32 lines, the keys at `keys`, the lines at `rows`.
template <int WIDTH>
__device__ __forceinline__ void key_scores(float (&s)[4][4], uint32_t keys, uint32_t rows) {
    const int lane = threadIdx.x % 32;
    const uint32_t key = keys + lane % 16 * PITCH<WIDTH> + lane / 16 * 16;
    const uint32_t row = rows + (lane / 16 * 8 + lane % 8) * PITCH<WIDTH> + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < 16; i++) s[i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) {
        uint32_t a[4];
        ldmatrix_x4(a, key + step * 32);
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            uint32_t b[4];
            ldmatrix_x4(b, row + pair * 16 * PITCH<WIDTH> + step * 32);
            mma_m16n8k16_bf16(s[pair * 2], a, b[0], b[1]);
            mma_m16n8k16_bf16(s[pair * 2 + 1], a, b[2], b[3]);
        }
    }
}

template <int WIDTH, int BUFFERS>
__device__ __forceinline__ void backward_k(const Problem& p, __nv_bfloat16* dk, __nv_bfloat16* dv,
                                           const __nv_bfloat16* dout, const float* lse, const float* delta, float scale) {
    DYN_SMEM(memory);
    constexpr int TILE_BYTES = TILE * PITCH<WIDTH>, COUNT = COLUMNS<WIDTH> / 8;
    const int kv_head = int(blockIdx.y), owner = find_sequence(p, int(blockIdx.x), 1);
    const int first = p.starts[owner], rows = p.starts[owner + 1] - first;
    const int key = int(blockIdx.x - blocks_before(p, owner, 1)) * TILE;  // the first of this block, among its own rows
    if (key >= rows) return;

    int64_t at = (int64_t(first + key + int(threadIdx.x) / 8) * p.kv_heads + kv_head) * p.head_dim + threadIdx.x % 8 * 8;
    unsigned char* to = memory + threadIdx.x / 8 * PITCH<WIDTH> + threadIdx.x % 8 * 16;
#pragma unroll
    for (int row = int(threadIdx.x) / 8; row < TILE; row += THREADS / 8) {
        fetch_row<WIDTH>(to, p.k + at, threadIdx.x % 8 * 8, p.head_dim, key + row < rows);
        fetch_row<WIDTH>(to + TILE_BYTES, p.v + at, threadIdx.x % 8 * 8, p.head_dim, key + row < rows);
        at += THREADS / 8 * p.kv_heads * p.head_dim;
        to += THREADS / 8 * PITCH<WIDTH>;
    }
    const auto stage = [&](int number) {
        return Stage<WIDTH>{memory + 2 * TILE_BYTES + number * Stage<WIDTH>::BYTES};
    };
    Walk walk(p, owner, p.causal ? key * p.group : 0);
    stage(0).fetch(p, walk, kv_head, dout, lse, delta);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4 * 2;
    const int column = int(blockIdx.z) * COLUMNS<WIDTH>;
    const uint32_t keys = smem_u32(memory) + warp * 16 * PITCH<WIDTH>, values = keys + TILE_BYTES;
    const int mine = key + warp * 16 + lane / 4;  // and the eighth after it
    float sum_k[COUNT][4] = {}, sum_v[COUNT][4] = {};
    for (int buffer = 0; walk.there(); buffer = (buffer + 1) % BUFFERS) {
        const Stage<WIDTH> now = stage(buffer);
        const int line = walk.line;
        // A row sees what comes before it; a child's sees all of its parent's.
        const bool all_seen = !p.causal || !walk.own() || line >= (key + TILE - 1) * p.group;
        walk.advance();
        if (BUFFERS > 1 && walk.there()) {
            stage((buffer + 1) % BUFFERS).fetch(p, walk, kv_head, dout, lse, delta);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        const uint32_t q = smem_u32(now.memory), g = q + TILE_BYTES;
#pragma unroll 1
        for (int half = 0; half < TILE; half += 32) {
            float score[4][4], slope[4][4];
            uint32_t a[2][4];
            const float* base = now.numbers() + half + t;
            key_scores<WIDTH>(score, keys, q + half * PITCH<WIDTH>);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int j = i / 2, r = i % 2, seen_from = all_seen ? 0 : (mine + r * 8) * p.group - line - half - j * 8 - t;
                const float2 of = *reinterpret_cast<const float2*>(base + j * 8);
                const float left = exp2_approx(__fmaf_rn(score[j][r * 2], p.scale, -of.x));
                const float right = exp2_approx(__fmaf_rn(score[j][r * 2 + 1], p.scale, -of.y));
                score[j][r * 2] = seen_from <= 0 ? left : 0.0f;
                score[j][r * 2 + 1] = seen_from <= 1 ? right : 0.0f;
                a[j / 2][j % 2 * 2 + r] = pack_bf16(score[j][r * 2], score[j][r * 2 + 1]);
            }
            add_product<WIDTH, COUNT>(sum_v, a, g + half * PITCH<WIDTH>, column);
            key_scores<WIDTH>(slope, values, g + half * PITCH<WIDTH>);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int j = i / 2, r = i % 2;
                const float2 of = *reinterpret_cast<const float2*>(base + TILE + j * 8);
                a[j / 2][j % 2 * 2 + r] = pack_bf16(__fmul_rn(score[j][r * 2], __fadd_rn(slope[j][r * 2], -of.x)),
                                                    __fmul_rn(score[j][r * 2 + 1], __fadd_rn(slope[j][r * 2 + 1], -of.y)));
            }
            add_product<WIDTH, COUNT>(sum_k, a, q + half * PITCH<WIDTH>, column);
        }
        __syncthreads();
        if (BUFFERS == 1 && walk.there()) now.fetch(p, walk, kv_head, dout, lse, delta);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        // Worked out anew rather than kept in registers meanwhile.
        const int64_t key_row = p.starts[anew(owner)] + mine + r * 8;
        if (key_row >= p.starts[owner + 1]) continue;
        const int64_t row = (key_row * p.kv_heads + kv_head) * p.head_dim;
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            const int c = column + n * 8 + t;
            write_pair<WIDTH>(dk + row, c, p.head_dim, __fmul_rn(sum_k[n][r * 2], scale),
                              __fmul_rn(sum_k[n][r * 2 + 1], scale));
            write_pair<WIDTH>(dv + row, c, p.head_dim, sum_v[n][r * 2], sum_v[n][r * 2 + 1]);
        }
    }
}

#define ATTENTION_BACKWARD(WIDTH, HELD, BUFFERS, BLOCKS)                                                                  \
    KERNEL void __launch_bounds__(THREADS, BLOCKS)                                                                        \
        attention_backward_q_##WIDTH(__nv_bfloat16* dq, const __nv_bfloat16* dout, const float* lse, const float* delta,  \
                                     float scale, const __grid_constant__ Problem p) {                                    \
        backward_q<WIDTH, HELD>(p, dq, dout, lse, delta, scale);                                                          \
    }                                                                                                                     \
    EMU_REGISTER(attention_backward_q_##WIDTH)                                                                            \
    KERNEL void __launch_bounds__(THREADS, BLOCKS)                                                                        \
        attention_backward_k_##WIDTH(__nv_bfloat16* dk, __nv_bfloat16* dv, const __nv_bfloat16* dout, const float* lse,   \
                                     const float* delta, float scale, const __grid_constant__ Problem p) {                \
        backward_k<WIDTH, BUFFERS>(p, dk, dv, dout, lse, delta, scale);                                                   \
    }                                                                                                                     \
    EMU_REGISTER(attention_backward_k_##WIDTH)

ATTENTION_BACKWARD(32, 2, 2, 3)
ATTENTION_BACKWARD(64, 4, 2, 2)
ATTENTION_BACKWARD(80, 5, 2, 2)
ATTENTION_BACKWARD(128, 8, 2, 2)
ATTENTION_BACKWARD(256, 9, 1, 1)
