// Sums over packed rows, column by column: gradients of biases, and of the gains of norms.
//
//   out[c] += sum over t of a[t, c]          or, with b,   sum over t of a[t, c] b[t, c] factor[t]
//
// in      a, b bf16 [T, C], factor f32 [T]; b and factor both or neither
// inout   out f32 [C]
// work    partial f32 [blocks along y, C] and tickets i32 [blocks along x], zero before and after; both unused if y is 1
// launch  grid (C / 256, T / share), block (256), shared 8192 bytes; share >= 1 rows to a block; any T, C >= 1;
//         16-byte accesses where C is a multiple of 8
// floor   bytes 2TC (4TC with b) + 8C; flops TC (3TC): bound by memory. T = 4096, C = 2048 at 4.3 TB/s: 4 us (8 us)
// order   within a share warp w sums rows w, w + 8, ... in order, then the warps in order; then shares in order; out + that.
//         The host gives share by T alone, so that T fixes all
// pair    of linear.cu's bias, of norm.cu's weight; CPU reference: backend::plain linear_backward, rms_norm_backward;
//         emulated: yes
#include "common/pieces.cuh"

constexpr int WARPS = 8;
constexpr int COLUMNS = 256;  // of a block: a warp's 32 pieces

KERNEL void __launch_bounds__(WARPS * 32)
    column_sums(float* out, const __nv_bfloat16* a, const __nv_bfloat16* b, const float* factor, float* partial,
                int* tickets, int64_t rows, int columns, int share) {
    DYN_SMEM(memory);
    float* sums = reinterpret_cast<float*>(memory);  // [WARPS, COLUMNS]
    const int warp = threadIdx.x / 32, piece = threadIdx.x % 32 * 8, column = blockIdx.x * COLUMNS + piece;
    const int64_t first = int64_t(blockIdx.y) * share, end = min((long long)(first + share), (long long)(rows));
    float mine[8] = {}, values[8], others[8];
    if (column < columns) {
#pragma unroll 2
        for (int64_t row = first + warp; row < end; row += WARPS) {
            unpack(values, read_piece(a + row * columns, column, columns));
            if (b) {
                unpack(others, read_piece(b + row * columns, column, columns));
                const float by = factor[row];
#pragma unroll
                for (int e = 0; e < 8; e++) values[e] *= __fmul_rn(others[e], by);
            }
#pragma unroll
            for (int e = 0; e < 8; e++) mine[e] += values[e];
        }
    }
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
        store_16(sums + warp * COLUMNS + piece + e,
                 make_uint4(__float_as_uint(mine[e]), __float_as_uint(mine[e + 1]), __float_as_uint(mine[e + 2]),
                            __float_as_uint(mine[e + 3])));
    }
    __syncthreads();
    const int own = blockIdx.x * COLUMNS + threadIdx.x;
    float sum = sums[threadIdx.x];
    for (int w = 1; w < WARPS; w++) sum += sums[w * COLUMNS + threadIdx.x];
    if (gridDim.y > 1) {
        // Each block leaves its sums, and the last one of these columns adds them up in order.
        if (own < columns) partial[int64_t(blockIdx.y) * columns + own] = sum;
        __threadfence();
        __syncthreads();
        int* last = reinterpret_cast<int*>(memory);
        if (threadIdx.x == 0) {
            *last = atomicAdd(&tickets[blockIdx.x], 1) == int(gridDim.y) - 1;
            if (*last) atomicExch(&tickets[blockIdx.x], 0);
            __threadfence();
        }
        __syncthreads();
        if (!*last) return;
        sum = 0.0f;
#pragma unroll 8
        for (int y = 0; y < int(gridDim.y); y++) {
            if (own < columns) sum += load_fresh(partial + int64_t(y) * columns + own);
        }
    }
    if (own < columns) out[own] += sum;
}
EMU_REGISTER(column_sums)
