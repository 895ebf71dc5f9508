// Rotary position embedding in place, one- or many-axis.
//
//   (a, b) = (a cos - b sin, b cos + a sin) for a = x[i], b = x[i + D/2], angle f32(position[axis[i]]) * inv_freq[i]
//
// in      x bf16 [T, H, D]; positions i32 [axes, T]; inv_freq f32 [D/2]; axis i32 [D/2]; inverse: 1 turns back
// out     x
// launch  lanes threads to a row: a power of two up to 32 and several rows in a block, or a multiple of 32 and one row;
//         grid (rows / rows of a block), shared rows of a block * (D/2 rounded up to 8) * 8 bytes;
//         16-byte accesses where D is a multiple of 16
// floor   bytes 4 T H D + 4 axes T; flops 3 T H D: bound by memory. T = 4096, H = 28, D = 128 at 4.3 TB/s: 14 us
// order   none: each pair stands alone. The angle is the f32 product, as in the reference implementations; its sine and
//         cosine err as if it were rounded to f32 once more, for any angle below 2^29
// pair    backward: itself with the other inverse; CPU reference: backend::plain rope; emulated: yes
#include "common/pieces.cuh"

// sincosf's way for large angles needs memory of its own. Whole turns come off as well in f64, of which little is asked:
// a row's heads share the result.
__device__ __forceinline__ float2 turn(float angle) {
    const double turns = double(angle) * 0.15915494309189535;  // 1 / 2 pi
    float sine, cosine;
    sincospif(float(2.0 * (turns - rint(turns))), &sine, &cosine);
    return make_float2(sine, cosine);
}

KERNEL void __launch_bounds__(1024)
    rope(__nv_bfloat16* x, const int* positions, const float* inv_freq, const int* axis, int64_t rows, int heads,
         int half, int lanes, int inverse) {
    DYN_SMEM(memory);
    float2* turns = reinterpret_cast<float2*>(memory);  // [rows of the block, 8, pieces]: a warp reads side by side
    const int pieces = (half + 7) / 8, row_turns = pieces * 8, items = heads * pieces;
    const int64_t first_row = int64_t(blockIdx.x) * (blockDim.x / lanes);
    const int local = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    const int64_t row = first_row + local;
    const int end = row < rows ? items : 0;
    auto place = [&](int item) { return x + (row * heads + item / pieces) * 2 * half; };
    // What each thread turns first is asked for before the angles are worked out.
    uint4 first_low, first_high;
    if (lane < end) {
        first_low = read_piece(place(lane), lane % pieces * 8, half);
        first_high = read_piece(place(lane) + half, lane % pieces * 8, half);
    }
    for (int at = threadIdx.x; at < int(blockDim.x) / lanes * row_turns; at += blockDim.x) {
        const int64_t of = first_row + at / row_turns;
        const int i = at % pieces * 8 + at % row_turns / pieces;
        if (of < rows && i < half) {
            float2 result = turn(__fmul_rn(float(positions[axis[i] * rows + of]), inv_freq[i]));
            if (inverse) result.x = -result.x;
            turns[at] = result;
        }
    }
    __syncthreads();
    for (int item = lane; item < end; item += lanes) {
        const int piece = item % pieces, i = piece * 8;
        __nv_bfloat16* head = place(item);
        float low[8], high[8];
        unpack(low, item == lane ? first_low : read_piece(head, i, half));
        unpack(high, item == lane ? first_high : read_piece(head + half, i, half));
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (i + e < half) {
                const float2 by = turns[local * row_turns + e * pieces + piece];
                const float a = low[e], b = high[e];
                low[e] = __fmaf_rn(a, by.y, -__fmul_rn(b, by.x));
                high[e] = __fmaf_rn(b, by.y, __fmul_rn(a, by.x));
            }
        }
        write_piece(head, pack(low), i, half);
        write_piece(head + half, pack(high), i, half);
    }
}
EMU_REGISTER(rope)
