//! The adapter that is trained: its configuration, and its matrices in f32.

use crate::backend::Backend;
use crate::backend::philox::philox;
use crate::error::{Error, Result};
use crate::format::adapter::{
    Adapter as AdapterFile, AdapterConfig, ModuleSet, Pattern, write_adapter_files,
};
use crate::format::config::ModelConfig;
use crate::format::save::replace_folder;
use crate::model::{Adapter, host_tensor, linears};
use crate::tensor::{Dtype, Tensor};
use std::path::Path;

const OP: &str = "lora";

/// What transformers has beside the decoder of a model that reads images.
const TOWER: &str = r"model\.(visual|vision_tower|multi_modal_projector)\..*";

/// What a new adapter is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// `R`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// The linears of the decoder it is for.
    pub targets: ModuleSet,
    /// The model's name, for whoever reads the adapter.
    pub base_model: Option<String>,
}

/// An adapter on the host.
#[derive(Debug, Clone)]
pub struct Lora {
    /// As PEFT keeps it.
    pub config: AdapterConfig,
    pairs: Vec<Pair>, // block by block, linear by linear
}

#[derive(Debug, Clone)]
struct Pair {
    module: String,
    a: Tensor, // f32 [R, K]
    b: Tensor, // f32 [N, R]
}

/// The rank from which on an adapter is a slip of the pen.
const MOST_RANKS: usize = 1 << 14;

impl Lora {
    /// A new adapter, which changes nothing yet: B is 0, and A uniform up to 1/√K, as PEFT begins.
    pub fn fresh(model: &ModelConfig, spec: LoraSpec, seed: u64) -> Result<Self> {
        let LoraSpec { rank, alpha, targets, base_model } = spec;
        if rank == 0 || alpha.is_nan() || alpha <= 0.0 {
            let what = format!("rank {rank} and alpha {alpha}; both have to be above 0");
            return Err(Error::caller(OP, what));
        }
        if rank > MOST_RANKS {
            return Err(Error::caller(OP, format!("rank {rank}; {MOST_RANKS} is the most")));
        }
        // PEFT would find linears of these names in the image tower as well.
        let beside = model.vision.as_ref().map(|_| Pattern::whole(TOWER)).transpose()?;
        let config = AdapterConfig {
            targets,
            excluded: beside.map(ModuleSet::Matching),
            layers: None,
            rank,
            alpha,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            rank_stabilised: false,
            dropout: 0.0,
            base_model,
            task: Some("CAUSAL_LM".to_owned()),
        };
        // As transformers names the decoder's blocks in its classes.
        let decoder = if model.vision.is_some() { "model.language_model" } else { "model" };
        let mut pairs = Vec::new();
        for layer in 0..model.decoder.layers {
            for (path, [outputs, inputs]) in linears(&model.decoder) {
                let module = format!("{decoder}.layers.{layer}.{path}");
                if config.touches(&module) {
                    let most = 1.0 / (inputs as f32).sqrt();
                    let a: Vec<f32> = uniforms(seed, pairs.len())
                        .take(rank * inputs)
                        .map(|u| (2.0 * u - 1.0) * most)
                        .collect();
                    let a = Tensor::from_slice(&[rank, inputs], &a)?;
                    pairs.push(Pair { module, a, b: Tensor::zeros(Dtype::F32, &[outputs, rank])? });
                }
            }
        }
        match pairs.is_empty() {
            false => Ok(Lora { config, pairs }),
            true => {
                Err(Error::caller(OP, "targets name no linear of the decoder; try [\"q_proj\", \"v_proj\"]"))
            }
        }
    }

    /// An adapter as PEFT wrote it, to go on from.
    pub fn of(model: &ModelConfig, file: &AdapterFile) -> Result<Self> {
        let mut pairs = Vec::new();
        for layer in 0..model.decoder.layers {
            for (path, _) in linears(&model.decoder) {
                if let Some(pair) = file.pair(&format!("layers.{layer}.{path}")) {
                    let [a, b] = [&pair.a, &pair.b].map(|view| host_tensor(view, Dtype::F32));
                    pairs.push(Pair { module: pair.module.clone(), a: a?, b: b? });
                }
            }
        }
        if pairs.len() != file.pairs().count() {
            let what = format!(
                "{} of its {} modules are linears of this decoder; it was made for another model",
                pairs.len(),
                file.pairs().count()
            );
            return Err(Error::file(file.file(), what));
        }
        Ok(Lora { config: file.config().clone(), pairs })
    }

    /// Brings it to a backend, in the dtype that runs there.
    pub fn adapter(&self, backend: &dyn Backend, model: &ModelConfig) -> Result<Adapter> {
        let pairs = self
            .pairs
            .iter()
            .map(|Pair { module, a, b }| (module.as_str(), a, b, self.config.scale_of(module)));
        Adapter::new(backend, &model.decoder, pairs)
    }

    /// Writes it as PEFT reads it; an adapter already there is replaced.
    pub fn write(&self, folder: &Path) -> Result<()> {
        replace_folder(folder, |fresh| self.write_files(fresh))
    }

    /// As [`Lora::write`], into a folder that is there and that nobody reads yet.
    pub(super) fn write_files(&self, folder: &Path) -> Result<()> {
        let pairs: Vec<_> = self.pairs.iter().map(|Pair { module, a, b }| (module.as_str(), a, b)).collect();
        write_adapter_files(folder, &self.config, &pairs)
    }

    /// Names of its matrices, in the order of [`Lora::tensors`].
    pub fn names(&self) -> Vec<String> {
        let both = |pair: &Pair| ["lora_A", "lora_B"].map(|half| format!("{}.{half}", pair.module));
        self.pairs.iter().flat_map(both).collect()
    }

    /// Its matrices: A and B of each pair.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.pairs.iter().flat_map(|Pair { a, b, .. }| [a, b])
    }

    /// Takes over matrices in the order of [`Lora::tensors`].
    pub fn replace(&mut self, tensors: Vec<Tensor>) -> Result<()> {
        let places = self.pairs.iter_mut().flat_map(|Pair { a, b, .. }| [a, b]);
        for (place, tensor) in places.zip(tensors) {
            if place.shape() != tensor.shape() || tensor.dtype() != Dtype::F32 {
                return Err(Error::internal(OP, format!("{tensor:?} in place of {place:?}")));
            }
            *place = tensor;
        }
        Ok(())
    }
}

/// Numbers from 0 to 1 for one matrix of an adapter.
fn uniforms(seed: u64, matrix: usize) -> impl Iterator<Item = f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    // The last word keeps these apart from the noise of sampling under the same seed.
    let words = move |quad: u32| philox([quad, matrix as u32, 0, 0x10FA], key);
    (0..u32::MAX).flat_map(words).map(|word| (word >> 8) as f32 / (1 << 24) as f32)
}
