//! One split of the keys for the lines of one item: scores, softmax, weighted values.
//!
//! Keys that a group shares are used for all of its lines at once, then each sequence's own for its lines. A line's sums
//! go over its keys in the order of positions either way.

use super::{Item, Problem, Sequence};
use crate::backend::{
    SPLIT,
    check::AttentionSizes,
    cpu::{
        dot::{Operand, products},
        isa::{Isa, LANES},
        math,
        scratch::Scratch,
    },
};
use std::ops::Range;

/// Bytes that memory sends at a time.
const LINE: usize = 64;

/// Softmax results of some lines, not yet divided by their sums.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) greatest: Vec<f32>,
    pub(super) sum: Vec<f32>,
    /// `[lines, D]`
    pub(super) weighted: Vec<f32>,
}

impl Partial {
    pub(super) fn empty(lines: usize, head_dim: usize) -> Self {
        Partial {
            greatest: vec![f32::NEG_INFINITY; lines],
            sum: vec![0.0; lines],
            weighted: vec![0.0; lines * head_dim],
        }
    }

    /// This, and then the next split.
    #[inline(always)]
    pub(super) fn merge(&mut self, next: &Partial) {
        let head_dim = self.weighted.len() / self.sum.len();
        for line in 0..self.sum.len() {
            if next.greatest[line] == f32::NEG_INFINITY && next.sum[line] == 0.0 {
                continue; // the line sees none of that split
            }
            let (mine, its) = (self.greatest[line], next.greatest[line]);
            let greatest = if its > mine { its } else { mine };
            let (a, b) = (math::exp(mine - greatest), math::exp(its - greatest));
            self.greatest[line] = greatest;
            self.sum[line] = self.sum[line] * a + next.sum[line] * b;
            let values = line * head_dim..(line + 1) * head_dim;
            for (mine, &its) in self.weighted[values.clone()].iter_mut().zip(&next.weighted[values]) {
                *mine = *mine * a + its * b;
            }
        }
    }
}

/// Lines with the keys they see, but for those at the end that a causal line does not see yet.
struct Piece {
    lines: Range<usize>,
    /// Positions, counted from the beginning of the split.
    columns: Range<usize>,
    /// Where each key lies.
    keys: Vec<usize>,
}

impl Item<'_> {
    fn pieces(&self, split: usize, lines_of: impl Fn(&Range<usize>) -> Range<usize>) -> Vec<Piece> {
        let start = split * SPLIT;
        let shared = self.group.shared.clamp(start, start + SPLIT);
        let piece = |sequence: &Sequence<'_>, queries: &Range<usize>, positions: Range<usize>| Piece {
            lines: lines_of(queries),
            columns: positions.start - start..positions.end - start,
            keys: sequence.keys(positions, self.kv_head),
        };
        let mut all = Vec::new();
        if shared > start {
            all.push(piece(&self.group.sequences[0], &self.queries, start..shared));
        }
        for (sequence, queries) in self.parts() {
            let end = sequence.visible(queries.end - 1).min(start + SPLIT);
            if end > shared {
                all.push(piece(sequence, &queries, shared..end));
            }
        }
        all
    }
}

impl<E: Operand> Problem<'_, E> {
    /// One item's result over one split of the keys.
    #[inline(always)]
    pub(super) fn split<I: Isa>(&self, isa: I, item: &Item<'_>, split: usize) -> Partial {
        let AttentionSizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let group = heads / kv_heads;
        let first = item.queries.start;
        let lines_of =
            |queries: &Range<usize>| (queries.start - first) * group..(queries.end - first) * group;
        let lines = item.queries.len() * group;

        let mut q = vec![E::zeroed(); lines * head_dim];
        for (q, query) in q.chunks_exact_mut(group * head_dim).zip(item.queries.clone()) {
            let from = &self.q[(query * heads + item.kv_head * group) * head_dim..][..group * head_dim];
            (self.round)(q, from);
        }
        let q: Vec<&[E]> = q.chunks_exact(head_dim).collect();
        let mut limits = vec![0; lines]; // keys of the split that a line sees
        for (sequence, queries) in item.parts() {
            for query in queries {
                let seen = sequence.visible(query).saturating_sub(split * SPLIT).min(SPLIT);
                limits[lines_of(&(query..query + 1))].fill(seen);
            }
        }
        let stride = limits.iter().copied().max().unwrap_or(0);
        let pieces = item.pieces(split, lines_of);
        // Values are sent for when the keys have been used: both at once would not fit into the first cache.
        let send_for = |cache: &[E]| {
            for &key in pieces.iter().flat_map(|piece| &piece.keys) {
                cache[key..][..head_dim]
                    .chunks(LINE / size_of::<E>())
                    .for_each(|line| isa.prefetch(line.as_ptr()));
            }
        };
        send_for(self.k);

        let mut scores = Scratch::<f32>::new(lines * stride);
        for Piece { lines, columns, keys } in &pieces {
            let keys: Vec<&[E]> = keys.iter().map(|&key| &self.k[key..][..head_dim]).collect();
            let (q, to) = (&q[lines.clone()], &mut scores[lines.start * stride..lines.end * stride]);
            if columns.len() == stride {
                products(isa, to, q, &keys);
                continue;
            }
            let mut part = Scratch::<f32>::new(lines.len() * columns.len());
            products(isa, &mut part, q, &keys);
            for (to, part) in to.chunks_exact_mut(stride).zip(part.chunks_exact(columns.len())) {
                to[columns.clone()].copy_from_slice(part);
            }
        }

        send_for(self.v);

        let mut partial = Partial::empty(lines, head_dim);
        for (line, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let scores = &mut scores[..limits[line]];
            scores.iter_mut().for_each(|score| *score *= self.scale);
            let greatest = math::greatest(scores);
            scores.iter_mut().for_each(|score| *score = math::exp(*score - greatest));
            partial.greatest[line] = greatest;
            partial.sum[line] = math::sum(scores, |p| p);
        }

        for Piece { lines, columns, keys } in &pieces {
            let seen = |line: usize| limits[line].clamp(columns.start, columns.end) - columns.start;
            let mut line = lines.start;
            while line < lines.end {
                let alike = (line + 1..lines.end).take(3).take_while(|&next| seen(next) == seen(line));
                let height = 1 + alike.count();
                let p = &scores[line * stride + columns.start..];
                let out = &mut partial.weighted[line * head_dim..][..height * head_dim];
                let keys = &keys[..seen(line)];
                match height {
                    1 => weigh::<I, E, 1>(isa, out, p, stride, self.v, keys, head_dim),
                    2 => weigh::<I, E, 2>(isa, out, p, stride, self.v, keys, head_dim),
                    3 => weigh::<I, E, 3>(isa, out, p, stride, self.v, keys, head_dim),
                    _ => weigh::<I, E, 4>(isa, out, p, stride, self.v, keys, head_dim),
                }
                line += height;
            }
        }
        partial
    }
}

/// out[m, d] += Σ p[m, j] · value[j, d], in the order of positions, for M lines that see the same keys.
#[inline(always)]
fn weigh<I: Isa, E: Operand, const M: usize>(
    isa: I,
    out: &mut [f32],
    p: &[f32],
    stride: usize,
    values: &[E],
    keys: &[usize],
    head_dim: usize,
) {
    let mut rows: [&[f32]; M] = [&[]; M];
    for m in 0..M {
        rows[m] = &p[m * stride..][..keys.len()];
    }
    // As many vectors of values at a time as leave their sums in registers.
    let (fours, rest) = (head_dim / (4 * LANES), head_dim % (4 * LANES));
    let mut start = 0;
    for _ in 0..fours {
        weigh_lanes::<I, E, M, 4>(isa, out, &rows, values, keys, head_dim, start);
        start += 4 * LANES;
    }
    for _ in 0..rest / LANES {
        weigh_lanes::<I, E, M, 1>(isa, out, &rows, values, keys, head_dim, start);
        start += LANES;
    }
    if start < head_dim {
        let width = head_dim - start;
        let mut padded = Scratch::<E>::new(keys.len() * LANES);
        for (padded, &key) in padded.chunks_exact_mut(LANES).zip(keys) {
            padded[..width].copy_from_slice(&values[key + start..][..width]);
        }
        let keys: Vec<usize> = (0..keys.len()).map(|key| key * LANES).collect();
        let mut lanes = [[0.0; LANES]; M];
        for (lanes, out) in lanes.iter_mut().zip(out.chunks_exact(head_dim)) {
            lanes[..width].copy_from_slice(&out[start..]);
        }
        weigh_lanes::<I, E, M, 1>(isa, lanes.as_flattened_mut(), &rows, &padded, &keys, LANES, 0);
        for (lanes, out) in lanes.iter().zip(out.chunks_exact_mut(head_dim)) {
            out[start..].copy_from_slice(&lanes[..width]);
        }
    }
}

/// [`weigh`] for the C vectors of values from `start` on. Plain loops over arrays: those are what the compiler keeps in
/// registers.
#[inline(always)]
fn weigh_lanes<I: Isa, E: Operand, const M: usize, const C: usize>(
    isa: I,
    out: &mut [f32],
    p: &[&[f32]; M],
    values: &[E],
    keys: &[usize],
    head_dim: usize,
    start: usize,
) {
    let mut sums = [[isa.zero(); C]; M];
    for m in 0..M {
        let out: &[[f32; LANES]] = out[m * head_dim + start..][..C * LANES].as_chunks().0;
        for c in 0..C {
            sums[m][c] = isa.load(&out[c]);
        }
    }
    for (j, &key) in keys.iter().enumerate() {
        let value: &[[E; LANES]] = values[key + start..][..C * LANES].as_chunks().0;
        let mut loaded = [isa.zero(); C];
        for c in 0..C {
            loaded[c] = E::widen(isa, &value[c]);
        }
        for m in 0..M {
            let p = isa.splat(p[m][j]);
            for c in 0..C {
                sums[m][c] = isa.multiply_add(p, loaded[c], sums[m][c]);
            }
        }
    }
    for m in 0..M {
        let out: &mut [[f32; LANES]] = out[m * head_dim + start..][..C * LANES].as_chunks_mut().0;
        for c in 0..C {
            isa.store(sums[m][c], &mut out[c]);
        }
    }
}
