//! What a device does between two decoding passes: `kernels/decode.cu`.

use super::{
    Address,
    Argument::Struct,
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
    tokens: Address,
    positions: Address,
    slots: Address,
    lengths: Address,
    draws: Address,
    seen: Address,
    log: Address,
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
    let &Advance { drawn, table, tokens, positions, slots, lengths, tables, page_len, until, log } = step;
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
        tokens: at("tokens", tokens, &[rows])?,
        positions: at("positions", positions, &[axes, rows])?,
        slots: at("slots", slots, &[rows])?,
        lengths: at("lengths", lengths, &[rows])?,
        draws: at("settings", table.settings, &[rows, head::SETTINGS_WORDS])?,
        seen: table.seen.map_or(Ok(Address(0)), |seen| at("seen", seen, &[rows, room]))?,
        log: at("log", log, &[rows, kept, 3])?,
        rows: rows_?,
        axes: axes_?,
        width: width_?,
        page_len: page_len?,
        kept: kept_?,
        padding: 0,
    };
    if rows == 0 {
        return Ok(());
    }
    gpu.launch(&Launch {
        kernel: OP,
        grid: [rows.div_ceil(256) as u32, 1, 1],
        block: [256, 1, 1],
        shared: 0,
        arguments: &[Struct(bytemuck::bytes_of(&state).to_vec())],
    })
}
