//! The same for the backward ops and the optimiser: each gradient has the shape of what it is the gradient of.

use super::{AttentionSizes, LinearSizes, attention, float, head, integer, matrix, product, refuse, shape};
use crate::{
    backend::{AdamwParameter, AdamwSettings, AttentionGrads, Linear, LinearGrads},
    error::{Error, Result},
    tensor::Tensor,
};

/// A gradient for every dout, each of the table's length.
pub fn gather_rows_backward(dtable: &Tensor, dout: &Tensor, rows: &Tensor) -> Result<()> {
    const OP: &str = "gather_rows_backward";
    float(OP, "dtable", dtable)?;
    float(OP, "dout", dout)?;
    integer(OP, "rows", rows)?;
    matrix(OP, "dout", dout, rows.len(), dtable.row_len())
}

/// Sizes of the linear whose gradients are taken.
pub fn linear_backward(
    dx: Option<&Tensor>,
    grads: &LinearGrads<'_>,
    dy: &Tensor,
    x: &Tensor,
    linear: &Linear<'_>,
) -> Result<LinearSizes> {
    const OP: &str = "linear_backward";
    let sizes = product(OP, ("dy", dy), x, linear)?;
    if let Some(dx) = dx {
        float(OP, "dx", dx)?;
        matrix(OP, "dx", dx, sizes.rows, sizes.inner)?;
    }
    if let Some(weight) = grads.weight.as_deref() {
        alike(OP, "dweight", weight, linear.weight)?;
    }
    match (grads.bias.as_deref(), linear.bias) {
        (None, _) => {}
        (Some(bias), Some(like)) => alike(OP, "dbias", bias, like)?,
        (Some(bias), None) => return refuse(OP, "dbias", bias, "none, as the linear has no bias"),
    }
    let (wanted, adapters) = (grads.lora.len(), linear.lora.len());
    if wanted != 0 && wanted != adapters {
        let what = format!("gradients of {wanted} adapters are asked for, expected none or all {adapters}");
        return Err(Error::caller(OP, what));
    }
    for (grads, lora) in grads.lora.iter().zip(linear.lora) {
        alike(OP, "lora da", grads.a, lora.a)?;
        alike(OP, "lora db", grads.b, lora.b)?;
    }
    Ok(sizes)
}

/// A gradient is a float tensor of the shape of its parameter.
fn alike(op: &'static str, name: &str, gradient: &Tensor, parameter: &Tensor) -> Result<()> {
    float(op, name, gradient)?;
    shape(op, name, gradient, parameter.shape())
}

/// As many elements everywhere.
pub fn pointwise_backward(op: &'static str, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let (_, like) = tensors[0];
    for &(name, tensor) in tensors {
        float(op, name, tensor)?;
        matrix(op, name, tensor, like.rows(), like.row_len())?;
    }
    Ok(())
}

/// Length of the normalised groups.
pub fn rms_norm_backward(
    dx: &Tensor,
    dweight: Option<&Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
) -> Result<usize> {
    const OP: &str = "rms_norm_backward";
    let group = super::norm_group(OP, ("dx", dx), x, weight)?;
    float(OP, "dy", dy)?;
    matrix(OP, "dy", dy, x.rows(), x.row_len())?;
    if let Some(dweight) = dweight {
        alike(OP, "dweight", dweight, weight)?;
    }
    Ok(group)
}

/// Sizes of the attention whose gradients are taken.
pub fn attention_backward(
    grads: &AttentionGrads,
    dout: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<AttentionSizes> {
    const OP: &str = "attention_backward";
    let sizes = attention(OP, out, Some(lse), q, k, v)?;
    for (name, tensor, like) in
        [("dout", dout, q), ("dq", &grads.dq, q), ("dk", &grads.dk, k), ("dv", &grads.dv, v)]
    {
        alike(OP, name, tensor, like)?;
    }
    Ok(sizes)
}

/// Sizes of the head: T, C and V.
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub fn logprobs_backward(
    dhidden: &Tensor,
    dweight: Option<&Tensor>,
    dlogp: &Tensor,
    lse: &Tensor,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f32,
) -> Result<LinearSizes> {
    const OP: &str = "logprobs_backward";
    let sizes = head(OP, hidden, weight)?;
    super::temperature(OP, temperature)?;
    float(OP, "dhidden", dhidden)?;
    matrix(OP, "dhidden", dhidden, sizes.rows, sizes.inner)?;
    if let Some(dweight) = dweight {
        alike(OP, "dweight", dweight, weight)?;
    }
    for (name, tensor) in [("dlogp", dlogp), ("lse", lse)] {
        float(OP, name, tensor)?;
        shape(OP, name, tensor, &[sizes.rows])?;
    }
    integer(OP, "targets", targets)?;
    shape(OP, "targets", targets, &[sizes.rows])?;
    Ok(sizes)
}

/// A result for each tensor.
pub fn sq_norm(out: &Tensor, tensors: &[&Tensor]) -> Result<()> {
    const OP: &str = "sq_norm";
    float(OP, "out", out)?;
    shape(OP, "out", out, &[tensors.len()])?;
    tensors.iter().try_for_each(|tensor| float(OP, "a tensor", tensor))
}

/// State like the parameter, and settings that mean something.
pub fn adamw(parameters: &[AdamwParameter<'_>], settings: &AdamwSettings) -> Result<()> {
    const OP: &str = "adamw";
    let AdamwSettings { learning_rate, beta1, beta2, eps, step, scale } = *settings;
    let share = 0.0..1.0;
    for (name, value, good, expected) in [
        ("learning rate", learning_rate, learning_rate >= 0.0, "a number not below 0"),
        ("beta1", beta1, share.contains(&beta1), "0 <= beta1 < 1"),
        ("beta2", beta2, share.contains(&beta2), "0 <= beta2 < 1"),
        ("eps", eps, eps >= 0.0, "a number not below 0"),
        ("scale", scale, true, "a finite number"),
    ] {
        if !(good && value.is_finite()) {
            return Err(Error::caller(OP, format!("{name} is {value}, expected {expected}")));
        }
    }
    if step == 0 {
        return Err(Error::caller(OP, "step is 0, expected steps counted from 1"));
    }
    for parameter in parameters {
        let decay = parameter.decay;
        if !(decay.is_finite() && decay >= 0.0) {
            return Err(Error::caller(OP, format!("decay is {decay}, expected a number not below 0")));
        }
        let like = &*parameter.master;
        float(OP, "master", like)?;
        let state =
            [("first", &*parameter.first), ("second", parameter.second), ("gradient", parameter.gradient)];
        for (name, tensor) in
            state.into_iter().chain(parameter.weight.as_deref().map(|weight| ("weight", weight)))
        {
            alike(OP, name, tensor, like)?;
        }
    }
    Ok(())
}
