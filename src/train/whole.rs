//! Full training that goes on: a checkpoint is the model itself, as anybody reads it, with the optimiser's averages and
//! counts beside it.

use super::full::FullTrainer;
use super::optimiser::OptimiserState;
use crate::error::Result;
use crate::format::{Checkpoint as Tensors, ModelFolder};
use crate::model::{host_tensor, write_changed};
use crate::tensor::{Dtype, Tensor};
use std::collections::HashMap;
use std::path::Path;

impl FullTrainer {
    /// Weights by their names, parts of a fused one by the same.
    fn weights(&self) -> Vec<(String, &Tensor)> {
        match self.tower {
            Some(_) => self.model().parameters(),
            None => self.model().decoder.parameters(),
        }
    }

    /// Writes the masters as a model in f32; `source` gives what is not trained.
    pub(super) fn write_files(&self, folder: &Path, source: &ModelFolder) -> Result<()> {
        let masters = self.optimiser.masters(&*self.model().backend)?;
        let names = self.weights().into_iter().map(|(name, _)| name);
        write_changed(folder, source, Dtype::F32, names.zip(masters).collect())
    }

    /// The optimiser's averages by name, on the host.
    pub(super) fn averages(&self) -> Result<Vec<(String, Tensor)>> {
        self.optimiser.averages(&*self.model().backend)
    }

    /// The optimiser's counts.
    pub fn counts(&self) -> OptimiserState {
        self.optimiser.state()
    }

    /// Goes on from weights, counts and averages.
    pub(super) fn restore(
        &mut self,
        stored: &Tensors,
        counts: &OptimiserState,
        average: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<()> {
        let backend = self.model().backend.clone();
        let mut taken: HashMap<String, usize> = HashMap::new();
        let mut masters = Vec::new();
        for (name, weight) in self.weights() {
            let view = stored.view(&name)?;
            let rows = view.elements() / weight.row_len().max(1);
            let shape: Vec<usize> = [rows].iter().chain(&weight.shape()[1..]).copied().collect();
            let start = taken.entry(name).or_insert(0);
            let part = *start..*start + weight.rows();
            *start = part.end;
            if rows * weight.row_len() != view.elements() || part.end > rows {
                return Err(view
                    .fault(format!("has no rows {part:?} of {:?}; it is of another model", weight.shape())));
            }
            masters.push(host_tensor(&view, Dtype::F32)?.reshaped(&shape)?.rows_of(part)?);
        }
        let trains_tower = self.tower.is_some();
        let model = self.learner.model_mut()?;
        let weights = if trains_tower { model.parameters_mut() } else { model.decoder.parameters_mut() };
        for (weight, master) in weights.into_iter().zip(&masters) {
            *weight = backend.upload(master.copied(weight.dtype())?)?;
        }
        self.optimiser.replace(&*backend, masters)?;
        self.optimiser.restore(&*backend, counts, average)
    }
}
