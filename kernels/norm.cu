// RMSNorm and LayerNorm of packed rows. With w of a head's length the heads are the rows: the per-head norm.
//
//   rms_norm    y = x / sqrt(mean(x^2) + eps) * w
//   layer_norm  y = (x - m) / sqrt(mean((x - m)^2) + eps) * w + b,  m = mean(x)
//
// in      x bf16 [rows, C]; w, b bf16 [C]; eps f32
// out     y bf16 [rows, C], not x
// launch  lanes threads to a row: a power of two up to 32 and several rows in a block, or a multiple of 32 and one row;
//         grid (rows / rows of a block), shared 256 bytes; any C >= 1 up to 2^30;
//         16-byte accesses where C is a multiple of 8
// floor   bytes 4 rows C + 2C (+ 2C for b); flops 4 rows C (layer 7): bound by memory. T = 4096, C = 3584 at 4.3 TB/s:
//         14 us
// order   lane l sums the pieces of 8 elements l, l + lanes, ... each in order; then a butterfly over each warp, then
//         the warps in order. The host gives lanes by C alone, so that C fixes all.
// pair    backward: below, of rms_norm; CPU reference: backend::plain rms_norm, layer_norm; emulated: yes
#include "common/pieces.cuh"

// The sum over a row's threads, for each of them. Warps meet in `warps`, each time in another one.
__device__ __forceinline__ float row_sum(float sum, int lanes, float* warps) {
#pragma unroll
    for (int step = 16; step; step /= 2) {
        if (step < lanes) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    }
    if (lanes > 32) {
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = warps[0];
        for (int warp = 1; warp < lanes / 32; warp++) sum += warps[warp];
    }
    return sum;
}

// A row's first pieces, of x and of what scales it, are asked for at once and kept: rows of up to 8192 elements have
// no others. What does not fit is read again, from the cache.
template <bool CENTRED>
__device__ __forceinline__ void normalise(__nv_bfloat16* y, const __nv_bfloat16* x, const __nv_bfloat16* w,
                                          const __nv_bfloat16* b, int64_t rows, int columns, int lanes, float eps) {
    DYN_SMEM(memory);
    float* warps = reinterpret_cast<float*>(memory);  // [2, 32]
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
    const int first = threadIdx.x % lanes * 8, stride = lanes * 8;
    const int end = row < rows ? columns : 0;  // threads without a row stay for the sums
    x += row * columns;
    y += row * columns;
    uint4 kept = {}, gain, shift;
    float values[8], gains[8], shifts[8], sum = 0.0f, mean = 0.0f;
    if (first < end) {
        kept = read_piece(x, first, columns);
        gain = read_piece(w, first, columns);
        if (CENTRED) shift = read_piece(b, first, columns);
    }
    if (CENTRED) {
        for (int i = first; i < end; i += stride) {
            unpack(values, i == first ? kept : read_piece(x, i, columns));
#pragma unroll
            for (int e = 0; e < 8; e++) sum += values[e];
        }
        mean = row_sum(sum, lanes, warps) / float(columns);
        sum = 0.0f;
    }
    for (int i = first; i < end; i += stride) {
        unpack(values, i == first ? kept : read_piece(x, i, columns));
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float distance = i + e < columns ? values[e] - mean : 0.0f;
            sum = __fmaf_rn(distance, distance, sum);
        }
    }
    const float inverse = 1.0f / __fsqrt_rn(row_sum(sum, lanes, warps + 32) / float(columns) + eps);
    for (int i = first; i < end; i += stride) {
        unpack(values, i == first ? kept : read_piece(x, i, columns));
        unpack(gains, i == first ? gain : read_piece(w, i, columns));
        if (CENTRED) unpack(shifts, i == first ? shift : read_piece(b, i, columns));
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float unit = (values[e] - mean) * inverse;
            values[e] = CENTRED ? __fmaf_rn(unit, gains[e], shifts[e]) : unit * gains[e];
        }
        write_piece(y, pack(values), i, columns);
    }
}

KERNEL void __launch_bounds__(1024)
    rms_norm(__nv_bfloat16* y, const __nv_bfloat16* x, const __nv_bfloat16* w, int64_t rows, int columns, int lanes,
             float eps) {
    normalise<false>(y, x, w, nullptr, rows, columns, lanes, eps);
}
EMU_REGISTER(rms_norm)

KERNEL void __launch_bounds__(1024)
    layer_norm(__nv_bfloat16* y, const __nv_bfloat16* x, const __nv_bfloat16* w, const __nv_bfloat16* b, int64_t rows,
               int columns, int lanes, float eps) {
    normalise<true>(y, x, w, b, rows, columns, lanes, eps);
}
EMU_REGISTER(layer_norm)

// Backward of rms_norm.
//
//   dx = r (w dy - x r^2 mean(w dy x)) | dx + that,  r = 1 / sqrt(mean(x^2) + eps)
//
// in      dy, x bf16 [rows, C]; w bf16 [C]; eps f32; add: whether dx is added to
// out     dx bf16 [rows, C], not x or dy; inverses f32 [rows], each row's r, or null
// launch  as above
// floor   bytes 6 rows C (8 rows C if added) + 2C; flops 9 rows C: bound by memory. T = 4096, C = 3584 at 4.3 TB/s: 20 us
// order   as above, of both sums
// pair    of w: column_sums.cu over dy and x with `inverses`; CPU reference: backend::plain rms_norm_backward; emulated: yes
__device__ __forceinline__ void normalise_backward(__nv_bfloat16* dx, float* inverses, const __nv_bfloat16* dy,
                                                   const __nv_bfloat16* x, const __nv_bfloat16* w, int64_t rows,
                                                   int columns, int lanes, float eps, bool add) {
    DYN_SMEM(memory);
    float* warps = reinterpret_cast<float*>(memory);  // [2, 32]
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
    const int first = threadIdx.x % lanes * 8, stride = lanes * 8;
    const int end = row < rows ? columns : 0;  // threads without a row stay for the sums
    x += row * columns;
    dy += row * columns;
    dx += row * columns;
    uint4 kept = {}, slopes = {}, gain = {};
    float values[8], gains[8], d[8], square = 0.0f, product = 0.0f;
    if (first < end) {
        kept = read_piece(x, first, columns);
        slopes = read_piece(dy, first, columns);
        gain = read_piece(w, first, columns);
    }
    const auto read = [&](int i) {
        unpack(values, i == first ? kept : read_piece(x, i, columns));
        unpack(d, i == first ? slopes : read_piece(dy, i, columns));
        unpack(gains, i == first ? gain : read_piece(w, i, columns));
#pragma unroll
        for (int e = 0; e < 8; e++) d[e] *= gains[e];
    };
    for (int i = first; i < end; i += stride) {
        read(i);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            square = __fmaf_rn(values[e], values[e], square);
            product = __fmaf_rn(values[e], d[e], product);
        }
    }
    const float inverse = 1.0f / __fsqrt_rn(row_sum(square, lanes, warps) / float(columns) + eps);
    const float along = row_sum(product, lanes, warps + 32) / float(columns) * inverse * inverse;
    if (inverses && first == 0 && row < rows) inverses[row] = inverse;
    for (int i = first; i < end; i += stride) {
        read(i);
        float before[8] = {};
        if (add) unpack(before, read_piece(dx, i, columns));
#pragma unroll
        for (int e = 0; e < 8; e++) before[e] = __fmaf_rn(inverse, __fmaf_rn(-values[e], along, d[e]), before[e]);
        write_piece(dx, pack(before), i, columns);
    }
}

KERNEL void __launch_bounds__(1024)
    rms_norm_backward(__nv_bfloat16* dx, float* inverses, const __nv_bfloat16* dy, const __nv_bfloat16* x,
                      const __nv_bfloat16* w, int64_t rows, int columns, int lanes, float eps, int add) {
    normalise_backward(dx, inverses, dy, x, w, rows, columns, lanes, eps, add != 0);
}
EMU_REGISTER(rms_norm_backward)
