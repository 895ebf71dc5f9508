//! Gradients of attention on a device: `kernels/attention_backward.cu`, once over queries and once over keys.

use super::{
    Argument::{self, Address as At, F32, I32, I64, Struct},
    Launch, Runtime,
    attention::{THREADS, TILE, packed, width_for},
    device::{Gpu, expect_dtype},
    rows::Spread,
};
use crate::{
    backend::{
        AttentionGrads, Segments,
        check::{self, AttentionSizes},
    },
    error::Result,
    tensor::{Dtype, Tensor},
};

const OP: &str = "attention_backward";

/// Columns of results that a block writes.
const COLUMNS: usize = 128;

/// Of a line's 16-column steps of queries, those the widest kernel keeps in shared memory.
const PARKED: usize = 7;

/// Launches of the two kernels; a function of sizes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    width: usize,
    /// Blocks along x for lines of queries and for keys, and along z.
    blocks: [usize; 2],
    parts: usize,
}

impl Plan {
    fn new(sizes: AttentionSizes, sequences: usize) -> Result<Self> {
        let AttentionSizes { rows, heads, kv_heads, head_dim } = sizes;
        let width = width_for(OP, head_dim)?;
        // A sequence has at most one tile that is not full.
        let blocks = [rows * (heads / kv_heads) / TILE + sequences, rows / TILE + sequences];
        Ok(Plan { width, blocks, parts: width.div_ceil(COLUMNS) })
    }

    /// Bytes of shared memory: keys and values in two stages, and what is parked of q and dout; keys and values once,
    /// and stages of q and dout with two numbers a line.
    fn shared(&self) -> [usize; 2] {
        let pair = 2 * TILE * (2 * self.width + 16);
        let (parked, stages) = if self.width == 256 { (PARKED, 1) } else { (0, 2) };
        [2 * pair + 2 * parked * THREADS * 16, pair + stages * (pair + 2 * TILE * size_of::<f32>())]
    }
}

/// See [`crate::backend::Backend::attention_backward`].
pub(super) fn attention_backward<R: Runtime>(
    gpu: &Gpu<R>,
    grads: &mut AttentionGrads,
    [dout, out, lse]: [&Tensor; 3],
    [q, k, v]: [&Tensor; 3],
    segments: &Segments<'_>,
    causal: bool,
    scale: f32,
) -> Result<()> {
    let sizes = check::attention_backward(grads, dout, out, lse, q, k, v)?;
    let AttentionSizes { rows, heads, kv_heads, head_dim } = sizes;
    let AttentionGrads { dq, dk, dv } = grads;
    for (name, tensor) in [("dq", &*dq), ("dk", dk), ("dv", dv), ("dout", dout), ("out", out)] {
        expect_dtype(OP, name, tensor, Dtype::BF16)?;
    }
    expect_dtype(OP, "lse", lse, Dtype::F32)?;
    let (sequences, problem) = packed(gpu, OP, segments, causal)?;
    let problem = problem.filled(gpu, OP, [q, k, v], sizes, sequences, scale)?;
    let plan = Plan::new(sizes, sequences)?;
    if rows == 0 || heads == 0 {
        return Ok(());
    }
    let delta = gpu.temporary(Dtype::F32, &[rows, heads])?;
    let spread = Spread::over_elements(OP, rows * heads, head_dim)?;
    let (dout, delta) = (gpu.at(dout)?, gpu.at(&delta)?);
    gpu.launch(&spread.launch(
        "attention_delta",
        1,
        0,
        &[
            At(delta),
            At(dout),
            At(gpu.at(out)?),
            I64((rows * heads) as i64),
            I32(head_dim as i32),
            I32(spread.lanes as i32),
        ],
    ))?;
    let read =
        [At(dout), At(gpu.at(lse)?), At(delta), F32(scale), Struct(bytemuck::bytes_of(&problem).to_vec())];
    let written = [vec![At(gpu.target(dq)?)], vec![At(gpu.target(dk)?), At(gpu.target(dv)?)]];
    for (side, written) in written.into_iter().enumerate() {
        let arguments: Vec<Argument> = written.into_iter().chain(read.iter().cloned()).collect();
        gpu.launch(&Launch {
            kernel: &format!("attention_backward_{}_{}", ["q", "k"][side], plan.width),
            grid: [plan.blocks[side], kv_heads, plan.parts].map(|blocks| blocks as u32),
            block: [THREADS as u32, 1, 1],
            shared: plan.shared()[side] as u32,
            arguments: &arguments,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_lines_and_keys_and_fit_a_multiprocessor() {
        for (head_dim, width, parts) in [(20, 32, 1), (64, 64, 1), (80, 80, 1), (128, 128, 1), (256, 256, 2)]
        {
            let sizes = AttentionSizes { rows: 1000, heads: 16, kv_heads: 2, head_dim };
            let plan = Plan::new(sizes, 3).expect("these sizes have a kernel");
            assert_eq!(plan, Plan { width, blocks: [128, 18], parts });
            let most = if width == 256 { 166_912 } else { 232_448 / 2 };
            assert!(plan.shared().iter().all(|&bytes| bytes <= most), "{:?}", plan.shared());
        }
        let sizes = AttentionSizes { rows: 5, heads: 2, kv_heads: 2, head_dim: 33 };
        assert!(Plan::new(sizes, 1).unwrap_err().to_string().contains("heads of 33 elements"));
    }
}
