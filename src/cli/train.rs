//! `pellucid train`: a captioner that learns to say what a reasoner needs.

use super::Global;
use super::memory::{free_memory, run_lines};
use super::progress::Progress;
use super::run::{Folder, faults};
use super::settings::{Resumable, text};
use anyhow::Result;
use pellucid::rl::alarms::of_training;
use pellucid::rl::cast::Cast;
use pellucid::rl::config::{Config, Run as RunConfig};
use pellucid::rl::evaluate::conditions;
use pellucid::rl::evaluation::{Metrics, Mode};
use pellucid::rl::metrics::{metrics, samples};
use pellucid::rl::report::write;
use pellucid::rl::run::{Run, Step};
use pellucid::rl::source::Source;
use pellucid::rl::tensorboard::EventWriter;
use pellucid::task::data::{Fault, Problem};
use pellucid::task::verify::Policy;
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, io::Write, sync::Arc};

/// Train a captioner by reinforcement: AC-RL, binary rewards and others
///
/// The run's folder gets config.toml, metrics.jsonl, samples.jsonl and checkpoints, each a PEFT adapter with all that
/// is needed to go on.
///
/// Example: pellucid train -c run.toml episode.alpha=0.5 --resume latest
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    settings: Resumable,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let Resumable { configured, resume } = &arguments.settings;
    let config = configured.read(global)?;
    let mut folder = Folder::find(&config, resume.as_deref(), global)?;
    let (held_out, unmeasured) = held_out(&config)?;
    let backend = global.device.open(global.threads)?;
    let mut cast = Cast::open(&config, &backend)?;
    cast.notice = global.notice();
    let memory = cast.memory(&config, free_memory(&*backend)?)?;
    if !global.quiet {
        eprintln!("{}", run_lines(&memory).join("\n"));
    }
    let (mut run, unread) = Run::begin(&cast, &config, &memory, folder.checkpoint.as_ref())?;
    let out = Some(&*config.run.out).filter(|_| !configured.dry_run);
    faults::say("data.train", &unread, out, global);
    faults::say("data.eval", &unmeasured, out, global);
    if configured.dry_run {
        return Ok(write!(std::io::stdout(), "{}", text(&config)?)?);
    }
    folder.begin(&config)?;
    faults::keep("data.train", &unread, &config.run.out)?;
    if !held_out.is_empty() {
        faults::keep("data.eval", &unmeasured, &config.run.out)?;
    }
    let last = steps(&mut run, &held_out, &folder, global)?;
    let report = write(&config.run.out)?;
    let out = config.run.out.join(format!("checkpoint-{}", run.state().step));
    if global.json {
        let summary = json!({"step": run.state().step, "checkpoint": out, "last": last});
        writeln!(std::io::stdout(), "{summary}")?;
    } else if !global.quiet {
        let (step, out, report) = (run.state().step, out.display(), report.display());
        eprintln!("{step} steps; the adapter is in {out}, and what became of it in {report}");
    }
    Ok(())
}

/// Takes the steps that are left; returns the last one's metrics.
pub(super) fn steps(
    run: &mut Run<'_>,
    held_out: &[Arc<Problem>],
    folder: &Folder,
    global: &Global,
) -> Result<Option<Value>> {
    let config = run.config().clone();
    let progress = Progress::new(global, "step", run.state().step, config.run.steps)?;
    let mut events = EventWriter::create(&config.run.out, run.state().step)?;
    let mut lines = folder.metrics()?;
    let mut raised = BTreeSet::new();
    // At the beginning, and where the run was killed before its last evaluation was written.
    if run.state().step == 0 || (is_due(&config, run.state().step) && !is_measured(run)) {
        measure(run, held_out, &progress)?;
    }
    while run.state().step < config.run.steps {
        let step = run.step()?;
        let line = metrics(&step);
        progress.reach(step.step, summary(&step, &line));
        events.scalars(
            step.step,
            line.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))),
        )?;
        folder.log(&Value::Object(line.clone()))?;
        folder.log_samples(&samples(&step))?;
        lines.push(line);
        // Alarms look at the first steps and the last; a long run keeps no more of its lines.
        if lines.len() > KEPT {
            lines.remove(KEPT / 2);
        }
        if let Some(bad) = step.stats.iter().chain(&step.reasoner).find_map(|stats| stats.bad.as_deref()) {
            progress.say(format_args!("step {}: {bad} is not finite; an update is not taken", step.step));
        }
        for (problem, error) in &step.left_out {
            progress.say(format_args!("step {}: problem {}: {error}", step.step, problem.id));
        }
        for alarm in of_training(&lines) {
            if raised.insert(alarm.name) {
                progress.say(format_args!("step {}: {alarm}", step.step));
            }
        }
        let last = step.step == config.run.steps;
        if step.step.is_multiple_of(config.run.save_every) || last {
            folder.settle()?;
            run.save()?;
        }
        if is_due(&config, step.step) {
            measure(run, held_out, &progress)?;
        }
    }
    progress.finish();
    Ok(lines.pop().map(Value::Object))
}

/// Lines of metrics that are kept for alarms.
const KEPT: usize = 128;

/// What a run is measured by, if it is, and the rows that are left out of it.
pub(super) fn held_out(config: &Config) -> Result<(Vec<Arc<Problem>>, Vec<Fault>)> {
    match (&config.data.eval, config.run.eval_every) {
        (Some(path), 1..) => {
            Ok(Source::held_out(path, &config.layout()?, &Policy::default(), config.data.eval_limit)?)
        }
        _ => Ok(Default::default()),
    }
}

/// Whether an evaluation belongs to a step.
fn is_due(config: &Config, step: u64) -> bool {
    let RunConfig { eval_every, steps, .. } = config.run;
    eval_every > 0 && (step.is_multiple_of(eval_every) || step == steps)
}

/// Whether the captioner as it is was measured.
fn is_measured(run: &Run<'_>) -> bool {
    let config = run.config();
    let mode = if config.episode.measured_requests() > 0 { Mode::Clarification } else { Mode::SinglePass };
    config.run.out.join(conditions(config, run.state().step, 0.0).file_name(mode)).exists()
}

/// Measures the captioner as it is, by greedy captions.
fn measure(run: &mut Run<'_>, problems: &[Arc<Problem>], progress: &Progress) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let (step, requests) = (run.state().step, run.config().episode.measured_requests());
    let evaluation = run.evaluate(problems, 0.0, requests, |done| {
        progress.reach(step, format!("measured by {done} of {} problems", problems.len()));
    })?;
    progress.say(format_args!("step {step}, {}", found(&evaluation.metrics)));
    let file = evaluation.save(&run.config().run.out)?;
    if let Some(left_out) = faults::left_out(&evaluation, &file) {
        progress.say(left_out);
    }
    Ok(())
}

/// An evaluation in a few words.
fn found(metrics: &Metrics) -> String {
    let rates = [
        ("right at once", metrics.first_pass_right.or(metrics.accuracy_single)),
        ("asked", metrics.clarification_rate),
        ("right in the end", metrics.accuracy_clarified),
    ];
    let rates = rates.into_iter().filter_map(|(what, rate)| Some((what, 100.0 * rate?.rate)));
    let rates: Vec<String> = rates.map(|(what, percent)| format!("{percent:.1} % {what}")).collect();
    format!("measured by {} problems: {}", metrics.items, rates.join(", "))
}

/// A step in a few words.
fn summary(step: &Step, line: &Map<String, Value>) -> String {
    let number = |name: &str| line.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let whole = (step.spent.total + step.update).as_secs_f64();
    format!(
        "reward {:.3}, right at once {:.0} %, asks {:.0} %  (rollout {:.0} %, update {:.0} % of {:.2} s)",
        number("reward"),
        100.0 * number("single_pass"),
        100.0 * number("clarification_rate"),
        100.0 * step.spent.total.as_secs_f64() / whole,
        100.0 * step.update.as_secs_f64() / whole,
        whole
    )
}
