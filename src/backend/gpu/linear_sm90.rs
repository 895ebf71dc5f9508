//! Linears on Hopper, by `kernels/linear_sm90.cu`: which are its, on which tiles, with which arguments.
//!
//! A weight is either this kernel's or the portable one's, by its shape and its op alone and for good: their sums have
//! different orders, and a row's bits must not depend on the rows beside it. It is used where [`Gpu::on_hopper`] was
//! called, which nothing does until a chip has shown it right.

use super::device::{Gpu, expect_dtype, int};
use super::{Address, Argument, Launch, Runtime, TensorMap, TensorShape};
use crate::{
    backend::{Activation, Epilogue, Linear, check},
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

/// Adapters one launch serves.
const ADAPTERS: usize = 8;

/// Rows of a tile.
const ROWS: usize = 128;

/// Elements of K, and of ranks, in one stage.
const DEPTH: usize = 64;

const THREADS: u32 = 384;
const SHARED: u32 = 213_136;

/// Whether W `[N, K]` with results of this dtype is the twin's: TMA wants rows of whole 16 bytes.
pub(super) fn suits(weight: &Tensor, out: Dtype) -> bool {
    weight.rows().is_multiple_of(8) && weight.row_len().is_multiple_of(8) && out == Dtype::BF16
}

/// See [`crate::backend::Backend::linear`]; `blocks` run at a time.
pub(super) fn linear<R: Runtime>(
    gpu: &Gpu<R>,
    blocks: usize,
    out: &mut Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    const OP: &str = "linear";
    check::linear(OP, out, x, linear, epilogue)?;
    let (adds, gain, function) = match epilogue {
        Epilogue::Store => (false, None, None),
        Epilogue::Add => (true, None, None),
        Epilogue::AddScaled(gain) => (true, Some(gain), None),
        Epilogue::Activate(function) => (false, None, Some(function)),
    };
    if let Some(gain) = gain {
        expect_dtype(OP, "gain", gain, Dtype::BF16)?;
    }
    Job { gpu, op: OP, blocks, x, sides: &[linear], adds, gain, function }.run(out)
}

/// See [`crate::backend::Backend::gated_linear`]; `blocks` run at a time.
pub(super) fn gated_linear<R: Runtime>(
    gpu: &Gpu<R>,
    blocks: usize,
    out: &mut Tensor,
    x: &Tensor,
    [gate, up]: [&Linear<'_>; 2],
    activation: Activation,
) -> Result<()> {
    check::gated_linear(out, x, gate, up)?;
    let function = Some(activation);
    Job { gpu, op: "gated_linear", blocks, x, sides: &[gate, up], adds: false, gain: None, function }.run(out)
}

/// A linear, or with two sides a gated one.
struct Job<'a, R: Runtime> {
    gpu: &'a Gpu<R>,
    op: &'static str,
    blocks: usize,
    x: &'a Tensor,
    sides: &'a [&'a Linear<'a>],
    adds: bool,
    gain: Option<&'a Tensor>,
    function: Option<Activation>,
}

/// s·(h·Bᵀ) for some rows.
struct Tail<'a> {
    rows: Range<usize>,
    /// x·Aᵀ of those rows, `[rows, R]`.
    h: Tensor,
    b: &'a Tensor,
    scale: f32,
    /// Which of the sides it belongs to.
    side: usize,
}

impl<R: Runtime> Job<'_, R> {
    fn run(&self, out: &mut Tensor) -> Result<()> {
        let Job { gpu, op, x, .. } = *self;
        expect_dtype(op, "out", out, Dtype::BF16)?;
        expect_dtype(op, "x", x, Dtype::BF16)?;
        for side in self.sides {
            expect_dtype(op, "weight", side.weight, Dtype::BF16)?;
            side.bias.map_or(Ok(()), |bias| expect_dtype(op, "bias", bias, Dtype::BF16))?;
        }
        if out.is_empty() {
            return Ok(());
        }
        let target = gpu.target(out)?;
        let tails = self.tails()?;
        let served: Vec<Range<usize>> = tails.iter().map(|tail| tail.rows.clone()).collect();
        spans(x.rows(), &served, ADAPTERS).into_iter().try_for_each(|rows| self.launch(target, rows, &tails))
    }

    /// The first products of all adapters.
    fn tails(&self) -> Result<Vec<Tail<'_>>> {
        let mut tails = Vec::new();
        for (side, linear) in self.sides.iter().enumerate() {
            for lora in linear.lora {
                let (rank, length) = (lora.a.rows(), lora.rows.len());
                if !rank.is_multiple_of(8) {
                    let say = format!("an adapter has rank {rank}; on Hopper it has to be a multiple of 8");
                    return Err(Error::caller(self.op, say));
                }
                expect_dtype(self.op, "lora a", lora.a, Dtype::BF16)?;
                expect_dtype(self.op, "lora b", lora.b, Dtype::BF16)?;
                if rank == 0 || length == 0 {
                    continue;
                }
                let mut h = self.gpu.temporary(Dtype::BF16, &[length, rank])?;
                let first = Linear { weight: lora.a, bias: None, lora: &[] };
                let x = &self.x.rows_of(lora.rows.clone())?;
                let job = Job { x, sides: &[&first], adds: false, gain: None, function: None, ..*self };
                job.run(&mut h)?;
                tails.push(Tail { rows: lora.rows.clone(), h, b: lora.b, scale: lora.scale, side });
            }
        }
        Ok(tails)
    }

    /// Some rows, with the tails that reach into them.
    fn launch(&self, target: Address, rows: Range<usize>, tails: &[Tail<'_>]) -> Result<()> {
        let Job { gpu, op, x, .. } = *self;
        let weight = self.sides[0].weight;
        let (columns, inner) = (weight.rows(), weight.row_len());
        let tile = Tile::of(columns, self.sides.len() == 2);
        let at = |address: Address, width: usize| address.plus(rows.start * width * 2);
        let map = |address, sizes, tile: [usize; 2], swizzle| {
            Ok::<_, Error>(Argument::TensorMap(map(gpu.runtime(), address, sizes, tile, swizzle)?))
        };
        let mut arguments = vec![
            map(at(target, columns), [rows.len(), columns], [64, 32], 64)?,
            map(at(gpu.at(x)?, inner), [rows.len(), inner], [ROWS, DEPTH], 128)?,
        ];
        for side in self.sides {
            arguments.push(map(gpu.at(side.weight)?, [columns, inner], [tile.columns, DEPTH], 128)?);
        }
        for side in self.sides {
            arguments.push(Argument::Address(gpu.at_or_null(side.bias)?));
        }
        if self.sides.len() == 1 {
            arguments.push(Argument::Address(gpu.at_or_null(self.gain)?));
        }
        let mut table: Vec<Adapter> = Vec::new();
        for tail in tails.iter().filter(|tail| tail.rows.start < rows.end && rows.start < tail.rows.end) {
            table.push(self.adapter(tail, &rows, &tile)?);
        }
        let sizes = Sizes {
            rows: int(op, "rows", rows.len())?,
            inner: int(op, "inner", inner)?,
            columns: int(op, "columns", columns)?,
            adapters: table.len() as i32,
            adds: i32::from(self.adds),
            function: number(self.function),
        };
        table.resize(ADAPTERS, bytemuck::Zeroable::zeroed());
        arguments.push(Argument::Struct(bytemuck::cast_slice(&table).to_vec()));
        arguments.push(Argument::Struct(bytemuck::bytes_of(&sizes).to_vec()));
        let grid = [tile.grid(rows.len(), columns, self.blocks), 1, 1];
        gpu.launch(&Launch {
            kernel: tile.kernel,
            grid,
            block: [THREADS, 1, 1],
            shared: SHARED,
            arguments: &arguments,
        })
    }

    fn adapter(&self, tail: &Tail<'_>, rows: &Range<usize>, tile: &Tile) -> Result<Adapter> {
        let (gpu, rank) = (self.gpu, tail.b.row_len());
        let place = |row: usize| int(self.op, "rows", row);
        // Rows before the span's are left out of h, so that its first row is never before the span's first.
        let skipped = rows.start.saturating_sub(tail.rows.start);
        let (from, to) = (tail.rows.start.max(rows.start), tail.rows.end.min(rows.end));
        let h = gpu.at(&tail.h)?.plus(skipped * rank * 2);
        Ok(Adapter {
            h: map(gpu.runtime(), h, [to - from, rank], [ROWS, DEPTH], 128)?,
            b: map(gpu.runtime(), gpu.at(tail.b)?, [tail.b.rows(), rank], [tile.columns, DEPTH], 128)?,
            from: place(from - rows.start)?,
            to: place(to - rows.start)?,
            steps: int(self.op, "rank", rank.div_ceil(DEPTH))?,
            up: i32::from(tail.side == 1),
            scale: tail.scale,
            unused: [0; 27],
        })
    }
}

/// As the kernel has it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Adapter {
    h: TensorMap,
    b: TensorMap,
    from: i32,
    to: i32,
    steps: i32,
    up: i32,
    scale: f32,
    unused: [i32; 27],
}

/// As the kernel has it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Sizes {
    rows: i32,
    inner: i32,
    columns: i32,
    adapters: i32,
    adds: i32,
    function: i32,
}

/// As the kernel counts them.
fn number(function: Option<Activation>) -> i32 {
    match function {
        None => 0,
        Some(Activation::Silu) => 1,
        Some(Activation::Gelu) => 2,
        Some(Activation::GeluTanh) => 3,
        Some(Activation::QuickGelu) => 4,
    }
}

/// How TMA sees a bf16 matrix; sizes and tile are rows and columns.
fn map<R: Runtime>(
    runtime: &R,
    address: Address,
    [rows, columns]: [usize; 2],
    [high, wide]: [usize; 2],
    swizzle: u32,
) -> Result<TensorMap> {
    runtime.tensor_map(&TensorShape {
        address,
        element: 2,
        sizes: &[columns as u64, rows as u64],
        strides: &[columns as u64 * 2],
        tile: &[wide as u32, high as u32],
        swizzle,
    })
}

/// A kernel and the columns of out in its tiles.
#[derive(Debug, PartialEq, Eq)]
struct Tile {
    kernel: &'static str,
    columns: usize,
}

impl Tile {
    /// By the weight's shape and its op alone.
    fn of(columns: usize, gated: bool) -> Self {
        let (kernel, columns) = match columns {
            _ if gated => ("linear_sm90_gated", 96),
            ..=64 => ("linear_sm90_narrow", 64),
            _ => ("linear_sm90", 192),
        };
        Tile { kernel, columns }
    }

    /// Blocks, which take turns at the tiles.
    fn grid(&self, rows: usize, columns: usize, blocks: usize) -> u32 {
        (rows.div_ceil(ROWS) * columns.div_ceil(self.columns)).min(blocks).min(u32::MAX as usize) as u32
    }
}

/// Cuts rows such that at most `limit` of the ranges reach into each part. At most `limit` may begin in one place.
fn spans(rows: usize, ranges: &[Range<usize>], limit: usize) -> Vec<Range<usize>> {
    let mut starts: Vec<&Range<usize>> = ranges.iter().collect();
    starts.sort_by_key(|range| range.start);
    let mut cuts = vec![0];
    let mut inside: Vec<&Range<usize>> = Vec::new();
    for range in starts {
        if inside.len() == limit {
            cuts.push(range.start);
            inside.retain(|other| other.end > range.start);
        }
        inside.push(range);
    }
    cuts.push(rows);
    cuts.windows(2).map(|cut| cut[0]..cut[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_chosen_by_the_weight() {
        assert_eq!(Tile::of(64, false).kernel, "linear_sm90_narrow");
        assert_eq!(Tile::of(72, false).kernel, "linear_sm90");
        assert_eq!(Tile::of(8, true).kernel, "linear_sm90_gated");
        assert_eq!(Tile::of(2048, false).grid(4096, 2048, 132), 132);
        assert_eq!(Tile::of(2048, false).grid(1, 2048, 132), 11);
        assert_eq!(Tile::of(11008, true).grid(129, 11008, 1000), 2 * 115);
    }

    #[test]
    fn rows_are_cut_where_a_launch_has_its_fill_of_adapters() {
        assert_eq!(spans(10, &[], 1), vec![0..10; 1]);
        assert_eq!(spans(10, &[0..5, 5..10], 2), vec![0..10; 1]);
        assert_eq!(spans(10, &[6..9, 1..3, 3..6], 2), [0..6, 6..10]);
        // Both sides of a gated linear: the pair that is under way stays with the rows it has left.
        assert_eq!(spans(10, &[0..8, 0..3, 3..5, 5..8], 2), [0..3, 3..5, 5..10]);
    }
}
