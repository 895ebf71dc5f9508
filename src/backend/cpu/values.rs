//! Tensors as the slices kernels read, and refusals for dtypes there is no kernel for.

use super::{
    dot::{products, weight_products},
    isa::Isa,
    math,
    scratch::Scratch,
};
use crate::{
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use half::bf16;
use std::{borrow::Cow, ops::Range};

fn refuse<T>(op: &'static str, name: &str, tensor: &Tensor, expected: &str) -> Result<T> {
    Err(Error::caller(op, format!("{name} is {tensor:?}, the cpu backend computes with {expected}")))
}

/// An activation.
pub(super) fn floats<'a>(op: &'static str, name: &str, tensor: &'a Tensor) -> Result<&'a [f32]> {
    if tensor.dtype() == Dtype::F32 { tensor.as_slice() } else { refuse(op, name, tensor, "f32 activations") }
}

/// An activation to be written.
pub(super) fn floats_mut<'a>(op: &'static str, name: &str, tensor: &'a mut Tensor) -> Result<&'a mut [f32]> {
    floats(op, name, tensor)?;
    tensor.as_mut_slice()
}

/// A short weight: a bias, a gain.
pub(super) fn vector<'a>(op: &'static str, name: &str, tensor: &'a Tensor) -> Result<Cow<'a, [f32]>> {
    match tensor.dtype() {
        Dtype::F32 => Ok(Cow::Borrowed(tensor.as_slice()?)),
        Dtype::BF16 => Ok(Cow::Owned(tensor.as_slice::<bf16>()?.iter().map(|v| v.to_f32()).collect())),
        _ => refuse(op, name, tensor, "f32 or bf16 weights"),
    }
}

/// A weight matrix or cache.
#[derive(Debug, Clone, Copy)]
pub(super) enum Matrix<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
}

impl<'a> Matrix<'a> {
    pub(super) fn of(op: &'static str, name: &str, tensor: &'a Tensor) -> Result<Self> {
        match tensor.dtype() {
            Dtype::F32 => Ok(Matrix::F32(tensor.as_slice()?)),
            Dtype::BF16 => Ok(Matrix::BF16(tensor.as_slice()?)),
            _ => refuse(op, name, tensor, "f32 or bf16 weights and caches"),
        }
    }
}

/// Rows about to be multiplied: as they are, and rounded for weights in bf16.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    pub(super) values: Cow<'a, [f32]>,
    pub(super) narrow: Scratch<bf16>,
    pub(super) inner: usize,
}

impl Rows<'_> {
    /// out[t, n] = x[t]·w[n] for ranges of rows and columns.
    pub(super) fn products<I: Isa>(
        &self,
        isa: I,
        out: &mut [f32],
        rows: Range<usize>,
        weight: Matrix<'_>,
        columns: Range<usize>,
    ) {
        let inner = self.inner;
        match weight {
            Matrix::F32(weight) => {
                weight_products(isa, out, &pick(&self.values, rows, inner), &pick(weight, columns, inner));
            }
            Matrix::BF16(weight) => {
                products(isa, out, &pick(&self.narrow, rows, inner), &pick(weight, columns, inner));
            }
        }
    }
}

/// Some rows of a matrix.
fn pick<E>(matrix: &[E], rows: Range<usize>, inner: usize) -> Vec<&[E]> {
    rows.map(|row| &matrix[row * inner..][..inner]).collect()
}

/// Rounds to bf16, nearest even; inline, so that it is compiled for the caller's instructions.
#[inline(always)]
pub(super) fn narrow(to: &mut [bf16], from: &[f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = math::narrow(from);
    }
}
