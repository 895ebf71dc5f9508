//! Products with sixteen columns side by side in one vector, where the instruction set can transpose units (an f32, or
//! a pair of bf16) and multiply one unit with sixteen.
//!
//! Each lane sums its own column, unit after unit along the inner axis: one order, whatever stands beside it, and no
//! sums over lanes to close with. Weights lie in rows, so sixteen of them are transposed in registers on the way; for
//! a few rows of x that hides behind the wait for memory, for many rows it is done once and kept as a panel.

use super::dot::Operand;
use super::isa::{Isa, LANES};
use super::pack::{Pair, Unit};
use super::scratch::Scratch;
use std::array::from_fn;

/// Most rows of x that are worked on without a panel: their sums leave room for sixteen transposed vectors.
const FEW: usize = 8;

/// Steps between asking memory for weights and using them: far enough for memory to answer, near enough for the
/// first cache to hold what came.
const AHEAD: usize = 12;

/// Vectors of columns in a panel, and rows of x against them: 24 sums, three weights, one pair.
const WIDE: usize = 3;
const ROWS: usize = 8;

/// What is needed beyond an [`Isa`].
pub(super) trait Panels: Isa {
    /// Pair j of row i becomes pair i of row j.
    fn transpose_pairs(self, rows: [Self::Pairs; LANES]) -> [Self::Pairs; LANES];
    /// Lane j of row i becomes lane i of row j.
    fn transpose_lanes(self, rows: [Self::Lanes; LANES]) -> [Self::Lanes; LANES];
    /// Writes the pairs in order.
    fn store_pairs(self, pairs: Self::Pairs, to: &mut [Pair; LANES]);
}

/// A unit that can be transposed.
pub(super) trait Turned: Unit {
    fn transpose<P: Panels>(isa: P, rows: [Self::Loaded<P>; LANES]) -> [Self::Loaded<P>; LANES];
    fn store<P: Panels>(isa: P, units: Self::Loaded<P>, to: &mut [Self; LANES]);
}

impl Turned for f32 {
    #[inline(always)]
    fn transpose<P: Panels>(isa: P, rows: [P::Lanes; LANES]) -> [P::Lanes; LANES] {
        isa.transpose_lanes(rows)
    }

    #[inline(always)]
    fn store<P: Panels>(isa: P, units: P::Lanes, to: &mut [f32; LANES]) {
        isa.store(units, to);
    }
}

impl Turned for Pair {
    #[inline(always)]
    fn transpose<P: Panels>(isa: P, rows: [P::Pairs; LANES]) -> [P::Pairs; LANES] {
        isa.transpose_pairs(rows)
    }

    #[inline(always)]
    fn store<P: Panels>(isa: P, units: P::Pairs, to: &mut [Pair; LANES]) {
        isa.store_pairs(units, to);
    }
}

/// Units of sixteen columns, one of each.
type Line<U> = [U; LANES];

/// Units of an element, side by side.
type Loaded<P, E> = <<E as Operand>::Unit as Unit>::Loaded<P>;

/// out[t, n] = x[t]·w[n], with all rows of one length.
#[inline(always)]
pub(super) fn products<P: Panels, E: Operand<Unit: Turned>>(isa: P, out: &mut [f32], x: &[&[E]], w: &[&[E]]) {
    // Nobody has sent for the first weights: for all of them at once, since each step would wait for its own.
    for row in w.iter().take(LANES) {
        for step in 0..AHEAD.min(E::steps(row).0.len()) {
            isa.prefetch(row.as_ptr().cast::<Line<E::Unit>>().wrapping_add(step));
        }
    }
    if x.len() <= FEW {
        return match x.len() {
            0 => {}
            1 => few::<P, E, 1>(isa, out, x, w),
            2 => few::<P, E, 2>(isa, out, x, w),
            3 => few::<P, E, 3>(isa, out, x, w),
            4 => few::<P, E, 4>(isa, out, x, w),
            5 => few::<P, E, 5>(isa, out, x, w),
            6 => few::<P, E, 6>(isa, out, x, w),
            7 => few::<P, E, 7>(isa, out, x, w),
            _ => few::<P, E, 8>(isa, out, x, w),
        };
    }
    let units = w.first().map_or(0, |row| row.len().div_ceil(E::Unit::SPAN));
    let mut panel = Scratch::<Line<E::Unit>>::new(WIDE * units);
    for column in (0..w.len()).step_by(WIDE * LANES) {
        match (w.len() - column).div_ceil(LANES) {
            1 => many::<P, E, 1>(isa, out, x, w, column, &mut panel),
            2 => many::<P, E, 2>(isa, out, x, w, column, &mut panel),
            _ => many::<P, E, 3>(isa, out, x, w, column, &mut panel),
        }
    }
}

/// Sixteen rows of a weight from `column` on; beyond the last, the last again.
#[inline(always)]
fn sixteen<'a, E>(w: &[&'a [E]], column: usize) -> [&'a [E]; LANES] {
    if let Some(whole) = w[column.min(w.len())..].first_chunk() {
        return *whole;
    }
    from_fn(|n| w[(column + n).min(w.len() - 1)])
}

/// Walks along sixteen rows: `each` gets every whole step, transposed; the rest, completed by zeros, is returned. What
/// comes [`AHEAD`] is on its way from memory meanwhile, be it in these rows or in the `next`.
#[inline(always)]
fn walk<P: Panels, E: Operand<Unit: Turned>>(
    isa: P,
    rows: [&[E]; LANES],
    next: [&[E]; LANES],
    mut each: impl FnMut(usize, [Loaded<P, E>; LANES]),
) -> Option<[Loaded<P, E>; LANES]> {
    let (first, rest) = E::steps(rows[0]);
    let steps = first.len();
    let turn = steps.saturating_sub(AHEAD);
    let mut whole: [&[Line<E::Unit>]; LANES] = [&[]; LANES];
    for n in 0..LANES {
        // Equal lengths, said once, so that the loops need no bounds checks.
        whole[n] = &E::steps(rows[n]).0[..steps];
    }
    for step in 0..turn {
        each(step, columns::<P, E>(isa, &whole, step, &rows, step + AHEAD));
    }
    for step in turn..steps {
        each(step, columns::<P, E>(isa, &whole, step, &next, step - turn));
    }
    if rest.is_empty() {
        return None;
    }
    let mut loaded = [E::Unit::load(isa, &E::padded(rest)); LANES];
    for n in 1..LANES {
        loaded[n] = E::Unit::load(isa, &E::padded(E::steps(rows[n]).1));
    }
    Some(E::Unit::transpose(isa, loaded))
}

/// One step of sixteen rows, transposed, while one of those `ahead` sets out.
#[inline(always)]
fn columns<P: Panels, E: Operand<Unit: Turned>>(
    isa: P,
    rows: &[&[Line<E::Unit>]; LANES],
    step: usize,
    ahead: &[&[E]; LANES],
    ahead_step: usize,
) -> [Loaded<P, E>; LANES] {
    let mut loaded = [E::Unit::load(isa, &rows[0][step]); LANES];
    for n in 0..LANES {
        loaded[n] = E::Unit::load(isa, &rows[n][step]);
        isa.prefetch(ahead[n].as_ptr().cast::<Line<E::Unit>>().wrapping_add(ahead_step));
    }
    E::Unit::transpose(isa, loaded)
}

/// M rows against all columns, sixteen at a time.
#[inline(always)]
fn few<P: Panels, E: Operand<Unit: Turned>, const M: usize>(isa: P, out: &mut [f32], x: &[&[E]], w: &[&[E]]) {
    let steps = E::steps(x[0]).0.len();
    let mut x_steps: [&[Line<E::Unit>]; M] = [&[]; M];
    let mut x_rest = [E::padded(&[]); M];
    for m in 0..M {
        let (whole, rest) = E::steps(x[m]);
        (x_steps[m], x_rest[m]) = (&whole[..steps], E::padded(rest));
    }
    let mut next = sixteen(w, 0);
    for column in (0..w.len()).step_by(LANES) {
        let mut sums = [isa.zero(); M];
        let rows = next;
        next = sixteen(w, column + LANES);
        let rest = walk(
            isa,
            rows,
            next,
            #[inline(always)]
            |step, columns| {
                let mut x_step = [&x_steps[0][step]; M];
                for m in 0..M {
                    x_step[m] = &x_steps[m][step];
                }
                add::<P, E::Unit, M>(isa, &mut sums, x_step, columns);
            },
        );
        if let Some(columns) = rest {
            add::<P, E::Unit, M>(isa, &mut sums, x_rest.each_ref(), columns);
        }
        for (m, &sums) in sums.iter().enumerate() {
            put(isa, &mut out[m * w.len() + column..], w.len() - column, sums);
        }
    }
}

/// One step of M rows against sixteen transposed columns. Plain loops over arrays: those are what the compiler
/// keeps in registers.
#[inline(always)]
fn add<P: Panels, U: Unit, const M: usize>(
    isa: P,
    sums: &mut [P::Lanes; M],
    x: [&Line<U>; M],
    columns: [U::Loaded<P>; LANES],
) {
    for j in 0..LANES {
        for m in 0..M {
            sums[m] = U::multiply_add(isa, sums[m], U::repeat(isa, &x[m][j]), columns[j]);
        }
    }
}

/// All rows against N vectors of columns from `column` on, by way of a panel `[units, N]`.
#[inline(always)]
fn many<P: Panels, E: Operand<Unit: Turned>, const N: usize>(
    isa: P,
    out: &mut [f32],
    x: &[&[E]],
    w: &[&[E]],
    column: usize,
    panel: &mut [Line<E::Unit>],
) {
    let (stride, width) = (w.len(), w.len() - column);
    let panel = &mut panel.as_chunks_mut::<N>().0[..w[0].len().div_ceil(E::Unit::SPAN)];
    let mut next = sixteen(w, column);
    for vector in 0..N {
        let rows = next;
        next = sixteen(w, column + (vector + 1) * LANES);
        fill(isa, panel, vector, rows, next);
    }
    for (block, x) in x.chunks(ROWS).enumerate() {
        let out = &mut out[block * ROWS * stride + column..];
        match x.len() {
            1 => against::<P, E, 1, N>(isa, out, stride, x, panel, width),
            2 => against::<P, E, 2, N>(isa, out, stride, x, panel, width),
            3 => against::<P, E, 3, N>(isa, out, stride, x, panel, width),
            4 => against::<P, E, 4, N>(isa, out, stride, x, panel, width),
            5 => against::<P, E, 5, N>(isa, out, stride, x, panel, width),
            6 => against::<P, E, 6, N>(isa, out, stride, x, panel, width),
            7 => against::<P, E, 7, N>(isa, out, stride, x, panel, width),
            _ => against::<P, E, 8, N>(isa, out, stride, x, panel, width),
        }
    }
}

/// Transposes sixteen rows into one vector's place in the panel.
#[inline(always)]
fn fill<P: Panels, E: Operand<Unit: Turned>, const N: usize>(
    isa: P,
    panel: &mut [[Line<E::Unit>; N]],
    vector: usize,
    rows: [&[E]; LANES],
    next: [&[E]; LANES],
) {
    let (whole, last) = panel.as_chunks_mut::<LANES>();
    let rest = walk(
        isa,
        rows,
        next,
        #[inline(always)]
        |step, columns| {
            for j in 0..LANES {
                E::Unit::store(isa, columns[j], &mut whole[step][j][vector]);
            }
        },
    );
    for (line, columns) in last.iter_mut().zip(rest.into_iter().flatten()) {
        E::Unit::store(isa, columns, &mut line[vector]);
    }
}

/// M rows against a panel.
#[inline(always)]
fn against<P: Panels, E: Operand<Unit: Turned>, const M: usize, const N: usize>(
    isa: P,
    out: &mut [f32],
    stride: usize,
    x: &[&[E]],
    panel: &[[Line<E::Unit>; N]],
    width: usize,
) {
    let (whole, odd) = panel.split_at(E::units(x[0]).0.len());
    let mut x_units: [&[E::Unit]; M] = [&[]; M];
    for m in 0..M {
        // Equal lengths, said once, so that the loop needs no bounds checks.
        x_units[m] = &E::units(x[m]).0[..whole.len()];
    }
    let mut sums = [[isa.zero(); N]; M];
    for unit in 0..whole.len() {
        let mut lines = [E::Unit::load(isa, &whole[unit][0]); N];
        for n in 1..N {
            lines[n] = E::Unit::load(isa, &whole[unit][n]);
        }
        for m in 0..M {
            let value = E::Unit::repeat(isa, &x_units[m][unit]);
            for n in 0..N {
                sums[m][n] = E::Unit::multiply_add(isa, sums[m][n], value, lines[n]);
            }
        }
    }
    if let [lines] = odd {
        for m in 0..M {
            let value = E::Unit::repeat(isa, &E::padded(E::units(x[m]).1)[0]);
            for n in 0..N {
                sums[m][n] = E::Unit::multiply_add(isa, sums[m][n], value, E::Unit::load(isa, &lines[n]));
            }
        }
    }
    for m in 0..M {
        for n in 0..N {
            put(isa, &mut out[m * stride + n * LANES..], width - n * LANES, sums[m][n]);
        }
    }
}

/// Writes sixteen sums, or as many as there are columns.
#[inline(always)]
fn put<I: Isa>(isa: I, to: &mut [f32], columns: usize, sums: I::Lanes) {
    if let (Some(to), true) = (to.first_chunk_mut(), columns >= LANES) {
        return isa.store(sums, to);
    }
    let mut values = [0.0; LANES];
    isa.store(sums, &mut values);
    to[..columns].copy_from_slice(&values[..columns]);
}
