//! Problems whose outcome changed, with what was said before and after.

use super::folder::Picture;
use super::html::Html;
use crate::rl::evaluation::{Answer, Evaluation, Item};
use std::collections::{BTreeMap, HashMap};

/// Examples of what got better, and of what got worse.
const BETTER: usize = 8;
const WORSE: usize = 4;

/// One problem, before and after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Example<'a> {
    pub(super) before: &'a Item,
    pub(super) after: &'a Item,
}

/// How well a problem went; greater is better.
fn outcome(item: &Item) -> u8 {
    match (item.clarified_right(), item.asked()) {
        (Some(true), Some(false)) => 2,
        (Some(right), _) => u8::from(right),
        (None, _) => 2 * u8::from(item.single_right() == Some(true)),
    }
}

/// Chooses without chance: of every subject in turn the first that changed, in the order of the problems, what got
/// better before what got worse.
pub(super) fn chosen<'a>(before: &'a Evaluation, after: &'a Evaluation) -> Vec<Example<'a>> {
    let earlier: HashMap<&str, &Item> = before.items.iter().map(|item| (item.id.as_str(), item)).collect();
    let pairs = after.items.iter().filter(|item| item.graded());
    let pairs: Vec<Example<'_>> = pairs
        .filter_map(|after| Some(Example { before: earlier.get(after.id.as_str())?, after }))
        .filter(|example| example.before.graded())
        .collect();
    let better = |example: &Example<'_>| outcome(example.after) > outcome(example.before);
    let worse = |example: &Example<'_>| outcome(example.after) < outcome(example.before);
    let mut chosen = in_turn(pairs.iter().copied().filter(better), BETTER);
    chosen.extend(in_turn(pairs.iter().copied().filter(worse), WORSE));
    chosen
}

fn in_turn<'a>(examples: impl Iterator<Item = Example<'a>>, most: usize) -> Vec<Example<'a>> {
    let mut subjects: BTreeMap<&Option<String>, Vec<Example<'a>>> = BTreeMap::new();
    for example in examples {
        subjects.entry(&example.after.subject).or_default().push(example);
    }
    let rounds = 0..subjects.values().map(Vec::len).max().unwrap_or(0);
    rounds.flat_map(|n| subjects.values().filter_map(move |list| list.get(n).copied())).take(most).collect()
}

/// An example with its pictures.
pub(super) fn show(html: &mut Html, example: &Example<'_>, steps: [u64; 2], pictures: &[Picture]) {
    let item = example.after;
    html.element("article", &[("class", &"example")], |html| {
        html.element("div", &[("class", &"pictures")], |html| {
            for picture in pictures {
                let class = if picture.coarse { "coarse" } else { "fine" };
                let alt = "the picture the question is about";
                html.empty("img", &[("class", &class), ("src", &picture.data_url), ("alt", &alt)]);
            }
            if pictures.is_empty() {
                html.leaf("p", &[("class", &"quiet")], "The picture is not at hand.");
            }
        });
        html.element("div", &[("class", &"asked")], |html| {
            html.leaf("h3", &[("dir", &"auto")], &item.question);
            html.element("p", &[("class", &"quiet")], |html| {
                html.text("answer ");
                html.leaf("b", &[("dir", &"auto")], &item.gold);
                for about in [&item.subject, &item.difficulty].into_iter().flatten() {
                    html.text(format!(" · {about}"));
                }
                html.text(format!(" · problem {}", item.id));
            });
        });
        for (when, step, item) in [("Before", steps[0], example.before), ("After", steps[1], example.after)] {
            html.element("div", &[("class", &"told")], |html| {
                html.leaf("h4", &[], format!("{when}, step {step}"));
                html.element("dl", &[], |html| conversation(html, item));
            });
        }
    });
}

fn conversation(html: &mut Html, item: &Item) {
    let mut said = |who: &str, what: &str| {
        html.leaf("dt", &[], who);
        html.leaf("dd", &[("dir", &"auto")], if what.trim().is_empty() { "(nothing)" } else { what });
    };
    said("Caption", &item.caption);
    for turn in item.clarified.iter().flat_map(|clarified| &clarified.turns) {
        said("Reasoner asks", &turn.request);
        said("Clarifier replies", &turn.reply);
    }
    let answer = item.clarified.as_ref().map(|clarified| &clarified.answer).or(item.single.as_ref());
    let Some(answer) = answer else { return };
    let given = answer.grade.extracted.as_deref().filter(|given| !given.trim().is_empty());
    html.leaf("dt", &[], "Reasoner answers");
    html.element("dd", &[], |html| {
        html.leaf("span", &[("dir", &"auto")], given.unwrap_or("(no answer)"));
        let (class, text) = verdict(answer);
        html.text(" ");
        html.leaf("span", &[("class", &class)], text);
    });
}

/// In a word and a sign, so that no colour is needed.
fn verdict(answer: &Answer) -> (&'static str, &'static str) {
    if answer.right() { ("right", "✓ right") } else { ("wrong", "✗ wrong") }
}
