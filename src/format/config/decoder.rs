//! The language model's part of a configuration.

use super::Family;
use crate::error::Result;
use crate::format::json::Object;

/// One decoder: the sizes of its axes and the toggles of its block.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `C`, the width of the residual stream.
    pub hidden: usize,
    /// `L`, how many blocks.
    pub layers: usize,
    /// `H`, query heads.
    pub heads: usize,
    /// `G`, key and value heads; divides `H`.
    pub kv_heads: usize,
    /// `D`, the width of a head; even. `H * D` need not be `C`.
    pub head_dim: usize,
    /// `F`, the width of the gated MLP.
    pub ffn: usize,
    /// `V`, the rows of the embedding table (at least the tokenizer's ids).
    pub vocab: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_eps: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub attention_out_bias: bool,
    /// Biases on the MLP's three projections.
    pub mlp_bias: bool,
    /// RMS norms over each head of queries and keys.
    pub qk_norm: bool,
    /// The head is the embedding table. A checkpoint that holds a head of its own has the last word.
    pub tied_head: bool,
    /// The longest sequence the model was made for.
    pub max_positions: usize,
}

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies.
    pub theta: f64,
    /// What is done to the frequencies beyond that.
    pub scaling: RopeScaling,
    /// For multimodal positions: how many of the `D / 2` frequencies follow time, height and width.
    pub mrope_sections: Option<[usize; 3]>,
}

/// A change of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A larger base beyond `max_positions`, and no change within.
    Dynamic {
        /// How strongly the base grows.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// The divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context length before it was stretched.
        original_max_positions: usize,
    },
}

/// What the reference's configuration class of a family takes for keys that a file leaves out.
pub(super) struct Defaults {
    family: Family,
    vocab: usize,
    hidden: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
    /// None: as many as query heads.
    kv_heads: Option<usize>,
    /// None: hidden / heads.
    head_dim: Option<usize>,
    max_positions: usize,
    rms_eps: f64,
    theta: f64,
    mrope_sections: Option<[usize; 3]>,
    pub(super) eos: &'static [u32],
}

const QWEN2: Defaults = Defaults {
    family: Family::Qwen2,
    vocab: 151_936,
    hidden: 4096,
    ffn: 22_016,
    layers: 32,
    heads: 32,
    kv_heads: Some(32),
    head_dim: None,
    max_positions: 32_768,
    rms_eps: 1e-6,
    theta: 10_000.0,
    mrope_sections: None,
    eos: &[],
};
const QWEN3: Defaults = Defaults { family: Family::Qwen3, head_dim: Some(128), ..QWEN2 };
const LLAMA: Defaults = Defaults {
    family: Family::Llama,
    vocab: 32_000,
    ffn: 11_008,
    kv_heads: None,
    max_positions: 2048,
    eos: &[2],
    ..QWEN2
};
const QWEN2_VL: Defaults = Defaults {
    family: Family::Qwen2Vl,
    vocab: 152_064,
    hidden: 8192,
    ffn: 29_568,
    layers: 80,
    heads: 64,
    kv_heads: Some(8),
    rms_eps: 1e-5,
    theta: 1_000_000.0,
    mrope_sections: Some([16, 24, 24]),
    eos: &[151_645],
    ..QWEN2
};

impl Defaults {
    /// The defaults of a family's decoder (InternVL's is one of the text families).
    pub(super) fn of(family: Family) -> &'static Self {
        match family {
            Family::Qwen2 | Family::InternVl => &QWEN2,
            Family::Qwen3 => &QWEN3,
            Family::Llama => &LLAMA,
            Family::Qwen2Vl | Family::Qwen25Vl => &QWEN2_VL,
        }
    }
}

/// Bounds beyond which a value is a mistake: they keep every product of sizes far from overflow.
pub(super) const WIDEST: usize = 1 << 20;
pub(super) const DEEPEST: usize = 1 << 12;
const LARGEST_VOCAB: usize = 1 << 28;
/// Positions are i32.
const LONGEST_CONTEXT: usize = i32::MAX as usize;

pub(super) fn read(text: &Object, defaults: &Defaults, tied_head: bool) -> Result<DecoderConfig> {
    let width = |key, default| text.whole(key, 1..=WIDEST).map(|width| width.unwrap_or(default));
    let hidden = width("hidden_size", defaults.hidden)?;
    let heads = width("num_attention_heads", defaults.heads)?;
    // An explicit null asks for as many as query heads; a missing key asks for the class's default.
    let kv_default =
        if text.mentions("num_key_value_heads") { heads } else { defaults.kv_heads.unwrap_or(heads) };
    let kv_heads = width("num_key_value_heads", kv_default)?;
    if !heads.is_multiple_of(kv_heads) {
        let what = format!("{kv_heads} does not divide the {heads} of num_attention_heads");
        return Err(text.fault("num_key_value_heads", what));
    }
    let head_dim = match (text.whole("head_dim", 1..=WIDEST)?, defaults.head_dim) {
        (Some(head_dim), _) => head_dim,
        (None, Some(head_dim)) if !text.mentions("head_dim") => head_dim,
        _ if hidden.is_multiple_of(heads) => hidden / heads,
        _ => {
            let what =
                format!("{heads} does not divide the {hidden} of hidden_size, and head_dim is not given");
            return Err(text.fault("num_attention_heads", what));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(text.fault("head_dim", format!("{head_dim} is odd, rotary positions need pairs")));
    }
    let layers = text.whole("num_hidden_layers", 1..=DEEPEST)?.unwrap_or(defaults.layers);
    let max_positions =
        text.whole("max_position_embeddings", 1..=LONGEST_CONTEXT)?.unwrap_or(defaults.max_positions);
    refuse_sliding_window(text, layers)?;
    refuse_activation(text, "hidden_act", "silu")?;

    // Qwen2 has its biases built in; Llama and Qwen3 write one key for all four projections.
    let attention_bias = match defaults.family {
        Family::Llama | Family::Qwen3 => text.boolean("attention_bias")?.unwrap_or(false),
        _ => false,
    };
    let built_in_bias = !matches!(defaults.family, Family::Llama | Family::Qwen3);
    Ok(DecoderConfig {
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn: width("intermediate_size", defaults.ffn)?,
        vocab: text.whole("vocab_size", 1..=LARGEST_VOCAB)?.unwrap_or(defaults.vocab),
        rms_eps: text.positive("rms_norm_eps")?.unwrap_or(defaults.rms_eps),
        rope: rope(text, defaults, head_dim, max_positions)?,
        qkv_bias: built_in_bias || attention_bias,
        attention_out_bias: attention_bias,
        mlp_bias: defaults.family == Family::Llama && text.boolean("mlp_bias")?.unwrap_or(false),
        qk_norm: defaults.family == Family::Qwen3,
        tied_head,
        max_positions,
    })
}

fn rope(text: &Object, defaults: &Defaults, head_dim: usize, max_positions: usize) -> Result<RopeConfig> {
    let (key, parameters) = match text.object("rope_scaling")? {
        Some(parameters) => ("rope_scaling", Some(parameters)),
        None => ("rope_parameters", text.object("rope_parameters")?),
    };
    let inner = parameters.as_ref().unwrap_or(text);
    if inner.get("full_attention").is_some() {
        return Err(text.fault(key, "rotary parameters per type of layer are not supported"));
    }
    for object in [text, inner] {
        if object.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(object.fault("partial_rotary_factor", "turning a part of each head is not supported"));
        }
    }
    let theta = match inner.positive("rope_theta")? {
        Some(theta) => theta,
        None => text.positive("rope_theta")?.unwrap_or(defaults.theta),
    };
    let (kind_key, kind) = match inner.string("rope_type")? {
        Some(kind) => ("rope_type", kind),
        None if parameters.is_some() => ("type", inner.string("type")?.unwrap_or("default")),
        None => ("type", "default"),
    };
    let needed = |key: &str| {
        inner.positive(key)?.ok_or_else(|| inner.fault(key, format!("missing, {kind} rope needs it")))
    };
    let multimodal = defaults.mrope_sections.is_some();
    let scaling = match kind {
        "default" => RopeScaling::None,
        "mrope" if multimodal => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: needed("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: needed("factor")? },
        "llama3" => {
            let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if low >= high {
                let what = format!("{low} must be below the {high} of high_freq_factor");
                return Err(inner.fault("low_freq_factor", what));
            }
            let original = inner.whole("original_max_position_embeddings", 1..=LONGEST_CONTEXT)?;
            RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original.unwrap_or(max_positions),
            }
        }
        _ => {
            let what =
                format!("{kind:?} is not supported; supported are default, linear, dynamic, llama3, mrope");
            return Err(inner.fault(kind_key, what));
        }
    };
    let mrope_sections = match defaults.mrope_sections {
        Some(default) => Some(mrope_sections(inner, default, head_dim)?),
        None => None,
    };
    Ok(RopeConfig { theta, scaling, mrope_sections })
}

fn mrope_sections(inner: &Object, default: [usize; 3], head_dim: usize) -> Result<[usize; 3]> {
    if inner.boolean("mrope_interleaved")?.unwrap_or(false) {
        return Err(inner.fault("mrope_interleaved", "interleaved sections are not supported"));
    }
    let given = inner.wholes("mrope_section", 0..=WIDEST)?;
    let sections = match given.as_deref() {
        None => default,
        Some(&[time, height, width]) => [time, height, width],
        Some(other) => {
            return Err(inner.fault("mrope_section", format!("expected 3 numbers, got {}", other.len())));
        }
    };
    if sections.iter().sum::<usize>() * 2 != head_dim {
        let what = format!("{sections:?} must sum to half of the head width {head_dim}");
        return Err(inner.fault("mrope_section", what));
    }
    Ok(sections)
}

fn refuse_sliding_window(text: &Object, layers: usize) -> Result<()> {
    if let Some(types) = text.strings("layer_types")? {
        return match types.iter().find(|kind| **kind != "full_attention") {
            Some(kind) => {
                Err(text.fault("layer_types", format!("{kind:?} is not supported, only full_attention")))
            }
            None => Ok(()),
        };
    }
    let asked = text.boolean("use_sliding_window")?.unwrap_or(false);
    // Layers below max_window_layers attend in full; without that key, take it that none do.
    let first = text.whole("max_window_layers", 0..=usize::MAX)?.unwrap_or(0);
    let bounded = text.get("sliding_window").is_some() || !text.mentions("sliding_window");
    if asked && bounded && first < layers {
        return Err(text.fault("use_sliding_window", "sliding windows are not supported, set it to false"));
    }
    Ok(())
}

/// Refuses an activation other than the one the family is built with.
pub(super) fn refuse_activation(object: &Object, key: &str, only: &str) -> Result<()> {
    match object.string(key)? {
        Some(name) if name != only => {
            Err(object.fault(key, format!("expected {only:?}, got {name:?}, which is not supported")))
        }
        _ => Ok(()),
    }
}
