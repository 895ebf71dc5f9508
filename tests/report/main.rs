//! The report of a run: complete by itself, well-formed, and with nothing in it that a model could make more than text.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod browser;
mod run;
mod strict;

use pellucid::rl::alarms;
use pellucid::rl::evaluation::Evaluation;
use pellucid::rl::report;
use std::fs;
use std::path::Path;

fn written(folder: &Path) -> String {
    let path = report::write(folder).unwrap();
    assert_eq!(path, folder.join("report.html"));
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_report_is_well_formed_and_complete_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    run::folder(folder.path());
    let page = written(folder.path());
    strict::check(&page).unwrap();
    for wanted in [
        "Groups of equal rewards",
        "McNemar",
        "By subject",
        "fewer than 20: not shown",
        "uniform rewards",
        "data:image/png;base64,",
        "episode.alpha",
        "Share of time by phase",
        "reasoner/calls",
    ] {
        assert!(page.contains(wanted), "{wanted:?} is missing");
    }
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    assert_eq!(page, written(folder.path()), "the same folder makes the same report");
}

#[test]
fn what_models_write_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    run::folder(folder.path());
    let page = written(folder.path());
    // The captions of the example run hold this; no part of it may be markup.
    assert!(run::HOSTILE.contains("<script>") && !page.contains("<script"), "a script");
    assert!(!page.contains("onerror=\""), "a handler");
    assert!(page.contains("&#60;script&#62;"), "its text is shown");
}

#[test]
fn a_folder_that_holds_little_makes_a_short_report() {
    let folder = tempfile::tempdir().unwrap();
    strict::check(&written(folder.path())).unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "{\"step\": 1, \"reward\": 0.5}\n{\"step\": 2, \"rew")
        .unwrap();
    let page = written(folder.path());
    strict::check(&page).unwrap();
    assert!(page.contains("1 lines of metrics.jsonl cannot be read"));
    run::evaluation(0, 1.0, 30).save(folder.path()).unwrap();
    let page = written(folder.path());
    strict::check(&page).unwrap();
    assert!(!page.contains("McNemar"), "there is nothing to compare");
    fs::write(folder.path().join("eval-9.json"), "[]").unwrap();
    assert!(report::write(folder.path()).unwrap_err().to_string().contains("eval-9.json"));
}

#[test]
fn evaluations_raise_alarms() {
    let names = |evaluations: &[&Evaluation]| -> Vec<_> {
        alarms::of_evaluations(evaluations).into_iter().map(|alarm| alarm.name).collect()
    };
    let (before, after) = (run::evaluation(0, 1.0, 200), run::evaluation(60, 1.0, 200));
    assert_eq!(names(&[&before]), ["many requests"]);
    assert!(names(&[&before, &after]).is_empty());
    // Backwards every subject regresses; nothing was asked, so nobody is lazy.
    assert!(names(&[&after, &before]).contains(&"a subject regressed"));
    assert!(names(&[]).is_empty());
    // Sums go on being asked about, and come out right more often.
    let lazy = run::half_captions();
    assert_eq!(names(&[&lazy[0], &lazy[1]]), ["many requests", "lazy captions"]);
    assert_eq!(names(&[&lazy[1], &lazy[0]]), ["many requests"]);
}
