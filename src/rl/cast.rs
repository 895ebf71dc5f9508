//! Everybody a run needs, opened from its configuration.

use super::actor::{Actor, Player};
use super::config::Config;
use super::episode::Rules;
use super::parts::{BASE, Kind, Prompts, ReasonerConfig};
use super::protocol::DENSE;
use super::remote::{Notice, Remote};
use super::stage::{Reasoner, Stage};
use crate::backend::Backend;
use crate::engine::{Limits, Sampling};
use crate::error::{Error, Result};
use crate::format::ModelConfig;
use crate::format::adapter::Adapter as AdapterFile;
use crate::model::{MemoryPlan, Model, Tenant, divide, pages_for, train_bytes};
use crate::prompt::reader::ImageOptions;
use crate::task::verify::Policy;
use crate::tensor::Tensor;
use crate::train::Lora;
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
    /// Hears what a person who waits should know, such as that a server is away; nobody at first.
    pub notice: Notice,
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
            reasoner: match config.reasoner.local() {
                Some(name) => Some(open(name, ImageOptions::default())?),
                None => None,
            },
            clarifier: match config.reference.clarifier.as_str() {
                name if other(name) => Some(open(name, images)?),
                _ => None,
            },
            notice: |_| {},
        })
    }

    /// What everybody needs of so many bytes: weights and work space, what training takes, and of what is left each a
    /// share for keys and values.
    pub fn memory(&self, config: &Config, free: u64) -> Result<Memory> {
        let run = &config.run;
        let tenant = |(name, player): (&'static str, &Player)| -> Result<Tenant> {
            let (decoder, backend) = (&player.model.config.decoder, &player.model.backend);
            let positions = run.positions.min(decoder.max_positions);
            let checkpoint = player.folder.checkpoint()?;
            let plan =
                MemoryPlan::new(decoder, &checkpoint, backend.activation(), positions, run.pass_tokens);
            let least = pages_for(positions);
            Ok(Tenant { name, plan, least, most: least * run.sequences })
        };
        let others = [("reasoner", &self.reasoner), ("clarifier", &self.clarifier)];
        let others = others.into_iter().filter_map(|(name, player)| Some((name, player.as_ref()?)));
        let tenants = [("captioner", &self.policy)].into_iter().chain(others);
        let mut tenants = tenants.map(tenant).collect::<Result<Vec<_>>>()?;
        if config.episode.kind == Kind::Prco {
            // The same weights in another role, with pages of their own.
            let Tenant { plan, least, most, .. } = tenants[0].clone();
            tenants.push(Tenant {
                name: "reasoner",
                plan: MemoryPlan { mapped: 0, held: 0, ..plan },
                least,
                most,
            });
        }
        let training = self.training_bytes(config)?;
        let Some(left) = free.checked_sub(training) else {
            let what = format!(
                "training takes {training} bytes and {free} are free; lower optim.microbatch_tokens or the adapter's rank"
            );
            return Err(Error::machine("memory", what));
        };
        let plans = divide(&tenants, left)?;
        Ok(Memory { free, training, parts: tenants.iter().map(|tenant| tenant.name).zip(plans).collect() })
    }

    /// Bytes of activations and of the adapter with its gradients and averages.
    fn training_bytes(&self, config: &Config) -> Result<u64> {
        let Model { config: model, backend, decoder, .. } = &*self.policy.model;
        let (dtype, cache) = (backend.activation(), decoder.cache_dtype(&**backend));
        let rows = config.optim.microbatch_tokens;
        let trained: usize = first(&self.policy.model.config, config)?.tensors().map(Tensor::len).sum();
        // A master, two averages and a gradient in f32, and the two copies that run.
        let adapter = trained * (4 * 4 + 2 * dtype.size());
        let scratch = rows * backend.attention_scratch(model.decoder.heads, model.decoder.head_dim);
        Ok((train_bytes(&model.decoder, dtype, cache, rows) + scratch + adapter) as u64)
    }

    /// Puts them on a stage, with the pages of a plan.
    pub fn stage(&self, config: &Config, memory: &Memory) -> Result<Stage<'_>> {
        let run = &config.run;
        let actor = |player, name, sampling| -> Result<Actor<'_>> {
            let pages = memory.pages(name)?;
            Actor::new(player, Limits { pages, tokens: run.pass_tokens, sequences: run.sequences }, sampling)
        };
        // Prompts are longer than a token; what fits behind none is not even tried.
        self.policy.fits("captioner", config.captioner.max_tokens, 1)?;
        if config.episode.measured_requests() > 0 {
            let clarifier = self.clarifier.as_ref().unwrap_or(&self.policy);
            clarifier.fits("reference", config.reference.max_tokens, 1)?;
        }
        let clarifying = drawn(config.reference.max_tokens, config.reference.temperature, 1.0);
        let mut policy = actor(&self.policy, "captioner", captioning(config))?;
        let reasoner = match config.reasoner.remote()? {
            Some(settings) => Reasoner::Remote(Box::new(Remote::new(settings, self.notice)?)),
            None => {
                let (player, sampling) = self.answering(config)?;
                player.fits("reasoner", sampling.max_tokens, 1)?;
                let mut actor = actor(player, "reasoner", sampling)?;
                let adapter = match &config.reasoner.adapter {
                    Some(folder) => {
                        let adapter = Arc::new(player.model.adapter(&AdapterFile::open(folder)?)?);
                        Some(actor.engine().publish(adapter))
                    }
                    None => None,
                };
                Reasoner::Local(Box::new(actor), adapter)
            }
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
                Some(player) => Some(actor(player, "clarifier", clarifying.clone())?),
                None => None,
            },
            policy,
            clarifier_adapter,
            clarifying,
            reasoner,
            fail_truncated: config.episode.fail_truncated,
            record: config.episode.kind == Kind::Prco,
        })
    }
}

impl Cast {
    /// Who answers in this process, and how answers are drawn.
    fn answering(&self, config: &Config) -> Result<(&Player, Sampling)> {
        let ReasonerConfig { max_tokens, temperature, top_p, .. } = config.reasoner;
        let answering = drawn(max_tokens, temperature, top_p);
        match (&self.reasoner, config.episode.kind) {
            // The policy in its other role.
            (None, Kind::Prco) => Ok((&self.policy, drawn(max_tokens, config.captioner.temperature, 1.0))),
            (Some(_), Kind::Prco) => {
                let what =
                    "reasoner.model is given, but in PRCO the captioner itself is the Solver; leave it out";
                Err(Error::caller("config", what))
            }
            (Some(player), _) => Ok((player, answering)),
            (None, _) => {
                let what = "no reasoner; give reasoner.model, a text model that answers from captions, or the \
                    reasoner.url of a server";
                Err(Error::caller("config", what))
            }
        }
    }
}

fn drawn(max_tokens: usize, temperature: f32, top_p: f32) -> Sampling {
    Sampling { max_tokens, temperature, top_p, ..Sampling::default() }
}

/// Bytes, by who needs them.
#[derive(Debug, Clone)]
pub struct Memory {
    /// What there is.
    pub free: u64,
    /// What training takes.
    pub training: u64,
    /// What each model takes.
    pub parts: Vec<(&'static str, MemoryPlan)>,
}

impl Memory {
    /// Pages of keys and values of a model.
    fn pages(&self, name: &str) -> Result<usize> {
        let plan = self.parts.iter().find(|(known, _)| *known == name);
        let (_, plan) = plan.ok_or_else(|| Error::internal("memory", format!("no plan for the {name}")))?;
        Ok((plan.kv / plan.page().max(1)) as usize)
    }
}

/// The adapter a run begins with.
pub fn first(model: &ModelConfig, config: &Config) -> Result<Lora> {
    match &config.captioner.adapter {
        Some(path) => Lora::of(model, &AdapterFile::open(path)?),
        None => Lora::fresh(model, config.captioner.lora.spec(&config.captioner.model)?, config.seed),
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
    let (mut protocol, wire) = (config.prompts.protocol()?, config.reasoner.wire);
    if config.episode.kind == Kind::Caprl && config.prompts == Prompts::default() {
        protocol.caption = DENSE.to_owned();
    }
    Ok(Rules { protocol, wire, requests, sees: false, policy: Policy::default() })
}

fn is_adapter(name: &str) -> bool {
    Path::new(name).join("adapter_config.json").is_file()
}
