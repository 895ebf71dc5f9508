//! Gradients of log-probs: a slab of the vocabulary at a time, so that no matrix of logits is ever whole.

use super::{
    Argument::{Address as At, F32, I32, I64},
    Launch, Runtime,
    device::{Gpu, expect_dtype, int},
    head::{COLUMNS, SCORED, Tile, check_inputs, parts},
    linear_backward::{Outer, product},
};
use crate::{
    backend::check,
    error::Result,
    tensor::{Dtype, Tensor},
};

const OP: &str = "logprobs_backward";

/// Tokens of a slab. Sums over the vocabulary follow slabs, so this is a number and nobody's choice.
const SLAB: usize = 4096;

/// Elements of a block of `head_rounded`.
const ROUNDED: usize = 2048;

/// See [`crate::backend::Backend::logprobs_backward`].
pub(super) fn logprobs_backward<R: Runtime>(
    gpu: &Gpu<R>,
    dhidden: &mut Tensor,
    mut dweight: Option<&mut Tensor>,
    [dlogp, lse, targets]: [&Tensor; 3],
    hidden: &Tensor,
    weight: &Tensor,
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
    check_inputs(OP, sizes, hidden, weight)?;
    expect_dtype(OP, "dhidden", dhidden, Dtype::BF16)?;
    let statistics = [("dlogp", Some(dlogp)), ("lse", Some(lse)), ("dweight", dweight.as_deref())];
    for (name, tensor) in statistics.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))) {
        expect_dtype(OP, name, tensor, Dtype::F32)?;
    }
    let check::LinearSizes { rows, inner, columns } = sizes;
    for part in parts(rows, SCORED) {
        let count = part.len();
        let dz = gpu.temporary(Dtype::BF16, &[count, columns.min(SLAB)])?;
        let sums = gpu.temporary(Dtype::F32, &[count, inner])?;
        let (dz, sums) = (gpu.at(&dz)?, gpu.at(&sums)?);
        let states = gpu.at(hidden)?.plus(part.start * inner * 2);
        let [dlogp, lse, targets] =
            [gpu.at(dlogp)?, gpu.at(lse)?, gpu.at(targets)?].map(|at| at.plus(part.start * 4));
        for slab in parts(columns, SLAB) {
            let tokens = weight.rows_of(slab.clone())?;
            let tile = Tile::of(count);
            let blocks = count.div_ceil(tile.rows) * slab.len().div_ceil(COLUMNS);
            gpu.launch(&Launch {
                kernel: &format!("head_dlogits_{}", tile.name),
                grid: [blocks as u32, 1, 1],
                block: [tile.threads, 1, 1],
                shared: tile.shared,
                arguments: &[
                    At(dz),
                    At(states),
                    At(gpu.at(&tokens)?),
                    At(dlogp),
                    At(lse),
                    At(targets),
                    I32(count as i32),
                    I32(int(OP, "the inner axis", inner)?),
                    I32(slab.len() as i32),
                    I32(slab.start as i32),
                    F32(temperature),
                ],
            })?;
            product(gpu, OP, sums, slab.start > 0, dz, &tokens, count)?;
            if let Some(dweight) = dweight.as_deref_mut() {
                let out = gpu.target(dweight)?.plus(slab.start * inner * 4);
                let outer = Outer { op: OP, out, sizes: [slab.len(), inner], rows: count, scale: 1.0 };
                outer.add(gpu, (dz, slab.len()), (states, inner))?;
            }
        }
        let elements = count * inner;
        gpu.launch(&Launch {
            kernel: "head_rounded",
            grid: [int(OP, "elements", elements.div_ceil(ROUNDED))? as u32, 1, 1],
            block: [256, 1, 1],
            shared: 0,
            arguments: &[
                At(gpu.target(dhidden)?.plus(part.start * inner * 2)),
                At(sums),
                I64(elements as i64),
            ],
        })?;
    }
    Ok(())
}
