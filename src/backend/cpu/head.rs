//! The head: log-probs of targets, the vocabulary streamed through block by block, and draws from it.

use super::{
    Cpu,
    isa::{Isa, with_isa},
    linear::prepare,
    math,
    scratch::Scratch,
    tile::tiles,
    values::{Matrix, Rows, floats, floats_mut},
};
use crate::{
    backend::{Draw, Drawn, LogProbs, check},
    error::Result,
    tensor::{Dtype, Tensor},
};
use std::{
    borrow::Cow,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

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
        let weighted = |x: f32, power: f32| if x > f32::NEG_INFINITY { power * x } else { 0.0 };
        let [sum, weighted] = math::sums(logits, |x| {
            let power = math::exp(x);
            [power, weighted(x, power)]
        });
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
    /// Of one block's logits, which become tempered ones. One that is not finite leads under the complement of its
    /// token; with a penalty or filters nobody else does. `floor`: see [`Draw::best`].
    #[inline(always)]
    fn of(draw: &Draw<'_>, columns: usize, first: usize, logits: &mut [f32], floor: f32) -> Self {
        // 0 times what is not finite is not 0.
        let finite = math::sum(logits, |logit| 0.0 * logit) == 0.0;
        let bad = logits.iter().position(|logit| !finite && !logit.is_finite());
        let bad = bad.map(|at| (!((first + at) as i32), logits[at]));
        let divisor = draw.divisor();
        logits.iter_mut().for_each(|logit| *logit /= divisor);
        match bad {
            Some((token, logit)) => Leader { score: f32::INFINITY, token, logit },
            None if !draw.is_plain(columns) => Leader { score: f32::NEG_INFINITY, token: 0, logit: 0.0 },
            None if draw.is_greedy() => {
                let logit = math::greatest(logits);
                let at = logits.iter().position(|&other| other == logit).unwrap_or(0);
                Leader { score: logit, token: (first + at) as i32, logit: logits[at] }
            }
            None => {
                let (score, token) = draw.best(first as u32, logits, floor);
                Leader { score, token: token as i32, logit: logits[token as usize - first] }
            }
        }
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
    let x = floats(OP, "hidden", hidden)?;
    let x = prepare(cpu, Cow::Borrowed(x), sizes.inner, weight.dtype() == Dtype::BF16);
    let weight = Matrix::of(OP, "weight", weight)?;
    let token = out.token.as_mut_slice::<i32>()?;
    let logp = floats_mut(OP, "logp", &mut out.logp)?;
    let mut entropy = out.entropy.as_mut().map(|entropy| floats_mut(OP, "entropy", entropy)).transpose()?;
    for first in (0..sizes.rows).step_by(HEIGHT) {
        let rows = first..sizes.rows.min(first + HEIGHT);
        let drawn = draw_rows(cpu, &x, rows.clone(), weight, sizes.columns, &draws[rows.clone()]);
        for (row, (leader, summary)) in rows.zip(drawn) {
            token[row] = leader.token;
            logp[row] = if leader.token < 0 { leader.logit } else { summary.logp(leader.logit) };
            if let Some(entropy) = &mut entropy {
                entropy[row] = summary.entropy();
            }
        }
    }
    Ok(())
}

/// Draws from the logits of some rows. They are kept as a whole where a penalty or filters look at all of them.
fn draw_rows(
    cpu: &Cpu,
    x: &Rows<'_>,
    rows: Range<usize>,
    weight: Matrix<'_>,
    columns: usize,
    draws: &[Draw<'_>],
) -> Vec<(Leader, Summary)> {
    let kept = draws.iter().filter(|draw| !draw.is_plain(columns)).count();
    let mut whole = Scratch::<f32>::new(kept * columns); // [kept, V]
    let mut tiles = tiles(&mut whole, columns, HEIGHT, |left| left.min(BLOCK)).into_iter();
    let blocks = (0..columns).step_by(BLOCK).map(|start| {
        let whole = tiles.next().map_or_else(Vec::new, |tile| tile.into_rows().collect());
        (start..columns.min(start + BLOCK), whole)
    });
    // The best score that is known of each row: some, at first none, and never above the best.
    let floors: Vec<_> = draws.iter().map(|_| AtomicU32::new(f32::NEG_INFINITY.to_bits())).collect();
    let blocks: Vec<Vec<(Leader, Summary)>> = with_isa!(cpu.level, isa => cpu.map(blocks.collect(), |(block, whole)| {
        isa.run(#[inline(always)] || {
            let mut whole = whole.into_iter();
            let mut logits = Scratch::<f32>::new(rows.len() * block.len());
            x.products(isa, &mut logits, rows.clone(), weight, block.clone());
            let each = logits.chunks_exact_mut(block.len()).zip(draws).zip(&floors);
            let mut results = Vec::with_capacity(draws.len());
            for ((logits, draw), best) in each {
                if !draw.is_plain(columns) && let Some(whole) = whole.next() {
                    whole.copy_from_slice(logits);
                }
                let floor = f32::from_bits(best.load(Relaxed));
                let leader = Leader::of(draw, columns, block.start, logits, floor);
                if leader.score > floor {
                    best.store(leader.score.to_bits(), Relaxed);
                }
                results.push((leader, Summary::of(logits, &block, None)));
            }
            results
        })
    }));
    let mut whole = whole.chunks_exact_mut(columns);
    let whole = draws.iter().map(|draw| if draw.is_plain(columns) { None } else { whole.next() });
    cpu.map(draws.iter().zip(whole).enumerate().collect(), |(row, (draw, whole))| {
        let results = blocks.iter().map(|results| results[row]);
        let all = results.reduce(|one, next| (one.0.then(next.0), one.1.then(next.1)));
        let (mut leader, summary) = all.expect("a vocabulary has a block");
        if let (true, Some(logits)) = (leader.token >= 0, whole) {
            let raw = logits.to_vec();
            leader.token = draw.pick(logits) as i32;
            leader.logit = raw[leader.token as usize] / draw.divisor();
        }
        (leader, summary)
    })
}
