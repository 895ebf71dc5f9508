//! Dot products of many rows with many rows: the loop behind linears, attention scores and the head, but where an
//! instruction set has a way of its own for a type (bf16 on AVX-512, see `panel.rs`).
//!
//! Every product x[t]·w[n] is summed in the same order wherever it stands: steps of one vector into one
//! vector of sums, chunk after chunk of the inner axis, each chunk closed by the same tree. Blocks of
//! rows and columns only decide how often a loaded vector is used, so one row alone, a row among five
//! hundred and a row at a block's ragged edge have the same bits.

use super::isa::{COLUMNS, Isa, LANES};
use super::math;
use super::pack::{Pair, Unit};
use crate::tensor::Element;
use half::bf16;
use std::{array::from_fn, ops::Range};

/// Elements of the inner axis summed before a reduction: four rows of them stay in the first cache.
const CHUNK: usize = 2048;

/// Rows of the blocks that few rows are cut into.
const FEW: usize = 4;

/// An element type with dot products.
pub(super) trait Operand: Element {
    /// What products over rows take of one column at a time.
    type Unit: Unit;
    /// What one step reads of one row.
    type Step;
    /// The same in registers.
    type Loaded<I: Isa>: Copy;
    /// Whole steps of a row, and what is left.
    fn steps(row: &[Self]) -> (&[Self::Step], &[Self]);
    /// The rest of a row, completed by zeros.
    fn padded(rest: &[Self]) -> Self::Step;
    fn load<I: Isa>(isa: I, step: &Self::Step) -> Self::Loaded<I>;
    fn multiply_add<I: Isa>(isa: I, sums: I::Lanes, a: Self::Loaded<I>, b: Self::Loaded<I>) -> I::Lanes;
    /// As an f32, exact.
    fn wide(self) -> f32;
    /// 16 values as f32 lanes.
    fn widen<I: Isa>(isa: I, from: &[Self; LANES]) -> I::Lanes;
    /// All products, if the instruction set has a way of its own for this type; says whether it has.
    #[inline(always)]
    fn own_products<I: Isa>(_isa: I, _out: &mut [f32], _x: &[&[Self]], _w: &[&[Self]]) -> bool {
        false
    }
}

impl Operand for f32 {
    type Unit = f32;
    type Step = [f32; LANES];
    type Loaded<I: Isa> = I::Lanes;

    #[inline(always)]
    fn steps(row: &[f32]) -> (&[Self::Step], &[f32]) {
        row.as_chunks()
    }

    #[inline(always)]
    fn padded(rest: &[f32]) -> Self::Step {
        from_fn(|at| rest.get(at).copied().unwrap_or(0.0))
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, step: &Self::Step) -> I::Lanes {
        isa.load(step)
    }

    #[inline(always)]
    fn multiply_add<I: Isa>(isa: I, sums: I::Lanes, a: I::Lanes, b: I::Lanes) -> I::Lanes {
        isa.multiply_add(a, b, sums)
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn widen<I: Isa>(isa: I, from: &[f32; LANES]) -> I::Lanes {
        isa.load(from)
    }
}

impl Operand for bf16 {
    type Unit = Pair;
    type Step = [bf16; 2 * LANES];
    type Loaded<I: Isa> = I::Pairs;

    #[inline(always)]
    fn steps(row: &[bf16]) -> (&[Self::Step], &[bf16]) {
        row.as_chunks()
    }

    #[inline(always)]
    fn padded(rest: &[bf16]) -> Self::Step {
        from_fn(|at| rest.get(at).copied().unwrap_or(bf16::ZERO))
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, step: &Self::Step) -> I::Pairs {
        isa.pairs(step)
    }

    #[inline(always)]
    fn multiply_add<I: Isa>(isa: I, sums: I::Lanes, a: I::Pairs, b: I::Pairs) -> I::Lanes {
        isa.add_products(sums, a, b)
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        math::wide(self)
    }

    #[inline(always)]
    fn widen<I: Isa>(isa: I, from: &[bf16; LANES]) -> I::Lanes {
        isa.widen(from)
    }

    #[inline(always)]
    fn own_products<I: Isa>(isa: I, out: &mut [f32], x: &[&[bf16]], w: &[&[bf16]]) -> bool {
        isa.own_products(out, x, w)
    }
}

/// All products of M rows with four columns, over one chunk, while the `next` columns are on their way from
/// memory: with few rows that wait is most of the time. Plain loops over arrays and no closures: those
/// are what the compiler keeps in registers.
#[inline(always)]
fn block<I: Isa, E: Operand, const M: usize>(
    isa: I,
    x: &[&[E]],
    w: [&[E]; COLUMNS],
    next: [&[E]; COLUMNS],
    chunk: &Range<usize>,
) -> [[f32; COLUMNS]; M] {
    let (first, w_rest) = E::steps(w[0]);
    let steps = first.len();
    // Equal lengths, said once, so that the loop needs no bounds checks.
    let mut x_steps: [&[E::Step]; M] = [&[]; M];
    for m in 0..M {
        x_steps[m] = &E::steps(&x[m][chunk.clone()]).0[..steps];
    }
    let mut w_steps: [&[E::Step]; COLUMNS] = [&[]; COLUMNS];
    for n in 0..COLUMNS {
        w_steps[n] = &E::steps(w[n]).0[..steps];
    }
    let mut next_steps: [&[E::Step]; COLUMNS] = [&[]; COLUMNS];
    for n in 0..COLUMNS {
        next_steps[n] = &E::steps(next[n]).0[..steps];
    }
    let mut sums = [[isa.zero(); COLUMNS]; M];
    for step in 0..steps {
        let mut loaded = [E::load(isa, &w_steps[0][step]); COLUMNS];
        for n in 1..COLUMNS {
            loaded[n] = E::load(isa, &w_steps[n][step]);
        }
        // Higher blocks have no registers left for four more addresses, and less of a wait.
        if M <= FEW {
            for next in &next_steps {
                isa.prefetch(&next[step]);
            }
        }
        for m in 0..M {
            let x = E::load(isa, &x_steps[m][step]);
            for n in 0..COLUMNS {
                sums[m][n] = E::multiply_add(isa, sums[m][n], x, loaded[n]);
            }
        }
    }
    if !w_rest.is_empty() {
        for m in 0..M {
            let x = E::load(isa, &E::padded(E::steps(&x[m][chunk.clone()]).1));
            for n in 0..COLUMNS {
                let w = E::load(isa, &E::padded(E::steps(w[n]).1));
                sums[m][n] = E::multiply_add(isa, sums[m][n], x, w);
            }
        }
    }
    let mut out = [[0.0; COLUMNS]; M];
    for m in 0..M {
        out[m] = isa.sums(sums[m]);
    }
    out
}

/// out[t, n] = x[t]·w[n], with all rows of one length. A function of its own, compiled once per
/// instruction set and type: it is large, and called from everywhere.
#[inline(never)]
pub(super) fn products<I: Isa, E: Operand>(isa: I, out: &mut [f32], x: &[&[E]], w: &[&[E]]) {
    let inner = x.first().map_or(0, |row| row.len());
    if inner == 0 {
        return out.fill(0.0);
    }
    isa.run(
        #[inline(always)]
        || {
            if E::own_products(isa, out, x, w) {
                return;
            }
            for start in (0..inner).step_by(CHUNK) {
                chunk_products(isa, out, x, w, start..inner.min(start + CHUNK));
            }
        },
    );
}

#[inline(always)]
fn chunk_products<I: Isa, E: Operand>(isa: I, out: &mut [f32], x: &[&[E]], w: &[&[E]], chunk: Range<usize>) {
    let few = x.len() <= 2 * FEW;
    // Blocks of like height: eight rows are better as four and four than as six and two.
    let most = if few { I::ROWS.min(FEW) } else { I::ROWS };
    let height = x.len().div_ceil(x.len().div_ceil(most));
    let blocks = || (0..x.len()).step_by(height);
    let columns = || (0..w.len()).step_by(COLUMNS);
    if few {
        // Columns come from memory once, and wait in the first cache for the second block.
        for column in columns() {
            for row in blocks() {
                place(isa, out, x, w, &chunk, row, height, column);
            }
        }
    } else {
        // The block's rows stay in the first cache; the tile's columns pass by from the second.
        for row in blocks() {
            for column in columns() {
                place(isa, out, x, w, &chunk, row, height, column);
            }
        }
    }
}

/// The block of products at a row and a column, put where it belongs.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the inner part of one loop")]
fn place<I: Isa, E: Operand>(
    isa: I,
    out: &mut [f32],
    x: &[&[E]],
    w: &[&[E]],
    chunk: &Range<usize>,
    row: usize,
    height: usize,
    column: usize,
) {
    let (columns, first) = (w.len(), chunk.start == 0);
    // A ragged edge repeats the last column and drops the copies' sums.
    let at =
        |column: usize| -> [&[E]; COLUMNS] { from_fn(|n| &w[(column + n).min(columns - 1)][chunk.clone()]) };
    let (w, next) = (at(column), at(column + COLUMNS));
    let width = COLUMNS.min(columns - column);
    let x = &x[row..x.len().min(row + height)];
    let to = &mut out[row * columns + column..];
    match x.len() {
        1 => put(to, columns, width, first, block::<I, E, 1>(isa, x, w, next, chunk)),
        2 => put(to, columns, width, first, block::<I, E, 2>(isa, x, w, next, chunk)),
        3 => put(to, columns, width, first, block::<I, E, 3>(isa, x, w, next, chunk)),
        4 => put(to, columns, width, first, block::<I, E, 4>(isa, x, w, next, chunk)),
        5 => put(to, columns, width, first, block::<I, E, 5>(isa, x, w, next, chunk)),
        _ => put(to, columns, width, first, block::<I, E, 6>(isa, x, w, next, chunk)),
    }
}

/// The first chunk's sums are written, later ones added.
#[inline(always)]
fn put<const M: usize>(to: &mut [f32], stride: usize, width: usize, first: bool, sums: [[f32; COLUMNS]; M]) {
    for (m, sums) in sums.iter().enumerate() {
        let to = &mut to[m * stride..][..width];
        for (to, &sum) in to.iter_mut().zip(sums) {
            *to = if first { sum } else { *to + sum };
        }
    }
}
