//! What is asked and what is right: the grading of answers, and problems to answer.

pub mod verify;
pub mod data;
