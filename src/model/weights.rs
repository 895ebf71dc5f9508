//! From names in a checkpoint to tensors on a backend.
//!
//! Matrices keep the dtype of the file, so that a mapped bf16 weight is used where it lies; f16 becomes f32,
//! which holds it exactly. Vectors (norms, biases) become the backend's activation dtype: they are small, and
//! it spares every op a second type.

use crate::backend::{Backend, Linear, LoraRows};
use crate::error::{Error, Result};
use crate::format::{Checkpoint, FileDtype, TensorView};
use crate::tensor::{Dtype, Tensor, byte_length};
use half::f16;
use memmap2::MmapOptions;
use std::{cell::RefCell, path::Path, sync::Arc};

/// A weight matrix `[N, K]` and its bias `[N]`.
#[derive(Debug)]
pub(crate) struct LinearWeights {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl LinearWeights {
    /// This linear without adapters.
    pub(crate) fn plain(&self) -> Linear<'_> {
        self.with(&[])
    }

    /// This linear with adapters on some rows.
    pub(crate) fn with<'a>(&'a self, lora: &'a [LoraRows<'a>]) -> Linear<'a> {
        Linear { weight: &self.weight, bias: self.bias.as_ref(), lora }
    }

    /// Its weight and its bias by the names that follow from the module's.
    pub(crate) fn parameters(&self, module: &str) -> impl Iterator<Item = (String, &Tensor)> {
        let weight = (format!("{module}.weight"), &self.weight);
        let bias = self.bias.as_ref().map(|bias| (format!("{module}.bias"), bias));
        [weight].into_iter().chain(bias)
    }

    /// Its weight and its bias.
    pub(crate) fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        [&mut self.weight].into_iter().chain(&mut self.bias)
    }
}

/// Whether a linear has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    /// It has one.
    Yes,
    /// It has none.
    No,
}

impl From<bool> for Bias {
    fn from(yes: bool) -> Self {
        if yes { Bias::Yes } else { Bias::No }
    }
}

/// Brings tensors from one place to one backend.
pub(crate) struct Loader<'a> {
    pub(crate) origin: Origin<'a>,
    pub(crate) backend: &'a dyn Backend,
    /// The dtype asked for matrices; none keeps the one they come in.
    pub(crate) dtype: Option<Dtype>,
}

/// Where tensors come from.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// A checkpoint's files.
    Files(&'a Checkpoint),
    /// Nowhere: stand-ins take their place, and what is wrong with the files is noted.
    Survey(&'a Checkpoint, &'a RefCell<Vec<String>>),
    /// They are made by name and shape, on the host.
    Made(&'a dyn Fn(&str, &[usize]) -> Result<Tensor>),
}

impl Loader<'_> {
    /// A matrix (or any weight that is multiplied with activations) of the given shape.
    pub(crate) fn matrix(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let dtype = |held| self.backend.matrix(self.dtype.unwrap_or(held));
        match self.find(name, shape)? {
            Found::View(view) => {
                let held = if view.dtype() == FileDtype::BF16 { Dtype::BF16 } else { Dtype::F32 };
                self.backend.upload(host_tensor(&view, dtype(held))?)
            }
            Found::StandIn(tensor) => Ok(tensor),
            Found::Made(tensor) => {
                let dtype = dtype(tensor.dtype());
                self.backend.upload(tensor.converted(dtype)?)
            }
        }
    }

    /// A vector in the activation dtype.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Tensor> {
        self.backend.upload(self.host(name, &[length])?)
    }

    /// A host tensor of any shape in the activation dtype, for the little arithmetic done at load time.
    pub(crate) fn host(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.find(name, shape)? {
            Found::View(view) => host_tensor(&view, self.backend.activation()),
            Found::StandIn(tensor) => Ok(tensor),
            Found::Made(tensor) => tensor.converted(self.backend.activation()),
        }
    }

    /// Whether files have a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.files().is_some_and(|checkpoint| checkpoint.contains(name))
    }

    /// The file that lists the tensors, for messages.
    pub(crate) fn listing(&self) -> &Path {
        self.files().map_or(Path::new("memory"), Checkpoint::listing)
    }

    fn files(&self) -> Option<&Checkpoint> {
        match self.origin {
            Origin::Files(checkpoint) | Origin::Survey(checkpoint, _) => Some(checkpoint),
            Origin::Made(_) => None,
        }
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<Found> {
        let view = |checkpoint: &Checkpoint| checkpoint.view(name).and_then(|view| view.shaped(shape));
        match self.origin {
            Origin::Files(checkpoint) => view(checkpoint).map(Found::View),
            Origin::Survey(checkpoint, faults) => {
                if let Err(fault) = view(checkpoint) {
                    faults.borrow_mut().push(fault.to_string());
                }
                stand_in(shape).map(Found::StandIn)
            }
            Origin::Made(make) => make(name, shape).map(Found::Made),
        }
    }

    /// `module.weight` `[outputs, inputs]` and, if it has one, `module.bias`.
    pub(crate) fn linear(
        &self,
        module: &str,
        outputs: usize,
        inputs: usize,
        bias: Bias,
    ) -> Result<LinearWeights> {
        let weight = self.matrix(&format!("{module}.weight"), &[outputs, inputs])?;
        let bias = match bias {
            Bias::Yes => Some(self.vector(&format!("{module}.bias"), outputs)?),
            Bias::No => None,
        };
        Ok(LinearWeights { weight, bias })
    }

    /// A fused linear `[parts · outputs, inputs]` cut into its parts along the outputs.
    pub(crate) fn fused<const PARTS: usize>(
        &self,
        module: &str,
        outputs: usize,
        inputs: usize,
        bias: Bias,
    ) -> Result<[LinearWeights; PARTS]> {
        let whole = self.linear(module, PARTS * outputs, inputs, bias)?;
        let mut parts = Vec::with_capacity(PARTS);
        for part in 0..PARTS {
            let rows = part * outputs..(part + 1) * outputs;
            let weight = whole.weight.rows_of(rows.clone())?;
            let bias = whole.bias.as_ref().map(|bias| bias.rows_of(rows)).transpose()?;
            parts.push(LinearWeights { weight, bias });
        }
        parts.try_into().map_err(|_| Error::internal("load", format!("{module}: expected {PARTS} parts")))
    }
}

enum Found {
    View(TensorView),
    StandIn(Tensor),
    Made(Tensor),
}

/// Zeros that take no memory until somebody reads them.
fn stand_in(shape: &[usize]) -> Result<Tensor> {
    let bytes = byte_length(Dtype::F32, shape)?;
    let zeros = MmapOptions::new().len(bytes.max(1)).map_anon().and_then(|map| map.make_read_only());
    let zeros = zeros.map_err(|source| Error::machine_because("survey", "no address space", source))?;
    Tensor::shared(Dtype::F32, shape, Arc::new(zeros), 0..bytes)
}

/// A view as a host tensor: in place where the file already holds `dtype`, converted otherwise.
pub(crate) fn host_tensor(view: &TensorView, dtype: Dtype) -> Result<Tensor> {
    let held = match view.dtype() {
        FileDtype::BF16 => Dtype::BF16,
        FileDtype::F32 => Dtype::F32,
        FileDtype::F64 => Dtype::F64,
        FileDtype::F16 => return widened(view)?.converted(dtype),
        other => return Err(view.fault(format!("{other:?} weights are not supported, use bf16, f16 or f32"))),
    };
    if view.is_aligned() {
        return Tensor::shared(held, view.shape(), view.mapping().clone(), view.range())?.converted(dtype);
    }
    let mut copy = Tensor::zeros(held, view.shape())?;
    copy.bytes_mut()?.copy_from_slice(view.bytes());
    copy.converted(dtype)
}

/// An f16 view as f32.
fn widened(view: &TensorView) -> Result<Tensor> {
    let mut out = Tensor::zeros(Dtype::F32, view.shape())?;
    for (wide, pair) in out.as_mut_slice::<f32>()?.iter_mut().zip(view.bytes().chunks_exact(2)) {
        *wide = f16::from_le_bytes([pair[0], pair[1]]).to_f32();
    }
    Ok(out)
}
