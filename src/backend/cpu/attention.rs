//! Attention over contiguous or paged keys, by one core.
//!
//! A work item is a block of queries of one sequence with all the query heads that share one key/value
//! head: its *lines*. For each split of key positions a line gets a partial result of its own (greatest
//! score, sum, weighted values) that depends on that line's query and visible keys alone; partials are
//! merged in order. Whether one thread walks all splits or many threads take one each, the same
//! partials meet in the same order.

use super::{
    Cpu,
    dot::{Operand, products},
    isa::{Isa, LANES, with_isa},
    math,
    tile::tiles,
    values::{Matrix, floats, floats_mut, narrow},
};
use crate::{
    backend::{Pages, SPLIT, Segments, check},
    error::Result,
    tensor::Tensor,
};
use std::ops::Range;

/// Lines of a work item: enough to use a loaded key often, few enough for their scores to stay in cache.
const LINES: usize = 48;

/// Where one sequence's keys lie: position p of head g starts at
/// `base + table[p / page_len] · page_stride + (p mod page_len) · row_stride + g · head_stride`.
#[derive(Debug, Clone)]
struct Sequence<'a> {
    queries: Range<usize>,
    length: usize,
    causal: bool,
    base: usize,
    /// As many of the leading keys lie elsewhere: the first of them here, the others behind it.
    prefix: usize,
    prefix_base: usize,
    /// No table is one page that holds everything.
    table: Option<&'a [i32]>,
    page_len: usize,
    page_stride: usize,
    row_stride: usize,
    head_stride: usize,
}

impl Sequence<'_> {
    #[inline(always)]
    fn key(&self, position: usize, kv_head: usize) -> usize {
        if position < self.prefix {
            return self.prefix_base + position * self.row_stride + kv_head * self.head_stride;
        }
        let (page, offset) = match self.table {
            Some(table) => (table[position / self.page_len] as usize, position % self.page_len),
            None => (0, position - self.prefix),
        };
        self.base + page * self.page_stride + offset * self.row_stride + kv_head * self.head_stride
    }

    /// Keys a query sees, as a number of leading positions; the queries are the last positions.
    fn visible(&self, query: usize) -> usize {
        if self.causal { self.length - (self.queries.end - 1 - query) } else { self.length }
    }
}

/// See [`crate::backend::Backend::attention`].
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(super) fn attention(
    cpu: &Cpu,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments<'_>,
    causal: bool,
    scale: f32,
) -> Result<()> {
    const OP: &str = "attention";
    let sizes = check::attention(OP, out, lse.as_deref(), q, k, v)?;
    let row_stride = sizes.kv_heads * sizes.head_dim;
    let sequences: Vec<_> = check::segments(OP, segments, sizes.rows, causal)?
        .into_iter()
        .map(|segment| Sequence {
            length: segment.length(),
            causal,
            base: segment.rows.start * row_stride,
            prefix: segment.prefix.len(),
            prefix_base: segment.prefix.start * row_stride,
            queries: segment.rows,
            table: None,
            page_len: usize::MAX,
            page_stride: 0,
            row_stride,
            head_stride: sizes.head_dim,
        })
        .collect();
    dispatch(cpu, OP, out, lse, q, (k, v), sizes, &sequences, scale)
}

/// See [`crate::backend::Backend::paged_attention`].
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(super) fn paged_attention(
    cpu: &Cpu,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    k_pool: &Tensor,
    v_pool: &Tensor,
    pages: &Pages<'_>,
    scale: f32,
) -> Result<()> {
    let (sizes, pool) = check::paged_attention(out, lse.as_deref(), q, k_pool, v_pool, pages)?;
    let sequences: Vec<_> = check::paged_sequences(pages, sizes, pool)?
        .into_iter()
        .map(|sequence| Sequence {
            queries: sequence.queries,
            length: sequence.length,
            causal: true,
            base: 0,
            prefix: 0,
            prefix_base: 0,
            table: Some(sequence.table),
            page_len: pool.page_len,
            page_stride: pool.kv_heads * pool.page_len * pool.head_dim,
            row_stride: pool.head_dim,
            head_stride: pool.page_len * pool.head_dim,
        })
        .collect();
    dispatch(cpu, "paged_attention", out, lse, q, (k_pool, v_pool), sizes, &sequences, scale)
}

#[expect(clippy::too_many_arguments, reason = "both ops end here")]
fn dispatch(
    cpu: &Cpu,
    op: &'static str,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    sizes: check::AttentionSizes,
    sequences: &[Sequence<'_>],
    scale: f32,
) -> Result<()> {
    let q = floats(op, "q", q)?;
    let out = floats_mut(op, "out", out)?;
    let lse = lse.map(|lse| floats_mut(op, "lse", lse)).transpose()?;
    match (Matrix::of(op, "k", k)?, Matrix::of(op, "v", v)?) {
        (Matrix::F32(k), Matrix::F32(v)) => {
            Problem { q, k, v, sizes, scale, round: |to, from| to.copy_from_slice(from) }
                .solve(cpu, out, lse, sequences);
        }
        (Matrix::BF16(k), Matrix::BF16(v)) => {
            Problem { q, k, v, sizes, scale, round: narrow }.solve(cpu, out, lse, sequences);
        }
        _ => return Err(crate::Error::internal(op, "keys and values passed the check with two dtypes")),
    }
    Ok(())
}

/// The inputs of one call, with keys and values of one type.
struct Problem<'a, E> {
    q: &'a [f32],
    k: &'a [E],
    v: &'a [E],
    sizes: check::AttentionSizes,
    scale: f32,
    /// Brings a query to the keys' type.
    round: fn(&mut [E], &[f32]),
}

/// Some queries of one sequence, for one key/value head.
struct Item<'a> {
    sequence: &'a Sequence<'a>,
    kv_head: usize,
    queries: Range<usize>,
}

impl Item<'_> {
    /// Splits its last query reaches into; queries before see no more.
    fn splits(&self) -> usize {
        self.sequence.visible(self.queries.end - 1).div_ceil(SPLIT)
    }
}

/// Softmax results of some lines, not yet divided by their sums.
#[derive(Debug)]
struct Partial {
    greatest: Vec<f32>,
    sum: Vec<f32>,
    /// `[lines, D]`
    weighted: Vec<f32>,
}

impl Partial {
    fn empty(lines: usize, head_dim: usize) -> Self {
        Partial {
            greatest: vec![f32::NEG_INFINITY; lines],
            sum: vec![0.0; lines],
            weighted: vec![0.0; lines * head_dim],
        }
    }

    /// This, and then the next split.
    #[inline(always)]
    fn merge(&mut self, next: &Partial) {
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

impl<E: Operand> Problem<'_, E> {
    fn solve(&self, cpu: &Cpu, out: &mut [f32], lse: Option<&mut [f32]>, sequences: &[Sequence<'_>]) {
        let check::AttentionSizes { heads, kv_heads, head_dim, .. } = self.sizes;
        if out.is_empty() {
            return;
        }
        let group = heads / kv_heads;
        let height = (LINES / group).max(1);
        let mut items = Vec::new();
        let mut outs = Vec::new();
        let mut rest = out;
        for sequence in sequences {
            let (own, next) = rest.split_at_mut(sequence.queries.len() * heads * head_dim);
            rest = next;
            for tile in tiles(own, heads * head_dim, height, |_| group * head_dim) {
                let start = sequence.queries.start;
                items.push(Item {
                    sequence,
                    kv_head: tile.columns.start / (group * head_dim),
                    queries: start + tile.rows.start..start + tile.rows.end,
                });
                outs.push(tile.out);
            }
        }
        let finish = |partial: &Partial, out: Vec<&mut [f32]>| {
            let lines = partial.sum.iter().zip(partial.weighted.chunks_exact(head_dim));
            let outs = out.into_iter().flat_map(|row| row.chunks_exact_mut(head_dim));
            for (out, (&sum, weighted)) in outs.zip(lines) {
                out.iter_mut().zip(weighted).for_each(|(out, &value)| *out = value / sum);
            }
            partial.greatest.iter().zip(&partial.sum).map(|(m, sum)| m + sum.ln()).collect::<Vec<f32>>()
        };
        let log_sums: Vec<Vec<f32>> = with_isa!(cpu.level, isa => {
            let part = |item: &Item<'_>, split| isa.run(#[inline(always)] || self.split(isa, item, split));
            if items.len() >= 2 * cpu.threads {
                // Enough items: each walks its splits.
                cpu.map(items.iter().zip(outs).collect(), |(item, out)| {
                    let mut all = Partial::empty(item.queries.len() * group, head_dim);
                    for split in 0..item.splits() {
                        let next = part(item, split);
                        isa.run(#[inline(always)] || all.merge(&next));
                    }
                    finish(&all, out)
                })
            } else {
                // Few items: their splits are shared out, and merged here.
                let pieces = items.iter().flat_map(|item| (0..item.splits()).map(move |split| (item, split)));
                let parts = cpu.map(pieces.collect(), |(item, split)| part(item, split));
                let mut parts = parts.iter();
                items
                    .iter()
                    .zip(outs)
                    .map(|(item, out)| {
                        let mut all = Partial::empty(item.queries.len() * group, head_dim);
                        parts.by_ref().take(item.splits()).for_each(|part| all.merge(part));
                        finish(&all, out)
                    })
                    .collect()
            }
        });
        if let Some(lse) = lse {
            for (item, log_sums) in items.iter().zip(log_sums) {
                for (query, log_sums) in item.queries.clone().zip(log_sums.chunks_exact(group)) {
                    lse[query * heads + item.kv_head * group..][..group].copy_from_slice(log_sums);
                }
            }
        }
    }

    /// One item's result over one split of the keys.
    #[inline(always)]
    fn split<I: Isa>(&self, isa: I, item: &Item<'_>, split: usize) -> Partial {
        let check::AttentionSizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let group = heads / kv_heads;
        let lines = item.queries.len() * group;
        let start = split * SPLIT;
        let sequence = item.sequence;
        let columns = sequence.visible(item.queries.end - 1).min(start + SPLIT) - start;
        let keys: Vec<usize> =
            (start..start + columns).map(|position| sequence.key(position, item.kv_head)).collect();

        let mut q = vec![E::zeroed(); lines * head_dim];
        for (at, query) in item.queries.clone().enumerate() {
            let from = &self.q[(query * heads + item.kv_head * group) * head_dim..][..group * head_dim];
            (self.round)(&mut q[at * group * head_dim..][..group * head_dim], from);
        }
        let mut scores = vec![0.0; lines * columns];
        let key_rows: Vec<&[E]> = keys.iter().map(|&key| &self.k[key..][..head_dim]).collect();
        products(isa, &mut scores, &q.chunks_exact(head_dim).collect::<Vec<_>>(), &key_rows);

        let mut partial = Partial::empty(lines, head_dim);
        let limits: Vec<usize> = (0..lines)
            .map(|line| {
                let query = item.queries.start + line / group;
                sequence.visible(query).saturating_sub(start).min(columns)
            })
            .collect();
        for (line, scores) in scores.chunks_exact_mut(columns).enumerate() {
            let scores = &mut scores[..limits[line]];
            scores.iter_mut().for_each(|score| *score *= self.scale);
            let greatest = math::greatest(scores);
            scores.iter_mut().for_each(|score| *score = math::exp(*score - greatest));
            partial.greatest[line] = greatest;
            partial.sum[line] = math::sum(scores, |p| p);
        }
        let mut line = 0;
        while line < lines {
            let limit = limits[line];
            let alike = line + 4 <= lines && limits[line..line + 4].iter().all(|&other| other == limit);
            let height = if alike { 4 } else { 1 };
            let p = &scores[line * columns..][..(height - 1) * columns + limit];
            let out = &mut partial.weighted[line * head_dim..][..height * head_dim];
            match height {
                4 => weigh::<I, E, 4>(isa, out, p, columns, self.v, &keys[..limit], head_dim),
                _ => weigh::<I, E, 1>(isa, out, p, columns, self.v, &keys[..limit], head_dim),
            }
            line += height;
        }
        partial
    }
}

/// out[m, d] = Σ p[m, j] · value[j, d], in the order of positions, for M lines that see the same keys.
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
    let mut sums = [[isa.zero(); C]; M];
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
    let mut lanes = [0.0; LANES];
    for m in 0..M {
        for c in 0..C {
            isa.store(sums[m][c], &mut lanes);
            let width = LANES.min(width - c * LANES);
            out[m * head_dim + start + c * LANES..][..width].copy_from_slice(&lanes[..width]);
        }
    }
    width
}
