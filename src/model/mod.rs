//! Weights on a backend, turned into log-probs: one decoder with toggles, the image towers before it, LoRA
//! adapters beside it, packed input, a paged cache.

mod adapter;
mod cache;
mod decoder;
mod gradients;
mod memory;
mod packed;
mod passages;
mod positions;
mod recorded;
mod save;
mod tower;
mod weights;

pub use adapter::{Adapter, AdapterRows, linears};
pub use cache::{KvCache, PAGE, bytes_per_position, pages_for};
pub use decoder::{
    Decoder, Slopes, TrainWorkspace, Workspace, kept_block_bytes, train_bytes, workspace_bytes_per_row,
};
pub use gradients::Gradients;
pub use memory::{MemoryPlan, Tenant, divide};
pub use packed::{Packed, PlacedImage, Run};
pub use passages::{Passage, Passages};
pub use positions::{ImagePlace, Positions};
pub use recorded::{AHEAD, Decoded, Decoding};
pub use save::write_changed;
pub use tower::{PatchedImage, Tower, TowerGradients};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::format::adapter::Adapter as AdapterFile;
use crate::format::config::{ModelConfig, VisionConfig};
use crate::tensor::{Dtype, Tensor};
use std::{cell::RefCell, path::Path, sync::Arc};
pub(crate) use weights::host_tensor;
use weights::{Loader, Origin};

/// A model on a backend.
#[derive(Debug)]
pub struct Model {
    /// What the files say it is.
    pub config: ModelConfig,
    /// The language model.
    pub decoder: Decoder,
    /// The image tower of a vision-language model.
    pub tower: Option<Tower>,
    /// Where it lives.
    pub backend: Arc<dyn Backend>,
}

/// How the tensors of a checkpoint compare with what the model needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Missing or misshapen tensors, one message each.
    pub faults: Vec<String>,
    /// Tensors the model has no use for.
    pub surplus: Vec<String>,
}

impl Model {
    /// Loads the checkpoint in `folder`. Matrices keep the file's dtype (f16 becomes f32) unless `dtype` says
    /// otherwise, and become bf16 on a device; those that need no conversion stay in the mapped file. Tensors nobody asked for are an error:
    /// they mean that this is another model than the config says.
    pub fn load(folder: &Path, backend: Arc<dyn Backend>, dtype: Option<Dtype>) -> Result<Self> {
        if let Some(dtype) = dtype
            && backend.activation() == Dtype::BF16
            && dtype != Dtype::BF16
        {
            let what =
                format!("this device computes with bf16 weights, not with {dtype}; use bf16, or the cpu");
            return Err(Error::caller("load", what));
        }
        let config = ModelConfig::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let plan = MemoryPlan::new(&config.decoder, &checkpoint, backend.activation(), 0, 0);
        if let Some(free) = backend.free_memory()? {
            plan.check(free)?;
        }
        checkpoint.prefetch();
        let loader = Loader { origin: Origin::Files(&checkpoint), backend: &*backend, dtype };
        let (decoder, tower) = assemble(&loader, &config)?;
        let surplus = surplus(&checkpoint);
        if let Some(first) = surplus.first() {
            let more =
                if surplus.len() > 1 { format!(" and {} more", surplus.len() - 1) } else { String::new() };
            return Err(Error::file(
                checkpoint.listing(),
                format!("tensor {first}{more}: no place in a {:?} model of this config", config.family),
            ));
        }
        Ok(Model { config, decoder, tower, backend })
    }

    /// Compares a checkpoint with its config without loading it.
    pub fn survey(config: &ModelConfig, checkpoint: &Checkpoint, backend: &dyn Backend) -> Result<Survey> {
        let faults = RefCell::default();
        assemble(&Loader { origin: Origin::Survey(checkpoint, &faults), backend, dtype: None }, config)?;
        Ok(Survey { faults: faults.into_inner(), surplus: surplus(checkpoint) })
    }

    /// Features `[tokens, C]` of one image.
    pub fn encode_image(&self, image: PatchedImage<'_>) -> Result<Tensor> {
        let Some(tower) = &self.tower else {
            return Err(Error::caller("images", format!("a {:?} model reads no images", self.config.family)));
        };
        tower.encode(&*self.backend, image)
    }

    /// Weights by the names the checkpoint has for them: the decoder's, then those of a tower that can be trained.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut all = self.decoder.parameters();
        all.extend(self.tower.iter().flat_map(Tower::parameters));
        all
    }

    /// Weights in the order of [`Model::parameters`].
    pub fn parameters_mut(&mut self) -> Vec<&mut Tensor> {
        let mut all = self.decoder.parameters_mut();
        all.extend(self.tower.iter_mut().flat_map(Tower::parameters_mut));
        all
    }

    /// Brings a PEFT adapter of this model to its backend.
    pub fn adapter(&self, file: &AdapterFile) -> Result<Adapter> {
        Adapter::load(&*self.backend, &self.config.decoder, file)
    }

    /// Rotary positions of a prompt of `tokens` tokens with images in it.
    pub fn positions(&self, tokens: usize, images: &[ImagePlace]) -> Result<Positions> {
        match self.config.decoder.rope.mrope_sections {
            Some(_) => Positions::multimodal(tokens, images),
            None => Ok(Positions::plain(tokens)),
        }
    }

    /// A key/value cache of `pages` pages.
    pub fn cache(&self, pages: usize) -> Result<KvCache> {
        KvCache::new(&*self.backend, self.decoder.config(), self.decoder.cache_dtype(&*self.backend), pages)
    }

    /// Work space for forward passes.
    pub fn workspace(&self) -> Result<Workspace> {
        self.decoder.workspace(&*self.backend)
    }

    /// Patches along the side of the square that becomes one token.
    pub fn merge(&self) -> usize {
        match &self.config.vision {
            Some(VisionConfig::Qwen2Vl(tower) | VisionConfig::Qwen25Vl { tower, .. }) => tower.merge,
            Some(VisionConfig::InternVit(tower)) => tower.shuffle,
            None => 1,
        }
    }
}

/// Where releases keep the decoder, and its head.
const DECODERS: [(&str, &str); 5] = [
    ("model.language_model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("language_model.", "lm_head"),
    ("model.", "lm_head"),
    ("", "lm_head"),
];

fn assemble(loader: &Loader<'_>, config: &ModelConfig) -> Result<(Decoder, Option<Tower>)> {
    let holds = |(prefix, _): &&(&str, &str)| loader.contains(&format!("{prefix}embed_tokens.weight"));
    let (prefix, head) = DECODERS.iter().find(holds).ok_or_else(|| {
        let what = "no language model: no tensor is called embed_tokens.weight under any known prefix";
        Error::file(loader.listing(), what)
    })?;
    let decoder = Decoder::load(loader, &config.decoder, prefix, head)?;
    let tower = config.vision.as_ref().map(|vision| Tower::load(loader, vision, config.decoder.hidden));
    Ok((decoder, tower.transpose()?))
}

/// Tensors nobody asked for, less those that are known to mean nothing: rotary tables some writers save, and
/// the blocks of a tower behind the one whose features are used.
fn surplus(checkpoint: &Checkpoint) -> Vec<String> {
    let names = checkpoint.surplus().map(|view| view.name().to_owned());
    names.filter(|name| !name.ends_with("rotary_emb.inv_freq")).collect()
}
