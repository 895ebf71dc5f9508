//! CapRL's quiz: a caption for no question in particular is worth what a blind reader makes of it (arXiv 2509.22647).
//!
//! A picture comes with several multiple-choice questions in the column `questions`, each `{question, choices, answer}`. Of
//! each the options stand in another order at every presentation, so that no letter pays by itself.

use crate::backend::philox::philox;
use crate::error::{Error, Result};
use crate::task::data::{Layout, Problem};
use crate::task::verify::{AnswerType, Gold, Policy};
use serde::Deserialize;

/// One question of a picture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Quiz {
    /// What is asked.
    pub question: String,
    /// The options.
    pub choices: Vec<String>,
    /// The right one, by its letter or its words.
    pub answer: String,
}

/// The columns of pictures with quizzes: they need no question and no answer of their own.
pub fn layout(layout: Layout) -> Layout {
    Layout { fallback_question: Some("Describe the image."), fallback_answer: Some("none"), ..layout }
}

/// The questions of a problem's picture.
pub fn quizzes(problem: &Problem) -> Result<Vec<Quiz>> {
    let refuse = |what: String| Err(Error::caller("quiz", format!("{}: {what}", problem.place)));
    let Some(column) = problem.extra.get("questions") else {
        return refuse(
            "no column \"questions\"; CapRL grades a caption by questions about its picture".into(),
        );
    };
    let quizzes: Vec<Quiz> = match Vec::deserialize(column) {
        Ok(quizzes) => quizzes,
        Err(cause) => {
            return refuse(format!("questions are no list of {{question, choices, answer}}: {cause}"));
        }
    };
    for (number, quiz) in quizzes.iter().enumerate() {
        if !(2..=26).contains(&quiz.choices.len()) || quiz.right().is_none() {
            return refuse(format!(
                "question {number} has {} options and the answer {:?}; 2 to 26 are needed, one of them the answer",
                quiz.choices.len(),
                quiz.answer
            ));
        }
    }
    if quizzes.is_empty() { refuse("no questions".into()) } else { Ok(quizzes) }
}

impl Quiz {
    /// The number of the right option.
    fn right(&self) -> Option<usize> {
        let said = self.answer.trim();
        let by_words = self.choices.iter().position(|choice| choice.trim() == said);
        let mut letters = said.trim_matches(['(', ')', '.']).bytes();
        let by_letter = match (letters.next(), letters.next()) {
            (Some(letter), None) => letter.to_ascii_uppercase().checked_sub(b'A').map(usize::from),
            _ => None,
        };
        by_words.or(by_letter).filter(|at| *at < self.choices.len())
    }

    /// The question as a problem of its own, its options in an order by `seed`.
    pub fn presented(&self, of: &Problem, seed: u64) -> Result<Problem> {
        let mut order: Vec<usize> = (0..self.choices.len()).collect();
        for last in (1..order.len()).rev() {
            let drawn = philox([last as u32, 0, 0, 0], [seed as u32, (seed >> 32) as u32])[0];
            order.swap(last, drawn as usize % (last + 1));
        }
        let right = self.right().and_then(|right| order.iter().position(|&at| at == right));
        let right = right.ok_or_else(|| Error::internal("quiz", "no option is right"))?;
        let letter = char::from(b'A' + right as u8).to_string();
        let choices: Vec<String> = order.iter().map(|&at| self.choices[at].clone()).collect();
        let gold = Gold::parse(&letter, Some(AnswerType::Choice), &choices, &Policy::default());
        let gold = gold.map_err(|fault| Error::caller("quiz", format!("{}: {fault}", of.place)))?;
        Ok(Problem { question: self.question.clone(), answer: letter, gold, choices, ..of.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::world::Example;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    fn problem(questions: Value) -> Problem {
        let mut problem = Example::new(1, 0).problem().expect("a problem");
        problem.extra.insert("questions".into(), questions);
        problem
    }

    #[test]
    fn the_right_option_stays_right_wherever_it_stands() {
        let problem = problem(json!([
            {"question": "which colour?", "choices": ["red", "green", "blue"], "answer": "C"},
            {"question": "how many?", "choices": ["1", "2"], "answer": "2"},
        ]));
        let quizzes = quizzes(&problem).expect("are well formed");
        let mut orders = BTreeSet::new();
        for seed in 0..40 {
            let shown = quizzes[0].presented(&problem, seed).expect("can be asked");
            assert_eq!(shown.choices[usize::from(shown.answer.as_bytes()[0] - b'A')], "blue");
            let graded = shown.grade(&format!("\\boxed{{{}}}", shown.answer), &Policy::default());
            assert_eq!(graded.verdict, crate::task::verify::Verdict::Right);
            orders.insert(shown.choices);
        }
        assert_eq!(orders.len(), 6, "every order occurs");
        let counted = quizzes[1].presented(&problem, 3).expect("can be asked");
        assert_eq!(counted.choices[usize::from(counted.answer.as_bytes()[0] - b'A')], "2");
    }

    #[test]
    fn questions_that_cannot_be_graded_are_refused_by_place() {
        for (questions, said) in [
            (json!([]), "no questions"),
            (json!("what?"), "no list"),
            (json!([{"question": "?", "choices": ["a"], "answer": "A"}]), "1 options"),
            (json!([{"question": "?", "choices": ["a", "b"], "answer": "E"}]), "\"E\""),
        ] {
            let error = quizzes(&problem(questions)).expect_err("is wrong").to_string();
            assert!(error.contains(said) && error.contains("builtin:world"), "{error}");
        }
    }
}
