//! Graded completions in, a better adapter out.

use super::learner::{Learner, Reading, Sample};
use super::lora::Lora;
use super::objective::{Aggregation, Clip, Kl, kl, part_weights, surrogate};
use super::optimiser::{Optimiser, OptimiserSettings, OptimiserState, Update};
use super::pack::{Lengths, Microbatch, pack};
use crate::error::{Error, Result};
use crate::model::{Adapter, Gradients, Model, kept_block_bytes};
use crate::tensor::Tensor;
use std::sync::Arc;

const OP: &str = "train";

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// How far one update may move a token.
    pub clip: Clip,
    /// The pull towards the model without its adapter: an estimate and its weight.
    pub kl: Option<(Kl, f64)>,
    /// How tokens count.
    pub aggregation: Aggregation,
    /// The temperature completions were sampled at.
    pub temperature: f32,
}

/// What a trainer is told.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// What is minimised.
    pub objective: Objective,
    /// By what.
    pub optimiser: OptimiserSettings,
    /// Tokens of one pass.
    pub microbatch_tokens: usize,
    /// Updates on the same completions.
    pub updates: usize,
    /// Bytes for activations that are kept in place of being computed again, block by block.
    pub keep_bytes: usize,
}

/// What an update did; means are over tokens of completions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// The loss.
    pub loss: f64,
    /// Mean divergence from the reference, by the estimate in use.
    pub kl: f64,
    /// Mean entropy in nats.
    pub entropy: f64,
    /// Share of tokens that the clip held.
    pub clip_fraction: f64,
    /// Greatest difference between the sampler's log-probs and ours before the first update. Anything but 0 is a bug.
    pub sampling_difference: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The rate.
    pub learning_rate: f64,
    /// Tokens of completions.
    pub tokens: usize,
    /// Tokens run through the model in one direction, prompts once per microbatch.
    pub computed: usize,
    /// Passes.
    pub microbatches: usize,
    /// What was not finite, the first of it; nothing has changed then.
    pub bad: Option<String>,
}

/// Trains an adapter of a model.
#[derive(Debug)]
pub struct Trainer {
    learner: Learner,
    lora: Lora,
    /// What runs now.
    current: Arc<Adapter>,
    /// What ran before, to be written over unless somebody still runs it.
    spare: Arc<Adapter>,
    gradients: Gradients,
    optimiser: Optimiser,
    settings: TrainSettings,
    /// What the reference is held by; none is the model alone.
    anchor: Option<Arc<Adapter>>,
}

impl Trainer {
    /// A trainer that has not trained yet.
    pub fn new(model: Arc<Model>, lora: Lora, settings: TrainSettings) -> Result<Self> {
        if settings.updates == 0 || settings.microbatch_tokens == 0 {
            return Err(Error::caller(OP, "updates and microbatch_tokens have to be at least 1"));
        }
        let backend = &*model.backend;
        let current = lora.adapter(backend, &model.config)?;
        let spare = Arc::new(current.like(backend)?);
        let optimiser = Optimiser::new(backend, settings.optimiser.clone(), lora.names(), lora.tensors())?;
        let gradients = Gradients::of_adapter(backend, &current)?;
        let block =
            kept_block_bytes(model.decoder.config(), backend.activation(), settings.microbatch_tokens);
        let learner = Learner::keeping(model.clone(), settings.keep_bytes / block.max(1))?;
        Ok(Trainer {
            learner,
            lora,
            current: Arc::new(current),
            spare,
            gradients,
            optimiser,
            settings,
            anchor: None,
        })
    }

    /// The reference is from now on the model with this adapter, which nobody trains, instead of the model alone.
    pub fn anchor(&mut self, adapter: Arc<Adapter>) {
        self.anchor = Some(adapter);
    }

    /// The adapter as it is now. It stays as it is: the next step brings another.
    pub fn adapter(&self) -> Arc<Adapter> {
        self.current.clone()
    }

    /// What it was told.
    pub fn settings(&self) -> &TrainSettings {
        &self.settings
    }

    /// Moves the adapter towards completions with positive advantages and away from the others.
    pub fn step(&mut self, samples: &[Sample]) -> Result<Vec<Stats>> {
        check(samples)?;
        let batches = batches(samples, self.settings.microbatch_tokens)?;
        let Objective { temperature, kl, .. } = self.settings.objective;
        let reference = match kl {
            Some(_) => {
                let read = |batch| self.learner.read(samples, batch, self.anchor.as_deref(), temperature);
                Some(batches.iter().map(read).collect::<Result<Vec<_>>>()?)
            }
            None => None,
        };
        let mut all = Vec::with_capacity(self.settings.updates);
        for _ in 0..self.settings.updates {
            let loss =
                PolicyLoss { objective: self.settings.objective, samples, reference: reference.as_deref() };
            all.push(self.update(samples, &batches, &loss)?);
        }
        Ok(all)
    }

    /// Moves the adapter towards completions, all alike: cross-entropy over their tokens.
    pub fn supervise(&mut self, samples: &[Sample]) -> Result<Stats> {
        let batches = batches(samples, self.settings.microbatch_tokens)?;
        self.update(samples, &batches, &CrossEntropy)
    }

    /// Loss of completions, all alike, without learning from them.
    pub fn cross_entropy(&mut self, samples: &[Sample]) -> Result<f64> {
        let batches = batches(samples, self.settings.microbatch_tokens)?;
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in &batches {
            let logp = self.learner.read(samples, batch, Some(&self.current), 1.0)?.logp.concat();
            sum -= logp.iter().sum::<f64>();
            tokens += logp.len();
        }
        Ok(sum / tokens.max(1) as f64)
    }

    /// Log-probs of completions by the reference, at the temperature they were drawn at: what a reward
    /// is shaped by.
    pub fn reference_logprobs(&mut self, samples: &[Sample]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(samples.len());
        for batch in batches(samples, self.settings.microbatch_tokens)? {
            let read = self.learner.read(
                samples,
                &batch,
                self.anchor.as_deref(),
                self.settings.objective.temperature,
            )?;
            all.extend(read.logp.iter().map(|logp| logp.iter().map(|&logp| logp as f32).collect()));
        }
        Ok(all)
    }

    fn update(&mut self, samples: &[Sample], batches: &[Microbatch], loss: &dyn Loss) -> Result<Stats> {
        let model = self.learner.model().clone();
        let backend = &*model.backend;
        self.gradients.clear(backend)?;
        let work = Work { samples, batches, adapter: Some(&*self.current), loss };
        let stats = work.gradient(&mut self.learner, &mut self.gradients, |_, _| Ok(()))?;
        if let Some(bad) = stats.bad.clone() {
            let Update { grad_norm, learning_rate, bad } = self.optimiser.pass_over(bad)?;
            return Ok(Stats { grad_norm, learning_rate, bad, ..stats });
        }
        if Arc::get_mut(&mut self.spare).is_none() {
            self.spare = Arc::new(self.current.like(backend)?);
        }
        let next =
            Arc::get_mut(&mut self.spare).ok_or_else(|| Error::internal(OP, "a spare adapter is held"))?;
        let update = self.optimiser.step(backend, &self.gradients.tensors(), next.tensors_mut())?;
        let Update { grad_norm, learning_rate, bad } = update;
        if bad.is_none() {
            std::mem::swap(&mut self.current, &mut self.spare);
        }
        Ok(Stats { grad_norm, learning_rate, bad, ..stats })
    }

    /// The adapter on the host, in f32.
    pub fn lora(&self) -> Result<Lora> {
        let mut lora = self.lora.clone();
        lora.replace(self.optimiser.masters(&*self.learner.model().backend)?)?;
        Ok(lora)
    }

    /// The optimiser's averages by name, on the host.
    pub(super) fn averages(&self) -> Result<Vec<(String, Tensor)>> {
        self.optimiser.averages(&*self.learner.model().backend)
    }

    /// The optimiser's counts.
    pub fn counts(&self) -> OptimiserState {
        self.optimiser.state()
    }

    /// Goes on from counts and averages.
    pub(super) fn restore(
        &mut self,
        counts: &OptimiserState,
        average: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<()> {
        let model = self.learner.model().clone();
        self.optimiser.restore(&*model.backend, counts, average)
    }

    /// Bytes of activations it holds.
    pub fn activation_bytes(&self) -> usize {
        self.learner.bytes()
    }
}

/// What an update learns from.
pub(super) struct Work<'a> {
    pub(super) samples: &'a [Sample],
    pub(super) batches: &'a [Microbatch],
    pub(super) adapter: Option<&'a Adapter>,
    pub(super) loss: &'a dyn Loss,
}

impl Work<'_> {
    /// Adds the gradient of the loss to `gradients`, unless a log-prob is not finite: that has no slope, and the statistics
    /// say so. `after` each microbatch its learner may be asked for more.
    pub(super) fn gradient(
        &self,
        learner: &mut Learner,
        gradients: &mut Gradients,
        mut after: impl FnMut(&Learner, &Microbatch) -> Result<()>,
    ) -> Result<Stats> {
        let Work { samples, batches, adapter, loss } = *self;
        let counted = |sample: &Sample| (sample.part, sample.tokens.len());
        let lengths: Vec<Vec<(u32, usize)>> =
            batches.iter().map(|batch| samples[batch.samples()].iter().map(counted).collect()).collect();
        let weights = part_weights(&lengths, loss.aggregation());
        let mut stats = Stats { microbatches: batches.len(), ..Stats::default() };
        for (number, (batch, weights)) in batches.iter().zip(&weights).enumerate() {
            stats.computed += batch.tokens;
            let slopes = |reading: &Reading| {
                stats.bad = odd(reading, batch);
                Ok(match stats.bad {
                    Some(_) => reading.logp.iter().map(|logp| vec![0.0; logp.len()]).collect(),
                    None => loss.slopes(number, batch, weights, reading, &mut stats),
                })
            };
            learner.learn(samples, batch, adapter, loss.temperature(), slopes, gradients)?;
            if stats.bad.is_some() {
                break;
            }
            after(learner, batch)?;
        }
        let tokens = stats.tokens.max(1) as f64;
        for sum in [&mut stats.kl, &mut stats.entropy, &mut stats.clip_fraction] {
            *sum /= tokens;
        }
        Ok(stats)
    }
}

/// A loss by its slopes.
pub(super) trait Loss {
    fn aggregation(&self) -> Aggregation;
    fn temperature(&self) -> f32;
    /// Slopes by the log-probs of a microbatch, and what they add to the statistics.
    fn slopes(
        &self,
        number: usize,
        batch: &Microbatch,
        weights: &[f64],
        reading: &Reading,
        stats: &mut Stats,
    ) -> Vec<Vec<f64>>;
}

/// −log p, every token alike.
struct CrossEntropy;

impl Loss for CrossEntropy {
    fn aggregation(&self) -> Aggregation {
        Aggregation::TokenMeanGlobal
    }

    fn temperature(&self) -> f32 {
        1.0
    }

    fn slopes(
        &self,
        _: usize,
        _: &Microbatch,
        weights: &[f64],
        reading: &Reading,
        stats: &mut Stats,
    ) -> Vec<Vec<f64>> {
        for ((logp, entropy), weight) in reading.logp.iter().zip(&reading.entropy).zip(weights) {
            stats.tokens += logp.len();
            stats.loss -= weight * logp.iter().sum::<f64>();
            stats.entropy += entropy.iter().sum::<f64>();
        }
        reading.logp.iter().zip(weights).map(|(logp, weight)| vec![-weight; logp.len()]).collect()
    }
}

/// The clipped surrogate and the pull of the reference.
struct PolicyLoss<'a> {
    objective: Objective,
    samples: &'a [Sample],
    /// Microbatch by microbatch.
    reference: Option<&'a [Reading]>,
}

impl Loss for PolicyLoss<'_> {
    fn aggregation(&self) -> Aggregation {
        self.objective.aggregation
    }

    fn temperature(&self) -> f32 {
        self.objective.temperature
    }

    fn slopes(
        &self,
        number: usize,
        batch: &Microbatch,
        weights: &[f64],
        reading: &Reading,
        stats: &mut Stats,
    ) -> Vec<Vec<f64>> {
        let samples = &self.samples[batch.samples()];
        let mut all = Vec::with_capacity(samples.len());
        for (at, (sample, &weight)) in samples.iter().zip(weights).enumerate() {
            let mut slopes = Vec::with_capacity(sample.tokens.len());
            for (token, &logp) in reading.logp[at].iter().enumerate() {
                let old = f64::from(sample.old[token]);
                let (mut slope, clipped) = surrogate(logp, old, sample.advantage, &self.objective.clip);
                if let (Some((kind, coefficient)), Some(reference)) = (self.objective.kl, self.reference) {
                    let pull = kl(kind, logp, reference[number].logp[at][token]);
                    slope.value += coefficient * pull.value;
                    slope.slope += coefficient * pull.slope;
                    stats.kl += pull.value;
                }
                stats.loss += weight * slope.value;
                stats.clip_fraction += f64::from(u8::from(clipped));
                stats.entropy += reading.entropy[at][token];
                stats.sampling_difference = stats.sampling_difference.max((logp - old).abs());
                slopes.push(weight * slope.slope);
            }
            stats.tokens += slopes.len();
            all.push(slopes);
        }
        all
    }
}

/// Samples into microbatches; neighbours that hold the same prompt share it.
pub(super) fn batches(samples: &[Sample], budget: usize) -> Result<Vec<Microbatch>> {
    if samples.is_empty() {
        return Err(Error::caller(OP, "no completions to learn from"));
    }
    let mut prompt = 0;
    let lengths: Vec<Lengths> = samples
        .iter()
        .enumerate()
        .map(|(number, sample)| {
            if number > 0 && !Arc::ptr_eq(&samples[number - 1].input, &sample.input) {
                prompt += 1;
            }
            Lengths { prompt, prompt_tokens: sample.input.tokens().len(), tokens: sample.tokens.len() }
        })
        .collect();
    pack(&lengths, budget)
}

fn check(samples: &[Sample]) -> Result<()> {
    for (number, sample) in samples.iter().enumerate() {
        let refuse = |what: String| Err(Error::caller(OP, format!("sample {number}: {what}")));
        if sample.old.len() != sample.tokens.len() {
            return refuse(format!("{} log-probs of {} tokens", sample.old.len(), sample.tokens.len()));
        }
        if let Some(odd) = sample.old.iter().find(|logp| !logp.is_finite()) {
            return refuse(format!("the sampler's log-prob {odd} is not finite"));
        }
        if !sample.advantage.is_finite() {
            return refuse(format!("advantage {} is not finite", sample.advantage));
        }
    }
    Ok(())
}

/// The first sample with a log-prob that is not finite.
fn odd(reading: &Reading, batch: &Microbatch) -> Option<String> {
    let at = reading.logp.iter().position(|logp| logp.iter().any(|logp| !logp.is_finite()))?;
    Some(format!("a log-prob of completion {}", batch.samples().start + at))
}
