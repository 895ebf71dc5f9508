//! One error type, grouped by who can act on it.
//!
//! A message names what was being done, the value that stood in the way, and (where there is one) the
//! remedy. It is written in lower case and without a full stop, so that messages chain:
//! `config.json: num_attention_heads: expected a positive integer, got -3`.

mod unknown;

pub use unknown::{nearest, unknown};

use std::path::{Path, PathBuf};

/// The cause behind an [`Error`], kept for `{:#}` chains.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whose move it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller's move: a request, argument or shape that cannot be served.
    #[error("{op}: {what}")]
    Caller {
        /// The operation that refused.
        op: &'static str,
        /// The value and the remedy.
        what: String,
    },
    /// The operator's move: a file that is missing, damaged or not what it claims to be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file (or folder) at fault.
        path: PathBuf,
        /// Key, tensor or byte range at fault, and the remedy.
        what: String,
        /// The parser's or the system's own words.
        #[source]
        source: Option<Source>,
    },
    /// The machine's limits: memory, device, driver, operating system.
    #[error("{op}: {what}")]
    Machine {
        /// The operation that failed.
        op: &'static str,
        /// What is lacking, and what to do about it.
        what: String,
        /// The system's own words.
        #[source]
        source: Option<Source>,
    },
    /// Our move: an invariant of this crate does not hold. Always a bug.
    #[error("{op}: {what} (this is a bug in pellucid, please report it)")]
    Internal {
        /// The operation that noticed.
        op: &'static str,
        /// The invariant that broke.
        what: String,
    },
}

impl Error {
    /// A request that cannot be served.
    pub fn caller(op: &'static str, what: impl Into<String>) -> Self {
        Error::Caller { op, what: what.into() }
    }

    /// A file at fault, without a deeper cause.
    pub fn file(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_owned(), what: what.into(), source: None }
    }

    /// A file at fault, with the parser's or the system's error as the cause.
    pub fn file_because(path: impl AsRef<Path>, what: impl Into<String>, source: impl Into<Source>) -> Self {
        Error::File { path: path.as_ref().to_owned(), what: what.into(), source: Some(source.into()) }
    }

    /// A limit of this machine.
    pub fn machine(op: &'static str, what: impl Into<String>) -> Self {
        Error::Machine { op, what: what.into(), source: None }
    }

    /// A limit of this machine, with the system's error as the cause.
    pub fn machine_because(op: &'static str, what: impl Into<String>, source: impl Into<Source>) -> Self {
        Error::Machine { op, what: what.into(), source: Some(source.into()) }
    }

    /// Whether another request or file might fare better: neither the machine nor this crate is to blame.
    pub fn is_of_input(&self) -> bool {
        matches!(self, Error::Caller { .. } | Error::File { .. })
    }

    /// A broken invariant of ours.
    pub fn internal(op: &'static str, what: impl Into<String>) -> Self {
        Error::Internal { op, what: what.into() }
    }
}
