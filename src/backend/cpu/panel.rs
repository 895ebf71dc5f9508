//! bf16 products with sixteen columns side by side in one vector, where the instruction set can transpose pairs
//! and multiply one pair with sixteen.
//!
//! Each lane sums its own column, pair after pair along the inner axis: one order, whatever stands beside it, and no
//! sums over lanes to close with. Weights lie in rows, so sixteen of them are transposed in registers on the way; for
//! a few rows of x that hides behind the wait for memory, for many rows it is done once and kept as a panel.

use super::isa::{Isa, LANES};
use super::scratch::Scratch;
use half::bf16;
use std::array::from_fn;

/// Pairs of one vector, which is a step of the inner axis.
const STEP: usize = 2 * LANES;

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
    fn transpose(self, rows: [Self::Pairs; LANES]) -> [Self::Pairs; LANES];
    /// Writes the pairs in order.
    fn store_pairs(self, pairs: Self::Pairs, to: &mut [bf16; STEP]);
}

/// One vector of a panel.
type Line = [bf16; STEP];

/// out[t, n] = x[t]·w[n], with all rows of one length.
#[inline(always)]
pub(super) fn products<P: Panels>(isa: P, out: &mut [f32], x: &[&[bf16]], w: &[&[bf16]]) {
    if x.len() <= FEW {
        return match x.len() {
            0 => {}
            1 => few::<P, 1>(isa, out, x, w),
            2 => few::<P, 2>(isa, out, x, w),
            3 => few::<P, 3>(isa, out, x, w),
            4 => few::<P, 4>(isa, out, x, w),
            5 => few::<P, 5>(isa, out, x, w),
            6 => few::<P, 6>(isa, out, x, w),
            7 => few::<P, 7>(isa, out, x, w),
            _ => few::<P, 8>(isa, out, x, w),
        };
    }
    let pairs = w.first().map_or(0, |row| row.len().div_ceil(2));
    let mut panel = Scratch::<Line>::new(WIDE * pairs);
    for column in (0..w.len()).step_by(WIDE * LANES) {
        match (w.len() - column).div_ceil(LANES) {
            1 => many::<P, 1>(isa, out, x, w, column, &mut panel),
            2 => many::<P, 2>(isa, out, x, w, column, &mut panel),
            _ => many::<P, 3>(isa, out, x, w, column, &mut panel),
        }
    }
}

/// Sixteen rows of a weight from `column` on; beyond the last, the last again.
#[inline(always)]
fn sixteen<'a>(w: &[&'a [bf16]], column: usize) -> [&'a [bf16]; LANES] {
    if let Some(whole) = w[column.min(w.len())..].first_chunk() {
        return *whole;
    }
    from_fn(|n| w[(column + n).min(w.len() - 1)])
}

/// The rest of a row behind its whole steps, completed by zeros.
#[inline(always)]
fn padded(rest: &[bf16]) -> [bf16; STEP] {
    from_fn(|at| rest.get(at).copied().unwrap_or(bf16::ZERO))
}

/// Walks along sixteen rows: `each` gets every whole step, transposed; the rest, completed by zeros, is returned. What
/// comes [`AHEAD`] is on its way from memory meanwhile, be it in these rows or in the `next`.
#[inline(always)]
fn walk<P: Panels>(
    isa: P,
    rows: [&[bf16]; LANES],
    next: [&[bf16]; LANES],
    mut each: impl FnMut(usize, [P::Pairs; LANES]),
) -> Option<[P::Pairs; LANES]> {
    let steps = rows[0].len() / STEP;
    let turn = steps.saturating_sub(AHEAD);
    let mut whole: [&[[bf16; STEP]]; LANES] = [&[]; LANES];
    for n in 0..LANES {
        // Equal lengths, said once, so that the loops need no bounds checks.
        whole[n] = &rows[n].as_chunks().0[..steps];
    }
    for step in 0..turn {
        each(step, columns(isa, &whole, step, &rows, step + AHEAD));
    }
    for step in turn..steps {
        each(step, columns(isa, &whole, step, &next, step - turn));
    }
    if rows[0].len() == steps * STEP {
        return None;
    }
    let mut loaded = [isa.pairs(&[bf16::ZERO; STEP]); LANES];
    for n in 0..LANES {
        loaded[n] = isa.pairs(&padded(rows[n].as_chunks::<STEP>().1));
    }
    Some(isa.transpose(loaded))
}

/// One step of sixteen rows, transposed, while one of those `ahead` sets out.
#[inline(always)]
fn columns<P: Panels>(
    isa: P,
    rows: &[&[[bf16; STEP]]; LANES],
    step: usize,
    ahead: &[&[bf16]; LANES],
    ahead_step: usize,
) -> [P::Pairs; LANES] {
    let mut loaded = [isa.pairs(&rows[0][step]); LANES];
    for n in 0..LANES {
        loaded[n] = isa.pairs(&rows[n][step]);
        isa.prefetch(ahead[n].as_ptr().wrapping_add(ahead_step * STEP));
    }
    isa.transpose(loaded)
}

/// M rows against all columns, sixteen at a time.
#[inline(always)]
fn few<P: Panels, const M: usize>(isa: P, out: &mut [f32], x: &[&[bf16]], w: &[&[bf16]]) {
    let steps = x[0].len() / STEP;
    let mut x_steps: [&[[bf16; STEP]]; M] = [&[]; M];
    let mut x_rest = [[bf16::ZERO; STEP]; M];
    for m in 0..M {
        let (whole, rest) = x[m].as_chunks();
        (x_steps[m], x_rest[m]) = (&whole[..steps], padded(rest));
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
                add(isa, &mut sums, x_step, columns);
            },
        );
        if let Some(columns) = rest {
            add(isa, &mut sums, x_rest.each_ref(), columns);
        }
        for (m, &sums) in sums.iter().enumerate() {
            put(isa, &mut out[m * w.len() + column..], w.len() - column, sums);
        }
    }
}

/// One step of M rows against sixteen transposed columns. Plain loops over arrays: those are what the compiler
/// keeps in registers.
#[inline(always)]
fn add<P: Panels, const M: usize>(
    isa: P,
    sums: &mut [P::Lanes; M],
    x: [&[bf16; STEP]; M],
    columns: [P::Pairs; LANES],
) {
    for j in 0..LANES {
        for m in 0..M {
            let pairs: &[[bf16; 2]] = x[m].as_chunks().0;
            sums[m] = isa.add_products(sums[m], isa.repeat(&pairs[j]), columns[j]);
        }
    }
}

/// All rows against N vectors of columns from `column` on, by way of a panel `[pairs, N]`.
#[inline(always)]
fn many<P: Panels, const N: usize>(
    isa: P,
    out: &mut [f32],
    x: &[&[bf16]],
    w: &[&[bf16]],
    column: usize,
    panel: &mut [Line],
) {
    let (stride, width) = (w.len(), w.len() - column);
    let panel = &mut panel.as_chunks_mut::<N>().0[..w[0].len().div_ceil(2)];
    let mut next = sixteen(w, column);
    for vector in 0..N {
        let rows = next;
        next = sixteen(w, column + (vector + 1) * LANES);
        fill(isa, panel, vector, rows, next);
    }
    for (block, x) in x.chunks(ROWS).enumerate() {
        let out = &mut out[block * ROWS * stride + column..];
        match x.len() {
            1 => against::<P, 1, N>(isa, out, stride, x, panel, width),
            2 => against::<P, 2, N>(isa, out, stride, x, panel, width),
            3 => against::<P, 3, N>(isa, out, stride, x, panel, width),
            4 => against::<P, 4, N>(isa, out, stride, x, panel, width),
            5 => against::<P, 5, N>(isa, out, stride, x, panel, width),
            6 => against::<P, 6, N>(isa, out, stride, x, panel, width),
            7 => against::<P, 7, N>(isa, out, stride, x, panel, width),
            _ => against::<P, 8, N>(isa, out, stride, x, panel, width),
        }
    }
}

/// Transposes sixteen rows into one vector's place in the panel.
#[inline(always)]
fn fill<P: Panels, const N: usize>(
    isa: P,
    panel: &mut [[Line; N]],
    vector: usize,
    rows: [&[bf16]; LANES],
    next: [&[bf16]; LANES],
) {
    let (whole, last) = panel.as_chunks_mut::<LANES>();
    let rest = walk(
        isa,
        rows,
        next,
        #[inline(always)]
        |step, columns| {
            for j in 0..LANES {
                isa.store_pairs(columns[j], &mut whole[step][j][vector]);
            }
        },
    );
    for (line, columns) in last.iter_mut().zip(rest.into_iter().flatten()) {
        isa.store_pairs(columns, &mut line[vector]);
    }
}

/// M rows against a panel.
#[inline(always)]
fn against<P: Panels, const M: usize, const N: usize>(
    isa: P,
    out: &mut [f32],
    stride: usize,
    x: &[&[bf16]],
    panel: &[[Line; N]],
    width: usize,
) {
    let (whole, odd) = panel.split_at(x[0].len() / 2);
    let mut x_pairs: [&[[bf16; 2]]; M] = [&[]; M];
    for m in 0..M {
        // Equal lengths, said once, so that the loop needs no bounds checks.
        x_pairs[m] = &x[m].as_chunks().0[..whole.len()];
    }
    let mut sums = [[isa.zero(); N]; M];
    for pair in 0..whole.len() {
        let mut lines = [isa.pairs(&whole[pair][0]); N];
        for n in 1..N {
            lines[n] = isa.pairs(&whole[pair][n]);
        }
        for m in 0..M {
            let values = isa.repeat(&x_pairs[m][pair]);
            for n in 0..N {
                sums[m][n] = isa.add_products(sums[m][n], values, lines[n]);
            }
        }
    }
    if let [lines] = odd {
        for m in 0..M {
            let last = x[m].last().copied().unwrap_or(bf16::ZERO);
            let values = isa.repeat(&[last, bf16::ZERO]);
            for n in 0..N {
                sums[m][n] = isa.add_products(sums[m][n], values, isa.pairs(&lines[n]));
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
