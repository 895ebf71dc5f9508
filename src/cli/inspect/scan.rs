//! Every weight, looked at once.

use pellucid::{
    Result,
    format::{self, FileDtype, TensorView},
};
use rayon::prelude::*;
use serde::Serialize;

/// A tensor with values that are no numbers.
#[derive(Debug, Serialize)]
pub(super) struct NonFinite {
    pub(super) tensor: String,
    pub(super) nan: u64,
    pub(super) infinite: u64,
}

/// The tensors with NaN or infinite values, in the order given.
pub(super) fn non_finite(views: &[&TensorView]) -> Result<Vec<NonFinite>> {
    let look = |view: &&TensorView| {
        let format::NonFinite { nan, infinite } = format::non_finite(view)?;
        Ok((nan + infinite > 0).then(|| NonFinite { tensor: view.name().to_owned(), nan, infinite }))
    };
    views.par_iter().filter_map(|view| look(view).transpose()).collect()
}

/// The Euclidean norm, where the values are floats.
pub(super) fn norm(view: &TensorView) -> Option<f64> {
    fn over<const W: usize>(bytes: &[u8], value: impl Fn([u8; W]) -> f64) -> f64 {
        bytes.as_chunks::<W>().0.iter().map(|&b| value(b).powi(2)).sum::<f64>().sqrt()
    }
    let bytes = view.bytes();
    match view.dtype() {
        FileDtype::BF16 => Some(over(bytes, |b| half::bf16::from_le_bytes(b).to_f64())),
        FileDtype::F16 => Some(over(bytes, |b| half::f16::from_le_bytes(b).to_f64())),
        FileDtype::F32 => Some(over(bytes, |b| f32::from_le_bytes(b).into())),
        FileDtype::F64 => Some(over(bytes, f64::from_le_bytes)),
        _ => None,
    }
}
