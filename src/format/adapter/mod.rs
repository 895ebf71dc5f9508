//! LoRA adapters as PEFT keeps them: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! An adapter is a pair of small matrices per linear module: the module's product gains
//! `scale * (x Aᵀ) Bᵀ`. Modules are named by their path in the model that was trained, and those paths have
//! changed between versions of that model's code; [`canonical_module`] makes one name of them.

mod config;
#[cfg(test)]
mod tests;
mod write;

pub use config::{AdapterConfig, ModuleSet, Pattern};
pub use write::{write_adapter, write_adapter_files};

use super::json::Document;
use super::weights::{Checkpoint, TensorView};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
const SUFFIX_A: &str = ".lora_A.weight";
const SUFFIX_B: &str = ".lora_B.weight";

/// An adapter on disk.
#[derive(Debug)]
pub struct Adapter {
    config: AdapterConfig,
    file: PathBuf,
    pairs: BTreeMap<String, Pair>,
}

/// The two matrices of a module.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The module's path as the file has it.
    pub module: String,
    /// From the input to the rank. `[R, in]`
    pub a: TensorView,
    /// From the rank to the output. `[out, R]`
    pub b: TensorView,
    /// What their product is multiplied by.
    pub scale: f64,
}

impl Pair {
    /// The rank, `R`.
    pub fn rank(&self) -> usize {
        self.a.shape()[0]
    }
}

impl Adapter {
    /// Opens the adapter in `folder`. Its tensors are mapped, not read.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = AdapterConfig::from_document(&Document::read(&folder.join(CONFIG))?)?;
        let file = folder.join(WEIGHTS);
        let checkpoint = Checkpoint::open_file(&file)?;
        let mut pairs = BTreeMap::new();
        for a in checkpoint.views() {
            let (module, is_a) = module_of(a)?;
            if !is_a {
                // A lone B is found here, a lone A below.
                let half = format!("{PREFIX}{module}{SUFFIX_A}");
                if !checkpoint.contains(&half) {
                    return Err(a.fault(format!("its other half {half} is missing")));
                }
                continue;
            }
            let half = format!("{PREFIX}{module}{SUFFIX_B}");
            let b =
                checkpoint.find(&half).ok_or_else(|| a.fault(format!("its other half {half} is missing")))?;
            let pair = pair(&config, module, a.clone(), b)?;
            if let Some(twin) = pairs.insert(canonical_module(module).to_owned(), pair) {
                return Err(twin.a.fault(format!("names the same module as {}", a.name())));
            }
        }
        if pairs.is_empty() {
            return Err(Error::file(file, "holds no lora_A and lora_B tensors"));
        }
        Ok(Self { config, file, pairs })
    }

    /// What the adapter is.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The pair of the module with this canonical name, such as `layers.3.self_attn.q_proj`.
    pub fn pair(&self, module: &str) -> Option<&Pair> {
        self.pairs.get(module)
    }

    /// Every pair by its module's canonical name.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &Pair)> {
        self.pairs.iter().map(|(module, pair)| (module.as_str(), pair))
    }

    /// Fails if there is a pair for a module that the model does not have.
    pub fn expect_modules(&self, known: impl Fn(&str) -> bool) -> Result<()> {
        match self.pairs.iter().find(|(module, _)| !known(module)) {
            Some((_, pair)) => Err(pair.a.fault(format!("the model has no module {} to adapt", pair.module))),
            None => Ok(()),
        }
    }

    /// The file that holds the pairs.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// The module a tensor belongs to, and whether it is the A of its pair.
fn module_of(view: &TensorView) -> Result<(&str, bool)> {
    let unknown = || view.fault(format!("expected {PREFIX}<module>{SUFFIX_A} or {SUFFIX_B}"));
    let path = view.name().strip_prefix(PREFIX).ok_or_else(unknown)?;
    match (path.strip_suffix(SUFFIX_A), path.strip_suffix(SUFFIX_B)) {
        (Some(module), _) => Ok((module, true)),
        (_, Some(module)) => Ok((module, false)),
        _ => Err(unknown()),
    }
}

fn pair(config: &AdapterConfig, module: &str, a: TensorView, b: TensorView) -> Result<Pair> {
    let rank = config.rank_of(module);
    let shapes = (a.shape(), b.shape());
    let (&[rank_a, _], &[_, rank_b]) = shapes else {
        return Err(
            a.fault(format!("expected two axes in both halves, got {:?} and {:?}", shapes.0, shapes.1))
        );
    };
    if (rank_a, rank_b) != (rank, rank) {
        let what = format!(
            "{CONFIG} gives it rank {rank}, but its halves are {:?} and {:?}: expected [{rank}, in] and [out, {rank}]",
            shapes.0, shapes.1
        );
        return Err(a.fault(what));
    }
    Ok(Pair { module: module.to_owned(), scale: config.scale_of(module), a, b })
}

/// One name for a module under the paths that versions of a model's code gave it: the decoder's
/// `model.layers…`, `model.language_model.layers…` and `language_model.model.layers…` are all `layers…`, and
/// `model.visual…` is `visual…`.
pub fn canonical_module(path: &str) -> &str {
    let mut rest = path;
    while let Some(shorter) = rest.strip_prefix("model.").or_else(|| rest.strip_prefix("language_model.")) {
        rest = shorter;
    }
    rest
}
