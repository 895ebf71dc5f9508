//! Gradients of attention: one query head of one family of sequences is one thread's, from the scores on.
//!
//! A family is a sequence and its children, whose rows add to the gradients of its keys and values. Blocks of queries
//! meet blocks of keys in order, and the heads that share a key/value head add up in order at the end, so that nothing is
//! written by two.

use crate::{
    backend::{
        AttentionGrads, Segments,
        check::{self, AttentionSizes, Segment},
        cpu::{
            Cpu,
            combine::{self, Left},
            dot::{self, Operand},
            isa::{Isa, LANES, with_isa},
            math,
            pack::{Packed, Units, View},
            scratch::Scratch,
            values::{Matrix, floats, floats_mut, narrow},
        },
    },
    error::{Error, Result},
    tensor::Tensor,
};
use bytemuck::Pod;
use std::ops::Range;

const OP: &str = "attention_backward";

/// Queries and keys of a block: as many as leave their scores in the first cache.
const QUERIES: usize = 64;
const KEYS: usize = 128;

/// See [`crate::backend::Backend::attention_backward`].
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(in crate::backend::cpu) fn attention(
    cpu: &Cpu,
    grads: &mut AttentionGrads,
    dout: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments<'_>,
    causal: bool,
    scale: f32,
) -> Result<()> {
    let sizes = check::attention_backward(grads, dout, out, lse, q, k, v)?;
    let segments = check::segments(OP, segments, sizes.rows, causal)?;
    let (dout, out, lse) = (floats(OP, "dout", dout)?, floats(OP, "out", out)?, floats(OP, "lse", lse)?);
    let q = floats(OP, "q", q)?;
    let grads = [
        floats_mut(OP, "dq", &mut grads.dq)?,
        floats_mut(OP, "dk", &mut grads.dk)?,
        floats_mut(OP, "dv", &mut grads.dv)?,
    ];
    match (Matrix::of(OP, "k", k)?, Matrix::of(OP, "v", v)?) {
        (Matrix::F32(k), Matrix::F32(v)) => {
            let round = |to: &mut [f32], from: &[f32]| to.copy_from_slice(from);
            Problem { q, k, v, dout, out, lse, sizes, scale, round }.solve(cpu, grads, &segments);
        }
        (Matrix::BF16(k), Matrix::BF16(v)) => {
            Problem { q, k, v, dout, out, lse, sizes, scale, round: narrow }.solve(cpu, grads, &segments);
        }
        _ => return Err(Error::internal(OP, "keys and values passed the check with two dtypes")),
    }
    Ok(())
}

/// The inputs of one call, with keys and values of one type.
struct Problem<'a, E> {
    q: &'a [f32],
    k: &'a [E],
    v: &'a [E],
    dout: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    sizes: AttentionSizes,
    scale: f32,
    /// Brings queries and their like to the keys' type.
    round: fn(&mut [E], &[f32]),
}

/// What one query head gives all rows of a family, one sequence after another; each `[rows, D]`.
struct Part<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// A block of one head's queries, as the products want them.
struct Queries<E: Operand>
where
    [E::Unit; LANES]: Pod,
{
    rows: Range<usize>,
    q: Vec<E>,
    dout: Vec<E>,
    packed_q: Packed<E::Unit, LANES>,
    packed_dout: Packed<E::Unit, LANES>,
    /// dout·out of each.
    delta: Vec<f32>,
    lse: Vec<f32>,
}

/// Sequences with their children, each family by the places of its members.
fn families(segments: &[Segment]) -> Vec<Vec<usize>> {
    let mut families: Vec<Vec<usize>> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let parent = |family: &&mut Vec<usize>| segments[family[0]].rows == segment.prefix;
        match families.iter_mut().find(parent).filter(|_| !segment.prefix.is_empty()) {
            Some(family) => family.push(at),
            None => families.push(vec![at]),
        }
    }
    families
}

impl<E: Operand> Problem<'_, E>
where
    [E::Unit; LANES]: Pod,
    [E::Unit; combine::ROWS]: Pod,
{
    fn solve(&self, cpu: &Cpu, [mut dq, mut dk, mut dv]: [&mut [f32]; 3], segments: &[Segment]) {
        let AttentionSizes { heads, kv_heads, head_dim, .. } = self.sizes;
        if dq.is_empty() {
            return dk.iter_mut().chain(dv).for_each(|gradient| *gradient = 0.0);
        }
        let families = families(segments);
        // One piece of memory for all: what each thread took for itself would stay with it.
        let rows: usize = segments.iter().map(|segment| segment.rows.len()).sum();
        let mut room = Scratch::new(3 * rows * heads * head_dim);
        let mut rest = &mut room[..];
        let mut items = Vec::with_capacity(families.len() * heads);
        for family in &families {
            let rows: usize = family.iter().map(|&member| segments[member].rows.len()).sum();
            for head in 0..heads {
                let mut own = || rest.split_off_mut(..rows * head_dim).unwrap_or_default();
                items.push((family, head, Part { dq: own(), dk: own(), dv: own() }));
            }
        }
        let parts = with_isa!(cpu.level, isa => cpu.map(items, |(family, head, part)| {
            isa.run(#[inline(always)] || self.part(isa, family, segments, head, part))
        }));

        let mut places = vec![(0, 0); segments.len()]; // of each sequence: its family's first part, its first row there
        for (number, family) in families.iter().enumerate() {
            let mut first = 0;
            for &member in family {
                places[member] = (number * heads, first);
                first += segments[member].rows.len();
            }
        }
        let mut pieces = Vec::new();
        for (segment, (part, first)) in segments.iter().zip(places) {
            for start in (0..segment.rows.len()).step_by(QUERIES) {
                let rows = QUERIES.min(segment.rows.len() - start);
                let own_q = dq.split_off_mut(..rows * heads * head_dim).unwrap_or_default();
                let own_k = dk.split_off_mut(..rows * kv_heads * head_dim).unwrap_or_default();
                let own_v = dv.split_off_mut(..rows * kv_heads * head_dim).unwrap_or_default();
                pieces.push((&parts[part..part + heads], first + start, own_q, own_k, own_v));
            }
        }
        with_isa!(cpu.level, isa => cpu.spread(pieces, |(parts, first, dq, dk, dv)| {
            isa.run(#[inline(always)] || {
                gather(dq, parts, 1, first, head_dim, |part| part.dq);
                gather(dk, parts, heads / kv_heads, first, head_dim, |part| part.dk);
                gather(dv, parts, heads / kv_heads, first, head_dim, |part| part.dv);
            });
        }));
    }

    /// All that one query head gives a family.
    #[inline(always)]
    fn part<'a, I: Isa>(
        &self,
        isa: I,
        family: &[usize],
        segments: &[Segment],
        head: usize,
        mut part: Part<'a>,
    ) -> Part<'a> {
        let Part { dq, dk, dv } = &mut part;
        [dq, dk, dv].into_iter().for_each(|sums| sums.fill(0.0));
        let mut first = 0;
        for segment in family.iter().map(|&member| &segments[member]) {
            for start in segment.rows.clone().step_by(QUERIES) {
                let queries = self.queries(start..segment.rows.end.min(start + QUERIES), head);
                let at = first + start - segment.rows.start;
                let end = if segment.causal { queries.rows.end } else { segment.rows.end };
                // The parent's rows are the family's first.
                let ranges = [(0, segment.prefix.clone()), (first, segment.rows.start..end)];
                for (place, range) in ranges {
                    for key in range.clone().step_by(KEYS) {
                        let keys = key..range.end.min(key + KEYS);
                        let place = place + key - range.start;
                        self.meet(isa, &mut part, &queries, at, keys, place, segment.causal, head);
                    }
                }
            }
            first += segment.rows.len();
        }
        part
    }

    #[inline(always)]
    fn queries(&self, rows: Range<usize>, head: usize) -> Queries<E> {
        let AttentionSizes { heads, head_dim, .. } = self.sizes;
        let first = (rows.start * heads + head) * head_dim;
        let view = |values| View { values, stride: heads * head_dim, rows: rows.len(), columns: head_dim };
        let rounded = |values: &[f32]| {
            let mut to = vec![E::zeroed(); rows.len() * head_dim];
            for (row, to) in to.chunks_exact_mut(head_dim).enumerate() {
                (self.round)(to, &values[row * heads * head_dim..][..head_dim]);
            }
            to
        };
        let (q, dout, out) = (&self.q[first..], &self.dout[first..], &self.out[first..]);
        let delta = |row: usize| {
            let at = row * heads * head_dim..row * heads * head_dim + head_dim;
            let mut products = [0.0; LANES];
            for (at, (dout, out)) in dout[at.clone()].iter().zip(&out[at]).enumerate() {
                products[at % LANES] += dout * out;
            }
            math::sum_lanes(products)
        };
        Queries {
            q: rounded(q),
            dout: rounded(dout),
            packed_q: Packed::here(view(q)),
            packed_dout: Packed::here(view(dout)),
            delta: (0..rows.len()).map(delta).collect(),
            lse: rows.clone().map(|row| self.lse[row * heads + head]).collect(),
            rows,
        }
    }

    /// Some queries and some keys: p = exp(scale·q·k − lse), ds = p·(dout·v − δ), and what follows from them for the
    /// queries `at` and the keys at `place` of the family.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the inner part of one loop")]
    fn meet<I: Isa>(
        &self,
        isa: I,
        part: &mut Part<'_>,
        queries: &Queries<E>,
        at: usize,
        keys: Range<usize>,
        place: usize,
        causal: bool,
        head: usize,
    ) {
        let AttentionSizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let (lines, columns) = (queries.rows.len(), keys.len());
        let stride = kv_heads * head_dim;
        let first = keys.start * stride + head / (heads / kv_heads) * head_dim;
        let scores = |left: &[E], right: &[E]| {
            let mut scores = Scratch::<f32>::new(lines * columns);
            let rows: Vec<&[E]> = left.chunks_exact(head_dim).collect();
            let against: Vec<&[E]> =
                (0..columns).map(|column| &right[first + column * stride..][..head_dim]).collect();
            dot::products(isa, &mut scores, &rows, &against);
            scores
        };
        let (mut p, mut ds) = (scores(&queries.q, self.k), scores(&queries.dout, self.v));
        for (line, (p, ds)) in p.chunks_exact_mut(columns).zip(ds.chunks_exact_mut(columns)).enumerate() {
            // A parent's rows come before its children's.
            let seen =
                if causal { (queries.rows.start + line + 1).saturating_sub(keys.start) } else { columns };
            let (lse, delta) = (queries.lse[line], queries.delta[line]);
            let (p, hidden_p) = p.split_at_mut(seen.min(columns));
            let (ds, hidden_ds) = ds.split_at_mut(seen.min(columns));
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = math::exp(*p * self.scale - lse);
                *ds = *p * (*ds - delta);
            }
            hidden_p.fill(0.0);
            hidden_ds.fill(0.0);
        }
        let add = |to: &mut [f32], factor: f32, sums: &[f32]| {
            to.iter_mut().zip(sums).for_each(|(to, sum)| *to += factor * sum);
        };
        let view = |values| View::whole(values, columns);
        let mut sums = Scratch::<f32>::new(lines.max(columns) * head_dim);
        let by_keys = &mut sums[..columns * head_dim];
        let places = place * head_dim..(place + columns) * head_dim;
        let turned = Packed::here(view(&p[..]));
        combine::products(
            isa,
            by_keys,
            Left::Columns(&turned),
            0..columns,
            &queries.packed_dout,
            0..head_dim,
        );
        add(&mut part.dv[places.clone()], 1.0, by_keys);
        let turned = Packed::here(view(&ds[..]));
        combine::products(isa, by_keys, Left::Columns(&turned), 0..columns, &queries.packed_q, 0..head_dim);
        add(&mut part.dk[places], self.scale, by_keys);

        let by_queries = &mut sums[..lines * head_dim];
        let packed =
            Packed::here(View { values: &self.k[first..], stride, rows: columns, columns: head_dim });
        let units = Units::<E::Unit>::here(&ds, columns);
        combine::products(isa, by_queries, Left::Rows(&units), 0..lines, &packed, 0..head_dim);
        add(&mut part.dq[at * head_dim..(at + lines) * head_dim], self.scale, by_queries);
    }
}

/// Rows of a gradient `[rows, heads, D]`: each of its heads is the sum of `group` parts, in order.
#[inline(always)]
fn gather(
    out: &mut [f32],
    parts: &[Part<'_>],
    group: usize,
    first: usize,
    head_dim: usize,
    of: impl for<'p> Fn(&'p Part<'_>) -> &'p [f32],
) {
    let heads = parts.len() / group;
    for (at, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let (row, head) = (first + at / heads, at % heads);
        let own = row * head_dim..(row + 1) * head_dim;
        let parts = &parts[head * group..(head + 1) * group];
        out.copy_from_slice(&of(&parts[0])[own.clone()]);
        for part in &parts[1..] {
            out.iter_mut().zip(&of(part)[own.clone()]).for_each(|(out, gradient)| *out += gradient);
        }
    }
}
