//! `pellucid sft`: supervised learning, before reinforcement or instead of it.

use super::Global;
use super::progress::Progress;
use super::pupil::Pupil;
use super::records::{Lines, PromptRecord};
use super::run::{Folder, metrics};
use super::settings::{Resumable, text};
use anyhow::{Context, Result, bail};
use pellucid::format::ModelFolder;
use pellucid::model::Model;
use pellucid::prompt::message::{Content, Message};
use pellucid::prompt::reader::{ImageOptions, ReadPrompt, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::task::data::{Cursor, Order};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{io::Write, path::Path};

/// Train an adapter, or a whole small model, on given completions, by cross-entropy over their tokens
///
/// Lines of data.train hold a prompt ("messages", "prompt" or "prompt_token_ids", with "images" where there are some)
/// and "completion" or "completion_token_ids"; or "messages" whose last is the assistant's. A completion in words is
/// followed by the model's end token. With captioner.full every weight learns, and checkpoints are models.
///
/// Example: pellucid sft -c run.toml optim.lr=2e-4 --resume latest
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    settings: Resumable,
}

/// What it has to remember beside weights.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    cursor: Cursor,
}

#[derive(Deserialize)]
struct Record {
    #[serde(flatten)]
    prompt: PromptRecord,
    completion: Option<String>,
    completion_token_ids: Option<Vec<u32>>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let Resumable { configured, resume } = &arguments.settings;
    let config = configured.read(global)?;
    let mut folder = Folder::find(&config, resume.as_deref(), global)?;
    let source = ModelFolder::find(&config.captioner.model)?;
    let model = Model::load(source.path(), global.device.open(global.threads)?, None)?;
    let options = ImageOptions {
        min_pixels: config.captioner.min_pixels,
        max_pixels: config.captioner.max_pixels,
        arithmetic: None,
    };
    let reader = Reader::open(&source, &model.config, options)?;
    let end = source.eos(&model.config)?.first().copied();
    let lessons = Lessons { reader: &reader, end, path: &config.data.train };
    let mut pupil = Pupil::begin(&config, model, source, &lessons, folder.checkpoint.as_ref())?;
    if configured.dry_run {
        return Ok(write!(std::io::stdout(), "{}", text(&config)?)?);
    }
    folder.begin(&config)?;
    let (mut step, mut place) = match &folder.checkpoint {
        Some(checkpoint) => {
            let place = Remembered::deserialize(&checkpoint.state.run).with_context(|| {
                let folder = checkpoint.folder().display();
                format!(
                    "{folder} was not left by sft; begin from its weights with captioner.adapter={folder}"
                )
            })?;
            (checkpoint.state.global_step, place)
        }
        None => (0, Remembered::default()),
    };
    let progress = Progress::new(global, "step", step, config.run.steps)?;
    let mut order = Order::new(config.seed, pupil.lessons(), config.data.shuffle);
    let mut last = None;
    while step < config.run.steps {
        let stats = pupil.learn(&order.take(&mut place.cursor, config.optim.prompts_per_step))?;
        step += 1;
        if let Some(bad) = &stats.bad {
            progress.say(format_args!("step {step}: {bad} is not finite; the step is not taken"));
        }
        let line = metrics(step, &stats);
        folder.log(&line)?;
        progress.reach(step, format!("loss {:.4}", stats.loss));
        if step % config.run.save_every == 0 || step == config.run.steps {
            folder.settle()?;
            pupil.save(&config.run, step, &serde_json::to_value(&place)?)?;
        }
        last = Some(line);
    }
    progress.finish();
    let out = config.run.out.join(format!("checkpoint-{step}"));
    if global.json {
        let activations = pupil.activation_bytes();
        let summary = json!({"step": step, "checkpoint": out, "last": last, "activation_bytes": activations});
        writeln!(std::io::stdout(), "{summary}")?;
    } else if !global.quiet {
        let what = if config.captioner.full { "model" } else { "adapter" };
        eprintln!("{step} steps; the {what} is in {}", out.display());
    }
    Ok(())
}

/// The lines of a file, each a prompt and a completion to learn.
pub(crate) struct Lessons<'a> {
    reader: &'a Reader,
    /// What ends a completion in words.
    end: Option<u32>,
    path: &'a Path,
}

impl Lessons<'_> {
    /// Gives every line to `take`.
    pub(crate) fn each(&self, mut take: impl FnMut(ReadPrompt, Vec<u32>) -> Result<()>) -> Result<()> {
        let base = self.path.parent().unwrap_or(Path::new(""));
        let mut number = 0;
        for line in Lines::<Record>::open(self.path)? {
            let (place, record) = line?;
            let taken = self.read(record, base, number).and_then(|(read, tokens)| take(read, tokens));
            taken.with_context(|| place.to_string())?;
            number += 1;
        }
        if number == 0 {
            bail!("{} holds no lines to learn from", self.path.display());
        }
        Ok(())
    }

    fn read(&self, record: Record, base: &Path, number: u64) -> Result<(ReadPrompt, Vec<u32>)> {
        let (_, mut words, images) = record.prompt.into_parts(number)?;
        let answer = match (&mut words, record.completion.is_none() && record.completion_token_ids.is_none())
        {
            (Words::Messages(messages), true) => Some(spoken(messages)?),
            _ => record.completion,
        };
        let tokens = match (answer, record.completion_token_ids) {
            (Some(text), None) => {
                let mut tokens = self.reader.tokenizer().encode(&text)?;
                tokens.extend(self.end);
                tokens
            }
            (None, Some(ids)) => ids,
            _ => bail!("give one of completion, completion_token_ids and a last message of the assistant"),
        };
        if tokens.is_empty() {
            bail!("the completion has no tokens; there is nothing to learn");
        }
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        Ok((self.reader.read(&words, &images, base, &options)?, tokens))
    }
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
