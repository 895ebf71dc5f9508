//! What a reasoner says, wherever it runs.

/// One reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Its words.
    pub text: String,
    /// How many tokens they took.
    pub tokens: usize,
    /// Whether they were cut off at the most tokens allowed.
    pub truncated: bool,
}
