//! Flags that say which model to run, and the model they open.

use super::Global;
use super::text::bytes;
use anyhow::{Context, Result};
use pellucid::engine::{Features, Generation, Input};
use pellucid::format::adapter::Adapter as AdapterFile;
use pellucid::format::{Checkpoint, FileDtype, GenerationConfig, ModelFolder};
use pellucid::model::{Adapter, MemoryPlan, Model};
use pellucid::prompt::image::Arithmetic;
use pellucid::prompt::message::ImageReference;
use pellucid::prompt::reader::{ImageOptions, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::tensor::Dtype;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// How a model is loaded and how it sees pictures.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelFlags {
    /// A PEFT LoRA adapter to apply
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// Compute with weights of this type [default: as in the files, f16 as f32]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,

    /// Smallest area of a picture after resizing (Qwen)
    #[arg(long, value_name = "N")]
    min_pixels: Option<usize>,

    /// Largest area of a picture after resizing (Qwen)
    #[arg(long, value_name = "N")]
    max_pixels: Option<usize>,

    /// Whose arithmetic resizes pictures [default: the one the checkpoint's processor uses]
    #[arg(long, value_name = "WHOSE")]
    pixels: Option<PixelArithmetic>,
}

/// Two reference processors differ in a few pixels; models were trained on one of them.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PixelArithmetic {
    /// transformers' default ("fast") processors
    Torch,
    /// Pillow, as in older transformers and InternVL's own code
    Pillow,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum WeightType {
    Bf16,
    F32,
}

/// A model with everything around it.
pub(crate) struct Opened {
    pub(crate) model: Model,
    pub(crate) reader: Reader,
    pub(crate) adapter: Option<Arc<Adapter>>,
    pub(crate) generation: GenerationConfig,
    end_tokens: Vec<u32>,
}

impl ModelFlags {
    /// Opens MODEL: a folder, or a hub id in the offline cache.
    pub(crate) fn open(&self, model: &str, global: &Global) -> Result<Opened> {
        let folder = ModelFolder::find(model)?;
        let backend = global.device.open(global.threads)?;
        let dtype = self.dtype.map(|dtype| match dtype {
            WeightType::Bf16 => Dtype::BF16,
            WeightType::F32 => Dtype::F32,
        });
        if !global.quiet && backend.activation() == Dtype::BF16 {
            let checkpoint = Checkpoint::open(folder.path())?;
            let plan = MemoryPlan::new(&folder.config()?.decoder, &checkpoint, backend.activation(), 0, 0);
            eprintln!("{} of weights go to {}", bytes(plan.held), backend.describe());
            if checkpoint.views().any(|view| view.dtype() != FileDtype::BF16) {
                eprintln!(
                    "some weights are f32 or f16 in the files; {} computes with them in bf16",
                    global.device
                );
            }
        }
        let model = Model::load(folder.path(), backend, dtype)?;
        let adapter = match &self.adapter {
            Some(path) => Some(Arc::new(model.adapter(&AdapterFile::open(path)?)?)),
            None => None,
        };
        let arithmetic = self.pixels.map(|whose| match whose {
            PixelArithmetic::Torch => Arithmetic::Torch,
            PixelArithmetic::Pillow => Arithmetic::Pil,
        });
        let options = ImageOptions { min_pixels: self.min_pixels, max_pixels: self.max_pixels, arithmetic };
        Ok(Opened {
            reader: Reader::open(&folder, &model.config, options)?,
            end_tokens: folder.eos(&model.config)?,
            generation: folder.generation()?,
            model,
            adapter,
        })
    }
}

impl Opened {
    /// A request ready to run.
    pub(crate) fn input(
        &self,
        words: &Words,
        images: &[ImageReference],
        base: &Path,
        features: &mut Features,
    ) -> Result<Input> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let read = self.reader.read(words, images, base, &options)?;
        Input::prepare_with(&self.model, &read, features).context("cannot prepare the prompt")
    }

    /// What completions are made with.
    pub(crate) fn generation(&self) -> Generation<'_> {
        Generation {
            model: &self.model,
            tokenizer: self.reader.tokenizer(),
            adapter: self.adapter.as_ref(),
            end_tokens: &self.end_tokens,
        }
    }
}
