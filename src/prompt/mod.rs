//! Words and pictures to tokens and patches: tokenizer, chat template, image processors.

mod byte_level;
pub mod expand;
pub mod image;
pub mod message;
pub mod reader;
pub mod template;
pub mod tokenizer;
