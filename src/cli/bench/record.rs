//! A record of timings, as `bench kernels`, `decode` and `prefill` and `benches/peers/kernels.py` write it and `bench compare` reads it.

use super::super::{Global, kernels::Work, machine::Processor};
use anyhow::{Context, Result, ensure};
use pellucid::backend::Backend;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

/// What was measured, when, where and by what.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// UTC, as in `2026-11-21T10:20:05+00:00`.
    pub(super) date: String,
    /// The commit, with `+` if files differ from it; absent outside a repository.
    pub(super) commit: Option<String>,
    pub(super) cpu: String,
    pub(super) threads: usize,
    /// What computed, in its own words.
    pub(super) device: String,
    pub(super) note: String,
    pub(super) load_before: Option<f64>,
    pub(super) ceilings: Ceilings,
    pub(super) kernels: Vec<Timing>,
}

/// What the machine does at most, measured in the same run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ceilings {
    pub(super) bytes_per_second: f64,
    pub(super) flops_per_second: f64,
    /// How these were measured.
    pub(super) by: String,
}

/// One op, or a whole pass, at one shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Timing {
    /// Who computed: `pellucid`, or a peer by name.
    pub(super) side: String,
    pub(super) name: String,
    /// The median.
    pub(super) us: f64,
    pub(super) us_fastest: f64,
    pub(super) us_slowest: f64,
    /// How many times it was measured, each time calling so many copies of the arguments in turn.
    pub(super) samples: usize,
    pub(super) copies: usize,
    pub(super) bytes: f64,
    pub(super) flops: f64,
    pub(super) gigabytes_per_second: f64,
    pub(super) teraflops_per_second: f64,
    /// What bytes and operations take at the ceilings, the slower of the two.
    pub(super) floor_us: f64,
    pub(super) share_of_floor: f64,
    /// Of a whole pass: tokens it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tokens_per_second: Option<f64>,
}

impl Timing {
    /// One of ours, of seconds in any order.
    pub(super) fn of(
        name: String,
        mut samples: Vec<f64>,
        copies: usize,
        work: Work,
        ceilings: &Ceilings,
    ) -> Timing {
        samples.sort_by(f64::total_cmp);
        let seconds = samples[samples.len() / 2];
        let floor = work.floor(ceilings.bytes_per_second, ceilings.flops_per_second);
        Timing {
            side: "pellucid".into(),
            name,
            us: 1e6 * seconds,
            us_fastest: 1e6 * samples[0],
            us_slowest: 1e6 * samples[samples.len() - 1],
            samples: samples.len(),
            copies,
            bytes: work.bytes,
            flops: work.flops,
            gigabytes_per_second: work.bytes / seconds / 1e9,
            teraflops_per_second: work.flops / seconds / 1e12,
            floor_us: 1e6 * floor,
            share_of_floor: floor / seconds,
            tokens_per_second: None,
        }
    }

    /// The same, of a pass over so many tokens.
    pub(super) fn over(self, tokens: usize) -> Timing {
        Timing { tokens_per_second: Some(1e6 * tokens as f64 / self.us), ..self }
    }
}

impl Record {
    /// A record without timings yet.
    pub(super) fn begin(backend: &dyn Backend, global: &Global, note: &str, ceilings: Ceilings) -> Record {
        let processor = Processor::read();
        Record {
            date: now(),
            commit: commit(),
            cpu: processor.model.unwrap_or_else(|| "unknown".into()),
            threads: global.threads.unwrap_or(processor.cores),
            device: backend.describe(),
            note: note.to_owned(),
            load_before: load(),
            ceilings,
            kernels: Vec::new(),
        }
    }

    pub(super) fn read(path: &Path) -> Result<Record> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("{name}: cannot read it"))?;
        Record::parse(&text).with_context(|| format!("{name}: not a record of `bench kernels`"))
    }

    pub(super) fn parse(text: &str) -> Result<Record> {
        let record: Record = serde_json::from_str(text)?;
        for Timing { name, us, .. } in &record.kernels {
            ensure!(*us > 0.0 && us.is_finite(), "{name} takes {us} µs, expected a positive number");
        }
        Ok(record)
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("{}: cannot write it", path.display()))
    }
}

/// Now, in UTC.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date(since.as_secs())
}

/// A time in seconds since 1970. Years are counted from March, so that leap days come last.
fn date(seconds: u64) -> String {
    let (days, clock) = (seconds / 86_400 + 719_468, seconds % 86_400); // since the first of March of year 0
    let (era, day) = (days / 146_097, days % 146_097); // eras of 400 years
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00")
}

/// The repository's commit, if this runs in one.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|run| run.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = !git(&["status", "--porcelain"])?.is_empty();
    Some(format!("{}{}", commit.trim(), if changed { "+" } else { "" }))
}

/// Processes that wanted to run during the last minute: timings beside others mean little.
fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00+00:00"),
            (951_782_399, "2000-02-28T23:59:59+00:00"),
            (951_782_400, "2000-02-29T00:00:00+00:00"),
            (1_709_251_199, "2024-02-29T23:59:59+00:00"),
            (4_107_542_400, "2100-03-01T00:00:00+00:00"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
