//! Norms and rotary embedding: one row, one fixed reduction tree.

use super::{
    Cpu,
    isa::{Isa, with_isa},
    math,
    values::{floats, floats_mut, vector},
};
use crate::{
    backend::{Rope, check},
    error::Result,
    tensor::Tensor,
};

/// Elements worth a task of their own.
const GRAIN: usize = 1 << 14;

/// Whole rows (or groups) of about [`GRAIN`] elements, with their first row's number.
pub(super) fn shares(out: &mut [f32], row_len: usize) -> Vec<(usize, &mut [f32])> {
    let rows = (GRAIN / row_len).max(1);
    out.chunks_mut(rows * row_len).enumerate().map(|(at, share)| (at * rows, share)).collect()
}

/// See [`crate::backend::Backend::rms_norm`].
pub(super) fn rms_norm(cpu: &Cpu, out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
    const OP: &str = "rms_norm";
    let group = check::rms_norm(out, x, weight)?;
    let (x, weight) = (floats(OP, "x", x)?, vector(OP, "weight", weight)?);
    let out = floats_mut(OP, "out", out)?;
    with_isa!(cpu.level, isa => cpu.spread(shares(out, group), |(first, out)| {
        isa.run(#[inline(always)] || {
            for (out, x) in out.chunks_exact_mut(group).zip(x[first * group..].chunks_exact(group)) {
                let mean = math::sum(x, |x| x * x) / group as f32;
                let inverse = 1.0 / (mean + eps).sqrt();
                for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight.iter()) {
                    *out = x * inverse * w;
                }
            }
        });
    }));
    Ok(())
}

/// See [`crate::backend::Backend::layer_norm`].
pub(super) fn layer_norm(
    cpu: &Cpu,
    out: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<()> {
    const OP: &str = "layer_norm";
    let columns = check::layer_norm(out, x, weight, bias)?;
    let (weight, bias) = (vector(OP, "weight", weight)?, vector(OP, "bias", bias)?);
    let x = floats(OP, "x", x)?;
    let out = floats_mut(OP, "out", out)?;
    with_isa!(cpu.level, isa => cpu.spread(shares(out, columns), |(first, out)| {
        isa.run(#[inline(always)] || {
            let x = &x[first * columns..];
            for (out, x) in out.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
                let mean = math::sum(x, |x| x) / columns as f32;
                let variance = math::sum(x, |x| (x - mean) * (x - mean)) / columns as f32;
                let inverse = 1.0 / (variance + eps).sqrt();
                for ((out, &x), (&w, &b)) in out.iter_mut().zip(x).zip(weight.iter().zip(bias.iter())) {
                    *out = (x - mean) * inverse * w + b;
                }
            }
        });
    }));
    Ok(())
}

/// See [`crate::backend::Backend::rope`]. The angle is the f32 product of position and frequency, as in the
/// reference implementations; one row's angles serve all of its heads.
pub(super) fn rope(cpu: &Cpu, x: &mut Tensor, positions: &Tensor, rope: &Rope, inverse: bool) -> Result<()> {
    const OP: &str = "rope";
    let head_dim = check::rope(x, positions, rope)?;
    let axes = check::indices(OP, "axis", &rope.axis, positions.rows())?;
    let (rows, row_len) = (x.rows(), x.row_len());
    let (positions, inv_freq) = (positions.as_slice::<i32>()?, rope.inv_freq.as_slice::<f32>()?);
    let x = floats_mut(OP, "x", x)?;
    if row_len == 0 {
        return Ok(());
    }
    with_isa!(cpu.level, isa => cpu.spread(shares(x, row_len), |(first, x)| {
        isa.run(#[inline(always)] || {
            let half = head_dim / 2;
            let mut turns = vec![(0.0, 0.0); half];
            for (row, x) in x.chunks_exact_mut(row_len).enumerate() {
                for (turn, (&axis, &frequency)) in turns.iter_mut().zip(axes.iter().zip(inv_freq)) {
                    let position = positions[axis as usize * rows + first + row];
                    let (sin, cos) = (position as f32 * frequency).sin_cos();
                    *turn = (if inverse { -sin } else { sin }, cos);
                }
                for head in x.chunks_exact_mut(head_dim) {
                    let (low, high) = head.split_at_mut(half);
                    for ((a, b), &(sin, cos)) in low.iter_mut().zip(high).zip(&turns) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
    }));
    Ok(())
}
