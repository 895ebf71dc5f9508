// Rows moved by index: gathered (embedding), scattered, appended to a paged cache.
//
//   copy_rows  out[to[t]] = source[from[t]], where a missing index is t itself
//   narrow_rows  out[t] = table[from[t]], rounded: gathered from what gradients were added to
//   kv_append  pool[slot / P, g, slot % P] = rows[t, g] with slot = slots[t], for keys (z = 0) and values (z = 1)
//   add_rows   table[rows[t]] += source[t] for all t, copy_rows' backward
//   zero       every byte 0
//
// in      source bf16 [., C]; to, from i32 [T] or null; k, v bf16 [T, G, D]; slots i32 [T]; indices are within bounds,
//         those written to distinct, but not of add_rows
// out     out bf16 [., C]; pools bf16 [N, G, P, D]; n bytes, an even number
//         narrow_rows: table f32 [., C]
// inout   add_rows: table f32 [., C]
// launch  lanes threads to a row: a power of two up to 32 and several rows in a block, or a multiple of 32 and one row;
//         grid (rows / rows of a block), kv_append of T G rows and z of 2; add_rows: grid (T), block (256); zero: grid
//         (n / 4096), block (256); no shared memory; 16-byte accesses where C (D) is a multiple of 8
// floor   bytes 4 T C + 4 T, narrow_rows 6 T C + 4 T, kv_append 8 T G D + 4 T, add_rows 10 T C + 4 T, zero n: bound by
//         memory. T = 4096, C = 3584 at 4.3 TB/s: 14 us, narrow_rows 20 us, add_rows 34 us
// order   add_rows: the sources of a row in order of t, then table + that; else nothing is added
// pair    backward: gather_rows' is add_rows; CPU reference: backend::plain gather_rows, scatter_rows, kv_append,
//         gather_rows_backward, zero; emulated: yes
#include "common/pieces.cuh"

KERNEL void __launch_bounds__(1024)
    copy_rows(__nv_bfloat16* out, const __nv_bfloat16* source, const int* to, const int* from, int64_t rows,
              int columns, int lanes) {
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
    if (row >= rows) return;
    out += (to ? to[row] : row) * int64_t(columns);
    source += (from ? from[row] : row) * int64_t(columns);
    for (int i = threadIdx.x % lanes * 8; i < columns; i += lanes * 8) {
        write_piece(out, read_piece(source, i, columns), i, columns);
    }
}
EMU_REGISTER(copy_rows)

KERNEL void __launch_bounds__(1024)
    narrow_rows(__nv_bfloat16* out, const float* table, const int* from, int64_t rows, int columns, int lanes) {
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
    if (row >= rows) return;
    out += row * columns;
    table += int64_t(from[row]) * columns;
    for (int i = threadIdx.x % lanes * 8; i < columns; i += lanes * 8) {
        float values[8] = {};
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (i + e < columns) values[e] = table[i + e];
        }
        write_piece(out, pack(values), i, columns);
    }
}
EMU_REGISTER(narrow_rows)

KERNEL void __launch_bounds__(1024)
    kv_append(__nv_bfloat16* k_pool, __nv_bfloat16* v_pool, const __nv_bfloat16* k, const __nv_bfloat16* v,
              const int* slots, int64_t rows, int kv_heads, int page_len, int head_dim, int lanes) {
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;  // (t, g)
    if (row >= rows) return;
    const int slot = slots[row / kv_heads];
    const int64_t page = slot / page_len, head = row % kv_heads;
    const int64_t place = (page * kv_heads + head) * page_len + slot % page_len;
    __nv_bfloat16* to = (blockIdx.z ? v_pool : k_pool) + place * head_dim;
    const __nv_bfloat16* from = (blockIdx.z ? v : k) + row * head_dim;
    for (int i = threadIdx.x % lanes * 8; i < head_dim; i += lanes * 8) {
        write_piece(to, read_piece(from, i, head_dim), i, head_dim);
    }
}
EMU_REGISTER(kv_append)

// The block of the first t with a row of the table gathers all of them; the others have nothing to do.
KERNEL void __launch_bounds__(256)
    add_rows(float* table, const __nv_bfloat16* source, const int* rows, int count, int columns) {
    const int lane = threadIdx.x % 32, first = int(blockIdx.x), row = rows[first];
    const auto same = [&](int t, int from, int end) {  // which of 32 have this row; every warp looks for itself
        const int mine = t + lane;
        return __ballot_sync(0xFFFFFFFFu, mine >= from && mine < end && rows[mine] == row);
    };
    for (int t = 0; t < first; t += 32) {
        if (same(t, 0, first)) return;
    }
    // Warps take columns in turns of 256; lanes without any stay for the votes.
    for (int start = int(threadIdx.x) / 32 * 256; start < columns; start += 2048) {
        const int column = start + lane * 8;
        float sums[8] = {}, values[8];
        for (int t = first / 32 * 32; t < count; t += 32) {
            for (unsigned left = same(t, first, count); left; left &= left - 1) {
                const int64_t from = t + __ffs(int(left)) - 1;
                if (column >= columns) continue;
                unpack(values, read_piece(source + from * columns, column, columns));
#pragma unroll
                for (int e = 0; e < 8; e++) sums[e] += values[e];
            }
        }
        float* to = table + int64_t(row) * columns + column;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (column + e < columns) to[e] += sums[e];
        }
    }
}
EMU_REGISTER(add_rows)

KERNEL void __launch_bounds__(256) zero(unsigned char* to, int64_t bytes) {
    const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 16;
    if (at + 16 <= bytes && (reinterpret_cast<uintptr_t>(to) & 15) == 0) return store_16(to + at, make_uint4(0, 0, 0, 0));
    for (int64_t e = at; e < at + 16 && e < bytes; e += 2) *reinterpret_cast<uint16_t*>(to + e) = 0;
}
EMU_REGISTER(zero)
