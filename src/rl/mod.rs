//! The loop closed: what a run is told, and what it does.

pub mod config;
pub mod reply;
pub mod remote;
pub mod leak;
pub mod decision;
pub mod protocol;
pub mod episode;
pub mod actor;
pub mod stage;
pub mod parts;
pub mod source;
pub mod caprl;
pub mod credit;
pub mod prco;
pub mod cast;
pub mod frozen;
pub mod run;
pub mod metrics;
pub mod evaluation;
pub mod evaluate;
pub mod tensorboard;
pub mod alarms;
pub mod report;
