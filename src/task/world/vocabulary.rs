//! The 105 words, and how conversations are written in them.

use super::scene::{Cell, Name};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Visual tokens of a picture: one per cell.
pub const PICTURE_TOKENS: usize = 9;

/// Words that only a prompt may hold. A model that could write them would change how its text is read.
const STRUCTURE: [&str; 5] = ["<pad>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"];

const WORDS: &str = "<pad> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> system user assistant \
    SOLVED NEED MORE INFO : . , ? describe the image for question request answer in full caption clarification what is \
    number on of sum difference perimeter and where unknown";

/// Every word, in the order of its id.
pub fn words() -> Vec<String> {
    let names = Name::all().map(|name| name.to_string());
    let cells = Cell::all().map(|cell| cell.name().to_owned());
    let numbers = (0..=36).map(|number| number.to_string());
    WORDS.split_whitespace().map(str::to_owned).chain(names).chain(cells).chain(numbers).collect()
}

/// Words and their ids.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    words: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Default for Vocabulary {
    fn default() -> Self {
        let words = words();
        let ids = words.iter().cloned().zip(0..).collect();
        Vocabulary { words, ids }
    }
}

impl Vocabulary {
    /// How many words there are.
    pub fn size(&self) -> usize {
        self.words.len()
    }

    /// The ids of words with one space between.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let id = |word: &str| {
            let known = self.ids.get(word).copied();
            known.ok_or_else(|| {
                Error::caller("tiny world", format!("{word:?} is none of its {} words", self.size()))
            })
        };
        text.split_whitespace().map(id).collect()
    }

    /// The words of ids; an id without a word is left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let words: Vec<&str> =
            ids.iter().filter_map(|id| self.words.get(*id as usize)).map(String::as_str).collect();
        words.join(" ")
    }

    /// The ids that must never be drawn.
    pub fn structure(&self) -> Vec<u32> {
        STRUCTURE.iter().filter_map(|word| self.ids.get(*word).copied()).collect()
    }
}

/// Who says something in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "roles")]
pub enum Role {
    User,
    Assistant,
}

/// A turn, written out.
pub fn message(role: Role, text: &str) -> String {
    let role = match role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    format!("<|im_start|> {role} {text} <|im_end|>")
}

/// Turns, and the beginning of the assistant's next.
pub fn prompt(turns: &[String]) -> String {
    format!("{} <|im_start|> assistant", turns.join(" "))
}

/// What a user says about a picture.
pub fn with_picture(text: &str) -> String {
    format!("<|vision_start|> {}<|vision_end|> {text}", "<|image_pad|> ".repeat(PICTURE_TOKENS))
}

/// Asks for a caption that helps with a question.
pub fn ask_for_caption(question: &str) -> String {
    with_picture(&format!("describe the image for the question : {question}"))
}

/// Asks for what a request asks for.
pub fn ask_for_clarification(request: &str) -> String {
    with_picture(&format!("answer the request : {request}"))
}

/// Asks for everything there is to see.
pub fn ask_for_everything() -> String {
    with_picture("describe the image in full")
}

/// Asks a reasoner for the answer.
pub fn ask_for_answer(caption: &str, question: &str) -> String {
    format!("caption : {caption} question : {question}")
}

/// Tells a reasoner what it asked for.
pub fn tell(clarification: &str) -> String {
    format!("clarification : {clarification}")
}

/// Asks a reasoner to say a caption again.
pub fn ask_to_restate(caption: &str) -> String {
    format!("caption : {caption} describe the caption in full")
}
