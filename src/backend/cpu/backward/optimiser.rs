//! What is done to parameters and their gradients, and rows that add up.

use crate::{
    backend::{
        AdamwParameter, AdamwSettings, check,
        cpu::{
            Cpu,
            isa::{Isa, LANES, with_isa},
            math,
            values::{floats, floats_mut},
        },
    },
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use half::bf16;

/// Elements worth a task of their own; for sums a part of their order.
const GRAIN: usize = 1 << 15;

/// See [`crate::backend::Backend::zero`].
pub(in crate::backend::cpu) fn zero(cpu: &Cpu, out: &mut Tensor) -> Result<()> {
    const PIECE: usize = 1 << 20;
    cpu.spread(out.bytes_mut()?.chunks_mut(PIECE).collect(), |bytes| bytes.fill(0));
    Ok(())
}

/// See [`crate::backend::Backend::gather_rows_backward`]. One row after another, since rows may repeat.
pub(in crate::backend::cpu) fn gather_rows(
    cpu: &Cpu,
    dtable: &mut Tensor,
    dout: &Tensor,
    rows: &Tensor,
) -> Result<()> {
    const OP: &str = "gather_rows_backward";
    check::gather_rows_backward(dtable, dout, rows)?;
    let rows = check::indices(OP, "rows", rows, dtable.rows())?;
    let width = dtable.row_len();
    let (dtable, dout) = (floats_mut(OP, "dtable", dtable)?, floats(OP, "dout", dout)?);
    if width == 0 {
        return Ok(());
    }
    with_isa!(cpu.level, isa => isa.run(#[inline(always)] || {
        for (&row, dout) in rows.iter().zip(dout.chunks_exact(width)) {
            let to = &mut dtable[row as usize * width..][..width];
            to.iter_mut().zip(dout).for_each(|(to, &dout)| *to += dout);
        }
    }));
    Ok(())
}

/// See [`crate::backend::Backend::sq_norm`]. Sums are f64: of each lane, of the lanes, of the pieces in order.
pub(in crate::backend::cpu) fn sq_norm(cpu: &Cpu, out: &mut Tensor, tensors: &[&Tensor]) -> Result<()> {
    const OP: &str = "sq_norm";
    check::sq_norm(out, tensors)?;
    let out = floats_mut(OP, "out", out)?;
    for (out, tensor) in out.iter_mut().zip(tensors) {
        let pieces = floats(OP, "a tensor", tensor)?.chunks(GRAIN).collect();
        let sums = with_isa!(cpu.level, isa => cpu.map(pieces, |values: &[f32]| {
            isa.run(#[inline(always)] || {
                let mut lanes = [0f64; LANES];
                let (steps, rest) = values.as_chunks::<LANES>();
                for step in steps {
                    for lane in 0..LANES {
                        lanes[lane] += f64::from(step[lane]) * f64::from(step[lane]);
                    }
                }
                lanes.iter().sum::<f64>() + rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()
            })
        }));
        *out = sums.into_iter().sum::<f64>() as f32;
    }
    Ok(())
}

/// A part of one parameter.
struct Piece<'a> {
    master: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    gradient: &'a [f32],
    weight: Weight<'a>,
    decay: f32,
}

/// The forward's copy of it.
enum Weight<'a> {
    None,
    F32(&'a mut [f32]),
    BF16(&'a mut [bf16]),
}

impl<'a> Weight<'a> {
    fn of(weight: Option<&'a mut Tensor>) -> Result<Self> {
        let Some(weight) = weight else { return Ok(Weight::None) };
        match weight.dtype() {
            Dtype::F32 => Ok(Weight::F32(weight.as_mut_slice()?)),
            Dtype::BF16 => Ok(Weight::BF16(weight.as_mut_slice()?)),
            _ => {
                Err(Error::caller("adamw", format!("weight is {weight:?}, the cpu backend has f32 or bf16")))
            }
        }
    }

    /// The first elements, and the others.
    fn split_at(self, at: usize) -> (Self, Self) {
        match self {
            Weight::None => (Weight::None, Weight::None),
            Weight::F32(all) => {
                let (one, other) = all.split_at_mut(at);
                (Weight::F32(one), Weight::F32(other))
            }
            Weight::BF16(all) => {
                let (one, other) = all.split_at_mut(at);
                (Weight::BF16(one), Weight::BF16(other))
            }
        }
    }
}

/// See [`crate::backend::Backend::adamw`].
pub(in crate::backend::cpu) fn adamw(
    cpu: &Cpu,
    parameters: &mut [AdamwParameter<'_>],
    settings: &AdamwSettings,
) -> Result<()> {
    const OP: &str = "adamw";
    check::adamw(parameters, settings)?;
    let mut pieces = Vec::new();
    for parameter in parameters {
        let master = floats_mut(OP, "master", parameter.master)?.chunks_mut(GRAIN);
        let first = floats_mut(OP, "first", parameter.first)?.chunks_mut(GRAIN);
        let second = floats_mut(OP, "second", parameter.second)?.chunks_mut(GRAIN);
        let gradient = floats(OP, "gradient", parameter.gradient)?.chunks(GRAIN);
        let mut weights = Weight::of(parameter.weight.as_deref_mut())?;
        for (((master, first), second), gradient) in master.zip(first).zip(second).zip(gradient) {
            let (weight, rest) = weights.split_at(master.len());
            weights = rest;
            pieces.push(Piece { master, first, second, gradient, weight, decay: parameter.decay });
        }
    }
    let AdamwSettings { learning_rate, beta1, beta2, eps, step, scale } = *settings;
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(step as f64))) as f32;
    let (correction1, correction2) = (correction(beta1), correction(beta2));
    with_isa!(cpu.level, isa => cpu.spread(pieces, |piece| {
        isa.run(#[inline(always)] || {
            let Piece { master, first, second, gradient, weight, decay } = piece;
            let state = first.iter_mut().zip(second).zip(gradient);
            for (master, ((first, second), &gradient)) in master.iter_mut().zip(state) {
                let g = scale * gradient;
                *first = beta1 * *first + (1.0 - beta1) * g;
                *second = beta2 * *second + (1.0 - beta2) * g * g;
                let towards = *first * correction1 / ((*second * correction2).sqrt() + eps);
                *master -= learning_rate * (towards + decay * *master);
            }
            match weight {
                Weight::None => {}
                Weight::F32(weight) => weight.copy_from_slice(master),
                Weight::BF16(weight) => {
                    weight.iter_mut().zip(master).for_each(|(weight, master)| *weight = math::narrow(*master));
                }
            }
        });
    }));
    Ok(())
}
