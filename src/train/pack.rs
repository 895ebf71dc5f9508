//! Samples into microbatches: as many tokens as fit, each prompt once.

use crate::error::{Error, Result};
use std::ops::Range;

/// Neighbouring samples that go through the model together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Microbatch {
    /// Samples by prompt: those in a range share theirs.
    pub groups: Vec<Range<usize>>,
    /// Tokens computed.
    pub tokens: usize,
}

impl Microbatch {
    /// Samples of one prompt.
    pub fn of(samples: Range<usize>, tokens: usize) -> Self {
        Microbatch { groups: std::iter::once(samples).collect(), tokens }
    }

    /// Its samples.
    pub fn samples(&self) -> Range<usize> {
        let first = self.groups.first().map_or(0, |group| group.start);
        first..self.groups.last().map_or(first, |group| group.end)
    }
}

/// A sample as packing sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Which prompt; neighbours with the same share it.
    pub prompt: usize,
    /// Its tokens.
    pub prompt_tokens: usize,
    /// Tokens of the completion.
    pub tokens: usize,
}

/// Fills microbatches of at most `budget` tokens with samples in their order. The last token of a completion predicts
/// nothing and is not computed.
pub fn pack(samples: &[Lengths], budget: usize) -> Result<Vec<Microbatch>> {
    let mut batches: Vec<Microbatch> = Vec::new();
    for (number, sample) in samples.iter().enumerate() {
        let alone = sample.prompt_tokens + sample.tokens.saturating_sub(1);
        if sample.tokens == 0 || alone > budget {
            let what = match sample.tokens {
                0 => format!("sample {number} has no token to learn from"),
                _ => format!("sample {number} has {alone} tokens; microbatch_tokens is {budget}, raise it"),
            };
            return Err(Error::caller("pack", what));
        }
        let shares = number > 0 && samples[number - 1].prompt == sample.prompt;
        let room = batches.last().map_or(0, |batch| budget - batch.tokens);
        let extra = if shares { sample.tokens - 1 } else { alone };
        match batches.last_mut() {
            Some(batch) if extra <= room => {
                batch.tokens += extra;
                match batch.groups.last_mut() {
                    Some(group) if shares => group.end = number + 1,
                    _ => batch.groups.push(number..number + 1),
                }
            }
            _ => batches.push(Microbatch::of(number..number + 1, alone)),
        }
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(groups: &[(usize, &[usize])]) -> Vec<Lengths> {
        let of = |(prompt, &(prompt_tokens, completions)): (usize, &(usize, &[usize]))| {
            completions
                .iter()
                .map(move |&tokens| Lengths { prompt, prompt_tokens, tokens })
                .collect::<Vec<_>>()
        };
        groups.iter().enumerate().flat_map(of).collect()
    }

    #[test]
    fn a_prompt_counts_once_in_a_microbatch_and_again_in_the_next() {
        let batches = pack(&samples(&[(600, &[201; 8])]), 600 + 8 * 200).expect("fits");
        assert_eq!(batches, [Microbatch::of(0..8, 2200)]);
        let batches = pack(&samples(&[(600, &[201; 8])]), 1000).expect("fits");
        let tokens: Vec<usize> = batches.iter().map(|batch| batch.tokens).collect();
        assert_eq!(tokens, [1000; 4]);
    }

    #[test]
    fn every_sample_is_in_one_microbatch_within_the_budget() {
        let groups: [(usize, &[usize]); 4] = [(5, &[3, 9, 1]), (2, &[4]), (7, &[2, 2, 8, 1]), (1, &[1])];
        let all = samples(&groups);
        for budget in 14..60 {
            let batches = pack(&all, budget).expect("fits");
            let mut next = 0;
            for batch in &batches {
                assert_eq!(batch.samples().start, next);
                next = batch.samples().end;
                let tokens = |group: &Range<usize>| {
                    let own: usize = all[group.clone()].iter().map(|sample| sample.tokens - 1).sum();
                    assert!(all[group.clone()].iter().all(|sample| sample.prompt == all[group.start].prompt));
                    own + all[group.start].prompt_tokens
                };
                assert_eq!(batch.tokens, batch.groups.iter().map(tokens).sum::<usize>());
                assert!(batch.tokens <= budget);
            }
            assert_eq!(next, all.len());
        }
        assert!(pack(&all, 13).is_err(), "a prompt of 5 with 9 to learn needs 13, one of 7 with 8 needs 14");
    }

    #[test]
    fn a_sample_without_tokens_is_refused() {
        let refusal = pack(&samples(&[(3, &[2, 0])]), 100).expect_err("has nothing to learn");
        assert!(refusal.to_string().contains("sample 1"), "{refusal}");
    }
}
