//! `pellucid bench decode` and `bench prefill`: what a whole pass takes, from token ids to drawn tokens, and what its
//! weights, keys and values and products would take at the ceilings of this machine.
//!
//! A pass is what the engine runs, until the host has its tokens: the decoder over packed runs on pages, the head, a draw
//! for each sequence. Weights are random in a named shape, or a model's own; every sequence has pages of its own.

use super::super::{Global, kernels, machine::Memory, text::bytes};
use super::record::{Ceilings, Record, Timing};
use super::{kernels::ceilings, shapes};
use anyhow::{Context, Result, bail, ensure};
use pellucid::{
    backend::{Backend, Draw},
    format::ModelFolder,
    format::config::DecoderConfig,
    model::{
        Decoder, Decoding, KvCache, Model, PAGE, Positions, Run, Workspace, bytes_per_position, pages_for,
        workspace_bytes_per_row,
    },
    tensor::Dtype,
};
use std::{
    io::{Write, stdout},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

/// Tokens of a pass while pages are filled.
const CHUNK: usize = 1024;

/// Rounds, and seconds they may take where more than the fewest fit.
const FEWEST: usize = 5;
const MOST: usize = 200;
const SECONDS: f64 = 2.0;

#[derive(Debug, clap::Args)]
pub(super) struct What {
    /// Decoders with random weights, by name
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = shapes::NAMES, default_values_t = [String::from("qwen2.5-0.5b")])]
    pub(super) shapes: Vec<String>,

    /// A model with weights of its own instead: a folder, or a hub id in the offline cache
    #[arg(long, conflicts_with = "shapes")]
    pub(super) model: Option<String>,

    /// Also write a record, for `bench compare`
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,

    /// What else the record should remember, such as what else the machine did
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) note: String,
}

/// Time decoding passes by batch size, beside their floor
///
/// Each sequence draws one token behind a context of its own. The floor is what weights, keys and values take at the
/// speed of memory, or the products at the speed of arithmetic if that is more; both are measured in the same run.
///
/// Example: pellucid bench decode --shapes smollm2-135m --batch 1,8,32 --out decode.json
#[derive(Debug, clap::Args)]
pub(super) struct DecodeArguments {
    /// Sequences in a pass
    #[arg(long, value_name = "B,…", value_delimiter = ',', default_values_t = [1, 4, 8, 16, 32])]
    batch: Vec<usize>,

    /// Keys that each sequence sees, its own included
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,

    #[command(flatten)]
    what: What,
}

/// Time passes over whole prompts by length, beside their floor
///
/// The floor is as that of `bench decode`. One token is drawn behind each prompt.
///
/// Example: pellucid bench prefill --shapes smollm2-135m --tokens 128,1024 --out prefill.json
#[derive(Debug, clap::Args)]
pub(super) struct PrefillArguments {
    /// Tokens of the prompt
    #[arg(long, value_name = "T,…", value_delimiter = ',', default_values_t = [128, 512, 1024])]
    tokens: Vec<usize>,

    #[command(flatten)]
    what: What,
}

/// One kind of pass.
#[derive(Debug, Clone, Copy)]
struct Pass {
    verb: &'static str,
    sequences: usize,
    /// Tokens that each of them runs.
    tokens: usize,
    /// Keys that the last of these sees.
    keys: usize,
}

pub(super) fn decode(arguments: &DecodeArguments, global: &Global) -> Result<()> {
    let DecodeArguments { batch, context, what } = arguments;
    let pass = |&sequences: &usize| Pass { verb: "decode", sequences, tokens: 1, keys: *context };
    run(&batch.iter().map(pass).collect::<Vec<_>>(), what, global)
}

pub(super) fn prefill(arguments: &PrefillArguments, global: &Global) -> Result<()> {
    let PrefillArguments { tokens, what } = arguments;
    let pass = |&tokens: &usize| Pass { verb: "prefill", sequences: 1, tokens, keys: tokens };
    run(&tokens.iter().map(pass).collect::<Vec<_>>(), what, global)
}

fn run(passes: &[Pass], what: &What, global: &Global) -> Result<()> {
    if global.device.is_emulated() {
        bail!("the emulator's time says nothing about a device: measure on cpu, or on a device");
    }
    if passes.iter().any(|pass| pass.sequences == 0 || pass.tokens == 0 || pass.keys == 0) {
        bail!("a pass over nothing; --batch, --context and --tokens have to be at least 1");
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
        let subject = match what.model {
            Some(_) => Subject::of_files(name, &backend, passes)?,
            None => Subject::random(name, &backend, passes, global.seed())?,
        };
        for pass in passes {
            let timing = subject.time(pass, &record.ceilings).with_context(|| pass.name(name))?;
            if !global.json {
                writeln!(out, "{}", row(&timing))?;
            }
            record.kernels.push(timing);
        }
    }
    if let Some(path) = &what.out {
        record.write(path)?;
    }
    if global.json {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(out.flush()?)
}

/// A decoder to be timed.
struct Subject {
    name: String,
    backend: Arc<dyn Backend>,
    decoder: Decoder,
}

impl Subject {
    fn random(name: &str, backend: &Arc<dyn Backend>, passes: &[Pass], seed: u64) -> Result<Self> {
        let config = shapes::shape(name).with_context(|| format!("no shape is called {name}"))?;
        check_memory(&config, weights(&config) * Dtype::BF16.size(), &**backend, passes)?;
        let decoder = random_decoder(name, &**backend, seed)?;
        Ok(Subject { name: name.to_owned(), backend: backend.clone(), decoder })
    }

    fn of_files(name: &str, backend: &Arc<dyn Backend>, passes: &[Pass]) -> Result<Self> {
        let folder = ModelFolder::find(name)?;
        check_memory(&folder.config()?.decoder, 0, &**backend, passes)?;
        let decoder = Model::load(folder.path(), backend.clone(), None)?.decoder;
        let most = decoder.config().max_positions;
        if let Some(pass) = passes.iter().find(|pass| pass.keys > most) {
            bail!("{} keys, but {name} was made for {most} tokens", pass.keys);
        }
        let name = folder.path().file_name().map_or(name.into(), |name| name.to_string_lossy());
        Ok(Subject { name: name.into_owned(), backend: backend.clone(), decoder })
    }

    fn time(&self, pass: &Pass, ceilings: &Ceilings) -> Result<Timing> {
        let (backend, config) = (&*self.backend, self.decoder.config());
        let dtype = self.decoder.cache_dtype(backend);
        let mut ready = Ready::new(pass, &self.decoder, backend, dtype)?;
        let mut round = || {
            let start = Instant::now();
            ready.run(&self.decoder, backend).map(|()| start.elapsed().as_secs_f64())
        };
        round()?; // work space has its size from now on, and a device has recorded the pass
        let rounds = (SECONDS / round()?.max(1e-9)).clamp(FEWEST as f64, MOST as f64) as usize;
        let samples = (0..rounds).map(|_| round()).collect::<Result<_, _>>()?;
        let work = pass.work(config, self.decoder.head().dtype(), dtype);
        Ok(Timing::of(pass.name(&self.name), samples, 1, work, ceilings).over(pass.sequences * pass.tokens))
    }
}

/// A decoder of a named shape with random weights.
pub(super) fn random_decoder(name: &str, backend: &dyn Backend, seed: u64) -> Result<Decoder> {
    let config = shapes::shape(name).with_context(|| format!("no shape is called {name}"))?;
    let count = std::cell::Cell::new(seed);
    let make = |_: &str, shape: &[usize]| {
        count.set(count.get() + 1);
        // Of a size that keeps activations in range, as training does.
        let deviation = if let [_, inputs] = *shape { (inputs as f32).powf(-0.5) } else { 1.0 };
        kernels::random(count.get(), shape, deviation)
    };
    Ok(Decoder::made(backend, &config, &make)?)
}

/// A pass with everything in place.
struct Ready {
    pass: Pass,
    cache: KvCache,
    work: Workspace,
    tokens: Vec<u32>,
    positions: Positions,
    tables: Vec<Vec<u32>>,
}

impl Ready {
    fn new(pass: &Pass, decoder: &Decoder, backend: &dyn Backend, dtype: Dtype) -> Result<Self> {
        let Pass { sequences, tokens, keys, .. } = *pass;
        let each = pages_for(keys) as u32;
        let vocab = decoder.config().vocab;
        let mut ready = Ready {
            pass: *pass,
            cache: KvCache::new(backend, decoder.config(), dtype, sequences * each as usize)?,
            work: decoder.workspace(backend)?,
            tokens: (0..keys).map(|at| (at * 7919 % vocab) as u32).collect(),
            positions: Positions::plain(keys),
            tables: (0..sequences as u32).map(|at| (at * each..(at + 1) * each).collect()).collect(),
        };
        ready.work.reserve_seats(backend, sequences)?;
        // The first sequence reads its context, and the others get a copy of what it came to.
        let before = keys - tokens;
        for start in (0..before).step_by(CHUNK) {
            let Ready { cache, work, tokens, positions, tables, .. } = &mut ready;
            let tokens = &tokens[start..before.min(start + CHUNK)];
            let run = Run { tokens, seat: None, start, positions, pages: &tables[0], images: &[] };
            decoder.forward(backend, &[run], &[], cache, work)?;
        }
        for table in &ready.tables[1..] {
            for (&from, &to) in ready.tables[0].iter().zip(table).take(pages_for(before)) {
                ready.cache.copy_page(backend, from, to)?;
            }
        }
        Ok(ready)
    }

    fn run(&mut self, decoder: &Decoder, backend: &dyn Backend) -> pellucid::Result<()> {
        let Ready { pass: Pass { sequences, tokens: count, keys, .. }, cache, work, .. } = self;
        let start = *keys - *count;
        let run = |pages| Run {
            tokens: &self.tokens[start..],
            seat: None,
            start,
            positions: &self.positions,
            pages,
            images: &[],
        };
        let position = *keys as u32;
        let draws = (0..*sequences as u64).map(|seed| Draw { seed, position, ..Draw::default() });
        let runs = self.tables.iter().map(|table| run(table));
        if *count == 1 && backend.recorder().is_some() {
            let each =
                runs.zip(draws).zip(0..).map(|((run, draw), seat)| Decoding { run, draw, tokens: 1, seat });
            let drawn = decoder.decode(backend, &each.collect::<Vec<_>>(), &[], cache, work)?;
            return drawn.land()?.into_iter().flatten().try_for_each(|token| token.map(drop));
        }
        let (runs, draws): (Vec<Run<'_>>, Vec<Draw<'_>>) = (runs.collect(), draws.collect());
        decoder.forward(backend, &runs, &[], cache, work)?;
        let ends: Vec<usize> = (1..=*sequences).map(|at| at * *count - 1).collect();
        let hidden = decoder.rows(backend, work.normed(), &ends)?;
        decoder
            .sample(backend, &hidden, &draws, false)?
            .read(backend)?
            .into_iter()
            .try_for_each(|token| token.map(drop))
    }
}

impl Pass {
    fn name(&self, subject: &str) -> String {
        let Pass { verb, sequences, tokens, keys } = self;
        match *verb {
            "prefill" => format!("{verb} {subject} T={tokens}"),
            _ => format!("{verb} {subject} B={sequences} keys={keys}"),
        }
    }

    /// Weights are read once, and of each sequence what it sees; a product is two operations.
    fn work(&self, config: &DecoderConfig, weight: Dtype, cache: Dtype) -> kernels::Work {
        let Pass { sequences, tokens, keys, .. } = *self;
        let head = config.vocab * config.hidden;
        let blocks = weights(config) - head;
        let states = sequences * keys * bytes_per_position(config, cache);
        let seen = sequences * (tokens * (keys - tokens) + tokens * (tokens + 1) / 2);
        let attention = 4 * seen * config.heads * config.head_dim * config.layers;
        kernels::Work {
            bytes: ((blocks + head) * weight.size() + states) as f64,
            flops: (2 * sequences * (tokens * blocks + head) + attention) as f64,
        }
    }
}

/// Weights that a pass reads, the head's included; biases and norms are few.
pub(super) fn weights(config: &DecoderConfig) -> usize {
    let DecoderConfig { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, .. } = *config;
    layers * hidden * (2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * ffn) + vocab * hidden
}

/// Refuses what there is no room for, before anything is made.
fn check_memory(config: &DecoderConfig, held: usize, backend: &dyn Backend, passes: &[Pass]) -> Result<()> {
    let activation = backend.activation();
    let kv_per_token = bytes_per_position(config, Dtype::BF16) as u64;
    let pages = |pass: &Pass| pass.sequences.saturating_mul(pages_for(pass.keys));
    let rows = |pass: &Pass| pass.sequences.saturating_mul(pass.tokens).max(CHUNK);
    let (pages, rows) =
        (passes.iter().map(pages).max().unwrap_or(0), passes.iter().map(rows).max().unwrap_or(0));
    let needed = (rows.saturating_mul(workspace_bytes_per_row(config, activation)))
        .saturating_add(pages.saturating_mul(PAGE * kv_per_token as usize))
        .saturating_add(held) as u64;
    let free = backend.free_memory()?.or_else(|| Memory::read().map(|memory| memory.available_bytes));
    let enough = free.is_none_or(|free| needed <= free);
    ensure!(
        enough,
        "{} are needed and {} are free; ask for fewer sequences, shorter ones, or a smaller shape",
        bytes(needed),
        bytes(free.unwrap_or(0))
    );
    Ok(())
}

pub(super) const HEADING: &str =
    "                                              ms a pass  tokens/s      GB/s   TFLOP/s  floor ms   share";

/// A timing for people.
pub(super) fn row(timing: &Timing) -> String {
    let Timing { name, us, gigabytes_per_second, teraflops_per_second, floor_us, .. } = timing;
    let rate = timing.tokens_per_second.unwrap_or(0.0);
    let share = 100.0 * timing.share_of_floor;
    format!(
        "{name:<44}{:>11.2}{rate:>10.1}{gigabytes_per_second:>10.1}{teraflops_per_second:>10.3}{:>10.2}{share:>7.0}%",
        us / 1e3,
        floor_us / 1e3
    )
}
