//! Dot products of many rows with many rows: the loop behind linears, attention scores and the head, but where an
//! instruction set has a way of its own (AVX-512, see `panel.rs`).
//!
//! Every product x[t]·w[n] is summed in the same order wherever it stands: steps of one vector into one
//! vector of sums, chunk after chunk of the inner axis, each chunk closed by the same tree. In which order rows and
//! columns pass by only decides how often a loaded vector is used, so one row alone, a row among five hundred and a
//! column at a block's ragged edge have the same bits.

use super::isa::{COLUMNS, Isa, LANES};
use super::math;
use super::pack::{Pair, Unit};
use crate::tensor::Element;
use half::bf16;
use std::{array::from_fn, ops::Range};

/// Elements of the inner axis summed before a reduction: four rows of them stay in the first cache.
const CHUNK: usize = 2048;

/// Rows that columns from memory wait for in the first cache.
const FEW: usize = 8;

/// An element type with dot products.
pub(super) trait Operand: Element {
    /// What products over rows take of one column at a time, and products along rows of one row.
    type Unit: Unit;
    /// Whole units of a row, and what is left.
    fn units(row: &[Self]) -> (&[Self::Unit], &[Self]);
    /// The rest of a row, completed by zeros.
    fn padded(rest: &[Self]) -> [Self::Unit; LANES];
    /// As an f32, exact.
    fn wide(self) -> f32;
    /// 16 values as f32 lanes.
    fn widen<I: Isa>(isa: I, from: &[Self; LANES]) -> I::Lanes;
    /// All products, if the instruction set has a way of its own for this type; says whether it has.
    fn own_products<I: Isa>(isa: I, out: &mut [f32], x: &[&[Self]], w: &[&[Self]]) -> bool;

    /// Whole steps of a row, which fill a vector each, and what is left.
    #[inline(always)]
    fn steps(row: &[Self]) -> (&[[Self::Unit; LANES]], &[Self]) {
        let span = LANES * Self::Unit::SPAN;
        let (whole, rest) = row.split_at(row.len() / span * span);
        (Self::units(whole).0.as_chunks().0, rest)
    }
}

impl Operand for f32 {
    type Unit = f32;

    #[inline(always)]
    fn units(row: &[f32]) -> (&[f32], &[f32]) {
        (row, &[])
    }

    #[inline(always)]
    fn padded(rest: &[f32]) -> [f32; LANES] {
        from_fn(|at| rest.get(at).copied().unwrap_or(0.0))
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn widen<I: Isa>(isa: I, from: &[f32; LANES]) -> I::Lanes {
        isa.load(from)
    }

    #[inline(always)]
    fn own_products<I: Isa>(_: I, _: &mut [f32], _: &[&[f32]], _: &[&[f32]]) -> bool {
        false
    }
}

impl Operand for bf16 {
    type Unit = Pair;

    #[inline(always)]
    fn units(row: &[bf16]) -> (&[Pair], &[bf16]) {
        row.as_chunks()
    }

    #[inline(always)]
    fn padded(rest: &[bf16]) -> [Pair; LANES] {
        let at = |at: usize| rest.get(at).copied().unwrap_or(bf16::ZERO);
        from_fn(|unit| [at(2 * unit), at(2 * unit + 1)])
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

/// The products of a row with four columns, over one chunk, while the `next` columns are on their way from memory:
/// with few rows that wait is most of the time. Plain loops over arrays and no closures: those are what the compiler
/// keeps in registers.
#[inline(always)]
fn block<I: Isa, E: Operand>(isa: I, x: &[E], w: [&[E]; COLUMNS], next: [&[E]; COLUMNS]) -> [f32; COLUMNS] {
    let (x_steps, x_rest) = E::steps(x);
    let steps = x_steps.len();
    // Equal lengths, said once, so that the loop needs no bounds checks.
    let mut w_steps: [&[[E::Unit; LANES]]; COLUMNS] = [&[]; COLUMNS];
    let mut next_steps: [&[[E::Unit; LANES]]; COLUMNS] = [&[]; COLUMNS];
    for n in 0..COLUMNS {
        w_steps[n] = &E::steps(w[n]).0[..steps];
        next_steps[n] = &E::steps(next[n]).0[..steps];
    }
    let mut sums = [isa.zero(); COLUMNS];
    for step in 0..steps {
        for next in &next_steps {
            isa.prefetch(&next[step]);
        }
        let x = E::Unit::load(isa, &x_steps[step]);
        for n in 0..COLUMNS {
            sums[n] = E::Unit::multiply_add(isa, sums[n], x, E::Unit::load(isa, &w_steps[n][step]));
        }
    }
    if !x_rest.is_empty() {
        let x = E::Unit::load(isa, &E::padded(x_rest));
        for n in 0..COLUMNS {
            let w = E::Unit::load(isa, &E::padded(E::steps(w[n]).1));
            sums[n] = E::Unit::multiply_add(isa, sums[n], x, w);
        }
    }
    isa.sums(sums)
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

/// The same for a weight in f32: by sixteen columns at a time where the instruction set can. Scores of attention are not
/// summed this way: by one tree, like the sums they meet, they cancel exactly where a query sees one key.
#[inline(never)]
pub(super) fn weight_products<I: Isa>(isa: I, out: &mut [f32], x: &[&[f32]], w: &[&[f32]]) {
    let inner = x.first().map_or(0, |row| row.len());
    let own = isa.run(
        #[inline(always)]
        || inner > 0 && isa.own_float_products(out, x, w),
    );
    if !own {
        products(isa, out, x, w);
    }
}

#[inline(always)]
fn chunk_products<I: Isa, E: Operand>(isa: I, out: &mut [f32], x: &[&[E]], w: &[&[E]], chunk: Range<usize>) {
    let columns = || (0..w.len()).step_by(COLUMNS);
    if x.len() <= FEW {
        // Columns come from memory once, and wait in the first cache for the next row.
        for column in columns() {
            for row in 0..x.len() {
                place(isa, out, x, w, &chunk, row, column);
            }
        }
    } else {
        // The row stays in the first cache; the tile's columns pass by from the second.
        for row in 0..x.len() {
            for column in columns() {
                place(isa, out, x, w, &chunk, row, column);
            }
        }
    }
}

/// The products of one row and four columns, put where they belong: the first chunk's are written, later ones added.
#[inline(always)]
fn place<I: Isa, E: Operand>(
    isa: I,
    out: &mut [f32],
    x: &[&[E]],
    w: &[&[E]],
    chunk: &Range<usize>,
    row: usize,
    column: usize,
) {
    let columns = w.len();
    // A ragged edge repeats the last column and drops the copies' sums.
    let at =
        |column: usize| -> [&[E]; COLUMNS] { from_fn(|n| &w[(column + n).min(columns - 1)][chunk.clone()]) };
    let sums = block(isa, &x[row][chunk.clone()], at(column), at(column + COLUMNS));
    let to = &mut out[row * columns + column..][..COLUMNS.min(columns - column)];
    for (to, sum) in to.iter_mut().zip(sums) {
        *to = if chunk.start == 0 { sum } else { *to + sum };
    }
}
