// What a device does by itself between two decoding passes: what each row has drawn becomes its next input.
//
//   log[b, lengths[b] % K] = token[b], logp[b], entropy[b]
//   if lengths[b] < until[b]: token drawn and seen, positions + 1, slot = tables[b, lengths[b] / P] P + lengths[b] % P,
//   lengths[b] + 1. Else the row stays as it is, and the next pass computes the same again, to the same place.
//
// in      token i32 [B], logp, entropy f32 [B]: drawn; tables i32 [B, width]; until i32 [B]. A row whose token is below 0
//         (a logit was not finite) stays as it is, too
// inout   tokens i32 [B], positions i32 [axes, B], slots, lengths i32 [B]: the pass's; draws [B]: positions, and ends of
//         seen tokens in rows that have any; seen i32, with room for those drawn; log i32 [B, K, 3], floats by their bits
// launch  grid (B / 256), block (256), no shared memory
// floor   bytes 56 + 8 axes a row: bound by its launch. B = 512: 2 us
// order   none: a row is a thread's alone
// pair    no backward; CPU reference: model::packed lays the next pass out anew; emulated: yes
#include "common/draw.cuh"

// Laid out by src/backend/gpu/decode.rs.
struct Step {
    const int* token;
    const float *logp, *entropy;
    const int *tables, *until;
    int *tokens, *positions, *slots, *lengths;
    Draw* draws;
    int *seen, *log;
    int rows, axes, width, page_len, kept, padding;
};

KERNEL void __launch_bounds__(256) advance(const __grid_constant__ Step s) {
    const int row = int(blockIdx.x * 256 + threadIdx.x);
    if (row >= s.rows) return;
    const int length = s.lengths[row], token = s.token[row];
    int* entry = s.log + (int64_t(row) * s.kept + length % s.kept) * 3;
    entry[0] = token;
    entry[1] = int(__float_as_uint(s.logp[row]));
    entry[2] = int(__float_as_uint(s.entropy[row]));
    if (token < 0 || length >= s.until[row]) return;
    s.tokens[row] = token;
    for (int axis = 0; axis < s.axes; axis++) s.positions[axis * s.rows + row]++;
    s.slots[row] = s.tables[int64_t(row) * s.width + length / s.page_len] * s.page_len + length % s.page_len;
    s.lengths[row] = length + 1;
    Draw& draw = s.draws[row];
    draw.position = unsigned(length) + 1;
    if (draw.first < draw.end) s.seen[draw.end++] = token;
}
EMU_REGISTER(advance)
