//! `pellucid bench train`: what a step takes, from log-probs and advantages to moved weights, beside its floor.

use super::super::{Global, kernels::Work};
use super::kernels::ceilings;
use super::passes::{HEADING, What, random_decoder, row, weights};
use super::record::{Record, Timing};
use anyhow::{Context, Result, bail};
use pellucid::engine::{Input, ScoreRequest, score};
use pellucid::format::ModelFolder;
use pellucid::format::adapter::ModuleSet;
use pellucid::format::config::{Family, ImageTokens, ModelConfig};
use pellucid::model::Model;
use pellucid::prompt::expand::Prompt;
use pellucid::prompt::reader::ReadPrompt;
use pellucid::train::objective::{Aggregation, Clip, Kl};
use pellucid::train::{Lora, LoraSpec, Objective, OptimiserSettings, Sample, TrainSettings, Trainer};
use std::{
    io::{Write, stdout},
    sync::Arc,
    time::Instant,
};

/// Rounds, and seconds they may take where more than the fewest fit.
const FEWEST: usize = 3;
const MOST: usize = 50;
const SECONDS: f64 = 10.0;

/// Time whole training steps of an adapter, beside their floor
///
/// A step reads groups of completions behind a prompt each, walks back and moves every linear's adapter. The floor is
/// that of a pass forward and of the gradients of its activations, each weight read once in either direction of a
/// microbatch; computing blocks again on the way back is not in it.
///
/// Example: pellucid bench train --shapes smollm2-135m --groups 1 --prompt 200 --completion 56 --rank 16
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Prompts of a step
    #[arg(long, value_name = "N", default_value_t = 1)]
    groups: usize,

    /// Completions of a prompt
    #[arg(long, value_name = "M", default_value_t = 8)]
    group_size: usize,

    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 200)]
    prompt: usize,

    /// Tokens of a completion
    #[arg(long, value_name = "N", default_value_t = 56)]
    completion: usize,

    /// The adapter's rank
    #[arg(long, value_name = "R", default_value_t = 16)]
    rank: usize,

    /// Tokens of one pass
    #[arg(long, value_name = "N", default_value_t = 8192)]
    microbatch_tokens: usize,

    /// Bytes for activations that are kept in place of being computed again
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_bytes: usize,

    /// Also read the completions without the adapter, for the pull of the reference
    #[arg(long)]
    reference: bool,

    #[command(flatten)]
    what: What,
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    if global.device.is_emulated() {
        bail!("the emulator's time says nothing about a device: measure on cpu, or on a device");
    }
    let Arguments { groups, group_size, prompt, completion, rank, what, .. } = arguments;
    if [groups, group_size, prompt, completion, rank].iter().any(|&&count| count == 0) {
        bail!(
            "a step over nothing; --groups, --group-size, --prompt, --completion and --rank have to be at least 1"
        );
    }
    let backend = global.device.open(global.threads)?;
    let mut record = Record::begin(&*backend, global, &what.note, ceilings(&*backend, global)?);
    let mut out = stdout().lock();
    if !global.json {
        writeln!(out, "{}\n{}\n{HEADING}", record.device, record.ceilings)?;
    }
    let names: Vec<&str> = match &what.model {
        Some(model) => vec![model],
        None => what.shapes.iter().map(String::as_str).collect(),
    };
    for name in names {
        let model = Arc::new(match &what.model {
            Some(_) => Model::load(ModelFolder::find(name)?.path(), backend.clone(), None)?,
            None => {
                let decoder = random_decoder(name, &*backend, global.seed())?;
                let config = ModelConfig {
                    family: Family::Qwen2,
                    decoder: decoder.config().clone(),
                    vision: None,
                    tokens: ImageTokens::default(),
                    dtype: None,
                    eos: Vec::new(),
                };
                Model { config, decoder, tower: None, backend: backend.clone() }
            }
        });
        let samples = samples(&model, arguments)?;
        let spec =
            LoraSpec { rank: *rank, alpha: *rank as f64, targets: ModuleSet::AllLinear, base_model: None };
        let lora = Lora::fresh(&model.config, spec, global.seed())?;
        let mut trainer = Trainer::new(model.clone(), lora, settings(arguments))?;
        let mut step = || -> Result<(f64, usize, usize)> {
            let start = Instant::now();
            let stats = trainer.step(&samples).context("the step failed")?.remove(0);
            Ok((start.elapsed().as_secs_f64(), stats.computed, stats.microbatches))
        };
        let (warm, computed, microbatches) = step()?;
        let rounds = (SECONDS / warm.max(1e-9)).clamp(FEWEST as f64, MOST as f64) as usize;
        let seconds = (0..rounds).map(|_| step().map(|(seconds, ..)| seconds)).collect::<Result<Vec<_>>>()?;
        let label = format!("train {name} {groups}x{group_size} of {prompt}+{completion}, rank {rank}");
        let work = work(&model, arguments, computed, microbatches);
        let timing = Timing::of(label, seconds, 1, work, &record.ceilings).over(computed);
        if !global.json {
            writeln!(out, "{}", row(&timing))?;
        }
        record.kernels.push(timing);
    }
    if let Some(path) = &what.out {
        record.write(path)?;
    }
    if global.json {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(out.flush()?)
}

fn settings(arguments: &Arguments) -> TrainSettings {
    let objective = Objective {
        clip: Clip { low: 0.2, high: 0.2, dual: None },
        kl: arguments.reference.then_some((Kl::K3, 0.04)),
        aggregation: Aggregation::SeqMeanTokenMean,
        temperature: 1.0,
    };
    let Arguments { microbatch_tokens, keep_bytes, .. } = *arguments;
    let optimiser = OptimiserSettings::default();
    TrainSettings { objective, optimiser, microbatch_tokens, updates: 1, keep_bytes }
}

/// Completions of tokens that mean nothing, with the model's own log-probs.
fn samples(model: &Model, arguments: &Arguments) -> Result<Vec<Sample>> {
    let Arguments { groups, group_size, prompt, completion, .. } = *arguments;
    let vocab = model.config.decoder.vocab;
    let tokens =
        |from: usize, count: usize| (from..from + count).map(|at| (at * 7919 % vocab) as u32).collect();
    let mut samples = Vec::new();
    for group in 0..groups {
        let read = ReadPrompt {
            prompt: Prompt { tokens: tokens(group * 31, prompt), spans: Vec::new() },
            images: Vec::new(),
        };
        let input = Arc::new(Input::prepare(model, &read)?);
        let tokens = |lane: usize| -> Vec<u32> { tokens(group * 131 + lane * 17 + 5, completion) };
        let requests = (0..group_size)
            .map(|lane| ScoreRequest::new(model, input.clone(), tokens(lane)))
            .collect::<pellucid::Result<Vec<_>>>()?;
        for (lane, scored) in score(model, None, &requests, 1.0, 2048)?.into_iter().enumerate() {
            let advantage = if lane % 2 == 0 { 1.0 } else { -1.0 };
            samples.push(Sample {
                input: input.clone(),
                tokens: tokens(lane),
                old: scored.logprobs,
                advantage,
                part: 0,
            });
        }
    }
    Ok(samples)
}

/// Two operations for a weight and a token forward, two for the gradient back; weights read in either direction.
fn work(model: &Model, arguments: &Arguments, computed: usize, microbatches: usize) -> Work {
    let config = &model.config.decoder;
    let head = config.vocab * config.hidden;
    let all = weights(config);
    let targets = arguments.groups * arguments.group_size * arguments.completion;
    Work {
        bytes: (2 * microbatches * all * model.decoder.head().dtype().size()) as f64,
        flops: 4.0 * ((all - head) as f64 * computed as f64 + head as f64 * targets as f64),
    }
}
