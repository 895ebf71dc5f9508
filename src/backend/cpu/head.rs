//! The head: log-probs of targets, the vocabulary streamed through block by block, and draws from it.

use super::{
    Cpu,
    isa::{Isa, with_isa},
    linear::{self, prepare},
    math,
    scratch::Scratch,
    values::{Matrix, floats, floats_mut},
};
use crate::{
    backend::{Draw, Drawn, Epilogue, Linear, LogProbs, check},
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

/// Who leads in a row's draw: score, token, and the token's tempered logit.
#[derive(Debug, Clone, Copy)]
struct Leader {
    score: f32,
    token: i32,
    logit: f32,
}

impl Summary {
    /// Of one block's tempered logits, which are used up.
    #[inline(always)]
    fn of(logits: &mut [f32], block: &Range<usize>, target: Option<usize>) -> Self {
        let target =
            target.filter(|target| block.contains(target)).map(|target| logits[target - block.start]);
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

    fn logp(&self, logit: f32) -> f32 {
        (logit - self.greatest) - self.sum.ln()
    }

    fn entropy(&self) -> f32 {
        self.sum.ln() - self.weighted / self.sum
    }
}

impl Leader {
    /// Of one block's logits. One that is not finite leads under the complement of its token; with a penalty or
    /// filters nobody else does.
    fn of(draw: &Draw<'_>, columns: usize, first: usize, logits: &[f32], tempered: &[f32]) -> Self {
        if let Some(bad) = logits.iter().position(|logit| !logit.is_finite()) {
            return Leader { score: f32::INFINITY, token: !((first + bad) as i32), logit: logits[bad] };
        }
        if !draw.is_plain(columns) {
            return Leader { score: f32::NEG_INFINITY, token: 0, logit: 0.0 };
        }
        let (score, token) = draw.best(first as u32, tempered);
        Leader { score, token: token as i32, logit: tempered[token as usize - first] }
    }

    /// Of this and then the next block's.
    fn then(self, next: Self) -> Self {
        if next.score > self.score { next } else { self }
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
                    summaries.push(Summary::of(logits, block, Some(targets[row] as usize)));
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
        let Some(all @ Summary { target: Some(target), .. }) = all else {
            return Err(crate::Error::internal(OP, "a target lies in no block"));
        };
        lse[row] = all.greatest + all.sum.ln();
        logp[row] = all.logp(target);
        entropy[row] = all.entropy();
        greedy[row] = all.greedy as i32;
    }
    Ok(())
}

/// See [`crate::backend::Backend::sample`].
pub(super) fn sample(
    cpu: &Cpu,
    out: &mut Drawn,
    hidden: &Tensor,
    weight: &Tensor,
    draws: &[Draw<'_>],
) -> Result<()> {
    const OP: &str = "sample";
    let sizes = check::sample(out, hidden, weight, draws)?;
    let token = out.token.as_mut_slice::<i32>()?;
    let logp = floats_mut(OP, "logp", &mut out.logp)?;
    let mut entropy = out.entropy.as_mut().map(|entropy| floats_mut(OP, "entropy", entropy)).transpose()?;
    let head = Linear { weight, bias: None, lora: &[] };
    for first in (0..sizes.rows).step_by(HEIGHT) {
        let rows = first..sizes.rows.min(first + HEIGHT);
        let mut logits = Tensor::zeros(Dtype::F32, &[rows.len(), sizes.columns])?; // [B, V]
        linear::linear(cpu, &mut logits, &hidden.rows_of(rows.clone())?, &head, Epilogue::Store)?;
        draw_rows(
            cpu,
            &mut token[rows.clone()],
            &mut logp[rows.clone()],
            entropy.as_mut().map(|entropy| &mut entropy[rows.clone()]),
            logits.as_mut_slice()?,
            &draws[rows],
        );
    }
    Ok(())
}

/// Draws from rows of logits, which are used up.
fn draw_rows(
    cpu: &Cpu,
    token: &mut [i32],
    logp: &mut [f32],
    entropy: Option<&mut [f32]>,
    logits: &mut [f32],
    draws: &[Draw<'_>],
) {
    let columns = logits.len() / draws.len();
    let mut blocks: Vec<_> = (0..columns)
        .step_by(BLOCK)
        .map(|start| (start..columns.min(start + BLOCK), Vec::with_capacity(draws.len())))
        .collect();
    with_isa!(cpu.level, isa => cpu.spread(blocks.iter_mut().collect(), |(block, results)| {
        isa.run(#[inline(always)] || {
            let mut tempered = Scratch::<f32>::new(block.len());
            for (logits, draw) in logits.chunks_exact(columns).zip(draws) {
                let logits = &logits[block.clone()];
                let divisor = draw.divisor();
                tempered.iter_mut().zip(logits).for_each(|(to, logit)| *to = logit / divisor);
                let leader = Leader::of(draw, columns, block.start, logits, &tempered);
                results.push((Summary::of(&mut tempered, block, None), leader));
            }
        });
    }));
    if let Some(entropy) = entropy {
        for (row, entropy) in entropy.iter_mut().enumerate() {
            let all = blocks.iter().map(|(_, results)| results[row].0).reduce(Summary::then);
            *entropy = all.expect("a vocabulary has a block").entropy();
        }
    }
    let rows = token.iter_mut().zip(logp).zip(logits.chunks_exact_mut(columns)).zip(draws).enumerate();
    cpu.spread(rows.collect(), |(row, (((token, logp), logits), draw))| {
        let results = blocks.iter().map(|(_, results)| results[row]);
        let all = results.reduce(|one, next| (one.0.then(next.0), one.1.then(next.1)));
        let (summary, mut leader) = all.expect("a vocabulary has a block");
        if leader.token >= 0 && !draw.is_plain(columns) {
            let raw = logits.to_vec();
            leader.token = draw.pick(logits) as i32;
            leader.logit = raw[leader.token as usize] / draw.divisor();
        }
        *token = leader.token;
        *logp = if leader.token < 0 { leader.logit } else { summary.logp(leader.logit) };
    });
}
