//! Whole models: trained as torch trains them, and written so that they read back as they were.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(feature = "emu")]
#[path = "support/narrow.rs"]
mod narrow;
mod support;

use pellucid::backend::{Backend, cpu::Cpu, plain::Plain};
use pellucid::engine::Input;
use pellucid::format::{Checkpoint, FileDtype, ModelConfig, ModelFolder};
use pellucid::model::{Model, write_changed};
use pellucid::prompt::message::Message;
use pellucid::prompt::reader::{ImageOptions, ReadPrompt, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::tensor::{Dtype, Tensor};
use pellucid::train::{
    Checkpoint as Saved, FullTrainer, Learner, Lengths, Lesson, OptimiserSettings, Sample, pack, save_full,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use support::golden::{Case, images};

const EVERY: [&str; 9] = [
    "qwen2",
    "qwen2_5",
    "qwen3",
    "llama3",
    "smollm2",
    "qwen2_vl",
    "qwen2_5_vl",
    "internvl3",
    "internvl3_large",
];

fn load(folder: &Path) -> Model {
    Model::load(folder, Arc::new(Cpu::new(None).unwrap()), Some(Dtype::F32)).unwrap()
}

/// Names, shapes and values of all tensors of a folder.
fn contents(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let values = |bytes: &[u8], width: usize| -> Vec<f64> {
        let words = bytes.chunks_exact(width);
        match width {
            2 => words.map(|w| half::bf16::from_le_bytes([w[0], w[1]]).to_f64()).collect(),
            _ => words.map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]]).into()).collect(),
        }
    };
    let views = checkpoint.views().map(|view| {
        let width = view.bytes().len() / view.elements();
        (view.name().to_owned(), (view.shape().to_vec(), values(view.bytes(), width)))
    });
    views.collect()
}

#[test]
fn a_model_written_is_the_model_read() {
    let home = tempfile::tempdir().unwrap();
    // qwen2_5 is in f16, which bf16 does not hold.
    for name in EVERY.into_iter().filter(|&name| name != "qwen2_5") {
        let from = Case::read(name).model();
        let model = load(&from);
        for dtype in [Dtype::BF16, Dtype::F32] {
            if (name, dtype) == ("smollm2", Dtype::BF16) {
                continue;
            }
            let to = home.path().join(name);
            model.write(&to, &ModelFolder::at(&from), dtype).unwrap();
            assert!(contents(&to) == contents(&from), "{name} in {dtype}");
            let again = load(&to);
            let stored = if dtype == Dtype::BF16 { FileDtype::BF16 } else { FileDtype::F32 };
            let config = ModelConfig { dtype: Some(stored), ..model.config.clone() };
            assert_eq!(again.config, config);
            let files = |folder: &Path| -> Vec<String> {
                let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
                let mut names: Vec<String> = names
                    .map(|name| name.to_string_lossy().into_owned())
                    .filter(|name| !name.contains(".safetensors"))
                    .collect();
                names.sort();
                names
            };
            assert_eq!(files(&to), files(&from), "{name}");
        }
    }
}

#[test]
fn what_was_changed_is_written_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let from = Case::read("qwen2_5_vl").model();
    let mut model = load(&from);
    let names: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
    let (at, name) =
        names.iter().enumerate().find(|(_, name)| name.ends_with("1.mlp.up_proj.weight")).unwrap();
    let place = model.decoder.parameters_mut().remove(at);
    *place = Tensor::zeros(Dtype::F32, place.shape()).unwrap();
    let to = home.path().join("model");
    model.write(&to, &ModelFolder::at(&from), Dtype::BF16).unwrap();
    let (before, after) = (contents(&from), contents(&to));
    for (other, value) in &before {
        assert_eq!(other == name, value != &after[other], "{other}");
    }
    assert!(after[name].1.iter().all(|&value| value == 0.0));

    let wrong = |name: &str, shape: &[usize]| {
        let changed = vec![(name.to_owned(), Tensor::zeros(Dtype::F32, shape).unwrap())];
        write_changed(&to, &ModelFolder::at(&from), Dtype::F32, changed).unwrap_err().to_string()
    };
    assert!(wrong("nobody", &[1]).ends_with("holds no tensor nobody to be replaced"));
    assert!(wrong(name, &[1, 2]).contains("cannot become f32[1, 2]"), "{}", wrong(name, &[1, 2]));
    assert!(contents(&to) == after, "a refusal leaves what was there");
}

/// A trainer of a case's model, and the completions of its prompts.
fn class(case: &Case, backend: Arc<dyn Backend>, tower: bool, budget: usize) -> (FullTrainer, Vec<Lesson>) {
    let model = Model::load(&case.model(), backend, None).unwrap();
    let reader =
        Reader::open(&ModelFolder::at(case.model()), &model.config, ImageOptions::default()).unwrap();
    let lessons = case.expected.prompts.iter().map(|prompt| {
        let words = Words::Messages(Message::list_from_json(prompt.messages.clone()).unwrap());
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let read = reader.read(&words, &[], &images(), &options).unwrap();
        let (prompt, tokens) = (Arc::new(read), prompt.completion_ids.clone());
        Lesson { prompt, weights: vec![1.0; tokens.len()], tokens }
    });
    let mut lessons: Vec<Lesson> = lessons.collect();
    Lesson::count_alike(&mut lessons);
    (FullTrainer::new(model, tower, settings(), budget).unwrap(), lessons)
}

fn settings() -> OptimiserSettings {
    OptimiserSettings {
        learning_rate: 5e-4,
        betas: [0.9, 0.99],
        eps: 1e-6,
        weight_decay: 0.01,
        max_grad_norm: 0.5,
        ..OptimiserSettings::default()
    }
}

fn cpu() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(None).unwrap())
}

/// Gradients by name; parts of a fused weight one below the other.
fn gradients(trainer: &FullTrainer) -> BTreeMap<String, Vec<f64>> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, gradient) in trainer.gradients() {
        let gradient = trainer.model().backend.download(gradient).unwrap();
        all.entry(name).or_default().extend(gradient.to_f64());
    }
    all
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[derive(serde::Deserialize)]
struct Theirs {
    gradients: BTreeMap<String, Summary>,
    losses: Vec<f64>,
    norms: Vec<f64>,
}

#[derive(serde::Deserialize)]
struct Summary {
    norm: f64,
    /// The product with the sines of 1 + 0.37·i.
    along: f64,
}

fn theirs(case: &Case) -> Theirs {
    serde_json::from_str(&std::fs::read_to_string(case.model().with_file_name("full.json")).unwrap()).unwrap()
}

const TAUGHT: [&str; 3] = ["qwen2_5", "qwen3", "qwen2_5_vl"];

fn along(values: &[f64]) -> f64 {
    values.iter().enumerate().map(|(i, value)| value * (1.0 + 0.37 * i as f64).sin()).sum()
}

/// All weights, in one microbatch and in several.
#[test]
fn gradients_of_every_weight_are_torchs() {
    for case in TAUGHT.map(Case::read) {
        let theirs = theirs(&case);
        for budget in [4096, 1] {
            let longest = |lessons: &[Lesson]| {
                let length = |lesson: &Lesson| lesson.prompt.prompt.tokens.len() + lesson.tokens.len();
                lessons.iter().map(length).max().unwrap()
            };
            let (mut trainer, lessons) = class(&case, cpu(), true, 4096);
            if budget == 1 {
                (trainer, _) = class(&case, cpu(), true, longest(&lessons));
            }
            let stats = trainer.differentiate(&lessons).unwrap();
            assert_eq!(budget == 1, stats.microbatches > 1);
            assert!((stats.loss - theirs.losses[0]).abs() < 1e-4, "{}: {}", case.name, stats.loss);
            let ours = gradients(&trainer);
            assert!(ours.keys().eq(theirs.gradients.keys()), "{}", case.name);
            let stored = Checkpoint::open(&case.model()).unwrap();
            for (name, Summary { norm: length, along: product }) in &theirs.gradients {
                let gradient = &ours[name];
                assert_eq!(gradient.len(), stored.view(name).unwrap().elements(), "{name}");
                let off = (norm(gradient) - length).abs().max((along(gradient) - product).abs()) / length;
                assert!(off < 1e-4, "{} {name}: off by {off:e}", case.name);
            }
        }
    }
}

#[test]
fn ten_steps_of_every_weight_lose_what_torch_loses() {
    for case in TAUGHT.map(Case::read) {
        let theirs = theirs(&case);
        let (mut trainer, lessons) = class(&case, cpu(), true, 4096);
        for (step, (loss, norm)) in theirs.losses.iter().zip(&theirs.norms).enumerate() {
            let before = trainer.cross_entropy(&lessons).unwrap();
            let stats = trainer.supervise(&lessons).unwrap();
            assert!((before - stats.loss).abs() < 1e-12, "{} step {step}: {before}", case.name);
            let (far, off) = ((stats.loss - loss).abs(), (stats.grad_norm / norm - 1.0).abs());
            assert!(far < 1e-4, "{} step {step}: loss {} for {loss}", case.name, stats.loss);
            assert!(off < 1e-3, "{} step {step}: norm {} for {norm}", case.name, stats.grad_norm);
        }
        // What was learned is written, and read again.
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("model");
        trainer.model().write(&to, &ModelFolder::at(case.model()), Dtype::F32).unwrap();
        let again = load(&to);
        for ((name, ours), (_, read)) in trainer.model().parameters().iter().zip(again.parameters()) {
            assert!(ours.bytes() == read.bytes(), "{} {name}", case.name);
        }
    }
}

/// The whole walk in f64 against central differences: one element of every weight, a different one each.
#[test]
fn every_weight_agrees_with_central_differences() {
    let case = Case::read("qwen2_5_vl");
    let (mut trainer, mut lessons) = class(&case, Arc::new(Plain::<f64>::default()), true, 4096);
    lessons.retain(|lesson| !lesson.prompt.images.is_empty());
    lessons.truncate(1);
    lessons[0].tokens.truncate(4);
    Lesson::count_alike(&mut lessons);
    trainer.differentiate(&lessons).unwrap();
    let slopes: Vec<(String, Vec<f64>)> =
        trainer.gradients().into_iter().map(|(name, gradient)| (name, gradient.to_f64())).collect();
    let backend: Arc<dyn Backend> = Arc::new(Plain::<f64>::default());
    let mut model = Model::load(&case.model(), backend.clone(), None).unwrap();
    for weight in model.parameters_mut() {
        *weight = weight.copied(Dtype::F64).unwrap();
    }
    let mut model = Arc::new(model);
    let Lesson { prompt, tokens, .. } = &lessons[0];
    let lengths = Lengths { prompt: 0, prompt_tokens: prompt.prompt.tokens.len(), tokens: tokens.len() };
    let batch = pack(&[lengths], 4096).unwrap().remove(0);
    let tower_first = model.decoder.parameters().len();
    for (number, (name, slope)) in slopes.iter().enumerate() {
        // Of the decoder, the LoRA tests see most; here the first block and the ends do.
        if number < tower_first && name.contains("layers.") && !name.contains("layers.0.") {
            continue;
        }
        let most = (0..slope.len()).max_by(|&a, &b| slope[a].abs().total_cmp(&slope[b].abs())).unwrap();
        let element = if number % 2 == 0 { most } else { number * 37 % slope.len() };
        let mut loss = |by: f64| {
            let mut weights = Arc::get_mut(&mut model).unwrap().parameters_mut();
            weights[number].as_mut_slice::<f64>().unwrap()[element] += by;
            let input = Arc::new(Input::prepare(&model, prompt).unwrap());
            let sample = Sample { input, tokens: tokens.clone(), old: Vec::new(), advantage: 1.0, part: 0 };
            let mut learner = Learner::new(model.clone()).unwrap();
            let logp = learner.read(&[sample], &batch, None, 1.0).unwrap().logp.concat();
            drop(learner);
            let mut weights = Arc::get_mut(&mut model).unwrap().parameters_mut();
            weights[number].as_mut_slice::<f64>().unwrap()[element] -= by;
            -logp.iter().sum::<f64>() / tokens.len() as f64
        };
        let by = 1e-4;
        let expected = (loss(by) - loss(-by)) / (2.0 * by);
        let far = (expected - slope[element]).abs();
        assert!(far <= 1e-5 * expected.abs() + 1e-7, "{name}[{element}]: {} for {expected}", slope[element]);
    }
}

/// Two answers in one lesson, what is between them only read, are learned as two lessons; and weights scale what is
/// learned from each.
#[test]
fn what_counts_is_learned_by_its_weight() {
    let case = Case::read("qwen2_5");
    let (mut trainer, lessons) = class(&case, cpu(), true, 4096);
    let Lesson { prompt, tokens, .. } = &lessons[0];
    assert!(tokens.len() >= 6);
    let mut longer = (**prompt).clone();
    longer.prompt.tokens.extend(&tokens[..4]);
    let lesson = |prompt: &Arc<ReadPrompt>, tokens: &[u32], weights: Vec<f64>| Lesson {
        prompt: prompt.clone(),
        tokens: tokens.to_vec(),
        weights,
    };
    let rest = tokens.len() - 4;
    let whole = [vec![0.5; 2], vec![0.0; 2], vec![0.25; rest]].concat();
    let whole = [lesson(prompt, tokens, whole)];
    let parts = [
        lesson(prompt, &tokens[..2], vec![0.5; 2]),
        lesson(&Arc::new(longer), &tokens[4..], vec![0.25; rest]),
    ];
    let mut found = [&whole[..], &parts[..]].map(|lessons| {
        let stats = trainer.differentiate(lessons).unwrap();
        assert_eq!(stats.tokens, tokens.len() - 2);
        assert!((trainer.cross_entropy(lessons).unwrap() - stats.loss).abs() < 1e-9);
        (stats.loss, gradients(&trainer))
    });
    assert!((found[0].0 - found[1].0).abs() < 1e-5, "{} {}", found[0].0, found[1].0);
    let parted = std::mem::take(&mut found[1].1);
    for (name, gradient) in &found[0].1 {
        let off: Vec<f64> = gradient.iter().zip(&parted[name]).map(|(a, b)| a - b).collect();
        assert!(norm(&off) < 1e-4 * norm(gradient) + 1e-7, "{name}: {:e}", norm(&off) / norm(gradient));
    }
    let odd = [lesson(prompt, tokens, vec![1.0; 2])];
    assert!(trainer.supervise(&odd).unwrap_err().to_string().contains("lesson 0"));
    let none = [lesson(prompt, tokens, vec![0.0; tokens.len()])];
    assert!(trainer.supervise(&none).unwrap_err().to_string().contains("no token"));
    assert_eq!(trainer.counts().step, 0);
}

/// Checkpoints are models with an optimiser beside them; fused weights, frozen towers and those that never learn included.
#[test]
fn a_whole_model_goes_on_bit_for_bit() {
    for (name, tower) in [("qwen2_5_vl", true), ("qwen2_5_vl", false), ("internvl3", false), ("qwen3", true)]
    {
        let case = Case::read(name);
        let (mut straight, lessons) = class(&case, cpu(), tower, 4096);
        let mut expected: Vec<_> = (0..4).map(|_| straight.supervise(&lessons).unwrap()).collect();
        let (mut trainer, _) = class(&case, cpu(), tower, 4096);
        let home = tempfile::tempdir().unwrap();
        let source = ModelFolder::at(case.model());
        for step in 1..=2 {
            trainer.supervise(&lessons).unwrap();
            save_full(&trainer, &source, home.path(), step, 2, &serde_json::json!({"cursor": step})).unwrap();
        }
        let found = Saved::latest(home.path(), |warning| panic!("{warning}")).unwrap().unwrap();
        let again = load(found.folder());
        for ((name, ours), (_, read)) in trainer.model().parameters().iter().zip(again.parameters()) {
            assert!(ours.bytes() == read.bytes(), "{} {name}", case.name);
        }
        drop(trainer);
        let model = Model::load(&case.model(), cpu(), None).unwrap();
        let mut resumed = found.full_trainer(model, tower, settings(), 4096).unwrap();
        let rest: Vec<_> = (2..4).map(|_| resumed.supervise(&lessons).unwrap()).collect();
        assert_eq!(rest, expected.split_off(2), "{name}");
        for ((name, ours), (_, theirs)) in
            resumed.model().parameters().iter().zip(straight.model().parameters())
        {
            assert!(ours.bytes() == theirs.bytes(), "{} {name}", case.name);
        }
        assert_eq!(resumed.counts(), straight.counts());

        let other = Case::read(if name == "qwen3" { "qwen2" } else { "qwen3" });
        let other = Model::load(&other.model(), cpu(), None).unwrap();
        let refusal = found.full_trainer(other, false, settings(), 4096).unwrap_err().to_string();
        assert!(refusal.contains("of another model") || refusal.contains("missing"), "{refusal}");
    }
}

/// On a device three steps err as plain arithmetic errs that rounds to bf16 where a device does, times two at most: in
/// gradients, in losses, and in how far each weight has come.
#[cfg(feature = "emu")]
#[test]
fn a_device_learns_every_weight_as_plain_bf16_does() {
    use pellucid::backend::gpu::{Emulator, Gpu, Settings};
    let device = || -> Arc<dyn Backend> {
        let settings = Settings { checked: false, ..Settings::default() };
        Arc::new(Gpu::new(Emulator::new(settings).unwrap()))
    };
    let far = |ours: &[f64], truth: &[f64]| {
        let off: Vec<f64> = ours.iter().zip(truth).map(|(a, b)| a - b).collect();
        norm(&off) / norm(truth)
    };
    for case in ["qwen2_5_vl", "qwen3"].map(Case::read) {
        let run = |backend: Arc<dyn Backend>| {
            let (mut trainer, mut lessons) = class(&case, backend, true, 4096);
            lessons.truncate(2);
            Lesson::count_alike(&mut lessons);
            let losses: Vec<f64> = (0..3).map(|_| trainer.supervise(&lessons).unwrap().loss).collect();
            (losses, gradients(&trainer))
        };
        let (losses, device) = run(device());
        let (true_losses, truth) = run(Arc::new(Plain::<f64>::default()));
        let (plain_losses, plain) =
            run(Arc::new(narrow::Narrow { inner: Plain::<f32>::default(), out: Dtype::BF16 }));
        let (ours, theirs) = (far(&losses, &true_losses), far(&plain_losses, &true_losses));
        assert!(
            ours <= 2.0 * theirs + 2e-3,
            "{}: {losses:?} for {true_losses:?}, plain {plain_losses:?}",
            case.name
        );
        assert!(true_losses[2] < true_losses[0]);
        for (name, truth) in &truth {
            let (ours, theirs) = (far(&device[name], truth), far(&plain[name], truth));
            assert!(
                ours <= 2.0 * theirs + 2e-3,
                "{} {name}: off by {ours:e}, plain bf16 by {theirs:e}",
                case.name
            );
        }
    }
}

/// A frozen tower stays as it is, and the decoder learns what it would have.
#[test]
fn a_frozen_tower_stays_as_it_is() {
    let case = Case::read("qwen2_5_vl");
    let (mut whole, lessons) = class(&case, cpu(), true, 4096);
    let (mut half, _) = class(&case, cpu(), false, 4096);
    let before = load(&case.model());
    whole.differentiate(&lessons).unwrap();
    half.supervise(&lessons).unwrap();
    let (all, some) = (gradients(&whole), gradients(&half));
    assert!(some.len() < all.len());
    for (name, gradient) in &some {
        assert!(gradient == &all[name] && !name.starts_with("visual."), "{name}");
    }
    for ((name, old), (_, new)) in before.parameters().into_iter().zip(half.model().parameters()) {
        assert_eq!(name.starts_with("visual."), old.bytes() == new.bytes(), "{name}");
    }
}

#[test]
fn towers_that_do_not_learn_are_refused_by_name() {
    for (name, family) in [("qwen2_vl", "Qwen2-VL"), ("internvl3", "InternVL")] {
        let model = load(&Case::read(name).model());
        let refusal = FullTrainer::new(model, true, OptimiserSettings::default(), 4096).unwrap_err();
        let expected = format!("full training of the image tower of {family} is not supported; freeze it");
        assert!(refusal.to_string().contains(&expected), "{refusal}");
        let model = load(&Case::read(name).model());
        FullTrainer::new(model, false, OptimiserSettings::default(), 4096).unwrap();
    }
}
