//! Teacher-forced log-probs of given completions: the same kernels, pages and head as sampling uses, so the
//! numbers are those the sampler would have recorded.

use super::input::Input;
use super::pages::PagePool;
use crate::backend::draw::{COLDEST, divides};
use crate::error::{Error, Result};
use crate::model::{Adapter, AdapterRows, Model, PlacedImage, Run, pages_for};
use std::{ops::Range, sync::Arc};

const OP: &str = "score";

/// One completion to score.
#[derive(Debug)]
pub struct ScoreRequest {
    input: Arc<Input>,
    completion: Vec<u32>,
}

impl ScoreRequest {
    /// The tokens that followed a prompt. Refuses what the model cannot hold.
    pub fn new(model: &Model, input: impl Into<Arc<Input>>, completion: Vec<u32>) -> Result<Self> {
        let input = input.into();
        let vocab = model.config.decoder.vocab;
        if let Some((at, id)) = completion.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
            let what = format!("completion token {at} is {id}, but the vocabulary has {vocab} ids");
            return Err(Error::caller(OP, what));
        }
        input.check_length(model, completion.len())?;
        Ok(ScoreRequest { input, completion })
    }

    /// The prompt.
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The tokens that followed it.
    pub fn completion(&self) -> &[u32] {
        &self.completion
    }
}

/// What a completion scores, a value per token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score {
    /// Natural log-probs under the full vocabulary at the given temperature.
    pub logprobs: Vec<f32>,
    /// Whether the token was the likeliest.
    pub greedy: Vec<bool>,
    /// Entropy of the distribution it was scored under, in nats.
    pub entropy: Vec<f32>,
}

/// Scores completions, at most `budget` tokens per forward pass.
pub fn score(
    model: &Model,
    adapter: Option<&Adapter>,
    requests: &[ScoreRequest],
    temperature: f32,
    budget: usize,
) -> Result<Vec<Score>> {
    if !divides(temperature) {
        return Err(Error::caller(
            OP,
            format!("temperature {temperature} is not a number from {COLDEST} up"),
        ));
    }
    if budget == 0 {
        return Err(Error::caller(OP, "a budget of 0 tokens per pass; allow at least one"));
    }
    let whole: Vec<Vec<u32>> =
        requests.iter().map(|request| [request.input.tokens(), &request.completion].concat()).collect();
    // The last token of a sequence predicts nothing we ask for.
    let lengths: Vec<usize> = whole.iter().map(|tokens| tokens.len() - 1).collect();
    let images: Vec<Vec<PlacedImage<'_>>> = requests.iter().map(|request| request.input.images()).collect();
    let passes = plan(&lengths, budget);
    let backend = &*model.backend;
    let mut cache = model.cache(pages_needed(&passes, &lengths))?;
    let mut pool = PagePool::new(cache.pages());
    let mut tables: Vec<Vec<u32>> = vec![Vec::new(); requests.len()];
    let mut work = model.workspace()?;
    let mut scores = vec![Score::default(); requests.len()];
    for pass in &passes {
        for Piece { sequence, tokens } in pass {
            if tokens.start == 0 {
                tables[*sequence] =
                    (0..pages_for(lengths[*sequence])).map(|_| pool.take()).collect::<Result<_>>()?;
            }
        }
        let runs: Vec<Run<'_>> = pass
            .iter()
            .map(|Piece { sequence, tokens }| Run {
                tokens: &whole[*sequence][tokens.clone()],
                seat: None,
                start: tokens.start,
                positions: requests[*sequence].input.positions(),
                pages: &tables[*sequence],
                images: &images[*sequence],
            })
            .collect();
        let rows: usize = runs.iter().map(|run| run.tokens.len()).sum();
        let adapters: Vec<AdapterRows<'_>> =
            adapter.iter().map(|adapter| AdapterRows { rows: 0..rows, adapter }).collect();
        let normed = model.decoder.forward(backend, &runs, &adapters, &mut cache, &mut work)?;
        let wanted = wanted(pass, requests);
        if !wanted.is_empty() {
            let hidden = model.decoder.rows(
                backend,
                normed,
                &wanted.iter().map(|want| want.row).collect::<Vec<_>>(),
            )?;
            let targets: Vec<u32> =
                wanted.iter().map(|want| whole[want.sequence][want.position + 1]).collect();
            let out = model.decoder.logprobs(backend, &hidden, &targets, temperature)?;
            let [logp, entropy] = [&out.logp, &out.entropy].map(|tensor| backend.download(tensor));
            let (logp, entropy) = (logp?.to_f64(), entropy?.to_f64());
            let greedy = backend.download(&out.greedy)?.to_f64();
            for (i, want) in wanted.iter().enumerate() {
                if !(logp[i].is_finite() && entropy[i].is_finite()) {
                    let what = format!(
                        "the log-prob of token {} of sequence {} is {}; look at the weights with `inspect`",
                        want.position + 1,
                        want.sequence,
                        logp[i]
                    );
                    return Err(Error::caller(OP, what));
                }
                let score = &mut scores[want.sequence];
                score.logprobs.push(logp[i] as f32);
                score.entropy.push(entropy[i] as f32);
                score.greedy.push(greedy[i] as u32 == targets[i]);
            }
        }
        for Piece { sequence, tokens } in pass {
            if tokens.end == lengths[*sequence] {
                std::mem::take(&mut tables[*sequence]).into_iter().for_each(|page| pool.release(page));
            }
        }
    }
    Ok(scores)
}

/// Some tokens of one sequence in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    sequence: usize,
    tokens: Range<usize>,
}

/// A packed row whose prediction is asked for.
struct Wanted {
    row: usize,
    sequence: usize,
    position: usize,
}

/// Sequences in order, cut so that every pass holds at most `budget` tokens.
fn plan(lengths: &[usize], budget: usize) -> Vec<Vec<Piece>> {
    let mut passes = Vec::new();
    let mut pass = Vec::new();
    let mut room = budget;
    for (sequence, &length) in lengths.iter().enumerate() {
        let mut start = 0;
        while start < length {
            let end = length.min(start + room);
            pass.push(Piece { sequence, tokens: start..end });
            room -= end - start;
            start = end;
            if room == 0 {
                passes.push(std::mem::take(&mut pass));
                room = budget;
            }
        }
    }
    if !pass.is_empty() {
        passes.push(pass);
    }
    passes
}

/// Pages in use during the pass that uses most.
fn pages_needed(passes: &[Vec<Piece>], lengths: &[usize]) -> usize {
    let of = |pass: &Vec<Piece>| pass.iter().map(|piece| pages_for(lengths[piece.sequence])).sum();
    passes.iter().map(of).max().unwrap_or(0)
}

fn wanted(pass: &[Piece], requests: &[ScoreRequest]) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut first_row = 0;
    for Piece { sequence, tokens } in pass {
        let first = (requests[*sequence].input.tokens().len() - 1).max(tokens.start);
        let rows = (first..tokens.end).map(|position| Wanted {
            row: first_row + position - tokens.start,
            sequence: *sequence,
            position,
        });
        wanted.extend(rows);
        first_row += tokens.len();
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_covers_every_token_once_in_order_within_budget() {
        for budget in 1..20 {
            let lengths = [5, 0, 13, 1, 7];
            let passes = plan(&lengths, budget);
            let mut next = [0; 5];
            for pass in &passes {
                assert!(pass.iter().map(|piece| piece.tokens.len()).sum::<usize>() <= budget);
                for Piece { sequence, tokens } in pass {
                    assert_eq!(tokens.start, next[*sequence]);
                    next[*sequence] = tokens.end;
                }
            }
            assert_eq!(next, lengths);
        }
    }
}
