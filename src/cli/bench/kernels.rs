//! `pellucid bench kernels`: what each op takes at the shapes of real models, and what it would take at the ceilings of
//! this machine.
//!
//! Random numbers; arguments used in turn out of a quarter of a gigabyte, so that what a model reads from memory is not
//! read from a cache; warm; the median of twenty rounds at least, by the device's own clock where it has one.

use super::super::{
    Global,
    device::Device,
    kernels::{Call, Case, Selection, Then, Work, table},
};
use super::record::{Ceilings, Record, Timing};
use anyhow::{Result, bail};
use pellucid::backend::{Backend, cpu::Cpu};
use serde_json::json;
use std::{
    fmt,
    io::{Write, stdout},
    path::PathBuf,
};

/// Time every op at real shapes, beside its floor
///
/// The floor is what the bytes that must move and the operations that must be done take at the ceilings, which are
/// measured in the same run. `--list` prints the table of cases alone; with --json it is what peers measure.
///
/// Example: pellucid bench kernels --shapes "linear T=1,paged_attention" --out ours.json
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: Selection,

    /// Also write a record, for `bench compare`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// What else the record should remember, such as what else the machine did
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,

    /// Name the cases and measure nothing
    #[arg(long)]
    list: bool,
}

/// Bytes of arguments used in turn: more than any cache.
const ROTATED: f64 = (256 << 20) as f64;

/// Copies of arguments at most: what is smaller than this allows is at hand in a model, too.
const COPIES: f64 = 64.0;

/// Rounds, and seconds they may take where more than the fewest fit.
const FEWEST: usize = 20;
const MOST: usize = 500;
const SECONDS: f64 = 0.25;

pub(super) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let (cases, left_out) = arguments.selection.cases(table(), global.device)?;
    if arguments.list {
        return list(&cases, global);
    }
    if global.device.is_emulated() {
        bail!("the emulator's time says nothing about a device: measure on cpu, or on a device");
    }
    let backend = global.device.open(global.threads)?;
    let mut record = Record::begin(&*backend, global, &arguments.note, ceilings(&*backend, global)?);
    let mut out = stdout().lock();
    if !global.json {
        writeln!(out, "{}\n{}\n{HEADING}", record.device, record.ceilings)?;
    }
    let mut failed = 0;
    for case in &cases {
        match time(case, global.seed(), &*backend, &record.ceilings) {
            Ok(timing) => {
                if !global.json {
                    writeln!(out, "{timing}")?;
                }
                record.kernels.push(timing);
            }
            Err(error) => {
                failed += 1;
                eprintln!("{case}: {error}");
            }
        }
    }
    if let Some(path) = &arguments.out {
        record.write(path)?;
    }
    if global.json {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    } else if left_out > 0 {
        writeln!(out, "{}", arguments.selection.remark(left_out, global.device))?;
    }
    out.flush()?;
    if failed > 0 {
        bail!("{failed} of {} cases could not be timed", cases.len());
    }
    Ok(())
}

/// The table of cases; bytes are those of bf16 activations, which peers have.
fn list(cases: &[Case], global: &Global) -> Result<()> {
    let mut out = stdout().lock();
    if global.json {
        let one = |case: &Case| {
            let Work { bytes, flops } = case.work(2);
            json!({"name": case.to_string(), "case": case, "bytes": bytes, "flops": flops})
        };
        let cases: Vec<_> = cases.iter().map(one).collect();
        writeln!(out, "{}", json!({"rotated_bytes": ROTATED, "copies": COPIES, "cases": cases}))?;
    } else {
        for case in cases {
            writeln!(out, "{case}")?;
        }
    }
    Ok(out.flush()?)
}

/// The best that reading and multiplying do here.
pub(super) fn ceilings(backend: &dyn Backend, global: &Global) -> Result<Ceilings> {
    if global.device == Device::Cpu {
        let ceilings = Cpu::new(global.threads)?.ceilings(3)?;
        return Ok(Ceilings {
            bytes_per_second: ceilings.read,
            flops_per_second: ceilings.bf16,
            by: "all threads reading memory, and bf16 dot products on registers".into(),
        });
    }
    let copy = Case::ScatterRows { t: 1 << 16, c: 4096 };
    let linear = Case::Linear { t: 8192, k: 8192, n: 8192, r: 0, bias: false, then: Then::Store };
    let rate = |case: &Case| -> Result<Work> {
        let (samples, _) = samples(case, global.seed(), backend)?;
        let Work { bytes, flops } = case.work(backend.activation().size());
        Ok(Work { bytes: bytes / samples[0], flops: flops / samples[0] })
    };
    Ok(Ceilings {
        bytes_per_second: rate(&copy)?.bytes,
        flops_per_second: rate(&linear)?.flops,
        by: format!("our own copy and product, which may fall short of the device: {copy}; {linear}"),
    })
}

fn time(case: &Case, seed: u64, backend: &dyn Backend, ceilings: &Ceilings) -> Result<Timing> {
    let (samples, copies) = samples(case, seed, backend)?;
    let work = case.work(backend.activation().size());
    Ok(Timing::of(case.to_string(), samples, copies, work, ceilings))
}

/// Seconds of a call, from the fastest round to the slowest, and how many copies of its arguments took turns.
fn samples(case: &Case, seed: u64, backend: &dyn Backend) -> Result<(Vec<f64>, usize)> {
    let host = Call::new(case, seed)?;
    let copies = (ROTATED / host.bytes() as f64).ceil().clamp(1.0, COPIES) as usize;
    let copy = |_| host.copied()?.on(backend);
    let mut calls: Vec<Call> = (0..copies).map(copy).collect::<pellucid::Result<_>>()?;
    let mut round = || calls.iter_mut().try_for_each(|call| call.run(backend));
    let warm = backend.time(3, &mut round)?;
    let rounds = (SECONDS / warm[2].max(1e-9)).clamp(FEWEST as f64, MOST as f64) as usize;
    let mut samples = backend.time(rounds, &mut round)?;
    samples.sort_by(f64::total_cmp);
    samples.iter_mut().for_each(|seconds| *seconds /= copies as f64);
    Ok((samples, copies))
}

const HEADING: &str = "                                                                       us      GB/s   TFLOP/s   floor us   share";

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timing { name, us, gigabytes_per_second, teraflops_per_second, floor_us, .. } = self;
        let share = 100.0 * self.share_of_floor;
        write!(f, "{name:<62}{us:>11.1}{gigabytes_per_second:>10.1}{teraflops_per_second:>10.3}")?;
        write!(f, "{floor_us:>11.1}{share:>7.0}%")
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, flops) = (self.bytes_per_second / 1e9, self.flops_per_second / 1e12);
        write!(f, "ceilings: {bytes:.1} GB/s, {flops:.2} TFLOP/s, measured by {}", self.by)
    }
}
