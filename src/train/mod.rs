//! Graded completions into a better adapter.

pub mod objective;
