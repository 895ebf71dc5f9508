//! `report.html`: one file that says what a run was, what came of it and how, to be read anywhere and for ever.
//!
//! It holds its own style, pictures and curves, asks nobody for anything and runs no script; its own policy forbids both,
//! so that nothing a model wrote can do more than be read. Reading the folder is in `folder`, choosing what to show
//! in `tables` and `examples`, drawing in `chart`; [`write()`] puts them in order.

mod chart;
mod examples;
mod folder;
mod html;
mod tables;

use super::alarms::{self, Alarm};
use super::config::Config;
use super::evaluation::{Comparison, Evaluation, Metrics, Rate};
use super::source::Source;
use crate::error::{Error, Result};
use crate::format::save::write_file;
use crate::task::verify::Policy;
use chart::Chart;
use examples::Example;
use folder::{Folder, Picture};
use html::{Html, percent};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use tables::Pair;

const STYLE: &str = include_str!("style.css");

/// Nothing is fetched, nothing runs; pictures and the style are in the file.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Writes `report.html` into a run's folder, from what is there.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let run = Folder::read(folder)?;
    let pictures = pictures(&run);
    let path = folder.join("report.html");
    let fresh = folder.join("report.html.new");
    write_file(&fresh, page(&run, &pictures).as_bytes())?;
    fs::rename(&fresh, &path).map_err(|cause| Error::file_because(&path, "cannot be replaced", cause))?;
    Ok(path)
}

/// The pictures of the examples, by problem: from the data the run was evaluated on, if it can still be read.
fn pictures(run: &Folder) -> HashMap<String, Vec<Picture>> {
    let wanted: BTreeSet<&str> = shown(run).iter().map(|example| example.after.id.as_str()).collect();
    if wanted.is_empty() {
        return HashMap::new();
    }
    let problems = Config::parse(&run.config, &[]).and_then(|config| {
        let data = config.data.eval.clone().unwrap_or_else(|| config.data.train.clone());
        let count = run.evaluations.iter().map(|evaluation| evaluation.items.len()).max();
        Ok(Source::held_out(&data, &config.layout()?, &Policy::default(), count)?.0)
    });
    let problems = problems.unwrap_or_default().into_iter();
    let found = problems.filter(|problem| wanted.contains(problem.id.as_str()));
    found
        .map(|problem| (problem.id.clone(), problem.images.iter().filter_map(Picture::read).collect()))
        .collect()
}

/// The examples: of the first kind of evaluation that was made twice.
fn shown(run: &Folder) -> Vec<Example<'_>> {
    match headline(&Pair::all(&run.evaluations)) {
        Some(Pair { before: Some(before), after }) => examples::chosen(before, after),
        _ => Vec::new(),
    }
}

/// The evaluations a run is known by.
fn headline<'a>(pairs: &[Pair<'a>]) -> Option<Pair<'a>> {
    pairs.iter().find(|pair| pair.before.is_some()).or(pairs.first()).copied()
}

/// Every evaluation of that kind.
fn like_headline<'a>(run: &'a Folder, pairs: &'a [Pair<'_>]) -> impl Iterator<Item = &'a Evaluation> {
    let known = headline(pairs);
    run.evaluations.iter().filter(move |evaluation| known.is_some_and(|pair| pair.like(evaluation)))
}

/// The whole page.
fn page(run: &Folder, pictures: &HashMap<String, Vec<Picture>>) -> String {
    let pairs = Pair::all(&run.evaluations);
    let title = format!("Pellucid run {}", run.name);
    let mut html = Html::default();
    html.element("html", &[("lang", &"en")], |html| {
        html.element("head", &[], |html| {
            html.empty("meta", &[("charset", &"utf-8")]);
            html.empty("meta", &[("http-equiv", &"Content-Security-Policy"), ("content", &POLICY)]);
            html.empty("meta", &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")]);
            html.empty("meta", &[("name", &"color-scheme"), ("content", &"light dark")]);
            html.leaf("title", &[], &title);
            html.style(STYLE);
        });
        html.element("body", &[], |html| {
            html.element("header", &[], |html| header(html, run, &pairs));
            html.element("main", &[], |html| {
                signs(html, run);
                evaluations(html, &pairs);
                example_pairs(html, run, &pairs, pictures);
                curves(html, run);
                time(html, run);
                configuration(html, run);
            });
            html.element("footer", &[], |html| {
                html.text(format!("Written by pellucid {}. ", env!("CARGO_PKG_VERSION")));
                html.text("This file is complete by itself.");
            });
        });
    });
    html.document()
}

fn section(html: &mut Html, title: &str, inside: impl FnOnce(&mut Html)) {
    html.element("section", &[("id", &title.to_lowercase())], |html| {
        html.leaf("h2", &[], title);
        inside(html);
    });
}

/// What was run, and what came of it in a sentence and four numbers.
fn header(html: &mut Html, run: &Folder, pairs: &[Pair<'_>]) {
    html.leaf("p", &[("class", &"kicker")], "Pellucid run");
    html.leaf("h1", &[], &run.name);
    let Some(pair) = headline(pairs) else {
        html.leaf("p", &[("class", &"abstract")], format!("{} steps, not evaluated.", run.steps.len()));
        return;
    };
    let after = &pair.after.metrics;
    let before = pair.before.map(|before| &before.metrics);
    let single = |m: &Metrics| m.accuracy_single.or(m.first_pass_right);
    let mut told = Vec::new();
    if let Some(rate) = single(after) {
        let was = before.and_then(single).map(|was| {
            let way = if was.rate > rate.rate { "down" } else { "up" };
            format!(", {way} from {}", percent(was.rate))
        });
        told.push(format!(
            "After {} steps, the reasoner answers {} of {} problems rightly from the caption alone{}.",
            pair.after.conditions.step,
            percent(rate.rate),
            rate.of,
            was.unwrap_or_default()
        ));
    }
    if let (Some(was), Some(is)) = (before.and_then(|m| m.clarification_rate), after.clarification_rate) {
        told.push(format!(
            "Where it may ask, it does so on {}; before, on {}.",
            percent(is.rate),
            percent(was.rate)
        ));
    }
    told.push(format!("With {}; brackets are 95 % intervals.", pair.captions()));
    html.leaf("p", &[("class", &"abstract")], told.join(" "));
    html.element("dl", &[("class", &"key")], |html| {
        type Known = fn(&Metrics) -> Option<Rate>;
        let numbers: [(&str, Known); 4] = [
            ("single pass", |m| m.accuracy_single),
            ("without asking", |m| m.first_pass_right),
            ("asks", |m| m.clarification_rate),
            ("right, asking allowed", |m| m.accuracy_clarified),
        ];
        for (name, of) in numbers {
            let Some(rate) = of(after) else { continue };
            html.element("div", &[], |html| {
                html.leaf("dt", &[], name);
                html.element("dd", &[], |html| {
                    html.leaf("b", &[], percent(rate.rate));
                    let range = format!("[{:.1}, {:.1}]", 100.0 * rate.low, 100.0 * rate.high);
                    let was = before.and_then(of).map(|was| format!(", from {}", percent(was.rate)));
                    html.leaf("small", &[], range + &was.unwrap_or_default());
                });
            });
        }
    });
}

/// Every alarm with the steps it was raised at.
fn signs(html: &mut Html, run: &Folder) {
    let mut raised: BTreeMap<&str, (Vec<f64>, Alarm)> = BTreeMap::new();
    for count in 1..=run.steps.len() {
        let step = run.steps[count - 1].get("step").and_then(|step| step.as_f64()).unwrap_or(count as f64);
        for alarm in alarms::of_training(&run.steps[..count]) {
            let entry = raised.entry(alarm.name).or_insert_with(|| (Vec::new(), alarm.clone()));
            entry.0.push(step);
            entry.1 = alarm;
        }
    }
    let pairs = Pair::all(&run.evaluations);
    let same: Vec<&Evaluation> = like_headline(run, &pairs).collect();
    let evaluated = alarms::of_evaluations(&same);
    section(html, "Alarms", |html| {
        if raised.is_empty() && evaluated.is_empty() && run.unreadable == 0 {
            html.leaf("p", &[], "None was raised.");
            return;
        }
        html.element("ul", &[("class", &"alarms")], |html| {
            for (steps, alarm) in raised.values() {
                let when = match &steps[..] {
                    [only] => format!("at step {only}"),
                    [first, .., last] => {
                        format!("at {} steps from {first} to {last}, the last time", steps.len())
                    }
                    [] => String::new(),
                };
                sign(html, alarm, &when);
            }
            evaluated.iter().for_each(|alarm| sign(html, alarm, "in the last evaluation"));
            if run.unreadable > 0 {
                html.leaf("li", &[], format!("{} lines of metrics.jsonl cannot be read.", run.unreadable));
            }
        });
    });
}

fn sign(html: &mut Html, alarm: &Alarm, when: &str) {
    html.element("li", &[], |html| {
        html.leaf("b", &[], alarm.name);
        html.text(format!(" {when}: {}; ", alarm.what));
        html.leaf("span", &[("class", &"quiet")], format!("{}.", alarm.remedy));
    });
}

fn evaluations(html: &mut Html, pairs: &[Pair<'_>]) {
    if pairs.is_empty() {
        return;
    }
    section(html, "Evaluation", |html| {
        for pair in pairs {
            tables::metrics(html, pair);
        }
        if let Some(pair) = headline(pairs) {
            tables::breakdowns(html, &pair);
        }
        html.element("details", &[], |html| {
            html.leaf("summary", &[], "What the rows mean");
            html.element("dl", &[("class", &"terms")], |html| {
                for (name, meaning) in TERMS {
                    html.leaf("dt", &[], name);
                    html.leaf("dd", &[], meaning);
                }
            });
        });
    });
}

const TERMS: [(&str, &str); 7] = [
    (
        "single-pass accuracy",
        "right when the reasoner answers from the caption alone and asking is not offered",
    ),
    ("right, wrong without asking", "the reasoner may ask, and answers at once"),
    ("accuracy with asking", "right in the end, the reply to a request included"),
    ("clarification rate", "problems on which the reasoner asks"),
    ("accuracy denied, granted", "over the problems on which it asks: right without the reply, and with it"),
    (
        "rescued, harmed by the reply",
        "of those that asked: wrong without the reply and right with it; and the reverse",
    ),
    (
        "gap, criticality",
        "accuracy with asking less single-pass accuracy; accuracy granted less accuracy denied",
    ),
];

fn example_pairs(
    html: &mut Html,
    run: &Folder,
    pairs: &[Pair<'_>],
    pictures: &HashMap<String, Vec<Picture>>,
) {
    let examples = shown(run);
    let Some(Pair { before: Some(before), after }) = headline(pairs).filter(|_| !examples.is_empty()) else {
        return;
    };
    section(html, "Examples", |html| {
        let what = "Problems whose outcome changed: by subject in turn the first that went better, then those that went \
                    worse. No other choice was made.";
        html.leaf("p", &[], what);
        let steps = [before.conditions.step, after.conditions.step];
        for example in &examples {
            let pictures = pictures.get(&example.after.id).map_or(&[][..], Vec::as_slice);
            examples::show(html, example, steps, pictures);
        }
        if let Ok(comparison) = Comparison::between(before, after) {
            html.leaf("p", &[("class", &"note")], format!("Out of {} problems.", comparison.items));
        }
    });
}

/// What is drawn first: key, title, note, whether it is a share.
const CURVES: [(&str, &str, &str, bool); 14] = [
    ("reward", "Reward", "mean of a step’s captions", false),
    ("single_pass", "Right without asking", "", true),
    ("clarification_rate", "Clarification rate", "", true),
    ("accuracy", "Right in the end", "replies to requests included", true),
    ("frac_reward_zero_std", "Groups of equal rewards", "nothing is learnt from these", true),
    ("reward_std", "Spread of rewards", "standard deviation within groups", false),
    ("completions/mean_length", "Tokens per caption", "mean", false),
    ("completions/distinct", "Distinct captions", "within their groups", true),
    ("kl", "KL to the reference", "nats per token", false),
    ("entropy", "Entropy", "nats per token", false),
    ("loss", "Loss", "", false),
    ("grad_norm", "Gradient norm", "before clipping", false),
    ("learning_rate", "Learning rate", "", false),
    (SAMPLER, "Sampler against trainer", "largest difference of a log-probability", false),
];

const SAMPLER: &str = "sampling/sampling_logp_difference/max";

fn curves(html: &mut Html, run: &Folder) {
    if run.steps.is_empty() {
        return;
    }
    let pairs = Pair::all(&run.evaluations);
    let marks = |key: &str| -> Vec<(f64, Rate)> {
        let rate = |e: &Evaluation| {
            let rate = match key {
                "single_pass" => e.metrics.first_pass_right,
                "clarification_rate" => e.metrics.clarification_rate,
                "accuracy" => e.metrics.accuracy_clarified,
                _ => None,
            };
            Some((e.conditions.step as f64, rate?))
        };
        like_headline(run, &pairs).filter_map(rate).collect()
    };
    let others: BTreeSet<&str> = run.steps.iter().flat_map(|line| line.keys().map(String::as_str)).collect();
    let known =
        |key: &str| key == "step" || key.starts_with("time/") || CURVES.iter().any(|curve| curve.0 == key);
    // What does not vary is a sentence, not a curve.
    let chart = |html: &mut Html, key: &str, title: &str, note: &str, share: bool| {
        let (points, marks) = (run.series(key), marks(key));
        let first = points.first()?;
        if marks.is_empty() && points.iter().all(|point| point.1 == first.1) {
            return Some(format!("{} {}", title.to_lowercase(), html::number(first.1)));
        }
        chart::draw(html, &Chart { title, note, share, points, marks });
        None
    };
    section(html, "Training", |html| {
        let mut constant = Vec::new();
        let text = "Faint: every step. Bold: the average of neighbouring steps. Dots with bars: evaluations on held-out \
                    problems with 95 % intervals.";
        html.leaf("p", &[], text);
        html.element("div", &[("class", &"charts")], |html| {
            for (key, title, note, share) in CURVES {
                constant.extend(chart(html, key, title, note, share));
            }
        });
        let others: Vec<&str> = others.into_iter().filter(|key| !known(key)).collect();
        if !others.is_empty() {
            html.element("details", &[], |html| {
                html.leaf("summary", &[], "Everything else that was logged");
                html.element("div", &[("class", &"charts")], |html| {
                    constant.extend(others.iter().filter_map(|key| chart(html, key, key, "", false)));
                });
            });
        }
        if !constant.is_empty() {
            html.leaf(
                "p",
                &[("class", &"note")],
                format!("The same at every step: {}.", constant.join("; ")),
            );
        }
    });
}

/// Where time went.
fn time(html: &mut Html, run: &Folder) {
    const PHASES: [(&str, &str); 4] = [
        ("captions", "writing captions"),
        ("clarifications", "replying to requests"),
        ("reasoning", "reasoning"),
        ("update", "updating"),
    ];
    let sum = |key: &str| run.series(&format!("time/{key}")).iter().map(|point| point.1).sum::<f64>();
    let mut phases: Vec<(&str, f64)> = PHASES.iter().map(|(key, name)| (*name, sum(key))).collect();
    let inside: f64 = phases[..3].iter().map(|phase| phase.1).sum();
    phases.push(("the rest of rollouts", (sum("rollout") - inside).max(0.0)));
    phases.retain(|phase| phase.1 > 0.0);
    let total: f64 = phases.iter().map(|phase| phase.1).sum();
    if total == 0.0 {
        return;
    }
    section(html, "Time", |html| {
        let steps = run.steps.len();
        html.leaf("p", &[], format!("{total:.1} s for {steps} steps, {:.2} s each.", total / steps as f64));
        tables::table(html, "Share of time by phase", &["", "seconds", "share", ""], |html| {
            for (name, seconds) in &phases {
                html.element("tr", &[], |html| {
                    html.leaf("th", &[("scope", &"row")], name);
                    html.leaf("td", &[], format!("{seconds:.1}"));
                    html.leaf("td", &[], percent(seconds / total));
                    html.element("td", &[("class", &"plot")], |html| {
                        let view = [
                            ("class", &"bar" as &dyn std::fmt::Display),
                            ("viewBox", &"0 0 160 20"),
                            ("aria-hidden", &"true"),
                        ];
                        html.element("svg", &view, |svg| {
                            let width = html::At(160.0 * seconds / total);
                            svg.empty("rect", &[("y", &5), ("height", &10), ("width", &width)]);
                        });
                    });
                });
            }
        });
    });
}

fn configuration(html: &mut Html, run: &Folder) {
    if run.config.is_empty() {
        return;
    }
    section(html, "Configuration", |html| {
        html.element("pre", &[("tabindex", &"0"), ("aria-label", &"config.toml")], |html| {
            html.leaf("code", &[], run.config.trim_end());
        });
    });
}
