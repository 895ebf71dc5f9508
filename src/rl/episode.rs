//! What happens to a caption: a machine of states that is told what others said, and says who is to speak next.
//!
//! Nothing here draws, waits or computes: the same words in give the same words out, which is what makes an episode a
//! fixed function of its caption and of frozen others.

use super::decision::{Decision, Fallback, asks, before_marker, decide, response};
use super::protocol::{Exchange, Places, Protocol, Wire, filled};
use super::reply::Said;
use crate::prompt::message::Message;
use crate::task::data::Problem;
use crate::task::verify::{Grade, Policy, Rule, Verdict};
use serde::Serialize;

/// What an episode goes by.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Its texts.
    pub protocol: Protocol,
    /// How the reasoner is called.
    pub wire: Wire,
    /// Requests a reasoner may make; 0: asking is not offered.
    pub requests: usize,
    /// Whether the reasoner is shown the pictures, too.
    pub sees: bool,
    /// How answers are graded.
    pub policy: Policy,
}

/// Who speaks next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// The reasoner.
    Reason {
        /// What it is told.
        messages: Vec<Message>,
        /// Words it has begun its reply with.
        prefix: String,
    },
    /// The clarifier, who sees the pictures.
    Clarify {
        /// What it is asked.
        text: String,
    },
    /// Nobody.
    Done(Outcome),
}

/// Why an episode ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The reasoner ran out of tokens before it gave an answer.
    ReasonerTruncated,
    /// The caption ran out of tokens, and the run says that such captions fail.
    CaptionTruncated,
}

impl Failure {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Failure::ReasonerTruncated => "reasoner_truncated",
            Failure::CaptionTruncated => "caption_truncated",
        }
    }
}

/// How an episode ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What was asked and replied.
    pub exchanges: Vec<Exchange>,
    /// The reasoner's last words.
    pub answer: String,
    /// What the verifier made of them.
    pub grade: Grade,
    /// Why there is no answer.
    pub failure: Option<Failure>,
    /// Ways out that were taken.
    pub fallbacks: Vec<Fallback>,
    /// Calls of the reasoner.
    pub calls: usize,
    /// Tokens it wrote.
    pub tokens: usize,
}

impl Outcome {
    /// Whether the answer is right.
    pub fn right(&self) -> bool {
        self.grade.verdict == Verdict::Right
    }

    /// An outcome without any words.
    pub fn failed(failure: Failure) -> Self {
        let grade = Grade { verdict: Verdict::Wrong, extracted: None, rule: Rule::NoAnswer };
        Outcome {
            exchanges: Vec::new(),
            answer: String::new(),
            grade,
            failure: Some(failure),
            fallbacks: Vec::new(),
            calls: 0,
            tokens: 0,
        }
    }
}

/// Whom an episode waits for.
#[derive(Debug, Clone, PartialEq)]
enum State {
    /// The reasoner, to solve or ask.
    Deciding,
    /// The clarifier, about this.
    Clarifying(String),
    /// The reasoner, who can only answer.
    Answering {
        /// What it was made to begin with.
        prefix: String,
    },
}

/// An episode under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    question: String,
    caption: String,
    state: State,
    /// The reasoner's conversation, its last words not included.
    talk: Vec<Message>,
    exchanges: Vec<Exchange>,
    fallbacks: Vec<Fallback>,
    calls: usize,
    tokens: usize,
}

impl Episode {
    /// Begins with a caption.
    pub fn begin(rules: &Rules, problem: &Problem, caption: &str) -> (Self, Next) {
        let mut episode = Episode {
            question: problem.asked(),
            caption: caption.trim().to_owned(),
            state: State::Deciding,
            talk: Vec::new(),
            exchanges: Vec::new(),
            fallbacks: Vec::new(),
            calls: 0,
            tokens: 0,
        };
        let next = episode.go_on(rules);
        (episode, next)
    }

    /// Goes on with what was said by whom it waited for.
    pub fn hear(&mut self, rules: &Rules, problem: &Problem, said: &Said) -> Next {
        match std::mem::replace(&mut self.state, State::Deciding) {
            State::Clarifying(request) => {
                self.exchanges.push(Exchange { request, reply: said.text.trim().to_owned() });
                self.go_on(rules)
            }
            State::Deciding => {
                self.count(said);
                self.decided(rules, problem, said)
            }
            State::Answering { prefix } => {
                self.count(said);
                self.answered(rules, problem, prefix, said)
            }
        }
    }

    fn count(&mut self, said: &Said) {
        self.calls += 1;
        self.tokens += said.tokens;
    }

    fn decided(&mut self, rules: &Rules, problem: &Problem, said: &Said) -> Next {
        let Rules { protocol, wire, .. } = rules;
        let (decision, fallback) = decide(&said.text, protocol.form);
        // What two calls are for is no way out.
        let expected = *wire == Wire::TwoCall && fallback == Some(Fallback::SolvedUnanswered);
        self.fallbacks.extend(fallback.filter(|_| !expected));
        match decision {
            Decision::Solved { answered: true } if *wire == Wire::Fused => {
                let cut = said.truncated.then_some(Failure::ReasonerTruncated);
                self.done(rules, problem, said.text.clone(), cut)
            }
            _ if said.truncated => {
                self.done(rules, problem, said.text.clone(), Some(Failure::ReasonerTruncated))
            }
            Decision::Solved { .. } => self.answer(rules),
            Decision::Ask { request } => {
                let request = if request.is_empty() { protocol.generic_request.clone() } else { request };
                self.talk.push(Message::text("assistant", said.text.trim()));
                let text = filled(&protocol.clarify, &Places { request: &request, ..self.places() });
                self.state = State::Clarifying(request);
                Next::Clarify { text }
            }
        }
    }

    fn answered(&mut self, rules: &Rules, problem: &Problem, prefix: String, said: &Said) -> Next {
        let insist = &rules.protocol.insist;
        let text = match prefix.as_str() {
            "" => said.text.clone(),
            prefix => format!("{prefix} {}", said.text.trim_start()),
        };
        if asks(&text) {
            if !insist.is_empty() && prefix.is_empty() {
                self.fallbacks.push(Fallback::Insisted);
                let prefix = format!("{}{insist}", before_marker(&text));
                self.state = State::Answering { prefix: prefix.clone() };
                return Next::Reason { messages: self.talk.clone(), prefix };
            }
            self.fallbacks.push(Fallback::SecondRequest);
        }
        self.done(rules, problem, text, said.truncated.then_some(Failure::ReasonerTruncated))
    }

    /// To the reasoner, which may ask as long as it has requests left.
    fn go_on(&mut self, rules: &Rules) -> Next {
        if self.exchanges.len() >= rules.requests {
            return self.answer(rules);
        }
        self.state = State::Deciding;
        let Protocol { decide, decide_only, .. } = &rules.protocol;
        self.tell(rules, if rules.wire == Wire::Fused { decide } else { decide_only })
    }

    /// To the reasoner, which has to answer.
    fn answer(&mut self, rules: &Rules) -> Next {
        self.state = State::Answering { prefix: String::new() };
        let Protocol { solve, answer, .. } = &rules.protocol;
        self.tell(rules, if self.exchanges.is_empty() { solve } else { answer })
    }

    /// The next turn of a conversation that goes on after a clarification, or else a prompt of its own.
    fn tell(&mut self, rules: &Rules, text: &str) -> Next {
        let reply = &rules.protocol.reply;
        let goes_on = !reply.is_empty() && self.talk.last().is_some_and(|last| last.role == "assistant");
        if !goes_on {
            self.talk.clear();
        }
        let text = filled(if goes_on { reply } else { text }, &self.places());
        self.talk.push(Message::text("user", text));
        Next::Reason { messages: self.talk.clone(), prefix: String::new() }
    }

    fn places(&self) -> Places<'_> {
        Places { question: &self.question, caption: &self.caption, request: "", exchanges: &self.exchanges }
    }

    fn done(&mut self, rules: &Rules, problem: &Problem, answer: String, failure: Option<Failure>) -> Next {
        let grade = problem.grade(&response(&answer, rules.protocol.form), &rules.policy);
        // An answer that was given before the tokens ran out counts.
        let failure = failure.filter(|_| grade.extracted.is_none());
        Next::Done(Outcome {
            exchanges: std::mem::take(&mut self.exchanges),
            answer,
            grade,
            failure,
            fallbacks: std::mem::take(&mut self.fallbacks),
            calls: self.calls,
            tokens: self.tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::world::{Example, Picture};

    fn rules(protocol: Protocol, requests: usize) -> Rules {
        Rules { protocol, wire: Wire::Fused, requests, sees: false, policy: Policy::default() }
    }

    fn said(text: &str) -> Said {
        Said { text: text.into(), tokens: 3, truncated: false }
    }

    fn problem(answer: &str) -> Problem {
        let mut problem = Example::new(1, 0).problem().expect("a problem");
        problem.question = "How long is AB?".into();
        problem.gold =
            crate::task::verify::Gold::parse(answer, None, &[], &Policy::default()).expect("a gold");
        problem
    }

    fn done(next: Next) -> Outcome {
        match next {
            Next::Done(outcome) => outcome,
            other => panic!("goes on: {other:?}"),
        }
    }

    fn told(next: &Next) -> String {
        match next {
            Next::Reason { messages, prefix } => {
                let text = |message: &Message| match &message.content {
                    crate::prompt::message::Content::Text(text) => format!("{}: {text}", message.role),
                    other => panic!("{other:?}"),
                };
                messages.iter().map(text).collect::<Vec<_>>().join("\n") + "|" + prefix
            }
            other => panic!("does not reason: {other:?}"),
        }
    }

    #[test]
    fn a_caption_that_says_enough_is_answered_at_once() {
        let (rules, problem) = (rules(Protocol::default(), 1), problem("4"));
        let (mut episode, next) = Episode::begin(&rules, &problem, " a line AB of length 4 ");
        assert!(told(&next).contains("Description: a line AB of length 4\n"));
        let outcome = done(episode.hear(&rules, &problem, &said("SOLVED\n\\boxed{4}")));
        assert!(outcome.right() && outcome.exchanges.is_empty());
        assert_eq!((outcome.calls, outcome.tokens), (1, 3));
    }

    #[test]
    fn what_is_missing_is_asked_for_once() {
        let (rules, problem) = (rules(Protocol::default(), 1), problem("4"));
        let (mut episode, _) = Episode::begin(&rules, &problem, "a line");
        let next = episode.hear(&rules, &problem, &said("NEED MORE INFO: which length?"));
        let Next::Clarify { text } = next else { panic!("{next:?}") };
        assert!(text.contains("Question: which length?") && text.contains("How long is AB?"));
        let next = episode.hear(&rules, &problem, &said(" four \n"));
        assert!(told(&next).contains("You asked: which length?\nReply: four\nSolve"), "{next:?}");
        // Asking again is in vain, and graded as it is.
        let outcome = done(episode.hear(&rules, &problem, &said("NEED MORE INFO: and AC?")));
        assert_eq!(outcome.fallbacks, [Fallback::SecondRequest]);
        assert!(!outcome.right() && outcome.exchanges.len() == 1);
    }

    #[test]
    fn several_requests_may_be_allowed_and_none() {
        let problem = problem("4");
        let twice = rules(Protocol::default(), 2);
        let (mut episode, _) = Episode::begin(&twice, &problem, "a line");
        episode.hear(&twice, &problem, &said("NEED MORE INFO"));
        let next = episode.hear(&twice, &problem, &said("one"));
        assert!(told(&next).contains("Otherwise write a line NEED MORE INFO"));
        episode.hear(&twice, &problem, &said("NEED MORE INFO: two?"));
        let next = episode.hear(&twice, &problem, &said("zwei"));
        assert!(told(&next).contains("Reply: one\nYou asked: two?\nReply: zwei\nSolve"));
        let outcome = done(episode.hear(&twice, &problem, &said("\\boxed{4}")));
        assert!(outcome.right());
        assert_eq!(outcome.fallbacks, [Fallback::EmptyQuestion]);
        let never = rules(Protocol::default(), 0);
        let (mut episode, next) = Episode::begin(&never, &problem, "a line");
        assert!(!told(&next).contains("NEED MORE INFO"));
        assert!(!done(episode.hear(&never, &problem, &said("SOLVED 4"))).right());
    }

    #[test]
    fn two_calls_decide_and_then_solve() {
        let rules = Rules { wire: Wire::TwoCall, ..rules(Protocol::default(), 1) };
        let problem = problem("4");
        let (mut episode, next) = Episode::begin(&rules, &problem, "AB is 4");
        assert!(told(&next).contains("nothing else"));
        let next = episode.hear(&rules, &problem, &said("SOLVED"));
        assert!(told(&next).ends_with("Solve and end with \\boxed{}.|"));
        let outcome = done(episode.hear(&rules, &problem, &said("\\boxed{4}")));
        assert!(outcome.right() && outcome.fallbacks.is_empty());
        assert_eq!(outcome.calls, 2);
    }

    #[test]
    fn the_tiny_world_talks_on_and_insists() {
        let example = Example::new(1, 0);
        let problem = example.problem().expect("a problem");
        assert!(!Picture::draw(&example.scene).pixels().is_empty());
        let rules = rules(Protocol::world(), 1);
        let (mut episode, next) = Episode::begin(&rules, &problem, "red-circle .");
        assert_eq!(told(&next), format!("user: caption : red-circle . question : {}|", problem.question));
        let ask = "red-circle unknown . NEED MORE INFO : where is the red-circle ?";
        episode.hear(&rules, &problem, &said(ask));
        let next = episode.hear(&rules, &problem, &said("red-circle center ."));
        assert!(
            told(&next).ends_with(&format!("\nassistant: {ask}\nuser: clarification : red-circle center .|"))
        );
        let next = episode.hear(&rules, &problem, &said(ask));
        assert!(told(&next).ends_with("|red-circle unknown . SOLVED :"));
        let outcome = done(episode.hear(&rules, &problem, &said(&example.answer)));
        assert!(outcome.right(), "{outcome:?}");
        assert_eq!(outcome.answer, format!("red-circle unknown . SOLVED : {}", example.answer));
        assert_eq!(outcome.fallbacks, [Fallback::Insisted]);
    }

    #[test]
    fn words_that_were_cut_off_fail_unless_they_hold_an_answer() {
        let (rules, problem) = (rules(Protocol::default(), 1), problem("4"));
        let cut = |text: &str| Said { text: text.into(), tokens: 9, truncated: true };
        let (mut episode, _) = Episode::begin(&rules, &problem, "");
        let outcome = done(episode.hear(&rules, &problem, &cut("let me see")));
        assert_eq!(outcome.failure, Some(Failure::ReasonerTruncated));
        let (mut episode, _) = Episode::begin(&rules, &problem, "");
        let outcome = done(episode.hear(&rules, &problem, &cut("SOLVED \\boxed{4} because")));
        assert!(outcome.right() && outcome.failure.is_none());
    }
}
