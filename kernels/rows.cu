// Rows moved by index: gathered (embedding), scattered, appended to a paged cache.
//
//   copy_rows  out[to[t]] = source[from[t]], where a missing index is t itself
//   kv_append  pool[slot / P, g, slot % P] = rows[t, g] with slot = slots[t], for keys (z = 0) and values (z = 1)
//
// in      source bf16 [., C]; to, from i32 [T] or null; k, v bf16 [T, G, D]; slots i32 [T]; indices are within bounds,
//         those written to distinct
// out     out bf16 [., C]; pools bf16 [N, G, P, D]
// launch  lanes threads to a row: a power of two up to 32 and several rows in a block, or a multiple of 32 and one row;
//         grid (rows / rows of a block), kv_append of T G rows and z of 2; no shared memory;
//         16-byte accesses where C (D) is a multiple of 8
// floor   bytes 4 T C + 4 T, kv_append 8 T G D + 4 T: bound by memory. T = 4096, C = 3584 at 4.3 TB/s: 14 us
// order   none: nothing is added
// pair    backward: none yet; CPU reference: backend::plain gather_rows, scatter_rows, kv_append; emulated: yes
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
