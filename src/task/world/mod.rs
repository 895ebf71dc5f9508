//! The built-in tiny world: labelled shapes, questions about them, and a language of 105 words.
//!
//! Made so that the whole of what this crate is for can be seen on one machine in minutes: a captioner describes a
//! picture to a reasoner that cannot see it, and learns to say what the reasoner needs. Everything is a function of a
//! seed and an index ([`Chance`]), so that any number of examples can be made, each again, on any machine.

mod chance;
mod language;
mod picture;
mod question;
mod scene;
mod vocabulary;

pub use chance::{Chance, Purpose};
pub use language::{
    CAPTION_BUDGET, Request, TOLD, Verdict, facts, full_caption, human_caption, long_caption, mixed_caption,
    restated, telling_caption,
};
pub use picture::{Picture, SIDE};
pub use question::{Attribute, Fact, Question, Value};
pub use scene::{Cell, Colour, Name, Object, Scene, Shape};
pub use vocabulary::{
    PICTURE_TOKENS, Role, Vocabulary, ask_for_answer, ask_for_caption, ask_for_clarification,
    ask_for_everything, ask_to_restate, message, prompt, tell, with_picture, words,
};

use super::data::{Place, Problem};
use super::verify::{AnswerType, Gold, Policy};
use crate::error::{Error, Result};
use crate::prompt::message::ImageReference;
use serde_json::Map;

/// The seed of the examples that are held out: training takes any other.
pub const HELD_OUT: u64 = u64::MAX;

/// A scene and a question about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What there is to see.
    pub scene: Scene,
    /// What is asked.
    pub question: Question,
    /// The right answer.
    pub answer: String,
    seed: u64,
    index: u64,
}

impl Example {
    /// The `index`th example of a seed.
    pub fn new(seed: u64, index: u64) -> Self {
        let scene = Scene::random(&mut Chance::new(seed, index, Purpose::Scene), 4, 5);
        let question = Question::random(&mut Chance::new(seed, index, Purpose::Question), &scene);
        let answer = question.truth(&scene).expect("the objects asked about are there");
        Example { scene, question, answer, seed, index }
    }

    /// Draws for what captions of this example say.
    pub fn chance(&self) -> Chance {
        Chance::new(self.seed, self.index, Purpose::Caption)
    }

    /// The example as any other problem. An answer must be the same word.
    pub fn problem(&self) -> Result<Problem> {
        let policy = Policy::default();
        let gold = Gold::parse(&self.answer, Some(AnswerType::Text), &[], &policy);
        Ok(Problem {
            id: format!("{}/{}", self.seed, self.index),
            images: vec![ImageReference::Bytes(Picture::draw(&self.scene).png()?)],
            question: self.question.to_string(),
            choices: Vec::new(),
            answer: self.answer.clone(),
            gold: gold.map_err(|fault| Error::internal("tiny world", fault.to_string()))?,
            tolerance: None,
            subject: Some(self.question.kind().to_owned()),
            difficulty: None,
            questions: Vec::new(),
            extra: Map::new(),
            place: Place { file: "builtin:world".into(), row: self.index },
        })
    }
}
