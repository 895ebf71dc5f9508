//! Settings of one completion.

use crate::{
    backend::Draw,
    error::{Error, Result},
};

/// Settings of one completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this probable relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Above 1: logits of tokens already seen are pushed down.
    pub repetition_penalty: f32,
    /// Texts that end a completion; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end a completion, as the model's own end tokens do; `ignore_eos` does not concern them.
    pub stop_token_ids: Vec<u32>,
    /// Go on past the model's end tokens.
    pub ignore_eos: bool,
    /// Record the entropy of the distribution each token is drawn from.
    pub entropy: bool,
    /// The seed of the noise.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            max_tokens: 256,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            entropy: false,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses settings that mean nothing.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::caller("sampling", what));
        if self.max_tokens == 0 {
            return refuse("max-tokens is 0; ask for at least one token");
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("an empty stop text would end every completion");
        }
        self.draw(&[]).check()
    }

    /// As [`Sampling::check`], and for `completions` of one prompt by a model of `vocab` tokens.
    pub fn check_for(&self, completions: usize, vocab: usize) -> Result<()> {
        self.check()?;
        if let Some(id) = self.stop_token_ids.iter().find(|&&id| id as usize >= vocab) {
            let what = format!("the stop token {id} can never be drawn: the vocabulary has {vocab} ids");
            return Err(Error::caller("sampling", what));
        }
        if self.temperature == 0.0 && completions > 1 {
            let what = format!(
                "{completions} completions at temperature 0 would all be the same; ask for one, or raise the \
                 temperature"
            );
            return Err(Error::caller("sampling", what));
        }
        Ok(())
    }

    /// Whether this token ends a completion.
    pub(super) fn ends(&self, token: u32, end_tokens: &[u32]) -> bool {
        self.stop_token_ids.contains(&token) || (!self.ignore_eos && end_tokens.contains(&token))
    }

    /// How the token after `seen`, the whole sequence so far, is drawn.
    pub fn draw<'a>(&self, seen: &'a [u32]) -> Draw<'a> {
        Draw {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            penalty: self.repetition_penalty,
            seen,
            seed: self.seed,
            position: seen.len() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_name() {
        for (sampling, name) in [
            (Sampling { max_tokens: 0, ..Default::default() }, "max-tokens"),
            (Sampling { temperature: f32::NAN, ..Default::default() }, "temperature"),
            (Sampling { temperature: 1e-40, ..Default::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Default::default() }, "top-p"),
            (Sampling { min_p: 1.0, ..Default::default() }, "min-p"),
            (Sampling { repetition_penalty: 0.0, ..Default::default() }, "repetition-penalty"),
            (Sampling { stop: vec![String::new()], ..Default::default() }, "stop"),
        ] {
            assert!(sampling.check().unwrap_err().to_string().contains(name));
        }
    }

    #[test]
    fn what_contradicts_the_rest_of_a_request_is_refused() {
        let greedy = Sampling { temperature: 0.0, ..Default::default() };
        assert!(greedy.check_for(1, 10).is_ok());
        assert!(greedy.check_for(2, 10).unwrap_err().to_string().contains("2 completions at temperature 0"));
        let stop = Sampling { stop_token_ids: vec![9, 10], ..Default::default() };
        assert!(stop.check_for(2, 11).is_ok());
        assert!(stop.check_for(2, 10).unwrap_err().to_string().contains("stop token 10"));
    }

    #[test]
    fn ignoring_the_end_leaves_stop_tokens_alone() {
        let ends = |ignore_eos| {
            let sampling = Sampling { stop_token_ids: vec![5], ignore_eos, ..Default::default() };
            [4, 5, 6].map(|token| sampling.ends(token, &[6]))
        };
        assert_eq!((ends(false), ends(true)), ([false, true, true], [false, true, false]));
    }
}
