// What a draw is on a device: a row's settings, and who leads in it so far.
#pragma once
#include "philox.cuh"

// Laid out by src/backend/gpu/head.rs.
struct Draw {
    float divisor;  // the temperature, or 1 for a greedy row
    int greedy;
    uint2 seed;
    unsigned position;
    int slot;  // the row of logits kept for `sample`, or -1 where every token takes part with its own logit
    int top_k;  // 0 keeps all
    float top_p, min_p, penalty;
    int first, end;  // of the seen tokens
};

// The largest score wins; among equals a logit that is not finite, then the lowest token. Tokens are below 2^30.
struct Leader {
    float score;
    int token;    // of a logit that is not finite: ~token, and the score is infinite
    float logit;  // divided by the temperature, or the one that is not finite
    int unused;
};

__device__ __forceinline__ Leader nobody() { return {-INFINITY, 0x3FFFFFFF, 0.0f, 0}; }

__device__ __forceinline__ Leader leader_of(Leader one, Leader other) {
    const int place = one.token < 0 ? ~one.token : one.token + 0x40000000;
    const int other_place = other.token < 0 ? ~other.token : other.token + 0x40000000;
    return other.score > one.score || (other.score == one.score && other_place < place) ? other : one;
}

// Among lanes whose numbers differ in the bits LEAST to MOST.
template <int LEAST, int MOST>
__device__ __forceinline__ Leader leader_of_lanes(Leader leader) {
#pragma unroll
    for (int step = LEAST; step <= MOST; step *= 2) {
        const Leader other = {__shfl_xor_sync(0xFFFFFFFFu, leader.score, step), __shfl_xor_sync(0xFFFFFFFFu, leader.token, step),
                              __shfl_xor_sync(0xFFFFFFFFu, leader.logit, step), 0};
        leader = leader_of(leader, other);
    }
    return leader;
}

__device__ __forceinline__ void store_leader(Leader* to, Leader leader) {
    store_16(to, make_uint4(__float_as_uint(leader.score), unsigned(leader.token), __float_as_uint(leader.logit), 0));
}
__device__ __forceinline__ Leader load_leader(const Leader* from) {
    const uint4 bits = load_16(from);
    return {__uint_as_float(bits.x), int(bits.y), __uint_as_float(bits.z), 0};
}
