//! `pellucid inspect`: what a model or an adapter is, what it costs to run, and what is wrong with it.
//!
//! Files are judged without loading them. What is wrong is part of the report, so that all of it is seen at
//! once; the exit code then says whether the thing can be used.

mod adapter;
mod model;
mod scan;

use super::Global;
use anyhow::{Result, bail};
use pellucid::format::ModelFolder;

/// What a model or an adapter is, what it costs to run, and what is wrong with it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  pellucid inspect Qwen/Qwen2.5-VL-3B-Instruct --context 8192\n  \
    pellucid inspect Qwen/Qwen2.5-VL-3B-Instruct --reasoner Qwen/Qwen3-8B --memory 80\n\n\
    Exits with 1 if tensors are missing, misshapen, surplus or not finite.")]
pub(crate) struct Arguments {
    /// A model or adapter: a folder, or a hub id in the offline cache
    #[arg(value_name = "MODEL|ADAPTER")]
    target: String,

    /// Tokens of context to plan memory for
    #[arg(long, value_name = "N", default_value_t = 4096)]
    context: usize,

    /// Plan memory for this model, too, which runs beside it in the same process
    #[arg(long, value_name = "MODEL")]
    reasoner: Option<String>,

    /// Completions at work at a time, of each of the two models
    #[arg(long, value_name = "N", default_value_t = 32, requires = "reasoner")]
    sequences: usize,

    /// Gibibytes that the two divide [default: what is free]
    #[arg(long, value_name = "GIB", requires = "reasoner")]
    memory: Option<f64>,

    /// Whether to read every weight in search of NaN and infinity
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Scan::Auto)]
    scan: Scan,
}

/// When to read every weight.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Scan {
    /// If there are at most 8 GiB of them
    Auto,
    Always,
    Never,
}

impl Scan {
    fn applies_to(self, bytes: u64) -> bool {
        match self {
            Scan::Auto => bytes <= 8 << 30,
            Scan::Always => true,
            Scan::Never => false,
        }
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let folder = ModelFolder::find(&arguments.target)?;
    let has = |name: &str| folder.path().join(name).exists();
    match (has("config.json"), has("adapter_config.json")) {
        (true, _) => model::run(&folder, arguments, global),
        (false, true) => adapter::run(folder.path(), global),
        (false, false) => {
            bail!("{}: holds neither config.json nor adapter_config.json", folder.path().display())
        }
    }
}
