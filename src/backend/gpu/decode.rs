//! What a device does between two decoding passes: `kernels/decode.cu`.

use super::{
    Address,
    Argument::{self, Address as At, I32, Struct},
    Launch, Runtime,
    device::{Gpu, expect_dtype, int},
    head,
};
use crate::{
    backend::Advance,
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};

/// `struct Step` of `kernels/decode.cu`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Step {
    token: Address,
    logp: Address,
    entropy: Address,
    tables: Address,
    until: Address,
    seat: Address,
    tokens: Address,
    positions: Address,
    slots: Address,
    lengths: Address,
    draws: Address,
    seen: Address,
    log: Address,
    seats: Address,
    rows: i32,
    axes: i32,
    width: i32,
    page_len: i32,
    kept: i32,
    padding: i32,
}

/// See [`crate::backend::Recorder::advance`].
pub(super) fn advance<R: Runtime>(gpu: &Gpu<R>, step: &Advance<'_>) -> Result<()> {
    const OP: &str = "advance";
    let &Advance { drawn, table, tokens, positions, slots, lengths, tables, page_len, .. } = step;
    let &Advance { until, seat, seats, log, .. } = step;
    let rows = tokens.len();
    let Some(entropy) = &drawn.entropy else {
        return Err(Error::caller(OP, "entropy is not drawn; a log has room for it"));
    };
    let at = |name: &str, tensor: &Tensor, shape: &[usize]| {
        expect_dtype(OP, name, tensor, Dtype::I32)?;
        match tensor.shape() == shape {
            true => gpu.at(tensor),
            false => Err(Error::caller(OP, format!("{name} is {tensor:?}, expected {shape:?}"))),
        }
    };
    let [axes, kept] = [positions.rows(), log.shape().get(1).copied().unwrap_or(0)];
    let (width, room) = (tables.row_len(), table.seen.map_or(0, Tensor::row_len));
    if page_len == 0 || kept == 0 || (table.seen.is_some() && room < width * page_len) {
        let what =
            format!("pages of {page_len}, a log {log:?}, room for {room} tokens seen of {width} pages");
        return Err(Error::caller(OP, what));
    }
    let sizes = [("rows", rows), ("axes", axes), ("pages", width), ("page length", page_len), ("log", kept)];
    let [rows_, axes_, width_, page_len, kept_] = sizes.map(|(name, size)| int(OP, name, size));
    let state = Step {
        token: at("token", &drawn.token, &[rows])?,
        logp: gpu.at(&drawn.logp)?,
        entropy: gpu.at(entropy)?,
        tables: at("tables", tables, &[rows, width])?,
        until: at("until", until, &[rows])?,
        seat: at("seat", seat, &[rows])?,
        tokens: at("tokens", tokens, &[rows])?,
        positions: at("positions", positions, &[axes, rows])?,
        slots: at("slots", slots, &[rows])?,
        lengths: at("lengths", lengths, &[rows])?,
        draws: at("settings", table.settings, &[rows, head::SETTINGS_WORDS])?,
        seen: table.seen.map_or(Ok(Address(0)), |seen| at("seen", seen, &[rows, room]))?,
        log: at("log", log, &[rows, kept, 3])?,
        seats: at("seats", seats, &[seats.len()])?,
        rows: rows_?,
        axes: axes_?,
        width: width_?,
        page_len: page_len?,
        kept: kept_?,
        padding: 0,
    };
    by_rows(gpu, OP, rows, &[Struct(bytemuck::bytes_of(&state).to_vec())])
}

/// See [`crate::backend::Recorder::take_seats`].
pub(super) fn take_seats<R: Runtime>(gpu: &Gpu<R>, tokens: &Tensor, seats: &Tensor) -> Result<()> {
    const OP: &str = "take_seats";
    expect_dtype(OP, "tokens", tokens, Dtype::I32)?;
    expect_dtype(OP, "seats", seats, Dtype::I32)?;
    let rows = int(OP, "tokens", tokens.len())?;
    by_rows(gpu, OP, tokens.len(), &[At(gpu.at(tokens)?), At(gpu.at(seats)?), I32(rows)])
}

/// See [`crate::backend::Recorder::keep_seats`].
pub(super) fn keep_seats<R: Runtime>(
    gpu: &Gpu<R>,
    seats: &Tensor,
    seat: &Tensor,
    drawn: &Tensor,
) -> Result<()> {
    const OP: &str = "keep_seats";
    for (name, tensor) in [("seats", seats), ("seat", seat), ("drawn", drawn)] {
        expect_dtype(OP, name, tensor, Dtype::I32)?;
    }
    if seat.len() != drawn.len() {
        return Err(Error::caller(OP, format!("seat is {seat:?}, expected one for each of {drawn:?}")));
    }
    let rows = int(OP, "draws", drawn.len())?;
    let arguments = [At(gpu.at(seats)?), At(gpu.at(seat)?), At(gpu.at(drawn)?), I32(rows)];
    by_rows(gpu, OP, drawn.len(), &arguments)
}

/// A thread to a row.
fn by_rows<R: Runtime>(gpu: &Gpu<R>, kernel: &str, rows: usize, arguments: &[Argument]) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let grid = [rows.div_ceil(256) as u32, 1, 1];
    gpu.launch(&Launch { kernel, grid, block: [256, 1, 1], shared: 0, arguments })
}
