//! Gradients of activations and norms: one pass over rows, and for a norm's weight one sum per share of them.

use crate::{
    backend::{
        Activation, check,
        cpu::{
            Cpu,
            isa::{Isa, with_isa},
            math,
            norm::shares,
            scratch::Scratch,
            values::{floats, floats_mut, vector},
        },
    },
    error::Result,
    tensor::Tensor,
};

/// Elements worth a task of their own.
const GRAIN: usize = 1 << 14;

/// See [`crate::backend::Backend::gated_backward`].
pub(in crate::backend::cpu) fn gated(
    cpu: &Cpu,
    gate: &mut Tensor,
    up: &mut Tensor,
    dout: &mut Tensor,
    activation: Activation,
) -> Result<()> {
    const OP: &str = "gated_backward";
    check::pointwise_backward(OP, &[("gate", gate), ("up", up), ("dout", dout)])?;
    let (gate, up) = (floats_mut(OP, "gate", gate)?, floats_mut(OP, "up", up)?);
    let others = up.chunks_mut(GRAIN).zip(floats_mut(OP, "dout", dout)?.chunks_mut(GRAIN));
    let pieces = gate.chunks_mut(GRAIN).zip(others).collect();
    with_isa!(cpu.level, isa => cpu.spread(pieces, |(gate, (up, dout))| {
        isa.run(#[inline(always)] || math::gated_backward(gate, up, dout, activation));
    }));
    Ok(())
}

/// See [`crate::backend::Backend::activate_backward`].
pub(in crate::backend::cpu) fn activate(
    cpu: &Cpu,
    x: &mut Tensor,
    dout: &Tensor,
    activation: Activation,
) -> Result<()> {
    const OP: &str = "activate_backward";
    check::pointwise_backward(OP, &[("x", x), ("dout", dout)])?;
    let pieces = floats_mut(OP, "x", x)?.chunks_mut(GRAIN).zip(floats(OP, "dout", dout)?.chunks(GRAIN));
    with_isa!(cpu.level, isa => cpu.spread(pieces.collect(), |(x, dout)| {
        isa.run(#[inline(always)] || math::activate_backward(x, dout, activation));
    }));
    Ok(())
}

/// See [`crate::backend::Backend::rms_norm_backward`]. With r = 1/rms: dx = r·w∘dy − x·r³·mean(w∘dy∘x), dw = Σ dy∘x·r.
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(in crate::backend::cpu) fn rms_norm(
    cpu: &Cpu,
    dx: &mut Tensor,
    add: bool,
    dweight: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    const OP: &str = "rms_norm_backward";
    let group = check::rms_norm_backward(dx, dweight.as_deref(), dy, x, weight)?;
    let (dy, x, weight) = (floats(OP, "dy", dy)?, floats(OP, "x", x)?, vector(OP, "weight", weight)?);
    let dx = floats_mut(OP, "dx", dx)?;
    let sums = with_isa!(cpu.level, isa => cpu.map(shares(dx, group), |(first, dx)| {
        isa.run(#[inline(always)] || {
            let mut dweight = vec![0.0; group];
            let mut weighted = Scratch::<f32>::new(group);
            let own = |values| <[f32]>::chunks_exact(values, group).skip(first);
            for ((dx, dy), x) in dx.chunks_exact_mut(group).zip(own(dy)).zip(own(x)) {
                let inverse = 1.0 / (math::sum(x, |x| x * x) / group as f32 + eps).sqrt();
                for ((to, (&dy, &w)), &x) in weighted.iter_mut().zip(dy.iter().zip(weight.iter())).zip(x) {
                    *to = dy * w * x;
                }
                let along = math::sum(&weighted, |v| v) / group as f32 * inverse * inverse * inverse;
                let inputs = || dy.iter().zip(weight.iter()).zip(x);
                if add {
                    let gradients = inputs().map(|((&dy, &w), &x)| dy * w * inverse - x * along);
                    dx.iter_mut().zip(gradients).for_each(|(dx, gradient)| *dx += gradient);
                } else {
                    let gradients = inputs().map(|((&dy, &w), &x)| dy * w * inverse - x * along);
                    dx.iter_mut().zip(gradients).for_each(|(dx, gradient)| *dx = gradient);
                }
                dweight.iter_mut().zip(dy.iter().zip(x)).for_each(|(sum, (&dy, &x))| *sum += dy * (x * inverse));
            }
            dweight
        })
    }));
    if let Some(dweight) = dweight {
        let dweight = floats_mut(OP, "dweight", dweight)?;
        for sums in sums {
            dweight.iter_mut().zip(sums).for_each(|(dweight, sum)| *dweight += sum);
        }
    }
    Ok(())
}
