//! The whole model: decode at several batch sizes and a prefill, from a checkpoint folder.
//!
//!     python benches/peers/checkpoint.py /tmp/half
//!     cargo bench --bench model -- /tmp/half --threads 4
//!
//! What is measured, here and in `benches/peers/` alike: decode is one forward pass of one new token for each of B
//! sequences with 512 tokens of context, logits, and the greedy pick (here with its log-prob); prefill is a pass over 512
//! tokens and the pick after the last. Medians after warm-up, of every single step or pass. The read bandwidth that a
//! decode has a share of is measured before each of its rounds, too: what the neighbours of a machine leave of it changes
//! from second to second.

mod support;

use pellucid::Result;
use pellucid::backend::{Draw, cpu::Cpu};
use pellucid::model::{Model, PAGE, Positions, Run, pages_for};
use pellucid::tensor::Tensor;
use serde_json::json;
use std::sync::Arc;
use support::timing;

const CONTEXT: usize = 512;
const STEPS: usize = 32;
const WARM_UP: usize = 3;

fn main() -> Result<()> {
    let arguments = support::Arguments::read();
    let Some(folder) = arguments.folder("model") else { return Ok(()) };
    let threads = arguments.number("--threads", std::thread::available_parallelism().map_or(1, |n| n.get()));
    let rounds = arguments.number("--rounds", 3);
    let cpu = Arc::new(Cpu::new(Some(threads))?);
    let bandwidth = cpu.ceilings(5)?.read;
    let model = Model::load(&folder, cpu.clone(), None)?;
    let cost = Cost::of(&model);
    println!("{} on {}", folder.display(), model.backend.describe());
    println!(
        "read bandwidth {:.1} GB/s; a pass streams {:.3} GB of weights",
        bandwidth / 1e9,
        cost.bytes / 1e9
    );

    let mut record = json!({ "threads": threads, "bandwidth": bandwidth, "weight_bytes": cost.bytes });
    for batch in [1, 8] {
        let rounds = decode(&model, &cpu, batch, rounds)?;
        let share = |round: &Round| cost.bytes / timing::median(round.seconds.clone()) / round.bandwidth;
        let share = timing::median(rounds.iter().map(share).collect());
        let seconds = timing::median(rounds.into_iter().flat_map(|round| round.seconds).collect());
        let streamed = cost.bytes / seconds;
        println!(
            "decode B={batch}: {:8.2} tokens/s, {:7.2} ms a step, {:5.1} GB/s of weights, {:.0} % of the read bandwidth",
            batch as f64 / seconds,
            seconds * 1e3,
            streamed / 1e9,
            100.0 * share
        );
        record[format!("decode{batch}")] = json!(batch as f64 / seconds);
        record[format!("read_share{batch}")] = json!(share);
    }
    let seconds = timing::median(prefill(&model, rounds)?);
    println!(
        "prefill T={CONTEXT}: {:8.1} tokens/s, {:.1} ms, {:.0} GFLOP/s",
        CONTEXT as f64 / seconds,
        seconds * 1e3,
        cost.prefill_flops / seconds / 1e9
    );
    record["prefill"] = json!(CONTEXT as f64 / seconds);
    arguments.write_json(&record);
    Ok(())
}

/// What a pass costs at least.
struct Cost {
    /// Bytes of the matrices every pass reads: the blocks and the head.
    bytes: f64,
    /// Of a prefill: two per weight and token, the head for the last token alone, and causal attention.
    prefill_flops: f64,
}

impl Cost {
    fn of(model: &Model) -> Self {
        let config = model.decoder.config();
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let block = config.hidden * (2 * queries + 2 * keys + 3 * config.ffn);
        let (blocks, head) = (config.layers * block, config.vocab * config.hidden);
        let attention = 2 * config.layers * CONTEXT * CONTEXT * queries;
        Cost {
            bytes: ((blocks + head) * model.decoder.head().dtype().size()) as f64,
            prefill_flops: (2 * CONTEXT * blocks + 2 * head + attention) as f64,
        }
    }
}

/// Some tokens, different in every sequence.
fn prompt(model: &Model, sequence: usize) -> Vec<u32> {
    let vocab = model.config.decoder.vocab;
    (0..CONTEXT).map(|at| ((at * 7919 + sequence * 104_729 + 11) % vocab) as u32).collect()
}

/// Some decode steps, and the read bandwidth just before them.
struct Round {
    bandwidth: f64,
    seconds: Vec<f64>,
}

/// Decode steps of `batch` sequences.
fn decode(model: &Model, cpu: &Cpu, batch: usize, rounds: usize) -> Result<Vec<Round>> {
    let backend = &*model.backend;
    let per_sequence = pages_for(CONTEXT + STEPS + WARM_UP);
    let mut cache = model.cache(batch * per_sequence)?;
    let mut work = model.workspace()?;
    let positions = Positions::plain(per_sequence * PAGE);
    let pages: Vec<u32> = (0..(batch * per_sequence) as u32).collect();
    let tables: Vec<&[u32]> = pages.chunks(per_sequence).collect();
    fn run<'a>(tokens: &'a [u32], start: usize, positions: &'a Positions, pages: &'a [u32]) -> Run<'a> {
        Run { tokens, seat: None, start, positions, pages, images: &[] }
    }
    for (sequence, table) in tables.iter().enumerate() {
        let prompt = prompt(model, sequence);
        model.decoder.forward(backend, &[run(&prompt, 0, &positions, table)], &[], &mut cache, &mut work)?;
    }
    let mut all = Vec::new();
    for _ in 0..rounds {
        let mut round = Round { bandwidth: cpu.ceilings(3)?.read, seconds: Vec::new() };
        let mut tokens: Vec<u32> = (0..batch as u32).collect();
        for step in 0..WARM_UP + STEPS {
            let (picked, took) = timing::timed(|| {
                let runs: Vec<Run<'_>> = tokens
                    .chunks(1)
                    .zip(&tables)
                    .map(|(token, table)| run(token, CONTEXT + step, &positions, table))
                    .collect();
                let normed = model.decoder.forward(backend, &runs, &[], &mut cache, &mut work)?;
                greedy(model, normed)
            });
            tokens = picked?;
            if step >= WARM_UP {
                round.seconds.push(took);
            }
        }
        all.push(round);
    }
    Ok(all)
}

/// Seconds of every prefill.
fn prefill(model: &Model, rounds: usize) -> Result<Vec<f64>> {
    let backend = &*model.backend;
    let mut cache = model.cache(pages_for(CONTEXT))?;
    let mut work = model.workspace()?;
    let positions = Positions::plain(CONTEXT);
    let pages: Vec<u32> = (0..cache.pages() as u32).collect();
    let mut seconds = Vec::new();
    for round in 0..1 + 2 * rounds {
        let tokens = prompt(model, round);
        let (picked, took) = timing::timed(|| {
            let run = Run {
                tokens: &tokens,
                seat: None,
                start: 0,
                positions: &positions,
                pages: &pages,
                images: &[],
            };
            let normed = model.decoder.forward(backend, &[run], &[], &mut cache, &mut work)?;
            let last = model.decoder.rows(backend, normed, &[CONTEXT - 1])?;
            greedy(model, &last)
        });
        std::hint::black_box(picked?);
        if round > 0 {
            seconds.push(took);
        }
    }
    Ok(seconds)
}

/// The likeliest token after each row, as an engine draws it.
fn greedy(model: &Model, normed: &Tensor) -> Result<Vec<u32>> {
    let backend = &*model.backend;
    let draws = vec![Draw { temperature: 0.0, ..Draw::default() }; normed.rows()];
    let drawn = model.decoder.sample(backend, normed, &draws, false)?.read(backend)?;
    drawn.into_iter().map(|drawn| drawn.map(|token| token.id)).collect()
}
