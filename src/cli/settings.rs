//! How `train`, `sft` and `eval` are told what to do: a file, changes to it, and where to go on.

use super::Global;
use anyhow::{Context, Result};
use pellucid::rl::config::Config;
use std::path::PathBuf;

/// A configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Configured {
    /// The run's configuration (TOML)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,

    /// Changes to it: key=value, with dotted keys
    #[arg(value_name = "KEY=VALUE")]
    changes: Vec<String>,

    /// Open everything, print the configuration as it is understood, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A configuration of what leaves checkpoints.
#[derive(Debug, clap::Args)]
pub(crate) struct Resumable {
    #[command(flatten)]
    pub(crate) configured: Configured,

    /// Go on from a checkpoint: `latest`, or its folder
    #[arg(long, value_name = "WHICH")]
    pub(crate) resume: Option<String>,
}

impl Configured {
    pub(crate) fn read(&self, global: &Global) -> Result<Config> {
        Ok(Config::read(&self.config, &global.changes(&self.changes))?)
    }
}

/// A configuration as it is understood, with all that was left out.
pub(crate) fn text(config: &Config) -> Result<String> {
    toml::to_string(config).context("the configuration cannot be written")
}
