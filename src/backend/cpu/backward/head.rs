//! The gradient of log-probs, the vocabulary streamed through block by block: a block's logits are computed again, made
//! into their gradients where they lie, and used for both products.

use crate::{
    backend::{
        check,
        cpu::{
            Cpu,
            combine::{self, Left, add_products, by_tiles},
            dot::Operand,
            isa::{LANES, with_isa},
            linear::prepare,
            math,
            pack::{Packed, Units, View},
            scratch::Scratch,
            values::{Matrix, Rows, floats, floats_mut},
        },
    },
    error::Result,
    tensor::{Dtype, Tensor},
};
use bytemuck::Pod;
use std::borrow::Cow;

const OP: &str = "logprobs_backward";

/// Tokens per block of the vocabulary; part of the order of summation.
const BLOCK: usize = 1024;

/// What all blocks read.
struct Inputs<'a> {
    hidden: Rows<'a>,
    targets: &'a [i32],
    dlogp: &'a [f32],
    lse: &'a [f32],
    temperature: f32,
}

/// See [`crate::backend::Backend::logprobs_backward`].
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(in crate::backend::cpu) fn logprobs(
    cpu: &Cpu,
    dhidden: &mut Tensor,
    dweight: Option<&mut Tensor>,
    dlogp: &Tensor,
    lse: &Tensor,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f32,
) -> Result<()> {
    let sizes = check::logprobs_backward(
        dhidden,
        dweight.as_deref(),
        dlogp,
        lse,
        hidden,
        weight,
        targets,
        temperature,
    )?;
    let narrow = weight.dtype() == Dtype::BF16;
    let inputs = Inputs {
        hidden: prepare(cpu, Cow::Borrowed(floats(OP, "hidden", hidden)?), sizes.inner, narrow),
        targets: check::indices(OP, "targets", targets, sizes.columns)?,
        dlogp: floats(OP, "dlogp", dlogp)?,
        lse: floats(OP, "lse", lse)?,
        temperature,
    };
    let dhidden = floats_mut(OP, "dhidden", dhidden)?;
    let dweight = dweight.map(|dweight| floats_mut(OP, "dweight", dweight)).transpose()?;
    dhidden.fill(0.0);
    if dhidden.is_empty() {
        return Ok(());
    }
    match Matrix::of(OP, "weight", weight)? {
        Matrix::F32(weight) => blocks(cpu, dhidden, dweight, &inputs, weight, Matrix::F32),
        Matrix::BF16(weight) => blocks(cpu, dhidden, dweight, &inputs, weight, Matrix::BF16),
    }
    Ok(())
}

/// dhidden += dlogits·W and dW += dlogitsᵀ·hidden, block after block.
fn blocks<'a, E: Operand>(
    cpu: &Cpu,
    dhidden: &mut [f32],
    mut dweight: Option<&mut [f32]>,
    inputs: &Inputs<'_>,
    weight: &'a [E],
    matrix: impl Fn(&'a [E]) -> Matrix<'a>,
) where
    [E::Unit; LANES]: Pod,
    [E::Unit; combine::ROWS]: Pod,
{
    let (inner, rows) = (inputs.hidden.inner, inputs.targets.len());
    let hidden = dweight
        .is_some()
        .then(|| Packed::<E::Unit, LANES>::new(cpu, View::whole(&inputs.hidden.values[..], inner)));
    let mut dlogits = Scratch::<f32>::new(rows * BLOCK); // [T, BLOCK]
    for (block, weight) in weight.chunks(BLOCK * inner).enumerate() {
        let (first, columns) = (block * BLOCK, weight.len() / inner);
        let dlogits = &mut dlogits[..rows * columns];
        gradients(cpu, dlogits, inputs, matrix(weight), first, columns);
        let (left, right) =
            (Units::<E::Unit>::new(cpu, dlogits, columns), Packed::new(cpu, View::whole(weight, inner)));
        add_products(cpu, dhidden, inner, 1.0, Left::Rows(&left), &right);
        if let (Some(dweight), Some(hidden)) = (dweight.as_deref_mut(), &hidden) {
            let left = Packed::new(cpu, View::whole(dlogits, columns));
            let dweight = &mut dweight[first * inner..][..columns * inner];
            add_products(cpu, dweight, inner, 1.0, Left::Columns(&left), hidden);
        }
    }
}

/// dlogits = dlogp·(1{target} − exp(logit / temperature − lse)) / temperature for a block's tokens from `first` on.
fn gradients(
    cpu: &Cpu,
    dlogits: &mut [f32],
    inputs: &Inputs<'_>,
    weight: Matrix<'_>,
    first: usize,
    columns: usize,
) {
    let Inputs { hidden, targets, dlogp, lse, temperature } = inputs;
    with_isa!(cpu.level, isa => by_tiles(
        cpu,
        isa,
        dlogits,
        columns,
        |y, rows, tokens| {
            hidden.products(isa, y, rows.clone(), weight, tokens.clone());
            for (row, y) in rows.zip(y.chunks_exact_mut(tokens.len())) {
                let (share, lse) = (dlogp[row] / temperature, lse[row]);
                y.iter_mut().for_each(|logit| *logit = -share * math::exp(*logit / temperature - lse));
                let target = (targets[row] as usize).wrapping_sub(first + tokens.start);
                if let Some(dlogit) = y.get_mut(target) {
                    *dlogit += share;
                }
            }
        },
        #[inline(always)]
        |out, y| out.copy_from_slice(y),
    ));
}
