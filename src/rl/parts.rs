//! Who plays which part in an episode, and what an episode pays: sections of a run's configuration.

use super::config::LoraConfig;
use super::leak::LeakCheck;
use super::protocol::{Protocol, Wire};
use super::remote::settings::{RemoteSettings, ServerConfig};
use crate::error::{Error, Result, unknown};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::path::PathBuf;

const OP: &str = "config";

/// Who reasons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReasonerConfig {
    /// A folder, a built-in model, or a hub id in the offline cache; of a server, the name of its model.
    pub model: Option<String>,
    /// Where a server is that reasons: OpenAI-compatible, with or without `/v1`.
    pub url: Option<String>,
    /// The environment variable that holds the server's key.
    pub api_key_env: Option<String>,
    /// How a server is asked.
    pub server: ServerConfig,
    /// An adapter it reasons with.
    pub adapter: Option<PathBuf>,
    /// The most tokens of one reply.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// The likeliest tokens whose probabilities reach this sum are kept.
    pub top_p: f32,
    /// One call that decides and answers, or two.
    pub wire: Wire,
    /// That it learns, too, and how.
    pub learn: Option<Learn>,
}

impl Default for ReasonerConfig {
    fn default() -> Self {
        ReasonerConfig {
            model: None,
            url: None,
            api_key_env: None,
            server: ServerConfig::default(),
            adapter: None,
            max_tokens: 4096,
            temperature: 0.0,
            top_p: 1.0,
            wire: Wire::Fused,
            learn: None,
        }
    }
}

/// A reasoner that learns beside the captioner: to answer rightly, and to ask no more than it must.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Learn {
    /// The rate when warm.
    pub lr: f64,
    /// What a request costs it.
    pub kappa: f64,
    /// Its adapter.
    pub lora: LoraConfig,
    /// Steps in which the captioner alone learns, then steps in which the reasoner alone does, and again. Both learn in
    /// every step where this is not said.
    pub alternate: Option<[u64; 2]>,
}

impl Default for Learn {
    fn default() -> Self {
        Learn { lr: 1e-5, kappa: 0.1, lora: LoraConfig::default(), alternate: None }
    }
}

impl Learn {
    /// Who learns in a step: the captioner, the reasoner.
    pub fn turns(&self, step: u64) -> (bool, bool) {
        match self.alternate {
            None => (true, true),
            Some([captioner, reasoner]) => {
                let captioners = step % (captioner + reasoner) < captioner;
                (captioners, !captioners)
            }
        }
    }

    /// Of so many steps, those in which the captioner learns and those in which the reasoner does.
    pub fn shares(&self, steps: u64) -> (u64, u64) {
        match self.alternate {
            None => (steps, steps),
            Some([captioner, reasoner]) => {
                let round = captioner + reasoner;
                let captioners = steps / round * captioner + (steps % round).min(captioner);
                (captioners, steps - captioners)
            }
        }
    }
}

/// What stays as it is while the captioner learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReferenceConfig {
    /// Who replies to requests: "base" is the captioner without its adapter; or a model, or the folder of an adapter.
    pub clarifier: String,
    /// What captions are not to leave far: "base", or the folder of an adapter of the same model.
    pub anchor: String,
    /// The most tokens of a reply.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
}

impl Default for ReferenceConfig {
    fn default() -> Self {
        ReferenceConfig { clarifier: BASE.into(), anchor: BASE.into(), max_tokens: 256, temperature: 0.0 }
    }
}

/// The captioner without its adapter.
pub const BASE: &str = "base";

/// What kind of episode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The reasoner may ask; asking costs.
    #[default]
    Acrl,
    /// The reasoner answers; right or wrong.
    Binary,
    /// The policy answers by its own captions, each role with a reward of its own.
    Prco,
    /// As binary, with the settings of RACRO.
    Racro,
    /// A caption for no question in particular, graded by several.
    Caprl,
}

/// What an answer pays that took so many requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, a list of numbers, or { from, to, steps }")]
pub enum Alpha {
    /// This to the power of the requests.
    Power(f64),
    /// After one request, after two, and so on.
    List(Vec<f64>),
    /// A power that moves in a line over the first steps.
    Schedule {
        /// In the first step.
        from: f64,
        /// From step `steps` on.
        to: f64,
        /// Steps it takes.
        steps: u64,
    },
}

/// What happens to a caption, and what it pays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpisodeConfig {
    /// What kind.
    pub kind: Kind,
    /// What asking leaves of the reward.
    pub alpha: Alpha,
    /// Requests a reasoner may make.
    pub max_turns: usize,
    /// Captions that were cut off earn nothing.
    pub fail_truncated: bool,
    /// CapRL: questions drawn for each picture; all there are where it is not said.
    pub questions: Option<usize>,
    /// PRCO: answers to each caption.
    pub answers: usize,
    /// PRCO: the weight of being right in an answer's reward.
    pub lambda: f64,
    /// PRCO: whether the Solver is shown the pictures, once the captions have had their time alone.
    pub solver_sees: bool,
    /// PRCO: steps of that time. A tenth of the run where it is not said.
    pub caption_first: Option<u64>,
    /// PRCO: how captions are found that give the answer away, which earn nothing.
    pub leaks: LeakCheck,
    /// PRCO's baseline: a caption and the answers to it earn the same.
    pub shared: bool,
}

impl Default for EpisodeConfig {
    fn default() -> Self {
        EpisodeConfig {
            kind: Kind::Acrl,
            alpha: Alpha::Power(0.7),
            max_turns: 1,
            fail_truncated: false,
            questions: None,
            answers: 4,
            lambda: 0.9,
            solver_sees: true,
            caption_first: None,
            leaks: LeakCheck::Rule,
            shared: false,
        }
    }
}

impl EpisodeConfig {
    /// Requests that are offered.
    pub fn requests(&self) -> usize {
        if self.kind == Kind::Acrl { self.max_turns } else { 0 }
    }

    /// Requests that are offered when the captioner is measured: a run that did not offer them may be asked what they would
    /// bring; only where nobody could ask there are none.
    pub fn measured_requests(&self) -> usize {
        if self.kind == Kind::Prco { 0 } else { self.max_turns }
    }

    /// What the reasoner is asked of each caption: so many times the same.
    pub fn trials(&self) -> usize {
        if self.kind == Kind::Prco { self.answers } else { 1 }
    }

    /// How captions that give the answer away are found: not at all where one reward is for both roles.
    pub fn leaks(&self) -> LeakCheck {
        if self.shared { LeakCheck::Off } else { self.leaks }
    }

    /// Whether the Solver sees the pictures in a step of so many.
    pub fn sees(&self, step: u64, steps: u64) -> bool {
        self.kind == Kind::Prco && self.solver_sees && step >= self.caption_first.unwrap_or(steps / 10)
    }

    /// What a right answer pays in a step, by the requests it took.
    pub fn payment(&self, step: u64) -> Vec<f64> {
        let power = |alpha: f64| (0..=self.requests()).map(|asked| alpha.powi(asked as i32)).collect();
        match &self.alpha {
            Alpha::Power(alpha) => power(*alpha),
            Alpha::List(list) => {
                [1.0].into_iter().chain(list.iter().copied()).take(self.requests() + 1).collect()
            }
            Alpha::Schedule { from, to, steps } => {
                let way = (step as f64 / (*steps).max(1) as f64).min(1.0);
                power(from + (to - from) * way)
            }
        }
    }

    /// Refuses what pays more for asking.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::caller(OP, what));
        if self.kind == Kind::Acrl && self.max_turns == 0 {
            return refuse("episode.max_turns is 0; an episode without requests is kind = \"binary\"".into());
        }
        if self.answers == 0 || !(0.0..=1.0).contains(&self.lambda) {
            return refuse("episode.answers is 1 at least, and episode.lambda between 0 and 1".into());
        }
        if self.shared && self.answers != 1 {
            return refuse(
                "episode.shared pays a caption and its answer alike; it needs episode.answers = 1".into(),
            );
        }
        if self.questions == Some(0) {
            return refuse("episode.questions is 0; a caption is graded by one at least".into());
        }
        if let Alpha::List(list) = &self.alpha
            && list.len() < self.requests()
        {
            return refuse(format!(
                "episode.alpha lists {} payments for {} requests; give one for each",
                list.len(),
                self.requests()
            ));
        }
        for step in [0, u64::MAX] {
            let payment = self.payment(step);
            if payment.iter().any(|pay| !(0.0..=1.0).contains(pay)) || payment.windows(2).any(|w| w[1] > w[0])
            {
                return refuse(format!(
                    "episode.alpha pays {payment:?}; payments lie between 0 and 1 and do not rise with requests"
                ));
            }
        }
        Ok(())
    }
}

/// The texts of episodes: ours under a name, or all as the run says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Prompts {
    /// A name.
    Named(String),
    /// Texts; those left out are the default's.
    Own(Box<Protocol>),
}

impl Prompts {
    /// The texts.
    pub fn protocol(&self) -> Result<Protocol> {
        let protocol = match self {
            Prompts::Named(name) => match name.as_str() {
                "default" => Protocol::default(),
                "world" => Protocol::world(),
                other => {
                    let what = unknown(other, &["default", "world"]);
                    return Err(Error::caller(OP, format!("prompts {what}")));
                }
            },
            Prompts::Own(protocol) => (**protocol).clone(),
        };
        protocol.check().map(|()| protocol)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    /// By hand, so that a text nobody knows is named: an untagged enum says no more than what it expects.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(from)? {
            toml::Value::String(name) => Ok(Prompts::Named(name)),
            texts => Protocol::deserialize(texts)
                .map(|own| Prompts::Own(Box::new(own)))
                .map_err(|odd| D::Error::custom(odd.message())),
        }
    }
}

impl Default for Prompts {
    fn default() -> Self {
        Prompts::Named("default".into())
    }
}

impl ReasonerConfig {
    /// Whether it runs in this process.
    pub fn local(&self) -> Option<&str> {
        self.model.as_deref().filter(|_| self.url.is_none())
    }

    /// How its server is asked, if it has one.
    pub fn remote(&self) -> Result<Option<RemoteSettings>> {
        let Some(url) = &self.url else { return Ok(None) };
        Ok(Some(RemoteSettings {
            model: self.model.clone(),
            api_key_env: self.api_key_env.clone(),
            max_tokens: self.max_tokens,
            temperature: self.temperature.into(),
            top_p: (self.top_p < 1.0).then_some(self.top_p.into()),
            ..self.server.settings(url)?
        }))
    }

    /// Refuses what contradicts itself, and a reasoner that could not learn.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::caller(OP, what));
        if self.url.is_some() && self.adapter.is_some() {
            return refuse("reasoner.adapter is for a model in this process; a server has its own");
        }
        if self.url.is_some() && self.learn.is_some() {
            return refuse("reasoner.learn is for a model in this process, not for a server");
        }
        self.remote()?;
        let Some(learn) = &self.learn else { return Ok(()) };
        if self.temperature <= 0.0 {
            return refuse(
                "reasoner.learn needs reasoner.temperature above 0: nothing is learned from one answer alone",
            );
        }
        if self.top_p < 1.0 {
            return refuse(
                "reasoner.learn needs reasoner.top_p = 1: what is learned is the whole distribution",
            );
        }
        if !(learn.lr.is_finite() && learn.lr >= 0.0) {
            return refuse("reasoner.learn.lr is a rate, 0 or above");
        }
        if learn.lora.dropout != 0.0 {
            return refuse("reasoner.learn.lora.dropout has to be 0, as the captioner's");
        }
        if learn.alternate.is_some_and(|turns| turns.contains(&0)) {
            return refuse("reasoner.learn.alternate has to give both a step at least");
        }
        if !(0.0..=1.0).contains(&learn.kappa) {
            return refuse("reasoner.learn.kappa lies between 0 and 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captioner_and_reasoner_take_turns() {
        let learn = Learn { alternate: Some([2, 1]), ..Learn::default() };
        let turns: Vec<(bool, bool)> = (0..4).map(|step| learn.turns(step)).collect();
        assert_eq!(turns, [(true, false), (true, false), (false, true), (true, false)]);
        assert_eq!(Learn::default().turns(7), (true, true));
        let reasoner = |temperature| ReasonerConfig {
            learn: Some(Learn::default()),
            temperature,
            ..ReasonerConfig::default()
        };
        assert!(reasoner(0.0).check().is_err() && reasoner(1.0).check().is_ok());
    }

    #[test]
    fn asking_pays_less_the_more_of_it() {
        let episode = |alpha, max_turns| EpisodeConfig { alpha, max_turns, ..EpisodeConfig::default() };
        let near = |found: Vec<f64>, wanted: &[f64]| {
            assert_eq!(found.len(), wanted.len());
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {wanted:?}");
        };
        near(episode(Alpha::Power(0.7), 2).payment(9), &[1.0, 0.7, 0.49]);
        near(episode(Alpha::List(vec![0.6, 0.1, 0.0]), 2).payment(0), &[1.0, 0.6, 0.1]);
        let moving = || episode(Alpha::Schedule { from: 1.0, to: 0.5, steps: 10 }, 1);
        near(moving().payment(0), &[1.0, 1.0]);
        near(moving().payment(5), &[1.0, 0.75]);
        near(moving().payment(50), &[1.0, 0.5]);
        near(EpisodeConfig { kind: Kind::Binary, ..moving() }.payment(3), &[1.0]);
        assert!(episode(Alpha::Power(1.2), 1).check().is_err());
        assert!(episode(Alpha::List(vec![0.2, 0.5]), 2).check().is_err());
        assert!(episode(Alpha::List(vec![0.2]), 2).check().is_err());
        assert!(episode(Alpha::Power(0.7), 0).check().is_err());
        assert!(moving().check().is_ok());
    }
}
