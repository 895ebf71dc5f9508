//! A model: its sizes, its parts, the memory it needs, and what stands in the way of running it.

use super::{
    Arguments,
    scan::{NonFinite, non_finite},
};
use crate::cli::{
    Global,
    memory::{Memory, Together, free_memory},
    text::{bytes, count, row},
};
use anyhow::{Context, Result, bail};
use pellucid::{
    Error,
    backend::cpu::Cpu,
    engine::PREFILL_CHUNK,
    format::{
        Checkpoint, ModelConfig, ModelFolder, TensorView,
        config::{DecoderConfig, Family, VisionConfig},
    },
    model::{MemoryPlan, Model, Survey, Tenant, pages_for},
};
use serde::Serialize;
use std::{collections::BTreeSet, fmt};

#[derive(Debug, Serialize)]
struct Report {
    kind: &'static str,
    folder: String,
    family: &'static str,
    decoder: Decoder,
    image_tower: Option<Tower>,
    parameters: u64,
    bytes: u64,
    shards: usize,
    parts: Vec<Share>,
    dtypes: Vec<Share>,
    memory: Memory,
    /// With the reasoner beside it, if there is to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    together: Option<Together>,
    files: Vec<Companion>,
    /// Missing or misshapen tensors.
    faults: Vec<String>,
    surplus: Vec<String>,
    /// Absent where the weights were not read.
    non_finite: Option<Vec<NonFinite>>,
}

#[derive(Debug, Serialize)]
struct Decoder {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    tied_head: bool,
    max_positions: usize,
}

#[derive(Debug, Serialize)]
struct Tower {
    layers: usize,
    hidden: usize,
    heads: usize,
    patch: usize,
    patches_per_token: usize,
    /// The side of a tile, where pictures are cut into tiles.
    tile: Option<usize>,
}

/// The tensors that have something in common.
#[derive(Debug, Serialize)]
struct Share {
    name: String,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

/// A file beside the weights.
#[derive(Debug, Serialize)]
struct Companion {
    name: &'static str,
    /// `present`, `absent` or what is wrong with it.
    state: String,
}

pub(super) fn run(folder: &ModelFolder, arguments: &Arguments, global: &Global) -> Result<()> {
    let config = folder.config()?;
    let checkpoint = folder.checkpoint()?;
    let backend = Cpu::new(global.threads)?;
    // What cannot be surveyed any further is one more fault.
    let survey = Model::survey(&config, &checkpoint, &backend)
        .unwrap_or_else(|error| Survey { faults: vec![error.to_string()], surplus: Vec::new() });
    let views: Vec<&TensorView> = checkpoint.views().collect();
    let total = Share::of("", checkpoint.views());
    let context = arguments.context;
    let (rows, activation) = (PREFILL_CHUNK.min(context), global.device.activation());
    let plan = MemoryPlan::new(&config.decoder, &checkpoint, activation, context, rows);
    let report = Report {
        kind: "model",
        folder: folder.path().display().to_string(),
        family: family_name(config.family),
        decoder: Decoder::of(&config.decoder),
        image_tower: config.vision.as_ref().map(Tower::of),
        parameters: total.parameters,
        bytes: total.bytes,
        shards: checkpoint.views().map(TensorView::file).collect::<BTreeSet<_>>().len(),
        parts: shares(&checkpoint, |view| part_of(view.name()).to_owned()),
        dtypes: shares(&checkpoint, |view| format!("{:?}", view.dtype())),
        memory: Memory::of(plan, arguments.context),
        together: arguments
            .reasoner
            .as_ref()
            .map(|other| together(plan, other, arguments, global))
            .transpose()?,
        files: companions(folder, &config),
        faults: survey.faults,
        surplus: survey.surplus,
        non_finite: arguments.scan.applies_to(total.bytes).then(|| non_finite(&views)).transpose()?,
    };
    global.print(&report)?;
    report.verdict()
}

/// The memory of this model, which takes `plan`, and of one beside it.
fn together(plan: MemoryPlan, other: &str, arguments: &Arguments, global: &Global) -> Result<Together> {
    let folder = ModelFolder::find(other)?;
    let (decoder, context) = (folder.config()?.decoder, arguments.context);
    let (rows, activation) = (PREFILL_CHUNK.min(context), global.device.activation());
    let beside = MemoryPlan::new(&decoder, &folder.checkpoint()?, activation, context, rows);
    let least = pages_for(context);
    let tenant = |name, plan| Tenant { name, plan, least, most: least * arguments.sequences.max(1) };
    let free = match arguments.memory {
        Some(gibibytes) if gibibytes >= 0.0 => (gibibytes * (1u64 << 30) as f64) as u64,
        Some(gibibytes) => bail!("--memory {gibibytes}: expected a number of gibibytes from 0 up"),
        None => free_memory(&*global.device.open(global.threads)?).context("say it by --memory")?,
    };
    Together::plan(&[tenant("captioner", plan), tenant("reasoner", beside)], free)
}

impl Report {
    /// The first thing that keeps the model from being used.
    fn verdict(&self) -> Result<()> {
        let non_finite = self.non_finite.iter().flatten();
        let non_finite = non_finite.map(|t| format!("tensor {} has values that are not finite", t.tensor));
        let surplus = self.surplus.iter().map(|name| format!("tensor {name} has no place in this model"));
        let wrong: Vec<String> = self.faults.iter().cloned().chain(surplus).chain(non_finite).collect();
        match wrong.as_slice() {
            [] => Ok(()),
            [only] => bail!("{}: cannot be used: {only}", self.folder),
            [first, rest @ ..] => bail!("{}: cannot be used: {first} (and {} more)", self.folder, rest.len()),
        }
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Qwen2 => "Qwen2 or Qwen2.5, text",
        Family::Qwen3 => "Qwen3, text",
        Family::Llama => "Llama, text",
        Family::Qwen2Vl => "Qwen2-VL",
        Family::Qwen25Vl => "Qwen2.5-VL",
        Family::InternVl => "InternVL",
    }
}

impl Decoder {
    fn of(config: &DecoderConfig) -> Self {
        let DecoderConfig { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, .. } = *config;
        let DecoderConfig { tied_head, max_positions, .. } = *config;
        Decoder { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, tied_head, max_positions }
    }
}

impl Tower {
    fn of(config: &VisionConfig) -> Self {
        match config {
            VisionConfig::Qwen2Vl(tower) | VisionConfig::Qwen25Vl { tower, .. } => Tower {
                layers: tower.layers,
                hidden: tower.hidden,
                heads: tower.heads,
                patch: tower.patch,
                patches_per_token: tower.merge * tower.merge,
                tile: None,
            },
            VisionConfig::InternVit(tower) => Tower {
                layers: tower.layers_used,
                hidden: tower.hidden,
                heads: tower.heads,
                patch: tower.patch,
                patches_per_token: tower.shuffle * tower.shuffle,
                tile: Some(tower.image),
            },
        }
    }
}

/// The part of the model a tensor belongs to, by the names releases use.
pub(super) fn part_of(name: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    match name {
        _ if has(&["mlp1.", "multi_modal_projector.", "visual.merger."]) => "projector",
        _ if has(&["visual.", "vision_model.", "vision_tower."]) => "image tower",
        _ if has(&["lm_head."]) => "head",
        _ if has(&["embed_tokens."]) => "embedding",
        _ if has(&["layers."]) => "blocks",
        _ if name.ends_with("norm.weight") => "final norm",
        _ => "other",
    }
}

impl Share {
    fn of<'a>(name: &str, views: impl Iterator<Item = &'a TensorView>) -> Self {
        let empty = Share { name: name.to_owned(), tensors: 0, parameters: 0, bytes: 0 };
        views.fold(empty, |mut share, view| {
            share.add(view);
            share
        })
    }

    fn add(&mut self, view: &TensorView) {
        self.tensors += 1;
        self.parameters += view.elements() as u64;
        self.bytes += view.bytes().len() as u64;
    }
}

/// The checkpoint divided by `key`, the largest share first.
fn shares(checkpoint: &Checkpoint, key: impl Fn(&TensorView) -> String) -> Vec<Share> {
    let keys: BTreeSet<String> = checkpoint.views().map(&key).collect();
    let share = |name: &String| Share::of(name, checkpoint.views().filter(|view| key(view) == *name));
    let mut shares: Vec<Share> = keys.iter().map(share).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

/// The files beside the weights, and what it means that one is absent.
fn companions(folder: &ModelFolder, config: &ModelConfig) -> Vec<Companion> {
    let state = |found: Result<bool, Error>, lack: &str| match found {
        Ok(true) => "present".into(),
        Ok(false) => format!("absent: {lack}"),
        Err(error) => error.to_string(),
    };
    let is_there = |name: &str| folder.path().join(name).exists();
    let parts = is_there("vocab.json") && is_there("merges.txt");
    let tokenizer = is_there("tokenizer.json") || parts;
    let mut files = vec![
        ("tokenizer", state(Ok(tokenizer), "prompts cannot be read")),
        (
            "tokenizer_config.json",
            state(
                folder.tokenizer_config().map(|_| is_there("tokenizer_config.json")),
                "no special tokens are named",
            ),
        ),
        (
            "chat template",
            state(
                folder.chat_template().map(|template| template.is_some()),
                "messages cannot be rendered, plain prompts can",
            ),
        ),
        (
            "generation_config.json",
            state(
                folder.generation().map(|_| is_there("generation_config.json")),
                "texts end as config.json says",
            ),
        ),
    ];
    if config.vision.is_some() {
        let there = is_there("preprocessor_config.json") || is_there("processor_config.json");
        let found = folder.image_processor(config).map(|_| there);
        files.push(("image processor", state(found, "the family's defaults are used")));
    }
    files.into_iter().map(|(name, state)| Companion { name, state }).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, "model", &[&self.folder])?;
        row(f, "family", &[self.family])?;
        row(f, "decoder", &[self.decoder.to_string()])?;
        row(f, "tower", &self.image_tower.iter().map(Tower::to_string).collect::<Vec<_>>())?;
        let shards = if self.shards == 1 { "1 file".into() } else { format!("{} files", self.shards) };
        row(
            f,
            "size",
            &[format!("{} parameters, {} in {shards}", count(self.parameters), bytes(self.bytes))],
        )?;
        for (name, shares) in [("parts", &self.parts), ("types", &self.dtypes)] {
            row(f, name, &shares.iter().map(Share::to_string).collect::<Vec<_>>())?;
        }
        row(f, "memory", &self.memory.lines(self.decoder.max_positions))?;
        row(f, "together", &self.together.iter().flat_map(Together::lines).collect::<Vec<_>>())?;
        let files = self.files.iter().map(|file| format!("{:<23} {}", file.name, file.state));
        row(f, "files", &files.collect::<Vec<_>>())?;
        row(f, "faults", &self.faults)?;
        row(f, "surplus", &self.surplus)?;
        match &self.non_finite {
            None => row(f, "not finite", &["not looked for; --scan always reads every weight"]),
            Some(found) if found.is_empty() => row(f, "not finite", &["none: every weight was read"]),
            Some(found) => {
                let lines =
                    found.iter().map(|t| format!("{}: {} NaN, {} infinite", t.tensor, t.nan, t.infinite));
                row(f, "not finite", &lines.collect::<Vec<_>>())
            }
        }
    }
}

impl fmt::Display for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decoder { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, tied_head, .. } = self;
        let head = if *tied_head { "head tied to the embedding" } else { "head of its own" };
        write!(
            f,
            "{layers} blocks of width {hidden}, {heads} query and {kv_heads} key/value heads of {head_dim}, "
        )?;
        write!(f, "MLP of {ffn}, vocabulary of {vocab}, {head}")
    }
}

impl fmt::Display for Tower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tower { layers, hidden, heads, patch, patches_per_token, tile } = self;
        write!(f, "{layers} blocks of width {hidden}, {heads} heads, patches of {patch} pixels, ")?;
        write!(f, "{patches_per_token} of them a token")?;
        tile.map_or(Ok(()), |tile| write!(f, ", tiles of {tile} pixels"))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Share { name, tensors, parameters, bytes: size } = self;
        write!(
            f,
            "{name:<12} {:>9} parameters, {:>11} in {tensors} tensors",
            count(*parameters),
            bytes(*size)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_every_naming_style_find_their_part() {
        for (name, part) in [
            ("model.embed_tokens.weight", "embedding"),
            ("model.language_model.layers.3.mlp.up_proj.weight", "blocks"),
            ("language_model.model.norm.weight", "final norm"),
            ("language_model.lm_head.weight", "head"),
            ("visual.blocks.0.attn.qkv.weight", "image tower"),
            ("model.visual.merger.mlp.0.weight", "projector"),
            ("vision_model.encoder.layers.0.norm1.weight", "image tower"),
            ("model.vision_tower.encoder.layer.0.attention.q_proj.weight", "image tower"),
            ("mlp1.1.weight", "projector"),
            ("model.multi_modal_projector.linear_1.weight", "projector"),
            ("rotary.inv_freq", "other"),
        ] {
            assert_eq!(part_of(name), part, "{name}");
        }
    }
}
