//! Products that sum along the rows' axis of their right side: out[t, c] = Σ_n left[t][n]·right[n][c].
//!
//! A tall block of sums stays in registers while the axis passes by: a line of the right side is loaded once for all of
//! the block's rows, and a unit of the left side is repeated in all lanes. The axis is cut into chunks, each summed from
//! zero in order and then added; how tall and wide blocks and tiles are decides nothing.
#![allow(clippy::needless_range_loop, reason = "arrays by index are what the compiler keeps in registers")]

use super::{
    Cpu,
    isa::{Isa, LANES, with_isa},
    pack::{Packed, Unit, Units, View},
    scratch::Scratch,
    tile::tiles,
};
use std::ops::Range;

/// Steps of the axis whose part of the right side waits in the second cache while rows pass by.
const CHUNK: usize = 512;

/// Strips of a block on wide registers, which hold 24 sums, three lines and a repeated unit.
const STRIPS: usize = 3;

/// Rows of a block, and of the strips of a left side that is packed.
pub(super) const ROWS: usize = 8;

/// Columns of a tile: a block's.
const WIDTH: usize = STRIPS * LANES;

/// Rows of a tile, at most.
const HEIGHT: usize = 512;

/// The left side: rows as they lie, or the columns of a matrix, which are the rows of its transpose.
#[derive(Debug)]
pub(super) enum Left<'a, U: Unit> {
    Rows(&'a Units<'a, U>),
    Columns(&'a Packed<U, ROWS>),
}

impl<U: Unit> Clone for Left<'_, U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U: Unit> Copy for Left<'_, U> {}

/// Units of M rows.
trait Side<U>: Copy {
    fn unit(&self, step: usize, row: usize) -> &U;
}

/// M rows side by side.
#[derive(Clone, Copy)]
struct Rows<'a, U, const M: usize>([&'a [U]; M]);

/// Rows of a packed strip from FIRST on.
#[derive(Clone, Copy)]
struct Strip<'a, U, const FIRST: usize>(&'a [[U; ROWS]]);

impl<U: Unit, const M: usize> Side<U> for Rows<'_, U, M> {
    #[inline(always)]
    fn unit(&self, step: usize, row: usize) -> &U {
        &self.0[row][step]
    }
}

impl<U: Unit, const FIRST: usize> Side<U> for Strip<'_, U, FIRST> {
    #[inline(always)]
    fn unit(&self, step: usize, row: usize) -> &U {
        &self.0[step][FIRST + row]
    }
}

/// Lines of N strips.
trait Lines<U, const N: usize>: Copy {
    fn line(&self, step: usize, strip: usize) -> &[U; LANES];
}

/// N packed strips of one length.
#[derive(Clone, Copy)]
struct Strips<'a, U, const N: usize>([&'a [[U; LANES]]; N]);

/// Columns of a matrix as it lies, from the first of its values on.
#[derive(Clone, Copy)]
struct Lying<'a> {
    values: &'a [f32],
    stride: usize,
}

impl<'a> Lying<'a> {
    fn of(view: View<'a, f32>, row: usize, column: usize) -> Self {
        Lying { values: &view.values[row * view.stride + column..], stride: view.stride }
    }
}

impl<U: Unit, const N: usize> Lines<U, N> for Strips<'_, U, N> {
    #[inline(always)]
    fn line(&self, step: usize, strip: usize) -> &[U; LANES] {
        &self.0[strip][step]
    }
}

impl<const N: usize> Lines<f32, N> for Lying<'_> {
    #[inline(always)]
    fn line(&self, step: usize, strip: usize) -> &[f32; LANES] {
        self.values[step * self.stride + strip * LANES..].first_chunk().expect("whole strips")
    }
}

impl Side<f32> for Lying<'_> {
    #[inline(always)]
    fn unit(&self, step: usize, row: usize) -> &f32 {
        let line: &[f32; ROWS] = self.values[step * self.stride..].first_chunk().expect("whole blocks");
        &line[row]
    }
}

/// Where a block's sums go.
struct Place<'a> {
    out: &'a mut [f32],
    stride: usize,
    rows: usize,
    columns: usize,
    /// Whether something is there already, to be added to.
    added: bool,
}

/// y `[rows, columns]` = the product of these rows and columns, the latter from a strip's first on.
#[inline(never)]
pub(super) fn products<I: Isa, U: Unit>(
    isa: I,
    y: &mut [f32],
    left: Left<'_, U>,
    rows: Range<usize>,
    right: &Packed<U, LANES>,
    columns: Range<usize>,
) {
    if right.steps == 0 {
        return y.fill(0.0);
    }
    let strips = columns.len().div_ceil(LANES);
    // Blocks of like width: four strips are better as two and two than as three and one.
    let wide = if I::TALL { strips.div_ceil(strips.div_ceil(STRIPS)) } else { 1 };
    let high = if I::TALL { ROWS } else { ROWS / 2 };
    isa.run(
        #[inline(always)]
        || {
            for start in (0..right.steps).step_by(CHUNK) {
                let chunk = start..right.steps.min(start + CHUNK);
                for strip in (0..strips).step_by(wide) {
                    let width = wide.min(strips - strip);
                    for row in (0..rows.len()).step_by(high) {
                        let place = Place {
                            out: &mut y[row * columns.len() + strip * LANES..],
                            stride: columns.len(),
                            rows: high.min(rows.len() - row),
                            columns: columns.len() - strip * LANES,
                            added: start > 0,
                        };
                        let at = (rows.start + row, rows.end, columns.start / LANES + strip);
                        match (I::TALL, width) {
                            (true, 1) => tall::<I, U, 1>(isa, place, left, right, at, &chunk),
                            (true, 2) => tall::<I, U, 2>(isa, place, left, right, at, &chunk),
                            (true, _) => tall::<I, U, STRIPS>(isa, place, left, right, at, &chunk),
                            (false, _) => low(isa, place, left, right, at, &chunk),
                        }
                    }
                }
            }
        },
    );
}

/// A block of eight rows.
#[inline(always)]
fn tall<I: Isa, U: Unit, const N: usize>(
    isa: I,
    place: Place<'_>,
    left: Left<'_, U>,
    right: &Packed<U, LANES>,
    (row, end, strip): (usize, usize, usize),
    chunk: &Range<usize>,
) {
    match left {
        Left::Rows(units) => {
            let rows = rows_of::<U, ROWS>(units, row, end, chunk);
            block::<I, U, ROWS, N>(isa, place, rows, strips_of(right, strip, chunk), chunk.len());
        }
        Left::Columns(packed) => {
            let lines = Strip::<U, 0>(&packed.strip(row / ROWS)[chunk.clone()]);
            block::<I, U, ROWS, N>(isa, place, lines, strips_of(right, strip, chunk), chunk.len());
        }
    }
}

/// A block of four rows and one strip, for processors with fewer registers.
#[inline(always)]
fn low<I: Isa, U: Unit>(
    isa: I,
    place: Place<'_>,
    left: Left<'_, U>,
    right: &Packed<U, LANES>,
    (row, end, strip): (usize, usize, usize),
    chunk: &Range<usize>,
) {
    const LOW: usize = ROWS / 2;
    let (right, steps) = (strips_of::<U, 1>(right, strip, chunk), chunk.len());
    match left {
        Left::Rows(units) => {
            let rows = rows_of::<U, LOW>(units, row, end, chunk);
            block::<I, U, LOW, 1>(isa, place, rows, right, steps);
        }
        Left::Columns(packed) => {
            let lines = &packed.strip(row / ROWS)[chunk.clone()];
            if row % ROWS == 0 {
                block::<I, U, LOW, 1>(isa, place, Strip::<U, 0>(lines), right, steps);
            } else {
                block::<I, U, LOW, 1>(isa, place, Strip::<U, LOW>(lines), right, steps);
            }
        }
    }
}

/// M rows from `row` on; beyond the last, the last again.
#[inline(always)]
fn rows_of<'a, U: Unit, const M: usize>(
    units: &'a Units<'_, U>,
    row: usize,
    end: usize,
    chunk: &Range<usize>,
) -> Rows<'a, U, M> {
    let mut rows: [&[U]; M] = [&[]; M];
    for m in 0..M {
        // Equal lengths, said once, so that the loop needs no bounds checks.
        rows[m] = &units.row((row + m).min(end - 1))[chunk.clone()][..chunk.len()];
    }
    Rows(rows)
}

/// N strips from `strip` on.
#[inline(always)]
fn strips_of<'a, U: Unit, const N: usize>(
    right: &'a Packed<U, LANES>,
    strip: usize,
    chunk: &Range<usize>,
) -> Strips<'a, U, N> {
    let mut strips: [&[[U; LANES]]; N] = [&[]; N];
    for n in 0..N {
        strips[n] = &right.strip(strip + n)[chunk.clone()][..chunk.len()];
    }
    Strips(strips)
}

/// M rows and N strips over one chunk. Plain loops over arrays: those are what the compiler keeps in registers.
#[inline(always)]
fn block<I: Isa, U: Unit, const M: usize, const N: usize>(
    isa: I,
    place: Place<'_>,
    left: impl Side<U>,
    right: impl Lines<U, N>,
    steps: usize,
) {
    let mut sums = [[isa.zero(); N]; M];
    for step in 0..steps {
        let mut lines = [U::load(isa, right.line(step, 0)); N];
        for n in 1..N {
            lines[n] = U::load(isa, right.line(step, n));
        }
        for m in 0..M {
            let unit = U::repeat(isa, left.unit(step, m));
            for n in 0..N {
                sums[m][n] = U::multiply_add(isa, sums[m][n], unit, lines[n]);
            }
        }
    }
    let mut lanes = [0.0; LANES];
    for m in 0..M {
        for n in 0..N {
            if m < place.rows {
                isa.store(sums[m][n], &mut lanes);
                let width = LANES.min(place.columns - n * LANES);
                let out = &mut place.out[m * place.stride + n * LANES..][..width];
                let sums = out.iter_mut().zip(&lanes);
                if place.added {
                    sums.for_each(|(out, sum)| *out += sum);
                } else {
                    sums.for_each(|(out, sum)| *out = *sum);
                }
            }
        }
    }
}

/// Cuts out `[·, columns]` into tiles and gives each to a thread, with memory for its products.
pub(super) fn by_tiles<I: Isa>(
    cpu: &Cpu,
    isa: I,
    out: &mut [f32],
    columns: usize,
    products: impl Fn(&mut [f32], Range<usize>, Range<usize>) + Sync,
    finish: impl Fn(&mut [f32], &[f32]) + Sync,
) {
    // Enough tiles for all threads to end together, if there are as many blocks.
    let rows = out.len().checked_div(columns).unwrap_or(0);
    let height = (rows * columns.div_ceil(WIDTH)).div_ceil(4 * cpu.threads).next_multiple_of(ROWS);
    cpu.spread(tiles(out, columns, height.clamp(ROWS, HEIGHT), |_| WIDTH), |tile| {
        isa.run(
            #[inline(always)]
            || {
                let mut y = Scratch::<f32>::new(tile.rows.len() * tile.columns.len());
                products(&mut y, tile.rows.clone(), tile.columns.clone());
                let width = tile.columns.len();
                tile.into_rows().zip(y.chunks_exact(width)).for_each(|(out, y)| finish(out, y));
            },
        );
    });
}

/// out `[·, columns]` += s·left·right.
pub(super) fn add_products<U: Unit>(
    cpu: &Cpu,
    out: &mut [f32],
    columns: usize,
    scale: f32,
    left: Left<'_, U>,
    right: &Packed<U, LANES>,
) {
    with_isa!(cpu.level, isa => by_tiles(
        cpu,
        isa,
        out,
        columns,
        |y, rows, columns| products(isa, y, left, rows, right, columns),
        #[inline(always)]
        |out, y| out.iter_mut().zip(y).for_each(|(out, y)| *out += scale * y),
    ));
}

/// Whether [`add_outer`] takes a slim and a wide matrix: whole blocks of rows, and whole strips.
pub(super) fn lies_well(slim: &View<'_, f32>, wide: &View<'_, f32>) -> bool {
    slim.columns.is_multiple_of(ROWS) && wide.columns.is_multiple_of(LANES)
}

/// out `[R, K]` += s·slimᵀ·wide for a slim `[T, R]` and a wide `[T, K]`: the same sums as of packed sides. With few blocks
/// of rows the wide side goes by as few times, so that packing it would cost more than it helps.
pub(super) fn add_outer(cpu: &Cpu, out: &mut [f32], scale: f32, slim: View<'_, f32>, wide: View<'_, f32>) {
    with_isa!(cpu.level, isa => by_tiles(
        cpu,
        isa,
        out,
        wide.columns,
        |y, rows, columns| isa.run(#[inline(always)] || {
            y.fill(0.0);
            for start in (0..slim.rows).step_by(CHUNK) {
                let steps = CHUNK.min(slim.rows - start);
                for row in (0..rows.len()).step_by(ROWS) {
                    let left = Lying::of(slim, start, rows.start + row);
                    let right = Lying::of(wide, start, columns.start);
                    let out = &mut y[row * columns.len()..];
                    let place = Place { out, stride: columns.len(), rows: ROWS, columns: columns.len(), added: start > 0 };
                    match columns.len() / LANES {
                        1 => block::<_, f32, ROWS, 1>(isa, place, left, right, steps),
                        2 => block::<_, f32, ROWS, 2>(isa, place, left, right, steps),
                        _ => block::<_, f32, ROWS, STRIPS>(isa, place, left, right, steps),
                    }
                }
            }
        }),
        #[inline(always)]
        |out, y| out.iter_mut().zip(y).for_each(|(out, y)| *out += scale * y),
    ));
}
