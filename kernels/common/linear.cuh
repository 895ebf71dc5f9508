// How linears end, whoever multiplied: sums of split tiles are added up in order, then bias, epilogue and one rounding.
// The same code for all of them, so that a row has the same bits however its product was cut.
#pragma once
#include "pieces.cuh"

enum Ending { STORE, STORE_F32, ADD, ADD_SCALED, SILU, GELU, GELU_TANH, QUICK_GELU, ADD_F32 };

template <int SIDES>
struct LinearTask {
    void* out;
    const __nv_bfloat16 *x, *weight[SIDES], *bias[SIDES], *gain, *h;
    float* partial;
    int* tickets;
    int rows, first, end;  // T, and the rows that are asked for
    int inner, columns;
    int pitch, h_pitch, partial_pitch;  // elements from row to row of out, h, partial
    int ending;
};

// Explicit roundings, so that every kernel rounds alike.
__device__ __forceinline__ float activate(float x, int function) {
    if (function == GELU) return __fmul_rn(__fmul_rn(0.5f, x), erfcf(__fmul_rn(-0.70710678f, x)));
    float z = x;  // all others are x / (1 + exp(-z)); (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u))
    if (function == QUICK_GELU) z = __fmul_rn(1.702f, x);
    if (function == GELU_TANH) z = __fmul_rn(1.5957691f, __fmaf_rn(__fmul_rn(0.044715f, __fmul_rn(x, x)), x, x));
    return __fdividef(x, __fadd_rn(1.0f, __expf(-z)));
}

// Up to 8 values; those from `count` on are zero, or stay unwritten.
__device__ __forceinline__ void read_values(float (&values)[8], const __nv_bfloat16* from, int count) {
    if (count >= 8 && (reinterpret_cast<uintptr_t>(from) & 15) == 0) return unpack(values, load_16(from));
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] = e < count ? __bfloat162float(from[e]) : 0.0f;
}
__device__ __forceinline__ void read_values(float (&values)[8], const float* from, int count) {
    const bool whole = count >= 8 && (reinterpret_cast<uintptr_t>(from) & 15) == 0;
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
        if (whole) {
            const uint4 four = load_16(from + e);
            values[e] = __uint_as_float(four.x), values[e + 1] = __uint_as_float(four.y);
            values[e + 2] = __uint_as_float(four.z), values[e + 3] = __uint_as_float(four.w);
            continue;
        }
#pragma unroll
        for (int i = e; i < e + 4; i++) values[i] = i < count ? from[i] : 0.0f;
    }
}
__device__ __forceinline__ void write_values(__nv_bfloat16* to, const float (&values)[8], int count) {
    if (count >= 8 && (reinterpret_cast<uintptr_t>(to) & 15) == 0) return store_16(to, pack(values));
#pragma unroll
    for (int e = 0; e < 8; e++) {
        if (e < count) to[e] = __float2bfloat16_rn(values[e]);
    }
}
__device__ __forceinline__ void write_values(float* to, const float (&values)[8], int count) {
    const bool whole = count >= 8 && (reinterpret_cast<uintptr_t>(to) & 15) == 0;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        if (whole && e % 4 == 0) {
            store_16(to + e, make_uint4(__float_as_uint(values[e]), __float_as_uint(values[e + 1]),
                                        __float_as_uint(values[e + 2]), __float_as_uint(values[e + 3])));
        }
        if (!whole && e < count) to[e] = values[e];
    }
}

// The ending of 8 neighbours of a row.
template <int SIDES>
__device__ __forceinline__ void finish(const LinearTask<SIDES>& task, float (&y)[SIDES][8], int row, int column) {
    const int count = task.columns - column;
    const int64_t at = int64_t(row) * task.pitch + column;
    if (task.ending == STORE_F32 || task.ending == ADD_F32) {
        float before[8] = {}, *sums = static_cast<float*>(task.out) + at;
        if (task.ending == ADD_F32) read_values(before, sums, count);
#pragma unroll
        for (int e = 0; e < 8; e++) y[0][e] = __fadd_rn(before[e], y[0][e]);
        return write_values(sums, y[0], count);
    }
    __nv_bfloat16* out = static_cast<__nv_bfloat16*>(task.out) + at;
    float values[8], gain[8];
    if (SIDES == 2) {
#pragma unroll
        for (int e = 0; e < 8; e++) values[e] = __fmul_rn(activate(y[0][e], task.ending), y[SIDES - 1][e]);
    } else if (task.ending >= SILU) {
#pragma unroll
        for (int e = 0; e < 8; e++) values[e] = activate(y[0][e], task.ending);
    } else if (task.ending == STORE) {
#pragma unroll
        for (int e = 0; e < 8; e++) values[e] = y[0][e];
    } else {
        read_values(values, out, count);
        if (task.ending == ADD_SCALED) read_values(gain, task.gain + column, count);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            values[e] = task.ending == ADD_SCALED ? __fmaf_rn(gain[e], y[0][e], values[e]) : __fadd_rn(y[0][e], values[e]);
        }
    }
    write_values(out, values, count);
}

// The end of a tile whose sums lie in shared memory as f32 [M, N], 8 columns of each side in turn, at Tile::four. Unless
// the launch is split they are whole; else they are one of `slots` parts, and the last block of a tile does the rest.
// of_x: chunks of K; adapted: whether any row of the tile has an adapter. All Tile::THREADS of the block take part.
template <class Tile, int SIDES>
__device__ __forceinline__ void end_tile(unsigned char* memory, const LinearTask<SIDES>& task, int row, int column, int tile,
                                         int slot, int slots, int of_x, bool adapted) {
    // From here on threads hold 8 neighbours of a row.
    constexpr int PIECES = Tile::N / SIDES / 8;
    const int64_t slot_size = int64_t(task.rows) * SIDES * task.partial_pitch;
    if (task.partial) {
        // Each block leaves its slot's sums, and the last one of a tile adds them up in order.
        for (int p = threadIdx.x; p < Tile::M * PIECES; p += Tile::THREADS) {
            const int r = row + p / PIECES, n = column + p % PIECES * 8;
            if (r >= task.end || n >= task.columns) continue;
#pragma unroll
            for (int part = 0; part < 2 * SIDES; part++) {
                const uint4 four = load_16(Tile::four(memory, r - row, p % PIECES * 8 * SIDES + part * 4));
                float* to = task.partial + slot * slot_size + (int64_t(r) * SIDES + part / 2) * task.partial_pitch + n;
                store_16(to + part % 2 * 4, four);
            }
        }
        __threadfence();
        __syncthreads();
        int* last = reinterpret_cast<int*>(memory);
        if (threadIdx.x == 0) {
            *last = atomicAdd(&task.tickets[tile], 1) == slots - 1;
            if (*last) atomicExch(&task.tickets[tile], 0);
            __threadfence();
        }
        __syncthreads();
        if (!*last) return;
    }
#pragma unroll 1
    for (int p = threadIdx.x; p < Tile::M * PIECES; p += Tile::THREADS) {
        const int r = row + p / PIECES, n = column + p % PIECES * 8;
        if (r >= task.end || n >= task.columns) continue;
        float y[SIDES][8] = {};
        const auto add = [&](float* four, uint4 bits) {
            const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int e = 0; e < 4; e++) four[e] = __fadd_rn(four[e], __uint_as_float(words[e]));
        };
#pragma unroll
        for (int side = 0; side < SIDES; side++) {
            if (!task.partial) {
                const int at = (p % PIECES * SIDES + side) * 8;
                add(y[side], load_16(Tile::four(memory, r - row, at)));
                add(y[side] + 4, load_16(Tile::four(memory, r - row, at + 4)));
                continue;
            }
            const float* from = task.partial + (int64_t(r) * SIDES + side) * task.partial_pitch + n;
#pragma unroll 4
            for (int c = 0; c < of_x; c++, from += slot_size) {
                add(y[side], load_16_fresh(from));
                add(y[side] + 4, load_16_fresh(from + 4));
            }
            if (task.bias[side]) {
                float bias[8];
                read_values(bias, task.bias[side] + n, task.columns - n);
#pragma unroll
                for (int e = 0; e < 8; e++) y[side][e] = __fadd_rn(y[side][e], bias[e]);
            }
            if (adapted) {
                add(y[side], load_16_fresh(from));
                add(y[side] + 4, load_16_fresh(from + 4));
            }
        }
        finish<SIDES>(task, y, r, n);
    }
}
