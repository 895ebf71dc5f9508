//! Whether those who must not learn have stayed as they were: asked at run time, not assumed.
//!
//! The gradient of a caption is unbiased only while what happens after the caption does not depend on what is learned.
//! Before the first step each frozen speaker says something; whenever asked again it has to say the same, to the bit.

use super::actor::Actor;
use super::stage::{Reasoner, Stage};
use crate::engine::{Completion, Published, Sampling};
use crate::error::{Error, Result};
use crate::prompt::message::Message;
use std::sync::Arc;

/// What frozen speakers said before anything was learned.
#[derive(Debug)]
pub struct Frozen {
    said: Vec<(&'static str, Completion)>,
}

impl Frozen {
    /// Listens to all of them.
    pub fn listen(stage: &mut Stage<'_>) -> Result<Self> {
        all(stage).map(|said| Frozen { said })
    }

    /// Fails if one of them has changed.
    pub fn check(&self, stage: &mut Stage<'_>) -> Result<()> {
        for ((name, before), (_, now)) in self.said.iter().zip(&all(stage)?) {
            let same = before.tokens == now.tokens
                && before.logprobs.iter().map(|p| p.to_bits()).eq(now.logprobs.iter().map(|p| p.to_bits()));
            if !same {
                let what = format!(
                    "the {name} is not what it was when the run began, though nothing may change it; its rewards would \
                     depend on what is being learned"
                );
                return Err(Error::internal("isolation", what));
            }
        }
        Ok(())
    }
}

fn all(stage: &mut Stage<'_>) -> Result<Vec<(&'static str, Completion)>> {
    let adapter = stage.clarifier_adapter.clone();
    let clarifier = stage.clarifier.as_mut().unwrap_or(&mut stage.policy);
    let mut said = vec![("clarifier", one(clarifier, adapter.as_ref())?)];
    // A reasoner that learns may change between steps, and a server is beyond us.
    if let (Reasoner::Local(reasoner, adapter), false) = (&mut stage.reasoner, stage.record) {
        said.push(("reasoner", one(reasoner, adapter.as_ref())?));
    }
    Ok(said)
}

fn one(actor: &mut Actor<'_>, adapter: Option<&Published>) -> Result<Completion> {
    // What it says does not matter, so words that every tokenizer has will do.
    let messages = [Message::text("user", "what is this ?")];
    let input = Arc::new(actor.input(&messages, "")?);
    let sampling = Sampling { max_tokens: 4, temperature: 0.0, ignore_eos: true, ..Sampling::default() };
    let mut all = actor.complete(vec![(input, sampling, vec![0])], adapter)?;
    let said = all.pop().and_then(|mut lanes| lanes.pop());
    said.ok_or_else(|| Error::internal("isolation", "a speaker said nothing"))
}
