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
            keys: positions.map(|position| sequence.key(position, self.kv_head)).collect(),
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
    let mut start = 0;
    while start < head_dim {
        // Two vectors of values at a time keep eight sums going; the order within a sum is that of positions.
        start += if start + 2 * LANES <= head_dim {
            weigh_lanes::<I, E, M, 2>(isa, out, p, stride, values, keys, head_dim, start)
        } else {
            weigh_lanes::<I, E, M, 1>(isa, out, p, stride, values, keys, head_dim, start)
        };
    }
}

/// [`weigh`] for the C vectors of values from `start` on; returns how many elements those are.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the inner part of one loop")]
fn weigh_lanes<I: Isa, E: Operand, const M: usize, const C: usize>(
    isa: I,
    out: &mut [f32],
    p: &[f32],
    stride: usize,
    values: &[E],
    keys: &[usize],
    head_dim: usize,
    start: usize,
) -> usize {
    let mut rows: [&[f32]; M] = [&[]; M];
    for m in 0..M {
        rows[m] = &p[m * stride..][..keys.len()];
    }
    let width = (C * LANES).min(head_dim - start);
    let mut lanes = [0.0; LANES];
    let mut sums = [[isa.zero(); C]; M];
    for m in 0..M {
        for c in 0..C {
            let width = LANES.min(width - c * LANES);
            lanes[..width].copy_from_slice(&out[m * head_dim + start + c * LANES..][..width]);
            sums[m][c] = isa.load(&lanes);
        }
    }
    for (j, &key) in keys.iter().enumerate() {
        let value = &values[key + start..][..width];
        let mut loaded = [isa.zero(); C];
        for c in 0..C {
            loaded[c] = match value[c * LANES..].first_chunk::<LANES>() {
                Some(value) => E::widen(isa, value),
                None => {
                    let mut padded = [E::zeroed(); LANES];
                    padded[..width].copy_from_slice(value);
                    E::widen(isa, &padded)
                }
            };
        }
        for m in 0..M {
            let p = isa.splat(rows[m][j]);
            for c in 0..C {
                sums[m][c] = isa.multiply_add(p, loaded[c], sums[m][c]);
            }
        }
    }
    for m in 0..M {
        for c in 0..C {
            isa.store(sums[m][c], &mut lanes);
            let width = LANES.min(width - c * LANES);
            out[m * head_dim + start + c * LANES..][..width].copy_from_slice(&lanes[..width]);
        }
    }
    width
}
