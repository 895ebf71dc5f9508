//! The loop closed: what a run is told, and what it does.

pub mod config;
pub mod reply;
pub mod decision;
pub mod protocol;
pub mod episode;
