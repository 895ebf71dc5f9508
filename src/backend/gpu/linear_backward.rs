//! Gradients of linears: the forward's tiles, cut and launched by the same code, over matrices met from behind.

use super::{
    Address,
    Argument::{Address as At, F32, I32},
    Runtime, column_sums,
    device::{Gpu, expect_dtype, int},
    linear::{
        ADAPTERS, Adapters, CHUNK, Operands, Part, Product, check_types, multiprocessors, parts, serves,
    },
};
use crate::{
    backend::{Linear, LinearGrads, LoraRows, check},
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use bytemuck::Zeroable;
use std::ops::Range;

const OP: &str = "linear_backward";

/// Stored, or added to what is there, in bf16 and in f32; in `enum Ending`.
const STORE: i32 = 0;
const STORE_F32: i32 = 1;
const ADD: i32 = 2;
const ADD_F32: i32 = 8;

/// See [`crate::backend::Backend::linear_backward`].
pub(super) fn linear_backward<R: Runtime>(
    gpu: &Gpu<R>,
    mut dx: Option<&mut Tensor>,
    add: bool,
    grads: LinearGrads<'_>,
    dy: &Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
) -> Result<()> {
    let sizes = check::linear_backward(dx.as_deref(), &grads, dy, x, linear)?;
    check_types(OP, x, &[linear])?;
    expect_dtype(OP, "dy", dy, Dtype::BF16)?;
    if let Some(dx) = &dx {
        expect_dtype(OP, "dx", dx, Dtype::BF16)?;
    }
    let LinearGrads { weight, bias, lora: mut lora_grads } = grads;
    let pairs = lora_grads.iter().flat_map(|pair| [("lora da", &*pair.a), ("lora db", &*pair.b)]);
    let single = [("dweight", weight.as_deref()), ("dbias", bias.as_deref())];
    for (name, tensor) in single.into_iter().filter_map(|(name, one)| Some((name, one?))).chain(pairs) {
        expect_dtype(OP, name, tensor, Dtype::F32)?;
    }
    if sizes.inner == 0 || sizes.columns == 0 {
        return Err(Error::caller(OP, format!("weight is {:?}, expected no empty axis", linear.weight)));
    }
    let check::LinearSizes { rows, inner, columns } = sizes;
    let (dy_at, x_at) = (gpu.at(dy)?, gpu.at(x)?);
    let (dy_row, x_row) = (columns * 2, inner * 2); // bytes
    let lora: Vec<(usize, &LoraRows<'_>)> =
        linear.lora.iter().filter(|lora| serves(lora)).map(|lora| (0, lora)).collect();
    let ranges: Vec<Range<usize>> = lora.iter().map(|(_, lora)| lora.rows.clone()).collect();
    let mut wanted: Vec<_> = lora_grads
        .iter_mut()
        .zip(linear.lora)
        .filter(|(_, lora)| serves(lora))
        .map(|(pair, _)| pair)
        .collect();
    for part in parts(rows, &ranges, ADAPTERS) {
        let table = Adapters::of(gpu, OP, &lora, &part)?;
        let (dy, x) = (dy_at.plus(part.start * dy_row), x_at.plus(part.start * x_row));
        let rows = part.len();
        let back = Part {
            op: OP,
            family: OP,
            sizes: check::LinearSizes { rows, inner: columns, columns: inner },
            table: table.turned(),
            hopper: false,
        };
        let needs_g = dx.is_some() || !wanted.is_empty();
        let g = if needs_g { back.shrink(gpu, "linear_backward_shrink", dy, 1)? } else { None };
        if let Some(dx) = dx.as_deref_mut() {
            let (out, weight) = (gpu.target(dx)?.plus(part.start * x_row), Linear { bias: None, ..*linear });
            let ending = if add { ADD } else { STORE };
            let operands = Operands { out, x: dy, sides: &[&weight], gain: Address(0), ending };
            back.multiply(gpu, &operands, g.as_ref())?;
        }
        if wanted.is_empty() {
            continue;
        }
        let forward = Part { sizes: check::LinearSizes { rows, ..sizes }, table, ..back };
        let h = forward.shrink(gpu, "linear_shrink", x, 1)?;
        let (Some(g), Some(h)) = (g, h) else { continue };
        let pitch = h.shape()[2];
        let served = |lora: &LoraRows<'_>| {
            (lora.rows.start.max(part.start), lora.rows.end.min(part.end), lora.a.rows(), lora.scale)
        };
        for (pair, (_, lora)) in wanted.iter_mut().zip(&lora) {
            let (first, end, rank, scale) = served(lora);
            if first >= end {
                continue;
            }
            let (at, rows) = (first - part.start, end - first);
            let side = |from: Address, pitch: usize| (from.plus(at * pitch * 2), pitch);
            let (g, h) = (side(gpu.at(&g)?, pitch), side(gpu.at(&h)?, pitch));
            let (dy, x) = (side(dy, columns), side(x, inner));
            let (da, db) = (gpu.target(pair.a)?, gpu.target(pair.b)?);
            Outer { op: OP, out: da, sizes: [rank, inner], rows, scale }.add(gpu, g, x)?;
            Outer { op: OP, out: db, sizes: [columns, rank], rows, scale }.add(gpu, dy, h)?;
        }
    }
    if let (Some(weight), true) = (weight, rows > 0) {
        let outer = Outer { op: OP, out: gpu.target(weight)?, sizes: [columns, inner], rows, scale: 1.0 };
        outer.add(gpu, (dy_at, columns), (x_at, inner))?;
    }
    if let (Some(bias), true) = (bias, rows > 0) {
        column_sums::add(gpu, OP, gpu.target(bias)?, dy_at, None, [rows, columns])?;
    }
    Ok(())
}

/// out `[M, N]` += s·aᵀ·b over packed rows.
pub(super) struct Outer {
    pub(super) op: &'static str,
    pub(super) out: Address,
    pub(super) sizes: [usize; 2],
    pub(super) rows: usize,
    pub(super) scale: f32,
}

impl Outer {
    /// Of a and b, each with its elements from row to row.
    pub(super) fn add<R: Runtime>(
        &self,
        gpu: &Gpu<R>,
        (a, a_pitch): (Address, usize),
        (b, b_pitch): (Address, usize),
    ) -> Result<()> {
        let &Outer { op, out, sizes: [m, n], rows, scale } = self;
        let product = Product { rows: m, columns: n, chunks: rows.div_ceil(CHUNK), sides: 1, adapted: false };
        let cut = product.cut_outer(multiprocessors(gpu));
        // A part of a linear whose rows are M: for its work space and its launch.
        let sizes = check::LinearSizes { rows: m, inner: rows, columns: n };
        let part = Part { op, family: "linear_grad", sizes, table: Adapters::zeroed(), hopper: false };
        let (partial, tickets) = part.work_space(gpu, cut, n.next_multiple_of(8))?;
        let arguments = [
            At(out),
            At(a),
            At(b),
            At(gpu.at_or_null(partial.as_ref())?),
            At(tickets),
            I32(int(op, "rows", rows)?),
            I32(int(op, "rows of a gradient", m)?),
            I32(int(op, "columns of a gradient", n)?),
            I32(int(op, "elements of a row", a_pitch)?),
            I32(int(op, "elements of a row", b_pitch)?),
            F32(scale),
        ];
        part.send(gpu, part.family, cut, 1, &arguments)
    }
}

/// out f32 `[T, K]` = dy·W, or added to, of dy bf16 `[T, N]`.
pub(super) fn product<R: Runtime>(
    gpu: &Gpu<R>,
    op: &'static str,
    out: Address,
    add: bool,
    dy: Address,
    weight: &Tensor,
    rows: usize,
) -> Result<()> {
    let sizes = check::LinearSizes { rows, inner: weight.rows(), columns: weight.row_len() };
    let part = Part { op, family: OP, sizes, table: Adapters::zeroed(), hopper: false };
    let linear = Linear { weight, bias: None, lora: &[] };
    let ending = if add { ADD_F32 } else { STORE_F32 };
    part.multiply(gpu, &Operands { out, x: dy, sides: &[&linear], gain: Address(0), ending }, None)
}
