// Draws from kept rows of logits, with a repetition penalty, top-k, top-p and min-p, without sorting the vocabulary.
//
//   z = logit, penalised if the token was seen (z > 0 ? z / penalty : z penalty)
//   token = argmax z / temperature + gumbel(seed, position, token) among the tokens the filters keep
//
// in      logits f32 [slots, pitch], pitch a multiple of 4; draws [B]; rows i32 [slots], which row of draws each is
//         (null: its own); seen i32, all rows' lists behind each other
// out     leaders [B]: of the rows named; the logit is the token's own, not penalised, divided by the temperature
// launch  grid (slots), block (1024), shared 16896 bytes plus V / 8 rounded up to 4 if a row is penalised;
//         V below 2^22; finite logits, others end without harm in a leader that means nothing
// floor   bytes 4V a row, read once from memory and up to 10 times from L2; V = 151936, B = 128 at 4.3 TB/s: 18 us
// order   falling z, rising ids among equals; each filter keeps a beginning of this order. Weights are exp((z - max) /
//         temperature) in units of 2^-40, and sums of integers are the same in any order.
// pair    no backward; CPU reference: backend::draw; emulated: yes
#include "common/draw.cuh"

constexpr int SAMPLE_THREADS = 1024;
constexpr int BINS = 2048;

using Weight = unsigned long long;

// What a block shares.
struct Bench {
    unsigned low[BINS], high[BINS];  // halves of each bin's sum
    Weight warps[32];
    Weight ahead, within;  // of the bin found
    int bin, unused;
};

struct Row {
    const float* logits;
    const unsigned* seen;  // a bit per token, or null
    float penalty;
    int columns;
};

__device__ __forceinline__ float penalised(float z, float penalty) { return z > 0.0f ? z / penalty : z * penalty; }

// Calls visit(token, z) for all tokens, divided among the threads.
template <class Visit>
__device__ __forceinline__ void for_each(const Row& row, const Visit& visit) {
    for (int i = threadIdx.x * 4; i < row.columns; i += SAMPLE_THREADS * 4) {
        const uint4 bits = load_16(row.logits + i);
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w}, seen = row.seen ? row.seen[i / 32] >> i % 32 : 0;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float z = __uint_as_float(words[e]);
            if (i + e < row.columns) visit(i + e, seen >> e & 1 ? penalised(z, row.penalty) : z);
        }
    }
}

// Unsigned integers in the order of floats, and back.
__device__ __forceinline__ unsigned key_of(float z) {
    const unsigned bits = __float_as_uint(z);
    return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}
__device__ __forceinline__ float value_of(unsigned key) {
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xFFFFFFFFu));
}

// A beginning of the falling order: up to this key, and up to this token among its equals.
struct Cut {
    unsigned key;
    int last;
};
__device__ __forceinline__ bool keeps(Cut cut, unsigned key, int token) {
    return key > cut.key || (key == cut.key && token <= cut.last);
}

// In halves, since 64 bits at once would be a loop that waits for its turn.
__device__ __forceinline__ void add_to_bin(Bench& bench, unsigned bin, Weight weight) {
    const unsigned low = unsigned(weight), before = atomicAdd(&bench.low[bin], low);
    const unsigned high = unsigned(weight >> 32) + (before + low < low);
    if (high) atomicAdd(&bench.high[bin], high);
}

// Sorts weights into bins: `fill(add)` calls add(bin, weight). Then finds the bin, from the highest down, in which the
// sum reaches limit(total), which lies in 1..=total.
template <class Fill, class Limit>
__device__ __forceinline__ Weight find_bin(Bench& bench, const Fill& fill, const Limit& limit_of) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = BINS - 1 - int(threadIdx.x) * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) bench.low[first - i] = bench.high[first - i] = 0;
    __syncthreads();
    fill([&](unsigned bin, Weight weight) { add_to_bin(bench, bin, weight); });
    __syncthreads();
    Weight mine[2];
#pragma unroll
    for (int i = 0; i < 2; i++) mine[i] = Weight(bench.high[first - i]) << 32 | bench.low[first - i];
    Weight ahead = mine[0] + mine[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const Weight before = __shfl_up_sync(0xFFFFFFFFu, ahead, step);
        if (lane >= step) ahead += before;
    }
    if (lane == 31) bench.warps[warp] = ahead;
    ahead -= mine[0] + mine[1];
    __syncthreads();
    Weight total = 0;
    for (int w = 0; w < SAMPLE_THREADS / 32; w++) {
        if (w < warp) ahead += bench.warps[w];
        total += bench.warps[w];
    }
    const Weight limit = limit_of(total);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (ahead < limit && limit <= ahead + mine[i]) {
            bench.bin = first - i;
            bench.ahead = ahead;
            bench.within = mine[i];
        }
        ahead += mine[i];
    }
    __syncthreads();
    return limit;
}

// The beginning of `outer` that ends with the token at which the sum of weights reaches the limit.
template <class Weigh, class Limit>
__device__ __forceinline__ Cut cut_at(const Row& row, Bench& bench, Cut outer, const Weigh& weigh, const Limit& limit_of) {
    Weight left = 0;
    unsigned key = 0;
#pragma unroll 1
    for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {
        const int digit = shift ? 11 : 10;  // bits
        const auto fill = [&](const auto& add) {
            for_each(row, [&](int token, float z) {
                const unsigned k = key_of(z);
                if (shift < 21 && k >> (shift + digit) != key) return;
                if (keeps(outer, k, token)) add(k >> shift & ((1u << digit) - 1), weigh(z));
            });
        };
        left = find_bin(bench, fill, [&](Weight total) { return shift == 21 ? limit_of(total) : left; }) - bench.ahead;
        key = key << digit | unsigned(bench.bin);
    }
    // All of one key weigh the same, so many of them are kept:
    const Weight weight = weigh(value_of(key)), count = bench.within / weight, kept = (left + weight - 1) / weight;
    if (kept >= count) return {key, key == outer.key ? outer.last : 0x7FFFFFFF};
    int last = 0;
    left = kept;
#pragma unroll 1
    for (int shift = 11; shift >= 0; shift -= 11) {
        const auto fill = [&](const auto& add) {
            for_each(row, [&](int token, float z) {
                if (key_of(z) != key || !keeps(outer, key, token)) return;
                if (token >> (shift + 11) == last) add(BINS - 1 - (token >> shift & (BINS - 1)), 1);
            });
        };
        left = find_bin(bench, fill, [&](Weight) { return left; }) - bench.ahead;
        last = last << 11 | (BINS - 1 - bench.bin);
    }
    return {key, last};
}

__device__ __forceinline__ float greatest_of(const Row& row, Bench& bench) {
    float greatest = -INFINITY;
    for_each(row, [&](int, float z) { greatest = z > greatest ? z : greatest; });
#pragma unroll
    for (int step = 16; step; step /= 2) greatest = fmaxf(greatest, __shfl_xor_sync(0xFFFFFFFFu, greatest, step));
    float* warps = reinterpret_cast<float*>(bench.warps);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = greatest;
    __syncthreads();
    for (int warp = 0; warp < SAMPLE_THREADS / 32; warp++) greatest = fmaxf(greatest, warps[warp]);
    __syncthreads();
    return greatest;
}

KERNEL void __launch_bounds__(SAMPLE_THREADS)
    sample(Leader* leaders, const float* logits, const Draw* draws, const int* rows, const int* seen, int columns,
           int pitch) {
    DYN_SMEM(memory);
    Bench& bench = *reinterpret_cast<Bench*>(memory);
    unsigned* bits = reinterpret_cast<unsigned*>(memory + sizeof(Bench));
    const int at = rows ? rows[blockIdx.x] : int(blockIdx.x);
    const Draw draw = draws[at];
    Row row = {logits + int64_t(blockIdx.x) * pitch, nullptr, draw.penalty, columns};
    if (draw.first < draw.end) {
        row.seen = bits;
        for (int i = threadIdx.x; i < (columns + 31) / 32; i += SAMPLE_THREADS) bits[i] = 0;
        __syncthreads();
        for (int i = draw.first + int(threadIdx.x); i < draw.end; i += SAMPLE_THREADS) {
            atomicOr(&bits[seen[i] / 32], 1u << seen[i] % 32);
        }
        __syncthreads();
    }
    const float greatest = greatest_of(row, bench);
    const auto share = [&](float z) { return expf((z - greatest) / draw.divisor); };  // of the greatest's probability
    Cut cut = {0, 0x7FFFFFFF};
    if (draw.top_k) {
        const auto limit = [&](Weight total) { return min(Weight(draw.top_k), total); };
        cut = cut_at(row, bench, cut, [](float) { return Weight(1); }, limit);
    }
    if (draw.top_p < 1.0f) {
        // At least 1, so that whatever is there is found.
        const auto weigh = [&](float z) {
            const float p = share(z) * 1099511627776.0f;
            return p > 1.0f ? Weight(p) : Weight(1);
        };
        const auto limit = [&](Weight total) {
            return min(max(Weight(ceil(double(draw.top_p) * double(total))), Weight(1)), total);
        };
        cut = cut_at(row, bench, cut, weigh, limit);
    }
    Leader leader = nobody();
    for_each(row, [&](int token, float z) {
        if (!keeps(cut, key_of(z), token) || (draw.min_p > 0.0f && share(z) < draw.min_p)) return;
        const float noise = draw.greedy ? 0.0f : gumbel(draw.seed, draw.position, token);
        leader = leader_of(leader, {z / draw.divisor + noise, token, 0.0f, 0});
    });
    leader = leader_of_lanes<1, 16>(leader);
    Leader* warps = reinterpret_cast<Leader*>(bench.low);
    if (threadIdx.x % 32 == 0) store_leader(&warps[threadIdx.x / 32], leader);
    __syncthreads();
    if (threadIdx.x >= 32) return;
    leader = leader_of_lanes<1, 16>(load_leader(&warps[threadIdx.x]));
    if (threadIdx.x == 0) {
        // A row of NaN has no leader; its token means nothing, but it is one.
        leader.token = leader.token < columns ? leader.token : 0;
        leader.logit = row.logits[leader.token] / draw.divisor;
        store_leader(&leaders[at], leader);
    }
}
EMU_REGISTER(sample)
