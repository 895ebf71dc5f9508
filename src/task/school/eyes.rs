//! An image tower that learns to see: what stands in each cell, read off its features by heads that are thrown away.

use super::lessons::Pictures;
use super::{chance, optimiser};
use crate::backend::{Backend, LogProbs};
use crate::error::{Error, Result};
use crate::model::{Model, PatchedImage, TowerGradients};
use crate::task::world::{Cell, Chance, PICTURE_TOKENS, Purpose, Scene};
use crate::tensor::{Dtype, Tensor};
use crate::train::Optimiser;

/// Scenes of a step.
const SCENES: usize = 128;

const LEARNING_RATE: f64 = 2e-3;
const EPS: f32 = 1e-6;

/// What a cell is asked: the colour, shape and number in it, one more for nothing; and which cell it is.
const QUESTIONS: [usize; 4] = [6, 5, 10, 9];

/// How well a tower sees: by colour, shape, number and cell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sight {
    /// Mean losses.
    pub losses: [f64; 4],
    /// Shares that are right.
    pub right: [f64; 4],
}

/// A model whose image tower learns.
#[derive(Debug)]
pub struct Eyes {
    model: Model,
    pictures: Pictures,
    gradients: TowerGradients,
    heads: Vec<Tensor>,          // [answers, C]
    head_gradients: Vec<Tensor>, // [answers, C]
    /// The weight of a norm that has none.
    ones: Tensor, // [C]
    optimiser: Optimiser,
    seed: u64,
    step: u64,
}

impl Eyes {
    /// Begins this many steps.
    pub fn new(model: Model, seed: u64, steps: u64) -> Result<Self> {
        let Some(tower) = &model.tower else {
            return Err(Error::caller("pretrain", "this model reads no images"));
        };
        let (backend, hidden) = (&*model.backend, model.config.decoder.hidden);
        let gradients = tower.gradients(backend)?;
        let (mut names, mut weights) = (Vec::new(), Vec::new());
        for (name, weight) in tower.parameters() {
            names.push(name);
            weights.push(backend.download(weight)?);
        }
        let (mut heads, mut head_gradients) = (Vec::new(), Vec::new());
        for (answers, index) in QUESTIONS.into_iter().zip(0..) {
            let mut chance = Chance::new(seed, index, Purpose::Lesson);
            let scale = (hidden as f32).powf(-0.5) / 128.0;
            let values: Vec<f32> =
                (0..answers * hidden).map(|_| scale * (chance.below(257) as f32 - 128.0)).collect();
            let head = Tensor::from_slice(&[answers, hidden], &values)?;
            names.push(format!("head {index}"));
            weights.push(head.copied(Dtype::F32)?);
            heads.push(backend.upload(head)?);
            head_gradients.push(backend.alloc(backend.statistic(), &[answers, hidden])?);
        }
        let optimiser = Optimiser::new(backend, optimiser(LEARNING_RATE, steps), names, &weights)?;
        let ones = backend.upload(Tensor::from_slice(&[hidden], &vec![1f32; hidden])?)?;
        let pictures = Pictures::new(&model)?;
        Ok(Eyes { model, pictures, gradients, heads, head_gradients, ones, optimiser, seed, step: 0 })
    }

    /// The model with what its tower has learned.
    pub fn into_model(self) -> Model {
        self.model
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Learns from the next scenes.
    pub fn step(&mut self) -> Result<Sight> {
        let mut chance = chance(self.seed, 0, self.step);
        let scenes: Vec<Scene> = (0..SCENES).map(|_| Scene::random(&mut chance, 5, 9)).collect();
        self.step += 1;
        let Eyes { model, pictures, gradients, heads, head_gradients, ones, optimiser, .. } = self;
        let Model { backend, tower: Some(tower), .. } = model else {
            return Err(Error::internal("pretrain", "a model lost its tower"));
        };
        let backend = backend.clone();
        let backend = &*backend;
        // Pictures are frames of one: they do not see each other.
        let (mut pixels, mut grid) = (Vec::new(), [0; 3]);
        for scene in &scenes {
            let (picture, [_, rows, columns]) = pictures.patches(scene)?;
            pixels.extend(picture);
            grid = [SCENES, rows, columns];
        }
        let image = PatchedImage { pixels: &pixels, grid };
        let features = tower.encode(backend, image)?; // [T, C]
        let like = || backend.alloc(features.dtype(), features.shape());
        let (mut normed, mut slopes, mut through) = (like()?, like()?, like()?);
        backend.rms_norm(&mut normed, &features, ones, EPS)?;
        let mut sight = Sight::default();
        for (question, (head, room)) in heads.iter().zip(head_gradients.iter_mut()).enumerate() {
            let targets: Vec<i32> = scenes.iter().flat_map(|scene| answers(scene, question)).collect();
            let rows = targets.len();
            let targets = backend.upload(Tensor::from_slice(&[rows], &targets)?)?;
            let scores = scores(backend, &normed, head, &targets)?;
            let logp = backend.download(&scores.logp)?.to_f64();
            sight.losses[question] = -logp.iter().sum::<f64>() / rows as f64;
            let (said, asked) = (backend.download(&scores.greedy)?, backend.download(&targets)?);
            let right = said.as_slice::<i32>()?.iter().zip(asked.as_slice::<i32>()?).filter(|(a, b)| a == b);
            sight.right[question] = right.count() as f64 / rows as f64;
            let even = Tensor::from_slice(&[rows], &vec![-1.0 / rows as f64; rows])?;
            let even = backend.upload(even.converted(backend.statistic())?)?;
            backend.zero(room)?;
            backend.logprobs_backward(
                &mut through,
                Some(room),
                &even,
                &scores.lse,
                &normed,
                head,
                &targets,
                1.0,
            )?;
            backend.rms_norm_backward(&mut slopes, question > 0, None, &through, &features, ones, EPS)?;
        }
        gradients.clear(backend)?;
        tower.backward(backend, image, &slopes, gradients)?;
        let mut all = gradients.tensors();
        all.extend(head_gradients.iter());
        let mut weights = tower.parameters_mut();
        weights.extend(heads.iter_mut());
        optimiser.step(backend, &all, weights)?;
        Ok(sight)
    }
}

fn scores(backend: &dyn Backend, rows: &Tensor, head: &Tensor, targets: &Tensor) -> Result<LogProbs> {
    let column = || backend.alloc(backend.statistic(), targets.shape());
    let greedy = backend.alloc(Dtype::I32, targets.shape())?;
    let mut scores = LogProbs { logp: column()?, lse: column()?, entropy: column()?, greedy };
    backend.logprobs(&mut scores, rows, head, targets, 1.0)?;
    Ok(scores)
}

/// The right answers about the cells of a scene.
fn answers(scene: &Scene, question: usize) -> [i32; PICTURE_TOKENS] {
    let mut answers = [QUESTIONS[question] as i32 - 1; PICTURE_TOKENS];
    for (at, cell) in Cell::all().enumerate() {
        let object = scene.objects.iter().find(|object| object.cell == cell);
        answers[at] = match (question, object) {
            (3, _) => at as i32,
            (_, None) => answers[at],
            (0, Some(object)) => object.name.colour as i32,
            (1, Some(object)) => object.name.shape as i32,
            (_, Some(object)) => object.label as i32 - 1,
        };
    }
    answers
}
