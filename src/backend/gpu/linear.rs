//! Linear layers: how a product is cut into tiles, and tables of adapters; `kernels/linear.cu` does the rest.
//!
//! Every cut gives the same bits, so tiles are chosen for speed alone.

use super::{
    Address,
    Argument::{self, Address as At, I32, Struct},
    Launch, Runtime,
    device::{Gpu, TICKETS, expect_dtype, int},
    linear_sm90,
};
use crate::{
    backend::{Activation, Epilogue, Linear, LoraRows, check},
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

/// Elements of K that are summed from zero.
pub(super) const CHUNK: usize = 512;

/// Adapters of all sides that one launch takes.
pub(super) const ADAPTERS: usize = 32;

/// f32 results, in `enum Ending`.
const STORE_F32: i32 = 1;

/// The largest rank; an adapter's product is one chunk.
const MAX_RANK: usize = CHUNK;

/// A tile as `kernels/linear.cu` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) name: &'static str,
    pub(super) rows: usize,
    /// Rows of W, of all sides together.
    pub(super) columns: usize,
    pub(super) threads: u32,
    pub(super) shared: u32,
}

impl Tile {
    const fn new(name: &'static str, rows: usize, columns: usize, warps: u32, stages: u32) -> Self {
        Tile { name, rows, columns, threads: warps * 32, shared: stages * (rows + columns) as u32 * 128 }
    }
}

const WIDE: Tile = Tile::new("wide", 128, 128, 8, 3);
const MIDDLE: Tile = Tile::new("middle", 64, 64, 4, 3);
const NARROW: Tile = Tile::new("narrow", 16, 64, 4, 6);
const NARROW_GATED: Tile = Tile::new("narrow", 16, 128, 4, 4);
const SLIM: Tile = Tile::new("slim", 64, 16, 4, 5);

/// How a product is spread over the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) tile: Tile,
    pub(super) tiles: usize,
    /// Blocks to a tile: 1, or one for each chunk of K and one for adapters.
    pub(super) slots: usize,
}

/// What there is to spread: rows and columns of out, chunks of K.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) chunks: usize,
    pub(super) sides: usize,
    pub(super) adapted: bool,
}

impl Product {
    /// Few rows get the narrow tile. Otherwise the busiest multiprocessor decides: a wide tile is four middle ones, of
    /// which each moves half again as much through shared memory for what it multiplies.
    fn cut(self, multiprocessors: usize) -> Cut {
        let tile = if self.rows <= 16 {
            if self.sides == 2 { NARROW_GATED } else { NARROW }
        } else {
            let most = |tile| self.tiles(tile).div_ceil(multiprocessors);
            if most(WIDE) * 4 * 2 <= most(MIDDLE) * 3 { WIDE } else { MIDDLE }
        };
        self.cut_into(tile, 1, multiprocessors)
    }

    /// The same for aᵀ·b, whose rows and columns are both an adapter's or a weight's.
    pub(super) fn cut_outer(self, multiprocessors: usize) -> Cut {
        let tile = match (self.rows, self.columns) {
            (0..=16, _) => NARROW,
            (_, 0..=16) => SLIM,
            _ => return self.cut(multiprocessors),
        };
        self.cut_into(tile, 1, multiprocessors)
    }

    /// The same for x·Aᵀ of so many adapters, where columns are few.
    fn cut_shrink(self, adapters: usize, multiprocessors: usize) -> Cut {
        let tile = match (self.rows, self.columns) {
            (0..=16, _) => NARROW,
            (_, 0..=16) => SLIM,
            _ => MIDDLE,
        };
        self.cut_into(tile, adapters, multiprocessors)
    }

    /// Tiles so few that multiprocessors idle are split by chunks of K, unless the sums, which then pass through
    /// memory (8TN bytes a chunk, next to 1024(T + N) of inputs), cost more than that.
    pub(super) fn cut_into(self, tile: Tile, times: usize, multiprocessors: usize) -> Cut {
        let tiles = self.tiles(tile);
        let idle = tiles * times < multiprocessors;
        let (sums, inputs) = (self.rows * self.columns, 128 * (self.rows + self.columns));
        let split = self.chunks > 1 && idle && tiles * times * (inputs + sums) < multiprocessors * inputs;
        Cut { tile, tiles, slots: if split { self.chunks + usize::from(self.adapted) } else { 1 } }
    }

    pub(super) fn tiles(self, tile: Tile) -> usize {
        self.rows.div_ceil(tile.rows) * self.columns.div_ceil(tile.columns / self.sides)
    }
}

/// One launch's adapters as the kernels take them.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Adapters {
    pub(super) a: [Address; ADAPTERS],
    pub(super) b: [Address; ADAPTERS],
    pub(super) first: [i32; ADAPTERS],
    pub(super) end: [i32; ADAPTERS],
    pub(super) rank: [i32; ADAPTERS],
    pub(super) side: [i32; ADAPTERS],
    pub(super) scale: [f32; ADAPTERS],
    pub(super) count: i32,
    unused: i32,
}

impl Adapters {
    /// Those with rows among `rows`, from the first of which their rows count.
    pub(super) fn of<R: Runtime>(
        gpu: &Gpu<R>,
        op: &'static str,
        lora: &[(usize, &LoraRows<'_>)],
        rows: &Range<usize>,
    ) -> Result<Self> {
        let mut table: Adapters = bytemuck::Zeroable::zeroed();
        for (side, lora) in lora {
            let (first, end) = (lora.rows.start.max(rows.start), lora.rows.end.min(rows.end));
            if first >= end {
                continue;
            }
            let at = table.count as usize;
            table.a[at] = gpu.at(lora.a)?;
            table.b[at] = gpu.at(lora.b)?;
            table.first[at] = int(op, "a row", first - rows.start)?;
            table.end[at] = int(op, "a row", end - rows.start)?;
            table.rank[at] = lora.a.rows() as i32;
            table.side[at] = *side as i32;
            table.scale[at] = lora.scale;
            table.count += 1;
        }
        Ok(table)
    }

    /// As the backward kernels take them, which multiply by B first.
    pub(super) fn turned(mut self) -> Self {
        std::mem::swap(&mut self.a, &mut self.b);
        self
    }
}

/// Split tiles, fewer than these, take a ticket each.
pub(super) fn multiprocessors<R: Runtime>(gpu: &Gpu<R>) -> usize {
    gpu.runtime().multiprocessors().min(TICKETS)
}

/// See [`crate::backend::Backend::linear`].
pub(super) fn linear<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    const OP: &str = "linear";
    let sizes = check::linear(OP, out, x, linear, epilogue)?;
    let (ending, gain) = match epilogue {
        Epilogue::Store if out.dtype() == Dtype::F32 => (STORE_F32, None),
        Epilogue::Store => (0, None),
        Epilogue::Add => (2, None),
        Epilogue::AddScaled(gain) => (3, Some(gain)),
        Epilogue::Activate(activation) => (function(activation), None),
    };
    if ending != STORE_F32 {
        expect_dtype(OP, "out", out, Dtype::BF16)?;
    }
    if let Some(gain) = gain {
        expect_dtype(OP, "gain", gain, Dtype::BF16)?;
    }
    run(gpu, OP, sizes, out, x, &[linear], gain, ending)
}

/// See [`crate::backend::Backend::gated_linear`].
pub(super) fn gated_linear<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    x: &Tensor,
    gate: &Linear<'_>,
    up: &Linear<'_>,
    activation: Activation,
) -> Result<()> {
    const OP: &str = "gated_linear";
    let sizes = check::gated_linear(out, x, gate, up)?;
    expect_dtype(OP, "out", out, Dtype::BF16)?;
    run(gpu, OP, sizes, out, x, &[gate, up], None, function(activation))
}

/// The number an activation has in `enum Ending`.
pub(super) fn function(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 4,
        Activation::Gelu => 5,
        Activation::GeluTanh => 6,
        Activation::QuickGelu => 7,
    }
}

#[expect(clippy::too_many_arguments, reason = "what two ops have in common")]
fn run<R: Runtime>(
    gpu: &Gpu<R>,
    op: &'static str,
    sizes: check::LinearSizes,
    out: &mut Tensor,
    x: &Tensor,
    sides: &[&Linear<'_>],
    gain: Option<&Tensor>,
    ending: i32,
) -> Result<()> {
    check_types(op, x, sides)?;
    if sizes.inner == 0 {
        return Err(Error::caller(op, format!("x is {x:?}, expected rows of at least one element")));
    }
    if out.is_empty() {
        return Ok(());
    }
    let lora: Vec<(usize, &LoraRows<'_>)> = sides
        .iter()
        .enumerate()
        .flat_map(|(side, linear)| linear.lora.iter().map(move |lora| (side, lora)))
        .filter(|(_, lora)| serves(lora))
        .collect();
    let ranges: Vec<Range<usize>> = lora.iter().map(|(_, lora)| lora.rows.clone()).collect();
    let hopper = gpu.uses_hopper() && ending != STORE_F32 && linear_sm90::suits(sides[0].weight);
    if hopper {
        lora.iter().try_for_each(|(_, lora)| linear_sm90::check_rank(op, lora))?;
    }
    let limit = if hopper { linear_sm90::TAILS } else { ADAPTERS };
    for rows in parts(sizes.rows, &ranges, limit) {
        let table = Adapters::of(gpu, op, &lora, &rows)?;
        let sizes = check::LinearSizes { rows: rows.len(), ..sizes };
        let part = Part { op, family: op, sizes, table, hopper };
        let (out_row, x_row) = (sizes.columns * out.dtype().size(), sizes.inner * x.dtype().size());
        let operands = Operands {
            out: gpu.target(out)?.plus(rows.start * out_row),
            x: gpu.at(x)?.plus(rows.start * x_row),
            sides,
            gain: gpu.at_or_null(gain)?,
            ending,
        };
        part.launch(gpu, &operands)?;
    }
    Ok(())
}

/// Whether an adapter does anything. With s = 0 (a policy's reference) nothing is added, to the bit: sums are never -0.
pub(super) fn serves(lora: &LoraRows<'_>) -> bool {
    !lora.rows.is_empty() && lora.a.rows() > 0 && lora.scale != 0.0
}

pub(super) fn check_types(op: &'static str, x: &Tensor, sides: &[&Linear<'_>]) -> Result<()> {
    expect_dtype(op, "x", x, Dtype::BF16)?;
    for linear in sides {
        expect_dtype(op, "weight", linear.weight, Dtype::BF16)?;
        if let Some(bias) = linear.bias {
            expect_dtype(op, "bias", bias, Dtype::BF16)?;
        }
        for (at, lora) in linear.lora.iter().enumerate() {
            expect_dtype(op, "lora a", lora.a, Dtype::BF16)?;
            expect_dtype(op, "lora b", lora.b, Dtype::BF16)?;
            let rank = lora.a.rows();
            if rank > MAX_RANK {
                let what = format!("adapter {at} has rank {rank}; on a device at most {MAX_RANK}");
                return Err(Error::caller(op, what));
            }
            if !lora.scale.is_finite() {
                let what = format!("adapter {at} has scale {}, expected a finite number", lora.scale);
                return Err(Error::caller(op, what));
            }
        }
    }
    Ok(())
}

/// Ranges of rows, each with no more adapters than a launch takes. Rows do not meet, so parts change no bit.
pub(super) fn parts(rows: usize, adapters: &[Range<usize>], limit: usize) -> Vec<Range<usize>> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    while begin < rows {
        let mut starts: Vec<usize> =
            adapters.iter().filter(|a| a.end > begin).map(|a| a.start.max(begin)).collect();
        starts.sort_unstable();
        // Two sides at most have an adapter at any one row, so the next part begins further on.
        let end = starts.get(limit).copied().unwrap_or(rows);
        parts.push(begin..end);
        begin = end;
    }
    parts
}

/// Rows of a product that one launch makes.
pub(super) struct Part {
    pub(super) op: &'static str,
    /// What its kernels' names begin with.
    pub(super) family: &'static str,
    pub(super) sizes: check::LinearSizes,
    pub(super) table: Adapters,
    /// Whether the Hopper kernels do it.
    pub(super) hopper: bool,
}

/// What a launch reads and writes besides its adapters, from a part's first row on.
pub(super) struct Operands<'a> {
    pub(super) out: Address,
    pub(super) x: Address,
    pub(super) sides: &'a [&'a Linear<'a>],
    pub(super) gain: Address,
    pub(super) ending: i32,
}

impl Part {
    fn launch<R: Runtime>(&self, gpu: &Gpu<R>, operands: &Operands<'_>) -> Result<()> {
        let h = self.shrink(gpu, "linear_shrink", operands.x, operands.sides.len())?;
        self.multiply(gpu, operands, h.as_ref())
    }

    /// The product, given what `shrink` made.
    pub(super) fn multiply<R: Runtime>(
        &self,
        gpu: &Gpu<R>,
        operands: &Operands<'_>,
        h: Option<&Tensor>,
    ) -> Result<()> {
        let &Operands { out, x, sides, gain, ending } = operands;
        let check::LinearSizes { rows, inner, columns } = self.sizes;
        let adapted = self.table.count > 0;
        let pitch = h.map_or(0, |h| h.shape()[2] as i32);
        let product = Product { rows, columns, chunks: inner.div_ceil(CHUNK), sides: sides.len(), adapted };
        if self.hopper {
            return linear_sm90::launch(gpu, self, product, operands, h);
        }
        let cut = product.cut(multiprocessors(gpu));
        let (partial, tickets) = self.work_space(gpu, cut, sides.len() * columns.next_multiple_of(8))?;
        let mut arguments = vec![At(out), At(x)];
        for linear in sides {
            arguments.push(At(gpu.at(linear.weight)?));
        }
        for linear in sides {
            arguments.push(At(gpu.at_or_null(linear.bias)?));
        }
        if sides.len() == 1 {
            arguments.push(At(gain));
        }
        arguments.extend([
            At(gpu.at_or_null(h)?),
            At(gpu.at_or_null(partial.as_ref())?),
            At(tickets),
            I32(int(self.op, "rows", rows)?),
            I32(int(self.op, "the inner axis", inner)?),
            I32(int(self.op, "columns", columns)?),
            I32(pitch),
            I32(ending),
            Struct(bytemuck::bytes_of(&self.table).to_vec()),
        ]);
        self.send(gpu, self.family, cut, 1, &arguments)
    }

    /// h = x·Aᵀ of all adapters, `[sides, T, pitch]`.
    pub(super) fn shrink<R: Runtime>(
        &self,
        gpu: &Gpu<R>,
        family: &str,
        x: Address,
        sides: usize,
    ) -> Result<Option<Tensor>> {
        let Adapters { count, rank, first, end, .. } = &self.table;
        let adapters = *count as usize;
        if adapters == 0 {
            return Ok(None);
        }
        let most = |values: &mut dyn Iterator<Item = i32>| values.max().unwrap_or(0) as usize;
        let rank = most(&mut rank.iter().copied());
        let served = most(&mut first.iter().zip(end).map(|(first, end)| end - first));
        let (rows, inner, pitch) = (self.sizes.rows, self.sizes.inner, rank.next_multiple_of(8));
        let chunks = inner.div_ceil(CHUNK);
        let product = Product { rows: served, columns: rank, chunks, sides: 1, adapted: false };
        let cut = product.cut_shrink(adapters, multiprocessors(gpu));
        let h = gpu.temporary(Dtype::BF16, &[sides, rows, pitch])?;
        let (partial, tickets) = self.work_space(gpu, cut, sides * pitch)?;
        let arguments = [
            At(gpu.at(&h)?),
            At(x),
            At(gpu.at_or_null(partial.as_ref())?),
            At(tickets),
            I32(int(self.op, "rows", rows)?),
            I32(int(self.op, "the inner axis", inner)?),
            I32(pitch as i32),
            Struct(bytemuck::bytes_of(&self.table).to_vec()),
        ];
        self.send(gpu, family, cut, adapters as u32, &arguments)?;
        Ok(Some(h))
    }

    /// Where blocks leave sums, and count who has, if tiles are split.
    pub(super) fn work_space<R: Runtime>(
        &self,
        gpu: &Gpu<R>,
        cut: Cut,
        width: usize,
    ) -> Result<(Option<Tensor>, Address)> {
        if cut.slots == 1 {
            return Ok((None, Address(0)));
        }
        let partial = gpu.temporary(Dtype::F32, &[cut.slots, self.sizes.rows, width])?;
        Ok((Some(partial), gpu.tickets()?))
    }

    pub(super) fn send<R: Runtime>(
        &self,
        gpu: &Gpu<R>,
        family: &str,
        cut: Cut,
        adapters: u32,
        arguments: &[Argument],
    ) -> Result<()> {
        let blocks = int(self.op, "the number of tiles", cut.tiles * cut.slots)?;
        gpu.launch(&Launch {
            kernel: &format!("{family}_{}", cut.tile.name),
            grid: [blocks as u32, adapters, 1],
            block: [cut.tile.threads, 1, 1],
            shared: cut.tile.shared,
            arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter::once;

    const H100: usize = 132;

    fn cut(rows: usize, columns: usize, inner: usize, sides: usize) -> (&'static str, usize, usize) {
        let product = Product { rows, columns, chunks: inner.div_ceil(CHUNK), sides, adapted: true };
        let Cut { tile, tiles, slots } = product.cut(H100);
        (tile.name, tiles, slots)
    }

    #[test]
    fn large_products_get_large_tiles_and_small_ones_are_split() {
        assert_eq!(cut(4096, 2048, 2048, 1), ("wide", 32 * 16, 1));
        assert_eq!(cut(600, 11008, 2048, 2), ("wide", 5 * 172, 1));
        assert_eq!(cut(1100, 2048, 2048, 1), ("middle", 18 * 32, 1), "144 wide ones would take two turns");
        assert_eq!(cut(256, 2048, 2048, 1), ("middle", 4 * 32, 1), "all but four have work");
        assert_eq!(cut(128, 2048, 11008, 1), ("middle", 2 * 32, 22 + 1));
        assert_eq!(cut(17, 40, 40, 1), ("middle", 1, 1));
        assert_eq!(cut(16, 2048, 2048, 1), ("narrow", 32, 4 + 1));
        assert_eq!(cut(1, 11008, 2048, 2), ("narrow", 172, 1));
        assert_eq!(cut(1, 151_936, 2048, 1), ("narrow", 2374, 1));
    }

    #[test]
    fn products_with_a_are_cut_by_rank() {
        let shrink = |rows, rank, adapters| {
            let product = Product { rows, columns: rank, chunks: 4, sides: 1, adapted: false };
            let Cut { tile, tiles, slots } = product.cut_shrink(adapters, H100);
            (tile.name, tiles, slots)
        };
        assert_eq!(shrink(4096, 16, 1), ("slim", 64, 4));
        assert_eq!(shrink(4096, 16, 3), ("slim", 64, 1));
        assert_eq!(shrink(600, 64, 1), ("middle", 10, 4));
        assert_eq!(shrink(8, 64, 2), ("narrow", 1, 4));
    }

    #[test]
    fn parts_hold_no_more_adapters_than_a_launch() {
        assert_eq!(parts(9, &[], ADAPTERS), vec![0..9; 1]);
        assert_eq!(parts(64, &(0..32).map(|i| i..i + 1).collect::<Vec<_>>(), ADAPTERS), vec![0..64; 1]);
        // Two sides alike: 20 each begin before row 40, the seventeenth of each at row 32.
        let two: Vec<Range<usize>> = (0..40).map(|i| i / 2 * 2..i / 2 * 2 + 2).collect();
        assert_eq!(parts(50, &two, ADAPTERS), [0..32, 32..50]);
        // One side's adapter spans them all.
        let long: Vec<Range<usize>> = (0..40).map(|i| i..i + 1).chain(once(0..40)).collect();
        assert_eq!(parts(40, &long, ADAPTERS), [0..31, 31..40]);
    }
}
