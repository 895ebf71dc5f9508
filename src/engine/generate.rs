//! One completion, token by token: an engine with one request in it.

use super::batch::Engine;
use super::input::Input;
use super::request::{Completion, Event, Limits, Request};
use super::sampling::Sampling;
use crate::error::{Error, Result};
use crate::model::{Adapter, Model, pages_for};
use crate::prompt::tokenizer::Tokenizer;
use std::sync::Arc;

/// Tokens per forward pass while the prompt is read; bounds the work space, changes no bit.
pub const PREFILL_CHUNK: usize = 1024;

/// What a completion is made with.
#[derive(Debug, Clone, Copy)]
pub struct Generation<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// An adapter, or the base weights.
    pub adapter: Option<&'a Arc<Adapter>>,
    /// Tokens that end a completion.
    pub end_tokens: &'a [u32],
}

/// Completes a prompt; `show` receives the text as it appears.
pub fn generate(
    with: Generation<'_>,
    input: &Arc<Input>,
    sampling: &Sampling,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Completion> {
    let Generation { model, tokenizer, adapter, end_tokens } = with;
    sampling.check_for(1, model.config.decoder.vocab)?;
    let most = input.check_length(model, sampling.max_tokens)?;
    // The last drawn token is never run.
    let limits = Limits { pages: pages_for(most - 1), tokens: PREFILL_CHUNK, sequences: 1 };
    let mut engine = Engine::new(model, tokenizer, end_tokens, limits)?;
    let adapter = adapter.map(|adapter| engine.publish(adapter.clone()));
    let (input, sampling, seeds) = (input.clone(), sampling.clone(), vec![sampling.seed]);
    engine.submit(Request { input, sampling, seeds, adapter })?;
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Text { text, .. } => show(&text)?,
                Event::Finished { completion, .. } => return Ok(completion),
                Event::Failed { error, .. } => return Err(error),
            }
        }
    }
    Err(Error::internal("generate", "the engine ended without a completion"))
}
