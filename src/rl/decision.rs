//! What a reasoner has decided, read from its words: total, deterministic, every way out counted.

use serde::{Deserialize, Serialize};

/// How a reasoner gives its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// In the last `\boxed{…}`.
    #[default]
    Boxed,
    /// What stands behind the word SOLVED and a colon, up to the end of its line.
    Marker,
}

/// What a reasoner wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To answer. Without an answer it has to be asked for one.
    Solved {
        /// Whether the same words hold the answer.
        answered: bool,
    },
    /// To know more.
    Ask {
        /// Its question.
        request: String,
    },
}

/// A way out that was taken where words did not say what they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// No marker, but a box: taken as solved.
    NoMarkerBoxed,
    /// Neither marker nor box: taken as a request for whatever is missing.
    NoMarker,
    /// A request without a question: the generic one is asked.
    EmptyQuestion,
    /// Solved, it said, and gave no answer: it is asked for one.
    SolvedUnanswered,
    /// Asked where asking was over: its words are graded as they are.
    SecondRequest,
    /// Asked where asking was over, and was made to answer.
    Insisted,
}

impl Fallback {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Fallback::NoMarkerBoxed => "no_marker_boxed",
            Fallback::NoMarker => "no_marker",
            Fallback::EmptyQuestion => "empty_question",
            Fallback::SolvedUnanswered => "solved_unanswered",
            Fallback::SecondRequest => "second_request",
            Fallback::Insisted => "insisted",
        }
    }
}

/// A marker in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Marker {
    /// Where it begins.
    start: usize,
    /// Where what follows it begins.
    end: usize,
    asks: bool,
    starts_line: bool,
}

/// Reads a decision; an empty request means the generic question.
pub fn decide(text: &str, form: AnswerForm) -> (Decision, Option<Fallback>) {
    let text = after_reasoning(text);
    let answered = |from: usize| match form {
        AnswerForm::Boxed => has_box(text),
        AnswerForm::Marker => !marked(&text[from..]).is_empty(),
    };
    match marker(text) {
        Some(Marker { asks: false, end, .. }) => match answered(end) {
            true => (Decision::Solved { answered: true }, None),
            false => (Decision::Solved { answered: false }, Some(Fallback::SolvedUnanswered)),
        },
        Some(Marker { end, .. }) => {
            let request = marked(&text[end..]);
            let empty = request.is_empty().then_some(Fallback::EmptyQuestion);
            (Decision::Ask { request: request.to_owned() }, empty)
        }
        None if has_box(text) => (Decision::Solved { answered: true }, Some(Fallback::NoMarkerBoxed)),
        None => (Decision::Ask { request: String::new() }, Some(Fallback::NoMarker)),
    }
}

/// Whether words ask for more where nothing more is given.
pub fn asks(text: &str) -> bool {
    marker(after_reasoning(text)).is_some_and(|marker| marker.asks)
}

/// What stands before the marker of a text, reasoning included.
pub fn before_marker(text: &str) -> &str {
    let rest = after_reasoning(text);
    let start = marker(rest).map_or(rest.len(), |marker| marker.start);
    &text[..text.len() - rest.len() + start]
}

/// The words a verifier is shown: as they are, or with what stands behind SOLVED in a box.
pub fn response(text: &str, form: AnswerForm) -> String {
    match (form, marker(after_reasoning(text))) {
        (AnswerForm::Marker, Some(Marker { asks: false, end, .. })) => {
            format!("\\boxed{{{}}}", marked(&after_reasoning(text)[end..]))
        }
        (AnswerForm::Marker, _) => String::new(),
        (AnswerForm::Boxed, _) => text.to_owned(),
    }
}

/// What follows the reasoning.
fn after_reasoning(text: &str) -> &str {
    text.rsplit_once("</think>").map_or(text, |(_, after)| after)
}

/// What a marker introduces: the rest of its line, or where that is empty the next line that is not.
fn marked(rest: &str) -> &str {
    let rest = rest.trim_start_matches([':', '*', ' ', '\t', '.', '-']);
    rest.trim_start().lines().next().unwrap_or_default().trim().trim_matches('*').trim()
}

/// The last marker that begins a line; where none does, the last one.
fn marker(text: &str) -> Option<Marker> {
    let all = markers(text);
    all.iter().rev().find(|marker| marker.starts_line).or(all.last()).copied()
}

fn markers(text: &str) -> Vec<Marker> {
    let upper = text.to_ascii_uppercase(); // of the same length, byte for byte
    let mut found = Vec::new();
    for (phrase, asks) in [("NEED MORE INFO", true), ("NEED_MORE_INFO", true), ("SOLVED", false)] {
        for (start, _) in upper.match_indices(phrase) {
            let end = start + phrase.len();
            let word = |c: char| c.is_alphanumeric() || c == '_';
            // Whole phrases only: UNSOLVED is none, NEED MORE INFORMATION is.
            let tail = upper[end..].strip_prefix("RMATION").map_or(0, |_| "RMATION".len());
            let end = end + tail;
            if upper[..start].ends_with(word) || upper[end..].starts_with(word) {
                continue;
            }
            let before = upper[..start].trim_end();
            let denied = !asks && before.ends_with("NOT") && !before[..before.len() - 3].ends_with(word);
            let start = if denied { before.len() - 3 } else { start };
            let line = upper[..start].rsplit('\n').next().unwrap_or_default();
            let starts_line = line.trim_matches(['*', '#', '>', '-', '`', ' ', '\t']).is_empty();
            found.push(Marker { start, end, asks: asks || denied, starts_line });
        }
    }
    found.sort_by_key(|marker| marker.start);
    found
}

/// Whether a box is opened and closed.
fn has_box(text: &str) -> bool {
    text.match_indices("\\boxed").any(|(at, name)| {
        let rest = text[at + name.len()..].trim_start();
        let mut depth = 0usize;
        rest.starts_with('{')
            && rest.chars().any(|c| {
                match c {
                    '{' => depth += 1,
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                depth == 0
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(text: &str) -> (Decision, Option<Fallback>) {
        decide(text, AnswerForm::Boxed)
    }

    fn asking(request: &str) -> Decision {
        Decision::Ask { request: request.to_owned() }
    }

    const SOLVED: Decision = Decision::Solved { answered: true };
    const BARE: Decision = Decision::Solved { answered: false };

    #[test]
    fn markers_decide_and_every_way_out_has_a_name() {
        assert_eq!(boxed("SOLVED\nIt is \\boxed{4}."), (SOLVED, None));
        assert_eq!(boxed("need more info: How long is AB?"), (asking("How long is AB?"), None));
        assert_eq!(boxed("**NEED_MORE_INFO**\n\nWhich angle?"), (asking("Which angle?"), None));
        assert_eq!(boxed("Need more information: which?"), (asking("which?"), None));
        assert_eq!(boxed("\\boxed{4}"), (SOLVED, Some(Fallback::NoMarkerBoxed)));
        assert_eq!(boxed("who knows"), (asking(""), Some(Fallback::NoMarker)));
        assert_eq!(boxed(""), (asking(""), Some(Fallback::NoMarker)));
        assert_eq!(boxed("SOLVED"), (BARE, Some(Fallback::SolvedUnanswered)));
        assert_eq!(boxed("SOLVED \\boxed{4"), (BARE, Some(Fallback::SolvedUnanswered)));
        assert_eq!(boxed("NEED MORE INFO"), (asking(""), Some(Fallback::EmptyQuestion)));
    }

    #[test]
    fn the_last_marker_that_begins_a_line_wins() {
        assert_eq!(boxed("SOLVED\nI no longer NEED MORE INFO. \\boxed{1}"), (SOLVED, None));
        assert_eq!(boxed("NEED MORE INFO: a?\nSOLVED\n\\boxed{2}"), (SOLVED, None));
        assert_eq!(boxed("It is SOLVED? No, I NEED MORE INFO: b?"), (asking("b?"), None));
        assert_eq!(boxed("this is UNSOLVED"), (asking(""), Some(Fallback::NoMarker)));
        assert_eq!(boxed("NOT SOLVED: what is x?"), (asking("what is x?"), None));
        assert_eq!(boxed("KNOT SOLVED \\boxed{3}"), (SOLVED, None));
        assert_eq!(boxed("<think>NEED MORE INFO: c?</think>SOLVED \\boxed{1}"), (SOLVED, None));
    }

    #[test]
    fn answers_may_stand_behind_the_marker() {
        let decide = |text| decide(text, AnswerForm::Marker);
        assert_eq!(decide("red-circle 7 . SOLVED : 7"), (SOLVED, None));
        assert_eq!(decide("SOLVED :"), (BARE, Some(Fallback::SolvedUnanswered)));
        assert_eq!(
            decide("red-circle unknown . NEED MORE INFO : where is the red-circle ?"),
            (asking("where is the red-circle ?"), None)
        );
        assert_eq!(response("a . SOLVED : 12", AnswerForm::Marker), "\\boxed{12}");
        assert_eq!(response("NEED MORE INFO : 12", AnswerForm::Marker), "");
        assert_eq!(response("x \\boxed{1}", AnswerForm::Boxed), "x \\boxed{1}");
        assert_eq!(before_marker("<think>SOLVED</think>a . NEED MORE INFO : b"), "<think>SOLVED</think>a . ");
        assert!(asks("NOT SOLVED") && !asks("SOLVED") && !asks("unsolved"));
    }

    #[test]
    fn no_text_breaks_it() {
        for text in
            ["\\boxed", "\\boxed{", "é NEED MORE INFO", "NEED MORE INFO é", "ﬀSOLVEDﬀ", "\u{130}SOLVED : x"]
        {
            for form in [AnswerForm::Boxed, AnswerForm::Marker] {
                decide(text, form);
                response(text, form);
                before_marker(text);
            }
        }
    }
}
