//! The folder of a run: its configuration, its metrics, its checkpoints.

mod changes;
pub(crate) mod faults;
mod lock;

use super::Global;
use super::settings::text;
use anyhow::{Context, Result, bail};
use pellucid::format::save::{append_file, replace_file};
use pellucid::rl::config::Config;
use pellucid::train::{Checkpoint, Stats};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.jsonl";

/// The folder, this process's alone, and the checkpoint it goes on from.
pub(crate) struct Folder {
    out: PathBuf,
    /// None where there is no folder yet.
    lock: Option<File>,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Whether that lies in another run's folder.
    from_elsewhere: bool,
    /// Where the run came from, and what changed on its way: comments that its configuration begins with.
    history: String,
}

impl Folder {
    /// Finds where a run begins: at its beginning, or where its checkpoint left it, `resume` being `latest` or a checkpoint's
    /// folder. Nothing is written yet.
    pub(crate) fn find(config: &Config, resume: Option<&str>, global: &Global) -> Result<Self> {
        let out = config.run.out.clone();
        let lock = if out.exists() { Some(lock::lock(&out)?) } else { None };
        let checkpoint = match resume {
            None => None,
            Some("latest") => latest(&out)?,
            Some(folder) => Some(Checkpoint::open(Path::new(folder))?),
        };
        let mut folder = Folder { out, lock, checkpoint, from_elsewhere: false, history: String::new() };
        let going_on = folder.compare(config)?;
        if resume.is_none() || folder.from_elsewhere {
            folder.refuse_begun()?;
        }
        match (going_on, resume) {
            (Some(going_on), _) if !global.quiet => eprintln!("{going_on}"),
            (None, Some(_)) if !global.quiet => eprintln!("no checkpoint yet: begins at the beginning"),
            _ => {}
        }
        Ok(folder)
    }

    /// Compares what a run is told with what it was told that left the checkpoint; says how it goes on.
    fn compare(&mut self, config: &Config) -> Result<Option<String>> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(None) };
        let (folder, step) = (checkpoint.folder(), checkpoint.state.global_step);
        let whole = |path: &Path| path.canonicalize().unwrap_or(path.to_owned());
        let run = whole(&folder.join(".."));
        self.from_elsewhere = run != whole(&self.out);
        let stated = run.join(CONFIG);
        let changes = changes::accept(&stated, config, folder, self.from_elsewhere)?;
        let after = |what: &str| format!("# after step {step}: {what}\n");
        self.history = if self.from_elsewhere {
            after(&format!("from {}", folder.display()))
        } else {
            let text = fs::read_to_string(&stated).unwrap_or_default();
            let before = text.split_inclusive('\n').take_while(|line| line.starts_with('#'));
            before.map(str::to_owned).chain(changes.iter().map(|change| after(change))).collect()
        };
        let with = if changes.is_empty() { "" } else { " with " };
        Ok(Some(format!("goes on from {}{with}{}", folder.display(), changes.join(", "))))
    }

    fn refuse_begun(&self) -> Result<()> {
        if self.out.join(METRICS).exists() {
            bail!(
                "{} holds a run already; go on with --resume latest, or give another run.out",
                self.out.display()
            );
        }
        Ok(())
    }

    /// Makes the folder, or drops what it says of steps that will be taken again.
    pub(crate) fn begin(&mut self, config: &Config) -> Result<()> {
        let out = &self.out;
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        if self.lock.is_none() {
            self.lock = Some(lock::lock(out)?);
            // Another process may have come and gone since it was looked for.
            self.refuse_begun()?;
        }
        if let (Some(checkpoint), true) = (&self.checkpoint, self.from_elsewhere) {
            // Killed before it leaves one of its own, it goes on from there all the same.
            checkpoint.copy_into(out)?;
        }
        let text = self.history.clone() + &text(config)?;
        replace_file(&out.join(CONFIG), text.as_bytes())?;
        let step = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.global_step);
        // What lies beyond belongs to steps that will be taken again.
        if self.checkpoint.is_some() {
            drop_later(out, step)?;
        }
        forget(&out.join(METRICS), step)?;
        forget(&out.join(SAMPLES), step)?;
        Ok(())
    }

    /// Adds a line to the metrics.
    pub(crate) fn log(&self, line: &Value) -> Result<()> {
        self.append(METRICS, std::slice::from_ref(line))
    }

    /// Every line of the metrics so far.
    pub(crate) fn metrics(&self) -> Result<Vec<Map<String, Value>>> {
        let path = self.out.join(METRICS);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let line =
            |line| serde_json::from_str(line).with_context(|| format!("{} is damaged", path.display()));
        text.lines().map(line).collect()
    }

    /// Adds lines to the samples.
    pub(crate) fn log_samples(&self, lines: &[Value]) -> Result<()> {
        self.append(SAMPLES, lines)
    }

    /// Waits until its lines are on the disk: no checkpoint is to outlive what is on record of its steps.
    pub(crate) fn settle(&self) -> Result<()> {
        for path in [METRICS, SAMPLES].map(|name| self.out.join(name)) {
            if path.exists() {
                let settled = File::open(&path).and_then(|file| file.sync_all());
                settled.with_context(|| format!("cannot make sure of {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn append(&self, name: &str, lines: &[Value]) -> Result<()> {
        let path = self.out.join(name);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Ok(append_file(&path, text.as_bytes())?)
    }
}

/// The newest checkpoint that is whole. If there are some and none is, nothing is begun anew: who knows what broke them.
fn latest(out: &Path) -> Result<Option<Checkpoint>> {
    let mut damaged = 0;
    let found = Checkpoint::latest(out, |warning| {
        eprintln!("{warning}");
        damaged += 1;
    })?;
    if found.is_none() && damaged > 0 {
        bail!(
            "{}: none of its {damaged} checkpoints is whole; mend one, or move them away and begin anew",
            out.display()
        );
    }
    Ok(found)
}

/// Removes the checkpoints and evaluations of later steps.
fn drop_later(folder: &Path, step: u64) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let rest =
            name.strip_prefix("checkpoint-").or_else(|| name.strip_prefix("eval-")).unwrap_or_default();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if digits.parse().is_ok_and(|number: u64| number > step) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Drops the lines of steps that will be taken again, and one that was being written.
fn forget(metrics: &Path, step: u64) -> Result<()> {
    if !metrics.exists() {
        return Ok(());
    }
    let context = || format!("cannot go on with {}", metrics.display());
    let text = fs::read_to_string(metrics).with_context(context)?;
    let kept: String = text
        .split_inclusive('\n')
        .filter(|line| {
            let parsed: Option<Value> = serde_json::from_str(line).ok();
            line.ends_with('\n')
                && parsed.is_some_and(|line| line["step"].as_u64().is_some_and(|s| s <= step))
        })
        .collect();
    Ok(replace_file(metrics, kept.as_bytes())?)
}

/// A step's line: what TRL calls by these names, and ours.
pub(crate) fn metrics(step: u64, stats: &Stats) -> Value {
    json!({
        "step": step,
        "loss": stats.loss,
        "entropy": stats.entropy,
        "grad_norm": stats.grad_norm,
        "learning_rate": stats.learning_rate,
        "completions/tokens": stats.tokens,
        "computed_tokens": stats.computed,
        "microbatches": stats.microbatches,
        "skipped": stats.bad,
    })
}
