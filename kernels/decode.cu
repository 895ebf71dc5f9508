// What a device does by itself between two decoding passes: what each row has drawn becomes its next input, or is kept in a
// seat for a pass that is laid out before the host has seen it. There is a seat for each sequence, whatever its row.
//
//   advance      log[b, lengths[b] % K] = token[b], logp[b], entropy[b]; seats[seat[b]] = token[b]
//                if lengths[b] < until[b]: token drawn and seen, positions + 1, lengths + 1,
//                slot = tables[b, lengths[b] / P] P + lengths[b] % P. Else the row stays as it is, and the next pass
//                computes the same again, to the same place
//   keep_seats   seats[seat[b]] = token[b]
//   take_seats   tokens[t] = seats[~tokens[t]] where tokens[t] < 0
//
// in      token i32 [B], logp, entropy f32 [B]: drawn; tables i32 [B, width]; until i32 [B]; seat i32 [B], distinct, below
//         0 where there is none. A token below 0 (a logit was not finite) lets a row stay as it is, and leaves 0 in its seat
// inout   tokens i32 [B], positions i32 [axes, B], slots, lengths i32 [B]: the pass's; draws [B]: positions, and ends of
//         seen tokens in rows that have any; seen i32, with room for those drawn; log i32 [B, K, 3], floats by their bits;
//         seats i32 [S]; take_seats: tokens i32 [T]
// launch  grid (B / 256) or (T / 256), block (256), no shared memory
// floor   bytes 64 + 8 axes a row, keep_seats 12, take_seats 12: bound by its launch. B = 512: 2 us
// order   none: a row is a thread's alone
// pair    no backward; CPU reference: model::packed lays the next pass out anew; emulated: yes
#include "common/draw.cuh"

// Laid out by src/backend/gpu/decode.rs.
struct Step {
    const int* token;
    const float *logp, *entropy;
    const int *tables, *until, *seat;
    int *tokens, *positions, *slots, *lengths;
    Draw* draws;
    int *seen, *log, *seats;
    int rows, axes, width, page_len, kept, padding;
};

__device__ __forceinline__ void keep(int* seats, int seat, int token) {
    if (seat >= 0) seats[seat] = max(token, 0);
}

KERNEL void __launch_bounds__(256) advance(const __grid_constant__ Step s) {
    const int row = int(blockIdx.x * 256 + threadIdx.x);
    if (row >= s.rows) return;
    const int length = s.lengths[row], token = s.token[row];
    int* entry = s.log + (int64_t(row) * s.kept + length % s.kept) * 3;
    entry[0] = token;
    entry[1] = int(__float_as_uint(s.logp[row]));
    entry[2] = int(__float_as_uint(s.entropy[row]));
    keep(s.seats, s.seat[row], token);
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

KERNEL void __launch_bounds__(256) keep_seats(int* seats, const int* seat, const int* token, int rows) {
    const int row = int(blockIdx.x * 256 + threadIdx.x);
    if (row < rows) keep(seats, seat[row], token[row]);
}
EMU_REGISTER(keep_seats)

KERNEL void __launch_bounds__(256) take_seats(int* tokens, const int* seats, int rows) {
    const int row = int(blockIdx.x * 256 + threadIdx.x);
    if (row < rows && tokens[row] < 0) tokens[row] = seats[~tokens[row]];
}
EMU_REGISTER(take_seats)
