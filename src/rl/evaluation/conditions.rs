//! What an evaluation is of.

use super::Mode;
use serde::{Deserialize, Serialize};

/// What an evaluation was of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Steps the captioner had taken.
    pub step: u64,
    /// The temperature captions were drawn at; 0 is greedy.
    pub temperature: f32,
    /// Of what was drawn.
    pub seed: u64,
    /// Who was measured by what; older evaluations do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Subject>,
}

/// Who was measured by what. Folders and files are named as seen from the evaluation's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The problems.
    pub data: String,
    /// How many of them at most.
    pub limit: Option<usize>,
    /// The captioner's model.
    pub captioner: String,
    /// Its adapter or checkpoint.
    pub adapter: Option<String>,
    /// The reasoner's model, if it has one of its own.
    pub reasoner: Option<String>,
    /// Where its server is.
    pub url: Option<String>,
    /// The adapter it reasons with.
    pub reasoner_adapter: Option<String>,
    /// Who replies to requests.
    pub clarifier: String,
}

impl Conditions {
    /// The name of an evaluation under them.
    pub fn file_name(&self, mode: Mode) -> String {
        let alone = if mode == Mode::SinglePass { "-single-pass" } else { "" };
        let greedy = if self.temperature == 0.0 { "-greedy" } else { "" };
        format!("eval-{}{alone}{greedy}.json", self.step)
    }

    /// What is other than before, in words; that nobody knows is a difference, too.
    pub fn differences(&self, before: &Conditions) -> Vec<String> {
        if before.of.is_none() && self.of.is_some() {
            return vec!["it does not say of what it is".to_owned()];
        }
        let pairs = self.parts().into_iter().zip(before.parts());
        let other = pairs.filter(|((_, is), (_, was))| is != was);
        other.map(|((name, is), (_, was))| format!("{name} = {is} ({was} before)")).collect()
    }

    fn parts(&self) -> [(&'static str, String); 11] {
        let none = Subject::default();
        let of = self.of.as_ref().unwrap_or(&none);
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        [
            ("step", self.step.to_string()),
            ("temperature", self.temperature.to_string()),
            ("seed", self.seed.to_string()),
            ("data", of.data.clone()),
            ("limit", or_none(&of.limit.map(|limit| limit.to_string()))),
            ("captioner", of.captioner.clone()),
            ("adapter", or_none(&of.adapter)),
            ("reasoner", or_none(&of.reasoner)),
            ("reasoner's url", or_none(&of.url)),
            ("reasoner's adapter", or_none(&of.reasoner_adapter)),
            ("clarifier", of.clarifier.clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_evaluation_is_of_may_not_be_said_and_may_differ() {
        let old: Conditions =
            serde_json::from_str(r#"{"step": 8, "temperature": 0.7, "seed": 0}"#).expect("is read");
        let subject = Subject { data: "one".into(), limit: Some(5), ..Subject::default() };
        let new = Conditions { of: Some(subject.clone()), ..old.clone() };
        assert_eq!(new.differences(&old), ["it does not say of what it is"]);
        let text = serde_json::to_string(&new).expect("is written");
        assert!(new.differences(&serde_json::from_str(&text).expect("is read")).is_empty());
        type Change = fn(&mut Subject);
        let changes: [(&str, Change); 8] = [
            ("data = two (one before)", |of| of.data = "two".into()),
            ("limit = none (5 before)", |of| of.limit = None),
            ("captioner = x ( before)", |of| of.captioner = "x".into()),
            ("adapter = x (none before)", |of| of.adapter = Some("x".into())),
            ("reasoner = x (none before)", |of| of.reasoner = Some("x".into())),
            ("reasoner's url = x (none before)", |of| of.url = Some("x".into())),
            ("reasoner's adapter = x (none before)", |of| of.reasoner_adapter = Some("x".into())),
            ("clarifier = x ( before)", |of| of.clarifier = "x".into()),
        ];
        for (said, change) in changes {
            let mut other = subject.clone();
            change(&mut other);
            assert_eq!(Conditions { of: Some(other), ..old.clone() }.differences(&new), [said]);
        }
        assert_eq!(Conditions { seed: 1, ..new.clone() }.differences(&new), ["seed = 1 (0 before)"]);
    }
}
