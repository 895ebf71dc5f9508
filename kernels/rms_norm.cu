// RMSNorm of packed rows, optionally of a sum that becomes the new residual stream.
//
//   h = x + r;  y = h / sqrt(mean(h^2) + eps) * w        (without r: h = x)
//
// in      x, r bf16 [T, C]; w bf16 [C]; eps f32; r may be null
// out     y bf16 [T, C]; h bf16 [T, C], written if r is given (may be r or x themselves)
// launch  grid (T), block (256), shared 32 bytes; any C >= 1 below 2^31; 16-byte loads where C is a multiple of 8
// floor   bytes 4TC + 2C, with r 8TC + 2C; flops 4TC: bound by memory. T = 4096, C = 3584 at 4.3 TB/s:
//         14 us, with r 27 us
// order   thread t adds the squares of the pieces of 8 elements t, t + 256, ... in order; then a butterfly over each
//         warp, then warps 0 to 7: fixed by C alone. h is rounded to bf16 before it is squared.
// pair    backward: none yet; CPU reference: backend::plain rms_norm; emulated: yes
#include "common/device.cuh"

constexpr int RMS_NORM_THREADS = 256;

// Elements i..i+8 of a row as f32, zero past its end.
__device__ __forceinline__ void read_piece(float (&values)[8], const __nv_bfloat16* row, int i, int columns) {
    if (columns % 8 == 0) {
        const uint4 bits = load_16(row + i);
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int e = 0; e < 8; e++) values[e] = __uint_as_float(e % 2 ? words[e / 2] & 0xFFFF0000u : words[e / 2] << 16);
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) values[e] = i + e < columns ? __bfloat162float(row[i + e]) : 0.0f;
    }
}

__device__ __forceinline__ unsigned packed(float low, float high) {
    const unsigned rounded = __float_as_uint(__bfloat162float(__float2bfloat16_rn(low))) >> 16;
    return rounded | (__float_as_uint(__bfloat162float(__float2bfloat16_rn(high))) & 0xFFFF0000u);
}

__device__ __forceinline__ void write_piece(__nv_bfloat16* row, const float (&values)[8], int i, int columns) {
    if (columns % 8 == 0) {
        store_16(row + i, make_uint4(packed(values[0], values[1]), packed(values[2], values[3]),
                                     packed(values[4], values[5]), packed(values[6], values[7])));
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (i + e < columns) row[i + e] = __float2bfloat16_rn(values[e]);
        }
    }
}

KERNEL void __launch_bounds__(RMS_NORM_THREADS)
    rms_norm(__nv_bfloat16* y, __nv_bfloat16* h, const __nv_bfloat16* x, const __nv_bfloat16* r, const __nv_bfloat16* w,
             int columns, float eps) {
    DYN_SMEM(memory);
    float* sums = reinterpret_cast<float*>(memory);  // [8], one a warp
    const int64_t start = int64_t(blockIdx.x) * columns;
    float values[8], others[8], sum = 0.0f;
    for (int i = threadIdx.x * 8; i < columns; i += RMS_NORM_THREADS * 8) {
        read_piece(values, x + start, i, columns);
        if (r) {
            read_piece(others, r + start, i, columns);
#pragma unroll
            for (int e = 0; e < 8; e++) values[e] = __bfloat162float(__float2bfloat16_rn(values[e] + others[e]));
            write_piece(h + start, values, i, columns);
        }
#pragma unroll
        for (int e = 0; e < 8; e++) sum = __fmaf_rn(values[e], values[e], sum);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = sums[0];
#pragma unroll
    for (int warp = 1; warp < RMS_NORM_THREADS / 32; warp++) sum += sums[warp];
    const float inverse = 1.0f / __fsqrt_rn(sum / float(columns) + eps);
    const __nv_bfloat16* source = r ? h : x;
    for (int i = threadIdx.x * 8; i < columns; i += RMS_NORM_THREADS * 8) {
        read_piece(values, source + start, i, columns);
        read_piece(others, w, i, columns);
#pragma unroll
        for (int e = 0; e < 8; e++) values[e] = values[e] * inverse * others[e];
        write_piece(y + start, values, i, columns);
    }
}
EMU_REGISTER(rms_norm)
