//! A LoRA adapter: what it touches, how strongly, and whether it was ever trained.

use super::scan::{NonFinite, non_finite, norm};
use crate::cli::{
    Global,
    text::{bytes, count, row},
};
use anyhow::{Result, bail};
use pellucid::format::{
    Adapter, AdapterConfig, TensorView,
    adapter::{ModuleSet, Pair},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, path::Path};

#[derive(Debug, Serialize)]
struct Report {
    kind: &'static str,
    file: String,
    base_model: Option<String>,
    task: Option<String>,
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    dropout: f64,
    targets: Vec<String>,
    layers: Option<Vec<usize>>,
    pairs: usize,
    parameters: u64,
    bytes: u64,
    dtypes: Vec<String>,
    modules: Vec<Module>,
    /// Pairs whose B is zero, which add nothing.
    zero_pairs: usize,
    non_finite: Vec<NonFinite>,
}

/// How many target modules are named; long lists are full paths, and nobody reads them.
const MOST_TARGETS: usize = 8;

/// All pairs of modules of one name, such as `q_proj`.
#[derive(Debug, Serialize)]
struct Module {
    name: String,
    pairs: usize,
    ranks: Vec<usize>,
    scales: Vec<f64>,
    /// The largest norms among them.
    norm_a: f64,
    norm_b: f64,
}

pub(super) fn run(folder: &Path, global: &Global) -> Result<()> {
    let report = Report::of(&Adapter::open(folder)?)?;
    global.print(&report)?;
    if let Some(first) = report.non_finite.first() {
        bail!("{}: tensor {}: has values that are not finite", report.file, first.tensor);
    }
    Ok(())
}

impl Report {
    fn of(adapter: &Adapter) -> Result<Self> {
        let AdapterConfig { rank, alpha, rank_stabilised, dropout, .. } = *adapter.config();
        let AdapterConfig { targets, layers, base_model, task, .. } = adapter.config();
        let views: Vec<&TensorView> = adapter.pairs().flat_map(|(_, pair)| [&pair.a, &pair.b]).collect();
        let mut dtypes: Vec<String> = views.iter().map(|view| format!("{:?}", view.dtype())).collect();
        dtypes.sort();
        dtypes.dedup();
        Ok(Report {
            kind: "adapter",
            file: adapter.file().display().to_string(),
            base_model: base_model.clone(),
            task: task.clone(),
            rank,
            alpha,
            rank_stabilised,
            dropout,
            targets: names(targets),
            layers: layers.clone(),
            pairs: adapter.pairs().count(),
            parameters: views.iter().map(|view| view.elements() as u64).sum(),
            bytes: views.iter().map(|view| view.bytes().len() as u64).sum(),
            dtypes,
            modules: modules(adapter.pairs()),
            zero_pairs: adapter.pairs().filter(|(_, pair)| norm(&pair.b) == Some(0.0)).count(),
            non_finite: non_finite(&views)?,
        })
    }
}

/// Names, one expression, or `all-linear`, as `target_modules` has them.
fn names(targets: &ModuleSet) -> Vec<String> {
    match targets {
        ModuleSet::Named(names) => names.clone(),
        ModuleSet::Matching(pattern) => vec![pattern.text().to_owned()],
        ModuleSet::AllLinear => vec!["all-linear".to_owned()],
    }
}

/// Pairs gathered by the last name of their module's path.
fn modules<'a>(pairs: impl Iterator<Item = (&'a str, &'a Pair)>) -> Vec<Module> {
    let mut by_name: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
    for (path, pair) in pairs {
        by_name.entry(path.rsplit('.').next().unwrap_or(path)).or_default().push(pair);
    }
    let largest = |views: Vec<&TensorView>| views.into_iter().filter_map(norm).fold(0.0, f64::max);
    by_name
        .into_iter()
        .map(|(name, pairs)| Module {
            name: name.to_owned(),
            pairs: pairs.len(),
            ranks: distinct(pairs.iter().map(|pair| pair.rank())),
            scales: distinct(pairs.iter().map(|pair| pair.scale)),
            norm_a: largest(pairs.iter().map(|pair| &pair.a).collect()),
            norm_b: largest(pairs.iter().map(|pair| &pair.b).collect()),
        })
        .collect()
}

/// The values that occur, once each, in the order of their first occurrence.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: Vec<String>| values.join(" and ");
        row(f, "adapter", &[&self.file])?;
        row(f, "base model", &[self.base_model.as_deref().unwrap_or("not named")])?;
        let (shown, more) = self.targets.split_at(self.targets.len().min(MOST_TARGETS));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        row(f, "targets", &[shown.join(", ") + &more])?;
        let scale = if self.rank_stabilised { "alpha / sqrt(rank)" } else { "alpha / rank" };
        row(f, "rank", &[format!("{}, alpha {}, scale {scale}", self.rank, self.alpha)])?;
        let size = (count(self.parameters), bytes(self.bytes), self.dtypes.join(", "));
        row(
            f,
            "size",
            &[format!("{} parameters in {} pairs, {} of {}", size.0, self.pairs, size.1, size.2)],
        )?;
        let modules = self.modules.iter().map(|m| {
            let ranks = m.ranks.iter().map(usize::to_string);
            let scales = m.scales.iter().map(|scale| format!("{scale:.3}"));
            format!(
                "{:<12} {:>3} pairs, rank {}, scale {}, norms up to {:.3} (A) and {:.3} (B)",
                m.name,
                m.pairs,
                list(ranks.collect()),
                list(scales.collect()),
                m.norm_a,
                m.norm_b
            )
        });
        row(f, "modules", &modules.collect::<Vec<_>>())?;
        let zero = match self.zero_pairs {
            0 => None,
            all if all == self.pairs => {
                Some("every B is zero: this adapter is untrained and changes nothing".into())
            }
            some => Some(format!("{some} of {} pairs have a zero B and change nothing", self.pairs)),
        };
        row(f, "training", zero.as_slice())?;
        let broken = self.non_finite.iter();
        let broken = broken.map(|t| format!("{}: {} NaN, {} infinite", t.tensor, t.nan, t.infinite));
        row(f, "not finite", &broken.collect::<Vec<_>>())
    }
}
