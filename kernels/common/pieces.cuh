// Rows of bf16 in pieces of 8 elements: 16 bytes at once where a row's length is a multiple of 8, element by element
// otherwise. How every kernel bound by memory reads and writes.
#pragma once
#include "device.cuh"

// Elements i..i+8 of a row, zero past its end.
__device__ __forceinline__ uint4 read_piece(const __nv_bfloat16* row, int i, int columns) {
    if (columns % 8 == 0) return load_16(row + i);
    unsigned words[4] = {};
#pragma unroll
    for (int e = 0; e < 8; e++) {
        if (i + e < columns) words[e / 2] |= __float_as_uint(__bfloat162float(row[i + e])) >> 16 << e % 2 * 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// To elements i..i+8 of a row, those past its end nowhere.
__device__ __forceinline__ void write_piece(__nv_bfloat16* row, uint4 piece, int i, int columns) {
    if (columns % 8 == 0) return store_16(row + i, piece);
    const unsigned words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int e = 0; e < 8; e++) {
        if (i + e < columns) row[i + e] = __float2bfloat16_rn(__uint_as_float(words[e / 2] >> e % 2 * 16 << 16));
    }
}

__device__ __forceinline__ void unpack(float (&values)[8], uint4 piece) {
    const unsigned words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] = __uint_as_float(e % 2 ? words[e / 2] & 0xFFFF0000u : words[e / 2] << 16);
}

// Rounded to bf16.
__device__ __forceinline__ uint4 pack(const float (&values)[8]) {
    unsigned words[4];
#pragma unroll
    for (int w = 0; w < 4; w++) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * w], values[2 * w + 1]);
        memcpy(&words[w], &pair, 4);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}
