//! AdamW on f32 masters: the rate of a step, clipping by the global norm, and steps that are not taken.

use crate::backend::{AdamwParameter, AdamwSettings, Backend};
use crate::error::{Error, Result, unknown};
use crate::tensor::Tensor;

const OP: &str = "optim";

/// How the rate goes on after warming up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// As it is.
    Constant,
    /// Down to 0 in equal steps.
    Linear,
    /// Down to `floor` times itself along half a cosine.
    Cosine {
        /// The share that is left at the end.
        floor: f64,
    },
}

impl Schedule {
    /// By the name a configuration gives it.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "constant" => Ok(Schedule::Constant),
            "linear" => Ok(Schedule::Linear),
            "cosine" => Ok(Schedule::Cosine { floor: 0.0 }),
            other => {
                let what = unknown(other, &["constant", "linear", "cosine"]);
                Err(Error::caller(OP, format!("schedule {what}")))
            }
        }
    }

    /// What the rate is multiplied by in `step`, counted from 1, of `steps`, of which the first `warmup` warm up.
    pub fn factor(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        // The last step still moves: the way down is done one step after it.
        let done = (step - 1 - warmup) as f64 / (steps.max(step) - warmup) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine { floor } => {
                floor + (1.0 - floor) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
            }
        }
    }
}

/// What an optimiser is told.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimiserSettings {
    /// The rate when warm.
    pub learning_rate: f64,
    /// Decay of the two averages.
    pub betas: [f64; 2],
    /// Added to the root of the second.
    pub eps: f64,
    /// Decoupled decay of the weights, in shares of the rate.
    pub weight_decay: f64,
    /// Steps of warming up.
    pub warmup_steps: u64,
    /// And after them.
    pub schedule: Schedule,
    /// Steps in all.
    pub steps: u64,
    /// The longest gradient, in its norm over all parameters.
    pub max_grad_norm: f64,
    /// Steps in a row in which something is not finite, until the run stops.
    pub max_bad_steps: u32,
}

impl Default for OptimiserSettings {
    fn default() -> Self {
        OptimiserSettings {
            learning_rate: 1e-5,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            steps: 1,
            max_grad_norm: 1.0,
            max_bad_steps: 5,
        }
    }
}

impl OptimiserSettings {
    /// Refuses settings that mean nothing.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::caller(OP, what));
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !(self.learning_rate.is_finite() && self.learning_rate >= 0.0) {
            return refuse(format!("lr {} is no rate", self.learning_rate));
        }
        if let Some(beta) = self.betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            return refuse(format!("beta {beta} is not from 0 to 1"));
        }
        if !positive(self.eps) || !positive(self.max_grad_norm) {
            return refuse(format!(
                "eps {} and max_grad_norm {} have to be above 0",
                self.eps, self.max_grad_norm
            ));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return refuse(format!("weight_decay {} is no decay", self.weight_decay));
        }
        Ok(())
    }

    /// The rate of a step, counted from 1.
    pub fn rate(&self, step: u64) -> f64 {
        self.learning_rate * self.schedule.factor(step, self.warmup_steps, self.steps)
    }
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The rate.
    pub learning_rate: f64,
    /// What was not finite, the first of it; the step was then not taken.
    pub bad: Option<String>,
}

/// The masters and their averages.
#[derive(Debug)]
pub struct Optimiser {
    settings: OptimiserSettings,
    names: Vec<String>,
    masters: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    /// Steps counted, those not taken included.
    step: u64,
    /// Steps taken.
    taken: u64,
    bad_in_a_row: u32,
}

/// What an optimiser has to remember beside its masters.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OptimiserState {
    /// Steps counted, those not taken included.
    pub step: u64,
    /// Steps taken.
    pub taken: u64,
    /// Steps not taken since the last that was.
    pub bad_in_a_row: u32,
}

impl Optimiser {
    /// Begins from these parameters, host tensors.
    pub fn new<'t>(
        backend: &dyn Backend,
        settings: OptimiserSettings,
        names: Vec<String>,
        parameters: impl IntoIterator<Item = &'t Tensor>,
    ) -> Result<Self> {
        settings.check()?;
        let dtype = backend.statistic();
        let (mut masters, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
        for parameter in parameters {
            masters.push(backend.upload(parameter.copied(dtype)?)?);
            for average in [&mut first, &mut second] {
                let mut zeros = backend.alloc(dtype, parameter.shape())?;
                backend.zero(&mut zeros)?;
                average.push(zeros);
            }
        }
        if names.len() != masters.len() {
            return Err(Error::internal(
                OP,
                format!("{} names of {} parameters", names.len(), masters.len()),
            ));
        }
        Ok(Optimiser { settings, names, masters, first, second, step: 0, taken: 0, bad_in_a_row: 0 })
    }

    /// What it was told.
    pub fn settings(&self) -> &OptimiserSettings {
        &self.settings
    }

    /// Moves the masters against the gradients and writes them to `weights`, the copies that run; all in the order of
    /// the parameters. A gradient that is not finite moves nothing; too many of them in a row are an error.
    pub fn step(
        &mut self,
        backend: &dyn Backend,
        gradients: &[&Tensor],
        weights: Vec<&mut Tensor>,
    ) -> Result<Update> {
        if gradients.len() != self.masters.len() || weights.len() != self.masters.len() {
            let counts = (gradients.len(), weights.len(), self.masters.len());
            return Err(Error::internal(OP, format!("gradients, weights and parameters are {counts:?}")));
        }
        let mut squares = backend.alloc(backend.statistic(), &[gradients.len()])?;
        backend.sq_norm(&mut squares, gradients)?;
        let squares = backend.download(&squares)?.to_f64();
        let grad_norm = squares.iter().sum::<f64>().sqrt();
        let learning_rate = self.settings.rate(self.step + 1);
        if let Some(at) = squares.iter().position(|square| !square.is_finite()) {
            let bad = format!("the gradient of {}", self.names[at]);
            return self.pass_over(bad).map(|update| Update { grad_norm, learning_rate, ..update });
        }
        self.step += 1;
        self.bad_in_a_row = 0;
        self.taken += 1;
        let settings = AdamwSettings {
            learning_rate: learning_rate as f32,
            beta1: self.settings.betas[0] as f32,
            beta2: self.settings.betas[1] as f32,
            eps: self.settings.eps as f32,
            step: self.taken,
            scale: (self.settings.max_grad_norm / grad_norm).min(1.0) as f32,
        };
        let averages = self.first.iter_mut().zip(&mut self.second);
        let mut parameters: Vec<AdamwParameter<'_>> = self
            .masters
            .iter_mut()
            .zip(averages)
            .zip(gradients.iter().zip(weights))
            .map(|((master, (first, second)), (gradient, weight))| {
                // Norms and biases do not decay.
                let decay = if master.shape().len() > 1 { self.settings.weight_decay as f32 } else { 0.0 };
                AdamwParameter { master, first, second, gradient, weight: Some(weight), decay }
            })
            .collect();
        backend.adamw(&mut parameters, &settings)?;
        Ok(Update { grad_norm, learning_rate, bad: None })
    }

    /// Counts a step that is not taken, because something in it is not finite; too many of them in a row are an error.
    pub fn pass_over(&mut self, bad: String) -> Result<Update> {
        self.step += 1;
        self.bad_in_a_row += 1;
        if self.bad_in_a_row >= self.settings.max_bad_steps {
            let what = format!(
                "in {} steps in a row something was not finite, in step {} {bad}; go back to an earlier checkpoint with a \
                 lower lr, or look at the rewards",
                self.bad_in_a_row, self.step
            );
            return Err(Error::caller(OP, what));
        }
        Ok(Update { grad_norm: f64::NAN, learning_rate: self.settings.rate(self.step), bad: Some(bad) })
    }

    /// What it remembers beside tensors.
    pub fn state(&self) -> OptimiserState {
        OptimiserState { step: self.step, taken: self.taken, bad_in_a_row: self.bad_in_a_row }
    }

    /// The masters, on the host.
    pub fn masters(&self, backend: &dyn Backend) -> Result<Vec<Tensor>> {
        self.masters.iter().map(|tensor| backend.download(tensor)).collect()
    }

    /// Puts others in the masters' place, host tensors of the same shapes.
    pub fn replace(&mut self, backend: &dyn Backend, masters: Vec<Tensor>) -> Result<()> {
        for (master, other) in self.masters.iter_mut().zip(masters) {
            if master.shape() != other.shape() {
                return Err(Error::internal(OP, format!("{other:?} in place of {master:?}")));
            }
            *master = backend.upload(other.copied(master.dtype())?)?;
        }
        Ok(())
    }

    /// Names and averages, on the host.
    pub fn averages(&self, backend: &dyn Backend) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::with_capacity(2 * self.names.len());
        for (kind, tensors) in [("first", &self.first), ("second", &self.second)] {
            for (name, tensor) in self.names.iter().zip(tensors) {
                all.push((format!("{kind}.{name}"), backend.download(tensor)?));
            }
        }
        Ok(all)
    }

    /// Goes on from a state and averages as [`Optimiser::averages`] gave them.
    pub fn restore(
        &mut self,
        backend: &dyn Backend,
        state: &OptimiserState,
        mut average: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<()> {
        for (kind, tensors) in [("first", &mut self.first), ("second", &mut self.second)] {
            for (name, tensor) in self.names.iter().zip(tensors) {
                let host = average(&format!("{kind}.{name}"))?;
                if host.shape() != tensor.shape() {
                    let what = format!("{kind}.{name} is {:?}, expected {:?}", host.shape(), tensor.shape());
                    return Err(Error::caller("resume", what));
                }
                *tensor = backend.upload(host.copied(tensor.dtype())?)?;
            }
        }
        (self.step, self.taken, self.bad_in_a_row) = (state.step, state.taken, state.bad_in_a_row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_warm_up_and_go_down_without_reaching_their_end_early() {
        let factors =
            |schedule: Schedule| (1..=6).map(|step| schedule.factor(step, 2, 6)).collect::<Vec<_>>();
        assert_eq!(factors(Schedule::Constant), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(factors(Schedule::Linear), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        let cosine = factors(Schedule::Cosine { floor: 0.02 });
        assert_eq!(cosine[2], 1.0);
        assert!((cosine[4] - 0.51).abs() < 1e-12, "{cosine:?}");
        assert!(cosine[5] > 0.02 && Schedule::Linear.factor(9, 2, 6) > 0.0);
    }
}
