//! What is asked and what is right: the grading of answers.

pub mod verify;
