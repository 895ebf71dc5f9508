//! `pellucid rollout`: completions of many prompts, a line in, a line out, as fast as the machine can.

use super::Global;
use super::model::{ModelFlags, Opened};
use super::records::{Lines, Place, PromptRecord};
use super::sampling::SamplingFlags;
use super::text::bytes;
use anyhow::{Context, Result, bail};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pellucid::engine::{Completion, Engine, Event, Features, Input, Limits, Request, Ticket};
use pellucid::model::{PAGE, bytes_per_position, pages_for};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Complete many prompts, with token ids and log-probs
///
/// Input lines hold a prompt ("messages", "prompt" or "prompt_token_ids", with "images" where there are some). Output
/// lines come in the order prompts finish and hold "completions", each with the log-prob of every token. An output
/// file that was interrupted is gone on with.
///
/// Example: pellucid rollout --model Qwen/Qwen2.5-VL-3B-Instruct --input prompts.jsonl --output rollouts.jsonl --n 8
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A folder, or a hub id in the offline cache
    #[arg(long)]
    model: String,

    /// Prompts to complete
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Where the completions go; lines that are there already are not made again
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// Completions of each prompt
    #[arg(long, value_name = "M", default_value_t = 1)]
    n: usize,

    /// The most completions at work at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    sequences: usize,

    /// The most tokens per forward pass; bounds memory, changes no bit
    #[arg(long, value_name = "N", default_value_t = 1024)]
    budget: usize,

    /// Pages of 64 positions for keys and values [default: room for `--sequences` of 2048 tokens]
    #[arg(long, value_name = "N")]
    pages: Option<usize>,

    #[command(flatten)]
    model_flags: ModelFlags,

    #[command(flatten)]
    sampling: SamplingFlags,
}

/// Positions a sequence gets room for where nobody says.
const POSITIONS: usize = 2048;

#[derive(Serialize)]
struct Rolled<'a> {
    id: &'a Value,
    prompt_token_ids: &'a [u32],
    completions: Vec<RolledCompletion<'a>>,
    weight_version: u64,
}

#[derive(Serialize)]
struct RolledCompletion<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    logprobs: &'a [f32],
    #[serde(skip_serializing_if = "<[f32]>::is_empty")]
    entropy: &'a [f32],
    finish_reason: &'static str,
    seed: u64,
}

/// A prompt at work.
struct Job {
    id: Value,
    input: Arc<Input>,
    seeds: Vec<u64>,
    done: Vec<Option<Completion>>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let opened = arguments.model_flags.open(&arguments.model, global)?;
    let sampling = arguments.sampling.settings(global.seed(), &opened.generation);
    sampling.check_for(arguments.n, opened.model.config.decoder.vocab)?;
    if arguments.n == 0 || arguments.n > arguments.sequences {
        bail!("--n {} has to lie between 1 and --sequences {}", arguments.n, arguments.sequences);
    }
    let (finished, mut out) = resume(&arguments.output, &arguments.input, arguments.n, sampling.entropy)?;
    let limits = limits(arguments, &opened);
    if !global.quiet {
        eprintln!("{}", plan(&opened, limits, finished.len()));
    }
    let mut engine = opened.engine(limits)?;
    let adapter = opened.adapter.as_ref().map(|adapter| engine.publish(adapter.clone()));
    let bar = progress(global)?;
    let start = Instant::now();
    let mut rollout =
        Rollout { finished, jobs: HashMap::new(), features: Features::default(), completions: 0 };
    let mut lines = Lines::open(&arguments.input)?.enumerate();
    let base = arguments.input.parent().unwrap_or(Path::new(""));
    // What is in the line already keeps the batch full while the next prompts are read.
    let ahead = 2 * arguments.sequences;
    let mut broken = None;
    loop {
        while broken.is_none() && rollout.jobs.len() * arguments.n < ahead {
            let Some((number, line)) = lines.next() else { break };
            let seeds = seeds(global.seed(), number as u64, arguments.n);
            let outcome = line.and_then(|(place, record)| {
                let job = rollout.read(&opened, record, number as u64, base, seeds);
                let job = job.with_context(|| place.to_string())?;
                Ok(job.map(|job| (place, job)))
            });
            match outcome {
                Ok(None) => {}
                Ok(Some((place, job))) => {
                    let (input, sampling, seeds) = (job.input.clone(), sampling.clone(), job.seeds.clone());
                    let request = Request { input, sampling, seeds, adapter: adapter.clone() };
                    match engine.submit(request) {
                        Ok(ticket) => drop(rollout.jobs.insert(ticket, job)),
                        Err(error) => broken = Some(anyhow::Error::new(error).context(place.to_string())),
                    }
                }
                Err(error) => broken = Some(error),
            }
        }
        if engine.is_idle() {
            break;
        }
        for event in engine.step()? {
            rollout.take(event, &mut out, u64::from(adapter.is_some()))?;
        }
        bar.set_position(rollout.completions);
        let drawn = engine.totals().drawn as f64;
        bar.set_message(format!("{:.0} tokens/s", drawn / start.elapsed().as_secs_f64()));
    }
    bar.finish_and_clear();
    // What was at work when a line turned out broken is finished and written all the same.
    if let Some(error) = broken {
        return Err(error);
    }
    let totals = engine.totals();
    let seconds = start.elapsed().as_secs_f64();
    if global.json {
        let summary = json!({
            "completions": rollout.completions,
            "tokens": totals.drawn,
            "seconds": seconds,
            "tokens_per_second": totals.drawn as f64 / seconds,
            "computed_tokens": totals.computed,
            "reused_tokens": totals.reused,
            "preempted": totals.preempted,
        });
        writeln!(std::io::stdout(), "{summary}")?;
    } else if !global.quiet {
        eprintln!(
            "{} completions, {} tokens in {}, {:.1} per second; {} tokens computed, {} found in pages, {} times preempted",
            rollout.completions,
            totals.drawn,
            HumanDuration(start.elapsed()),
            totals.drawn as f64 / seconds,
            totals.computed,
            totals.reused,
            totals.preempted
        );
    }
    Ok(())
}

/// Seeds of one line's completions: its own whatever else is in the file and in whatever order it runs.
fn seeds(seed: u64, line: u64, count: usize) -> Vec<u64> {
    let first = seed.wrapping_add(line.wrapping_mul(count as u64));
    (0..count as u64).map(|lane| first.wrapping_add(lane)).collect()
}

fn limits(arguments: &Arguments, opened: &Opened) -> Limits {
    let positions = POSITIONS.min(opened.model.config.decoder.max_positions);
    let pages = arguments.pages.unwrap_or(arguments.sequences * pages_for(positions));
    Limits { pages, tokens: arguments.budget, sequences: arguments.sequences }
}

/// What is about to be used, said before it is.
fn plan(opened: &Opened, limits: Limits, finished: usize) -> String {
    let decoder = &opened.model.decoder;
    let dtype = decoder.cache_dtype(&*opened.model.backend);
    let page = (bytes_per_position(decoder.config(), dtype) * PAGE) as u64;
    let cache = bytes(page * limits.pages as u64);
    let Limits { pages, sequences, .. } = limits;
    let resumed = match finished {
        0 => String::new(),
        count => format!("; {count} lines are there already"),
    };
    format!(
        "{cache} of keys and values in {pages} pages for up to {sequences} completions at a time{resumed}"
    )
}

fn progress(global: &Global) -> Result<ProgressBar> {
    let hidden = global.quiet || !std::io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{pos} completions, {msg}, {elapsed}")?;
    Ok(ProgressBar::with_draw_target(None, target).with_style(style))
}

struct Rollout {
    /// Ids that are in the output, or on their way there.
    finished: HashSet<String>,
    jobs: HashMap<Ticket, Job>,
    features: Features,
    completions: u64,
}

impl Rollout {
    /// The job of a line, unless it is done already.
    fn read(
        &mut self,
        opened: &Opened,
        record: PromptRecord,
        number: u64,
        base: &Path,
        seeds: Vec<u64>,
    ) -> Result<Option<Job>> {
        let (id, words, images) = record.into_parts(number)?;
        if !self.finished.insert(id.to_string()) {
            let at_work = self.jobs.values().any(|job| job.id == id);
            if at_work {
                bail!(
                    "id {id} is an earlier line's too; ids tell what is done already, so each needs its own"
                );
            }
            return Ok(None);
        }
        let input = Arc::new(opened.input(&words, &images, base, &mut self.features)?);
        let done = seeds.iter().map(|_| None).collect();
        Ok(Some(Job { id, input, seeds, done }))
    }

    /// Keeps what ended, and writes a line once all of it has.
    fn take(&mut self, event: Event, out: &mut File, weight_version: u64) -> Result<()> {
        let (ticket, lane, completion) = match event {
            Event::Text { .. } => return Ok(()),
            Event::Finished { ticket, lane, completion } => (ticket, lane, completion),
            Event::Failed { ticket, error, .. } => {
                let id = self.jobs.get(&ticket).map_or(Value::Null, |job| job.id.clone());
                return Err(anyhow::Error::new(error).context(format!("the prompt with id {id}")));
            }
        };
        self.completions += 1;
        let Some(job) = self.jobs.get_mut(&ticket) else { return Ok(()) };
        job.done[lane] = Some(completion);
        if job.done.iter().any(Option::is_none) {
            return Ok(());
        }
        let Some(job) = self.jobs.remove(&ticket) else { return Ok(()) };
        let completions = job.done.iter().flatten().zip(&job.seeds).map(|(done, &seed)| RolledCompletion {
            text: &done.text,
            token_ids: &done.tokens,
            logprobs: &done.logprobs,
            entropy: &done.entropy,
            finish_reason: done.finish.name(),
            seed,
        });
        let line = Rolled {
            id: &job.id,
            prompt_token_ids: job.input.tokens(),
            completions: completions.collect(),
            weight_version,
        };
        // One write a line: an interruption leaves at most one line unfinished.
        out.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes())
            .context("cannot write the output")
    }
}

/// The ids an output file holds, and the file ready for more. A last line that was cut off is taken away.
fn resume(output: &Path, input: &Path, n: usize, entropy: bool) -> Result<(HashSet<String>, File)> {
    let real = |path: &Path| path.canonicalize().ok();
    if real(output).is_some_and(|output| real(input) == Some(output)) {
        bail!("{} is the input too; write the completions to another file", output.display());
    }
    let mut options = OpenOptions::new();
    let file = options.create(true).read(true).write(true).truncate(false).open(output);
    let mut file = file.with_context(|| format!("cannot write {}", output.display()))?;
    let mut finished = HashSet::new();
    let mut whole = 0;
    let mut reader = BufReader::new(&mut file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        let place = Place::new(output, finished.len() as u64 + 1);
        let record: Value = serde_json::from_slice(&line).with_context(|| place.to_string())?;
        let count = record["completions"].as_array().map_or(0, Vec::len);
        if count != n {
            bail!(
                "{place}: {count} completions, but --n is {n}; another run made it, so choose another file"
            );
        }
        if record["completions"][0]["entropy"].is_array() != entropy {
            let (there, given) = if entropy { ("no entropy", "is") } else { ("entropy", "is not") };
            bail!(
                "{place}: {there}, but --entropy {given} given; another run made it, so choose another file"
            );
        }
        finished.insert(record["id"].to_string());
        whole += read as u64;
    }
    drop(reader);
    file.set_len(whole)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
    Ok((finished, file))
}

impl Opened {
    fn engine(&self, limits: Limits) -> Result<Engine<'_>> {
        let with = self.generation();
        Ok(Engine::new(with.model, with.tokenizer, with.end_tokens, limits)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_completion_of_a_file_has_a_seed_of_its_own() {
        let all: Vec<u64> = (0..5).flat_map(|line| seeds(u64::MAX - 3, line, 8)).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        assert_eq!(seeds(7, 0, 2), [7, 8]);
    }
}
