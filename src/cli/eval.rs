//! `pellucid eval`: what a reasoner makes of a captioner's captions.

use super::Global;
use super::memory::free_memory;
use super::progress::Progress;
use super::run::faults;
use super::settings::{Configured, text};
use anyhow::{Context, Result, bail};
use pellucid::rl::cast::Cast;
use pellucid::rl::evaluate::conditions;
use pellucid::rl::evaluation::{Comparison, Conditions, Evaluation, LeftOut, Mode};
use pellucid::rl::report;
use pellucid::rl::run::{REASONER, Run};
use pellucid::rl::source::Source;
use pellucid::task::verify::Policy;
use serde::Serialize;
use std::{
    fmt, fs,
    io::Write,
    path::{Path, PathBuf},
};

/// Measure a captioner by what a reasoner answers from its captions
///
/// The problems are those of data.eval. Rates come with Wilson's 95 % intervals and per subject and difficulty; every
/// item goes into eval-<step>.json, and report.html beside it is written anew. With --against, problems that both
/// evaluations hold are compared one by one.
///
/// Example: pellucid eval -c run.toml --adapter runs/one/checkpoint-60 --mode clarification
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    settings: Configured,

    /// Whether the reasoner may ask; if so, it is made to answer without, too
    #[arg(long, default_value = "single_pass", value_parser = parse_mode)]
    mode: Mode,

    /// A PEFT adapter or a checkpoint instead of captioner.adapter; that of a reasoner that learnt comes with it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// The temperature captions are drawn at; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_temperature)]
    temperature: f32,

    /// An earlier evaluation to compare with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,

    /// Where results go [default: the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn parse_mode(name: &str) -> Result<Mode, String> {
    match name {
        "single_pass" => Ok(Mode::SinglePass),
        "clarification" => Ok(Mode::Clarification),
        _ => Err("expected single_pass or clarification".into()),
    }
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value @ 0.0..=100.0) => Ok(value),
        _ => Err("expected a number from 0 to 100".into()),
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let settings = &arguments.settings;
    let mut config = settings.read(global)?;
    let before = arguments.against.as_deref().map(Evaluation::open).transpose()?;
    let Some(data) = config.data.eval.clone() else {
        bail!("{} does not say by what to measure; give data.eval=FILE", settings.config.display());
    };
    let out = arguments.out.clone().unwrap_or_else(|| config.run.out.clone());
    let resolved = text(&config)?;
    config.captioner.adapter = arguments.adapter.clone().or(config.captioner.adapter);
    let step = config.captioner.adapter.as_deref().map_or(Ok(0), steps_taken)?;
    // Nothing is learned: no other data is read, and an update of one token is all there is to keep room for.
    config.data.train = data.clone();
    config.optim.microbatch_tokens = 1;
    config.run.out = out.clone();
    let learned = config.captioner.adapter.as_deref().map(|folder| folder.join(REASONER));
    match (config.reasoner.learn.take(), learned.filter(|folder| folder.is_dir())) {
        (Some(_), Some(folder)) => config.reasoner.adapter = Some(folder),
        // Another reasoner may well be meant; but nobody is to find out by the numbers.
        (None, Some(folder)) if config.reasoner.adapter.is_none() && !global.quiet => eprintln!(
            "{0}: the reasoner that learnt is not used, for {1} has no reasoner.learn; reasoner.adapter={0} takes it",
            folder.display(),
            settings.config.display()
        ),
        _ => {}
    }
    let conditions = Conditions { step, ..conditions(&config, 0, arguments.temperature) };
    refuse_other(&out.join(conditions.file_name(arguments.mode)), &conditions)?;
    let (problems, faults) =
        Source::held_out(&data, &config.layout()?, &Policy::default(), config.data.eval_limit)?;
    faults::say("data.eval", &faults, Some(&*out).filter(|_| !settings.dry_run), global);
    let backend = global.device.open(global.threads)?;
    let mut cast = Cast::open(&config, &backend)?;
    cast.notice = global.notice();
    let memory = cast.memory(&config, free_memory(&*backend)?)?;
    let (mut run, _) = Run::begin(&cast, &config, &memory, None)?;

    if settings.dry_run {
        return Ok(write!(std::io::stdout(), "{resolved}")?);
    }
    let requests = match arguments.mode {
        Mode::SinglePass => 0,
        Mode::Clarification => config.episode.measured_requests().max(1),
    };
    let progress = Progress::new(global, "problem", 0, problems.len() as u64)?;
    let reach = |done: usize| progress.reach(done as u64, String::new());
    let mut evaluation = run.evaluate(&problems, arguments.temperature, requests, reach)?;
    evaluation.conditions.step = step;
    progress.finish();

    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let stated = out.join("config.toml");
    if !stated.exists() {
        fs::write(&stated, resolved).with_context(|| format!("cannot write {}", stated.display()))?;
    }
    faults::keep("data.eval", &faults, &out)?;
    let file = evaluation.save(&out)?;
    let report = report::write(&out)?;
    let before = before.filter(|_| evaluation.metrics.items > 0);
    let comparison = before.map(|before| Comparison::between(&before, &evaluation)).transpose()?;
    if let Some(left_out) = faults::left_out(&evaluation, &file).filter(|_| !global.quiet) {
        eprintln!("{left_out}");
    }
    global.print(&Summary { evaluation: evaluation.summary(), comparison, file, report })?;
    none_counts(&evaluation, problems.len())
}

/// Refuses to put an evaluation in the place of one of something else.
fn refuse_other(file: &Path, conditions: &Conditions) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    let differences = conditions.differences(&Evaluation::open(file)?.conditions);
    if !differences.is_empty() {
        let (file, differences) = (file.display(), differences.join(", "));
        bail!("{file} is an evaluation of something else: {differences}; give another run.out or --out");
    }
    Ok(())
}

/// Refuses an evaluation by nothing, with the reason.
fn none_counts(evaluation: &Evaluation, problems: usize) -> Result<()> {
    if evaluation.metrics.items > 0 {
        return Ok(());
    }
    match evaluation.left_out.first() {
        Some(LeftOut { id, what }) => bail!("none of {problems} problems could be measured by; {id}: {what}"),
        None => bail!("none of {problems} problems could be measured by: their golds cannot be read"),
    }
}

/// The steps a checkpoint's captioner had taken; an adapter that is no checkpoint does not say, and counts as none.
fn steps_taken(adapter: &Path) -> Result<u64> {
    let path = adapter.join("trainer_state.json");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(0) };
    let state: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    state["global_step"].as_u64().with_context(|| format!("{} does not say the step", path.display()))
}

/// What came out.
#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    evaluation: Evaluation,
    comparison: Option<Comparison>,
    file: PathBuf,
    report: PathBuf,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.evaluation.fmt(f)?;
        if let Some(comparison) = &self.comparison {
            comparison.fmt(f)?;
        }
        writeln!(f, "\n{}\n{}", self.file.display(), self.report.display())
    }
}
