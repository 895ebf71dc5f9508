//! One completion, token by token.

use super::input::{Input, check_context};
use super::sampling::Sampling;
use super::stop::StopWatch;
use crate::error::Result;
use crate::model::{Adapter, AdapterRows, Model, Run, pages_for};
use crate::prompt::tokenizer::Tokenizer;

/// Tokens per forward pass while the prompt is read; bounds the work space, changes no bit.
pub const PREFILL_CHUNK: usize = 1024;

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end token or a stop text.
    Stop,
    /// The most tokens asked for.
    Length,
}

impl Finish {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// A finished completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Its text, without end tokens and stop texts.
    pub text: String,
    /// Every drawn token, an end token included.
    pub tokens: Vec<u32>,
    /// Log-prob of every drawn token at the sampling temperature (1 when greedy), over the full vocabulary.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a completion is made with.
#[derive(Debug, Clone, Copy)]
pub struct Generation<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// An adapter, or the base weights.
    pub adapter: Option<&'a Adapter>,
    /// Tokens that end a completion.
    pub end_tokens: &'a [u32],
}

/// Completes a prompt; `show` receives the text as it appears.
pub fn generate(
    with: Generation<'_>,
    input: &Input,
    sampling: &Sampling,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Completion> {
    sampling.check()?;
    let Generation { model, tokenizer, adapter, end_tokens } = with;
    let backend = &*model.backend;
    let prompt = input.tokens().len();
    let most = prompt.saturating_add(sampling.max_tokens);
    check_context(model, most)?;
    // The last drawn token is never run.
    let mut cache = model.cache(pages_for(most - 1))?;
    let pages: Vec<u32> = (0..cache.pages() as u32).collect();
    let mut work = model.workspace()?;
    let images = input.images();
    let mut tokens = input.tokens().to_vec();
    let mut logprobs = Vec::new();
    let mut stream = tokenizer.stream(true);
    let mut watch = StopWatch::new(&sampling.stop);
    let mut start = 0;
    let mut met_stop = false;
    let finish = loop {
        let end = tokens.len().min(start + PREFILL_CHUNK);
        let run = Run {
            tokens: &tokens[start..end],
            start,
            positions: input.positions(),
            pages: &pages,
            images: &images,
        };
        let adapters: Vec<AdapterRows<'_>> =
            adapter.iter().map(|adapter| AdapterRows { rows: 0..end - start, adapter }).collect();
        let normed = model.decoder.forward(backend, &[run], &adapters, &mut cache, &mut work)?;
        let last = end - start - 1;
        start = end;
        if end < tokens.len() {
            continue;
        }
        let hidden = model.decoder.rows(backend, normed, &[last])?;
        let drawn = model.decoder.sample(backend, &hidden, &[sampling.draw(&tokens)])?;
        let (token, logp) = drawn.read(backend)?[0];
        tokens.push(token);
        logprobs.push(logp);
        if !sampling.ignore_eos && end_tokens.contains(&token) {
            break Finish::Stop;
        }
        let (text, met) = watch.push(&stream.push(token)?);
        show(&text)?;
        met_stop = met;
        if met {
            break Finish::Stop;
        }
        if tokens.len() == most {
            break Finish::Length;
        }
    };
    if !met_stop {
        let (text, _) = watch.push(&stream.finish()?);
        show(&text)?;
    }
    let (text, held_back) = watch.finish();
    show(&held_back)?;
    Ok(Completion { text, tokens: tokens.split_off(prompt), logprobs, finish })
}
