//! Backward of what stands between two linears of an MLP.

use super::{
    Address,
    Argument::{Address as At, I32, I64},
    Launch, Runtime,
    device::{Gpu, expect_dtype, int},
    linear::function,
};
use crate::{
    backend::{Activation, check},
    error::Result,
    tensor::{Dtype, Tensor},
};

/// Elements of a block.
const BLOCK: usize = 2048;

/// See [`crate::backend::Backend::gated_backward`].
pub(super) fn gated_backward<R: Runtime>(
    gpu: &Gpu<R>,
    gate: &mut Tensor,
    up: &mut Tensor,
    dout: &mut Tensor,
    activation: Activation,
) -> Result<()> {
    const OP: &str = "gated_backward";
    check::pointwise_backward(OP, &[("gate", gate), ("up", up), ("dout", dout)])?;
    for (name, tensor) in [("gate", &*gate), ("up", &*up), ("dout", &*dout)] {
        expect_dtype(OP, name, tensor, Dtype::BF16)?;
    }
    let places = [gpu.target(gate)?, gpu.target(up)?, gpu.target(dout)?];
    run(gpu, OP, &places, dout.len(), activation)
}

/// See [`crate::backend::Backend::activate_backward`].
pub(super) fn activate_backward<R: Runtime>(
    gpu: &Gpu<R>,
    x: &mut Tensor,
    dout: &Tensor,
    activation: Activation,
) -> Result<()> {
    const OP: &str = "activate_backward";
    check::pointwise_backward(OP, &[("x", x), ("dout", dout)])?;
    expect_dtype(OP, "x", x, Dtype::BF16)?;
    expect_dtype(OP, "dout", dout, Dtype::BF16)?;
    let places = [gpu.target(x)?, gpu.at(dout)?];
    run(gpu, OP, &places, dout.len(), activation)
}

fn run<R: Runtime>(
    gpu: &Gpu<R>,
    op: &'static str,
    places: &[Address],
    elements: usize,
    activation: Activation,
) -> Result<()> {
    if elements == 0 {
        return Ok(());
    }
    let mut arguments: Vec<_> = places.iter().map(|&place| At(place)).collect();
    arguments.extend([I64(elements as i64), I32(function(activation))]);
    let blocks = int(op, "blocks of 2048 elements", elements.div_ceil(BLOCK))?;
    let grid = [blocks as u32, 1, 1];
    gpu.launch(&Launch { kernel: op, grid, block: [256, 1, 1], shared: 0, arguments: &arguments })
}
