//! A run: sample, play, grade, learn, publish, and again.

use super::actor::Player;
use super::caprl;
use super::cast::{Cast, Memory, captioning, first, rules};
use super::config::{Config, Credit, Run as RunConfig};
use super::credit::{Graded, grade, grade_reasoner, shape};
use super::episode::Rules;
use super::evaluate::Roles;
use super::frozen::Frozen;
use super::leak::{self, LeakCheck};
use super::parts::{BASE, EpisodeConfig, Kind, Learn};
use super::prco::{self, Grading};
use super::protocol::{Places, filled};
use super::remote::RemoteCounters;
use super::source::Source;
use super::stage::{Group, Member, Played, Scene, Spent, Stage, Trial};
use crate::backend::philox::philox;
use crate::engine::{Published, Sampling};
use crate::error::{Error, Result};
use crate::format::adapter::Adapter as AdapterFile;
use crate::task::data::{Cursor, Fault, Problem};
use crate::task::verify::Policy;
use crate::train::{Checkpoint, Lora, Stats, Trainer, save};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// A run under way.
#[derive(Debug)]
pub struct Run<'m> {
    config: Config,
    sampler: Sampler<'m>,
    trainer: Trainer,
    credit: Credit,
    frozen: Frozen,
    state: RunState,
    adapter: Published,
    /// The next batch, if it was sampled during the last update.
    ahead: Option<Batch>,
    /// The reasoner's trainer, where it learns, too.
    pupil: Option<Pupil>,
}

/// A reasoner that learns.
#[derive(Debug)]
struct Pupil {
    trainer: Trainer,
    learn: Learn,
}

/// What samples batches.
#[derive(Debug)]
struct Sampler<'m> {
    stage: Stage<'m>,
    source: Source,
    rules: Rules,
    sampling: Sampling,
    episode: EpisodeConfig,
    steps: u64,
    seed: u64,
    problems: usize,
    group: usize,
}

/// Problems, their captions and what became of them.
#[derive(Debug)]
struct Batch {
    problems: Vec<Arc<Problem>>,
    groups: Vec<Group>,
    left_out: Vec<(Arc<Problem>, Error)>,
    spent: Spent,
    /// Written by the adapter of one update ago.
    stale: bool,
}

/// What a run has to remember beside its weights.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps taken.
    #[serde(skip)]
    pub step: u64,
    /// Where it is in its data.
    pub cursor: Cursor,
    /// Steps that nothing was learned in: no group had anything to say.
    pub skipped: u64,
    /// Tokens of prompts and captions so far, a prompt as often as it has captions.
    pub tokens: u64,
}

/// What a step did.
#[derive(Debug)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// What it was about.
    pub problems: Vec<Arc<Problem>>,
    /// The captions and what became of them.
    pub groups: Vec<Group>,
    /// Problems that could not be played, or not all of whose captions could be told: damaged pictures, too many words.
    pub left_out: Vec<(Arc<Problem>, Error)>,
    /// What they earned.
    pub graded: Graded,
    /// What right answers paid, by the requests they took.
    pub payment: Vec<f64>,
    /// Tokens of prompts and captions since the run began, a prompt as often as it has captions.
    pub tokens: u64,
    /// What each update did.
    pub stats: Vec<Stats>,
    /// What each update of a reasoner that learns did.
    pub reasoner: Vec<Stats>,
    /// Where the time of sampling went.
    pub spent: Spent,
    /// Time of the updates.
    pub update: Duration,
    /// Whether the captions are those of the adapter of one update ago.
    pub stale: bool,
    /// What has happened so far between the run and a server that reasons.
    pub remote: Option<RemoteCounters>,
}

impl<'m> Run<'m> {
    /// Begins, or goes on from a checkpoint. Rows of the data that are no problems are given beside it.
    pub fn begin(
        cast: &'m Cast,
        config: &Config,
        memory: &Memory,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(Self, Vec<Fault>)> {
        if config.captioner.full {
            let what =
                "captioner.full is for sft; reinforcement trains an adapter, whose base is the reference";
            return Err(Error::caller("train", what));
        }
        let model = &cast.policy.model;
        let mut stage = cast.stage(config, memory)?;
        let (mut trainer, state) = match checkpoint {
            Some(checkpoint) => {
                let state = RunState::deserialize(&checkpoint.state.run).map_err(|cause| {
                    let what = format!(
                        "was not left by train ({cause}); begin from its weights with captioner.adapter={}",
                        checkpoint.folder().display()
                    );
                    Error::file(checkpoint.folder(), what)
                })?;
                let trainer = checkpoint.trainer(model.clone(), config.train_settings()?)?;
                (trainer, RunState { step: checkpoint.state.global_step, ..state })
            }
            None => (
                Trainer::new(model.clone(), first(&model.config, config)?, config.train_settings()?)?,
                RunState::default(),
            ),
        };
        if config.reference.anchor != BASE {
            let file = AdapterFile::open(Path::new(&config.reference.anchor))?;
            trainer.anchor(Arc::new(model.adapter(&file)?));
        }
        let adapter = stage.policy.engine().publish(trainer.adapter());
        if config.episode.kind == Kind::Prco {
            stage.publish_reasoner(trainer.adapter());
        }
        let pupil = match (&config.reasoner.learn, &cast.reasoner) {
            (Some(learn), Some(player)) => Some(Pupil::begin(player, learn, config, &mut stage, checkpoint)?),
            _ => None,
        };
        let policy = Policy::default();
        let (source, faults) =
            Source::open(&config.data.train, &config.layout()?, &policy, config.seed, config.data.shuffle)?;
        let run = Run {
            frozen: Frozen::listen(&mut stage)?,
            credit: config.credit()?,
            sampler: Sampler {
                stage,
                source,
                rules: learning(rules(config, config.episode.requests())?, config),
                episode: config.episode.clone(),
                steps: config.run.steps,
                sampling: captioning(config),
                seed: config.seed,
                problems: config.optim.prompts_per_step,
                group: config.optim.group_size,
            },
            config: config.clone(),
            trainer,
            state,
            adapter,
            ahead: None,
            pupil,
        };
        Ok((run, faults))
    }

    /// One step, of which this is all. Where the run overlaps, the next batch is sampled meanwhile, with the adapter of
    /// before the update; not across a checkpoint, so that whoever goes on from one takes the same steps.
    pub fn step(&mut self) -> Result<Step> {
        let Batch { problems, groups, left_out, spent, stale } = match self.ahead.take() {
            Some(batch) => batch,
            None => self.sampler.batch(self.state.step, &mut self.state.cursor, &self.adapter)?,
        };
        let episode = &self.config.episode;
        let payment = episode.payment(self.state.step);
        let step = self.state.step;
        let mut graded = match episode.kind {
            Kind::Prco => {
                let draw = |number| unit(seed(self.config.seed, step, number, usize::MAX));
                prco::grade(&groups, &grading(episode), &self.credit, draw)?
            }
            _ => grade(&groups, &payment, &self.credit)?,
        };
        if let Some(pull) = self.credit.kl_in_reward
            && !graded.samples.is_empty()
        {
            let reference = self.trainer.reference_logprobs(&graded.samples)?;
            shape(&mut graded, &reference, pull, &self.credit.normalizer)?;
        }
        let next = self.state.step + 1;
        let Config { run: RunConfig { overlap, steps, save_every, .. }, .. } = self.config;
        let Run { sampler, trainer, state, adapter, frozen, pupil, credit, .. } = self;
        frozen.check(&mut sampler.stage)?;
        let turns = pupil.as_ref().map_or((true, false), |pupil| pupil.learn.turns(state.step));
        let start = Instant::now();
        let mut learn = || -> Result<(Vec<Stats>, Vec<Stats>)> {
            let reasoner = match (&mut *pupil, turns) {
                (Some(pupil), (_, true)) => pupil.step(&groups, credit)?,
                _ => Vec::new(),
            };
            let idle = !turns.0 || graded.samples.is_empty();
            Ok((if idle { Vec::new() } else { trainer.step(&graded.samples)? }, reasoner))
        };
        let (stats, reasoner) = if overlap && next < steps && !next.is_multiple_of(save_every) {
            let (stats, ahead) = std::thread::scope(|scope| {
                let ahead = scope.spawn(|| sampler.batch(next, &mut state.cursor, adapter));
                (learn(), ahead.join())
            });
            let ahead = ahead.map_err(|_| Error::internal("rollout", "sampling ahead came to no end"))??;
            self.ahead = Some(Batch { stale: true, ..ahead });
            stats?
        } else {
            learn()?
        };
        let update = start.elapsed();
        let read = |group: &Group| -> usize {
            let prompt = group.input.tokens().len();
            group.members.iter().map(|member| prompt + member.caption.tokens.len()).sum()
        };
        state.tokens += groups.iter().map(read).sum::<usize>() as u64;
        let tokens = state.tokens;
        let words: usize = graded.samples.iter().map(|sample| sample.tokens.len()).sum();
        if let Some(odd) = stats.iter().find(|stats| stats.bad.is_none() && stats.tokens != words) {
            let what =
                format!("the loss was over {} tokens, but {words} were drawn to be learned from", odd.tokens);
            return Err(Error::internal("isolation", what));
        }
        *adapter = sampler.stage.policy.engine().publish(trainer.adapter());
        if self.config.episode.kind == Kind::Prco {
            sampler.stage.publish_reasoner(trainer.adapter());
        }
        if let Some(pupil) = pupil {
            sampler.stage.publish_reasoner(pupil.trainer.adapter());
        }
        state.skipped += u64::from(stats.is_empty());
        state.step = next;
        let remote = sampler.stage.remote();
        Ok(Step {
            step: next,
            problems,
            groups,
            left_out,
            graded,
            payment,
            tokens,
            stats,
            reasoner,
            spent,
            update,
            stale,
            remote,
        })
    }

    /// Problems captioned once each, drawn as `sampling` says, and what becomes of the captions under several rules. The
    /// first of them is number `first` of all that are played like this.
    pub fn play(
        &mut self,
        problems: &[Arc<Problem>],
        first: usize,
        rules: &[Rules],
        sampling: &Sampling,
        roles: Roles,
    ) -> Result<Played> {
        let scenes: Vec<Scene<'_>> = problems
            .iter()
            .enumerate()
            .map(|(number, problem)| Scene {
                problem,
                trials: rules.iter().map(|rules| Trial { rules, problem }).collect(),
                // The same for every checkpoint: differences are the captioner's.
                seeds: vec![seed(self.config.seed, u64::MAX, first + number, 0)],
            })
            .collect();
        let observer = Some(&self.adapter).filter(|_| roles.observer);
        let stage = &mut self.sampler.stage;
        if self.config.episode.kind != Kind::Prco {
            return stage.play(&scenes, sampling, observer);
        }
        // The Solver answers as the Observer captions: drawn or greedy, as it is or as it was.
        let learned = stage.lend_reasoner(roles.solver, sampling.temperature);
        let played = stage.play(&scenes, sampling, observer);
        stage.return_reasoner(learned);
        played
    }

    /// Writes a checkpoint into the run's folder and returns its own. That of a reasoner that learns is in it.
    pub fn save(&self) -> Result<PathBuf> {
        let Config { run, .. } = &self.config;
        let state = serde_json::to_value(&self.state)
            .map_err(|cause| Error::internal("checkpoint", format!("the run's state is no JSON: {cause}")))?;
        let others: Vec<_> = self.pupil.iter().map(|pupil| (REASONER, &pupil.trainer)).collect();
        save(&self.trainer, &others, &run.out, self.state.step, run.keep, &state)
    }

    /// What has to be remembered.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// The run's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Where a checkpoint has that of a reasoner that learns.
pub const REASONER: &str = "reasoner";

impl Pupil {
    fn begin(
        player: &Player,
        learn: &Learn,
        config: &Config,
        stage: &mut Stage<'_>,
        captioner: Option<&Checkpoint>,
    ) -> Result<Self> {
        let mut settings = config.train_settings()?;
        settings.optimiser.learning_rate = learn.lr;
        settings.optimiser.steps = learn.shares(config.run.steps).1 * config.optim.epochs_per_batch as u64;
        settings.objective.temperature = config.reasoner.temperature;
        let model = &player.model;
        let trainer = match (captioner, &config.reasoner.adapter) {
            (None, Some(folder)) => {
                Trainer::new(model.clone(), Lora::of(&model.config, &AdapterFile::open(folder)?)?, settings)?
            }
            (None, None) => {
                let spec = learn.lora.spec(&player.name)?;
                Trainer::new(model.clone(), Lora::fresh(&model.config, spec, config.seed)?, settings)?
            }
            (Some(captioner), _) => captioner.beside(REASONER)?.trainer(model.clone(), settings)?,
        };
        stage.record = true;
        stage.publish_reasoner(trainer.adapter());
        Ok(Pupil { trainer, learn: learn.clone() })
    }

    fn step(&mut self, groups: &[Group], credit: &Credit) -> Result<Vec<Stats>> {
        let samples = grade_reasoner(groups, self.learn.kappa, credit)?;
        if samples.is_empty() { Ok(Vec::new()) } else { self.trainer.step(&samples) }
    }
}

impl Sampler<'_> {
    /// The batch of a step.
    fn batch(&mut self, step: u64, cursor: &mut Cursor, adapter: &Published) -> Result<Batch> {
        let problems = self.source.take(cursor, self.problems)?;
        let rules = Rules { sees: self.episode.sees(step, self.steps), ..self.rules.clone() };
        let scripts = problems.iter().enumerate().map(|(number, problem)| self.script(step, number, problem));
        let scripts = scripts.collect::<Result<Vec<Script>>>()?;
        let scenes: Vec<Scene<'_>> = scripts
            .iter()
            .enumerate()
            .map(|(number, Script { shown, asked })| Scene {
                problem: shown,
                trials: asked.iter().map(|problem| Trial { rules: &rules, problem }).collect(),
                seeds: (0..self.group).map(|member| seed(self.seed, step, number, member)).collect(),
            })
            .collect();
        let Played { groups, refused, spent } = self.stage.play(&scenes, &self.sampling, Some(adapter))?;
        drop(scenes);
        let left_out = refused.into_iter().map(|(at, error)| (problems[at].clone(), error)).collect();
        let (problems, mut groups): (Vec<_>, Vec<_>) =
            problems.into_iter().zip(groups).filter_map(|(problem, group)| Some((problem, group?))).unzip();
        if self.episode.kind == Kind::Prco {
            self.look_for_leaks(&problems, &mut groups)?;
        }
        Ok(Batch { problems, groups, left_out, spent, stale: false })
    }

    /// Which captions give the answer away.
    fn look_for_leaks(&mut self, problems: &[Arc<Problem>], groups: &mut [Group]) -> Result<()> {
        let members = groups.iter_mut().map(|group| &mut group.members);
        match self.episode.leaks() {
            LeakCheck::Off => {}
            LeakCheck::Rule => {
                for member in members.flatten() {
                    member.leaks = Some(leak::by_rule(&member.caption.text));
                }
            }
            LeakCheck::Model => {
                let text = &self.rules.protocol.leak;
                let asked = members.zip(problems).flat_map(|(members, problem)| {
                    let question = problem.asked();
                    let ask = move |member: &Member| {
                        let (question, caption) = (question.as_str(), member.caption.text.as_str());
                        filled(text, &Places { question, caption, ..Places::default() })
                    };
                    members.iter_mut().map(move |member| (ask(member), member))
                });
                let (texts, members): (Vec<String>, Vec<_>) = asked.unzip();
                let replies = self.stage.consult(&texts, leak::LONGEST_REPLY)?;
                for (member, reply) in members.into_iter().zip(replies) {
                    member.leaks = reply.and_then(|reply| leak::said(&reply.text));
                }
            }
        }
        Ok(())
    }

    /// What is done with a problem: captions for its question, which is answered by them as often as the run says; or
    /// captions for none in particular, by which all that is asked about its pictures is answered.
    fn script(&self, step: u64, number: usize, problem: &Arc<Problem>) -> Result<Script> {
        if self.episode.kind != Kind::Caprl {
            return Ok(Script {
                shown: problem.clone(),
                asked: vec![problem.clone(); self.episode.trials()],
            });
        }
        let drawn = seed(self.seed, step, number, usize::MAX);
        let put = caprl::put(problem, self.episode.questions, drawn, &self.rules.policy)?;
        let asked = put.into_iter().map(Arc::new).collect();
        Ok(Script { shown: Arc::new(caprl::unasked(problem)), asked })
    }
}

/// What captions are written for, and what is answered by them.
struct Script {
    shown: Arc<Problem>,
    asked: Vec<Arc<Problem>>,
}

/// The rules of a batch that is learned from. A Solver is not made to answer: those words would not be its own.
fn learning(mut rules: Rules, config: &Config) -> Rules {
    if config.episode.kind == Kind::Prco || config.reasoner.learn.is_some() {
        rules.protocol.insist.clear();
    }
    rules
}

fn grading(episode: &EpisodeConfig) -> Grading {
    let EpisodeConfig { lambda, shared, .. } = *episode;
    Grading { lambda, leaks: episode.leaks(), shared }
}

/// A number from 0 up to 1, of a seed.
fn unit(seed: u64) -> f64 {
    (seed >> 11) as f64 / (1u64 << 53) as f64
}

/// The seed of a caption: a function of where it stands in the run.
fn seed(run: u64, step: u64, problem: usize, member: usize) -> u64 {
    let at = [step as u32, (step >> 32) as u32, problem as u32, member as u32];
    let drawn = philox(at, [run as u32, (run >> 32) as u32]);
    u64::from(drawn[0]) << 32 | u64::from(drawn[1])
}
