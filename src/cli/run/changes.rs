//! What a run that goes on is told anew.
//!
//! How it learns on and how it is driven may change on the way, and is written down where it did. What its numbers are
//! numbers of may not: steps before and after would stand in one file and mean two things.

use anyhow::{Context, Result, bail};
use pellucid::rl::config::Config;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};
use toml::{Table, Value};

/// Keys that may change, and sections of which every key may.
const ON_THE_WAY: [&str; 8] = [
    "run.",
    "optim.",
    "objective.",
    "data.eval_limit",
    "reasoner.url",
    "reasoner.api_key_env",
    "reasoner.server.",
    "reasoner.learn.lr",
];

/// Keys in them that may not.
const YET_FIXED: [&str; 3] = ["optim.prompts_per_step", "optim.group_size", "reasoner.server.extra."];

/// What a checkpoint is, whichever run goes on from it.
const OF_WEIGHTS: [&str; 5] =
    ["captioner.model", "captioner.adapter", "captioner.lora.", "captioner.full", "reasoner.learn.lora."];

/// A key with another value than the run had.
#[derive(Debug, PartialEq)]
struct Change {
    key: String,
    was: Option<Value>,
    is: Option<Value>,
}

impl Change {
    /// All of them, by key. Where a run goes is no property of it.
    fn all(was: &Config, is: &Config) -> Result<Vec<Self>> {
        let [mut was, mut is] = [keys(was)?, keys(is)?];
        let names: BTreeSet<String> = was.keys().chain(is.keys()).cloned().collect();
        let changes = names.into_iter().filter_map(|key| {
            let change = Change { was: was.remove(&key), is: is.remove(&key), key };
            (change.was != change.is && change.key != "run.out").then_some(change)
        });
        Ok(changes.collect())
    }

    /// Whether a folder may hold steps of both.
    fn is_on_the_way(&self) -> bool {
        let first_measured = self.key == "data.eval" && self.was.is_none();
        first_measured || (is_among(&self.key, &ON_THE_WAY) && !is_among(&self.key, &YET_FIXED))
    }

    /// Whether weights that were learned with one value can be gone on from with the other, in a folder of their own.
    fn is_of_weights(&self) -> bool {
        is_among(&self.key, &OF_WEIGHTS)
    }
}

/// What a run is told anew that goes on from a checkpoint, if it may be: `stated` is the configuration of the run that left
/// the checkpoint, and `elsewhere` whether another folder is begun with it.
pub(super) fn accept(
    stated: &Path,
    config: &Config,
    checkpoint: &Path,
    elsewhere: bool,
) -> Result<Vec<String>> {
    if !stated.exists() {
        return Ok(Vec::new());
    }
    let was = Config::read(stated, &[]).context("cannot tell with what the run began")?;
    let changes = Change::all(&was, config)?;
    let may = |change: &&Change| if elsewhere { !change.is_of_weights() } else { change.is_on_the_way() };
    let refused: Vec<&Change> = changes.iter().filter(|change| !may(change)).collect();
    if refused.is_empty() {
        return Ok(changes.iter().map(ToString::to_string).collect());
    }
    let all: Vec<String> = refused.iter().map(ToString::to_string).collect();
    let checkpoint = checkpoint.display();
    let remedy = if refused.iter().any(|change| change.is_of_weights()) {
        let takes = if was.captioner.full { "captioner.model" } else { "captioner.adapter" };
        format!(
            "begin a run of its own in another run.out, without --resume ({takes}={checkpoint} takes along what was learned)"
        )
    } else {
        format!("give another run.out and --resume {checkpoint}")
    };
    bail!(
        "the run cannot go on with {}: what its folder says would not be so; keep what it had, as -c {stated} \
         does, or {remedy}; if it is the same by another name, say so in {stated}",
        all.join(", "),
        stated = stated.display()
    )
}

fn is_among(key: &str, names: &[&str]) -> bool {
    names.iter().any(|name| key == *name || (name.ends_with('.') && key.starts_with(name)))
}

/// A configuration by dotted keys.
fn keys(config: &Config) -> Result<BTreeMap<String, Value>> {
    fn flatten(path: &str, table: Table, keys: &mut BTreeMap<String, Value>) {
        for (name, value) in table {
            match value {
                Value::Table(below) => flatten(&format!("{path}{name}."), below, keys),
                value => drop(keys.insert(format!("{path}{name}"), value)),
            }
        }
    }
    let mut all = BTreeMap::new();
    flatten("", Table::try_from(config).context("the configuration cannot be written")?, &mut all);
    Ok(all)
}

/// `optim.lr = 1e-5 (1e-4 before)`, in one line.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| match value {
            None => "nothing".to_owned(),
            Some(Value::String(text)) => format!("{text:?}"),
            Some(value) => value.to_string(),
        };
        write!(f, "{} = {} ({} before)", self.key, text(&self.is), text(&self.was))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a change is: it may come on the way, at least in another folder, or not at all.
    fn judged(change: &str) -> Vec<(bool, bool)> {
        let read = |changes: &[String]| {
            Config::parse(include_str!("../../../assets/demo.toml"), changes).expect("is a configuration")
        };
        let changes = Change::all(&read(&[]), &read(&[change.to_owned()])).expect("are compared");
        changes.iter().map(|change| (change.is_on_the_way(), !change.is_of_weights())).collect()
    }

    #[test]
    fn what_numbers_mean_does_not_change_on_the_way() {
        for (change, judgement) in [
            ("run.steps=70", (true, true)),
            ("run.eval_every=5", (true, true)),
            ("optim.lr=1e-3", (true, true)),
            ("optim.betas=[0.5, 0.99]", (true, true)),
            ("objective.kl.coef=0.1", (true, true)),
            ("reasoner.server.timeout=5.0", (true, true)),
            ("data.eval_limit=5", (true, true)),
            ("seed=5", (false, true)),
            ("prompts=default", (false, true)),
            ("data.train=other.jsonl", (false, true)),
            ("data.eval=other.jsonl", (false, true)),
            ("data.shuffle=false", (false, true)),
            ("optim.group_size=5", (false, true)),
            ("optim.prompts_per_step=5", (false, true)),
            ("episode.kind=binary", (false, true)),
            ("reasoner.model=other", (false, true)),
            ("reasoner.server.extra={seed=1}", (false, true)),
            ("captioner.max_tokens=5", (false, true)),
            ("captioner.model=other", (false, false)),
            ("captioner.adapter=other", (false, false)),
            ("captioner.lora.rank=5", (false, false)),
            ("captioner.lora.targets=all-linear", (false, false)),
        ] {
            assert_eq!(judged(change), [judgement], "{change}");
        }
        assert_eq!(judged("seed=0"), []);
        assert_eq!(judged("run.out=elsewhere"), []);
    }

    #[test]
    fn a_change_is_one_line() {
        let config = |changes: &[&str]| {
            let changes: Vec<String> = changes.iter().map(|change| change.to_string()).collect();
            Config::parse(include_str!("../../../assets/demo.toml"), &changes).expect("is a configuration")
        };
        let changes = Change::all(&config(&[]), &config(&["data.layout=mathvista", "run.steps=9"]));
        let lines: Vec<String> = changes.expect("are compared").iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["data.layout = \"mathvista\" (nothing before)", "run.steps = 9 (60 before)"]);
    }
}
