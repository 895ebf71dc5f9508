//! Norms: one row, one tree of sums that its length alone decides.

use super::{
    Argument::{Address as At, F32, I32, I64},
    Runtime, column_sums,
    device::{Gpu, expect_dtype},
    rows::Spread,
};
use crate::{
    backend::check,
    error::Result,
    tensor::{Dtype, Tensor},
};

/// Where the sums of a row's warps meet: twice 32 floats.
const SHARED: usize = 256;

/// See [`crate::backend::Backend::rms_norm`].
pub(super) fn rms_norm<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let columns = check::rms_norm(out, x, weight)?;
    for (name, tensor) in [("out", &*out), ("x", x), ("weight", weight)] {
        expect_dtype(OP, name, tensor, Dtype::BF16)?;
    }
    let rows = x.len() / columns;
    let spread = Spread::over_elements(OP, rows, columns)?;
    if rows == 0 {
        return Ok(());
    }
    let arguments = [
        At(gpu.target(out)?),
        At(gpu.at(x)?),
        At(gpu.at(weight)?),
        I64(rows as i64),
        I32(columns as i32),
        I32(spread.lanes as i32),
        F32(eps),
    ];
    gpu.launch(&spread.launch(OP, 1, SHARED, &arguments))
}

/// See [`crate::backend::Backend::layer_norm`].
pub(super) fn layer_norm<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<()> {
    const OP: &str = "layer_norm";
    let columns = check::layer_norm(out, x, weight, bias)?;
    for (name, tensor) in [("out", &*out), ("x", x), ("weight", weight), ("bias", bias)] {
        expect_dtype(OP, name, tensor, Dtype::BF16)?;
    }
    let spread = Spread::over_elements(OP, x.rows(), columns)?;
    if x.rows() == 0 {
        return Ok(());
    }
    let arguments = [
        At(gpu.target(out)?),
        At(gpu.at(x)?),
        At(gpu.at(weight)?),
        At(gpu.at(bias)?),
        I64(x.rows() as i64),
        I32(columns as i32),
        I32(spread.lanes as i32),
        F32(eps),
    ];
    gpu.launch(&spread.launch(OP, 1, SHARED, &arguments))
}

/// See [`crate::backend::Backend::rms_norm_backward`].
#[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
pub(super) fn rms_norm_backward<R: Runtime>(
    gpu: &Gpu<R>,
    dx: &mut Tensor,
    add: bool,
    dweight: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    const OP: &str = "rms_norm_backward";
    let columns = check::rms_norm_backward(dx, dweight.as_deref(), dy, x, weight)?;
    for (name, tensor) in [("dx", &*dx), ("dy", dy), ("x", x), ("weight", weight)] {
        expect_dtype(OP, name, tensor, Dtype::BF16)?;
    }
    if let Some(dweight) = &dweight {
        expect_dtype(OP, "dweight", dweight, Dtype::F32)?;
    }
    let rows = x.len() / columns;
    let spread = Spread::over_elements(OP, rows, columns)?;
    if rows == 0 {
        return Ok(());
    }
    let inverses = if dweight.is_some() { Some(gpu.temporary(Dtype::F32, &[rows])?) } else { None };
    let arguments = [
        At(gpu.target(dx)?),
        At(gpu.at_or_null(inverses.as_ref())?),
        At(gpu.at(dy)?),
        At(gpu.at(x)?),
        At(gpu.at(weight)?),
        I64(rows as i64),
        I32(columns as i32),
        I32(spread.lanes as i32),
        F32(eps),
        I32(add.into()),
    ];
    gpu.launch(&spread.launch(OP, 1, SHARED, &arguments))?;
    if let (Some(dweight), Some(inverses)) = (dweight, inverses) {
        let weighed = Some((gpu.at(x)?, gpu.at(&inverses)?));
        column_sums::add(gpu, OP, gpu.target(dweight)?, gpu.at(dy)?, weighed, [rows, columns])?;
    }
    Ok(())
}
