//! The head: log-probs of targets, the vocabulary streamed through block by block.

use super::{
    Cpu,
    isa::{Isa, with_isa},
    linear::prepare,
    math,
    scratch::Scratch,
    values::{Matrix, floats, floats_mut},
};
use crate::{
    backend::{LogProbs, check},
    error::Result,
    tensor::{Dtype, Tensor},
};
use std::{borrow::Cow, ops::Range};

/// Tokens per block of the vocabulary; part of the order of summation.
const BLOCK: usize = 512;

/// Rows whose logits are held at a time.
const HEIGHT: usize = 128;

/// What one row knows about one block of the vocabulary, or about all blocks so far.
#[derive(Debug, Clone, Copy)]
struct Summary {
    greatest: f32,
    greedy: usize,
    /// Σ exp(logit − greatest)
    sum: f32,
    /// Σ exp(logit − greatest) · (logit − greatest)
    weighted: f32,
    target: Option<f32>,
}

impl Summary {
    /// Of one block's tempered logits, which are used up.
    #[inline(always)]
    fn of(logits: &mut [f32], block: &Range<usize>, target: usize) -> Self {
        let target = block.contains(&target).then(|| logits[target - block.start]);
        let greatest = math::greatest(logits);
        let greedy = logits.iter().position(|&logit| logit == greatest).unwrap_or(0);
        logits.iter_mut().for_each(|logit| *logit -= greatest);
        let weighted = math::sum(logits, |x| if x > f32::NEG_INFINITY { math::exp(x) * x } else { 0.0 });
        let sum = math::sum(logits, math::exp);
        Summary { greatest, greedy: block.start + greedy, sum, weighted, target }
    }

    /// This and then the next block.
    fn then(self, next: Self) -> Self {
        let greatest = if next.greatest > self.greatest { next.greatest } else { self.greatest };
        let scaled = |part: Self| {
            let shift = part.greatest - greatest;
            let factor = math::exp(shift);
            (part.sum * factor, (part.weighted + part.sum * shift) * factor)
        };
        let (mine, its) = (scaled(self), scaled(next));
        Summary {
            greatest,
            greedy: if next.greatest > self.greatest { next.greedy } else { self.greedy },
            sum: mine.0 + its.0,
            weighted: mine.1 + its.1,
            target: self.target.or(next.target),
        }
    }
}

/// See [`crate::backend::Backend::logprobs`].
pub(super) fn logprobs(
    cpu: &Cpu,
    out: &mut LogProbs,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f32,
) -> Result<()> {
    const OP: &str = "logprobs";
    let sizes = check::logprobs(out, hidden, weight, targets, temperature)?;
    let targets = check::indices(OP, "targets", targets, sizes.columns)?;
    let x = floats(OP, "hidden", hidden)?;
    let x = prepare(cpu, Cow::Borrowed(x), sizes.inner, weight.dtype() == Dtype::BF16);
    let weight = Matrix::of(OP, "weight", weight)?;

    let mut blocks: Vec<_> = (0..sizes.columns)
        .step_by(BLOCK)
        .map(|start| (start..sizes.columns.min(start + BLOCK), Vec::with_capacity(sizes.rows)))
        .collect();
    with_isa!(cpu.level, isa => cpu.spread(blocks.iter_mut().collect(), |(block, summaries)| {
        isa.run(#[inline(always)] || {
            let mut logits = Scratch::<f32>::new(HEIGHT.min(sizes.rows) * block.len());
            for first in (0..sizes.rows).step_by(HEIGHT) {
                let rows = first..sizes.rows.min(first + HEIGHT);
                let logits = &mut logits[..rows.len() * block.len()];
                x.products(isa, logits, rows.clone(), weight, block.clone());
                for (row, logits) in rows.zip(logits.chunks_exact_mut(block.len())) {
                    logits.iter_mut().for_each(|logit| *logit /= temperature);
                    summaries.push(Summary::of(logits, block, targets[row] as usize));
                }
            }
        });
    }));

    let logp = floats_mut(OP, "logp", &mut out.logp)?;
    let lse = floats_mut(OP, "lse", &mut out.lse)?;
    let entropy = floats_mut(OP, "entropy", &mut out.entropy)?;
    let greedy = out.greedy.as_mut_slice::<i32>()?;
    for row in 0..sizes.rows {
        let all = blocks.iter().map(|(_, summaries)| summaries[row]).reduce(Summary::then);
        let Some(Summary { greatest, greedy: best, sum, weighted, target: Some(target) }) = all else {
            return Err(crate::Error::internal(OP, "a target lies in no block"));
        };
        lse[row] = greatest + sum.ln();
        logp[row] = (target - greatest) - sum.ln();
        entropy[row] = sum.ln() - weighted / sum;
        greedy[row] = best as i32;
    }
    Ok(())
}
