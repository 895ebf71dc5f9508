//! What a run leaves behind so that it can go on as if nothing had happened.
//!
//! `checkpoint-<step>/` is a PEFT adapter, or a whole model, with the optimiser's averages and `trainer_state.json` beside
//! it. The state holds a hash of every other file, and of itself, and is looked at first: a folder is whole or it is
//! passed over. What is trained together is saved together: another trainer's checkpoint is a folder in it, and comes, goes
//! and breaks with it.

use super::full::FullTrainer;
use super::lora::Lora;
use super::optimiser::{OptimiserSettings, OptimiserState};
use super::trainer::{TrainSettings, Trainer};
use crate::error::{Error, Result};
use crate::format::adapter::Adapter as AdapterFile;
use crate::format::save::{TRAINER_STATE, replace_folder, write_file, write_tensors};
use crate::format::{Checkpoint as Tensors, ModelFolder};
use crate::model::{Model, host_tensor};
use crate::tensor::{Dtype, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const AVERAGES: &str = "optimizer.safetensors";
const PREFIX: &str = "checkpoint-";

/// What is in `trainer_state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Steps of the run so far.
    pub global_step: u64,
    /// The optimiser's counts.
    pub optimizer: OptimiserState,
    /// What whoever drives the trainer has to remember: where it is in its data, what it draws with.
    pub run: serde_json::Value,
    /// blake3 of every other file.
    files: BTreeMap<String, String>,
    /// blake3 of all the above.
    seal: String,
}

impl State {
    /// The hash of everything but itself, as a reader of the file finds it.
    fn hash(&self) -> Result<String> {
        let broken = |cause| Error::internal("checkpoint", format!("the state is no JSON: {cause}"));
        let open = State { seal: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&open).map_err(broken)?;
        let read: serde_json::Value = serde_json::from_slice(&text).map_err(broken)?;
        Ok(blake3::hash(read.to_string().as_bytes()).to_hex().to_string())
    }
}

/// A checkpoint that is whole.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    /// Its state.
    pub state: State,
}

impl Checkpoint {
    /// Opens a checkpoint, if every byte of it is as it was written.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(TRAINER_STATE);
        let bytes = read(&path)?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|cause| Error::file_because(&path, "is no state of a trainer", cause))?;
        const CHANGED: &str = "is not what was written; use an earlier checkpoint";
        if state.hash()? != state.seal {
            return Err(Error::file(path, CHANGED));
        }
        for (name, expected) in &state.files {
            let path = folder.join(name);
            let found = blake3::hash(&read(&path)?).to_hex();
            if found.as_str() != expected {
                return Err(Error::file(path, CHANGED));
            }
        }
        Ok(Checkpoint { folder: folder.to_owned(), state })
    }

    /// The newest whole checkpoint in the folder of a run. `warn` hears of those that are not.
    pub fn latest(run: &Path, mut warn: impl FnMut(&str)) -> Result<Option<Self>> {
        for (_, folder) in all(run)?.into_iter().rev() {
            match Checkpoint::open(&folder) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(damage) => warn(&format!("{damage}; the checkpoint is passed over")),
            }
        }
        Ok(None)
    }

    /// The checkpoint in it of another trainer, by its name.
    pub fn beside(&self, name: &str) -> Result<Self> {
        Checkpoint::open(&self.folder.join(name))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies it into the folder of another run.
    pub fn copy_into(&self, run: &Path) -> Result<PathBuf> {
        let copy = run.join(format!("{PREFIX}{}", self.state.global_step));
        let names = || self.state.files.keys().map(String::as_str).chain([TRAINER_STATE]);
        replace_folder(&copy, |fresh| {
            names().try_for_each(|name| {
                let path = fresh.join(name);
                make(path.parent().unwrap_or(fresh))?;
                write_file(&path, &read(&self.folder.join(name))?)
            })
        })?;
        Ok(copy)
    }

    /// The adapter in it.
    pub fn lora(&self, model: &Model) -> Result<Lora> {
        Lora::of(&model.config, &AdapterFile::open(&self.folder)?)
    }

    /// The trainer that wrote it.
    pub fn trainer(&self, model: Arc<Model>, settings: TrainSettings) -> Result<Trainer> {
        let lora = self.lora(&model)?;
        let mut trainer = Trainer::new(model, lora, settings)?;
        let averages = self.averages()?;
        let average = |name: &str| host_tensor(&averages.view(name)?, Dtype::F32);
        trainer.restore(&self.state.optimizer, average)?;
        Ok(trainer)
    }

    /// The trainer of a whole model that wrote it; `model` is the one that training began with.
    pub fn full_trainer(
        &self,
        model: Model,
        tower: bool,
        settings: OptimiserSettings,
        microbatch_tokens: usize,
    ) -> Result<FullTrainer> {
        let mut trainer = FullTrainer::new(model, tower, settings, microbatch_tokens)?;
        let averages = self.averages()?;
        let average = |name: &str| host_tensor(&averages.view(name)?, Dtype::F32);
        trainer.restore(&Tensors::open(&self.folder)?, &self.state.optimizer, average)?;
        Ok(trainer)
    }

    fn averages(&self) -> Result<Tensors> {
        Tensors::open_file(&self.folder.join(AVERAGES))
    }
}

/// Writes `checkpoint-<step>` into the folder of a run, then removes the oldest beyond `keep`. `others` are trainers at work
/// beside this one, each with the name of its folder in it.
pub fn save(
    trainer: &Trainer,
    others: &[(&str, &Trainer)],
    run: &Path,
    step: u64,
    keep: usize,
    more: &serde_json::Value,
) -> Result<PathBuf> {
    let fill = |folder: &Path, trainer: &Trainer| {
        trainer.lora()?.write_files(folder)?;
        seal(folder, step, more, trainer.counts(), trainer.averages()?)
    };
    replace(run, step, keep, |fresh| {
        for (name, other) in others {
            replace_folder(&fresh.join(name), |folder| fill(folder, other))?;
        }
        fill(fresh, trainer)
    })
}

/// As [`save`], of a whole model in f32; `source` is the folder it was loaded from.
pub fn save_full(
    trainer: &FullTrainer,
    source: &ModelFolder,
    run: &Path,
    step: u64,
    keep: usize,
    more: &serde_json::Value,
) -> Result<PathBuf> {
    replace(run, step, keep, |fresh| {
        trainer.write_files(fresh, source)?;
        seal(fresh, step, more, trainer.counts(), trainer.averages()?)
    })
}

/// Puts a checkpoint into place and removes the oldest of those before it.
fn replace(run: &Path, step: u64, keep: usize, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = run.join(format!("{PREFIX}{step}"));
    cut_short(run)?.iter().try_for_each(|folder| remove(folder))?;
    replace_folder(&folder, fill)?;
    let saved: Vec<(u64, PathBuf)> = all(run)?.into_iter().filter(|(other, _)| *other <= step).collect();
    for (_, old) in saved.iter().take(saved.len().saturating_sub(keep.max(1))) {
        remove(old)?;
    }
    Ok(folder)
}

/// Adds to the weights in a folder what it takes to go on with them, last of all the state.
fn seal(
    folder: &Path,
    step: u64,
    more: &serde_json::Value,
    optimizer: OptimiserState,
    averages: Vec<(String, Tensor)>,
) -> Result<()> {
    let averages = averages.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    write_tensors(&folder.join(AVERAGES), averages)?;
    let mut files = BTreeMap::new();
    hash(folder, "", &mut files)?;
    let mut state = State { global_step: step, optimizer, run: more.clone(), files, seal: String::new() };
    state.seal = state.hash()?;
    let text = serde_json::to_vec_pretty(&state)
        .map_err(|cause| Error::internal("checkpoint", format!("the state is no JSON: {cause}")))?;
    write_file(&folder.join(TRAINER_STATE), &text)
}

/// Hashes of files in a folder and in those below it, by their paths from the top.
fn hash(folder: &Path, above: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    for path in entries(folder)? {
        let name = format!("{above}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            hash(&path, &format!("{name}/"), files)?;
        } else {
            files.insert(name, blake3::hash(&read(&path)?).to_hex().to_string());
        }
    }
    Ok(())
}

/// What is left of saves that were cut short, by what [`replace_folder`] calls its folders.
fn cut_short(run: &Path) -> Result<Vec<PathBuf>> {
    if !run.exists() {
        return Ok(Vec::new());
    }
    let is_left = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(PREFIX) && (name.contains(".new-") || name.contains(".old-"))
    };
    Ok(entries(run)?.into_iter().filter(is_left).collect())
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|cause| Error::file_because(folder, "cannot be made", cause))
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).map_err(|cause| Error::file_because(folder, "cannot be removed", cause))
}

/// Checkpoints of a run by step, whole or not.
fn all(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !run.exists() {
        return Ok(Vec::new());
    }
    let step = |path: PathBuf| {
        let step = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        Some((step, path))
    };
    let mut all: Vec<(u64, PathBuf)> = entries(run)?.into_iter().filter_map(step).collect();
    all.sort();
    Ok(all)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |cause| Error::file_because(folder, "cannot be read", cause);
    let entries = fs::read_dir(folder).map_err(unreadable)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(unreadable)).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|cause| Error::file_because(path, "cannot be read", cause))
}
