//! Matrices cut into strips of columns, so that a product along their rows' axis reads memory in order.
//!
//! The backward ops sum along axes that the forward ops keep apart: over a weight's rows for dx, over tokens for dW.
//! A [`Unit`] is what one step along such an axis takes of one column, and a line is what it takes of a strip.

use super::{
    Cpu,
    dot::Operand,
    isa::{Isa, LANES, with_isa},
    math,
    scratch::Scratch,
};
use bytemuck::Pod;
use half::bf16;
use std::array::from_fn;

/// An f32, or two bf16 that are multiplied together.
pub(super) trait Unit: Pod + Send + Sync {
    /// Elements of the axis that is summed over.
    const SPAN: usize;
    /// Units of a strip in registers.
    type Loaded<I: Isa>: Copy;
    /// Of consecutive elements of each column, of which there may be a row too many.
    fn line<const W: usize>(one: [f32; W], other: [f32; W]) -> [Self; W];
    fn load<I: Isa>(isa: I, line: &[Self; LANES]) -> Self::Loaded<I>;
    fn repeat<I: Isa>(isa: I, unit: &Self) -> Self::Loaded<I>;
    fn multiply_add<I: Isa>(isa: I, sums: I::Lanes, a: Self::Loaded<I>, b: Self::Loaded<I>) -> I::Lanes;
    /// Rows of elements as rows of units, where these are the same.
    fn same(values: &[f32]) -> Option<&[Self]>;
}

/// Two elements of one column.
pub(super) type Pair = [bf16; 2];

impl Unit for f32 {
    const SPAN: usize = 1;
    type Loaded<I: Isa> = I::Lanes;

    #[inline(always)]
    fn line<const W: usize>(one: [f32; W], _: [f32; W]) -> [f32; W] {
        one
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, line: &[f32; LANES]) -> I::Lanes {
        isa.load(line)
    }

    #[inline(always)]
    fn repeat<I: Isa>(isa: I, unit: &f32) -> I::Lanes {
        isa.splat(*unit)
    }

    #[inline(always)]
    fn multiply_add<I: Isa>(isa: I, sums: I::Lanes, a: I::Lanes, b: I::Lanes) -> I::Lanes {
        isa.multiply_add(a, b, sums)
    }

    fn same(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Unit for Pair {
    const SPAN: usize = 2;
    type Loaded<I: Isa> = I::Pairs;

    #[inline(always)]
    fn line<const W: usize>(one: [f32; W], other: [f32; W]) -> [Pair; W] {
        // Whole words, so that the compiler sees vectors.
        let mut words = [0u32; W];
        for at in 0..W {
            let bits = |value: f32| u32::from(math::narrow(value).to_bits());
            words[at] = bits(one[at]) | bits(other[at]) << 16;
        }
        words.map(bytemuck::cast)
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, line: &[Pair; LANES]) -> I::Pairs {
        isa.pairs(bytemuck::cast_ref(line))
    }

    #[inline(always)]
    fn repeat<I: Isa>(isa: I, unit: &Pair) -> I::Pairs {
        isa.repeat(unit)
    }

    #[inline(always)]
    fn multiply_add<I: Isa>(isa: I, sums: I::Lanes, a: I::Pairs, b: I::Pairs) -> I::Lanes {
        isa.add_products(sums, a, b)
    }

    fn same(_: &[f32]) -> Option<&[Pair]> {
        None
    }
}

/// Some columns of some rows of a matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a, E> {
    /// From the first of the elements on.
    pub(super) values: &'a [E],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl<'a, E> View<'a, E> {
    /// Whole rows.
    pub(super) fn whole(values: &'a [E], columns: usize) -> Self {
        View { values, stride: columns, rows: values.len().checked_div(columns).unwrap_or(0), columns }
    }

    fn row(&self, row: usize) -> &'a [E] {
        &self.values[row * self.stride..][..self.columns]
    }
}

/// A matrix in strips of W columns, each strip's lines one after another; what is missing is zero.
#[derive(Debug)]
pub(super) struct Packed<U: Unit, const W: usize> {
    lines: Scratch<[U; W]>,
    /// Lines of a strip.
    pub(super) steps: usize,
}

impl<U: Unit, const W: usize> Packed<U, W>
where
    [U; W]: Pod,
{
    fn empty<E>(view: &View<'_, E>) -> Self {
        let steps = view.rows.div_ceil(U::SPAN);
        Packed { lines: Scratch::new(view.columns.div_ceil(W) * steps), steps }
    }

    /// On all threads.
    pub(super) fn new<E: Operand>(cpu: &Cpu, view: View<'_, E>) -> Self {
        const PIECE: usize = 256;
        let mut packed = Self::empty(&view);
        if packed.steps > 0 {
            let strips = packed.lines.chunks_mut(packed.steps).enumerate();
            let pieces = strips.flat_map(|(strip, lines)| {
                lines.chunks_mut(PIECE).enumerate().map(move |(at, lines)| (strip, at * PIECE, lines))
            });
            with_isa!(cpu.level, isa => cpu.spread(pieces.collect(), |(strip, first, lines)| {
                isa.run(#[inline(always)] || fill(lines, view, strip, first));
            }));
        }
        packed
    }

    /// On this thread, for its instructions.
    #[inline(always)]
    pub(super) fn here<E: Operand>(view: View<'_, E>) -> Self {
        let mut packed = Self::empty(&view);
        for strip in 0..view.columns.div_ceil(W) {
            fill(&mut packed.lines[strip * packed.steps..][..packed.steps], view, strip, 0);
        }
        packed
    }

    pub(super) fn strip(&self, strip: usize) -> &[[U; W]] {
        &self.lines[strip * self.steps..][..self.steps]
    }
}

/// Lines of one strip from step `first` on.
#[inline(always)]
fn fill<E: Operand, U: Unit, const W: usize>(
    lines: &mut [[U; W]],
    view: View<'_, E>,
    strip: usize,
    first: usize,
) {
    let column = strip * W;
    let width = W.min(view.columns - column);
    let padded = |row: usize| -> [f32; W] {
        let row = if row < view.rows { &view.row(row)[column..][..width] } else { &[] };
        from_fn(|at| row.get(at).map_or(0.0, |value| value.wide()))
    };
    let whole = |row: usize| -> [f32; W] {
        let row: &[E] = &view.row(row)[column..][..W];
        let mut values = [0.0; W];
        for at in 0..W {
            values[at] = row[at].wide();
        }
        values
    };
    for (step, line) in lines.iter_mut().enumerate() {
        let row = (first + step) * U::SPAN;
        let last = row + U::SPAN - 1;
        *line = if width == W && last < view.rows {
            U::line(whole(row), whole(last))
        } else {
            U::line(padded(row), padded(last))
        };
    }
}

/// Rows of units, completed by zeros.
#[derive(Debug)]
pub(super) struct Units<'a, U: Unit> {
    same: Option<&'a [U]>,
    own: Scratch<U>,
    pub(super) steps: usize,
}

impl<'a, U: Unit> Units<'a, U> {
    fn empty(values: &'a [f32], inner: usize) -> Self {
        let (same, steps) = (U::same(values), inner.div_ceil(U::SPAN));
        let rows = values.len().checked_div(inner).unwrap_or(0);
        Units { own: Scratch::new(if same.is_some() { 0 } else { rows * steps }), same, steps }
    }

    /// Of rows `[T, inner]`, on all threads.
    pub(super) fn new(cpu: &Cpu, values: &'a [f32], inner: usize) -> Self {
        let mut units = Self::empty(values, inner);
        if !units.own.is_empty() {
            let rows = ((1 << 16) / inner).max(1);
            let pieces = units.own.chunks_mut(rows * units.steps).zip(values.chunks(rows * inner));
            with_isa!(cpu.level, isa => cpu.spread(pieces.collect(), |(to, from)| {
                isa.run(#[inline(always)] || round(to, from, inner));
            }));
        }
        units
    }

    /// On this thread, for its instructions.
    #[inline(always)]
    pub(super) fn here(values: &'a [f32], inner: usize) -> Self {
        let mut units = Self::empty(values, inner);
        if !units.own.is_empty() {
            round(&mut units.own, values, inner);
        }
        units
    }

    pub(super) fn row(&self, row: usize) -> &[U] {
        &self.same.unwrap_or(&self.own)[row * self.steps..][..self.steps]
    }
}

/// Rows of elements to rows of units.
#[inline(always)]
fn round<U: Unit>(to: &mut [U], from: &[f32], inner: usize) {
    let steps = inner.div_ceil(U::SPAN);
    for (to, from) in to.chunks_exact_mut(steps).zip(from.chunks_exact(inner)) {
        let (pairs, rest) = from.as_chunks::<2>();
        for (to, pair) in to.iter_mut().zip(pairs) {
            [*to] = U::line([pair[0]], [pair[1]]);
        }
        if let (Some(to), &[last]) = (to.get_mut(pairs.len()), rest) {
            [*to] = U::line([last], [0.0]);
        }
    }
}
