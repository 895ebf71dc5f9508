//! A model that plays a part: what it is opened from, and the engine that runs it.

use crate::backend::Backend;
use crate::engine::{
    Completion, Engine, Event, Features, Input, Limits, Published, Request, Sampling, Ticket,
};
use crate::error::{Error, Result};
use crate::format::ModelFolder;
use crate::model::Model;
use crate::prompt::message::Message;
use crate::prompt::reader::{ImageOptions, Reader, Words};
use crate::prompt::template::RenderOptions;
use std::{path::Path, sync::Arc, time::Duration, time::Instant};

/// A model with what reads and writes words for it.
#[derive(Debug)]
pub struct Player {
    /// Its name, as the run was told it.
    pub name: String,
    /// What it was opened from.
    pub folder: ModelFolder,
    /// The model.
    pub model: Arc<Model>,
    /// What prepares its prompts.
    pub reader: Reader,
    /// Tokens that end what it says.
    pub end_tokens: Vec<u32>,
}

impl Player {
    /// Opens a folder, a built-in model or a hub id in the offline cache.
    pub fn open(name: &str, backend: Arc<dyn Backend>, images: ImageOptions) -> Result<Self> {
        let folder = ModelFolder::find(name)?;
        let model = Model::load(folder.path(), backend, None)?;
        let reader = Reader::open(&folder, &model.config, images)?;
        let end_tokens = folder.eos(&model.config)?;
        Ok(Player { name: name.to_owned(), folder, model: Arc::new(model), reader, end_tokens })
    }

    /// Refuses to say more than its context holds behind a prompt of so many tokens; `section` of the configuration has the
    /// limit.
    pub fn fits(&self, section: &str, max_tokens: usize, prompt: usize) -> Result<()> {
        let context = self.model.config.decoder.max_positions;
        if prompt.saturating_add(max_tokens) <= context {
            return Ok(());
        }
        let remedy = match context.saturating_sub(prompt) {
            0 => "shorten it: captioner.max_tokens bounds captions, captioner.max_pixels pictures".to_owned(),
            most => format!("set {section}.max_tokens to {most} at most"),
        };
        let what = format!(
            "{section}.max_tokens is {max_tokens} behind a prompt of {prompt} tokens or more, but {} has a context of \
             {context}; {remedy}",
            self.name
        );
        Err(Error::caller("config", what))
    }
}

/// Somebody who speaks.
#[derive(Debug)]
pub struct Actor<'m> {
    player: &'m Player,
    engine: Engine<'m>,
    features: Features,
    /// How it speaks; seeds are the request's.
    sampling: Sampling,
    /// Time its passes took.
    spent: Duration,
}

impl<'m> Actor<'m> {
    /// An actor with an engine of its own.
    pub fn new(player: &'m Player, limits: Limits, sampling: Sampling) -> Result<Self> {
        let engine = Engine::new(&player.model, player.reader.tokenizer(), &player.end_tokens, limits)?;
        Ok(Actor { player, engine, features: Features::default(), sampling, spent: Duration::ZERO })
    }

    /// How it speaks.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// As [`Player::fits`], of a prompt.
    pub fn fits(&self, section: &str, sampling: &Sampling, input: &Input) -> Result<()> {
        self.player.fits(section, sampling.max_tokens, input.tokens().len())
    }

    /// Speaks at another temperature from now on; returns the one before.
    pub fn set_temperature(&mut self, temperature: f32) -> f32 {
        std::mem::replace(&mut self.sampling.temperature, temperature)
    }

    /// The engine, to publish adapters to and to ask for its counts.
    pub fn engine(&mut self) -> &mut Engine<'m> {
        &mut self.engine
    }

    /// A conversation made ready, the reply begun with `prefix`. Paths of pictures are as their loader made them.
    pub fn input(&mut self, messages: &[Message], prefix: &str) -> Result<Input> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let words = Words::Messages(messages.to_vec());
        let mut read = self.player.reader.read(&words, &[], Path::new(""), &options)?;
        if !prefix.is_empty() {
            read.prompt.tokens.extend(self.player.reader.tokenizer().encode(prefix)?);
        }
        Input::prepare_with(&self.player.model, &read, &mut self.features)
    }

    /// Tokens its context has left behind a prompt.
    pub fn room(&self, input: &Input) -> usize {
        self.player.model.config.decoder.max_positions.saturating_sub(input.tokens().len())
    }

    /// Asks for a completion for each seed, and does not wait.
    pub fn ask(
        &mut self,
        input: Arc<Input>,
        sampling: Sampling,
        seeds: Vec<u64>,
        adapter: Option<&Published>,
    ) -> Result<Ticket> {
        self.engine.submit(Request { input, sampling, seeds, adapter: adapter.cloned() })
    }

    /// Whether it has nothing to say.
    pub fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    /// One pass, and what was finished by it.
    pub fn speak(&mut self) -> Result<Vec<(Ticket, usize, Completion)>> {
        let start = Instant::now();
        let events = self.engine.step()?;
        self.spent += start.elapsed();
        let mut finished = Vec::new();
        for event in events {
            match event {
                Event::Text { .. } => {}
                Event::Finished { ticket, lane, completion } => finished.push((ticket, lane, completion)),
                Event::Failed { error, .. } => return Err(error),
            }
        }
        Ok(finished)
    }

    /// Time its passes took since this was asked last.
    pub fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }

    /// Completions of several prompts, waited for: `[request][seed]`.
    pub fn complete(
        &mut self,
        requests: Vec<(Arc<Input>, Sampling, Vec<u64>)>,
        adapter: Option<&Published>,
    ) -> Result<Vec<Vec<Completion>>> {
        let mut tickets = Vec::with_capacity(requests.len());
        let mut all: Vec<Vec<Option<Completion>>> = Vec::with_capacity(requests.len());
        for (input, sampling, seeds) in requests {
            all.push(seeds.iter().map(|_| None).collect());
            tickets.push(self.ask(input, sampling, seeds, adapter)?);
        }
        while !self.is_idle() {
            for (ticket, lane, completion) in self.speak()? {
                if let Ok(at) = tickets.binary_search(&ticket) {
                    all[at][lane] = Some(completion);
                }
            }
        }
        let missing = || Error::internal("rollout", "an engine went idle with a completion open");
        all.into_iter()
            .map(|lanes| lanes.into_iter().collect::<Option<Vec<_>>>().ok_or_else(missing))
            .collect()
    }
}
