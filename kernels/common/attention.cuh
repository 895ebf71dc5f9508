// What all attention kernels do with a tile of 64 keys, so that each of them gives the same bits.
//
// A *line* is one query of one query head. Keys come in tiles of 64 and splits of 4 tiles, both counted from the
// sequence's first key. Within a split a line starts from nothing and takes tiles in order: scores, then softmax (which
// forgets by a factor what a lower maximum had weighed), then weigh. Splits are merged in order by `merge`.
#pragma once
#include "warp.cuh"

namespace attention {

constexpr int TILE = 64;        // keys
constexpr int SPLIT_TILES = 4;  // backend::SPLIT / TILE
constexpr int THREADS = 128;
constexpr int STAGES = 2;

struct Problem {
    const __nv_bfloat16* q;  // [T, H, D]
    const __nv_bfloat16* k;  // [T, G, D], with tables [N, G, 64, D]
    const __nv_bfloat16* v;
    const int* starts;   // [B + 1]
    const int* lengths;  // [B]; null: the queries are the keys
    const int* tables;   // [B, width]; null: keys are packed like queries
    const int* shared;   // [B]: leading keys that attention_group sees to; null: none
    const int* parents;  // [B], of packed keys; null: none has a parent
    int width, sequences, kv_heads, group, head_dim, causal;
    float scale;  // times log2(e)
};

struct Sequence {
    int first;  // packed row of its first query
    int queries, length;
    int keys;  // where its pages begin in the tables; of packed keys the row of the first
    int stop;  // of packed keys the row behind its parent's last, from which they go on at `first`
};

__device__ __forceinline__ Sequence sequence_of(const Problem& p, int number) {
    const int first = p.starts[number], queries = p.starts[number + 1] - first;
    if (p.tables) return {first, queries, p.lengths[number], number * p.width, 0};
    const int parent = p.parents ? p.parents[number] : number;
    if (parent == number) return {first, queries, queries, first, first};
    const int before = p.starts[parent], stop = p.starts[parent + 1];
    return {first, queries, stop - before + queries, before, stop};
}

// Blocks of 64 lines, so many to a packed row: numbers below this belong to sequences before `number`, however ragged
// they are.
__device__ __forceinline__ int64_t blocks_before(const Problem& p, int number, int lines) {
    return int64_t(p.starts[number]) * lines / TILE + number;
}

// The last sequence that begins at or before a block; all lanes of a warp look.
__device__ __forceinline__ int find_sequence(const Problem& p, int block, int lines) {
    int low = 0;
    for (int count = p.sequences; count > 1;) {
        const int step = (count + 31) / 32, mine = int(threadIdx.x % 32) * step;
        const bool before = mine < count && blocks_before(p, low + mine, lines) <= block;
        const int passed = (__popc(__ballot_sync(0xFFFFFFFFu, before)) - 1) * step;
        low += passed;
        count = min(step, count - passed);
    }
    return low;
}

// Keys that a line sees.
__device__ __forceinline__ int sees(const Problem& p, const Sequence& s, int line) {
    return p.causal ? s.length - s.queries + line / p.group + 1 : s.length;
}

// Where a line's query is in [T, H].
__device__ __forceinline__ int place_of(const Problem& p, const Sequence& s, int kv_head, int line) {
    return ((s.first + line / p.group) * p.kv_heads + kv_head) * p.group + line % p.group;
}

// The two lines of a lane: `number` and the eighth after it. Numbers past the last repeat the last.
struct Lines {
    const Problem& p;
    const Sequence& s;
    int kv_head, number, count;

    __device__ __forceinline__ Lines(const Problem& p, const Sequence& s, int kv_head, int first)
        : p(p), s(s), kv_head(kv_head), number(first + int(threadIdx.x) % 32 / 4), count(s.queries * p.group) {}

    __device__ __forceinline__ bool exists(int r) const { return number + r * 8 < count; }
    // Both are worked out anew at each use, which is rare, rather than kept in registers meanwhile.
    __device__ __forceinline__ int at(int r) const {
        return place_of(p, s, kv_head, min(anew(number) + r * 8, count - 1));
    }
    __device__ __forceinline__ int visible(int r) const { return sees(p, s, min(anew(number) + r * 8, count - 1)); }
};

// D may be any number up to 32, and a multiple of 8 above: the widest kernels assume aligned rows.
template <int WIDTH>
__device__ __forceinline__ bool aligned(int columns, int unit) {
    return WIDTH > 32 || columns % unit == 0;
}

// Two neighbours of a row, zero past its end.
template <int WIDTH>
__device__ __forceinline__ uint32_t read_pair(const __nv_bfloat16* row, int column, int columns) {
    if (aligned<WIDTH>(columns, 2)) return column < columns ? *reinterpret_cast<const uint32_t*>(row + column) : 0;
    const float low = column < columns ? __bfloat162float(row[column]) : 0.0f;
    const float high = column + 1 < columns ? __bfloat162float(row[column + 1]) : 0.0f;
    return pack_bf16(low, high);
}

template <int WIDTH>
__device__ __forceinline__ void write_pair(__nv_bfloat16* row, int column, int columns, float low, float high) {
    if (aligned<WIDTH>(columns, 2)) {
        if (column < columns) *reinterpret_cast<uint32_t*>(row + column) = pack_bf16(low, high);
    } else {
        if (column < columns) row[column] = __float2bfloat16_rn(low);
        if (column + 1 < columns) row[column + 1] = __float2bfloat16_rn(high);
    }
}

// This lane's part of its lines of queries, as A of the product: HELD steps of 16 columns in registers, the others parked
// in shared memory, 16 bytes a thread and step.
template <int WIDTH, int HELD = WIDTH / 16>
struct Queries {
    uint32_t held[HELD][4];
    unsigned char* parked;

    // Of `from`, which lies as q does.
    __device__ __forceinline__ Queries(const Problem& p, const __nv_bfloat16* from, const Lines& lines, unsigned char* memory)
        : parked(memory + threadIdx.x * 16) {
        const int t = threadIdx.x % 4 * 2;
        const __nv_bfloat16* row[2] = {from + int64_t(lines.at(0)) * p.head_dim, from + int64_t(lines.at(1)) * p.head_dim};
#pragma unroll
        for (int step = 0; step < WIDTH / 16; step++) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = read_pair<WIDTH>(row[i % 2], step * 16 + i / 2 * 8 + t, p.head_dim);
            if (step < HELD) {
#pragma unroll
                for (int i = 0; i < 4; i++) held[step % HELD][i] = a[i];
            } else {
                store_16(parked + (step - HELD) * THREADS * 16, make_uint4(a[0], a[1], a[2], a[3]));
            }
        }
    }

    __device__ __forceinline__ void get(uint32_t (&a)[4], int step) const {
        if (step < HELD) {
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = held[step % HELD][i];
        } else {
            const uint4 piece = load_16(parked + (step - HELD) * THREADS * 16);
            a[0] = piece.x, a[1] = piece.y, a[2] = piece.z, a[3] = piece.w;
        }
    }
};

// A row of a tile in shared memory is an odd number of 16-byte pieces, so eight rows of a matrix touch all banks once.
template <int WIDTH>
constexpr int PITCH = WIDTH * 2 + 16;

// A thread's part of a row on its way to shared memory, from its column `piece` on; zero past the last one, or if there is
// no such row. Eight threads take 128 bytes of a row.
template <int WIDTH>
__device__ __forceinline__ void fetch_row(unsigned char* to, const __nv_bfloat16* from, int piece, int columns, bool is) {
#pragma unroll
    for (int part = 0; part < WIDTH; part += 64) {
        if (part + piece >= WIDTH) continue;
        const int left = is ? columns - piece - part : 0;
        if (aligned<WIDTH>(columns, 8)) {
            cp_async_16(smem_u32(to + part * 2), from + part, left > 0 ? 16 : 0);
        } else {  // such rows are not aligned
            uint32_t pairs[4];
#pragma unroll
            for (int i = 0; i < 4; i++) pairs[i] = left > 0 ? read_pair<WIDTH>(from + part, i * 2, left) : 0;
            store_16(to + part * 2, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
        }
    }
}

// The tiles of one sequence's keys and values for one head, in turn through STAGES places in shared memory.
template <int WIDTH>
struct Ring {
    static constexpr int TILE_BYTES = TILE * PITCH<WIDTH>;

    const Problem& p;
    const Sequence& s;
    unsigned char* memory;
    int kv_head, begin, end;
    int ahead = 0;  // page or row of the next tile to fetch, looked up a tile early, since page numbers take their time

    __device__ __forceinline__ void fetch(int tile) {
        if (tile < end) {
            const bool parental = !p.tables && ahead < s.first;
            const int turn = parental ? s.stop - ahead : TILE, step = p.tables ? 1 : p.kv_heads;
            const int64_t base = p.tables ? (int64_t(ahead) * p.kv_heads + kv_head) * TILE
                                          : int64_t(ahead) * p.kv_heads + kv_head;
            const int first = int(threadIdx.x) / 8, piece = int(threadIdx.x) % 8 * 8;
            unsigned char* to = memory + tile % STAGES * 2 * TILE_BYTES + first * PITCH<WIDTH> + piece * 2;
#pragma unroll
            for (int row = first; row < first + TILE; row += THREADS / 8, to += THREADS / 8 * PITCH<WIDTH>) {
                const int from = row < turn ? row : row + s.first - s.stop;
                const int64_t at = (base + int64_t(from) * step) * p.head_dim + piece;
                fetch_row<WIDTH>(to, p.k + at, piece, p.head_dim, tile * TILE + row < s.length);
                fetch_row<WIDTH>(to + TILE_BYTES, p.v + at, piece, p.head_dim, tile * TILE + row < s.length);
            }
            if (!p.tables) {
                ahead += parental && turn <= TILE ? TILE + s.first - s.stop : TILE;
            } else if (tile + 1 < end) {
                ahead = p.tables[s.keys + tile + 1];
            }
        }
        cp_async_commit();
    }

    // Sends for the first tiles; nobody may still be reading others.
    __device__ __forceinline__ void start() {
        ahead = p.tables ? p.tables[s.keys + begin] : s.keys;  // of which `begin` is 0
#pragma unroll 1
        for (int stage = 0; stage < STAGES; stage++) fetch(begin + stage);
    }

    // Waits for a tile and says where it is; the tile before it gives its place to one yet to come.
    __device__ __forceinline__ uint32_t wait(int tile) {
        if (tile == begin) {
            cp_async_wait<STAGES - 1>();
            __syncthreads();
        } else {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            fetch(tile + STAGES - 1);
        }
        return smem_u32(memory) + tile % STAGES * 2 * TILE_BYTES;
    }
};

// s = q k of 16 PAIRS keys from `first` on, of a tile at `keys`.
template <int WIDTH, int PAIRS, int HELD>
__device__ __forceinline__ void scores(float (&s)[PAIRS * 2][4], const Queries<WIDTH, HELD>& q, uint32_t keys,
                                       int first) {
    const int lane = threadIdx.x % 32;
    const uint32_t row = keys + (first + lane / 16 * 8 + lane % 8) * PITCH<WIDTH> + lane / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < PAIRS * 2; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) {
        uint32_t a[4];
        q.get(a, step);
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            uint32_t k[4];
            ldmatrix_x4(k, row + pair * 16 * PITCH<WIDTH> + step * 32);
            mma_m16n8k16_bf16(s[pair * 2], a, k[0], k[1]);
            mma_m16n8k16_bf16(s[pair * 2 + 1], a, k[2], k[3]);
        }
    }
}

// What a lane knows of its two lines: the greatest score, times scale, and this lane's part of the sum.
struct Sums {
    float greatest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

    // Over the four lanes that share the lines.
    __device__ __forceinline__ void gather() {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 1);
            sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 2);
        }
    }
};

// Takes the scores of 64 more keys, from position `first` on; leaves their probabilities as A of the next product, and
// the factor for what was weighed before.
__device__ __forceinline__ void softmax(uint32_t (&p)[4][4], float (&s)[8][4], Sums& sums, float (&factor)[2],
                                        const Lines& lines, int first, bool all_seen, float scale) {
    if (!all_seen) {
        const int t = threadIdx.x % 4 * 2, visible[2] = {lines.visible(0), lines.visible(1)};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            if (first + i / 4 * 8 + t + i % 2 >= visible[i % 4 / 2]) s[i / 4][i % 4] = -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = s[0][r * 2];
#pragma unroll
        for (int i = 1; i < 16; i++) top = fmaxf(top, s[i / 2][r * 2 + i % 2]);
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
        const float greatest = fmaxf(sums.greatest[r], __fmul_rn(top, scale));
        const float base = greatest == -INFINITY ? 0.0f : greatest;  // a line that sees nothing yet
        factor[r] = exp2_approx(sums.greatest[r] - base);
        float sum = __fmul_rn(sums.sum[r], factor[r]);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float left = exp2_approx(__fmaf_rn(s[j][r * 2], scale, -base));
            const float right = exp2_approx(__fmaf_rn(s[j][r * 2 + 1], scale, -base));
            sum = (sum + left) + right;
            p[j / 2][j % 2 * 2 + r] = pack_bf16(left, right);
        }
        sums.greatest[r] = greatest;
        sums.sum[r] = sum;
    }
}

// o = o * factor + p v, for COUNT times 8 columns from `first` on, of a tile at `values`.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void weigh(float (&o)[COUNT][4], uint32_t (&p)[4][4], const float (&factor)[2],
                                      uint32_t values, int first) {
    uint32_t row = values + threadIdx.x % 32 * PITCH<WIDTH> + first * 2;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
        if (first + n * 8 >= WIDTH) break;
#pragma unroll
        for (int e = 0; e < 4; e++) o[n][e] *= factor[e / 2];
    }
#pragma unroll 1  // unrolled, ptxas loads so far ahead that it runs out of registers
    for (int half = 0; half < 2; half++, row += 32 * PITCH<WIDTH>) {
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            if (first + n * 8 >= WIDTH) break;
            uint32_t v[4];
            ldmatrix_x4_trans(v, row + n * 16);
            mma_m16n8k16_bf16(o[n], p[0], v[0], v[1]);
            mma_m16n8k16_bf16(o[n], p[1], v[2], v[3]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) p[i / 4][i % 4] = p[2 + i / 4][i % 4];
    }
}

// Totals of a line take the next split's greatest score and sum; see `merged` for the values.
__device__ __forceinline__ void merge(float& total_greatest, float& total_sum, float greatest, float sum, float& keep,
                                      float& add) {
    const float top = fmaxf(total_greatest, greatest), base = top == -INFINITY ? 0.0f : top;
    keep = exp2_approx(total_greatest - base);
    add = exp2_approx(greatest - base);
    total_greatest = top;
    total_sum = __fmaf_rn(total_sum, keep, __fmul_rn(sum, add));
}

__device__ __forceinline__ float merged(float total, float value, float keep, float add) {
    return __fmaf_rn(total, keep, __fmul_rn(value, add));
}

// The totals of a lane's lines take a split, which then begins anew.
template <int COUNT>
__device__ __forceinline__ void take_split(Sums& total, float (&total_o)[COUNT][4], Sums& split, float (&o)[COUNT][4]) {
    split.gather();
    float keep[2], add[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        merge(total.greatest[r], total.sum[r], split.greatest[r], split.sum[r], keep[r], add[r]);
    }
#pragma unroll
    for (int i = 0; i < COUNT * 4; i++) {
        float& value = total_o[i / 4][i % 4];
        value = merged(value, o[i / 4][i % 4], keep[i % 4 / 2], add[i % 4 / 2]);
        o[i / 4][i % 4] = 0.0f;
    }
    split = Sums();
}

// log(sum of exp(score)), in nats.
__device__ __forceinline__ float log_sum(float greatest, float sum) {
    return __fmul_rn(__fadd_rn(greatest, log2f(sum)), 0.693147181f);
}

// Ends two lines: COUNT times 8 columns from `first` on; the warp that has the first column writes the log-sum.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void write_lines(const Problem& p, __nv_bfloat16* out, float* lse, const Lines& lines,
                                            const Sums& total, const float (&o)[COUNT][4], int first) {
    const int t = threadIdx.x % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (!lines.exists(r)) continue;
        const int at = lines.at(r);
        const float inverse = __fdiv_rn(1.0f, total.sum[r]);
        __nv_bfloat16* row = out + int64_t(at) * p.head_dim;
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            if (first + n * 8 >= WIDTH) break;
            write_pair<WIDTH>(row, first + n * 8 + t, p.head_dim, __fmul_rn(o[n][r * 2], inverse),
                       __fmul_rn(o[n][r * 2 + 1], inverse));
        }
        if (lse && first == 0 && t == 0) lse[at] = log_sum(total.greatest[r], total.sum[r]);
    }
}

}  // namespace attention
