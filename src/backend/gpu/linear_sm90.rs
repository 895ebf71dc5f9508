//! Linears on Hopper, by `kernels/linear_sm90.cu` and `kernels/linear_few_sm90.cu`: which are theirs, how they are cut,
//! and how TMA is to see the tensors. Everything before that is as in [`super::linear`], x·Aᵀ included.
//!
//! A weight is either these kernels' or the portable ones', by its shape alone and for good: their tensor cores sum in
//! different orders, and a row's bits must not depend on the rows beside it. They are used where [`Gpu::on_hopper`] says
//! so, which is the exception until a chip has shown them right.

use super::{
    Address,
    Argument::{self, Address as At, Struct},
    Runtime, TensorMap, TensorShape,
    device::{Gpu, int},
    linear::{Cut, Operands, Part, Product, Tile, multiprocessors},
};
use crate::{
    backend::{LoraRows, check},
    error::{Error, Result},
    tensor::Tensor,
};

/// Adapters of all sides that one launch takes.
pub(super) const TAILS: usize = 8;

/// Elements of K, and of ranks, in one stage.
const DEPTH: usize = 64;

/// Many rows; blocks take turns at its tiles.
const WIDE: Tile = Tile { name: "sm90", rows: 128, columns: 192, threads: 384, shared: 213_072 };

/// Few rows, or few tiles.
const FEW: Tile = Tile { name: "few_sm90", rows: 64, columns: 128, threads: 288, shared: 98_368 };

/// Whether W `[N, K]` is these kernels': TMA wants rows of whole 16 bytes.
pub(super) fn suits(weight: &Tensor) -> bool {
    weight.rows().is_multiple_of(8) && weight.row_len().is_multiple_of(8)
}

/// The same of B `[N, R]`. Such an adapter cannot fall back, for other rows have its weight by these kernels.
pub(super) fn check_rank(op: &'static str, lora: &LoraRows<'_>) -> Result<()> {
    let rank = lora.a.rows();
    if rank.is_multiple_of(8) {
        return Ok(());
    }
    let say = format!(
        "an adapter has rank {rank}; on Hopper it has to be a multiple of 8, so pad A and B with zeros"
    );
    Err(Error::caller(op, say))
}

/// Large tiles for many rows, if they keep half of the device busy; else small ones, of which few are split by chunks of
/// K. Both halves of that are guesses until a device has timed them.
fn cut(product: Product, multiprocessors: usize) -> Cut {
    let tiles = product.tiles(WIDE);
    if product.rows > FEW.rows && 2 * tiles >= multiprocessors {
        return Cut { tile: WIDE, tiles: tiles.min(multiprocessors), slots: 1 };
    }
    product.cut_into(FEW, 1, multiprocessors)
}

/// out = ending(x·Wᵀ + …) of a part; h is all adapters' x·Aᵀ, `[sides, T, pitch]`.
pub(super) fn launch<R: Runtime>(
    gpu: &Gpu<R>,
    part: &Part,
    product: Product,
    operands: &Operands<'_>,
    h: Option<&Tensor>,
) -> Result<()> {
    let &Operands { out, x, sides, gain, ending } = operands;
    let check::LinearSizes { rows, inner, columns } = part.sizes;
    let cut = cut(product, multiprocessors(gpu));
    let width = cut.tile.columns / sides.len();
    let boxed =
        |address, sizes, tile| Ok::<_, Error>(Argument::TensorMap(map(gpu, address, sizes, tile, 128)?));
    let mut arguments = vec![match cut.tile == WIDE {
        true => Argument::TensorMap(map(gpu, out, [rows, columns], [64, 32], 64)?),
        false => At(out),
    }];
    arguments.push(boxed(x, [rows, inner], [cut.tile.rows, DEPTH])?);
    for linear in sides {
        arguments.push(boxed(gpu.at(linear.weight)?, [columns, inner], [width, DEPTH])?);
    }
    for linear in sides {
        arguments.push(At(gpu.at_or_null(linear.bias)?));
    }
    if sides.len() == 1 {
        arguments.push(At(gain));
    }
    let (partial, tickets) = part.work_space(gpu, cut, sides.len() * columns)?;
    if cut.tile == FEW {
        arguments.extend([At(gpu.at_or_null(partial.as_ref())?), At(tickets)]);
    }
    let tails = tails(gpu, part, h, cut.tile.rows, width)?;
    let sizes = Sizes {
        rows: int(part.op, "rows", rows)?,
        inner: int(part.op, "the inner axis", inner)?,
        columns: int(part.op, "columns", columns)?,
        tails: part.table.count,
        ending,
    };
    arguments.push(Struct(bytemuck::cast_slice(&tails).to_vec()));
    arguments.push(Struct(bytemuck::bytes_of(&sizes).to_vec()));
    part.send(gpu, part.op, cut, 1, &arguments)
}

/// The adapters of a part as TMA sees them, in boxes of so many rows of h and of B.
fn tails<R: Runtime>(
    gpu: &Gpu<R>,
    part: &Part,
    h: Option<&Tensor>,
    high: usize,
    width: usize,
) -> Result<[Tail; TAILS]> {
    let mut tails: [Tail; TAILS] = bytemuck::Zeroable::zeroed();
    let Some(h) = h else { return Ok(tails) };
    let (table, pitch) = (&part.table, h.row_len() / part.sizes.rows);
    for (at, tail) in tails.iter_mut().take(table.count as usize).enumerate() {
        let (from, to, rank) = (table.first[at], table.end[at], table.rank[at] as usize);
        let before = (table.side[at] as usize * part.sizes.rows + from as usize) * pitch;
        let own = TensorShape {
            address: gpu.at(h)?.plus(before * 2),
            element: 2,
            sizes: &[rank as u64, (to - from) as u64],
            strides: &[pitch as u64 * 2],
            tile: &[DEPTH as u32, high as u32],
            swizzle: 128,
        };
        *tail = Tail {
            h: gpu.runtime().tensor_map(&own)?,
            b: map(gpu, table.b[at], [part.sizes.columns, rank], [width, DEPTH], 128)?,
            from,
            to,
            steps: rank.div_ceil(DEPTH) as i32,
            side: table.side[at],
            scale: table.scale[at],
            unused: [0; 27],
        };
    }
    Ok(tails)
}

/// How TMA sees a bf16 matrix; sizes and box are rows and columns.
fn map<R: Runtime>(
    gpu: &Gpu<R>,
    address: Address,
    [rows, columns]: [usize; 2],
    [high, wide]: [usize; 2],
    swizzle: u32,
) -> Result<TensorMap> {
    gpu.runtime().tensor_map(&TensorShape {
        address,
        element: 2,
        sizes: &[columns as u64, rows as u64],
        strides: &[columns as u64 * 2],
        tile: &[wide as u32, high as u32],
        swizzle,
    })
}

/// As `kernels/common/linear_sm90.cuh` has it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Tail {
    h: TensorMap,
    b: TensorMap,
    from: i32,
    to: i32,
    steps: i32,
    side: i32,
    scale: f32,
    unused: [i32; 27],
}

/// `LinearSizes` there.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Sizes {
    rows: i32,
    inner: i32,
    columns: i32,
    tails: i32,
    ending: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tiles_need_half_a_device() {
        let cut = |rows, columns, chunks, sides| {
            let product = Product { rows, columns, chunks, sides, adapted: true };
            let Cut { tile, tiles, slots } = cut(product, 132);
            (tile.name, tiles, slots)
        };
        assert_eq!(cut(4096, 2048, 4, 1), ("sm90", 132, 1));
        assert_eq!(cut(768, 2048, 4, 1), ("sm90", 66, 1));
        assert_eq!(cut(640, 2048, 4, 1), ("few_sm90", 160, 1));
        assert_eq!(cut(1, 2048, 22, 1), ("few_sm90", 16, 23));
        assert_eq!(cut(65, 11008, 4, 2), ("sm90", 115, 1));
        assert_eq!(cut(64, 11008, 4, 2), ("few_sm90", 172, 1));
        assert_eq!(cut(1, 8192, 4, 1), ("few_sm90", 64, 5));
    }
}
