// The main loop of every matrix product: a block's tile of a·bᵀ, where a and b are matrices of bf16, each with K innermost
// in memory or outermost (a weight met from behind, a sum over packed rows).
//
// K comes in chunks of at most 512. Each is summed from zero, by mma.sync in steps of 16 in order, and handed to the
// caller when it is complete, who adds chunks up in order of index. So whoever computes which chunk, the bits are the
// same; and no row meets another one. A chunk may have matrices of its own: that is how an adapter's product joins.
//
// Tiles of 64 elements of K pass through STAGES buffers filled by cp.async. With K innermost they are rows of 128 bytes,
// the 16-byte piece p of row r at p ^ (r % 8), so that neither copies nor ldmatrix meet in a bank; for K outermost see
// gemm_place. What is outside a matrix is zero. Pieces go by cp.async where rows in memory are 16-byte aligned, otherwise
// element by element (rows of no multiple of 8).
#pragma once
#include "warp.cuh"

constexpr int GEMM_CHUNK = 512;
constexpr int GEMM_DEPTH = 64;

// Where K lies in a matrix.
enum GemmAxis { K_INNER, K_OUTER };

// A block's tile of M rows of a and N rows of b, divided among WARPS_M x WARPS_N warps.
template <int ROWS_A, int ROWS_B, int ALONG_M, int ALONG_N, int BUFFERS, GemmAxis AXIS_A = K_INNER, GemmAxis AXIS_B = K_INNER>
struct GemmTile {
    static constexpr int M = ROWS_A, N = ROWS_B, WARPS_M = ALONG_M, WARPS_N = ALONG_N, STAGES = BUFFERS;
    static constexpr GemmAxis A = AXIS_A, B = AXIS_B;
    static constexpr int THREADS = WARPS_M * WARPS_N * 32;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
    static constexpr int BLOCKS_M = WARP_M / 16, BLOCKS_N = WARP_N / 8;  // of one mma, in a warp's part
    static constexpr int STAGE = (M + N) * GEMM_DEPTH * 2;              // bytes
    static constexpr int SHARED = STAGES * STAGE;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0 && STAGES >= 2, "whole fragments, and a buffer to fill");
    static_assert(M % (THREADS / 8) == 0 && N % (THREADS / 8) == 0 && THREADS % 128 == 0, "threads share the copying evenly");

    // Sums of a thread: [i][j][e] is row 16 i + lane / 4 + 8 (e / 2), column 8 j + lane % 4 * 2 + e % 2 of the warp's
    // part, which begins at row(), column() of the tile.
    using Sums = float[BLOCKS_M][BLOCKS_N][4];
    static __device__ __forceinline__ int row() { return int(threadIdx.x) / 32 / WARPS_N * WARP_M; }
    static __device__ __forceinline__ int column() { return int(threadIdx.x) / 32 % WARPS_N * WARP_N; }

    // Sums pass between threads as f32 [M, N] in shared memory; where 4 neighbours of a row lie, the first's column a
    // multiple of 4. Neither the writing of fragments nor the reading of 8 neighbours meets in a bank.
    static_assert(M * (N + 8) * 4 <= SHARED, "sums fit where buffers were");
    static __device__ __forceinline__ float* four(unsigned char* memory, int row, int column) {
        return reinterpret_cast<float*>(memory) + row * (N + 8) + (column ^ (column / 32 % 4 * 4));
    }
    // A barrier on either side is the caller's.
    static __device__ __forceinline__ void leave(unsigned char* memory, const Sums& sums) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < BLOCKS_M; i++) {
#pragma unroll
            for (int j = 0; j < BLOCKS_N; j++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float* to = four(memory, row() + i * 16 + half * 8 + lane / 4, column() + j * 8 + lane % 4 / 2 * 4);
                    *reinterpret_cast<float2*>(to + lane % 2 * 2) = make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
                }
            }
        }
    }
};

// Rows of a matrix, of which those outside first..end count as zero; with K outermost `first` is 0.
struct GemmRows {
    const __nv_bfloat16* data;  // of row 0, at the chunk's first element of K
    int pitch;                  // elements from one row to the next, or with K outermost from one k to the next
    int first, end;
};

// One chunk, or one side of it. With two sides a tile has rows of b from both in turns of 8: rows 0..8 of side 0, rows
// 0..8 of side 1, rows 8..16 of side 0, ...
struct GemmChunk {
    GemmRows a, b;
    int depth;  // elements of K, 1..=512
};

// Elements k..k+64 of COUNT rows, a thread's own from `row` on, those after it by `apart`. `to` is the thread's place.
template <int COUNT, int THREADS>
__device__ __forceinline__ void gemm_copy(unsigned char* to, const GemmRows& rows, int row, int apart, int k, int depth) {
    const int left = min(depth - k, 8);
    const bool whole = ((reinterpret_cast<uintptr_t>(rows.data) | unsigned(rows.pitch) * 2) & 15) == 0;
    if (whole) {
#pragma unroll
        for (int step = 0; step < COUNT; step += THREADS / 8, row += apart) {
            const bool is = left > 0 && row >= rows.first && row < rows.end;
            const __nv_bfloat16* from = is ? rows.data + int64_t(row) * rows.pitch + k : rows.data;
            cp_async_16(smem_u32(to + step * 128), from, is ? left * 2 : 0);
        }
        return;
    }
#pragma unroll 1
    for (int step = 0; step < COUNT; step += THREADS / 8, row += apart) {
        const bool is = row >= rows.first && row < rows.end;
        unsigned words[4] = {};
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (!is || e >= left) continue;
            words[e / 2] |= __float_as_uint(__bfloat162float(rows.data[int64_t(row) * rows.pitch + k + e])) >> 16 << e % 2 * 16;
        }
        store_16(to + step * 128, make_uint4(words[0], words[1], words[2], words[3]));
    }
}

// Where a buffer of COUNT rows with K outermost has the 16-byte piece of 8 rows of one k: pieces of eight k in a row, which
// one ldmatrix reads, lie in different banks.
template <int COUNT>
__device__ __forceinline__ int gemm_place(int k, int piece) {
    constexpr int PIECES = COUNT / 8, SPAN = PIECES < 8 ? 8 / PIECES : 1;  // k that share 128 bytes
    return (k * PIECES + (piece ^ k % 8 / SPAN)) * 16;
}

// Elements k..k+64 of COUNT rows from `row` on, which lie side by side; `to` is the buffer.
template <int COUNT, int THREADS>
__device__ __forceinline__ void gemm_copy_outer(unsigned char* to, const GemmRows& rows, int row, int k, int depth) {
    constexpr int PIECES = COUNT / 8, APART = THREADS / PIECES;
    static_assert(GEMM_DEPTH % APART == 0, "threads share the copying evenly");
    const int piece = int(threadIdx.x) % PIECES, mine = int(threadIdx.x) / PIECES;
    row += piece * 8;
    const int left = min(rows.end - row, 8);
    const bool whole = ((reinterpret_cast<uintptr_t>(rows.data) | unsigned(rows.pitch) * 2) & 15) == 0;
    if (whole) {
#pragma unroll
        for (int step = mine; step < mine + GEMM_DEPTH; step += APART) {
            const bool is = left > 0 && k + step < depth;
            const __nv_bfloat16* from = is ? rows.data + int64_t(k + step) * rows.pitch + row : rows.data;
            cp_async_16(smem_u32(to + gemm_place<COUNT>(step, piece)), from, is ? left * 2 : 0);
        }
        return;
    }
#pragma unroll 1
    for (int step = mine; step < mine + GEMM_DEPTH; step += APART) {
        unsigned words[4] = {};
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e >= left || k + step >= depth) continue;
            const float value = __bfloat162float(rows.data[int64_t(k + step) * rows.pitch + row + e]);
            words[e / 2] |= __float_as_uint(value) >> 16 << e % 2 * 16;
        }
        store_16(to + gemm_place<COUNT>(step, piece), make_uint4(words[0], words[1], words[2], words[3]));
    }
}

// Chunks first..end of the tile whose rows of a begin at `row` and whose rows of each side of b at `column`:
// `chunks(c, side)` says what chunk c is, `done(c, sums)` gets each complete one, in order. There is at least one.
// `memory` is Tile::SHARED bytes, 1024-aligned; other uses of it stay behind a __syncthreads before and after.
template <class Tile, int SIDES, class Chunks, class Done>
__device__ __forceinline__ void gemm(unsigned char* memory, int row, int column, int first, int end, const Chunks& chunks,
                                     const Done& done) {
    const int lane = threadIdx.x % 32;
    // Lanes name the rows that ldmatrix reads: for a 16 rows, pieces 0 and 1; for b 8 rows, pieces 0 and 1, 8 rows more.
    const uint32_t base = smem_u32(memory), turn = lane % 8;
    const uint32_t at_a = (Tile::row() + lane % 16) * 128, half_a = lane / 16;
    const uint32_t at_b = (Tile::M + Tile::column() + lane / 16 * 8 + lane % 8) * 128, half_b = lane / 8 % 2;
    // With K outermost they name a k and eight rows; for b both change places.
    const int k_a = lane / 16 * 8 + lane % 8, piece_a = Tile::row() / 8 + lane / 8 % 2;
    const int k_b = lane / 8 % 2 * 8 + lane % 8, piece_b = Tile::column() / 8 + lane / 16;
    static_assert(SIDES == 1 || Tile::B == K_INNER, "two sides alternate by rows of memory");

    // Threads name the pieces that they copy: one of 8 in a row, of every THREADS / 8th row, all of one side.
    constexpr int APART = Tile::THREADS / 8;
    const int piece = threadIdx.x % 8, r = threadIdx.x / 8, place = r * 128 + (piece ^ r % 8) * 16;
    const int side = SIDES == 1 ? 0 : r / 8 % 2, row_b = column + (SIDES == 1 ? r : r / 16 * 8 + r % 8);
    int loading = first, k = 0;
    GemmChunk chunk = chunks(first, side);
    auto load = [&](int stage) {
        if (loading < end) {
            unsigned char *to = memory + stage * Tile::STAGE, *to_b = to + Tile::M * 128;
            if constexpr (Tile::A == K_OUTER) {
                gemm_copy_outer<Tile::M, Tile::THREADS>(to, chunk.a, row, k, chunk.depth);
            } else {
                gemm_copy<Tile::M, Tile::THREADS>(to + place, chunk.a, row + r, APART, k + piece * 8, chunk.depth);
            }
            if constexpr (Tile::B == K_OUTER) {
                gemm_copy_outer<Tile::N, Tile::THREADS>(to_b, chunk.b, column, k, chunk.depth);
            } else {
                gemm_copy<Tile::N, Tile::THREADS>(to_b + place, chunk.b, row_b, APART / SIDES, k + piece * 8, chunk.depth);
            }
            k += GEMM_DEPTH;
            if (k >= chunk.depth && ++loading < end) {
                chunk = chunks(loading, side);
                k = 0;
            }
        }
        cp_async_commit();
    };

    // Fragments of two steps of 16: one is multiplied while the other is fetched.
    uint32_t a[2][Tile::BLOCKS_M][4], b[2][Tile::BLOCKS_N / 2][4];
    auto fetch = [&](int into, int stage, int step) {
        const uint32_t from = base + stage * Tile::STAGE;
#pragma unroll
        for (int i = 0; i < Tile::BLOCKS_M; i++) {
            if constexpr (Tile::A == K_OUTER) {
                ldmatrix_x4_trans(a[into][i], from + gemm_place<Tile::M>(step * 16 + k_a, piece_a + i * 2));
            } else {
                ldmatrix_x4(a[into][i], from + at_a + i * 2048 + ((step * 2 + half_a) ^ turn) * 16);
            }
        }
#pragma unroll
        for (int j = 0; j < Tile::BLOCKS_N / 2; j++) {
            if constexpr (Tile::B == K_OUTER) {
                ldmatrix_x4_trans(b[into][j], from + Tile::M * 128 + gemm_place<Tile::N>(step * 16 + k_b, piece_b + j * 2));
            } else {
                ldmatrix_x4(b[into][j], from + at_b + j * 2048 + ((step * 2 + half_b) ^ turn) * 16);
            }
        }
    };

#pragma unroll 1
    for (int stage = 0; stage < Tile::STAGES - 1; stage++) load(stage);
    cp_async_wait<Tile::STAGES - 2>();
    __syncthreads();
    int reading = 0, writing = Tile::STAGES - 1;
    fetch(0, reading, 0);
    for (int c = first; c < end; c++) {
        typename Tile::Sums sums = {};
        const int depth = chunks(c, side).depth;
        for (int at = 0; at < depth; at += GEMM_DEPTH) {
            const bool more = at + GEMM_DEPTH < depth || c + 1 < end;
#pragma unroll
            for (int step = 0; step < 4; step++) {
                if (step == 3) {
                    // The next buffer has landed, and everybody has fetched all of this one, so it may be filled.
                    cp_async_wait<Tile::STAGES - 2>();
                    __syncthreads();
                    reading = reading + 1 == Tile::STAGES ? 0 : reading + 1;
                }
                if (step < 3 || more) fetch((step + 1) % 2, reading, (step + 1) % 4);
                if (step == 0) {
                    load(writing);
                    writing = writing + 1 == Tile::STAGES ? 0 : writing + 1;
                }
#pragma unroll
                for (int i = 0; i < Tile::BLOCKS_M; i++) {
#pragma unroll
                    for (int j = 0; j < Tile::BLOCKS_N; j++) {
                        const uint32_t(&pair)[4] = b[step % 2][j / 2];
                        mma_m16n8k16_bf16(sums[i][j], a[step % 2][i], pair[j % 2 * 2], pair[j % 2 * 2 + 1]);
                    }
                }
            }
        }
        done(c, sums);
    }
}
