//! `config.json`: what a checkpoint is, as one plain struct that the model reads.
//!
//! Every family is a decoder with toggles, and perhaps an image tower before it. The same model is written
//! in several styles (flat, nested under `text_config`, InternVL's own `llm_config`), and a writer leaves
//! out whatever equals the default of its configuration class; all of that ends here. What is asked for but
//! not supported is refused by name, never ignored.

mod decoder;
#[cfg(test)]
mod tests;
mod vision;

pub use decoder::{DecoderConfig, RopeConfig, RopeScaling};
pub use vision::{InternVit, NormKind, QwenTower, Tiling, VisionConfig};

use super::json::{Document, Object};
use super::weights::FileDtype;
use crate::error::Result;
use decoder::Defaults;
use std::path::Path;

/// The families of models this crate can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen2 and Qwen2.5, text only.
    Qwen2,
    /// Qwen3 dense, text only.
    Qwen3,
    /// Llama 2 and 3, and what shares their shape (SmolLM2), text only.
    Llama,
    /// Qwen2-VL.
    Qwen2Vl,
    /// Qwen2.5-VL.
    Qwen25Vl,
    /// InternVL 2.5 and 3, original and transformers layout.
    InternVl,
}

/// Each `model_type` this crate reads, its architecture, and the family it belongs to.
const SUPPORTED: [(&str, &str, Family); 7] = [
    ("qwen2", "Qwen2ForCausalLM", Family::Qwen2),
    ("qwen3", "Qwen3ForCausalLM", Family::Qwen3),
    ("llama", "LlamaForCausalLM", Family::Llama),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", Family::Qwen2Vl),
    ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", Family::Qwen25Vl),
    ("internvl", "InternVLForConditionalGeneration", Family::InternVl),
    ("internvl_chat", "InternVLChatModel", Family::InternVl),
];

/// A whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family it is of.
    pub family: Family,
    /// The language model.
    pub decoder: DecoderConfig,
    /// The image tower of a vision-language model.
    pub vision: Option<VisionConfig>,
    /// The ids that mark images in a prompt.
    pub tokens: ImageTokens,
    /// The type the weights were saved in, as the file says (the tensors know better).
    pub dtype: Option<FileDtype>,
    /// The ids that end a text; `generation_config.json` may say otherwise.
    pub eos: Vec<u32>,
}

/// The ids that mark images in a prompt. All are absent in text models; InternVL's original files name none,
/// its image token is then the tokenizer's `<IMG_CONTEXT>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageTokens {
    /// The placeholder that image features replace.
    pub image: Option<u32>,
    /// The placeholder that video features replace.
    pub video: Option<u32>,
    /// Opens an image.
    pub vision_start: Option<u32>,
    /// Closes an image.
    pub vision_end: Option<u32>,
}

impl ModelConfig {
    /// Reads `config.json` in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::from_document(&Document::read(&folder.join("config.json"))?)
    }

    /// Reads the bytes of a `config.json`; `path` is for error messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_document(&Document::parse(path, bytes)?)
    }

    fn from_document(document: &Document) -> Result<Self> {
        let root = document.root()?;
        if root.get("quantization_config").is_some() {
            let what = "quantised weights are not supported, use the bf16, f16 or f32 checkpoint";
            return Err(root.fault("quantization_config", what));
        }
        let (model_type, family) = family_of(&root)?;
        let config = match family {
            Family::Qwen2 | Family::Qwen3 | Family::Llama => text_model(&root, family)?,
            Family::Qwen2Vl | Family::Qwen25Vl => qwen_vl(&root, family)?,
            Family::InternVl if model_type == "internvl" => internvl(&root)?,
            Family::InternVl => internvl_chat(&root)?,
        };
        if let Some(vision) = &config.vision {
            vision.check(&root, &config.decoder)?;
        }
        Ok(config)
    }
}

fn family_of(root: &Object) -> Result<(&'static str, Family)> {
    let model_type = root.string("model_type")?;
    let architectures = root.strings("architectures")?.unwrap_or_default();
    let known = match model_type {
        Some(model_type) => SUPPORTED.iter().find(|(name, ..)| *name == model_type),
        None => SUPPORTED.iter().find(|(_, architecture, _)| architectures.first() == Some(architecture)),
    };
    if let Some(&(name, _, family)) = known {
        return Ok((name, family));
    }
    let supported = SUPPORTED.map(|(name, ..)| name).join(", ");
    Err(match (model_type, architectures.first()) {
        (Some(other), _) => {
            root.fault("model_type", format!("{other:?} is not supported; supported are {supported}"))
        }
        (None, Some(other)) => {
            root.fault("architectures", format!("{other:?} is not supported; supported are {supported}"))
        }
        (None, None) => root.fault("model_type", format!("missing; supported are {supported}")),
    })
}

fn text_model(root: &Object, family: Family) -> Result<ModelConfig> {
    let defaults = Defaults::of(family);
    let tied_head = root.boolean("tie_word_embeddings")?.unwrap_or(false);
    Ok(ModelConfig {
        family,
        decoder: decoder::read(root, defaults, tied_head)?,
        vision: None,
        tokens: ImageTokens::default(),
        dtype: dtype(root)?,
        eos: ids(root, "eos_token_id")?.unwrap_or(defaults.eos.to_vec()),
    })
}

fn qwen_vl(root: &Object, family: Family) -> Result<ModelConfig> {
    let defaults = Defaults::of(family);
    // Published files keep the decoder's keys at the root, newer writers nest them; ties may be said in either.
    let text = root.object("text_config")?.unwrap_or_else(|| root.clone());
    let tied = |object: &Object| object.boolean("tie_word_embeddings").map(|tied| tied.unwrap_or(false));
    let tied_head = tied(root)? || tied(&text)?;
    let vision = root.object("vision_config")?;
    let vision = match family {
        Family::Qwen2Vl => VisionConfig::Qwen2Vl(vision::qwen2_vl(vision.as_ref())?),
        _ => vision::qwen2_5_vl(vision.as_ref())?,
    };
    let id = |key, default| id(root, key).map(|id| id.or(Some(default)));
    Ok(ModelConfig {
        family,
        decoder: decoder::read(&text, defaults, tied_head)?,
        vision: Some(vision),
        tokens: ImageTokens {
            image: id("image_token_id", 151_655)?,
            video: id("video_token_id", 151_656)?,
            vision_start: id("vision_start_token_id", 151_652)?,
            vision_end: id("vision_end_token_id", 151_653)?,
        },
        dtype: dtype(root)?.or(dtype(&text)?),
        eos: match ids(root, "eos_token_id")? {
            Some(eos) => eos,
            None => ids(&text, "eos_token_id")?.unwrap_or(defaults.eos.to_vec()),
        },
    })
}

/// InternVL as transformers writes it.
fn internvl(root: &Object) -> Result<ModelConfig> {
    let text = root.required_object("text_config")?;
    let vision = root.object("vision_config")?;
    let tied_head = root.boolean("tie_word_embeddings")?.unwrap_or(true);
    let image = id(root, "image_token_id")?.unwrap_or(151_667);
    let (decoder, eos) = internvl_decoder(&text, tied_head)?;
    Ok(ModelConfig {
        family: Family::InternVl,
        decoder,
        vision: Some(VisionConfig::InternVit(vision::internvl(root, vision.as_ref())?)),
        tokens: ImageTokens { image: Some(image), ..ImageTokens::default() },
        dtype: dtype(root)?.or(dtype(&text)?),
        eos: ids(root, "eos_token_id")?.unwrap_or(eos),
    })
}

/// InternVL as its authors write it.
fn internvl_chat(root: &Object) -> Result<ModelConfig> {
    let text = root.required_object("llm_config")?;
    let vision = root.required_object("vision_config")?;
    let tied_head = text.boolean("tie_word_embeddings")?.unwrap_or(false);
    let (decoder, eos) = internvl_decoder(&text, tied_head)?;
    Ok(ModelConfig {
        family: Family::InternVl,
        decoder,
        vision: Some(VisionConfig::InternVit(vision::internvl_chat(root, &vision)?)),
        tokens: ImageTokens { image: id(root, "img_context_token_id")?, ..ImageTokens::default() },
        dtype: dtype(root)?.or(dtype(&text)?),
        eos: ids(root, "eos_token_id")?.unwrap_or(eos),
    })
}

/// InternVL's decoder is one of the text families, Qwen2 unless it says otherwise.
fn internvl_decoder(text: &Object, tied_head: bool) -> Result<(DecoderConfig, Vec<u32>)> {
    let says = text.get("model_type").is_some() || text.get("architectures").is_some();
    let (model_type, family) = if says { family_of(text)? } else { ("qwen2", Family::Qwen2) };
    if !matches!(family, Family::Qwen2 | Family::Qwen3 | Family::Llama) {
        return Err(text.fault("model_type", format!("{model_type:?} cannot be the decoder of InternVL")));
    }
    let defaults = Defaults::of(family);
    let eos = ids(text, "eos_token_id")?.unwrap_or(defaults.eos.to_vec());
    Ok((decoder::read(text, defaults, tied_head)?, eos))
}

fn dtype(object: &Object) -> Result<Option<FileDtype>> {
    for key in ["dtype", "torch_dtype"] {
        let Some(name) = object.string(key)? else { continue };
        return match name.strip_prefix("torch.").unwrap_or(name) {
            "bfloat16" => Ok(Some(FileDtype::BF16)),
            "float16" => Ok(Some(FileDtype::F16)),
            "float32" => Ok(Some(FileDtype::F32)),
            "auto" => Ok(None),
            _ => Err(object.fault(key, format!("expected bfloat16, float16 or float32, got {name:?}"))),
        };
    }
    Ok(None)
}

fn id(object: &Object, key: &str) -> Result<Option<u32>> {
    Ok(object.whole(key, 0..=u32::MAX as usize)?.map(|id| id as u32))
}

/// One id or a list of them.
pub(super) fn ids(object: &Object, key: &str) -> Result<Option<Vec<u32>>> {
    let ids = object.wholes(key, 0..=u32::MAX as usize)?;
    Ok(ids.map(|ids| ids.into_iter().map(|id| id as u32).collect()))
}
