//! One microbatch through the model and back.

use super::pack::Microbatch;
use crate::backend::LogProbs;
use crate::engine::Input;
use crate::error::{Error, Result};
use crate::model::{Adapter, Gradients, Model, Passage, PlacedImage, Slopes, TrainWorkspace};
use crate::tensor::Tensor;
use std::sync::Arc;

/// A completion to learn from.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its prompt. Neighbours that hold the same one share its computation.
    pub input: Arc<Input>,
    /// Every token of it, the end token included if there was one.
    pub tokens: Vec<u32>,
    /// The sampler's log-probs, a value per token. Empty where nobody sampled it.
    pub old: Vec<f32>,
    /// How much better it was than others. Supervised samples have 1.
    pub advantage: f64,
    /// Which part of the loss it belongs to: tokens are weighed within a part, and parts are added. Where there is one
    /// role to learn, all are of part 0.
    pub part: u32,
}

/// A microbatch read by a model.
#[derive(Debug)]
pub struct Reading {
    /// Log-probs of the completions' tokens, sample by sample.
    pub logp: Vec<Vec<f64>>,
    /// Entropy of what they were drawn from.
    pub entropy: Vec<Vec<f64>>,
}

/// Runs microbatches; keeps its work space between them.
#[derive(Debug)]
pub struct Learner {
    model: Arc<Model>,
    work: TrainWorkspace,
}

/// What a pass found and a walk back needs.
struct Pass {
    packed: crate::model::Passages,
    hidden: Tensor,  // [N, C]
    rows: Tensor,    // [N]
    targets: Tensor, // [N]
    scores: LogProbs,
}

impl Learner {
    /// A learner with no work space yet.
    pub fn new(model: Arc<Model>) -> Result<Self> {
        Learner::keeping(model, 0)
    }

    /// One that keeps so many blocks' attention for the way back.
    pub fn keeping(model: Arc<Model>, blocks: usize) -> Result<Self> {
        let work = TrainWorkspace::new(&*model.backend, &model.decoder, blocks)?;
        Ok(Learner { model, work })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The model, to be changed; nobody else may hold it.
    pub(super) fn model_mut(&mut self) -> Result<&mut Model> {
        Arc::get_mut(&mut self.model)
            .ok_or_else(|| Error::internal("train", "a model was to be changed that somebody else holds"))
    }

    /// Gradients of the image features of the last microbatch that was learned from.
    pub(super) fn images(&self) -> &Tensor {
        self.work.images()
    }

    /// Bytes of activations it holds, and of what attention takes on its way back.
    pub fn bytes(&self) -> usize {
        let config = self.model.decoder.config();
        let scratch = self.model.backend.attention_scratch(config.heads, config.head_dim);
        self.work.bytes() + self.work.rows() * scratch
    }

    /// Log-probs at a temperature, and nothing else.
    pub fn read(
        &mut self,
        samples: &[Sample],
        batch: &Microbatch,
        adapter: Option<&Adapter>,
        temperature: f32,
    ) -> Result<Reading> {
        let pass = self.forward(samples, batch, adapter, temperature, false)?;
        self.reading(samples, batch, &pass)
    }

    /// Log-probs, and the gradient of a loss whose slopes by them `slopes` gives; added to `gradients`.
    pub fn learn(
        &mut self,
        samples: &[Sample],
        batch: &Microbatch,
        adapter: Option<&Adapter>,
        temperature: f32,
        slopes: impl FnOnce(&Reading) -> Result<Vec<Vec<f64>>>,
        gradients: &mut Gradients,
    ) -> Result<Reading> {
        let pass = self.forward(samples, batch, adapter, temperature, true)?;
        let reading = self.reading(samples, batch, &pass)?;
        let slopes = slopes(&reading)?.concat();
        let backend = &*self.model.backend;
        let dlogp = Tensor::from_slice(&[slopes.len()], &slopes)?.converted(backend.statistic())?;
        let dlogp = backend.upload(dlogp)?;
        let slopes = Slopes {
            hidden: &pass.hidden,
            rows: &pass.rows,
            targets: &pass.targets,
            lse: &pass.scores.lse,
            dlogp: &dlogp,
            temperature,
        };
        self.model.decoder.backward(backend, &pass.packed, adapter, &slopes, &mut self.work, gradients)?;
        Ok(reading)
    }

    fn forward(
        &mut self,
        samples: &[Sample],
        batch: &Microbatch,
        adapter: Option<&Adapter>,
        temperature: f32,
        keep: bool,
    ) -> Result<Pass> {
        let Model { decoder, backend, .. } = &*self.model;
        let images: Vec<Vec<PlacedImage<'_>>> =
            batch.groups.iter().map(|group| samples[group.start].input.images()).collect();
        let (mut passages, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = 0;
        for (group, images) in batch.groups.iter().zip(&images) {
            let input = &samples[group.start].input;
            let prompt = passages.len();
            let positions = input.positions();
            passages.push(Passage { tokens: input.tokens(), parent: None, positions, images });
            next += input.tokens().len();
            // The prompt's last row predicts the first token of every completion.
            let last = next as i32 - 1;
            for sample in &samples[group.clone()] {
                let Some((_, read)) = sample.tokens.split_last() else {
                    return Err(Error::caller("train", "a completion without tokens"));
                };
                rows.push(last);
                rows.extend(next as i32..(next + read.len()) as i32);
                targets.extend(sample.tokens.iter().map(|&token| token as i32));
                if !read.is_empty() {
                    passages.push(Passage { tokens: read, parent: Some(prompt), positions, images: &[] });
                }
                next += read.len();
            }
        }
        let vocab = self.model.config.decoder.vocab;
        if let Some(token) = targets.iter().find(|&&token| token as usize >= vocab) {
            let what = format!("token id {token} is not below the vocabulary of {vocab}");
            return Err(Error::caller("train", what));
        }
        let backend = &**backend;
        let packed = decoder.lay_out(backend, &passages)?;
        let index = |values: &[i32]| backend.upload(Tensor::from_slice(&[values.len()], values)?);
        let (rows, targets) = (index(&rows)?, index(&targets)?);
        let normed = decoder.read(backend, &passages, &packed, adapter, keep, &mut self.work)?;
        let mut hidden = backend.alloc(normed.dtype(), &[targets.len(), normed.row_len()])?;
        backend.gather_rows(&mut hidden, normed, &rows)?;
        let scores = decoder.scores(backend, &hidden, &targets, temperature)?;
        Ok(Pass { packed, hidden, rows, targets, scores })
    }

    fn reading(&self, samples: &[Sample], batch: &Microbatch, pass: &Pass) -> Result<Reading> {
        let lengths = || samples[batch.samples()].iter().map(|sample| sample.tokens.len());
        let of = |tensor: &Tensor| -> Result<Vec<Vec<f64>>> {
            let host = self.model.backend.download(tensor)?.to_f64();
            let mut rest = host.as_slice();
            let take = |length: usize| {
                let (mine, others) = rest.split_at(length);
                rest = others;
                mine.to_vec()
            };
            Ok(lengths().map(take).collect())
        };
        Ok(Reading { logp: of(&pass.scores.logp)?, entropy: of(&pass.scores.entropy)? })
    }
}
