//! Linears: products by tiles, and everything that happens to a tile while it is warm.

use super::{
    Cpu,
    isa::{Isa, LANES, with_isa},
    math,
    scratch::Scratch,
    tile::{Tile, tiles},
    values::{Matrix, Rows, floats, floats_mut, narrow, vector},
};
use crate::{
    backend::{Activation, Epilogue, Linear, check},
    error::Result,
    tensor::{Dtype, Tensor},
};
use std::{borrow::Cow, ops::Range};

/// Rows of a tile: enough for what is done once per tile and column to cost little.
const HEIGHT: usize = 512;

/// Columns of a tile of many rows: a panel's, so that no tile ends in a narrow one.
const WIDTH: usize = 48;

/// Rows up to which weights are read from memory for every row anew, and up to which that reading is most of the work.
const FEW: usize = 8;
const SEVERAL: usize = 64;

/// Products that one thread does in the time it takes to wake another.
const ALONE: usize = 1 << 15;

/// Weights that take so long to read that it matters little how long the first of them take to come.
const WORTHWHILE: usize = 1 << 15;

/// A linear whose tensors have been looked at and whose adapters' first products are done.
struct Layer<'a> {
    weight: Matrix<'a>,
    bias: Option<Cow<'a, [f32]>>,
    adapters: Vec<Adapter<'a>>,
}

struct Adapter<'a> {
    rows: Range<usize>,
    /// x·Aᵀ for those rows.
    hidden: Rows<'static>,
    b: Matrix<'a>,
    scale: f32,
}

/// An epilogue whose gain has been looked at.
enum Finish<'a> {
    Store,
    Add,
    AddScaled(Cow<'a, [f32]>),
    Activate(Activation),
}

/// See [`crate::backend::Backend::linear`].
pub(super) fn linear(
    cpu: &Cpu,
    out: &mut Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    const OP: &str = "linear";
    let sizes = check::linear(OP, out, x, linear, epilogue)?;
    let finish = match epilogue {
        Epilogue::Store => Finish::Store,
        Epilogue::Add => Finish::Add,
        Epilogue::AddScaled(gain) => Finish::AddScaled(vector(OP, "gain", gain)?),
        Epilogue::Activate(activation) => Finish::Activate(activation),
    };
    let out = floats_mut(OP, "out", out)?;
    let x = prepare(cpu, Cow::Borrowed(floats(OP, "x", x)?), sizes.inner, is_narrow(linear));
    let layer = Layer::prepare(cpu, OP, &x, linear)?;
    let tiles = tiles(out, sizes.columns, HEIGHT, |left| width(cpu, sizes.rows, left, sizes.inner));
    with_isa!(cpu.level, isa => cpu.spread(tiles, |tile| {
        isa.run(#[inline(always)] || {
            let y = layer.tile(isa, &x, &tile);
            finish_tile(tile, &y, &finish);
        });
    }));
    Ok(())
}

/// See [`crate::backend::Backend::linears`]: the threads meet once for all of them.
pub(super) fn linears(cpu: &Cpu, outs: &mut [&mut Tensor], x: &Tensor, linears: &[Linear<'_>]) -> Result<()> {
    const OP: &str = "linear";
    let (inner, values) = (x.row_len(), floats(OP, "x", x)?);
    let x_rows = prepare(cpu, Cow::Borrowed(values), inner, linears.iter().any(is_narrow));
    let mut layers = Vec::with_capacity(linears.len());
    let mut pieces = Vec::new();
    for (at, (out, linear)) in outs.iter_mut().zip(linears).enumerate() {
        let sizes = check::linear(OP, out, x, linear, Epilogue::Store)?;
        layers.push(Layer::prepare(cpu, OP, &x_rows, linear)?);
        let out = floats_mut(OP, "out", out)?;
        let tiles = tiles(out, sizes.columns, HEIGHT, |left| width(cpu, sizes.rows, left, inner));
        pieces.extend(tiles.into_iter().map(|tile| (at, tile)));
    }
    with_isa!(cpu.level, isa => cpu.spread(pieces, |(at, tile)| {
        isa.run(#[inline(always)] || {
            let y = layers[at].tile(isa, &x_rows, &tile);
            finish_tile(tile, &y, &Finish::Store);
        });
    }));
    Ok(())
}

/// See [`crate::backend::Backend::gated_linear`].
pub(super) fn gated_linear(
    cpu: &Cpu,
    out: &mut Tensor,
    x: &Tensor,
    gate: &Linear<'_>,
    up: &Linear<'_>,
    activation: Activation,
) -> Result<()> {
    const OP: &str = "gated_linear";
    let sizes = check::gated_linear(out, x, gate, up)?;
    let out = floats_mut(OP, "out", out)?;
    let narrow = is_narrow(gate) || is_narrow(up);
    let x = prepare(cpu, Cow::Borrowed(floats(OP, "x", x)?), sizes.inner, narrow);
    let (gate, up) = (Layer::prepare(cpu, OP, &x, gate)?, Layer::prepare(cpu, OP, &x, up)?);
    let tiles = tiles(out, sizes.columns, HEIGHT, |left| width(cpu, sizes.rows, left, sizes.inner));
    with_isa!(cpu.level, isa => cpu.spread(tiles, |tile| {
        isa.run(#[inline(always)] || {
            let mut gate = gate.tile(isa, &x, &tile);
            let up = up.tile(isa, &x, &tile);
            math::activate(&mut gate, activation);
            gate.iter_mut().zip(up.iter()).for_each(|(gate, &up)| *gate *= up);
            finish_tile(tile, &gate, &Finish::Store);
        });
    }));
    Ok(())
}

/// x·Wᵀ alone, for an adapter's first product.
pub(super) fn plain_products(
    cpu: &Cpu,
    out: &mut [f32],
    x: &Rows<'_>,
    first_row: usize,
    weight: Matrix<'_>,
    columns: usize,
) {
    let tiles = tiles(out, columns, HEIGHT, |_| WIDTH);
    with_isa!(cpu.level, isa => cpu.spread(tiles, |tile| {
        isa.run(#[inline(always)] || {
            let mut y = Scratch::new(tile.rows.len() * tile.columns.len());
            let rows = first_row + tile.rows.start..first_row + tile.rows.end;
            x.products(isa, &mut y, rows, weight, tile.columns.clone());
            finish_tile(tile, &y, &Finish::Store);
        });
    }));
}

impl<'a> Layer<'a> {
    fn prepare(cpu: &Cpu, op: &'static str, x: &Rows<'_>, linear: &Linear<'a>) -> Result<Self> {
        let adapters = linear.lora.iter().map(|lora| {
            let rank = lora.a.rows();
            let mut hidden = vec![0.0; lora.rows.len() * rank]; // [T, R]
            plain_products(cpu, &mut hidden, x, lora.rows.start, Matrix::of(op, "lora a", lora.a)?, rank);
            Ok(Adapter {
                rows: lora.rows.clone(),
                hidden: prepare(cpu, Cow::Owned(hidden), rank, lora.b.dtype() == Dtype::BF16),
                b: Matrix::of(op, "lora b", lora.b)?,
                scale: lora.scale,
            })
        });
        Ok(Layer {
            weight: Matrix::of(op, "weight", linear.weight)?,
            bias: linear.bias.map(|bias| vector(op, "bias", bias)).transpose()?,
            adapters: adapters.collect::<Result<_>>()?,
        })
    }

    /// base + bias + s·adapter, in this order, for one tile.
    #[inline(always)]
    fn tile<I: Isa>(&self, isa: I, x: &Rows<'_>, tile: &Tile<'_>) -> Scratch<f32> {
        let width = tile.columns.len();
        let mut y = Scratch::new(tile.rows.len() * width);
        x.products(isa, &mut y, tile.rows.clone(), self.weight, tile.columns.clone());
        if let Some(bias) = &self.bias {
            for y in y.chunks_exact_mut(width) {
                y.iter_mut().zip(&bias[tile.columns.clone()]).for_each(|(y, &b)| *y += b);
            }
        }
        for adapter in &self.adapters {
            let rows = adapter.rows.start.max(tile.rows.start)..adapter.rows.end.min(tile.rows.end);
            if rows.is_empty() {
                continue;
            }
            let mut delta = Scratch::<f32>::new(rows.len() * width);
            let own = rows.start - adapter.rows.start..rows.end - adapter.rows.start;
            adapter.hidden.products(isa, &mut delta, own, adapter.b, tile.columns.clone());
            let y = &mut y[(rows.start - tile.rows.start) * width..][..delta.len()];
            y.iter_mut().zip(delta.iter()).for_each(|(y, &d)| *y += adapter.scale * d);
        }
        y
    }
}

/// Whether a linear reads the rounded activation.
fn is_narrow(linear: &Linear<'_>) -> bool {
    let narrow = |tensor: &Tensor| tensor.dtype() == Dtype::BF16;
    narrow(linear.weight) || linear.lora.iter().any(|lora| narrow(lora.a))
}

/// Rounds rows, if their weight needs it.
pub(super) fn prepare<'a>(cpu: &Cpu, values: Cow<'a, [f32]>, inner: usize, rounded: bool) -> Rows<'a> {
    let length = if rounded { values.len() } else { 0 };
    let mut rows = Rows { values, narrow: Scratch::new(length), inner };
    if rounded {
        const PIECE: usize = 1 << 16;
        let pieces: Vec<_> = rows.narrow.chunks_mut(PIECE).zip(rows.values.chunks(PIECE)).collect();
        with_isa!(cpu.level, isa => cpu.spread(pieces, |(to, from)| {
            isa.run(#[inline(always)] || narrow(to, from));
        }));
    }
    rows
}

/// Columns of the next tile, of those that are left. Many rows: a panel's. Less: a share that gets smaller, in whole
/// vectors or panels, so that threads of unequal speed end together. Little work: all of them.
fn width(cpu: &Cpu, rows: usize, left: usize, inner: usize) -> usize {
    let unit = if rows <= FEW { LANES } else { WIDTH };
    match rows {
        _ if rows * left * inner <= ALONE => left,
        ..=SEVERAL => left.div_ceil(2 * cpu.threads).max(WORTHWHILE.div_ceil(inner)).next_multiple_of(unit),
        _ => WIDTH,
    }
}

/// Writes a tile's results the way the epilogue says.
#[inline(always)]
fn finish_tile(tile: Tile<'_>, y: &[f32], finish: &Finish<'_>) {
    let (width, columns) = (tile.columns.len(), tile.columns.clone());
    for (out, y) in tile.into_rows().zip(y.chunks_exact(width)) {
        match finish {
            Finish::Store => out.copy_from_slice(y),
            Finish::Add => out.iter_mut().zip(y).for_each(|(out, &y)| *out += y),
            Finish::AddScaled(gain) => {
                let gain = &gain[columns.clone()];
                out.iter_mut().zip(y).zip(gain).for_each(|((out, &y), &g)| *out += g * y);
            }
            Finish::Activate(activation) => {
                out.copy_from_slice(y);
                math::activate(out, *activation);
            }
        }
    }
}
