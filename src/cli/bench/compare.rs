//! `pellucid bench compare`: two records side by side.

use super::super::Global;
use super::record::{Record, Timing};
use anyhow::Result;
use serde::Serialize;
use std::{collections::BTreeMap, fmt, path::PathBuf};

/// Ratios of two records of `bench kernels`, by op and shape
///
/// The ratio is B's time over A's: above 1, A is faster. Differences are printed and never fail.
///
/// Example: pellucid bench compare ours.json torch.json
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(value_name = "A.json")]
    a: PathBuf,
    #[arg(value_name = "B.json")]
    b: PathBuf,
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let report = Report::of(&Record::read(&arguments.a)?, &Record::read(&arguments.b)?);
    if !global.quiet {
        report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    global.print(&report)
}

#[derive(Debug, Serialize)]
struct Report {
    ratios: Vec<Ratio>,
    means: Vec<Mean>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    warnings: Vec<String>,
}

/// One op at one shape, by two sides.
#[derive(Debug, Serialize)]
struct Ratio {
    name: String,
    a: String,
    b: String,
    a_us: f64,
    b_us: f64,
    b_over_a: f64,
}

/// The geometric mean over the shapes of an op.
#[derive(Debug, Serialize)]
struct Mean {
    op: String,
    a: String,
    b: String,
    shapes: usize,
    b_over_a: f64,
}

impl Report {
    fn of(a: &Record, b: &Record) -> Report {
        let pairs = a.kernels.iter().flat_map(|one| {
            b.kernels.iter().filter(|other| other.name == one.name).map(move |other| (one, other))
        });
        let ratios: Vec<Ratio> = pairs
            .map(|(one, other)| Ratio {
                name: one.name.clone(),
                a: one.side.clone(),
                b: other.side.clone(),
                a_us: one.us,
                b_us: other.us,
                b_over_a: other.us / one.us,
            })
            .collect();
        let (only_in_a, only_in_b) = (missing(a, b), missing(b, a));
        Report { means: means(&ratios), ratios, only_in_a, only_in_b, warnings: warnings(a, b) }
    }
}

fn means(ratios: &[Ratio]) -> Vec<Mean> {
    let mut logarithms: BTreeMap<[&str; 3], Vec<f64>> = BTreeMap::new();
    for Ratio { name, a, b, b_over_a, .. } in ratios {
        let op = name.split(' ').next().unwrap_or_default();
        logarithms.entry([op, a, b]).or_default().push(b_over_a.ln());
    }
    let mean = |(names, logarithms): ([&str; 3], Vec<f64>)| {
        let [op, a, b] = names.map(str::to_owned);
        let shapes = logarithms.len();
        Mean { op, a, b, shapes, b_over_a: (logarithms.iter().sum::<f64>() / shapes as f64).exp() }
    };
    logarithms.into_iter().map(mean).collect()
}

/// Names that one record has and the other lacks.
fn missing(from: &Record, other: &Record) -> Vec<String> {
    let lacks = |timing: &&Timing| other.kernels.iter().all(|one| one.name != timing.name);
    let mut names: Vec<String> =
        from.kernels.iter().filter(lacks).map(|timing| timing.name.clone()).collect();
    names.dedup();
    names
}

/// What makes two records hard to compare.
fn warnings(a: &Record, b: &Record) -> Vec<String> {
    let day = |record: &Record| record.date.chars().take(10).collect::<String>();
    let pairs = [
        ("machine", a.cpu.clone(), b.cpu.clone()),
        ("number of threads", a.threads.to_string(), b.threads.to_string()),
        ("day", day(a), day(b)),
    ];
    let differ = pairs.into_iter().filter(|(_, a, b)| a != b);
    differ.map(|(what, a, b)| format!("the {what} differs: {a} and {b}")).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<62}{:>11}{:>11}{:>8}", "", "A us", "B us", "B/A")?;
        for Ratio { name, a, b, a_us, b_us, b_over_a } in &self.ratios {
            writeln!(f, "{name:<62}{a_us:>11.1}{b_us:>11.1}{b_over_a:>8.2}  {a}, {b}")?;
        }
        for Mean { op, a, b, shapes, b_over_a } in &self.means {
            let what = format!("{op}, geometric mean of {shapes}");
            writeln!(f, "{what:<84}{b_over_a:>8.2}  {a}, {b}")?;
        }
        for (names, which) in [(&self.only_in_a, "A"), (&self.only_in_b, "B")] {
            for name in names {
                writeln!(f, "{name:<62}only in {which}")?;
            }
        }
        Ok(())
    }
}
