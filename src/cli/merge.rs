//! `pellucid merge`: an adapter worked into its model.

use super::Global;
use anyhow::Result;
use pellucid::format::adapter::Adapter;
use pellucid::format::{ModelFolder, merge};
use serde_json::json;
use std::{io::Write, path::PathBuf};

/// Write a plain checkpoint with an adapter worked into its weights
///
/// Every weight the adapter touches becomes W + s·B·A, rounded once to the type it has; all else is copied.
///
/// Example: pellucid merge --model Qwen/Qwen2.5-VL-3B-Instruct --adapter runs/one/checkpoint-60 --out merged
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A folder, or a hub id in the offline cache
    #[arg(long)]
    model: String,

    /// A PEFT LoRA adapter of it
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,

    /// The new folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let folder = ModelFolder::find(&arguments.model)?;
    let adapter = Adapter::open(&arguments.adapter)?;
    let changed = merge(folder.path(), &adapter, &arguments.out)?;
    if global.json {
        writeln!(std::io::stdout(), "{}", json!({"merged": changed, "out": arguments.out}))?;
    } else if !global.quiet {
        eprintln!("{changed} weights merged into {}", arguments.out.display());
    }
    Ok(())
}
