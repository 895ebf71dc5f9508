// What splits leave of their lines in memory: to be merged, or to be gone on with by another kernel.
#pragma once
#include "attention.cuh"

namespace attention {

// Of a split and a line: WIDTH values, the greatest score, the sum, two of nothing that keep rows aligned, and while the
// split is not at its end the four lanes' parts of the sum.
template <int WIDTH>
struct Parts {
    static constexpr int GREATEST = WIDTH, SUM = WIDTH + 1, LANES = WIDTH + 4, PITCH = WIDTH + 8;
    float* memory;
    int64_t lines;  // T H

    __device__ __forceinline__ float* of(int split, int at) const { return memory + (split * lines + at) * PITCH; }
};

// COUNT times 8 columns from `first` on; the warp that has the first column leaves the sums.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void leave(const Parts<WIDTH>& parts, int split, const Lines& lines, const Sums& sums,
                                      const float (&o)[COUNT][4], int first, bool at_end) {
    const int t = threadIdx.x % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (!lines.exists(r)) continue;
        float* part = parts.of(split, lines.at(r));
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            if (first + n * 8 >= WIDTH) break;
            *reinterpret_cast<float2*>(part + first + n * 8 + t) = make_float2(o[n][r * 2], o[n][r * 2 + 1]);
        }
        if (first != 0) continue;
        if (t == 0) *reinterpret_cast<float2*>(part + Parts<WIDTH>::GREATEST) = make_float2(sums.greatest[r], sums.sum[r]);
        if (!at_end) part[Parts<WIDTH>::LANES + t / 2] = sums.sum[r];
    }
}

// Goes on where a split was left before its end.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void resume(const Parts<WIDTH>& parts, int split, const Lines& lines, Sums& sums,
                                       float (&o)[COUNT][4], int first) {
    const int t = threadIdx.x % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (!lines.exists(r)) continue;
        const float* part = parts.of(split, lines.at(r));
        sums.greatest[r] = part[Parts<WIDTH>::GREATEST];
        sums.sum[r] = part[Parts<WIDTH>::LANES + t / 2];
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            if (first + n * 8 >= WIDTH) break;
            const float2 pair = *reinterpret_cast<const float2*>(part + first + n * 8 + t);
            o[n][r * 2] = pair.x;
            o[n][r * 2 + 1] = pair.y;
        }
    }
}

}  // namespace attention
