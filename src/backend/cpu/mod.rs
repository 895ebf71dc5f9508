//! The embedded default and the reference.

use super::plain::Plain;
use crate::error::Result;

/// The CPU backend.
pub type Cpu = Plain<f32>;

impl Cpu {
    /// The backend with this many threads, or one per core.
    pub fn new(_threads: Option<usize>) -> Result<Self> {
        Ok(Plain::default())
    }

    /// The same ops in f64, for tests.
    pub fn oracle() -> Plain<f64> {
        Plain::default()
    }
}
