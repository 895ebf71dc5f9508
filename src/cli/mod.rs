//! The command line: one file per verb, and here what they share.
//!
//! Results go to stdout and are made for reading by people, or with `--json` end in one line made for
//! programs; everything else goes to stderr. A failure is printed once, as the chain of what was being done,
//! and exits with 1; a command line that makes no sense exits with 2. A reader that hangs up is no failure.

mod bench;
mod demo;
mod device;
mod doctor;
mod eval;
mod generate;
mod inspect;
mod kernels;
mod machine;
mod memory;
mod merge;
mod model;
mod pretrain;
mod picture;
mod progress;
mod pupil;
mod records;
mod rollout;
mod run;
mod sampling;
mod score;
mod selftest;
mod settings;
mod sft;
mod text;
mod train;
mod verify;

use anyhow::{Context, Result};
use clap::Parser;
use device::Device;
use std::{ffi::OsString, fmt, io, io::Write, process::ExitCode};

/// Run vision-language models and language models from the checkpoints people have
#[derive(Debug, Parser)]
#[command(name = "pellucid", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Doctor(doctor::Arguments),
    Inspect(inspect::Arguments),
    Generate(generate::Arguments),
    Rollout(rollout::Arguments),
    Score(score::Arguments),
    Demo(demo::Arguments),
    Train(train::Arguments),
    Eval(eval::Arguments),
    Sft(sft::Arguments),
    Merge(merge::Arguments),
    Verify(verify::Arguments),
    Selftest(selftest::Arguments),
    Bench(bench::Arguments),
    Pretrain(pretrain::Arguments),
}

/// Settings that every verb takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    #[arg(long, global = true, default_value = "auto", value_parser = Device::parse,
        help = format!("Where to compute: {}", Device::CHOICES))]
    pub(crate) device: Device,

    /// Threads to compute with [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = parse_threads)]
    pub(crate) threads: Option<usize>,

    /// Seed of everything random [default: 0, or the configuration's]
    #[arg(long = "seed", global = true, value_name = "N")]
    given_seed: Option<u64>,

    /// No progress and no remarks on stderr; errors are still printed
    #[arg(long, global = true)]
    pub(crate) quiet: bool,

    /// End stdout with one line of JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Global {
    /// The seed of a verb that has no configuration.
    pub(crate) fn seed(&self) -> u64 {
        self.given_seed.unwrap_or(0)
    }

    /// Tells a person who waits what is going on.
    pub(crate) fn notice(&self) -> fn(&str) {
        if self.quiet { |_| {} } else { |line| eprintln!("{line}") }
    }

    /// Changes to a configuration: a seed on the command line goes before those that name keys.
    pub(crate) fn changes(&self, changes: &[String]) -> Vec<String> {
        let seed = self.given_seed.map(|seed| format!("seed={seed}"));
        seed.into_iter().chain(changes.iter().cloned()).collect()
    }

    /// Prints a verb's result on stdout: for people, or with `--json` as one line for programs.
    pub(crate) fn print<R: serde::Serialize + fmt::Display>(&self, report: &R) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(report)?)?;
        } else {
            write!(out, "{report}")?;
        }
        Ok(out.flush()?)
    }
}

fn parse_threads(count: &str) -> Result<usize, String> {
    match count.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("expected a number from 1 to 1024".into()),
    }
}

/// Runs the program and says how it went.
pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command_line = CommandLine::parse_from(arguments.map(in_kebab_case));
    match run(&command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if reader_hung_up(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is gone too, the exit code is all that can still be said.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command_line: &CommandLine) -> Result<()> {
    let global = &command_line.global;
    if let Some(threads) = global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().with_context(|| format!("cannot start {threads} threads"))?;
    }
    match &command_line.verb {
        Verb::Doctor(arguments) => doctor::run(arguments, global),
        Verb::Generate(arguments) => generate::run(arguments, global),
        Verb::Rollout(arguments) => rollout::run(arguments, global),
        Verb::Score(arguments) => score::run(arguments, global),
        Verb::Demo(arguments) => demo::run(arguments, global),
        Verb::Train(arguments) => train::run(arguments, global),
        Verb::Eval(arguments) => eval::run(arguments, global),
        Verb::Sft(arguments) => sft::run(arguments, global),
        Verb::Merge(arguments) => merge::run(arguments, global),
        Verb::Verify(arguments) => verify::run(arguments, global),
        Verb::Selftest(arguments) => selftest::run(arguments, global),
        Verb::Bench(arguments) => bench::run(arguments, global),
        Verb::Inspect(arguments) => inspect::run(arguments, global),
        Verb::Pretrain(arguments) => pretrain::run(arguments, global),
    }
}

/// `--max_tokens` is `--max-tokens`: both spellings are common, and flags alone are touched, never values.
fn in_kebab_case(argument: OsString) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else { return argument };
    let (flag, value) = text.split_at(text.find('=').unwrap_or(text.len()));
    OsString::from(flag.replace('_', "-") + value)
}

fn reader_hung_up(error: &anyhow::Error) -> bool {
    let broken_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken_pipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <CommandLine as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn flags_may_be_spelt_with_underscores_and_values_stay_as_they_are() {
        for (given, wanted) in [
            ("--max_tokens", "--max-tokens"),
            ("--a_b=c_d", "--a-b=c_d"),
            ("my_model", "my_model"),
            ("-a_b", "-a_b"),
        ] {
            assert_eq!(in_kebab_case(given.into()), wanted);
        }
    }

    #[test]
    fn threads_are_a_number() {
        assert!(parse_threads("0").is_err());
        assert_eq!(parse_threads("7"), Ok(7));
    }
}
