//! The embedded default and the reference.
