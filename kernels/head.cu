// The head: log-probs of targets and draws of tokens from hidden states, without a [T, V] matrix.
//
//   z = hidden Wᵀ, x = z / temperature, lse = log sum exp x, logp = x[token] - lse, entropy = lse - sum exp(x - lse) x
//   token = argmax x + gumbel(seed, position, token), of a greedy row argmax x
//
// head_wide, _middle, _narrow: tiles of 128 tokens, each row of which leaves a summary; then head_logprobs or head_drawn
// joins a row's summaries. Rows whose draw has a penalty or filters keep their logits for `sample`, which runs between
// the two and leaves one leader more.
//
// in      hidden bf16 [T, C]; W bf16 [V, C]; targets i32 [T] and the temperature f32, or draws [T]
// work    summaries [tiles, T] of 16 bytes; chosen f32 [T] of targets; leaders [tiles + 1, T] of 16 bytes and
//         logits f32 [slots, pitch] of draws, pitch a multiple of 4
// out     logp, lse, entropy f32 [T], greedy i32 [T]; or token i32 [T], logp f32 [T], and entropy f32 [T] or null: of a
//         row with a logit that is not finite, ~ the first such token, that logit, and any entropy
// launch  tiles: 1-D grid of tiles of rows times tiles of the vocabulary, block and shared bytes: GemmTile's THREADS and
//         SHARED. Joining: grid (T / 2), block (256), shared 512 bytes. Any sizes >= 1, T up to 2^24, V below 2^30
// floor   flops 2TVC, bytes 2VC + 2TC. V = 151936, C = 2048: T = 4096 at 790 TFLOP/s: 3.2 ms, T = 1 at 4.3 TB/s: 145 us
// order   z as linear sums it. A row of a tile: 8 tokens of a thread in order, butterfly over 4 lanes, 4 warps in order;
//         a row: tiles t, t + 128, ... in order, butterfly over 16 lanes, 8 warps in order. Nothing depends on T.
// pair    backward: below; CPU reference: backend::plain logprobs and sample; emulated: yes
#include "common/draw.cuh"
#include "common/gemm.cuh"
#include "common/pieces.cuh"

// What some of a row's x sum up to.
struct Summary {
    float greatest;
    int greedy;      // the lowest token that has it
    float sum;       // of exp(x - greatest)
    float weighted;  // of exp(x - greatest) (x - greatest)
};

__device__ __forceinline__ void store_summary(Summary* to, Summary s) {
    store_16(to, make_uint4(__float_as_uint(s.greatest), unsigned(s.greedy), __float_as_uint(s.sum), __float_as_uint(s.weighted)));
}
__device__ __forceinline__ Summary load_summary(const Summary* from) {
    const uint4 bits = load_16(from);
    return {__uint_as_float(bits.x), int(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w)};
}

__device__ __forceinline__ Summary nothing() { return {-INFINITY, 0x7FFFFFFF, 0.0f, 0.0f}; }

__device__ __forceinline__ void raise(Summary& all, float greatest, int greedy) {
    if (greatest > all.greatest || (greatest == all.greatest && greedy < all.greedy)) {
        all.greatest = greatest;
        all.greedy = greedy;
    }
}

// Adds a part to sums whose greatest is already that of all.
__device__ __forceinline__ void add_part(Summary& all, const Summary& part) {
    const float shift = part.greatest - all.greatest, factor = expf(shift);
    all.sum = __fmaf_rn(part.sum, factor, all.sum);
    all.weighted = __fmaf_rn(__fmaf_rn(part.sum, shift, part.weighted), factor, all.weighted);
}

// Among lanes whose numbers differ in the bits LEAST to MOST.
template <int LEAST, int MOST>
__device__ __forceinline__ void raise_of_lanes(Summary& all) {
#pragma unroll
    for (int step = LEAST; step <= MOST; step *= 2) {
        raise(all, __shfl_xor_sync(0xFFFFFFFFu, all.greatest, step), __shfl_xor_sync(0xFFFFFFFFu, all.greedy, step));
    }
}
template <int LEAST, int MOST>
__device__ __forceinline__ void add_of_lanes(Summary& all) {
#pragma unroll
    for (int step = LEAST; step <= MOST; step *= 2) {
        all.sum = __fadd_rn(all.sum, __shfl_xor_sync(0xFFFFFFFFu, all.sum, step));
        all.weighted = __fadd_rn(all.weighted, __shfl_xor_sync(0xFFFFFFFFu, all.weighted, step));
    }
}

struct HeadTask {
    Summary* summaries;
    float* chosen;
    Leader* leaders;
    float* logits;
    const __nv_bfloat16 *hidden, *weight;
    const int* targets;
    const Draw* draws;
    int rows, inner, columns, pitch;
    float temperature;
};

// The token of a thread's value i in a row: four pairs, 8 apart.
__device__ __forceinline__ int token_at(int first, int i) { return first + i / 2 * 8 + i % 2; }

__device__ __forceinline__ Summary summary_of(const float (&x)[8], int first, int columns) {
    Summary all = nothing();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (token_at(first, i) < columns) raise(all, x[i], token_at(first, i));
    }
    raise_of_lanes<1, 2>(all);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (token_at(first, i) >= columns) continue;
        const float distance = x[i] - all.greatest, p = expf(distance);
        all.sum = __fadd_rn(all.sum, p);
        all.weighted = __fmaf_rn(p, fmaxf(distance, -1e30f), all.weighted);  // 0 where p is 0
    }
    add_of_lanes<1, 2>(all);
    return all;
}

// Whoever leads among a thread's values. With a slot only a logit that is not finite does.
__device__ __forceinline__ Leader leader_of_tokens(const float (&z)[8], const float (&x)[8], int first, int columns,
                                                   const Draw& draw) {
    Leader leader = nobody();
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const int token = token_at(first, i);
        float noise[2] = {};
        if (!draw.greedy && draw.slot < 0) {
            const uint4 words = noise_words(draw.seed, draw.position, token / 4);
            noise[0] = gumbel_of(token % 4 ? words.z : words.x);
            noise[1] = gumbel_of(token % 4 ? words.w : words.y);
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (token + e >= columns) continue;
            const bool finite = fabsf(z[i + e]) < INFINITY;
            if (!finite) leader = leader_of(leader, {INFINITY, ~(token + e), z[i + e], 0});
            if (finite && draw.slot < 0) leader = leader_of(leader, {x[i + e] + noise[e], token + e, x[i + e], 0});
        }
    }
    return leader_of_lanes<1, 2>(leader);
}

// z of a tile, of either task.
template <class Tile, class Task>
__device__ __forceinline__ void logits(typename Tile::Sums& total, unsigned char* memory, const Task& task, int row,
                                       int column) {
    const auto chunks = [&](int c, int) -> GemmChunk {
        const int k = c * GEMM_CHUNK;
        return {{task.hidden + k, task.inner, 0, task.rows},
                {task.weight + k, task.inner, 0, task.columns},
                min(task.inner - k, GEMM_CHUNK)};
    };
    const auto done = [&](int, const typename Tile::Sums& sums) {
#pragma unroll
        for (int i = 0; i < Tile::BLOCKS_M; i++) {
#pragma unroll
            for (int j = 0; j < Tile::BLOCKS_N; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) total[i][j][e] = __fadd_rn(total[i][j][e], sums[i][j][e]);
            }
        }
    };
    gemm<Tile, 1>(memory, row, column, 0, (task.inner + GEMM_CHUNK - 1) / GEMM_CHUNK, chunks, done);
    __syncthreads();
}

template <class Tile>
__device__ __forceinline__ void head_tile(unsigned char* memory, const HeadTask& task) {
    static_assert(Tile::N == 128 && Tile::WARPS_N == 4 && Tile::SHARED >= Tile::M * 128, "the same parts in every tile");
    const int tiles_m = (task.rows + Tile::M - 1) / Tile::M, tile = blockIdx.x / tiles_m;
    const int row = blockIdx.x % tiles_m * Tile::M, column = tile * Tile::N;
    typename Tile::Sums total = {};
    logits<Tile>(total, memory, task, row, column);

    Summary* parts = reinterpret_cast<Summary*>(memory);           // [M, 4], by row and warp
    Leader* leaders = reinterpret_cast<Leader*>(parts + Tile::M * 4);  // [M, 4]
    const int lane = threadIdx.x % 32, first = column + Tile::column() + lane % 4 * 2;
#pragma unroll
    for (int part = 0; part < Tile::BLOCKS_M * 2; part++) {
        const int i = part / 2, half = part % 2, local = Tile::row() + i * 16 + half * 8 + lane / 4, t = row + local;
        const bool there = t < task.rows;
        Draw draw = {task.temperature, 1, {}, 0, -1, 0, 1.0f, 0.0f, 1.0f, 0, 0};
        if (task.draws && there) draw = task.draws[t];
        float z[8], x[8];
#pragma unroll
        for (int at = 0; at < 8; at++) {
            z[at] = total[i][at / 2][half * 2 + at % 2];
            x[at] = z[at] / draw.divisor;
        }
        const Summary all = summary_of(x, first, task.columns);
        const int slot = local * 4 + Tile::column() / Tile::WARP_N;
        if (lane % 4 == 0) store_summary(&parts[slot], all);
        if (task.draws) {
            const Leader leader = leader_of_tokens(z, x, first, task.columns, draw);
            if (lane % 4 == 0) store_leader(&leaders[slot], leader);
        }
        const int target = task.targets && there ? task.targets[t] : -1;
#pragma unroll
        for (int at = 0; at < 8; at++) {
            const int token = token_at(first, at);
            if (token >= task.columns) continue;
            if (token == target) task.chosen[t] = x[at];
            if (draw.slot >= 0) task.logits[int64_t(draw.slot) * task.pitch + token] = z[at];
        }
    }
    __syncthreads();
    const int local = threadIdx.x, t = row + local;
    if (local >= Tile::M || t >= task.rows) return;
    Summary all = nothing();
    Leader leader = nobody();
    const int warps = min((task.columns - column + Tile::WARP_N - 1) / Tile::WARP_N, Tile::WARPS_N);  // with tokens
    for (int warp = 0; warp < warps; warp++) {
        const Summary part = load_summary(&parts[local * 4 + warp]);
        raise(all, part.greatest, part.greedy);
        if (task.draws) leader = leader_of(leader, load_leader(&leaders[local * 4 + warp]));
    }
    for (int warp = 0; warp < warps; warp++) add_part(all, load_summary(&parts[local * 4 + warp]));
    store_summary(&task.summaries[int64_t(tile) * task.rows + t], all);
    if (task.draws) store_leader(&task.leaders[int64_t(tile) * task.rows + t], leader);
}

#define HEAD(NAME, TILE)                                                                                             \
    KERNEL void __launch_bounds__(TILE::THREADS)                                                                     \
        NAME(Summary* summaries, float* chosen, Leader* leaders, float* logits, const __nv_bfloat16* hidden,         \
             const __nv_bfloat16* weight, const int* targets, const Draw* draws, int rows, int inner, int columns,   \
             int pitch, float temperature) {                                                                         \
        DYN_SMEM(memory);                                                                                            \
        head_tile<TILE>(memory, {summaries, chosen, leaders, logits, hidden, weight, targets, draws, rows, inner,    \
                                 columns, pitch, temperature});                                                      \
    }                                                                                                                \
    EMU_REGISTER(NAME)

using Wide = GemmTile<128, 128, 2, 4, 3>;   // 96 KiB
using Middle = GemmTile<64, 128, 2, 4, 4>;  // 96 KiB
using Narrow = GemmTile<16, 128, 1, 4, 4>;  // 72 KiB

HEAD(head_wide, Wide)
HEAD(head_middle, Middle)
HEAD(head_narrow, Narrow)

constexpr int JOIN_ROWS = 2;  // of a block: what a sector of memory holds of one tile
constexpr int JOIN_SLICES = 128;
constexpr int JOIN_WARPS = JOIN_ROWS * JOIN_SLICES / 32;

// All of a row's summaries, for each of its threads. `memory` is 256 bytes.
__device__ __forceinline__ Summary joined(unsigned char* memory, const Summary* summaries, int tiles, int rows) {
    Summary* warps = reinterpret_cast<Summary*>(memory);  // [8, 2]
    const int slice = threadIdx.x / JOIN_ROWS, at = threadIdx.x % JOIN_ROWS, warp = threadIdx.x / 32;
    const int row = blockIdx.x * JOIN_ROWS + at, end = row < rows ? tiles : 0;
    Summary all = nothing();
#pragma unroll 4
    for (int tile = slice; tile < end; tile += JOIN_SLICES) {
        const Summary part = load_summary(&summaries[int64_t(tile) * rows + row]);
        raise(all, part.greatest, part.greedy);
    }
    raise_of_lanes<JOIN_ROWS, 16>(all);
    if (threadIdx.x % 32 < JOIN_ROWS) store_summary(&warps[warp * JOIN_ROWS + at], all);
    __syncthreads();
    for (int w = 0; w < JOIN_WARPS; w++) {
        const Summary part = load_summary(&warps[w * JOIN_ROWS + at]);
        raise(all, part.greatest, part.greedy);
    }
    __syncthreads();
#pragma unroll 4
    for (int tile = slice; tile < end; tile += JOIN_SLICES) add_part(all, load_summary(&summaries[int64_t(tile) * rows + row]));
    add_of_lanes<JOIN_ROWS, 16>(all);
    if (threadIdx.x % 32 < JOIN_ROWS) store_summary(&warps[warp * JOIN_ROWS + at], all);
    __syncthreads();
    all.sum = all.weighted = 0.0f;
    for (int w = 0; w < JOIN_WARPS; w++) {
        const Summary part = load_summary(&warps[w * JOIN_ROWS + at]);
        all.sum = __fadd_rn(all.sum, part.sum);
        all.weighted = __fadd_rn(all.weighted, part.weighted);
    }
    return all;
}

// One definition for what is scored and what is drawn.
__device__ __forceinline__ float logp_of(float x, const Summary& all) {
    return __fadd_rn(__fadd_rn(x, -all.greatest), -logf(all.sum));
}
__device__ __forceinline__ float entropy_of(const Summary& all) { return logf(all.sum) - all.weighted / all.sum; }

KERNEL void __launch_bounds__(JOIN_ROWS* JOIN_SLICES)
    head_logprobs(float* logp, float* lse, float* entropy, int* greedy, const Summary* summaries, const float* chosen,
                  int tiles, int rows) {
    DYN_SMEM(memory);
    const Summary all = joined(memory, summaries, tiles, rows);
    const int row = blockIdx.x * JOIN_ROWS + threadIdx.x;
    if (threadIdx.x >= JOIN_ROWS || row >= rows) return;
    logp[row] = logp_of(chosen[row], all);
    lse[row] = all.greatest + logf(all.sum);
    entropy[row] = entropy_of(all);
    greedy[row] = all.greedy == 0x7FFFFFFF ? 0 : all.greedy;  // of NaN alone, the first
}
EMU_REGISTER(head_logprobs)

KERNEL void __launch_bounds__(JOIN_ROWS* JOIN_SLICES)
    head_drawn(int* token, float* logp, float* entropy, const Summary* summaries, const Leader* leaders,
               const Draw* draws, int tiles, int rows) {
    DYN_SMEM(memory);
    const Summary all = joined(memory, summaries, tiles, rows);
    Leader* warps = reinterpret_cast<Leader*>(memory + 256);  // [8, 2]
    const int at = threadIdx.x % JOIN_ROWS, row = blockIdx.x * JOIN_ROWS + at;
    const int end = row < rows ? tiles + (draws[row].slot >= 0) : 0;
    Leader leader = nobody();
    for (int tile = threadIdx.x / JOIN_ROWS; tile < end; tile += JOIN_SLICES) {
        leader = leader_of(leader, load_leader(&leaders[int64_t(tile) * rows + row]));
    }
    leader = leader_of_lanes<JOIN_ROWS, 16>(leader);
    if (threadIdx.x % 32 < JOIN_ROWS) store_leader(&warps[threadIdx.x / 32 * JOIN_ROWS + at], leader);
    __syncthreads();
    if (threadIdx.x >= JOIN_ROWS || row >= rows) return;
    for (int w = 0; w < JOIN_WARPS; w++) leader = leader_of(leader, load_leader(&warps[w * JOIN_ROWS + at]));
    token[row] = leader.token;
    logp[row] = leader.token < 0 ? leader.logit : logp_of(leader.logit, all);
    if (entropy) entropy[row] = entropy_of(all);
}
EMU_REGISTER(head_drawn)

// Backward of the log-probs, the vocabulary a slab of tokens at a time: logits are made again, and what becomes of a slab
//
//   dz = dlogp / temperature (1 of the target - exp(z / temperature - lse))
//
// goes through linear.cu: hidden's gradient += dz W in f32, and, if it is asked for, W's += dzᵀ hidden. head_rounded ends.
//
// in      as above; W bf16 [columns, C] the slab's, of which `first` is the first token; dlogp, lse f32 [T]; sums f32 [n]
// out     dz bf16 [T, columns]; dhidden bf16 [n]
// launch  head_dlogits as tiles above; head_rounded: grid (n / 2048), block (256)
// floor   of all together flops 4TVC (6TVC with W's), bytes as above. V = 151936, C = 2048, T = 4096 at 790 TFLOP/s:
//         6.5 ms (9.7 ms)
// order   z as above; over the vocabulary slabs in order, each as linear.cu's backward sums
// pair    forward: above; CPU reference: backend::plain logprobs_backward; emulated: yes
struct DlogitsTask {
    __nv_bfloat16* dz;
    const __nv_bfloat16 *hidden, *weight;
    const float *dlogp, *lse;
    const int* targets;
    int rows, inner, columns, first;
    float temperature;
};

template <class Tile>
__device__ __forceinline__ void dlogits_tile(unsigned char* memory, const DlogitsTask& task) {
    const int tiles_m = (task.rows + Tile::M - 1) / Tile::M;
    const int row = blockIdx.x % tiles_m * Tile::M, column = blockIdx.x / tiles_m * Tile::N;
    typename Tile::Sums total = {};
    logits<Tile>(total, memory, task, row, column);
    Tile::leave(memory, total);
    __syncthreads();
    for (int p = threadIdx.x; p < Tile::M * Tile::N / 8; p += Tile::THREADS) {
        const int local = p / (Tile::N / 8), n = p % (Tile::N / 8) * 8, t = row + local;
        if (t >= task.rows || column + n >= task.columns) continue;
        const float by = task.dlogp[t] / task.temperature, lse = task.lse[t];
        const int target = task.targets[t] - task.first - column - n;
        float values[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float z = Tile::four(memory, local, n + e / 4 * 4)[e % 4];
            const float p = expf(__fadd_rn(z / task.temperature, -lse));
            values[e] = __fmul_rn(by, __fadd_rn(e == target ? 1.0f : 0.0f, -p));
        }
        write_piece(task.dz + int64_t(t) * task.columns, pack(values), column + n, task.columns);
    }
}

#define HEAD_DLOGITS(NAME, TILE)                                                                                     \
    KERNEL void __launch_bounds__(TILE::THREADS)                                                                     \
        NAME(__nv_bfloat16* dz, const __nv_bfloat16* hidden, const __nv_bfloat16* weight, const float* dlogp,        \
             const float* lse, const int* targets, int rows, int inner, int columns, int first, float temperature) { \
        DYN_SMEM(memory);                                                                                            \
        dlogits_tile<TILE>(memory, {dz, hidden, weight, dlogp, lse, targets, rows, inner, columns, first,            \
                                    temperature});                                                                   \
    }                                                                                                                \
    EMU_REGISTER(NAME)

HEAD_DLOGITS(head_dlogits_wide, Wide)
HEAD_DLOGITS(head_dlogits_middle, Middle)
HEAD_DLOGITS(head_dlogits_narrow, Narrow)

KERNEL void __launch_bounds__(256) head_rounded(__nv_bfloat16* dhidden, const float* sums, int64_t elements) {
    const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= elements) return;
    float values[8] = {};
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
        if (at + e + 4 <= elements) {
            const uint4 four = load_16(sums + at + e);
            values[e] = __uint_as_float(four.x), values[e + 1] = __uint_as_float(four.y);
            values[e + 2] = __uint_as_float(four.z), values[e + 3] = __uint_as_float(four.w);
            continue;
        }
#pragma unroll
        for (int i = e; i < e + 4; i++) values[i] = at + i < elements ? sums[at + i] : 0.0f;
    }
    if (at + 8 <= elements && (reinterpret_cast<uintptr_t>(dhidden + at) & 15) == 0) {
        return store_16(dhidden + at, pack(values));
    }
#pragma unroll
    for (int e = 0; e < 8; e++) {
        if (at + e < elements) dhidden[at + e] = __float2bfloat16_rn(values[e]);
    }
}
EMU_REGISTER(head_rounded)
