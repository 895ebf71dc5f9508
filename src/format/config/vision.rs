//! The image tower's part of a configuration.

use super::decoder::{DEEPEST, DecoderConfig, WIDEST, refuse_activation};
use crate::error::Result;
use crate::format::json::{Object, brief};

/// An image tower and the way its features reach the decoder.
#[derive(Debug, Clone, PartialEq)]
pub enum VisionConfig {
    /// Layer norms, a plain quick-GELU MLP, attention over the whole image.
    Qwen2Vl(QwenTower),
    /// RMS norms, a gated SiLU MLP, attention in windows except in a few blocks.
    Qwen25Vl {
        /// The sizes.
        tower: QwenTower,
        /// The side of a window, in pixels.
        window: usize,
        /// The blocks that attend over the whole image.
        full_attention_blocks: Vec<usize>,
    },
    /// InternViT: tiles of one size, absolute positions, pixel shuffle.
    InternVit(InternVit),
}

/// The sizes of a Qwen tower. All of its projections have biases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QwenTower {
    /// The width of the residual stream.
    pub hidden: usize,
    /// How many blocks.
    pub layers: usize,
    /// Attention heads; queries, keys and values have as many.
    pub heads: usize,
    /// The width of the MLP.
    pub ffn: usize,
    /// The width after the merger: the decoder's hidden size.
    pub out_hidden: usize,
    /// Colour channels.
    pub channels: usize,
    /// The side of a patch, in pixels.
    pub patch: usize,
    /// Frames per patch; an image is repeated to fill it.
    pub temporal_patch: usize,
    /// The side of the square of patches that become one token.
    pub merge: usize,
}

/// Which norm a block uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance, weight and bias.
    Layer,
    /// Root of the mean square, weight only.
    Rms,
}

/// InternViT and its projector. Every block scales its two branches by a learnt vector.
#[derive(Debug, Clone, PartialEq)]
pub struct InternVit {
    /// The width of the residual stream.
    pub hidden: usize,
    /// How many blocks the file describes.
    pub layers: usize,
    /// How many of them run before the features are taken.
    pub layers_used: usize,
    /// Attention heads.
    pub heads: usize,
    /// The width of the GELU MLP.
    pub ffn: usize,
    /// Colour channels.
    pub channels: usize,
    /// The side of a tile, in pixels.
    pub image: usize,
    /// The side of a patch, in pixels.
    pub patch: usize,
    /// The blocks' norms.
    pub norm: NormKind,
    /// Added to the variance in the blocks' norms.
    pub norm_eps: f64,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// RMS norms over the whole width of queries and keys.
    pub qk_norm: bool,
    /// The side of the square of patches that become one token (downsample ratio 0.5 is 2).
    pub shuffle: usize,
    /// Whether the file is the authors' own, with the names and the code they use.
    pub original: bool,
    /// How pictures are cut into tiles, where an original file asks for it.
    pub tiling: Option<Tiling>,
}

/// How a picture is cut into tiles, from InternVL's original `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// The fewest tiles.
    pub min: usize,
    /// The most tiles.
    pub max: usize,
    /// Whether a picture of several tiles is followed by a small copy of the whole.
    pub thumbnail: bool,
}

impl InternVit {
    /// How many tokens a tile becomes.
    pub fn tokens_per_tile(&self) -> usize {
        let side = self.image / self.patch / self.shuffle;
        side * side
    }
}

impl VisionConfig {
    /// What must hold between a tower's sizes, and between tower and decoder.
    pub(super) fn check(&self, root: &Object, decoder: &DecoderConfig) -> Result<()> {
        let (hidden, heads) = match self {
            Self::Qwen2Vl(tower) | Self::Qwen25Vl { tower, .. } => (tower.hidden, tower.heads),
            Self::InternVit(tower) => (tower.hidden, tower.heads),
        };
        let fault = |what: String| Err(root.fault("vision_config", what));
        if !hidden.is_multiple_of(heads) {
            return fault(format!("{heads} heads do not divide the width {hidden}"));
        }
        match self {
            Self::Qwen2Vl(tower) | Self::Qwen25Vl { tower, .. } => {
                if !(hidden / heads).is_multiple_of(4) {
                    return fault(format!(
                        "head width {} is no multiple of 4, as positions in two axes need",
                        hidden / heads
                    ));
                }
                if tower.out_hidden != decoder.hidden {
                    let (out, into) = (tower.out_hidden, decoder.hidden);
                    return fault(format!(
                        "features of width {out} do not fit the decoder's hidden_size {into}"
                    ));
                }
            }
            Self::InternVit(tower) => {
                let step = tower.patch * tower.shuffle;
                if !tower.image.is_multiple_of(step) {
                    return fault(format!(
                        "image size {} is no multiple of patch times shuffle, {step}",
                        tower.image
                    ));
                }
            }
        }
        if let Self::Qwen25Vl { tower, window, .. } = self
            && *window < tower.patch * tower.merge
        {
            return fault(format!(
                "window_size {window} is smaller than one token of {} pixels",
                tower.patch * tower.merge
            ));
        }
        Ok(())
    }
}

/// A width under `key` of an object that may be missing altogether.
fn width(object: Option<&Object>, key: &str, default: usize) -> Result<usize> {
    let found = object.map(|object| object.whole(key, 1..=WIDEST)).transpose()?.flatten();
    Ok(found.unwrap_or(default))
}

fn depth(object: Option<&Object>, keys: [&str; 2], default: usize) -> Result<usize> {
    let Some(object) = object else { return Ok(default) };
    for key in keys {
        if let Some(depth) = object.whole(key, 1..=DEEPEST)? {
            return Ok(depth);
        }
    }
    Ok(default)
}

/// A side in pixels: a number, or height and width that are equal.
fn side(object: Option<&Object>, key: &str, default: usize) -> Result<usize> {
    let Some(object) = object else { return Ok(default) };
    match object.wholes(key, 1..=WIDEST)?.as_deref() {
        None => Ok(default),
        Some(&[side]) => Ok(side),
        Some(&[height, width]) if height == width => Ok(height),
        Some(other) => Err(object.fault(key, format!("expected one side or two equal ones, got {other:?}"))),
    }
}

/// What both Qwen towers share; the widths differ in name and meaning.
fn qwen_tower(vision: Option<&Object>, hidden: usize, ffn: usize, out_hidden: usize) -> Result<QwenTower> {
    // `in_chans` in published files is read by nobody; the reference builds from `in_channels`.
    Ok(QwenTower {
        hidden,
        layers: depth(vision, ["depth", "num_hidden_layers"], 32)?,
        heads: width(vision, "num_heads", width(vision, "num_attention_heads", 16)?)?,
        ffn,
        out_hidden,
        channels: width(vision, "in_channels", 3)?,
        patch: side(vision, "patch_size", 14)?,
        temporal_patch: side(vision, "temporal_patch_size", 2)?,
        merge: width(vision, "spatial_merge_size", 2)?,
    })
}

pub(super) fn qwen2_vl(vision: Option<&Object>) -> Result<QwenTower> {
    if let Some(vision) = vision {
        refuse_activation(vision, "hidden_act", "quick_gelu")?;
    }
    let hidden = width(vision, "embed_dim", 1280)?;
    let ratio = width(vision, "mlp_ratio", 4)?;
    qwen_tower(vision, hidden, hidden * ratio, width(vision, "hidden_size", 3584)?)
}

pub(super) fn qwen2_5_vl(vision: Option<&Object>) -> Result<VisionConfig> {
    let mut full_attention_blocks = None;
    if let Some(vision) = vision {
        refuse_activation(vision, "hidden_act", "silu")?;
        full_attention_blocks = vision.wholes("fullatt_block_indexes", 0..=DEEPEST)?;
    }
    let (hidden, ffn) = (width(vision, "hidden_size", 3584)?, width(vision, "intermediate_size", 3420)?);
    Ok(VisionConfig::Qwen25Vl {
        tower: qwen_tower(vision, hidden, ffn, width(vision, "out_hidden_size", 3584)?)?,
        window: width(vision, "window_size", 112)?,
        full_attention_blocks: full_attention_blocks.unwrap_or(vec![7, 15, 23, 31]),
    })
}

/// InternViT as transformers writes it.
pub(super) fn internvl(root: &Object, vision: Option<&Object>) -> Result<InternVit> {
    refuse_activation(root, "projector_hidden_act", "gelu")?;
    refuse_activation(root, "vision_feature_select_strategy", "default")?;
    let layers = depth(vision, ["num_hidden_layers", "num_hidden_layers"], 24)?;
    let flag = |key, default| match vision {
        Some(vision) => vision.boolean(key).map(|flag| flag.unwrap_or(default)),
        None => Ok(default),
    };
    for (key, built_for) in
        [("use_absolute_position_embeddings", true), ("use_mask_token", false), ("use_mean_pooling", true)]
    {
        if flag(key, built_for)? != built_for {
            return Err(root.fault(&format!("vision_config.{key}"), format!("only {built_for} is supported")));
        }
    }
    Ok(InternVit {
        hidden: width(vision, "hidden_size", 1024)?,
        layers,
        layers_used: layers_used(root, "vision_feature_layer", layers)?,
        heads: width(vision, "num_attention_heads", 16)?,
        ffn: width(vision, "intermediate_size", 4096)?,
        channels: width(vision, "num_channels", 3)?,
        image: side(vision, "image_size", 448)?,
        patch: side(vision, "patch_size", 14)?,
        norm: norm(vision, NormKind::Layer)?,
        norm_eps: norm_eps(vision)?,
        qkv_bias: flag("attention_bias", false)?,
        qk_norm: flag("use_qk_norm", false)?,
        shuffle: shuffle(root)?,
        original: false,
        tiling: None,
    })
}

/// InternViT as its authors write it.
pub(super) fn internvl_chat(root: &Object, vision: &Object) -> Result<InternVit> {
    // Version 1 of the shuffle transposes the grid; no checkpoint this crate supports was trained with it.
    match root.string("ps_version")? {
        Some("v2") => {}
        other => {
            let what = format!("expected \"v2\", got {:?}, which is not supported", other.unwrap_or("v1"));
            return Err(root.fault("ps_version", what));
        }
    }
    let some = Some(vision);
    let layers = depth(some, ["num_hidden_layers", "num_hidden_layers"], 48)?;
    let image = side(some, "image_size", 224)?;
    let count = |key, default| root.whole(key, 1..=WIDEST).map(|count| count.unwrap_or(default));
    let tiling = Tiling {
        min: count("min_dynamic_patch", 1)?,
        max: count("max_dynamic_patch", 6)?,
        thumbnail: root.boolean("use_thumbnail")?.unwrap_or(false),
    };
    if tiling.min > tiling.max {
        let what = format!("{} is more than the {} of max_dynamic_patch", tiling.min, tiling.max);
        return Err(root.fault("min_dynamic_patch", what));
    }
    Ok(InternVit {
        hidden: width(some, "hidden_size", 3200)?,
        layers,
        layers_used: layers_used(root, "select_layer", layers)?,
        heads: width(some, "num_attention_heads", 25)?,
        ffn: width(some, "intermediate_size", 12_800)?,
        channels: width(some, "num_channels", 3)?,
        image: side(Some(root), "force_image_size", image)?,
        patch: side(some, "patch_size", 14)?,
        norm: norm(some, NormKind::Rms)?,
        norm_eps: norm_eps(some)?,
        qkv_bias: vision.boolean("qkv_bias")?.unwrap_or(false),
        qk_norm: vision.boolean("qk_normalization")?.unwrap_or(true),
        shuffle: shuffle(root)?,
        original: true,
        tiling: root.boolean("dynamic_image_size")?.unwrap_or(false).then_some(tiling),
    })
}

fn norm(vision: Option<&Object>, default: NormKind) -> Result<NormKind> {
    let Some(vision) = vision else { return Ok(default) };
    refuse_activation(vision, "hidden_act", "gelu")?;
    match vision.string("norm_type")? {
        None => Ok(default),
        Some("layer_norm") => Ok(NormKind::Layer),
        Some("rms_norm") => Ok(NormKind::Rms),
        Some(other) => {
            Err(vision.fault("norm_type", format!("expected layer_norm or rms_norm, got {other:?}")))
        }
    }
}

fn norm_eps(vision: Option<&Object>) -> Result<f64> {
    let eps = vision.map(|vision| vision.positive("layer_norm_eps")).transpose()?.flatten();
    Ok(eps.unwrap_or(1e-6))
}

fn shuffle(root: &Object) -> Result<usize> {
    let ratio = root.positive("downsample_ratio")?.unwrap_or(0.5);
    let side = (1.0 / ratio).round();
    if (1.0..=64.0).contains(&side) && (ratio * side - 1.0).abs() < 1e-6 {
        return Ok(side as usize);
    }
    Err(root.fault("downsample_ratio", format!("expected one over a whole number, such as 0.5, got {ratio}")))
}

/// Which hidden state is taken, counted from the embeddings, or from the end if negative: how many blocks run.
fn layers_used(root: &Object, key: &str, layers: usize) -> Result<usize> {
    let Some(value) = root.get(key) else { return Ok(layers) };
    let used = value.as_i64().and_then(|index| match index {
        0.. => usize::try_from(index).ok().filter(|&index| index <= layers),
        _ => (layers + 1).checked_sub(usize::try_from(index.unsigned_abs()).ok()?),
    });
    used.ok_or_else(|| {
        root.fault(key, format!("expected one layer from -{} to {layers}, got {}", layers + 1, brief(value)))
    })
}
