//! What is asked and what is right: the grading of answers, problems to answer, and a world to make some in.

pub mod verify;
pub mod data;
pub mod world;
pub mod school;
