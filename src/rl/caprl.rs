//! CapRL (arXiv 2509.22647): a caption for no question in particular, which earns the share of several questions about its
//! picture that a blind reader answers rightly by it.
//!
//! The options of a question stand in another order every time it is put, so that a reader with a taste for a letter earns
//! nothing by it. All captions of a picture are asked the same, in the same order: what differs is the captions' doing.

use crate::error::Result;
use crate::task::data::{Problem, permutation};
use crate::task::verify::Policy;

/// The questions about a problem's pictures that its captions are graded by: at most `most` of them, drawn from all there
/// are, or its own alone where it has no others; each with its options in an order drawn for it.
pub fn put(problem: &Problem, most: Option<usize>, seed: u64, policy: &Policy) -> Result<Vec<Problem>> {
    let all = match problem.questions.as_slice() {
        [] => std::slice::from_ref(problem),
        several => several,
    };
    let drawn = permutation(seed, QUESTIONS, all.len());
    let mut chosen: Vec<u32> = drawn.into_iter().take(most.unwrap_or(usize::MAX)).collect();
    chosen.sort_unstable();
    let put = chosen.into_iter().map(|number| {
        let question = &all[number as usize];
        question.reordered(&permutation(seed, number.into(), question.choices.len()), policy)
    });
    put.collect()
}

/// A problem as the captioner of a run sees it: pictures, and no question.
pub fn unasked(problem: &Problem) -> Problem {
    Problem { question: String::new(), choices: Vec::new(), ..problem.clone() }
}

/// Keeps the draw of questions apart from those of their options, which are numbered from 0.
const QUESTIONS: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::data::{Layout, Loaded};
    use crate::task::verify::Verdict;
    use std::collections::BTreeSet;

    fn problem(row: serde_json::Value) -> Problem {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(folder.path().join("1.png"), "picture").unwrap();
        std::fs::write(&path, row.to_string()).unwrap();
        Loaded::open(&path, &Layout::default(), &Policy::default()).unwrap().problems.remove(0)
    }

    fn five() -> Problem {
        let question = |number: usize| {
            let options = ["red", "green", "blue", "white"];
            serde_json::json!({"question": format!("Which is {number}?"), "choices": options, "answer": options[number % 4]})
        };
        problem(serde_json::json!({"image": "1.png", "questions": (0..5).map(question).collect::<Vec<_>>()}))
    }

    #[test]
    fn an_option_is_right_wherever_it_stands() {
        let (problem, policy) = (five(), Policy::default());
        let mut letters = BTreeSet::new();
        for seed in 0..50 {
            for question in put(&problem, None, seed, &policy).unwrap() {
                let number = question.question.chars().find_map(|c| c.to_digit(10)).unwrap() as usize;
                let content = ["red", "green", "blue", "white"][number % 4];
                for (letter, choice) in ('A'..).zip(&question.choices) {
                    let right =
                        question.grade(&format!("\\boxed{{{letter}}}"), &policy).verdict == Verdict::Right;
                    assert_eq!(right, choice == content, "{question:?} {letter}");
                    let named = question.grade(&format!("\\boxed{{{choice}}}"), &policy).verdict;
                    assert_eq!(named == Verdict::Right, choice == content);
                    if right {
                        letters.insert((number, letter));
                    }
                }
            }
        }
        // Every question's answer has stood under every letter.
        assert_eq!(letters.len(), 20);
    }

    #[test]
    fn questions_are_drawn_by_the_seed_alone() {
        let (problem, policy) = (five(), Policy::default());
        let asked = |seed, most| -> Vec<String> {
            put(&problem, most, seed, &policy).unwrap().iter().map(Problem::asked).collect()
        };
        assert_eq!(asked(3, None).len(), 5);
        assert_eq!(asked(3, None), asked(3, Some(9)));
        assert_ne!(asked(3, None), asked(4, None));
        let two = |seed| asked(seed, Some(2));
        assert!((0..20).all(|seed| two(seed).len() == 2 && two(seed) == two(seed)));
        // A question that is drawn is put as it would be among all.
        assert!((0..20).all(|seed| two(seed).iter().all(|one| asked(seed, None).contains(one))));
        let seen: BTreeSet<String> = (0..40)
            .flat_map(|seed| put(&problem, Some(2), seed, &policy).unwrap())
            .map(|q| q.question)
            .collect();
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn a_problem_without_others_is_asked_itself() {
        let alone = problem(serde_json::json!({"image": "1.png", "question": "How many?", "answer": "7"}));
        assert_eq!(put(&alone, Some(3), 1, &Policy::default()).unwrap(), [alone]);
    }
}
