//! Every weight of a model trained, that of its image tower included: what pretrains tiny models.

use super::learner::{Learner, Reading, Sample};
use super::objective::Aggregation;
use super::optimiser::{Optimiser, OptimiserSettings, Update};
use super::pack::Microbatch;
use super::trainer::{Loss, Stats, Work, batches};
use crate::engine::{Input, patches};
use crate::error::{Error, Result};
use crate::model::{Gradients, Model, PatchedImage, TowerGradients};
use crate::prompt::reader::ReadPrompt;
use crate::tensor::Tensor;
use std::sync::Arc;

const OP: &str = "train";

/// A completion to learn from, beside the words and pictures before it.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// Its prompt. Neighbours that hold the same one share its computation.
    pub prompt: Arc<ReadPrompt>,
    /// Every token of it, the end token included if there was one.
    pub tokens: Vec<u32>,
    /// What each token counts; one of weight 0 is read and not learned, as what a user says between two answers is.
    pub weights: Vec<f64>,
}

impl Lesson {
    /// Lets every token count alike, and all of them together 1.
    pub fn count_alike(lessons: &mut [Lesson]) {
        let tokens: usize = lessons.iter().map(|lesson| lesson.tokens.len()).sum();
        for lesson in lessons {
            lesson.weights = vec![1.0 / tokens as f64; lesson.tokens.len()];
        }
    }
}

/// The loss: −log p of each token times its weight, all of them added up.
struct Weighted<'a>(&'a [Lesson]);

impl Weighted<'_> {
    fn of(&self, batch: &Microbatch, logp: &[Vec<f64>]) -> f64 {
        let lesson = |(lesson, logp): (&Lesson, &Vec<f64>)| -> f64 {
            lesson.weights.iter().zip(logp).map(|(weight, logp)| -weight * logp).sum()
        };
        self.0[batch.samples()].iter().zip(logp).map(lesson).sum()
    }
}

impl Loss for Weighted<'_> {
    fn aggregation(&self) -> Aggregation {
        Aggregation::TokenMeanGlobal
    }

    fn temperature(&self) -> f32 {
        1.0
    }

    /// Lessons bring their own weights.
    fn slopes(
        &self,
        _: usize,
        batch: &Microbatch,
        _: &[f64],
        reading: &Reading,
        stats: &mut Stats,
    ) -> Vec<Vec<f64>> {
        stats.loss += self.of(batch, &reading.logp);
        let lessons = &self.0[batch.samples()];
        for (lesson, entropy) in lessons.iter().zip(&reading.entropy) {
            let learned = lesson.weights.iter().zip(entropy).filter(|(weight, _)| **weight != 0.0);
            for (_, entropy) in learned {
                stats.tokens += 1;
                stats.entropy += entropy;
            }
        }
        lessons.iter().map(|lesson| lesson.weights.iter().map(|weight| -weight).collect()).collect()
    }
}

/// Trains a model that it owns.
#[derive(Debug)]
pub struct FullTrainer {
    pub(super) learner: Learner,
    gradients: Gradients,
    /// None of a tower that is frozen.
    pub(super) tower: Option<TowerGradients>,
    pub(super) optimiser: Optimiser,
    microbatch_tokens: usize,
}

impl FullTrainer {
    /// A trainer of every weight of the decoder, and of the image tower where `tower` says so.
    pub fn new(
        mut model: Model,
        tower: bool,
        settings: OptimiserSettings,
        microbatch_tokens: usize,
    ) -> Result<Self> {
        if microbatch_tokens == 0 {
            return Err(Error::caller(OP, "microbatch_tokens has to be at least 1"));
        }
        let backend = model.backend.clone();
        let tower = match &model.tower {
            Some(trained) if tower => Some(trained.gradients(&*backend)?),
            _ => None,
        };
        // Nothing is learned by weights that lie in a file, or that others read.
        let dtype = backend.activation();
        for weight in model.parameters_mut() {
            *weight = backend.upload(backend.download(weight)?.copied(dtype)?)?;
        }
        let (mut names, mut weights) = (Vec::<String>::new(), Vec::new());
        let listed = if tower.is_some() { model.parameters() } else { model.decoder.parameters() };
        for (name, weight) in listed {
            // Parts of a fused weight have its name in common; their averages need names of their own.
            let parts = names.iter().filter(|other| other.split('#').next() == Some(&name)).count();
            names.push(if parts == 0 { name } else { format!("{name}#{parts}") });
            weights.push(backend.download(weight)?);
        }
        let optimiser = Optimiser::new(&*backend, settings, names, &weights)?;
        let gradients = Gradients::of_decoder(&*backend, &model.decoder)?;
        let learner = Learner::new(Arc::new(model))?;
        Ok(FullTrainer { learner, gradients, tower, optimiser, microbatch_tokens })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        self.learner.model()
    }

    /// Moves the model towards completions: cross-entropy over their tokens, by their weights.
    pub fn supervise(&mut self, lessons: &[Lesson]) -> Result<Stats> {
        let stats = self.differentiate(lessons)?;
        let backend = self.model().backend.clone();
        let FullTrainer { learner, gradients, tower, optimiser, .. } = self;
        if let Some(bad) = stats.bad.clone() {
            let Update { grad_norm, learning_rate, bad } = optimiser.pass_over(bad)?;
            return Ok(Stats { grad_norm, learning_rate, bad, ..stats });
        }
        let model = learner.model_mut()?;
        let weights = if tower.is_some() { model.parameters_mut() } else { model.decoder.parameters_mut() };
        let mut all = gradients.tensors();
        all.extend(tower.iter().flat_map(TowerGradients::tensors));
        let Update { grad_norm, learning_rate, bad } = optimiser.step(&*backend, &all, weights)?;
        Ok(Stats { grad_norm, learning_rate, bad, ..stats })
    }

    /// The loss of completions and its gradient, without learning from it.
    pub fn differentiate(&mut self, lessons: &[Lesson]) -> Result<Stats> {
        let samples = self.samples(lessons)?;
        let batches = batches(&samples, self.microbatch_tokens)?;
        let backend = self.model().backend.clone();
        let FullTrainer { learner, gradients, tower, .. } = self;
        gradients.clear(&*backend)?;
        tower.iter_mut().try_for_each(|tower| tower.clear(&*backend))?;
        let loss = &Weighted(lessons);
        let work = Work { samples: &samples, batches: &batches, adapter: None, loss };
        work.gradient(learner, gradients, |learner, batch| match tower.as_mut() {
            Some(tower) => see(learner, lessons, batch, tower),
            None => Ok(()),
        })
    }

    /// The gradient that was found last, by the names of the weights.
    pub fn gradients(&self) -> Vec<(String, &Tensor)> {
        let tower = self.tower.iter().flat_map(TowerGradients::tensors);
        let all = self.gradients.tensors().into_iter().chain(tower);
        self.model().parameters().into_iter().map(|(name, _)| name).zip(all).collect()
    }

    /// Bytes of the decoder's activations it holds.
    pub fn activation_bytes(&self) -> usize {
        self.learner.bytes()
    }

    /// Loss of completions, without learning from them.
    pub fn cross_entropy(&mut self, lessons: &[Lesson]) -> Result<f64> {
        let samples = self.samples(lessons)?;
        let batches = batches(&samples, self.microbatch_tokens)?;
        let mut loss = 0.0;
        for batch in &batches {
            let reading = self.learner.read(&samples, batch, None, 1.0)?;
            loss += Weighted(lessons).of(batch, &reading.logp);
        }
        Ok(loss)
    }

    /// Lessons with their pictures as the tower sees them now.
    fn samples(&self, lessons: &[Lesson]) -> Result<Vec<Sample>> {
        if lessons.iter().flat_map(|lesson| &lesson.weights).all(|weight| *weight == 0.0) {
            return Err(Error::caller(OP, "no token of these lessons counts; there is nothing to learn"));
        }
        let mut samples: Vec<Sample> = Vec::with_capacity(lessons.len());
        for (number, Lesson { prompt, tokens, weights }) in lessons.iter().enumerate() {
            if weights.len() != tokens.len() || weights.iter().any(|weight| !weight.is_finite()) {
                let what = format!("lesson {number}: {weights:?} are no weights of {} tokens", tokens.len());
                return Err(Error::caller(OP, what));
            }
            let input = match number.checked_sub(1) {
                Some(last) if Arc::ptr_eq(&lessons[last].prompt, prompt) => samples[last].input.clone(),
                _ => Arc::new(Input::prepare(self.model(), prompt)?),
            };
            samples.push(Sample { input, tokens: tokens.clone(), old: Vec::new(), advantage: 1.0, part: 0 });
        }
        Ok(samples)
    }
}

/// From the gradients of the image features of a microbatch to those of the tower.
fn see(learner: &Learner, lessons: &[Lesson], batch: &Microbatch, room: &mut TowerGradients) -> Result<()> {
    let model = &**learner.model();
    let Model { tower: Some(tower), backend, .. } = model else { return Ok(()) };
    let all = learner.images();
    let mut next = 0;
    for group in &batch.groups {
        let ReadPrompt { prompt, images } = &*lessons[group.start].prompt;
        for span in &prompt.spans {
            let rows: Vec<i32> = (next..next + span.tokens.len() as i32).collect();
            next += rows.len() as i32;
            let index = backend.upload(Tensor::from_slice(&[rows.len()], &rows)?)?;
            let mut features = backend.alloc(all.dtype(), &[rows.len(), all.row_len()])?;
            backend.gather_rows(&mut features, all, &index)?;
            let (pixels, grid) = patches(model, &images[span.image])?;
            tower.backward(&**backend, PatchedImage { pixels: &pixels, grid }, &features, room)?;
        }
    }
    Ok(())
}
