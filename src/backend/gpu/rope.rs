//! Rotary position embedding: a block works out the angles of its rows once, for all of their heads.

use super::{
    Argument::{Address as At, I32, I64},
    Runtime,
    device::{Gpu, expect_dtype, int},
    rows::Spread,
};
use crate::{
    backend::{Rope, check},
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};

/// The longest head whose angles fit the shared memory that every device has.
const MAX_HEAD_DIM: usize = 8192;

/// See [`crate::backend::Backend::rope`].
pub(super) fn rope<R: Runtime>(
    gpu: &Gpu<R>,
    x: &mut Tensor,
    positions: &Tensor,
    rope: &Rope,
    inverse: bool,
) -> Result<()> {
    const OP: &str = "rope";
    let head_dim = check::rope(x, positions, rope)?;
    expect_dtype(OP, "x", x, Dtype::BF16)?;
    if head_dim > MAX_HEAD_DIM {
        return Err(Error::caller(
            OP,
            format!("heads of {head_dim}; on a device up to {MAX_HEAD_DIM} elements"),
        ));
    }
    let (heads, half) = (x.row_len() / head_dim, head_dim / 2);
    let pieces = half.div_ceil(8);
    let spread = Spread::over_pieces(OP, x.rows(), heads * pieces)?;
    if x.is_empty() {
        return Ok(());
    }
    // A sine and a cosine for each element of the pieces.
    let shared = spread.rows as usize * pieces * 8 * 2 * size_of::<f32>();
    let arguments = [
        At(gpu.target(x)?),
        At(gpu.at(positions)?),
        At(gpu.at(&rope.inv_freq)?),
        At(gpu.at(&rope.axis)?),
        I64(x.rows() as i64),
        I32(int(OP, "heads", heads)?),
        I32(half as i32),
        I32(spread.lanes as i32),
        I32(inverse.into()),
    ];
    gpu.launch(&spread.launch(OP, 1, shared, &arguments))
}
