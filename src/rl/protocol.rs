//! The words between captioner, reasoner and clarifier: texts with places to fill in, and how the wire is used.

use super::decision::AnswerForm;
use super::leak::ASK;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

const OP: &str = "prompts";

/// One call decides and answers, or two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// A reasoner answers in the same words in which it decides to.
    #[default]
    Fused,
    /// A reasoner only decides; then it is asked to solve.
    TwoCall,
}

/// The texts of an episode. Places: `{question}`, `{caption}`, `{request}`, and `{exchanges}` for what was asked and
/// replied so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Protocol {
    /// To the captioner, beside the pictures.
    pub caption: String,
    /// To the reasoner: solve or ask.
    pub decide: String,
    /// To the reasoner where two calls are made: decide, no more.
    pub decide_only: String,
    /// To the clarifier, beside the pictures.
    pub clarify: String,
    /// To the reasoner after its last clarification.
    pub answer: String,
    /// To the reasoner where asking is not offered.
    pub solve: String,
    /// To the reasoner in a conversation that goes on: the reply to its request. Empty: every turn is a prompt of its
    /// own.
    pub reply: String,
    /// To whoever tells whether a caption gives the answer away.
    pub leak: String,
    /// What is asked for a reasoner that asks nothing in particular.
    pub generic_request: String,
    /// Where a reasoner asks although asking is over, its request is taken back and it goes on from these words. Empty: it
    /// is graded as it is.
    pub insist: String,
    /// How it answers.
    pub form: AnswerForm,
}

/// To a captioner that is told no question.
pub const DENSE: &str = "Describe the image in detail, so that someone who cannot see it could answer any question about it. \
    List every object, label, number, length, angle, coordinate, relation and piece of text you can see.";

impl Default for Protocol {
    fn default() -> Self {
        let blind = "You cannot see the image. Question: {question}\nDescription: {caption}\n{exchanges}";
        Protocol {
            caption: "Describe the image so that someone who cannot see it could answer the question. List every label, \
                number, length, angle, coordinate, relation and option text you can read. Do not solve.\nQuestion: \
                {question}"
                .into(),
            decide: format!(
                "{blind}If the description is enough, write a line SOLVED and then your solution ending in \
                 \\boxed{{}}. Otherwise write a line NEED MORE INFO and one specific question about the image."
            ),
            decide_only: format!(
                "{blind}If the description is enough to solve the question, write SOLVED and nothing else. Otherwise \
                 write a line NEED MORE INFO and one specific question about the image."
            ),
            clarify: "Look at the image and answer this question about it precisely and briefly.\nProblem context: \
                {question}\nQuestion: {request}"
                .into(),
            answer: format!("{blind}Solve and end with \\boxed{{}}."),
            solve: format!("{blind}Solve and end with \\boxed{{}}."),
            reply: String::new(),
            leak: ASK.into(),
            generic_request: "What else in the image matters for the question?".into(),
            insist: String::new(),
            form: AnswerForm::Boxed,
        }
    }
}

/// What can be filled in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places<'a> {
    /// What is asked about the picture.
    pub question: &'a str,
    /// What was said of it.
    pub caption: &'a str,
    /// What the reasoner wants to know.
    pub request: &'a str,
    /// Requests and replies so far.
    pub exchanges: &'a [Exchange],
}

/// A request and what was said to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// What the reasoner wanted to know.
    pub request: String,
    /// What the clarifier said.
    pub reply: String,
}

impl Protocol {
    /// The texts of the tiny world, whose models know 105 words.
    pub fn world() -> Self {
        let ask = "caption : {caption} question : {question}";
        Protocol {
            caption: "describe the image for the question : {question}".into(),
            decide: ask.into(),
            decide_only: ask.into(),
            clarify: "answer the request : {request}".into(),
            answer: ask.into(),
            solve: ask.into(),
            reply: "clarification : {reply}".into(),
            leak: ask.into(),
            generic_request: String::new(),
            insist: "SOLVED :".into(),
            form: AnswerForm::Marker,
        }
    }

    /// Refuses texts with places that nobody fills, or without those they need.
    pub fn check(&self) -> Result<()> {
        let all = [
            ("caption", &self.caption, &["question"][..], &[][..]),
            ("decide", &self.decide, &["question", "caption", "exchanges"], &["question", "caption"]),
            (
                "decide_only",
                &self.decide_only,
                &["question", "caption", "exchanges"],
                &["question", "caption"],
            ),
            ("clarify", &self.clarify, &["question", "request"], &["request"]),
            ("answer", &self.answer, &["question", "caption", "exchanges"], &["question", "caption"]),
            ("solve", &self.solve, &["question", "caption", "exchanges"], &["question", "caption"]),
            ("leak", &self.leak, &["question", "caption"], &["caption"]),
            ("reply", &self.reply, &["reply", "request", "question"], &[]),
        ];
        for (name, text, known, needed) in all {
            let found: Vec<&str> = places(text).collect();
            if let Some(odd) = found.iter().find(|place| !known.contains(place)) {
                let what = format!("{name}: nobody fills {{{odd}}} in; there are {}", known.join(", "));
                return Err(Error::caller(OP, what));
            }
            if let Some(missing) = needed.iter().find(|place| !found.contains(place)) {
                return Err(Error::caller(OP, format!("{name}: {{{missing}}} stands nowhere in it")));
            }
        }
        Ok(())
    }

    /// A hash of every text, for records.
    pub fn hash(&self) -> String {
        let text = serde_json::to_vec(self).expect("texts are JSON");
        blake3::hash(&text).to_hex()[..16].to_owned()
    }
}

/// Names in braces. `{}` is none, nor is anything with other than small letters in it.
fn places(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('{').filter_map(|(at, _)| {
        let name = text[at + 1..].split_once('}')?.0;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
        is_name.then_some(name)
    })
}

/// Fills the places of a text in. What is filled in is not looked at again, whatever braces it has.
pub fn filled(text: &str, places: &Places<'_>) -> String {
    let mut out = String::with_capacity(text.len() + places.caption.len() + places.question.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let name = rest[1..].split_once('}').map_or("", |(name, _)| name);
        match name {
            "question" => out.push_str(places.question),
            "caption" => out.push_str(places.caption),
            "request" => out.push_str(places.request),
            "reply" => out.push_str(places.exchanges.last().map_or("", |exchange| &exchange.reply)),
            "exchanges" => {
                for Exchange { request, reply } in places.exchanges {
                    let _ = writeln!(out, "You asked: {request}\nReply: {reply}"); // a String takes everything
                }
            }
            _ => {
                out.push('{');
                rest = &rest[1..];
                continue;
            }
        }
        rest = &rest[name.len() + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_once_and_nothing_is_left_open() {
        let exchanges = [Exchange { request: "r?".into(), reply: "{question}".into() }];
        let places =
            Places { question: "{caption} \\boxed{}", caption: "c", request: "r", exchanges: &exchanges };
        assert_eq!(filled("{caption}|{question}|{x}|{}|{", &places), "c|{caption} \\boxed{}|{x}|{}|{");
        assert_eq!(filled("a {exchanges}b", &places), "a You asked: r?\nReply: {question}\nb");
        assert_eq!(filled("clarification : {reply}", &places), "clarification : {question}");
    }

    #[test]
    fn texts_with_places_nobody_fills_are_refused() {
        assert!(Protocol::default().check().is_ok() && Protocol::world().check().is_ok());
        let refused = |change: &dyn Fn(&mut Protocol)| {
            let mut protocol = Protocol::default();
            change(&mut protocol);
            protocol.check().expect_err("is wrong").to_string()
        };
        assert!(refused(&|p| p.decide.push_str("{answer}")).contains("{answer}"));
        assert!(refused(&|p| p.solve = "{question}".into()).contains("{caption} stands nowhere"));
        assert_ne!(Protocol::default().hash(), Protocol::world().hash());
    }
}
