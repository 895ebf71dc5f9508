//! `pellucid bench`: measurements beside what the machine would allow, and records beside each other.

mod compare;
mod kernels;
mod passes;
mod record;
mod shapes;
mod train;

use super::Global;
use anyhow::Result;

/// Measure, or compare measurements
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Kernels(kernels::Arguments),
    Decode(passes::DecodeArguments),
    Prefill(passes::PrefillArguments),
    Train(train::Arguments),
    Compare(compare::Arguments),
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    match &arguments.what {
        What::Kernels(arguments) => kernels::run(arguments, global),
        What::Decode(arguments) => passes::decode(arguments, global),
        What::Prefill(arguments) => passes::prefill(arguments, global),
        What::Train(arguments) => train::run(arguments, global),
        What::Compare(arguments) => compare::run(arguments, global),
    }
}
