//! `pellucid demo`: the built-in world end to end, on this machine, with nothing to download.

use super::memory::{free_memory, run_lines};
use super::picture::{lines, wrapped};
use super::progress::Progress;
use super::run::Folder;
use super::{Global, train};
use anyhow::{Result, bail};
use pellucid::rl::cast::Cast;
use pellucid::rl::config::Config;
use pellucid::rl::evaluate::Roles;
use pellucid::rl::evaluation::{Evaluation, Item, Rate};
use pellucid::rl::run::Run;
use pellucid::rl::source::{Source, WORLD};
use pellucid::task::data::Problem;
use pellucid::task::verify::Policy;
use pellucid::task::world::{Example, HELD_OUT, Picture, SIDE, Scene, facts};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

const RECIPE: &str = include_str!("../../assets/demo.toml");
const PRCO: &str = include_str!("../../assets/demo-prco.toml");

/// Watch a captioner learn what a reasoner needs to know, in a world of labelled shapes, in two minutes
///
/// A small vision-language model describes pictures to a reasoner that cannot see them. At first the reasoner has to
/// ask for what is missing; by reinforcement the captioner learns to say it at once. The run's folder gets report.html.
///
/// Example: pellucid demo --steps 60 --out runs/demo
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// PRCO instead of AC-RL: one policy captions and answers
    #[arg(long)]
    prco: bool,

    /// Steps to take [default: the recipe's]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// The run's folder [default: a new one under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Problems to measure by
    #[arg(long, value_name = "N", default_value_t = 1000)]
    held_out: usize,

    /// Changes to the recipe: key=value, with dotted keys
    #[arg(value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

/// The captioner measured: captions drawn, and captions without chance.
struct Measured {
    drawn: Evaluation,
    greedy: Evaluation,
}

impl Measured {
    fn json(&self, problems: &[Arc<Problem>]) -> Value {
        json!({
            "drawn": self.drawn.summary(),
            "greedy": self.greedy.summary(),
            "false_facts": false_facts(problems, &self.drawn),
        })
    }
}

/// The share of false ones among the facts that captions state.
fn false_facts(problems: &[Arc<Problem>], evaluation: &Evaluation) -> f64 {
    let (mut stated, mut wrong) = (0usize, 0usize);
    for (problem, item, _) in paired(problems, evaluation, evaluation) {
        let Some(scene) = scene(problem) else { continue };
        for fact in facts(&item.caption) {
            stated += 1;
            wrong += usize::from(scene.fact(fact.name, fact.value.attribute()) != Some(fact));
        }
    }
    wrong as f64 / stated.max(1) as f64
}

/// Problems with what came of them before and after; those are left out of which either is not known.
fn paired<'a>(
    problems: &'a [Arc<Problem>],
    before: &'a Evaluation,
    after: &'a Evaluation,
) -> Vec<(&'a Problem, &'a Item, &'a Item)> {
    let by_id = |evaluation: &'a Evaluation| -> HashMap<&'a str, &'a Item> {
        evaluation.items.iter().map(|item| (item.id.as_str(), item)).collect()
    };
    let (before, after) = (by_id(before), by_id(after));
    let pair = |problem: &'a Arc<Problem>| {
        let id = problem.id.as_str();
        Some((&**problem, *before.get(id)?, *after.get(id)?))
    };
    problems.iter().filter_map(pair).collect()
}

/// What there is to see in a problem of the world.
fn scene(problem: &Problem) -> Option<Scene> {
    (problem.place.file == Path::new(WORLD)).then(|| Example::new(HELD_OUT, problem.place.row).scene)
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let start = Instant::now();
    if arguments.held_out == 0 {
        bail!("--held-out is 0; it has to be at least 1");
    }
    let out = arguments.out.clone().unwrap_or_else(fresh_folder);
    let mut changes = vec![format!("seed={}", global.seed()), format!("run.out={}", toml_text(&out))];
    changes.extend(arguments.steps.map(|steps| format!("run.steps={steps}")));
    changes.extend(arguments.changes.iter().cloned());
    let mut config = Config::parse(if arguments.prco { PRCO } else { RECIPE }, &changes)?;
    config.run.save_every = config.run.steps;
    let mut folder = Folder::find(&config, None, global)?;
    let backend = global.device.open(global.threads)?;
    let mut cast = Cast::open(&config, &backend)?;
    cast.notice = global.notice();
    let memory = cast.memory(&config, free_memory(&*backend)?)?;
    if !global.quiet {
        eprintln!("{}", run_lines(&memory).join("\n"));
    }
    let (mut run, _) = Run::begin(&cast, &config, &memory, None)?;
    folder.begin(&config)?;
    let held_out = config.data.eval.clone().unwrap_or_else(|| config.data.train.clone());
    let (problems, _) =
        Source::held_out(&held_out, &config.layout()?, &Policy::default(), Some(arguments.held_out))?;

    let before = measure(&mut run, &problems, "before", global)?;
    let begun = Instant::now();
    let (measured, _) = train::held_out(&config)?;
    let last = train::steps(&mut run, &measured, &folder, global)?;
    let training = begun.elapsed();
    let after = measure(&mut run, &problems, "after", global)?;
    let roles = if arguments.prco { roles(&mut run, &problems)? } else { Vec::new() };
    for evaluation in [&before.drawn, &before.greedy, &after.drawn, &after.greedy] {
        evaluation.save(&config.run.out)?;
    }
    let report = pellucid::rl::report::write(&config.run.out)?;

    if global.json {
        let summary = json!({
            "steps": run.state().step,
            "seconds": start.elapsed().as_secs_f64(),
            "training_seconds": training.as_secs_f64(),
            "before": before.json(&problems),
            "after": after.json(&problems),
            "roles": roles.iter().map(|(name, evaluation)| (*name, evaluation.summary())).collect::<BTreeMap<_, _>>(),
            "last": last,
            "report": report,
        });
        writeln!(std::io::stdout(), "{summary}")?;
        return Ok(());
    }
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut text = String::new();
    for (problem, before, after) in telling(paired(&problems, &before.greedy, &after.greedy)) {
        text.push_str(&example(problem, before, after, colours));
    }
    text.push_str(&table(&before, &after, problems.len()));
    for (name, evaluation) in &roles {
        let rate = evaluation.metrics.accuracy_single.map_or(0.0, |rate| rate.rate);
        let _ = writeln!(text, "  {name:<60}{:>5.1}", 100.0 * rate);
    }
    let _ = write!(
        text,
        "\n{} steps of {} captions in {:.0} s, all in {:.0} s. A small world makes a large effect: the captioner sees\n\
         everything from the start and has only to learn what to mention. Curves, examples and intervals:\n{}\n",
        run.state().step,
        config.optim.prompts_per_step * config.optim.group_size,
        training.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        report.display()
    );
    write!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// What each role has learned by itself: drawn captions and answers, of the policy as it is or as it was.
fn roles(run: &mut Run<'_>, problems: &[Arc<Problem>]) -> Result<Vec<(&'static str, Evaluation)>> {
    let ways = [
        ("old Observer, old Solver: right", false, false),
        ("old Observer, new Solver: right", false, true),
        ("new Observer, old Solver: right", true, false),
        ("new Observer, new Solver: right", true, true),
    ];
    let evaluate = |(name, observer, solver)| {
        Ok((name, run.evaluate_roles(problems, 1.0, 0, Roles { observer, solver }, |_| {})?))
    };
    ways.into_iter().map(evaluate).collect()
}

fn measure(run: &mut Run<'_>, problems: &[Arc<Problem>], when: &str, global: &Global) -> Result<Measured> {
    let progress = Progress::new(global, "held-out problem", 0, 2 * problems.len() as u64)?;
    let reach = |done: usize| progress.reach(done as u64, when.to_owned());
    let requests = run.config().episode.measured_requests();
    let mut drawn = run.evaluate(problems, 1.0, requests, reach)?;
    let mut greedy = run.evaluate(problems, 0.0, requests, |done| reach(problems.len() + done))?;
    progress.finish();
    // By --held-out, not by data.eval_limit.
    for of in [&mut drawn, &mut greedy].into_iter().flat_map(|evaluation| &mut evaluation.conditions.of) {
        of.limit = Some(problems.len());
    }
    Ok(Measured { drawn, greedy })
}

/// Three problems that tell what was learned: of as many kinds as there are, asked about before and answered after.
fn telling<'a>(pairs: Vec<(&'a Problem, &'a Item, &'a Item)>) -> Vec<(&'a Problem, &'a Item, &'a Item)> {
    // Where nobody could ask, the answer from the caption alone counts.
    let right = |item: &Item| item.first_pass_right().or(item.single_right()) == Some(true);
    let mut chosen: Vec<(&Problem, &Item, &Item)> = Vec::new();
    for (problem, before, after) in pairs {
        let new = chosen.iter().all(|(other, ..)| other.subject != problem.subject);
        if chosen.len() < 3 && new && !right(before) && right(after) {
            chosen.push((problem, before, after));
        }
    }
    chosen
}

/// A picture with what was said of it.
fn example(problem: &Problem, before: &Item, after: &Item, colours: bool) -> String {
    const WIDTH: usize = 52;
    let mut words = wrapped(&format!("{} ({})", problem.question, problem.answer), WIDTH);
    for (when, item) in [("before", before), ("after", after)] {
        words.push(String::new());
        words.extend(wrapped(&format!("{when}: {}", item.caption), WIDTH));
        let answer = item.clarified.as_ref().map(|clarified| &clarified.answer).or(item.single.as_ref());
        for turn in item.clarified.iter().flat_map(|clarified| &clarified.turns) {
            words.extend(wrapped(&format!("  asked: {}", turn.request), WIDTH));
            words.extend(wrapped(&format!("  told: {}", turn.reply), WIDTH));
        }
        if let Some(answer) = answer {
            let verdict = if answer.right() { "right" } else { "wrong" };
            let said = answer.grade.extracted.as_deref().unwrap_or("nothing");
            words.push(format!("  answer: {said}, {verdict}"));
        }
    }
    let Some(scene) = scene(problem).filter(|_| colours) else { return words.join("\n") + "\n\n" };
    let picture = Picture::draw(&scene);
    let drawn = lines(SIDE, |x, y| picture.at(x, y));
    let blank = " ".repeat(SIDE / 2);
    let mut text = String::new();
    for line in 0..drawn.len().max(words.len()) {
        let left = drawn.get(line).unwrap_or(&blank);
        let right = words.get(line).map_or("", String::as_str);
        let _ = writeln!(text, "{left}  {right}"); // a String takes everything
    }
    text + "\n"
}

fn table(before: &Measured, after: &Measured, count: usize) -> String {
    let mut text =
        format!("{:<44}{:>18}{:>20}\n", format!("{count} held-out problems, %"), "before", "after");
    let percent = |rate: Rate| {
        let [rate, low, high] = [rate.rate, rate.low, rate.high].map(|share| 100.0 * share);
        format!("{rate:5.1} ({low:4.1}–{high:5.1})")
    };
    for (how, before, after) in
        [("captions drawn", &before.drawn, &after.drawn), ("greedy captions", &before.greedy, &after.greedy)]
    {
        let _ = writeln!(text, "{how}"); // a String takes everything
        let (b, a) = (&before.metrics, &after.metrics);
        for (name, before, after) in [
            ("right without asking", b.first_pass_right, a.first_pass_right),
            ("right where asking is not offered", b.accuracy_single, a.accuracy_single),
            ("asks", b.clarification_rate, a.clarification_rate),
            ("right with one request allowed", b.accuracy_clarified, a.accuracy_clarified),
        ] {
            if let (Some(before), Some(after)) = (before, after) {
                let _ = writeln!(text, "  {name:<40}{:>20}{:>20}", percent(before), percent(after));
            }
        }
    }
    text
}

/// A folder of this second.
fn fresh_folder() -> PathBuf {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    PathBuf::from(format!("runs/demo-{}", seconds.map_or(0, |time| time.as_secs())))
}

/// A path as TOML has texts.
fn toml_text(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pellucid::rl::evaluation::Conditions;
    use pellucid::task::world::full_caption;

    /// A server that reasons may lose some problems before and others after.
    #[test]
    fn what_came_of_a_problem_is_found_by_its_name() {
        let examples: Vec<Example> = (0..4).map(|index| Example::new(HELD_OUT, index)).collect();
        let problems: Vec<Arc<Problem>> =
            examples.iter().map(|example| Arc::new(example.problem().expect("is one"))).collect();
        let evaluation = |kept: &[usize]| {
            let item = |at: &usize| Item {
                id: problems[*at].id.clone(),
                subject: None,
                difficulty: None,
                question: String::new(),
                gold: String::new(),
                caption: full_caption(&examples[*at].scene, &mut examples[*at].chance()),
                caption_tokens: 1,
                caption_truncated: false,
                single: None,
                clarified: None,
            };
            let conditions = Conditions { step: 0, temperature: 0.0, seed: 0, of: None };
            Evaluation::of(conditions, kept.iter().map(item).collect())
        };
        let (before, after) = (evaluation(&[1, 2, 3]), evaluation(&[0, 2, 3]));
        assert_eq!(false_facts(&problems, &before), 0.0);
        let pairs = paired(&problems, &before, &after);
        let ids: Vec<[&str; 3]> = pairs.iter().map(|(p, b, a)| [&*p.id, &*b.id, &*a.id]).collect();
        assert_eq!(ids, [2, 3].map(|at| [&*problems[at].id; 3]));
    }
}
