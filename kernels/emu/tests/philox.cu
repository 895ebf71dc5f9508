// The words and the noise of tokens first, first + 1, ..., to be held against src/backend/philox.rs.
#include "../../common/philox.cuh"

KERNEL void noise(unsigned* words, float* gumbels, unsigned seed_low, unsigned seed_high, unsigned position, unsigned first) {
    const unsigned token = first + threadIdx.x;
    const uint4 quad = noise_words(make_uint2(seed_low, seed_high), position, token / 4);
    const unsigned all[4] = {quad.x, quad.y, quad.z, quad.w};
    words[threadIdx.x] = all[token % 4];
    gumbels[threadIdx.x] = gumbel(make_uint2(seed_low, seed_high), position, token);
}
EMU_REGISTER(noise)

KERNEL void noise_of(float* gumbels, const unsigned* words) { gumbels[threadIdx.x] = gumbel_of(words[threadIdx.x]); }
EMU_REGISTER(noise_of)
