//! Norms on a device: `kernels/rms_norm.cu`.

use super::device::{Gpu, expect_dtype, int};
use super::{Argument, Launch, Runtime};
use crate::{
    backend::check,
    error::Result,
    tensor::{Dtype, Tensor},
};

/// Threads of a block of `rms_norm`; one block a group.
const THREADS: u32 = 256;

pub(super) fn rms_norm<R: Runtime>(
    gpu: &Gpu<R>,
    out: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let width = check::rms_norm(out, x, weight)?;
    for (name, tensor) in [("out", &*out), ("x", x), ("weight", weight)] {
        expect_dtype(OP, name, tensor, Dtype::BF16)?;
    }
    let groups = int(OP, "groups", x.len() / width)?;
    if groups == 0 {
        return Ok(());
    }
    let arguments = [
        Argument::Address(gpu.target(out)?),
        Argument::Address(gpu.at_or_null(None)?),
        Argument::Address(gpu.at(x)?),
        Argument::Address(gpu.at_or_null(None)?),
        Argument::Address(gpu.at(weight)?),
        Argument::I32(int(OP, "weight", width)?),
        Argument::F32(eps),
    ];
    let (grid, block) = ([groups as u32, 1, 1], [THREADS, 1, 1]);
    gpu.launch(&Launch { kernel: "rms_norm", grid, block, shared: 32, arguments: &arguments })
}
