//! Everybody a run needs, opened from its configuration.

use super::actor::{Actor, Player};
use super::config::Config;
use super::episode::Rules;
use super::parts::BASE;
use super::stage::{Reasoner, Stage};
use crate::backend::Backend;
use crate::engine::Sampling;
use crate::error::{Error, Result};
use crate::format::adapter::Adapter as AdapterFile;
use crate::prompt::reader::ImageOptions;
use crate::task::verify::Policy;
use std::{path::Path, sync::Arc};

/// The models of a run.
#[derive(Debug)]
pub struct Cast {
    /// Who is trained.
    pub policy: Player,
    /// Who reasons, if it does so in this process.
    pub reasoner: Option<Player>,
    /// Who replies to requests, where that is another model than the policy's own.
    pub clarifier: Option<Player>,
}

impl Cast {
    /// Opens them all.
    pub fn open(config: &Config, backend: &Arc<dyn Backend>) -> Result<Self> {
        let images = ImageOptions {
            min_pixels: config.captioner.min_pixels,
            max_pixels: config.captioner.max_pixels,
            arithmetic: None,
        };
        let open = |name: &str, images| Player::open(name, backend.clone(), images);
        let other = |name: &str| name != BASE && !is_adapter(name);
        Ok(Cast {
            policy: open(&config.captioner.model, images)?,
            reasoner: match &config.reasoner.model {
                Some(name) => Some(open(name, ImageOptions::default())?),
                None => None,
            },
            clarifier: match config.reference.clarifier.as_str() {
                name if other(name) => Some(open(name, images)?),
                _ => None,
            },
        })
    }

    /// Puts them on a stage.
    pub fn stage(&self, config: &Config) -> Result<Stage<'_>> {
        let run = &config.run;
        let actor = |player, sampling| -> Result<Actor<'_>> {
            let player: &Player = player;
            let limits = player.limits(run.sequences, run.positions, run.pass_tokens);
            Actor::new(player, limits, sampling)
        };
        let greedy = |max_tokens, temperature, top_p| Sampling {
            max_tokens,
            temperature,
            top_p,
            ..Sampling::default()
        };
        let clarifying = greedy(config.reference.max_tokens, config.reference.temperature, 1.0);
        let mut policy = actor(&self.policy, captioning(config))?;
        let Some(player) = &self.reasoner else {
            let what = "no reasoner; give reasoner.model, a text model that answers from captions";
            return Err(Error::caller("config", what));
        };
        let said = &config.reasoner;
        let mut reasoner = actor(player, greedy(said.max_tokens, said.temperature, said.top_p))?;
        let reasons_with = match &said.adapter {
            Some(folder) => {
                let adapter = Arc::new(player.model.adapter(&AdapterFile::open(folder)?)?);
                Some(reasoner.engine().publish(adapter))
            }
            None => None,
        };
        let name = &config.reference.clarifier;
        let clarifier_adapter = if name != BASE && self.clarifier.is_none() {
            let adapter = self.policy.model.adapter(&AdapterFile::open(Path::new(name))?)?;
            Some(policy.engine().publish(Arc::new(adapter)))
        } else {
            None
        };
        Ok(Stage {
            clarifier: match &self.clarifier {
                Some(player) => Some(actor(player, clarifying.clone())?),
                None => None,
            },
            policy,
            clarifier_adapter,
            clarifying,
            reasoner: Reasoner::Local(Box::new(reasoner), reasons_with),
            fail_truncated: config.episode.fail_truncated,
        })
    }
}

/// How captions are drawn to learn from.
pub fn captioning(config: &Config) -> Sampling {
    Sampling {
        max_tokens: config.captioner.max_tokens,
        temperature: config.captioner.temperature,
        ..Sampling::default()
    }
}

/// The rules of a run's episodes, with so many requests.
pub fn rules(config: &Config, requests: usize) -> Result<Rules> {
    let (protocol, wire) = (config.prompts.protocol()?, config.reasoner.wire);
    Ok(Rules { protocol, wire, requests, policy: Policy::default() })
}

fn is_adapter(name: &str) -> bool {
    Path::new(name).join("adapter_config.json").is_file()
}
