//! `pellucid score`: log-probs of given completions, a line in, a line out.

use super::Global;
use super::model::{ModelFlags, Opened};
use super::records::{Lines, PromptRecord};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pellucid::engine::{Features, Score, ScoreRequest, score};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

/// Tokens of the requests that are gathered before they run together.
const GATHER: usize = 16_384;

/// Teacher-forced log-probs of given completions
///
/// Input lines hold a prompt ("messages", "prompt" or "prompt_token_ids", with "images" where there are some) and
/// "completion" or "completion_token_ids". Output lines hold both as tokens, with "logprobs", "greedy" and "entropy".
///
/// Example: pellucid score --model Qwen/Qwen2.5-0.5B-Instruct --input answers.jsonl --output scores.jsonl
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A folder, or a hub id in the offline cache
    #[arg(long)]
    model: String,

    /// Lines to score
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Where the scores go; an existing file is replaced
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// Score under the distribution at this temperature
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,

    /// The most tokens per forward pass; bounds memory, changes no bit
    #[arg(long, value_name = "N", default_value_t = 2048)]
    budget: usize,

    #[command(flatten)]
    model_flags: ModelFlags,
}

#[derive(Deserialize)]
#[serde(expecting = "an object that holds a prompt and a completion")]
struct Record {
    #[serde(flatten)]
    prompt: PromptRecord,
    completion: Option<String>,
    completion_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Scored<'a> {
    id: Value,
    prompt_token_ids: &'a [u32],
    completion_token_ids: &'a [u32],
    logprobs: &'a [f32],
    greedy: &'a [bool],
    entropy: &'a [f32],
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let opened = arguments.model_flags.open(&arguments.model, global)?;
    let lines = Lines::open(&arguments.input)?;
    let base = arguments.input.parent().unwrap_or(Path::new(""));
    let mut out = BufWriter::new(create(&arguments.output, &arguments.input)?);
    let hidden = global.quiet || !std::io::stderr().is_terminal();
    let bar = ProgressBar::with_draw_target(
        None,
        if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() },
    )
    .with_style(ProgressStyle::with_template("{pos} scored, {per_sec}, {elapsed}")?);

    let mut gathered = Vec::new();
    let mut tokens = 0;
    let mut totals = Totals::default();
    let mut features = Features::default();
    for line in lines {
        let (place, record) = line?;
        let number = totals.sequences + gathered.len() as u64;
        let (id, request) =
            read(&opened, record, base, number, &mut features).with_context(|| place.to_string())?;
        tokens += request.input().tokens().len() + request.completion().len();
        gathered.push((id, request));
        if tokens >= GATHER {
            flush(&opened, arguments, &mut gathered, &mut out, &mut totals)?;
            bar.set_position(totals.sequences);
            tokens = 0;
        }
    }
    flush(&opened, arguments, &mut gathered, &mut out, &mut totals)?;
    bar.finish_and_clear();
    let mean = totals.logp / totals.tokens.max(1) as f64;
    if global.json {
        let summary = json!({"sequences": totals.sequences, "tokens": totals.tokens, "mean_logprob": mean});
        writeln!(std::io::stdout(), "{summary}")?;
    } else if !global.quiet {
        eprintln!("{} completions, {} tokens, mean log-prob {mean:.4}", totals.sequences, totals.tokens);
    }
    Ok(())
}

/// The output, emptied, unless that would empty the input.
fn create(output: &Path, input: &Path) -> Result<File> {
    let real = |path: &Path| path.canonicalize().ok();
    if real(output).is_some_and(|output| real(input) == Some(output)) {
        bail!("{} is the input too; write the scores to another file", output.display());
    }
    File::create(output).with_context(|| format!("cannot write {}", output.display()))
}

#[derive(Default)]
struct Totals {
    sequences: u64,
    tokens: u64,
    logp: f64,
}

fn read(
    opened: &Opened,
    record: Record,
    base: &Path,
    number: u64,
    features: &mut Features,
) -> Result<(Value, ScoreRequest)> {
    let completion = match (record.completion, record.completion_token_ids) {
        (Some(text), None) => opened.reader.tokenizer().encode(&text)?,
        (None, Some(ids)) => ids,
        _ => bail!("give either completion or completion_token_ids"),
    };
    let (id, words, images) = record.prompt.into_parts(number)?;
    let input = opened.input(&words, &images, base, features)?;
    Ok((id, ScoreRequest::new(&opened.model, input, completion)?))
}

fn flush(
    opened: &Opened,
    arguments: &Arguments,
    gathered: &mut Vec<(Value, ScoreRequest)>,
    out: &mut impl Write,
    totals: &mut Totals,
) -> Result<()> {
    let (ids, requests): (Vec<Value>, Vec<ScoreRequest>) = gathered.drain(..).unzip();
    let adapter = opened.adapter.as_deref();
    let scores = score(&opened.model, adapter, &requests, arguments.temperature, arguments.budget)?;
    for ((id, request), score) in ids.into_iter().zip(&requests).zip(&scores) {
        let Score { logprobs, greedy, entropy } = score;
        totals.sequences += 1;
        totals.tokens += logprobs.len() as u64;
        totals.logp += logprobs.iter().map(|&logp| f64::from(logp)).sum::<f64>();
        let line = Scored {
            id,
            prompt_token_ids: request.input().tokens(),
            completion_token_ids: request.completion(),
            logprobs,
            greedy,
            entropy,
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    }
    Ok(out.flush()?)
}
