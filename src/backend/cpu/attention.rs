//! Attention over contiguous or paged keys, by one core.
//!
//! A work item is a block of queries of one group of sequences with all the query heads that share one
//! key/value head: its *lines*. A group's sequences have some leading keys in common, which are read once
//! for all of them; most groups are one sequence. For each split of key positions a line gets a partial
//! result of its own (greatest score, sum, weighted values) that depends on that line's query and visible
//! keys alone; partials are merged in order. Whether one thread walks all splits or many threads take one
//! each, the same partials meet in the same order.

mod split;

use super::{
    Cpu,
    dot::Operand,
    isa::{Isa, with_isa},
    tile::tiles,
    values::{Matrix, floats, floats_mut, narrow},
};
use crate::{
    backend::{Pages, SPLIT, Segments, check},
    error::Result,
    tensor::Tensor,
};
use split::Partial;
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

    /// Where the keys of some positions start: in runs, since a page's follow one another.
    #[inline(always)]
    fn keys(&self, positions: Range<usize>, kv_head: usize) -> Vec<usize> {
        let mut keys = Vec::with_capacity(positions.len());
        let mut position = positions.start;
        while position < positions.end {
            let page_end = (position / self.page_len + 1).saturating_mul(self.page_len);
            let end = if position < self.prefix { self.prefix } else { page_end }.min(positions.end);
            let first = self.key(position, kv_head);
            keys.extend((0..end - position).map(|key| first + key * self.row_stride));
            position = end;
        }
        keys
    }

    /// Keys a query sees, as a number of leading positions; the queries are the last positions.
    fn visible(&self, query: usize) -> usize {
        if self.causal { self.length - (self.queries.end - 1 - query) } else { self.length }
    }
}

/// Neighbours that have their first `shared` keys in common, all of them seen by every query.
#[derive(Debug, Clone, Copy)]
struct Group<'a> {
    sequences: &'a [Sequence<'a>],
    shared: usize,
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
    let groups: Vec<_> = sequences.chunks(1).map(|sequences| Group { sequences, shared: 0 }).collect();
    dispatch(cpu, OP, out, lse, q, (k, v), sizes, &groups, scale)
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
    let paged = check::paged_sequences(pages, sizes, pool)?;
    let sequences: Vec<_> = paged
        .iter()
        .map(|sequence| Sequence {
            queries: sequence.queries.clone(),
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
    let groups: Vec<_> = check::paged_groups(pages, &paged, pool)?
        .into_iter()
        .map(|group| Group { sequences: &sequences[group.sequences], shared: group.shared })
        .collect();
    dispatch(cpu, "paged_attention", out, lse, q, (k_pool, v_pool), sizes, &groups, scale)
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
    groups: &[Group<'_>],
    scale: f32,
) -> Result<()> {
    let q = floats(op, "q", q)?;
    let out = floats_mut(op, "out", out)?;
    let lse = lse.map(|lse| floats_mut(op, "lse", lse)).transpose()?;
    match (Matrix::of(op, "k", k)?, Matrix::of(op, "v", v)?) {
        (Matrix::F32(k), Matrix::F32(v)) => {
            Problem { q, k, v, sizes, scale, round: |to, from| to.copy_from_slice(from) }
                .solve(cpu, out, lse, groups);
        }
        (Matrix::BF16(k), Matrix::BF16(v)) => {
            Problem { q, k, v, sizes, scale, round: narrow }.solve(cpu, out, lse, groups);
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

/// Some queries of one group, for one key/value head.
struct Item<'a> {
    group: Group<'a>,
    kv_head: usize,
    queries: Range<usize>,
}

impl<'a> Item<'a> {
    /// Its queries by sequence.
    fn parts(&self) -> impl Iterator<Item = (&'a Sequence<'a>, Range<usize>)> {
        let Range { start, end } = self.queries;
        let part = move |sequence: &'a Sequence<'a>| {
            let queries = sequence.queries.start.max(start)..sequence.queries.end.min(end);
            (!queries.is_empty()).then_some((sequence, queries))
        };
        self.group.sequences.iter().filter_map(part)
    }

    /// Splits its queries reach into.
    fn splits(&self) -> usize {
        let reach = self.parts().map(|(sequence, queries)| sequence.visible(queries.end - 1));
        reach.max().unwrap_or(0).div_ceil(SPLIT)
    }
}

impl<E: Operand> Problem<'_, E> {
    fn solve(&self, cpu: &Cpu, out: &mut [f32], lse: Option<&mut [f32]>, groups: &[Group<'_>]) {
        let check::AttentionSizes { heads, kv_heads, head_dim, .. } = self.sizes;
        if out.is_empty() {
            return;
        }
        let group = heads / kv_heads;
        let height = (LINES / group).max(1);
        let mut items = Vec::new();
        let mut outs: Vec<Vec<&mut [f32]>> = Vec::new();
        let mut rest = out;
        for &of in groups {
            let Some((first, last)) = of.sequences.first().zip(of.sequences.last()) else { continue };
            let (start, end) = (first.queries.start, last.queries.end);
            let (own, next) = rest.split_at_mut((end - start) * heads * head_dim);
            rest = next;
            for tile in tiles(own, heads * head_dim, height, |_| group * head_dim) {
                items.push(Item {
                    group: of,
                    kv_head: tile.columns.start / (group * head_dim),
                    queries: start + tile.rows.start..start + tile.rows.end,
                });
                outs.push(tile.into_rows().collect());
            }
        }
        let finish = |partial: &Partial, out: &mut Vec<&mut [f32]>| {
            let lines = partial.sum.iter().zip(partial.weighted.chunks_exact(head_dim));
            let outs = out.iter_mut().flat_map(|row| row.chunks_exact_mut(head_dim));
            for (out, (&sum, weighted)) in outs.zip(lines) {
                out.iter_mut().zip(weighted).for_each(|(out, &value)| *out = value / sum);
            }
            let log_sums = partial.greatest.iter().zip(&partial.sum).map(|(m, sum)| m + sum.ln());
            if lse.is_some() { log_sums.collect() } else { Vec::new() }
        };
        let log_sums: Vec<Vec<f32>> = with_isa!(cpu.level, isa => {
            let part = |item: &Item<'_>, split| isa.run(#[inline(always)] || self.split(isa, item, split));
            if items.len() >= 2 * cpu.threads {
                // Enough items: each walks its splits. What this thread has allocated it also frees, so that the others
                // need not wait for its allocator.
                cpu.map(items.iter().zip(&mut outs).collect(), |(item, out)| {
                    let mut all = part(item, 0);
                    for split in 1..item.splits() {
                        let next = part(item, split);
                        isa.run(#[inline(always)] || all.merge(&next));
                    }
                    finish(&all, out)
                })
            } else {
                // Few items: their splits are shared out, and merged here.
                let pieces = items.iter().flat_map(|item| (0..item.splits()).map(move |split| (item, split)));
                let parts = cpu.map(pieces.collect(), |(item, split)| part(item, split));
                let mut parts = parts.into_iter();
                items
                    .iter()
                    .zip(&mut outs)
                    .map(|(item, out)| {
                        let mut own = parts.by_ref().take(item.splits());
                        let mut all = own.next().expect("a query sees a key");
                        own.for_each(|part| all.merge(&part));
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
}
