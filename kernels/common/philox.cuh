// Philox4x32-10 and Gumbel noise as src/backend/philox.rs defines them: the words bit for bit, their logarithms as
// precise as the device's are.
#pragma once
#include "device.cuh"

// Four random words for a counter under a key.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        if (round > 0) key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
        const unsigned high_0 = __umulhi(0xD2511F53u, counter.x), low_0 = 0xD2511F53u * counter.x;
        const unsigned high_1 = __umulhi(0xCD9E8D57u, counter.z), low_1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high_1 ^ counter.y ^ key.x, low_1, high_0 ^ counter.w ^ key.y, low_0);
    }
    return counter;
}

__device__ __forceinline__ float gumbel_of(unsigned word) {
    const float uniform = fminf(float(word >> 8) + 0.5f, 16777215.0f) / 16777216.0f;
    return -logf(-logf(uniform));
}

// The words of tokens 4 * quad.. at a position of a sequence.
__device__ __forceinline__ uint4 noise_words(uint2 seed, unsigned position, unsigned quad) {
    return philox(make_uint4(quad, position, 0, 0), seed);
}

__device__ __forceinline__ float gumbel(uint2 seed, unsigned position, unsigned token) {
    const uint4 words = noise_words(seed, position, token / 4);
    const unsigned low = token % 2 ? words.y : words.x, high = token % 2 ? words.w : words.z;
    return gumbel_of(token % 4 < 2 ? low : high);
}
