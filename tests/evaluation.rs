//! Evaluations against numbers counted by hand.

use pellucid::rl::evaluation::{
    Answer, Clarified, Comparison, Conditions, Evaluation, Item, Mode, Rate, Turn, relative_reduction,
};
use pellucid::task::verify::{Grade, Rule, Verdict};

fn answer(verdict: Verdict) -> Answer {
    let grade = Grade { verdict, extracted: Some("7".to_owned()), rule: Rule::Integer };
    Answer { text: "\\boxed{7}".to_owned(), truncated: false, grade }
}

fn verdict(right: bool) -> Verdict {
    if right { Verdict::Right } else { Verdict::Wrong }
}

fn item(id: usize, subject: &str, single: Option<bool>, clarified: Option<(bool, bool)>) -> Item {
    let turn = Turn { request: "what is the number ?".to_owned(), reply: "7 .".to_owned() };
    Item {
        id: id.to_string(),
        subject: Some(subject.to_owned()),
        difficulty: None,
        question: "how many ?".to_owned(),
        gold: "7".to_owned(),
        caption: "a <b> & \"c\"".to_owned(),
        caption_tokens: 1 + id,
        caption_truncated: id == 0,
        single: single.map(|right| answer(verdict(right))),
        clarified: clarified.map(|(asked, right)| Clarified {
            turns: if asked { vec![turn] } else { Vec::new() },
            answer: answer(verdict(right)),
            fallbacks: if asked && !right { vec!["no_marker".to_owned()] } else { Vec::new() },
        }),
    }
}

fn at(step: u64) -> Conditions {
    Conditions { step, temperature: 1.0, seed: 0, of: None }
}

/// Ten items: what was right in a single pass, whether the reasoner asked, what was right in the training flow.
const TEN: [(bool, bool, bool); 10] = [
    (true, false, true),
    (true, false, true),
    (true, false, false),
    (false, false, false),
    (false, true, true),
    (false, true, true),
    (false, true, true),
    (false, true, false),
    (true, true, true),
    (true, true, false),
];

fn ten() -> Vec<Item> {
    let made =
        |(id, &(single, asked, right)): (usize, &_)| item(id, "sum", Some(single), Some((asked, right)));
    TEN.iter().enumerate().map(made).collect()
}

#[test]
fn every_metric_is_what_one_counts() {
    let evaluation = Evaluation::of(at(3), ten());
    assert_eq!(evaluation.mode, Mode::Clarification);
    let metrics = &evaluation.metrics;
    let rate = |rate: Option<Rate>| rate.map(|rate| (rate.count, rate.of));
    assert_eq!(rate(metrics.accuracy_single), Some((5, 10)));
    assert_eq!(rate(metrics.accuracy_clarified), Some((6, 10)));
    assert_eq!(rate(metrics.clarification_rate), Some((6, 10)));
    assert_eq!(rate(metrics.first_pass_right), Some((2, 10)));
    assert_eq!(rate(metrics.first_pass_wrong), Some((2, 10)));
    assert!((metrics.gap.unwrap() - 0.1).abs() < 1e-12);
    assert_eq!(rate(metrics.accuracy_denied), Some((2, 6)));
    assert_eq!(rate(metrics.accuracy_granted), Some((4, 6)));
    assert!((metrics.criticality.unwrap() - 2.0 / 6.0).abs() < 1e-12);
    assert_eq!(rate(metrics.rescue_rate), Some((3, 4)));
    assert_eq!(rate(metrics.harm_rate), Some((1, 2)));
    assert_eq!(rate(metrics.captions_truncated), Some((1, 10)));
    assert_eq!(rate(metrics.answers_truncated), Some((0, 20)));
    let tokens = metrics.caption_tokens.unwrap();
    assert!((tokens.mean - 5.5).abs() < 1e-12 && (tokens.p95 - 9.55).abs() < 1e-12, "{tokens:?}");
    assert_eq!(metrics.fallbacks.get("no_marker"), Some(&2));
    assert_eq!((metrics.items, metrics.invalid_golds), (10, 0));
}

#[test]
fn what_was_not_asked_of_all_is_not_averaged_over_some() {
    // Denied to those that asked alone: no accuracy of a single pass, and so no gap.
    let mut items = ten();
    items.iter_mut().filter(|item| item.asked() == Some(false)).for_each(|item| item.single = None);
    let metrics = Evaluation::of(at(0), items.clone()).metrics;
    assert_eq!((metrics.accuracy_single, metrics.gap), (None, None));
    assert_eq!(metrics.accuracy_denied.map(|rate| (rate.count, rate.of)), Some((2, 6)));
    items[5].single = None;
    let metrics = Evaluation::of(at(0), items).metrics;
    assert_eq!((metrics.accuracy_denied, metrics.criticality, metrics.rescue_rate), (None, None, None));
    assert!(metrics.accuracy_granted.is_some());

    let alone = (0..4).map(|id| item(id, "sum", Some(id == 0), None)).collect();
    let single = Evaluation::of(at(0), alone);
    assert_eq!(single.mode, Mode::SinglePass);
    assert_eq!(single.metrics.accuracy_single.map(|rate| (rate.count, rate.of)), Some((1, 4)));
    assert_eq!((single.metrics.clarification_rate, single.metrics.first_pass_right), (None, None));
    assert_eq!(Evaluation::of(at(0), Vec::new()).metrics.accuracy_single, None);
}

#[test]
fn golds_nobody_can_read_count_for_nothing() {
    let mut items = ten();
    items[0].single = Some(answer(Verdict::InvalidGold));
    items[0].clarified.as_mut().unwrap().answer = answer(Verdict::InvalidGold);
    let metrics = Evaluation::of(at(0), items).metrics;
    assert_eq!((metrics.items, metrics.invalid_golds), (9, 1));
    assert_eq!(metrics.accuracy_single.map(|rate| (rate.count, rate.of)), Some((4, 9)));
}

#[test]
fn small_cells_are_not_shown() {
    let subject = |id: usize| if id < 20 { "many" } else { "few" };
    let items =
        (0..39).map(|id| item(id, subject(id), Some(id % 4 == 0), Some((id % 2 == 0, true)))).collect();
    let evaluation = Evaluation::of(at(0), items);
    let [by_subject] = &evaluation.breakdowns[..] else { panic!("none has a difficulty") };
    let [few, many] = &by_subject.cells[..] else { panic!("two subjects") };
    assert_eq!(
        (few.name.as_str(), few.items, few.accuracy_single, few.suppressed()),
        ("few", 19, None, true)
    );
    assert_eq!((many.name.as_str(), many.items, many.suppressed()), ("many", 20, false));
    assert_eq!(many.accuracy_single.map(|rate| rate.count), Some(5));
    assert_eq!(many.clarification_rate.map(|rate| rate.count), Some(10));
    assert_eq!(many.first_pass_right.map(|rate| rate.count), Some(10));
    assert!(evaluation.to_string().contains("fewer than 20: not shown"));
}

#[test]
fn two_evaluations_are_compared_problem_by_problem() {
    let before = Evaluation::of(at(0), ten());
    let mut items = ten();
    items.reverse(); // the order says nothing
    items.pop(); // and problem 0 is missing
    for item in &mut items {
        item.single = Some(answer(Verdict::Right));
    }
    items[0].single = Some(answer(Verdict::Wrong)); // problem 9 was right
    items[5].clarified.as_mut().unwrap().turns.clear(); // problem 4 asks no more
    let after = Evaluation::of(at(60), items.clone());
    let comparison = Comparison::between(&before, &after).unwrap();
    let single = comparison.accuracy_single.unwrap();
    assert_eq!((comparison.items, single.lost, single.gained), (9, 1, 5));
    assert!((single.before - 4.0 / 9.0).abs() < 1e-12 && (single.after - 8.0 / 9.0).abs() < 1e-12);
    // By hand: 2 (C(6,0) + C(6,1)) / 2^6.
    assert!((single.p - 14.0 / 64.0).abs() < 1e-12);
    let asked = comparison.clarification_rate.unwrap();
    assert_eq!((asked.lost, asked.gained), (1, 0));
    assert!((comparison.relative_reduction.unwrap() - 1.0 / 6.0).abs() < 1e-12);

    items.iter_mut().for_each(|item| item.id += "x");
    let apart = Comparison::between(&before, &Evaluation::of(at(60), items)).unwrap_err();
    assert!(apart.to_string().contains("share no problem"), "{apart}");
    let mut other = ten();
    other[3].gold = "8".to_owned();
    let other = Comparison::between(&before, &Evaluation::of(at(60), other)).unwrap_err();
    assert!(other.to_string().contains("problem \"3\""), "{other}");
}

#[test]
fn published_reductions_come_out() {
    // MathVision and MathVerse of the AC-RL paper.
    let percent = |before, after| (1000.0 * relative_reduction(before, after).unwrap()).round() / 10.0;
    assert_eq!(percent(40.69, 28.95), 28.9);
    assert_eq!(percent(49.57, 30.28), 38.9);
    assert_eq!(relative_reduction(0.0, 0.5), None);
}

#[test]
fn a_file_gives_back_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = Evaluation::of(at(60), ten());
    let greedy = Conditions { temperature: 0.0, ..at(60) };
    Evaluation::of(greedy, ten()).save(folder.path()).unwrap();
    let path = evaluation.save(folder.path()).unwrap();
    Evaluation::of(at(7), ten()).save(folder.path()).unwrap();
    assert!(path.ends_with("eval-60.json"));
    assert_eq!(Evaluation::open(&path).unwrap(), evaluation);
    let all = Evaluation::all_in(folder.path()).unwrap();
    let order: Vec<_> = all.iter().map(|one| (one.conditions.step, one.conditions.temperature)).collect();
    assert_eq!(order, [(7, 1.0), (60, 1.0), (60, 0.0)]);
    let summary = serde_json::to_value(evaluation.summary()).unwrap();
    assert_eq!(summary.get("items"), None);
    assert_eq!(summary["metrics"]["clarification_rate"]["count"], 6);
    std::fs::write(&path, "{").unwrap();
    assert!(Evaluation::open(&path).unwrap_err().to_string().contains("is no evaluation"));
}
