//! An example of a run's folder: the tiny world with a perfect reasoner, captions as people write them before and
//! complete ones after, and curves that look like a run's.

use pellucid::rl::evaluation::{Answer, Clarified, Conditions, Evaluation, Item, Turn};
use pellucid::task::verify::Policy;
use pellucid::task::world::{Attribute, Example, HELD_OUT, Request, Verdict, human_caption};
use serde_json::json;
use std::fs;
use std::path::Path;

/// What a captioner might write.
pub(crate) const HOSTILE: &str = "</dd><script>alert('&amp;')</script><img src=x onerror=\"alert(1)\"> \u{202e}rtl \u{0} 🟥 a_very_long_word_that_no_line_can_break_anywhere_at_all_and_goes_on";

/// Fills a folder.
pub(crate) fn folder(folder: &Path) {
    let config = "seed = 0\n\n[captioner]\nmodel = \"builtin:tiny-captioner\"\n\n[data]\ntrain = \"builtin:world\"\n\
                  eval = \"builtin:world\"\n\n[run]\nsteps = 60\nout = \"runs/example\"\n# episode.alpha = 0.7 <&>\n";
    fs::write(folder.join("config.toml"), config).unwrap();
    let lines: String = (1..=60).map(|step| format!("{}\n", line(step))).collect();
    fs::write(folder.join("metrics.jsonl"), lines).unwrap();
    for step in [0, 20, 40, 60] {
        evaluation(step, 1.0, 400).save(folder).unwrap();
    }
    evaluation(0, 0.0, 400).save(folder).unwrap();
    evaluation(60, 0.0, 400).save(folder).unwrap();
}

/// A step's line.
fn line(step: u32) -> serde_json::Value {
    let learned = 1.0 / (1.0 + (-(f64::from(step) - 18.0) / 5.0).exp());
    let noise = |k: u32| f64::from((step * (7 + 4 * k) + 13 * k) % 17) / 17.0 - 0.5;
    let single = 0.2 + 0.72 * learned + 0.05 * noise(1);
    let asked = 0.78 - 0.7 * learned + 0.04 * noise(2);
    json!({
        "step": step,
        "reward": 0.6 + 0.36 * learned + 0.03 * noise(3),
        "reward_std": 0.3 - 0.2 * learned + 0.02 * noise(4),
        "frac_reward_zero_std": 0.07 + 0.5 * learned * learned + 0.06 * noise(5).abs(),
        "episodes": 256,
        "single_pass": single,
        "clarification_rate": asked,
        "accuracy": (single + 0.85 * asked).min(1.0),
        "reasoner/calls": 300,
        "completions/mean_length": 8.7 + 2.0 * learned + 0.3 * noise(6),
        "completions/distinct": 0.99 - 0.2 * learned,
        "kl": 0.7 * learned + 0.05 * noise(7).abs(),
        "entropy": 0.9 - 0.5 * learned + 0.03 * noise(8),
        "loss": 0.01 * noise(9),
        "grad_norm": 0.25 + 0.1 * noise(10),
        "learning_rate": 5e-4,
        "sampling/sampling_logp_difference/max": 0.0,
        "time/rollout": 0.4, "time/captions": 0.1, "time/clarifications": 0.02, "time/reasoning": 0.22,
        "time/update": 0.36 + 0.05 * noise(11),
        "skipped": null,
    })
}

/// The evaluation after so many steps of a run of 60, or of one that never learns if there are fewer problems than 400
/// in it: the more steps, the more captions state what is needed.
pub(crate) fn evaluation(step: u64, temperature: f32, count: u64) -> Evaluation {
    let complete = |index: u64| (index * 37 % 100) < step * 93 / 60;
    let items = (0..count).map(|index| item(index, complete(index), 2));
    Evaluation::of(Conditions { step, temperature, seed: 0, of: None }, items.collect())
}

/// Two evaluations of sums alone: of none and of one of the two numbers, the other left to the clarifier.
pub(crate) fn half_captions() -> [Evaluation; 2] {
    [0, 1].map(|known| {
        let sums = (0..300).filter(|index| Example::new(HELD_OUT, *index).question.kind() == "sum");
        let items = sums.map(|index| item(index, true, known)).collect();
        Evaluation::of(Conditions { step: 30 * known as u64, temperature: 1.0, seed: 0, of: None }, items)
    })
}

/// A problem of the held-out world, captioned with the first facts that are needed, or as people do.
fn item(index: u64, complete: bool, known: usize) -> Item {
    let example = Example::new(HELD_OUT, index);
    let problem = example.problem().unwrap();
    let (scene, question) = (&example.scene, &example.question);
    let caption = if complete {
        let facts =
            question.names().into_iter().take(known).map(|name| scene.fact(name, question.attribute()));
        let facts: Vec<String> = facts.flatten().map(|fact| fact.to_string()).collect();
        format!("{} .", facts.join(" , "))
    } else {
        human_caption(scene, question, &mut example.chance())
    };
    let first = Verdict::of(question, &[&caption]);
    let mut turns = Vec::new();
    let mut last = first.clone();
    if let Err(request) = first.decision {
        let reply = Request::clarification(&request, scene).unwrap();
        last = Verdict::of(question, &[&caption, &reply]);
        turns.push(Turn { request: request.to_string(), reply });
    }
    let answer = |verdict: &Verdict| {
        let text = verdict.decision.clone().unwrap_or_default();
        Answer {
            grade: problem.grade(&format!("\\boxed{{{text}}}"), &Policy::default()),
            text: verdict.to_string(),
            truncated: false,
        }
    };
    let hostile = (10..16).contains(&index);
    assert!(question.attribute() == Attribute::Number || question.kind() == "where");
    Item {
        id: problem.id.clone(),
        subject: Some(if index < 9 { "rare <subject>".to_owned() } else { question.kind().to_owned() }),
        difficulty: None,
        question: problem.question.clone(),
        gold: problem.answer.clone(),
        caption_tokens: caption.split(' ').count() + 1,
        caption: if hostile { HOSTILE.to_owned() } else { caption },
        caption_truncated: false,
        single: Some(answer(&first)),
        clarified: Some(Clarified { turns, answer: answer(&last), fallbacks: Vec::new() }),
    }
}
