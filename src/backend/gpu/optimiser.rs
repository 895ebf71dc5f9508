//! Squared norms and steps of AdamW: many tensors in a launch, by tables in its arguments.

use super::{
    Address,
    Argument::{Address as At, Struct},
    Launch, Runtime,
    device::{Gpu, expect_dtype, int},
};
use crate::{
    backend::{AdamwParameter, AdamwSettings, check},
    error::Result,
    tensor::{Dtype, Tensor},
};
use bytemuck::Zeroable;

/// Tensors of a launch, and elements of a block, as `kernels/optimiser.cu` has them.
const NORMS: usize = 128;
const NORM_BLOCK: usize = 16_384;
const STEPS: usize = 48;
const STEP_BLOCK: usize = 2048;

/// `struct NormTable` there.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct NormTable {
    tensors: [Address; NORMS],
    elements: [i64; NORMS],
    first: [i32; NORMS],
    count: i32,
    unused: i32,
}

/// `struct StepTable` there.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct StepTable {
    master: [Address; STEPS],
    first_moment: [Address; STEPS],
    second_moment: [Address; STEPS],
    gradient: [Address; STEPS],
    weight: [Address; STEPS],
    elements: [i64; STEPS],
    first: [i32; STEPS],
    decay: [f32; STEPS],
    rate: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    scale: f32,
    correct1: f32,
    correct2: f32,
    count: i32,
}

/// See [`crate::backend::Backend::sq_norm`].
pub(super) fn sq_norm<R: Runtime>(gpu: &Gpu<R>, out: &mut Tensor, tensors: &[&Tensor]) -> Result<()> {
    const OP: &str = "sq_norm";
    check::sq_norm(out, tensors)?;
    expect_dtype(OP, "out", out, Dtype::F32)?;
    tensors.iter().try_for_each(|tensor| expect_dtype(OP, "a tensor", tensor, Dtype::F32))?;
    if tensors.iter().any(|tensor| tensor.is_empty()) {
        super::rows::zero(gpu, out)?;
    }
    let results = gpu.target(out)?;
    let full: Vec<(usize, &Tensor)> =
        tensors.iter().copied().enumerate().filter(|(_, tensor)| !tensor.is_empty()).collect();
    // A launch writes to places side by side.
    for run in full.chunk_by(|(before, _), (after, _)| before + 1 == *after) {
        for group in run.chunks(NORMS) {
            let mut table = NormTable::zeroed();
            let mut blocks = 0;
            for (at, (_, tensor)) in group.iter().enumerate() {
                table.tensors[at] = gpu.at(tensor)?;
                table.elements[at] = tensor.len() as i64;
                table.first[at] = int(OP, "blocks", blocks)?;
                blocks += tensor.len().div_ceil(NORM_BLOCK);
            }
            table.count = group.len() as i32;
            let partial = gpu.temporary(Dtype::F32, &[blocks])?;
            gpu.launch(&Launch {
                kernel: OP,
                grid: [int(OP, "blocks", blocks)? as u32, 1, 1],
                block: [256, 1, 1],
                shared: 32,
                arguments: &[
                    At(results.plus(group[0].0 * size_of::<f32>())),
                    At(gpu.at(&partial)?),
                    At(gpu.tickets()?),
                    Struct(bytemuck::bytes_of(&table).to_vec()),
                ],
            })?;
        }
    }
    Ok(())
}

/// See [`crate::backend::Backend::adamw`].
pub(super) fn adamw<R: Runtime>(
    gpu: &Gpu<R>,
    parameters: &mut [AdamwParameter<'_>],
    settings: &AdamwSettings,
) -> Result<()> {
    const OP: &str = "adamw";
    check::adamw(parameters, settings)?;
    for parameter in &*parameters {
        let AdamwParameter { master, first, second, gradient, weight, .. } = parameter;
        for (name, tensor) in
            [("master", &**master), ("first", first), ("second", second), ("gradient", gradient)]
        {
            expect_dtype(OP, name, tensor, Dtype::F32)?;
        }
        weight.as_deref().map_or(Ok(()), |weight| expect_dtype(OP, "weight", weight, Dtype::BF16))?;
    }
    let mut full: Vec<_> = parameters.iter_mut().filter(|parameter| !parameter.master.is_empty()).collect();
    for group in full.chunks_mut(STEPS) {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(settings.step as f64);
        let mut table = StepTable {
            rate: settings.learning_rate,
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            scale: settings.scale,
            correct1: (1.0 / correction(settings.beta1)) as f32,
            correct2: (1.0 / correction(settings.beta2).sqrt()) as f32,
            count: group.len() as i32,
            ..StepTable::zeroed()
        };
        let mut blocks = 0;
        for (at, parameter) in group.iter_mut().enumerate() {
            table.elements[at] = parameter.master.len() as i64;
            table.first[at] = int(OP, "blocks", blocks)?;
            table.decay[at] = parameter.decay;
            blocks += parameter.master.len().div_ceil(STEP_BLOCK);
            table.master[at] = gpu.target(parameter.master)?;
            table.first_moment[at] = gpu.target(parameter.first)?;
            table.second_moment[at] = gpu.target(parameter.second)?;
            table.gradient[at] = gpu.at(parameter.gradient)?;
            if let Some(weight) = parameter.weight.as_deref_mut() {
                table.weight[at] = gpu.target(weight)?;
            }
        }
        gpu.launch(&Launch {
            kernel: OP,
            grid: [int(OP, "blocks", blocks)? as u32, 1, 1],
            block: [256, 1, 1],
            shared: 0,
            arguments: &[Struct(bytemuck::bytes_of(&table).to_vec())],
        })?;
    }
    Ok(())
}
