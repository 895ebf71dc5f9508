//! `adapter_config.json`: which modules a LoRA adapter touches, and how strongly.
//!
//! Module names are matched as PEFT matches them, by the regular expressions of the Python it is written
//! in. Every variant that changes the mathematics is refused by name: an adapter read as plain LoRA that is
//! not would be silently wrong.

use crate::error::{Error, Result};
use crate::format::json::{Document, Object, brief};
use fancy_regex::Regex;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a LoRA adapter is.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The modules it touches.
    pub targets: ModuleSet,
    /// The modules it leaves alone though `targets` has them.
    pub excluded: Option<ModuleSet>,
    /// The numbers of the layers it touches; all where `None`.
    pub layers: Option<Vec<usize>>,
    /// `R`, unless a pattern says otherwise.
    pub rank: usize,
    /// The numerator of the scale, unless a pattern says otherwise.
    pub alpha: f64,
    /// Ranks of modules that match; the first match counts.
    pub rank_pattern: Vec<(Pattern, usize)>,
    /// Alphas of modules that match; the first match counts.
    pub alpha_pattern: Vec<(Pattern, f64)>,
    /// Whether the scale is alpha / sqrt(rank) rather than alpha / rank.
    pub rank_stabilised: bool,
    /// The share of inputs dropped in training.
    pub dropout: f64,
    /// The model it was made for.
    pub base_model: Option<String>,
    /// The kind of task it was made for, such as `CAUSAL_LM`.
    pub task: Option<String>,
}

/// A set of modules by name.
#[derive(Debug, Clone, PartialEq)]
pub enum ModuleSet {
    /// Modules of these names, or whose path ends in one of them.
    Named(Vec<String>),
    /// Modules whose whole path matches.
    Matching(Pattern),
    /// Every linear module but the head.
    AllLinear,
}

/// A regular expression and its text. Two are equal if their texts are.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Matches modules whose whole path is described.
    pub fn whole(text: &str) -> Result<Self> {
        Self::new(text, format!("^(?:{text})$"))
    }

    /// Matches modules of whose path the last names are described.
    pub fn ending(text: &str) -> Result<Self> {
        Self::new(text, format!(r"^(?:.*\.)?(?:{text})$"))
    }

    fn new(text: &str, anchored: String) -> Result<Self> {
        let regex = Regex::new(&anchored).map_err(|broken| {
            Error::caller("adapter", format!("{text:?} is not a regular expression: {broken}"))
        })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// The expression.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether `module` matches. An expression that needs too much backtracking does not.
    pub fn matches(&self, module: &str) -> bool {
        self.regex.is_match(module).unwrap_or(false)
    }
}

impl ModuleSet {
    /// Whether `module`, a path of names such as `model.layers.0.mlp.up_proj`, is in the set.
    pub fn contains(&self, module: &str) -> bool {
        match self {
            Self::Named(names) => names.iter().any(|name| ends_with(module, name)),
            Self::Matching(pattern) => pattern.matches(module),
            Self::AllLinear => !ends_with(module, "lm_head"),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Named(names) => json!(names),
            Self::Matching(pattern) => json!(pattern.text),
            Self::AllLinear => json!(ALL_LINEAR),
        }
    }
}

/// Whether the last names of `module` are `name`.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The number of the layer that `module` lies in: the first name that is a number, below a list and its
/// parent and above the module itself, as PEFT finds it.
fn layer_of(module: &str) -> Option<usize> {
    let names: Vec<&str> = module.split('.').collect();
    let between = names.get(2..names.len() - 1)?;
    between.iter().find_map(|name| name.parse().ok())
}

/// Keys that select a variant this crate does not compute, where they hold more than nothing.
const REFUSED: [&str; 18] = [
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "use_qalora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "ensure_weight_tying",
    "target_modules_to_tie",
    "layers_pattern",
];

/// Initialisations that leave the base weights as they are.
const HARMLESS_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];
const ALL_LINEAR: &str = "all-linear";
const LARGEST_RANK: usize = 1 << 16;

impl AdapterConfig {
    /// Reads the bytes of an `adapter_config.json`; `path` is for error messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_document(&Document::parse(path, bytes)?)
    }

    pub(super) fn from_document(document: &Document) -> Result<Self> {
        let root = document.root()?;
        match root.string("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                return Err(root.fault("peft_type", format!("{other:?} is not supported, only LORA")));
            }
            None => return Err(root.fault("peft_type", "missing, not the configuration of an adapter")),
        }
        refuse_variants(&root)?;
        let rank = root.whole("r", 1..=LARGEST_RANK)?.unwrap_or(8);
        let dropout = root.number("lora_dropout")?.unwrap_or(0.0);
        if !(0.0..1.0).contains(&dropout) {
            return Err(root.fault("lora_dropout", format!("expected a share from 0 to 1, got {dropout}")));
        }
        let layers = root.wholes("layers_to_transform", 0..=usize::MAX)?;
        let missing =
            || root.fault("target_modules", "missing, expected a list, an expression or \"all-linear\"");
        Ok(Self {
            targets: modules(&root, "target_modules")?.ok_or_else(missing)?,
            excluded: modules(&root, "exclude_modules")?,
            layers: layers.filter(|layers| !layers.is_empty()),
            rank,
            alpha: root.positive("lora_alpha")?.unwrap_or(8.0),
            rank_pattern: patterns(&root, "rank_pattern", |object, key| object.whole(key, 1..=LARGEST_RANK))?,
            alpha_pattern: patterns(&root, "alpha_pattern", |object, key| object.positive(key))?,
            rank_stabilised: root.boolean("use_rslora")?.unwrap_or(false),
            dropout,
            base_model: root.string("base_model_name_or_path")?.map(str::to_owned),
            task: root.string("task_type")?.map(str::to_owned),
        })
    }

    /// Whether the adapter touches `module`, by its full path.
    pub fn touches(&self, module: &str) -> bool {
        let excluded = self.excluded.as_ref().is_some_and(|excluded| excluded.contains(module));
        // PEFT applies the numbers of layers to names only; a path named in full is meant.
        let in_layers = match (&self.layers, &self.targets) {
            (Some(layers), ModuleSet::Named(names)) if !names.iter().any(|name| name == module) => {
                layer_of(module).is_some_and(|layer| layers.contains(&layer))
            }
            _ => true,
        };
        !excluded && self.targets.contains(module) && in_layers
    }

    /// The rank of `module`.
    pub fn rank_of(&self, module: &str) -> usize {
        let found = self.rank_pattern.iter().find(|(pattern, _)| pattern.matches(module));
        found.map_or(self.rank, |(_, rank)| *rank)
    }

    /// What the product of `module`'s pair is multiplied by.
    pub fn scale_of(&self, module: &str) -> f64 {
        let found = self.alpha_pattern.iter().find(|(pattern, _)| pattern.matches(module));
        let alpha = found.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = self.rank_of(module) as f64;
        alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// The text of the `adapter_config.json` that PEFT reads back as this.
    pub fn to_json(&self) -> String {
        let whole = |alpha: f64| {
            // PEFT declares alpha a whole number; it is written as one where it is one.
            if alpha.fract() == 0.0 && alpha < 1e15 { json!(alpha as u64) } else { json!(alpha) }
        };
        let ranks: Map<_, _> =
            self.rank_pattern.iter().map(|(key, rank)| (key.text.clone(), json!(rank))).collect();
        let alphas: Map<_, _> =
            self.alpha_pattern.iter().map(|(key, alpha)| (key.text.clone(), whole(*alpha))).collect();
        let text = serde_json::to_string_pretty(&json!({
            "peft_type": "LORA",
            "task_type": self.task,
            "base_model_name_or_path": self.base_model,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": whole(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rank_stabilised,
            "target_modules": self.targets.to_json(),
            "exclude_modules": self.excluded.as_ref().map(ModuleSet::to_json),
            "layers_to_transform": self.layers,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "bias": "none",
            "fan_in_fan_out": false,
            "modules_to_save": null,
            "use_dora": false,
            "init_lora_weights": true,
        }));
        text.expect("strings and finite numbers are always json")
    }
}

fn refuse_variants(root: &Object) -> Result<()> {
    for key in REFUSED {
        let nothing = match root.get(key) {
            None | Some(Value::Bool(false)) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        if !nothing {
            return Err(root.fault(key, "this variant of LoRA is not supported"));
        }
    }
    match root.string("bias")? {
        None | Some("none") => {}
        Some(other) => {
            let what = format!("expected \"none\", got {other:?}: trained biases are not supported");
            return Err(root.fault("bias", what));
        }
    }
    match root.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(start)) if HARMLESS_STARTS.contains(&start.to_lowercase().as_str()) => Ok(()),
        Some(other) => {
            let what =
                format!("{} changes the base weights, convert the adapter to plain LoRA", brief(other));
            Err(root.fault("init_lora_weights", what))
        }
    }
}

/// A set of modules under `key`: a list of names, or a string that is an expression or the word for all.
fn modules(root: &Object, key: &str) -> Result<Option<ModuleSet>> {
    match root.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if text.to_lowercase() == ALL_LINEAR => Ok(Some(ModuleSet::AllLinear)),
        Some(Value::String(text)) => {
            let pattern = Pattern::whole(text).map_err(|broken| root.fault(key, broken))?;
            Ok(Some(ModuleSet::Matching(pattern)))
        }
        Some(Value::Array(items)) if items.is_empty() => Ok(None),
        Some(_) => {
            let names = root.strings(key)?.unwrap_or_default();
            Ok(Some(ModuleSet::Named(names.into_iter().map(str::to_owned).collect())))
        }
    }
}

/// Values by expression over the ends of module paths, in the file's order.
fn patterns<T>(
    root: &Object,
    key: &str,
    read: impl Fn(&Object, &str) -> Result<Option<T>>,
) -> Result<Vec<(Pattern, T)>> {
    let Some(object) = root.object(key)? else { return Ok(Vec::new()) };
    let mut patterns = Vec::new();
    for (text, _) in object.entries() {
        let pattern = Pattern::ending(text).map_err(|broken| object.fault(text, broken))?;
        let value = read(&object, text)?.ok_or_else(|| object.fault(text, "expected a number, got null"))?;
        patterns.push((pattern, value));
    }
    Ok(patterns)
}
