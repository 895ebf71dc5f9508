//! Runs in the tiny world: what must hold whatever is learned.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[cfg(feature = "emu")]
#[path = "support/narrow.rs"]
mod narrow;

use pellucid::backend::Backend;
use pellucid::backend::cpu::Cpu;
use pellucid::engine::{Completion, Finish, Input, ScoreRequest, score};
use pellucid::prompt::message::{ImageReference, Message};
use pellucid::prompt::reader::Words;
use pellucid::prompt::template::RenderOptions;
use pellucid::rl::cast::{Cast, captioning, rules};
use pellucid::rl::config::Config;
use pellucid::rl::credit::{grade, grade_reasoner, reward};
use pellucid::rl::episode::{Failure, Outcome};
use pellucid::rl::frozen::Frozen;
use pellucid::rl::metrics::{metrics, samples};
use pellucid::rl::protocol::Exchange;
use pellucid::rl::run::{Run, Step};
use pellucid::rl::source::Source;
use pellucid::rl::stage::{Group, Member, Scene, Spoken, Trial};
use pellucid::task::data::Layout;
use pellucid::task::verify::{Policy, Verdict};
use pellucid::task::world::Example;
use pellucid::train::{Checkpoint, Lora, Sample, Trainer};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

const RECIPE: &str = include_str!("../assets/demo.toml");
const PRCO: &str = include_str!("../assets/demo-prco.toml");

/// Bytes a run may take here.
const FREE: u64 = 1 << 30;

fn backend() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(Some(2)).unwrap())
}

fn config(out: &Path, changes: &[&str]) -> Config {
    configured(RECIPE, out, changes)
}

fn configured(recipe: &str, out: &Path, changes: &[&str]) -> Config {
    let small = ["optim.prompts_per_step=3", "optim.group_size=4", "run.save_every=2", "run.steps=4"];
    let out = format!("run.out={:?}", out.display().to_string());
    let all = [out.as_str()].into_iter().chain(small).chain(changes.iter().copied());
    Config::parse(recipe, &all.map(str::to_owned).collect::<Vec<_>>()).unwrap()
}

/// A line of metrics without what the clock says.
fn timeless(mut line: Map<String, Value>) -> Map<String, Value> {
    line.retain(|name, _| !name.starts_with("time/"));
    line
}

#[test]
fn what_becomes_of_captions_depends_on_nothing_but_them() {
    let problems: Vec<_> = (0..5).map(|index| Example::new(3, index).problem().unwrap()).collect();
    let told = |changes: &[&str], order: &[usize]| {
        let config = config(Path::new("unused"), changes);
        let cast = Cast::open(&config, &backend()).unwrap();
        let mut stage = cast.stage(&config, &cast.memory(&config, FREE).unwrap()).unwrap();
        let rules = rules(&config, 1).unwrap();
        let scene = |at: usize| Scene {
            problem: &problems[at],
            trials: vec![Trial { rules: &rules, problem: &problems[at] }; 2],
            seeds: (0..3).map(|member| (10 * at + member) as u64).collect(),
        };
        let scenes: Vec<Scene<'_>> = order.iter().map(|&at| scene(at)).collect();
        let groups = stage.play(&scenes, &captioning(&config), None).unwrap().groups.into_iter().flatten();
        let mut told: Vec<_> = order
            .iter()
            .zip(groups)
            .flat_map(|(at, group)| group.members.into_iter().map(move |member| (*at, member)))
            .map(|(at, member)| (at, member.caption.text, member.caption.logprobs, member.outcomes))
            .collect();
        told.sort_by_key(|(at, ..)| *at);
        told
    };
    for temperature in ["reasoner.temperature=0.0", "reasoner.temperature=1.0"] {
        let first = told(&[temperature], &[0, 1, 2, 3, 4]);
        assert_eq!(first.len(), 15);
        let other = told(&[temperature, "run.sequences=3", "run.pass_tokens=40"], &[4, 2, 0, 3, 1]);
        assert_eq!(first, other);
    }
}

#[test]
fn a_problem_that_cannot_be_shown_costs_the_others_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, damaged: &dyn Fn(usize, &mut Value)| {
        let mut lines = String::new();
        for index in 0..4 {
            let problem = Example::new(3, index).problem().unwrap();
            let picture = folder.path().join(format!("{name}-{index}.png"));
            let [ImageReference::Bytes(bytes)] = &problem.images[..] else { panic!("a picture") };
            std::fs::write(&picture, bytes).unwrap();
            let (question, answer, id) = (&problem.question, &problem.answer, index.to_string());
            let mut line = json!({"id": id, "question": question, "answer": answer, "image": picture});
            damaged(index as usize, &mut line);
            lines += &format!("{line}\n");
        }
        let data = folder.path().join(format!("{name}.jsonl"));
        std::fs::write(&data, lines).unwrap();
        format!("data.train={:?}", data.display().to_string())
    };
    let step = |data: &str| {
        let shuffle = ["optim.prompts_per_step=4", "data.shuffle=false", data];
        let config = config(folder.path(), &shuffle);
        let cast = Cast::open(&config, &backend()).unwrap();
        let memory = cast.memory(&config, FREE).unwrap();
        Run::begin(&cast, &config, &memory, None).unwrap().0.step()
    };
    let whole = step(&write("whole", &|_, _| {})).unwrap();
    let told = step(&write("told", &|at, line| match at {
        1 => std::fs::write(line["image"].as_str().unwrap(), "no picture").unwrap(),
        3 => line["question"] = "how far is it ? ".repeat(200).into(),
        _ => {}
    }));
    let told = told.unwrap();
    let left_out: Vec<_> = told.left_out.iter().map(|(problem, _)| problem.id.as_str()).collect();
    assert_eq!(left_out, ["1", "3"]);
    assert!(told.left_out[1].1.to_string().contains("context"), "{}", told.left_out[1].1);
    assert_eq!(metrics(&told)["problems/left_out"], 2);
    assert_eq!(samples(&told).iter().filter(|line| line["left_out"].is_string()).count(), 2);
    let captions = |step: &Step, at: usize| -> Vec<_> {
        step.groups[at].members.iter().map(|member| member.caption.text.clone()).collect()
    };
    assert_eq!(captions(&whole, 0), captions(&told, 0));
    assert_eq!(captions(&whole, 2), captions(&told, 1));
    // An evaluation says how many it had to leave out.
    let config = config(folder.path(), &[]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
    let told = folder.path().join("told.jsonl");
    let told = Source::held_out(&told, &Layout::default(), &Policy::default(), None).unwrap().0;
    let measured = run.evaluate(&told, 0.0, 0, |_| {}).unwrap();
    assert_eq!((measured.metrics.items, measured.metrics.unshown, measured.metrics.unanswered), (2, 2, 0));
    assert!(
        measured.to_string().contains("2 problems are left out: their pictures or words cannot be shown")
    );
    // Where nothing can be played the data is not to blame.
    let broken = |_, line: &mut Value| std::fs::write(line["image"].as_str().unwrap(), "none").unwrap();
    assert!(step(&write("none", &broken)).is_err());
}

#[test]
fn a_run_that_goes_on_takes_the_steps_it_would_have_taken() {
    let learning = ["reasoner.temperature=1.0", "reasoner.learn={lr=1e-3,lora={rank=4,alpha=8}}"];
    for (recipe, changes) in [
        (RECIPE, &[][..]),
        (RECIPE, &["run.overlap=true", "optim.epochs_per_batch=2"]),
        (RECIPE, &learning),
        (PRCO, &["episode.solver_sees=true", "episode.caption_first=2"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let steps = |out: &Path, checkpoint: Option<&Checkpoint>, count: usize| {
            let config = configured(recipe, out, changes);
            let cast = Cast::open(&config, &backend()).unwrap();
            let (mut run, _) =
                Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), checkpoint).unwrap();
            let lines: Vec<_> = (0..count).map(|_| timeless(metrics(&run.step().unwrap()))).collect();
            (lines, Checkpoint::open(&run.save().unwrap()).unwrap())
        };
        let (whole, last) = steps(&folder.path().join("whole"), None, 4);
        let parts = folder.path().join("parts");
        let (mut lines, half) = steps(&parts, None, 2);
        let (rest, end) = steps(&parts, Some(&half), 2);
        lines.extend(rest);
        assert_eq!(whole, lines, "{changes:?}");
        assert!(whole.iter().all(|line| line["learning_rate"].as_f64().unwrap() > 0.0));
        for name in ["adapter_model.safetensors", "optimizer.safetensors"] {
            let bytes = |checkpoint: &Checkpoint| std::fs::read(checkpoint.folder().join(name)).unwrap();
            assert_eq!(bytes(&last), bytes(&end), "{name} {changes:?}");
        }
    }
}

#[test]
fn a_reasoner_that_learns_is_saved_and_lost_with_its_captioner() {
    let folder = tempfile::tempdir().unwrap();
    let learning = ["reasoner.temperature=1.0", "reasoner.learn={lr=1e-3,lora={rank=4,alpha=8}}"];
    let config = config(folder.path(), &learning);
    let cast = Cast::open(&config, &backend()).unwrap();
    let memory = cast.memory(&config, FREE).unwrap();
    let (mut run, _) = Run::begin(&cast, &config, &memory, None).unwrap();
    let saved = [0; 2].map(|_| {
        run.step().unwrap();
        run.save().unwrap()
    });
    let weights = |checkpoint: &Path| checkpoint.join("reasoner/adapter_model.safetensors");
    let mut bytes = std::fs::read(weights(&saved[1])).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights(&saved[1]), bytes).unwrap();
    let found = Checkpoint::latest(folder.path(), |_| {}).unwrap().unwrap();
    assert_eq!(found.folder(), saved[0]);
    Run::begin(&cast, &config, &memory, Some(&found)).unwrap();
    // Copies are whole, and what was saved last is all that is left where one is kept.
    let other = folder.path().join("other");
    assert!(weights(&found.copy_into(&other).unwrap()).exists());
    Checkpoint::latest(&other, |damage| panic!("{damage}")).unwrap().unwrap();
    let one = Config {
        run: pellucid::rl::config::Run { keep: 1, out: other.clone(), ..config.run.clone() },
        ..config
    };
    let (mut run, _) = Run::begin(&cast, &one, &memory, Some(&found)).unwrap();
    run.step().unwrap();
    let last = run.save().unwrap();
    assert!(weights(&last).exists());
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
}

#[test]
fn the_sampler_and_the_trainer_agree_to_the_bit_and_captions_of_an_older_adapter_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let run = |changes: &[&str]| {
        let config = config(folder.path(), changes);
        let cast = Cast::open(&config, &backend()).unwrap();
        let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
        (0..4).map(|_| metrics(&run.step().unwrap())).collect::<Vec<_>>()
    };
    const FRESH: &str = "sampling/sampling_logp_difference/max";
    const STALE: &str = "sampling/staleness_difference/max";
    for line in run(&["optim.warmup_steps=0"]) {
        assert_eq!(line[FRESH], 0.0, "{line:?}");
    }
    let lines = run(&["run.overlap=true", "run.save_every=3", "optim.warmup_steps=0"]);
    let fresh: Vec<bool> = lines.iter().map(|line| line.contains_key(FRESH)).collect();
    // The first, and the first after a checkpoint.
    assert_eq!(fresh, [true, false, false, true]);
    assert!(lines.iter().filter(|line| line.contains_key(FRESH)).all(|line| line[FRESH] == 0.0));
    let stale = lines.iter().filter_map(|line| line.get(STALE)).filter_map(Value::as_f64);
    assert!(stale.fold(0.0, f64::max) > 0.0, "nothing was learned in between");
}

#[test]
fn a_clarifier_that_learns_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &["optim.warmup_steps=0"]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let mut stage = cast.stage(&config, &cast.memory(&config, FREE).unwrap()).unwrap();
    let frozen = Frozen::listen(&mut stage).unwrap();
    frozen.check(&mut stage).unwrap();
    // An adapter whose B is not 0, as if the policy replied to the requests about its own captions.
    let spec = config.captioner.lora.spec("builtin:tiny-captioner").unwrap();
    let lora = Lora::fresh(&cast.policy.model.config, spec, 1).unwrap();
    let mut trainer =
        Trainer::new(cast.policy.model.clone(), lora, config.train_settings().unwrap()).unwrap();
    trainer.supervise(&[lesson(&cast, vec![20, 30, 2])]).unwrap();
    stage.clarifier_adapter = Some(stage.policy.engine().publish(trainer.adapter()));
    let found = frozen.check(&mut stage).unwrap_err().to_string();
    assert!(found.contains("clarifier") && found.contains("isolation"), "{found}");
}

#[test]
fn captions_are_held_to_their_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let begun = |out: &str, changes: &[&str]| {
        let config = config(&folder.path().join(out), changes);
        let cast = Cast::open(&config, &backend()).unwrap();
        let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
        let kl = metrics(&run.step().unwrap())["kl"].as_f64().unwrap();
        (kl, run.save().unwrap())
    };
    let (at_start, saved) = begun("first", &["optim.warmup_steps=0"]);
    assert_eq!(at_start, 0.0);
    let went_on = format!("captioner.adapter={:?}", saved.display().to_string());
    assert!(begun("far", &[&went_on]).0 > 0.0);
    let held = format!("reference.anchor={:?}", saved.display().to_string());
    assert_eq!(begun("held", &[&went_on, &held]).0, 0.0);
}

fn input(cast: &Cast) -> Arc<Input> {
    let problem = Example::new(1, 0).problem().unwrap();
    let words = Words::Messages(vec![Message::user(problem.images, "describe the image in full")]);
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let read = cast.policy.reader.read(&words, &[], Path::new(""), &options).unwrap();
    Arc::new(Input::prepare(&cast.policy.model, &read).unwrap())
}

fn lesson(cast: &Cast, tokens: Vec<u32>) -> Sample {
    Sample { input: input(cast), tokens, old: Vec::new(), advantage: 1.0, part: 0 }
}

#[test]
fn a_placeholder_in_a_completion_is_a_word_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &["optim.warmup_steps=0"]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let model = &cast.policy.model;
    let pad = cast.policy.reader.tokenizer().encode("<|image_pad|>").unwrap();
    let tokens = [&pad[..], &[40], &pad, &[2]].concat();
    let request = ScoreRequest::new(model, input(&cast), tokens.clone()).unwrap();
    let old = score(model, None, &[request], 1.0, 64).unwrap().remove(0).logprobs;
    let lora =
        Lora::fresh(&model.config, config.captioner.lora.spec("builtin:tiny-captioner").unwrap(), 1).unwrap();
    let mut trainer = Trainer::new(model.clone(), lora, config.train_settings().unwrap()).unwrap();
    let samples =
        [1.0, -1.0].map(|advantage| Sample { old: old.clone(), advantage, ..lesson(&cast, tokens.clone()) });
    let stats = trainer.step(&samples).unwrap();
    assert_eq!(stats[0].sampling_difference, 0.0);
    assert!(stats[0].bad.is_none());
}

/// The demo with a smaller budget: what it does in full is measured by `pellucid demo`.
#[test]
fn a_captioner_learns_to_say_what_is_asked_for() {
    let budget = ["optim.prompts_per_step=16", "optim.group_size=8", "optim.warmup_steps=2", "run.steps=14"];
    for (recipe, name) in [(RECIPE, "single_pass"), (PRCO, "solver/accuracy")] {
        let folder = tempfile::tempdir().unwrap();
        let config = configured(recipe, folder.path(), &budget);
        let cast = Cast::open(&config, &backend()).unwrap();
        let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
        let rates: Vec<f64> =
            (0..14).map(|_| metrics(&run.step().unwrap())[name].as_f64().unwrap()).collect();
        let mean = |some: &[f64]| some.iter().sum::<f64>() / some.len() as f64;
        let (first, last) = (mean(&rates[..2]), mean(&rates[12..]));
        assert!(first < 0.35 && last > first + 0.2, "{name}: from {first} to {last}");
    }
}

fn outcome(right: bool, requests: usize) -> Outcome {
    let mut outcome = Outcome::failed(Failure::CaptionTruncated);
    outcome.failure = None;
    outcome.grade.verdict = if right { Verdict::Right } else { Verdict::Wrong };
    outcome.exchanges = vec![Exchange { request: "?".into(), reply: ".".into() }; requests];
    outcome
}

fn member(outcomes: Vec<Option<Outcome>>) -> Member {
    let caption = Completion {
        text: "a".into(),
        tokens: vec![7, 2],
        logprobs: vec![-1.0, -0.5],
        entropy: Vec::new(),
        finish: Finish::Stop,
    };
    let spoken = outcomes.iter().map(|_| Vec::new()).collect();
    Member { caption, outcomes, leaks: None, spoken }
}

#[test]
fn tiers_pay_and_what_nobody_can_tell_is_left_out() {
    let config = config(Path::new("unused"), &[]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let input = input(&cast);
    let payment = [1.0, 0.7];
    let one = |right, requests| member(vec![Some(outcome(right, requests))]);
    assert_eq!(reward(&one(true, 0), &payment), Some(1.0));
    assert_eq!(reward(&one(true, 1), &payment), Some(0.7));
    assert_eq!(reward(&one(false, 1), &payment), Some(0.0));
    assert_eq!(reward(&member(vec![None]), &payment), None);
    let half = member(vec![Some(outcome(true, 0)), Some(outcome(false, 0))]);
    assert_eq!(reward(&half, &payment), Some(0.5));

    let lost = || member(vec![None]);
    let group = |members| Group { input: input.clone(), members };
    let mut unknown = outcome(true, 0);
    unknown.grade.verdict = Verdict::InvalidGold;
    let groups = [
        group(vec![one(true, 0), lost(), one(false, 0)]),
        group(vec![one(true, 0), lost(), lost()]),
        group(vec![one(true, 0), member(vec![Some(unknown)])]),
        group(vec![one(true, 0), one(true, 0)]),
    ];
    let graded = grade(&groups, &payment, &config.credit().unwrap()).unwrap();
    assert_eq!((graded.groups.as_slice(), graded.dropped, graded.masked), (&[0, 3][..], 3, 2));
    assert_eq!(graded.rewards, [vec![1.0, 0.0], vec![1.0, 1.0]]);
    let advantages: Vec<f64> = graded.samples.iter().map(|sample| sample.advantage).collect();
    assert!(advantages[0] > 0.7 && (advantages[0] + advantages[1]).abs() < 1e-12);
    assert_eq!(advantages[2..], [0.0, 0.0]);
    // The loss is over the caption's tokens and nothing else.
    assert!(graded.samples.iter().all(|sample| sample.tokens == [7, 2] && sample.old.len() == 2));
}

#[test]
fn a_text_that_leaves_no_room_for_a_reply_gets_none() {
    let config = config(Path::new("unused"), &[]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let mut stage = cast.stage(&config, &cast.memory(&config, FREE).unwrap()).unwrap();
    let texts = ["what is it ?".to_owned(), "how far is it ? ".repeat(200), "where is it ?".to_owned()];
    let replies = stage.consult(&texts, 4).unwrap();
    assert_eq!(replies.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(
        replies[2].as_ref().unwrap().text,
        stage.consult(&texts[2..], 4).unwrap()[0].as_ref().unwrap().text
    );
}

#[test]
fn both_learn_in_turns_and_both_are_on_record() {
    let learn = "reasoner.learn={lr=1e-3,lora={rank=4,alpha=8},alternate=[2,1]}";
    let folder = tempfile::tempdir().unwrap();
    let linear = ["reasoner.temperature=1.0", "optim.schedule=linear", "optim.warmup_steps=0", learn];
    let config = config(folder.path(), &linear);
    let cast = Cast::open(&config, &backend()).unwrap();
    let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
    let lines: Vec<_> = (0..4).map(|_| metrics(&run.step().unwrap())).collect();
    let rates = |name: &str| -> Vec<Option<f64>> {
        lines.iter().map(|line| line.get(name).and_then(Value::as_f64)).collect()
    };
    // Of four steps three are the captioner's: each comes to the end of a schedule of its own.
    let rate = config.optim.lr;
    let [first, second, none, third] = rates("learning_rate")[..] else { panic!("four steps") };
    assert_eq!(none, None);
    for (found, share) in [(first, 1.0), (second, 2.0 / 3.0), (third, 1.0 / 3.0)] {
        assert!((found.unwrap() / rate - share).abs() < 1e-9, "{found:?}");
    }
    assert_eq!(rates("reasoner/learning_rate"), [None, None, Some(1e-3), None]);
    assert_eq!(rates("reasoner/sampling_logp_difference/max")[2], Some(0.0));
    assert!(rates("reasoner/grad_norm")[2].unwrap() > 0.0);
}

#[test]
fn a_reasoner_that_learns_is_paid_for_asking_less() {
    let config = config(Path::new("unused"), &[]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let input = input(&cast);
    let spoken = |text: &str| Spoken {
        input: input.clone(),
        completion: Completion { text: text.into(), ..member(Vec::new()).caption },
    };
    let said = |right, requests, turns: usize| {
        let mut member = member(vec![Some(outcome(right, requests))]);
        member.spoken = vec![vec![spoken("x"); turns]];
        member
    };
    let groups = [Group { input: input.clone(), members: vec![said(true, 0, 1), said(true, 1, 2)] }];
    let samples = grade_reasoner(&groups, 0.2, &config.credit().unwrap()).unwrap();
    assert_eq!(samples.len(), 3);
    assert!(samples[0].advantage > 0.0 && samples[1].advantage < 0.0);
    assert_eq!(samples[1].advantage, samples[2].advantage);
    // An answer that nobody can grade teaches nothing.
    let mut unknown = said(true, 0, 1);
    unknown.outcomes[0].as_mut().unwrap().grade.verdict = Verdict::InvalidGold;
    let groups = [Group { input: input.clone(), members: vec![said(true, 0, 1), unknown] }];
    assert!(grade_reasoner(&groups, 0.2, &config.credit().unwrap()).unwrap().is_empty());
}

#[test]
fn every_caption_is_on_record_with_what_it_earned() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &[]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
    let step = run.step().unwrap();
    let lines = samples(&step);
    assert_eq!(lines.len(), 12);
    let total: f64 = lines.iter().filter_map(|line| line["reward"].as_f64()).sum();
    let said = metrics(&step)["reward"].as_f64().unwrap();
    assert!((total / 12.0 - said).abs() < 1e-12);
    assert!(lines.iter().all(|line| line["advantage"].is_f64() && line["caption"].is_string()));
}

#[test]
fn both_roles_of_one_policy_are_learned_from() {
    let folder = tempfile::tempdir().unwrap();
    let config = configured(PRCO, folder.path(), &["optim.warmup_steps=0"]);
    let cast = Cast::open(&config, &backend()).unwrap();
    let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
    let step = run.step().unwrap();
    let of = |part| step.graded.samples.iter().filter(move |sample| sample.part == part);
    // Three problems: four captions each, and four answers to one of them.
    assert_eq!((of(0).count(), of(1).count()), (12, 12));
    let member = &step.groups[0].members[0];
    assert_eq!((member.outcomes.len(), member.spoken.len()), (4, 4));
    assert!(member.spoken.iter().all(|turns| turns.len() == 1));
    assert_eq!(step.stats[0].sampling_difference, 0.0);
    let line = metrics(&step);
    assert!(line.contains_key("solver/reward"));
    assert_eq!(samples(&step).len(), 12);
    // The baseline learns from every answer, and pays it what its caption earns.
    let config = configured(PRCO, folder.path(), &["episode.shared=true", "episode.answers=1"]);
    let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
    let samples = run.step().unwrap().graded.samples;
    let (captions, answers) = samples.split_at(12);
    assert_eq!(answers.len(), 12);
    assert!(captions.iter().zip(answers).all(|(caption, answer)| caption.advantage == answer.advantage));
}

/// On a device the first steps are the CPU's, as far as plain arithmetic is right that rounds where a device does, times two.
#[cfg(feature = "emu")]
#[test]
fn the_first_steps_on_a_device_err_no_more_than_plain_bf16() {
    use pellucid::backend::gpu::{Emulator, Gpu, Settings};
    use pellucid::backend::plain::Plain;
    use pellucid::tensor::Dtype;
    let folder = tempfile::tempdir().unwrap();
    let changes =
        ["optim.prompts_per_step=2", "optim.group_size=2", "optim.warmup_steps=0", "run.sequences=8"];
    let config = config(folder.path(), &changes);
    let settings = Settings { checked: false, ..Settings::default() };
    let device: Arc<dyn Backend> = Arc::new(Gpu::new(Emulator::new(settings).unwrap()));
    let truth: Arc<dyn Backend> = Arc::new(Plain::<f64>::default());
    let plain: Arc<dyn Backend> =
        Arc::new(narrow::Narrow { inner: Plain::<f32>::default(), out: Dtype::BF16 });

    let cast = Cast::open(&config, &device).unwrap();
    let (mut run, _) = Run::begin(&cast, &config, &cast.memory(&config, FREE).unwrap(), None).unwrap();
    let others = [truth, plain].map(|backend| Cast::open(&config, &backend).unwrap());
    let mut learned: Option<Lora> = None;
    for number in 1..=2 {
        let step = run.step().unwrap();
        let captions = || step.groups.iter().flat_map(|group| &group.members).map(|member| &member.caption);
        let sampled: Vec<f32> = captions().flat_map(|caption| caption.logprobs.clone()).collect();
        let [truth, plain] = [0, 1].map(|at| {
            let cast: &Cast = &others[at];
            let model = &cast.policy.model;
            let adapter = learned.as_ref().map(|lora| lora.adapter(&*model.backend, &model.config).unwrap());
            let requests: Vec<ScoreRequest> = step
                .problems
                .iter()
                .zip(&step.groups)
                .flat_map(|(problem, group)| {
                    let input = captioning_input(cast, problem);
                    let members = group.members.iter();
                    members
                        .map(move |member| {
                            ScoreRequest::new(model, input.clone(), member.caption.tokens.clone()).unwrap()
                        })
                        .collect::<Vec<_>>()
                })
                .collect();
            let scores = score(model, adapter.as_ref(), &requests, 1.0, 256).unwrap();
            scores.into_iter().flat_map(|score| score.logprobs).collect::<Vec<f32>>()
        });
        let (ours, theirs) = (distance(&sampled, &truth), distance(&plain, &truth));
        assert!(ours <= 2.0 * theirs + 2e-3, "step {number}: off by {ours:e}, plain bf16 by {theirs:e}");
        assert_eq!(step.stats[0].sampling_difference, 0.0);
        assert!(step.stats[0].bad.is_none() && step.stats[0].grad_norm.is_finite());
        let saved = Checkpoint::open(&run.save().unwrap()).unwrap();
        learned = Some(saved.lora(&others[0].policy.model).unwrap());
    }
}

/// The prompt a caption was written for.
#[cfg(feature = "emu")]
fn captioning_input(cast: &Cast, problem: &pellucid::task::data::Problem) -> Arc<Input> {
    let text = format!("describe the image for the question : {}", problem.question);
    let words = Words::Messages(vec![Message::user(problem.images.iter().cloned(), text)]);
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let read = cast.policy.reader.read(&words, &[], Path::new(""), &options).unwrap();
    Arc::new(Input::prepare(&cast.policy.model, &read).unwrap())
}

#[cfg(feature = "emu")]
fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let off = sum(&mut found.iter().zip(wanted).map(|(a, b)| f64::from(a - b)));
    off / sum(&mut wanted.iter().map(|value| f64::from(*value)))
}
