//! `pellucid sft`: supervised learning of an adapter, before reinforcement or instead of it.

use super::Global;
use super::records::{Lines, PromptRecord};
use super::run::{Folder, metrics};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pellucid::engine::{Features, Input};
use pellucid::format::ModelFolder;
use pellucid::format::adapter::Adapter as AdapterFile;
use pellucid::model::Model;
use pellucid::prompt::message::{Content, Message};
use pellucid::prompt::reader::{ImageOptions, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::rl::config::Config;
use pellucid::task::data::{Cursor, Order};
use pellucid::train::{Lora, Sample, Trainer, save};
use serde::Deserialize;
use serde_json::json;
use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Train an adapter on given completions, by cross-entropy over their tokens
///
/// Lines of data.train hold a prompt ("messages", "prompt" or "prompt_token_ids", with "images" where there are some)
/// and "completion" or "completion_token_ids"; or "messages" whose last is the assistant's. A completion in words is
/// followed by the model's end token.
///
/// Example: pellucid sft -c run.toml optim.lr=2e-4 --resume latest
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The run's configuration (TOML)
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// Changes to it: key=value, with dotted keys
    #[arg(value_name = "KEY=VALUE")]
    changes: Vec<String>,

    /// Go on from a checkpoint: `latest`, or its folder
    #[arg(long, value_name = "WHICH")]
    resume: Option<String>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(flatten)]
    prompt: PromptRecord,
    completion: Option<String>,
    completion_token_ids: Option<Vec<u32>>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let config = Config::read(&arguments.config, &arguments.changes)?;
    let source = ModelFolder::find(&config.captioner.model)?;
    let model = Arc::new(Model::load(source.path(), global.device.open(global.threads)?, None)?);
    let options = ImageOptions {
        min_pixels: config.captioner.min_pixels,
        max_pixels: config.captioner.max_pixels,
        arithmetic: None,
    };
    let reader = Reader::open(&source, &model.config, options)?;
    let end = source.eos(&model.config)?.first().copied();
    let samples = samples(&model, &reader, end, &config.data.train)?;
    let folder = Folder::find(&config, arguments.resume.as_deref())?;
    folder.begin(&config)?;
    let (mut trainer, mut step, mut cursor) = match &folder.checkpoint {
        Some(checkpoint) => {
            let trainer = checkpoint.trainer(model.clone(), config.train_settings()?)?;
            let cursor = serde_json::from_value(checkpoint.state.run["cursor"].clone())
                .context("the checkpoint does not say where in its data the run was")?;
            (trainer, checkpoint.state.global_step, cursor)
        }
        None => (begin(&config, &model)?, 0, Cursor::default()),
    };
    let hidden = global.quiet || !std::io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(config.run.steps), target)
        .with_style(ProgressStyle::with_template("{bar:30} step {pos}/{len}, {msg}, {elapsed}, {eta} left")?)
        .with_position(step);
    let mut order = Order::new(config.seed, samples.len(), config.data.shuffle);
    let mut last = None;
    while step < config.run.steps {
        let taken = order.take(&mut cursor, config.optim.prompts_per_step);
        let batch: Vec<Sample> = taken.into_iter().map(|at| samples[at].clone()).collect();
        let stats = trainer.supervise(&batch)?;
        step += 1;
        if let (Some(name), false) = (&stats.bad, global.quiet) {
            eprintln!("step {step}: the gradient of {name} is not finite; the step is not taken");
        }
        let line = metrics(step, &stats);
        folder.log(&line)?;
        bar.set_message(format!("loss {:.4}", stats.loss));
        bar.set_position(step);
        if step % config.run.save_every == 0 || step == config.run.steps {
            let state = json!({"cursor": cursor});
            save(&trainer, &config.run.out, step, config.run.keep, &state)?;
        }
        last = Some(line);
    }
    bar.finish_and_clear();
    let out = config.run.out.join(format!("checkpoint-{step}"));
    if global.json {
        let summary = json!({"step": step, "checkpoint": out, "last": last});
        writeln!(std::io::stdout(), "{summary}")?;
    } else if !global.quiet {
        eprintln!("{step} steps; the adapter is in {}", out.display());
    }
    Ok(())
}

fn begin(config: &Config, model: &Arc<Model>) -> Result<Trainer> {
    let lora = match &config.captioner.adapter {
        Some(path) => Lora::of(&model.config, &AdapterFile::open(path)?)?,
        None => {
            let spec = config.captioner.lora.spec(&config.captioner.model)?;
            Lora::fresh(&model.config, spec, config.seed)?
        }
    };
    Ok(Trainer::new(model.clone(), lora, config.train_settings()?)?)
}

/// Every line of a file as a completion to learn.
fn samples(model: &Model, reader: &Reader, end: Option<u32>, path: &Path) -> Result<Vec<Sample>> {
    let base = path.parent().unwrap_or(Path::new(""));
    let mut features = Features::default();
    let mut samples = Vec::new();
    for line in Lines::<Record>::open(path)? {
        let (place, record) = line?;
        let number = samples.len() as u64;
        let sample = sample(model, reader, end, record, base, number, &mut features);
        samples.push(sample.with_context(|| place.to_string())?);
    }
    if samples.is_empty() {
        bail!("{} holds no lines to learn from", path.display());
    }
    Ok(samples)
}

fn sample(
    model: &Model,
    reader: &Reader,
    end: Option<u32>,
    record: Record,
    base: &Path,
    number: u64,
    features: &mut Features,
) -> Result<Sample> {
    let (_, mut words, images) = record.prompt.into_parts(number)?;
    let answer = match (&mut words, record.completion.is_none() && record.completion_token_ids.is_none()) {
        (Words::Messages(messages), true) => Some(spoken(messages)?),
        _ => record.completion,
    };
    let tokens = match (answer, record.completion_token_ids) {
        (Some(text), None) => {
            let mut tokens = reader.tokenizer().encode(&text)?;
            tokens.extend(end);
            tokens
        }
        (None, Some(ids)) => ids,
        _ => bail!("give one of completion, completion_token_ids and a last message of the assistant"),
    };
    if tokens.is_empty() {
        bail!("the completion has no tokens; there is nothing to learn");
    }
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let read = reader.read(&words, &images, base, &options)?;
    let input = Arc::new(Input::prepare_with(model, &read, features).context("cannot prepare the prompt")?);
    Ok(Sample { input, tokens, old: Vec::new(), advantage: 1.0, part: 0 })
}

/// Takes the assistant's last message off.
fn spoken(messages: &mut Vec<Message>) -> Result<String> {
    match messages.pop() {
        Some(Message { role, content: Content::Text(text), .. }) if role == "assistant" => Ok(text),
        Some(Message { role, .. }) if role == "assistant" => {
            bail!("the assistant's last message is not words alone")
        }
        _ => bail!("no completion, and the last message is not the assistant's"),
    }
}
