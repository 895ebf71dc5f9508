//! `pellucid selftest`: every op on this machine's device at the shapes of real models, against the f64 oracle, and bit
//! for bit against itself by other ways.
//!
//! An error may be at most twice that of the plain computation in the same types, plus one rounding of the result. The
//! oracle is slow, so it computes some rows and columns of what the device computes whole: that these do not depend on
//! the others is the contract.

use super::Global;
use super::kernels::{Argument, Call, Case, Selection, table};
use anyhow::{Result, bail};
use pellucid::{
    backend::{Backend, cpu::Cpu, plain::Plain},
    error,
    tensor::{Dtype, Tensor},
};
use serde::Serialize;
use serde_json::json;
use std::{
    fmt,
    io::{Write, stdout},
    ops::Range,
};

/// Compare every op with its slow twin, at real shapes
///
/// Each line is an op at a shape, what it was held to, its error and what is allowed; bits have to be the same whichever
/// rows stand beside a row, wherever its keys lie. Exits with 1 if anything failed.
///
/// Example: pellucid selftest --quick --shapes linear --shapes "attention D=80"
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Few rows, columns and keys; sums as long as in the models
    #[arg(long)]
    quick: bool,

    #[command(flatten)]
    selection: Selection,
}

/// One thing that was held to something.
#[derive(Debug, Serialize)]
struct Check {
    case: String,
    against: &'static str,
    /// Absent where the op did not run at all.
    error: Option<f64>,
    allowed: Option<f64>,
    passed: bool,
    /// Why it did not run.
    trouble: Option<String>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let backend = global.device.open(global.threads)?;
    let quick = arguments.quick || global.device.is_emulated();
    let (cases, left_out) = match quick {
        true => (shrunk(arguments.selection.named(table())?), 0),
        false => arguments.selection.cases(table(), global.device)?,
    };
    let mut out = stdout().lock();
    if !global.json {
        writeln!(out, "{}", backend.describe())?;
    }
    let mut checks = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        let call = |call: &mut Call| call.run(&*backend);
        for check in examine(case, global.seed() + at as u64, &*backend, &call) {
            if !global.json {
                writeln!(out, "{check}")?;
            }
            checks.push(check);
        }
    }
    let failed = checks.iter().filter(|check| !check.passed).count();
    if global.json {
        let report = json!({
            "device": backend.describe(),
            "quick": quick,
            "cases": cases.len(),
            "left_out": left_out,
            "failed": failed,
            "checks": checks,
        });
        writeln!(out, "{report}")?;
    } else {
        let (held, count) = (checks.len() - failed, checks.len());
        writeln!(out, "{held} of {count} checks passed, of {} cases", cases.len())?;
        if quick {
            writeln!(
                out,
                "quick: few rows, columns and keys; what sums run over is as long as in the models"
            )?;
        }
        if left_out > 0 {
            writeln!(out, "{}", arguments.selection.remark(left_out, global.device))?;
        }
    }
    out.flush()?;
    if failed > 0 {
        bail!("{failed} of {} checks failed on {}", checks.len(), backend.describe());
    }
    Ok(())
}

/// The cases in little, each once.
fn shrunk(cases: Vec<Case>) -> Vec<Case> {
    let mut small: Vec<Case> = Vec::new();
    for case in cases.into_iter().map(Case::shrunk) {
        if !small.contains(&case) {
            small.push(case);
        }
    }
    small
}

/// All checks of one case; `run` runs a call on the backend.
fn examine(
    case: &Case,
    seed: u64,
    backend: &dyn Backend,
    run: &dyn Fn(&mut Call) -> error::Result<()>,
) -> Vec<Check> {
    let name = case.to_string();
    let mut checks = Vec::new();
    let outcome = try_examine(case, seed, backend, run, &mut |against, Verdict { error, allowed }| {
        let passed = error <= allowed;
        let (error, allowed) = (Some(error), Some(allowed));
        checks.push(Check { case: name.clone(), against, error, allowed, passed, trouble: None });
    });
    if let Err(error) = outcome {
        let trouble = Some(error.to_string());
        checks.push(Check { case: name, against: "", error: None, allowed: None, passed: false, trouble });
    }
    checks
}

fn try_examine(
    case: &Case,
    seed: u64,
    backend: &dyn Backend,
    run: &dyn Fn(&mut Call) -> error::Result<()>,
    found: &mut dyn FnMut(&'static str, Verdict),
) -> error::Result<()> {
    let compute = |host: &Call| {
        let mut call = host.on(backend)?;
        run(&mut call)?;
        call.results(backend)
    };
    let host = Call::new(case, seed)?.with_gradients_at(&some_rows(case.rows()))?;
    let whole = compute(&host)?;
    let Plan { sample, rows, columns, moves, ways } = Plan::of(case, &host, &whole)?;

    // The log-prob of a draw is one number, which may be right by luck: it is held to scoring, and scoring to the oracle.
    let is_judged = |one: &Argument| !(matches!(case, Case::Sample { .. }) && one.name == "logp");
    let judged = |all: Vec<Argument>| all.into_iter().filter(is_judged).collect::<Vec<_>>();
    let exact = judged(reference(&sample, &Cpu::oracle())?);
    let plain = judged(reference(&sample, &Plain::<f32>::default())?);
    let got = judged(match moves {
        true => whole.clone(),
        false => {
            whole.iter().map(|one| one.narrowed(&rows, columns.as_deref())).collect::<error::Result<_>>()?
        }
    });
    let mut worst = Verdict { error: 0.0, allowed: 0.0 };
    let mut end = 0;
    for alike in got.chunk_by(Argument::is_like) {
        let group = end..end + alike.len();
        end = group.end;
        let verdict = Verdict::of(alike, &plain[group.clone()], &exact[group], moves)?;
        if verdict.badness() >= worst.badness() {
            worst = verdict;
        }
    }
    found("f64", worst);

    for Way { against, call, rows } in ways {
        let other = compute(&call)?;
        let mut worst = 0.0f64;
        for one in whole.iter().filter(|one| one.has_rows()) {
            let Some(other) = other.iter().find(|other| other.name == one.name) else { continue };
            worst = worst.max(difference(&one.narrowed(&rows, None)?.tensor, &other.tensor));
        }
        found(against, Verdict { error: worst, allowed: 0.0 });
    }
    Ok(())
}

fn reference(sample: &Call, backend: &dyn Backend) -> error::Result<Vec<Argument>> {
    let mut call = sample.on(backend)?;
    call.run(backend)?;
    call.results(backend)
}

/// How a case is examined.
struct Plan {
    /// What the oracle computes: some rows, and some columns, of the whole.
    sample: Call,
    rows: Vec<usize>,
    columns: Option<Vec<usize>>,
    /// The op computes nothing: the sample is the whole, and no error is allowed.
    moves: bool,
    ways: Vec<Way>,
}

/// Another way to the same bits.
struct Way {
    against: &'static str,
    call: Call,
    /// The rows of the whole it computes.
    rows: Vec<usize>,
}

impl Plan {
    fn of(case: &Case, host: &Call, whole: &[Argument]) -> error::Result<Plan> {
        let count = case.rows();
        // A row of the head is a whole vocabulary.
        let mut rows = match case {
            Case::Logprobs { .. } | Case::Sample { .. } | Case::LogprobsBackward { .. } if count > 1 => {
                vec![0, count - 1]
            }
            _ => some_rows(count),
        };
        let single: Vec<Range<usize>> = rows.iter().map(|&row| row..row + 1).collect();
        let mut ways = Vec::new();
        let mut way = |against, call, rows| ways.push(Way { against, call, rows });
        let mut columns = None;
        let mut moves = false;
        let sample = match *case {
            Case::GatherRows { .. }
            | Case::ScatterRows { .. }
            | Case::KvAppend { .. }
            | Case::Zero { .. } => {
                moves = true;
                host.clone()
            }
            Case::GatherRowsBackward { .. } | Case::SqNorm { .. } | Case::Adamw { .. } => host.clone(),
            Case::AttentionBackward { prefix, b, .. } => {
                let sequences = host.sequences()?;
                rows = (0..count).collect();
                if prefix > 0 || b == 1 {
                    host.clone()
                } else {
                    // Rows of k and v sum over all queries of a sequence, so one is computed whole.
                    rows = sequences[b - 1].clone().collect();
                    let alone = host.alone(&sequences[b - 1])?;
                    way("sequence alone", alone.clone(), rows.clone());
                    alone
                }
            }
            Case::Attention { b, causal, .. } => {
                let sequences = host.sequences()?;
                if causal {
                    way("in pages", host.over_pages(&sequences)?, (0..count).collect());
                    way("row by row in pages", host.over_pages(&single)?, rows.clone());
                } else if b > 1 {
                    let last = &sequences[b - 1];
                    way("sequence alone", host.alone(last)?, last.clone().collect());
                }
                host.over_pages(&single)?
            }
            Case::GroupAttention { .. } => {
                way("each for itself", host.over_pages(&host.sequences()?)?, (0..count).collect());
                way("row by row", host.over_pages(&single)?, rows.clone());
                host.over_pages(&single)?
            }
            Case::PagedAttention { .. } => {
                if count > 1 {
                    way("row alone", host.over_pages(&single[single.len() - 1..])?, vec![count - 1]);
                    way("row by row", host.over_pages(&single)?, rows.clone());
                }
                host.over_pages(&single)?
            }
            _ => {
                if count > 1 {
                    let row = vec![count - 1];
                    way("row alone", host.narrowed(&row, None)?, row);
                }
                if let (Case::Sample { .. }, Some(token)) =
                    (case, whole.iter().find(|one| one.name == "token"))
                {
                    way("scored", host.scoring(&token.tensor)?, (0..count).collect());
                }
                columns = match *case {
                    Case::Linear { n, .. } | Case::GatedLinear { n, .. } => Some(some_columns(n)),
                    _ => None,
                };
                host.narrowed(&rows, columns.as_deref())?
            }
        };
        Ok(Plan { sample, rows, columns, moves, ways })
    }
}

/// The first and last rows and some between.
fn some_rows(count: usize) -> Vec<usize> {
    let mut rows = vec![0, count / 3, count / 2 + 1, count.saturating_sub(2), count - 1];
    rows.retain(|&row| row < count);
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// All columns if they are few; otherwise both ends, where tiles are cut, and some between.
fn some_columns(count: usize) -> Vec<usize> {
    const ENDS: usize = 24;
    let ends = |column: usize| column < ENDS || column + ENDS >= count;
    (0..count).filter(|&column| ends(column) || column.is_multiple_of((count / 64).max(1))).collect()
}

/// An error and what it may be.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    error: f64,
    allowed: f64,
}

impl Verdict {
    /// Of outputs that are alike, as one: a single number may be right by luck, and then says nothing about what to
    /// allow. `plain` is in f32 and is rounded once to the type of what came out.
    fn of(got: &[Argument], plain: &[Argument], exact: &[Argument], moves: bool) -> error::Result<Verdict> {
        let dtype = got.first().map_or(Dtype::F32, |one| one.tensor.dtype());
        let unit = match dtype {
            Dtype::BF16 => 1.0 / 256.0,
            _ => f64::from(f32::EPSILON),
        };
        let all =
            |outputs: &[Argument]| outputs.iter().flat_map(|one| one.tensor.to_f64()).collect::<Vec<f64>>();
        let exactly = all(exact);
        let error = distance(&all(got), &exactly);
        if moves || dtype == Dtype::I32 {
            return Ok(Verdict { error, allowed: 0.0 });
        }
        let plain: Vec<Argument> =
            plain.iter().map(|one| one.converted(dtype)).collect::<error::Result<_>>()?;
        Ok(Verdict { error, allowed: 2.0 * distance(&all(&plain), &exactly) + unit })
    }

    /// How near to failing; NaN is worst.
    fn badness(&self) -> f64 {
        let ratio = if self.error == 0.0 { 0.0 } else { self.error / self.allowed };
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    }
}

/// ‖a − b‖ / ‖b‖
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

/// 0 for the same bits, above it for others.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    match a.bytes() == b.bytes() {
        true => 0.0,
        false => distance(&a.to_f64(), &b.to_f64()).max(f64::MIN_POSITIVE),
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Check { case, against, passed, .. } = self;
        let verdict = if *passed { "ok" } else { "FAILED" };
        match (self.error, self.allowed, &self.trouble) {
            (Some(0.0), Some(0.0), _) => {
                write!(f, "{case:<60} {against:<20} {:>21}  {verdict}", "same bits")
            }
            (Some(error), Some(allowed), _) => {
                write!(f, "{case:<60} {against:<20} {error:>9.2e} <= {allowed:>8.2e}  {verdict}")
            }
            (_, _, trouble) => write!(f, "{case:<60} {verdict}: {}", trouble.as_deref().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::kernels::Then;
    use pellucid::model::PAGE;

    const NORM: Case = Case::RmsNorm { t: 40, c: 96, d: 96 };

    fn small() -> Vec<Case> {
        shrunk(table())
    }

    /// One number in one row of an output, as a kernel with a wrong edge would leave it.
    fn change_last(call: &mut Call, change: impl Fn(f32) -> f32) -> error::Result<()> {
        let values = call.outputs()[0].tensor.as_mut_slice::<f32>()?;
        let last = values.len() - 1;
        values[last] = change(values[last]);
        Ok(())
    }

    fn cpu() -> Cpu {
        Cpu::new(Some(2)).unwrap()
    }

    #[test]
    fn the_plain_twin_passes_its_own_examination() {
        for case in small().into_iter().filter(|case| case.work(4).flops < 5e6) {
            let backend = Plain::<f32>::default();
            let checks = examine(&case, 0, &backend, &|call| call.run(&backend));
            assert!(!checks.is_empty() && checks.iter().all(|check| check.passed), "{checks:?}");
        }
    }

    #[test]
    fn a_broken_op_fails() {
        let cpu = cpu();
        for case in [
            NORM,
            Case::Linear { t: 3, k: 64, n: 500, r: 0, bias: true, then: Then::Store },
            Case::GatherRows { t: 3, c: 16, v: 50 },
            Case::Attention { b: 1, length: PAGE + 3, h: 4, g: 2, d: 16, causal: true },
            Case::Logprobs { t: 2, c: 32, v: 300 },
        ] {
            let sound = examine(&case, 1, &cpu, &|call| call.run(&cpu));
            assert!(sound.iter().all(|check| check.passed), "{sound:?}");
            let broken = examine(&case, 1, &cpu, &|call| {
                call.run(&cpu)?;
                change_last(call, |value| value + 1.0)
            });
            assert!(!broken[0].passed, "{broken:?}");
        }
    }

    /// A row that is right alone and slightly off in company: too little for the oracle, enough for the bits.
    #[test]
    fn a_row_that_depends_on_its_company_fails() {
        let cpu = cpu();
        let checks = examine(&NORM, 1, &cpu, &|call| {
            call.run(&cpu)?;
            match call.outputs()[0].tensor.rows() {
                1 => Ok(()),
                _ => change_last(call, |value| value * (1.0 + 2.0 * f32::EPSILON)),
            }
        });
        let verdicts: Vec<_> = checks.iter().map(|check| (check.against, check.passed)).collect();
        assert_eq!(verdicts, [("f64", true), ("row alone", false)]);
    }

    #[test]
    fn a_draw_whose_log_prob_is_not_that_of_scoring_fails() {
        let cpu = cpu();
        let checks = examine(&Case::Sample { t: 2, c: 32, v: 300, top_p: true }, 1, &cpu, &|call| {
            call.run(&cpu)?;
            match call.outputs().len() {
                2 => change_last(call, |value| value * (1.0 + 2.0 * f32::EPSILON)),
                _ => Ok(()),
            }
        });
        let scored: Vec<_> = checks.iter().filter(|check| !check.passed).map(|check| check.against).collect();
        assert_eq!(scored, ["scored"]);
    }

    #[test]
    fn an_op_that_is_refused_fails_with_its_reason() {
        let cpu = cpu();
        let refuse = |_: &mut Call| Err(error::Error::caller("rms_norm", "no such kernel"));
        let checks = examine(&NORM, 0, &cpu, &refuse);
        assert!(checks.len() == 1 && !checks[0].passed);
        assert!(checks[0].to_string().contains("FAILED: rms_norm: no such kernel"));
    }

    #[test]
    fn nan_is_never_within_the_tolerance() {
        let number = |value: f64| Tensor::from_slice(&[1], &[value as f32]).unwrap();
        assert!(difference(&number(f64::NAN), &number(1.0)) > 0.0);
        let verdict = Verdict { error: f64::NAN, allowed: 1.0 };
        assert!(verdict.error > verdict.allowed || verdict.error.is_nan());
        assert_eq!(verdict.badness(), f64::INFINITY);
    }

    #[test]
    fn both_ends_and_some_between_are_looked_at() {
        assert_eq!(some_rows(1), [0]);
        assert_eq!(some_rows(2), [0, 1]);
        assert_eq!(some_rows(512), [0, 170, 257, 510, 511]);
        assert_eq!(some_columns(3), [0, 1, 2]);
        let columns = some_columns(11008);
        assert!(columns.len() < 150 && columns.contains(&0) && columns.contains(&11007));
    }
}
