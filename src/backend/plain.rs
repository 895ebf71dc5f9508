//! The slow twin: every op as its formula says, one loop after another.
//!
//! At f64 this is the oracle that tests measure against; at f32 it is the plain computation whose error
//! sets their tolerance. It accepts every float dtype for every argument, rounds where the numerics
//! contract says so (f32 only: the oracle rounds nothing), and is as slow as it is simple.

mod attention;
mod backward;
mod parts;
mod real;
#[cfg(test)]
mod tests;

pub use real::Real;

use super::{
    Activation, AdamwParameter, AdamwSettings, AttentionGrads, Backend, Draw, Drawn, Epilogue, Linear,
    LinearGrads, LogProbs, Pages, Rope, Segments, check,
};
use crate::{
    error::Result,
    tensor::{Dtype, Element, Tensor},
};
use attention::attend_sequence;
use half::bf16;
use parts::{Softmax, activate, apply, product, rows_of};
use std::{marker::PhantomData, ops::Range};

/// The plain backend in `R`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain<R> {
    real: PhantomData<R>,
}

/// Elements of a float tensor.
fn load<R: Real>(tensor: &Tensor, range: Range<usize>) -> Result<Vec<R>> {
    fn cast<E: Element + Into<f64> + Copy, R: Real>(values: &[E]) -> Vec<R> {
        values.iter().map(|&value| R::of(value.into())).collect()
    }
    Ok(match tensor.dtype() {
        Dtype::F64 => cast(&tensor.as_slice::<f64>()?[range]),
        Dtype::F32 => cast(&tensor.as_slice::<f32>()?[range]),
        Dtype::BF16 => cast(&tensor.as_slice::<bf16>()?[range]),
        Dtype::I32 => cast(&tensor.as_slice::<i32>()?[range]),
    })
}

fn load_row<R: Real>(tensor: &Tensor, row: usize) -> Result<Vec<R>> {
    load(tensor, row * tensor.row_len()..(row + 1) * tensor.row_len())
}

/// Writes to a float tensor from `at` on.
fn store<R: Real>(tensor: &mut Tensor, at: usize, values: &[R]) -> Result<()> {
    fn cast<E, R: Real>(to: &mut [E], from: &[R], convert: impl Fn(f64) -> E) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = convert(from.wide());
        }
    }
    match tensor.dtype() {
        Dtype::F64 => cast(&mut tensor.as_mut_slice::<f64>()?[at..], values, |value| value),
        Dtype::F32 => cast(&mut tensor.as_mut_slice::<f32>()?[at..], values, |value| value as f32),
        Dtype::BF16 => cast(&mut tensor.as_mut_slice::<bf16>()?[at..], values, bf16::from_f64),
        Dtype::I32 => cast(&mut tensor.as_mut_slice::<i32>()?[at..], values, |value| value as i32),
    }
    Ok(())
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut sum = R::of(0.0);
    for (&a, &b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

impl<R: Real> Backend for Plain<R> {
    fn describe(&self) -> String {
        format!("cpu, plain loops in {}", R::DTYPE)
    }

    fn activation(&self) -> Dtype {
        R::DTYPE
    }

    fn alloc(&self, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        Tensor::zeros(dtype, shape)
    }

    fn upload(&self, host: Tensor) -> Result<Tensor> {
        Ok(host)
    }

    fn download(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn gather_rows(&self, out: &mut Tensor, table: &Tensor, rows: &Tensor) -> Result<()> {
        check::gather_rows(out, table, rows)?;
        let rows = check::indices("gather_rows", "rows", rows, table.rows())?;
        for (at, &row) in rows.iter().enumerate() {
            store(out, at * table.row_len(), &load_row::<R>(table, row as usize)?)?;
        }
        Ok(())
    }

    fn scatter_rows(&self, out: &mut Tensor, source: &Tensor, rows: &Tensor) -> Result<()> {
        check::scatter_rows(out, source, rows)?;
        let rows = check::indices("scatter_rows", "rows", rows, out.rows())?;
        for (at, &row) in rows.iter().enumerate() {
            store(out, row as usize * source.row_len(), &load_row::<R>(source, at)?)?;
        }
        Ok(())
    }

    fn linear(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        linear: &Linear<'_>,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        let sizes = check::linear("linear", out, x, linear, epilogue)?;
        let y = apply::<R>(&rows_of(x)?, linear)?;
        for (row, y) in y.iter().enumerate() {
            let before = load_row::<R>(out, row)?;
            let after: Vec<R> = match epilogue {
                Epilogue::Store => y.clone(),
                Epilogue::Add => before.iter().zip(y).map(|(&out, &y)| out + y).collect(),
                Epilogue::AddScaled(gain) => {
                    let gain = load::<R>(gain, 0..sizes.columns)?;
                    before.iter().zip(y).zip(&gain).map(|((&out, &y), &g)| out + g * y).collect()
                }
                Epilogue::Activate(activation) => y.iter().map(|&y| activate(y, activation)).collect(),
            };
            store(out, row * sizes.columns, &after)?;
        }
        Ok(())
    }

    fn gated_linear(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        gate: &Linear<'_>,
        up: &Linear<'_>,
        activation: Activation,
    ) -> Result<()> {
        let sizes = check::gated_linear(out, x, gate, up)?;
        let x = rows_of::<R>(x)?;
        for (row, (gate, up)) in apply(&x, gate)?.iter().zip(apply(&x, up)?).enumerate() {
            let product: Vec<R> = gate.iter().zip(up).map(|(&g, u)| activate(g, activation) * u).collect();
            store(out, row * sizes.columns, &product)?;
        }
        Ok(())
    }

    fn rms_norm(&self, out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        let group = check::rms_norm(out, x, weight)?;
        let weight = load::<R>(weight, 0..group)?;
        for at in (0..x.len()).step_by(group) {
            let x = load::<R>(x, at..at + group)?;
            let mean = dot(&x, &x) / R::of(group as f64);
            let inverse = R::of(1.0) / (mean + R::of(eps.into())).sqrt();
            let y: Vec<R> = x.iter().zip(&weight).map(|(&x, &w)| x * inverse * w).collect();
            store(out, at, &y)?;
        }
        Ok(())
    }

    fn layer_norm(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<()> {
        let columns = check::layer_norm(out, x, weight, bias)?;
        let (weight, bias) = (load::<R>(weight, 0..columns)?, load::<R>(bias, 0..columns)?);
        let ones = vec![R::of(1.0); columns];
        for row in 0..x.rows() {
            let x = load_row::<R>(x, row)?;
            let mean = dot(&x, &ones) / R::of(columns as f64);
            let centred: Vec<R> = x.iter().map(|&x| x - mean).collect();
            let variance = dot(&centred, &centred) / R::of(columns as f64);
            let inverse = R::of(1.0) / (variance + R::of(eps.into())).sqrt();
            let y: Vec<R> = centred
                .iter()
                .zip(weight.iter().zip(&bias))
                .map(|(&x, (&w, &b))| x * inverse * w + b)
                .collect();
            store(out, row * columns, &y)?;
        }
        Ok(())
    }

    fn rope(&self, x: &mut Tensor, positions: &Tensor, rope: &Rope, inverse: bool) -> Result<()> {
        let head_dim = check::rope(x, positions, rope)?;
        let axes = check::indices("rope", "axis", &rope.axis, positions.rows())?;
        let (positions, rows) = (positions.as_slice::<i32>()?, x.rows());
        let inv_freq = load::<R>(&rope.inv_freq, 0..head_dim / 2)?;
        for row in 0..rows {
            let mut y = load_row::<R>(x, row)?;
            for head in y.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(head_dim / 2);
                for (i, (a, b)) in first.iter_mut().zip(second).enumerate() {
                    let position = positions[axes[i] as usize * rows + row];
                    let (sin, cos) = (R::of(position.into()) * inv_freq[i]).sin_cos();
                    let sin = if inverse { R::of(0.0) - sin } else { sin };
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
            store(x, row * x.row_len(), &y)?;
        }
        Ok(())
    }

    fn attention(
        &self,
        out: &mut Tensor,
        mut lse: Option<&mut Tensor>,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments<'_>,
        causal: bool,
        scale: f32,
    ) -> Result<()> {
        let sizes = check::attention("attention", out, lse.as_deref(), q, k, v)?;
        for segment in check::segments("attention", segments, sizes.rows, causal)? {
            attend_sequence::<R>(
                out,
                lse.as_deref_mut(),
                q,
                (k, v),
                sizes,
                segment.rows.clone(),
                segment.length(),
                |row| segment.visible(row),
                |position, head| (segment.key(position) * sizes.kv_heads + head) * sizes.head_dim,
                scale,
            )?;
        }
        Ok(())
    }

    fn kv_append(
        &self,
        k_pool: &mut Tensor,
        v_pool: &mut Tensor,
        k: &Tensor,
        v: &Tensor,
        slots: &Tensor,
    ) -> Result<()> {
        let pool = check::kv_append(k_pool, v_pool, k, v, slots)?;
        let slots = check::indices("kv_append", "slots", slots, pool.pages * pool.page_len)?;
        for (row, &slot) in slots.iter().enumerate() {
            let (page, offset) = (slot as usize / pool.page_len, slot as usize % pool.page_len);
            for head in 0..pool.kv_heads {
                let from = (row * pool.kv_heads + head) * pool.head_dim;
                let to = ((page * pool.kv_heads + head) * pool.page_len + offset) * pool.head_dim;
                store(k_pool, to, &load::<R>(k, from..from + pool.head_dim)?)?;
                store(v_pool, to, &load::<R>(v, from..from + pool.head_dim)?)?;
            }
        }
        Ok(())
    }

    fn paged_attention(
        &self,
        out: &mut Tensor,
        mut lse: Option<&mut Tensor>,
        q: &Tensor,
        k_pool: &Tensor,
        v_pool: &Tensor,
        pages: &Pages<'_>,
        scale: f32,
    ) -> Result<()> {
        let (sizes, pool) = check::paged_attention(out, lse.as_deref(), q, k_pool, v_pool, pages)?;
        let sequences = check::paged_sequences(pages, sizes, pool)?;
        check::paged_groups(pages, &sequences, pool)?;
        for sequence in sequences {
            let (queries, length) = (sequence.queries, sequence.length);
            let end = queries.end;
            let seen = |row: usize| length - (end - 1 - row);
            let key = |position: usize, head: usize| {
                let page = sequence.table[position / pool.page_len] as usize;
                ((page * pool.kv_heads + head) * pool.page_len + position % pool.page_len) * pool.head_dim
            };
            let pools = (k_pool, v_pool);
            attend_sequence::<R>(
                out,
                lse.as_deref_mut(),
                q,
                pools,
                sizes,
                queries,
                length,
                seen,
                key,
                scale,
            )?;
        }
        Ok(())
    }

    fn logprobs(
        &self,
        out: &mut LogProbs,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<()> {
        let sizes = check::logprobs(out, hidden, weight, targets, temperature)?;
        let targets = check::indices("logprobs", "targets", targets, sizes.columns)?;
        for (row, &target) in targets.iter().enumerate() {
            let logits = product(&[load_row::<R>(hidden, row)?], weight)?.remove(0);
            let (tempered, Softmax { best, lse, entropy }) = Softmax::of(&logits, temperature);
            store(&mut out.logp, row, &[tempered[target as usize] - lse])?;
            store(&mut out.lse, row, &[lse])?;
            store(&mut out.entropy, row, &[entropy])?;
            out.greedy.as_mut_slice::<i32>()?[row] = best as i32;
        }
        Ok(())
    }

    fn sample(&self, out: &mut Drawn, hidden: &Tensor, weight: &Tensor, draws: &[Draw<'_>]) -> Result<()> {
        check::sample(out, hidden, weight, draws)?;
        for (row, draw) in draws.iter().enumerate() {
            let logits = product(&[load_row::<R>(hidden, row)?], weight)?.remove(0);
            // Decisions are made in f32 everywhere.
            let mut narrow: Vec<f32> = logits.iter().map(|logit| logit.wide() as f32).collect();
            let (token, logp, entropy) = match narrow.iter().position(|logit| !logit.is_finite()) {
                Some(bad) => (!(bad as i32), logits[bad], logits[bad]),
                None => {
                    let token = draw.pick(&mut narrow);
                    let (tempered, Softmax { lse, entropy, .. }) = Softmax::of(&logits, draw.divisor());
                    (token as i32, tempered[token as usize] - lse, entropy)
                }
            };
            out.token.as_mut_slice::<i32>()?[row] = token;
            store(&mut out.logp, row, &[logp])?;
            if let Some(to) = &mut out.entropy {
                store(to, row, &[entropy])?;
            }
        }
        Ok(())
    }

    fn zero(&self, out: &mut Tensor) -> Result<()> {
        out.bytes_mut()?.fill(0);
        Ok(())
    }

    fn gather_rows_backward(&self, dtable: &mut Tensor, dout: &Tensor, rows: &Tensor) -> Result<()> {
        backward::gather_rows::<R>(dtable, dout, rows)
    }

    fn linear_backward(
        &self,
        dx: Option<&mut Tensor>,
        add: bool,
        grads: LinearGrads<'_>,
        dy: &Tensor,
        x: &Tensor,
        linear: &Linear<'_>,
    ) -> Result<()> {
        backward::linear::<R>(dx, add, grads, dy, x, linear)
    }

    fn gated_backward(
        &self,
        gate: &mut Tensor,
        up: &mut Tensor,
        dout: &mut Tensor,
        activation: Activation,
    ) -> Result<()> {
        backward::gated::<R>(gate, up, dout, activation)
    }

    fn activate_backward(&self, x: &mut Tensor, dout: &Tensor, activation: Activation) -> Result<()> {
        backward::activate::<R>(x, dout, activation)
    }

    fn rms_norm_backward(
        &self,
        dx: &mut Tensor,
        add: bool,
        dweight: Option<&mut Tensor>,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> Result<()> {
        backward::rms_norm::<R>(dx, add, dweight, dy, x, weight, eps)
    }

    fn attention_backward(
        &self,
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
        let segments = check::segments("attention_backward", segments, sizes.rows, causal)?;
        attention::backward::<R>(grads, (dout, out, lse), (q, k, v), sizes, &segments, scale)
    }

    fn logprobs_backward(
        &self,
        dhidden: &mut Tensor,
        dweight: Option<&mut Tensor>,
        dlogp: &Tensor,
        lse: &Tensor,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<()> {
        check::logprobs_backward(
            dhidden,
            dweight.as_deref(),
            dlogp,
            lse,
            hidden,
            weight,
            targets,
            temperature,
        )?;
        let targets = check::indices("logprobs_backward", "targets", targets, weight.rows())?;
        backward::logprobs::<R>(dhidden, dweight, (dlogp, lse), hidden, weight, targets, temperature)
    }

    fn sq_norm(&self, out: &mut Tensor, tensors: &[&Tensor]) -> Result<()> {
        check::sq_norm(out, tensors)?;
        for (at, tensor) in tensors.iter().enumerate() {
            let values = load::<R>(tensor, 0..tensor.len())?;
            store(out, at, &[dot(&values, &values)])?;
        }
        Ok(())
    }

    fn adamw(&self, parameters: &mut [AdamwParameter<'_>], settings: &AdamwSettings) -> Result<()> {
        check::adamw(parameters, settings)?;
        parameters.iter_mut().try_for_each(|parameter| backward::adamw::<R>(parameter, settings))
    }
}
