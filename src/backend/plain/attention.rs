//! Attention as its formula says: one query after another, with all of its keys at once.

use super::{Real, dot, load, store};
use crate::{
    backend::{
        AttentionGrads,
        check::{AttentionSizes, Segment},
    },
    error::Result,
    tensor::Tensor,
};
use std::ops::Range;

/// Softmax-weighted values of one query: scores over `keys`, values over `values`.
fn attend<R: Real>(q: &[R], keys: &[Vec<R>], values: &[Vec<R>], scale: f32) -> (Vec<R>, R) {
    let scores: Vec<R> = keys.iter().map(|key| dot(q, key) * R::of(scale.into())).collect();
    let greatest = scores.iter().copied().fold(R::of(f64::NEG_INFINITY), |a, b| if b > a { b } else { a });
    let mut sum = R::of(0.0);
    let mut out = vec![R::of(0.0); q.len()];
    for (&score, value) in scores.iter().zip(values) {
        let p = (score - greatest).exp();
        sum += p;
        out.iter_mut().zip(value).for_each(|(out, &v)| *out += p * v);
    }
    out.iter_mut().for_each(|out| *out = *out / sum);
    (out, greatest + sum.ln())
}

/// The queries of one sequence over its keys; `seen(row)` is how many of them a packed row sees.
/// `key(position, head)` is where a key's elements lie in k and v.
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(super) fn attend_sequence<R: Real>(
    out: &mut Tensor,
    mut lse: Option<&mut Tensor>,
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    sizes: AttentionSizes,
    queries: Range<usize>,
    length: usize,
    seen: impl Fn(usize) -> usize,
    key: impl Fn(usize, usize) -> usize,
    scale: f32,
) -> Result<()> {
    let AttentionSizes { heads, kv_heads, head_dim, .. } = sizes;
    for kv_head in 0..kv_heads {
        let gather = |tensor: &Tensor| -> Result<Vec<Vec<R>>> {
            let at = |position| key(position, kv_head);
            (0..length).map(|position| load(tensor, at(position)..at(position) + head_dim)).collect()
        };
        let (keys, values) = (gather(k)?, gather(v)?); // [S, D]
        for row in queries.clone() {
            for head in kv_head * (heads / kv_heads)..(kv_head + 1) * (heads / kv_heads) {
                let at = row * heads + head;
                let q: Vec<R> = load(q, at * head_dim..(at + 1) * head_dim)?;
                let q: Vec<R> = q.iter().map(|q| q.rounded_for(k.dtype())).collect();
                let (result, log_sum) = attend(&q, &keys[..seen(row)], &values[..seen(row)], scale);
                store(out, at * head_dim, &result)?;
                if let Some(lse) = lse.as_deref_mut() {
                    store(lse, at, &[log_sum])?;
                }
            }
        }
    }
    Ok(())
}

/// See [`crate::backend::Backend::attention_backward`]. With p = exp(scale·q·k − lse) and δ = dout·out:
/// ds = p·(dout·v − δ), dq = scale·Σ ds·k, dk = scale·Σ ds·q, dv = Σ p·dout.
pub(super) fn backward<R: Real>(
    grads: &mut AttentionGrads,
    (dout, out, lse): (&Tensor, &Tensor, &Tensor),
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    sizes: AttentionSizes,
    segments: &[Segment],
    scale: f32,
) -> Result<()> {
    let AttentionSizes { rows, heads, kv_heads, head_dim } = sizes;
    let narrow =
        |values: &[R]| -> Vec<R> { values.iter().map(|value| value.rounded_for(k.dtype())).collect() };
    let add = |to: &mut [R], factor: R, values: &[R]| {
        to.iter_mut().zip(values).for_each(|(to, &value)| *to += factor * value);
    };
    let scale = R::of(scale.into());
    let mut dk = vec![vec![R::of(0.0); head_dim]; rows * kv_heads];
    let mut dv = dk.clone();
    for segment in segments {
        for line in segment.rows.start * heads..segment.rows.end * heads {
            let (row, head) = (line / heads, line % heads);
            let of = |tensor, at: usize| load::<R>(tensor, at * head_dim..(at + 1) * head_dim);
            let (dout, out, q) = (of(dout, line)?, of(out, line)?, narrow(&of(q, line)?));
            let lse = load::<R>(lse, line..line + 1)?[0];
            let (delta, rounded) = (dot(&dout, &out), narrow(&dout));
            let mut dq = vec![R::of(0.0); head_dim];
            for position in 0..segment.visible(row) {
                let at = segment.key(position) * kv_heads + head / (heads / kv_heads);
                let key = of(k, at)?;
                let p = (dot(&q, &key) * scale - lse).exp();
                let ds = p * (dot(&rounded, &of(v, at)?) - delta);
                let (p, ds) = (p.rounded_for(k.dtype()), ds.rounded_for(k.dtype()));
                add(&mut dq, ds * scale, &key);
                add(&mut dk[at], ds * scale, &q);
                add(&mut dv[at], p, &rounded);
            }
            store(&mut grads.dq, line * head_dim, &dq)?;
        }
    }
    store(&mut grads.dk, 0, &dk.concat())?;
    store(&mut grads.dv, 0, &dv.concat())
}
