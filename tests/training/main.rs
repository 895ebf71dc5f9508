//! Learning, held to torch and peft, to central differences and to the engine.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(feature = "emu")]
#[path = "../support/narrow.rs"]
mod narrow;
#[path = "../support/mod.rs"]
mod support;

mod memory;
mod torch;

use pellucid::backend::{Backend, cpu::Cpu, plain::Plain};
use pellucid::engine::{Input, ScoreRequest, score};
use pellucid::format::adapter::{Adapter as AdapterFile, ModuleSet, canonical_module};
use pellucid::format::{Checkpoint, ModelFolder};
use pellucid::model::{Gradients, Model, kept_block_bytes, train_bytes};
use pellucid::prompt::message::Message;
use pellucid::prompt::reader::{ImageOptions, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::tensor::{Dtype, Tensor};
use pellucid::train::objective::{Aggregation, Clip, Kl, shape_reward};
use pellucid::train::{
    Checkpoint as Saved, Learner, Lengths, Lora, LoraSpec, Microbatch, Objective, OptimiserSettings, Sample,
    TrainSettings, Trainer, pack, save,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use support::golden::{Case, images};

fn cpu() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(None).unwrap())
}

/// A model, the adapter its training begins with, and the completions of its prompts.
struct School {
    model: Arc<Model>,
    lora: Lora,
    samples: Vec<Sample>,
    folder: PathBuf,
}

impl School {
    fn new(case: &Case, backend: Arc<dyn Backend>, dtype: Dtype) -> Self {
        let model = Arc::new(Model::load(&case.model(), backend, Some(dtype)).unwrap());
        let folder = ModelFolder::at(case.model());
        let reader = Reader::open(&folder, &model.config, ImageOptions::default()).unwrap();
        let samples = case.expected.prompts.iter().map(|prompt| {
            let words = Words::Messages(Message::list_from_json(prompt.messages.clone()).unwrap());
            let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
            let read = reader.read(&words, &[], &images(), &options).unwrap();
            let input = Arc::new(Input::prepare(&model, &read).unwrap());
            Sample { input, tokens: prompt.completion_ids.clone(), old: Vec::new(), advantage: 1.0, part: 0 }
        });
        let samples = samples.collect();
        let folder = case.model().with_file_name("training");
        let lora = Lora::of(&model.config, &AdapterFile::open(&folder).unwrap()).unwrap();
        School { model, lora, samples, folder }
    }

    /// Gradients of Σ slope(sample, token) · logp, by name.
    fn gradients(&self, batches: &[Microbatch], slope: impl Fn(usize, usize) -> f64) -> Gradients {
        let backend = &*self.model.backend;
        let adapter = self.lora.adapter(backend, &self.model.config).unwrap();
        let mut gradients = Gradients::of_adapter(backend, &adapter).unwrap();
        let mut learner = Learner::new(self.model.clone()).unwrap();
        for batch in batches {
            let slopes = |reading: &pellucid::train::Reading| {
                let row = |(number, logp): (usize, &Vec<f64>)| {
                    (0..logp.len()).map(|token| slope(batch.samples().start + number, token)).collect()
                };
                Ok(reading.logp.iter().enumerate().map(row).collect())
            };
            learner.learn(&self.samples, batch, Some(&adapter), 1.0, slopes, &mut gradients).unwrap();
        }
        gradients
    }

    fn batches(&self, budget: usize) -> Vec<Microbatch> {
        packed(&self.samples, budget)
    }
}

fn packed(samples: &[Sample], budget: usize) -> Vec<Microbatch> {
    let mut prompt = 0;
    let lengths: Vec<Lengths> = samples
        .iter()
        .enumerate()
        .map(|(number, sample)| {
            if number > 0 && !Arc::ptr_eq(&samples[number - 1].input, &sample.input) {
                prompt += 1;
            }
            Lengths { prompt, prompt_tokens: sample.input.tokens().len(), tokens: sample.tokens.len() }
        })
        .collect();
    pack(&lengths, budget).unwrap()
}

fn fixture_slope(sample: usize, token: usize) -> f64 {
    (1.0 + 3.0 * sample as f64 + token as f64).sin() / 8.0
}

/// ‖a − b‖ / ‖b‖.
fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let far = square(&mut ours.iter().zip(theirs).map(|(a, b)| a - b));
    let far = (far / square(&mut theirs.iter().copied())).sqrt();
    if far.is_nan() { f64::INFINITY } else { far }
}

fn settings(objective: Objective, optimiser: OptimiserSettings) -> TrainSettings {
    TrainSettings { objective, optimiser, microbatch_tokens: 4096, updates: 1, keep_bytes: 0 }
}

fn objective() -> Objective {
    Objective {
        clip: Clip { low: 0.2, high: 0.2, dual: None },
        kl: None,
        aggregation: Aggregation::SeqMeanTokenMean,
        temperature: 1.0,
    }
}

/// The whole walk in f64 against central differences, over prompts that are shared and a temperature.
#[test]
fn a_whole_model_agrees_with_central_differences() {
    for name in ["qwen3", "qwen2_5_vl"] {
        let case = Case::read(name);
        let backend: Arc<dyn Backend> = Arc::new(Plain::<f64>::default());
        let mut school = School::new(&case, backend.clone(), Dtype::F32);
        let last = school.samples.pop().unwrap();
        let second = Sample { tokens: last.tokens.iter().rev().copied().collect(), ..last.clone() };
        school.samples = vec![last, second];
        let batches = school.batches(4096);
        let loss = |lora: &Lora| -> f64 {
            let adapter = lora.adapter(&*backend, &school.model.config).unwrap();
            let mut learner = Learner::new(school.model.clone()).unwrap();
            let logp = learner.read(&school.samples, &batches[0], Some(&adapter), 1.0).unwrap().logp;
            let rows = logp.iter().enumerate();
            rows.map(|(i, row)| row.iter().enumerate().map(|(t, l)| fixture_slope(i, t) * l).sum::<f64>())
                .sum()
        };
        let gradients = school.gradients(&batches, fixture_slope);
        let gradients: Vec<Vec<f64>> = gradients.tensors().iter().map(|tensor| tensor.to_f64()).collect();
        // One element of every matrix, a different one each.
        for (number, (name, gradient)) in school.lora.names().iter().zip(&gradients).enumerate() {
            let element = number * 37 % gradient.len();
            let moved = |by: f32| {
                let mut lora = school.lora.clone();
                let mut tensors: Vec<Tensor> = lora.tensors().cloned().collect();
                let mut values = tensors[number].as_slice::<f32>().unwrap().to_vec();
                values[element] += by;
                tensors[number] = Tensor::from_slice(tensors[number].shape(), &values).unwrap();
                lora.replace(tensors).unwrap();
                (loss(&lora), f64::from(values[element]))
            };
            let ((up, above), (down, below)) = (moved(1e-3), moved(-1e-3));
            let slope = (up - down) / (above - below);
            let far = (slope - gradient[element]).abs();
            assert!(far <= 1e-5 * slope.abs() + 1e-7, "{name}[{element}]: {} for {slope}", gradient[element]);
        }
    }
}

/// Three completions of each prompt, the first in full.
fn groups(school: &School) -> Vec<Sample> {
    let cut = |sample: &Sample, at: usize| Sample { tokens: sample.tokens[at..].to_vec(), ..sample.clone() };
    school.samples.iter().flat_map(|sample| [cut(sample, 0), cut(sample, 2), cut(sample, 1)]).collect()
}

/// The promise: what a trainer reads is what the engine scores, bit for bit, with prompts shared or not, in microbatches of any size.
#[test]
fn log_probs_are_the_engines() {
    for (name, dtype) in [("qwen3", Dtype::F32), ("qwen2_5_vl", Dtype::BF16), ("internvl3", Dtype::BF16)] {
        let mut school = School::new(&Case::read(name), cpu(), dtype);
        school.samples = groups(&school);
        let adapter = school.lora.adapter(&*school.model.backend, &school.model.config).unwrap();
        let mut learner = Learner::new(school.model.clone()).unwrap();
        for (adapter, temperature) in [(Some(&adapter), 1.0), (Some(&adapter), 0.7), (None, 1.0)] {
            let requests: Vec<ScoreRequest> = school
                .samples
                .iter()
                .map(|sample| {
                    ScoreRequest::new(&school.model, sample.input.clone(), sample.tokens.clone()).unwrap()
                })
                .collect();
            let scores = score(&school.model, adapter, &requests, temperature, 100).unwrap();
            let longest =
                school.samples.iter().map(|s| s.input.tokens().len() + s.tokens.len()).max().unwrap();
            for budget in [longest, 2 * longest, 10_000] {
                for batch in school.batches(budget) {
                    let reading = learner.read(&school.samples, &batch, adapter, temperature).unwrap();
                    for (number, logp) in batch.samples().zip(&reading.logp) {
                        let scored: Vec<f64> = scores[number].logprobs.iter().map(|&l| l.into()).collect();
                        assert_eq!(*logp, scored, "{name} sample {number}, {budget} tokens a pass");
                    }
                }
            }
        }
    }
}

/// A shared prompt is computed once and its gradient is the sum; microbatches add up to the batch.
#[test]
fn gradients_do_not_depend_on_packing() {
    let mut school = School::new(&Case::read("qwen2_5_vl"), cpu(), Dtype::F32);
    school.samples = groups(&school);
    let together = school.batches(10_000);
    assert_eq!(together.len(), 1);
    let whole = school.gradients(&together, fixture_slope);
    let longest = school.samples.iter().map(|s| s.input.tokens().len() + s.tokens.len()).max().unwrap();
    let small = school.batches(longest);
    assert!(small.len() > 3);
    let apart: Vec<Microbatch> = (0..school.samples.len())
        .map(|number| {
            let sample = &school.samples[number];
            let tokens = sample.input.tokens().len() + sample.tokens.len() - 1;
            Microbatch::of(number..number + 1, tokens)
        })
        .collect();
    let tokens = |batches: &[Microbatch]| batches.iter().map(|batch| batch.tokens).sum::<usize>();
    assert!(tokens(&apart) > 2 * tokens(&together), "{} and {}", tokens(&apart), tokens(&together));
    for batches in [small, apart] {
        let parts = school.gradients(&batches, fixture_slope);
        for ((name, ours), theirs) in school.lora.names().iter().zip(parts.tensors()).zip(whole.tensors()) {
            let far = distance(&ours.to_f64(), &theirs.to_f64());
            assert!(far < 1e-6, "{name}: off by {far:e}");
        }
    }
}

/// At the size the promise is made for: 600 tokens before eight completions of 200.
#[test]
fn a_long_prompt_is_computed_once_for_its_group() {
    let case = Case::read("qwen3");
    let mut school = School::new(&case, cpu(), Dtype::F32);
    let reader =
        Reader::open(&ModelFolder::at(case.model()), &school.model.config, ImageOptions::default()).unwrap();
    let vocab = school.model.config.decoder.vocab as u32;
    let drawn = |count: u32, from: u32| (0..count).map(|at| (at * at + from) % vocab).collect::<Vec<_>>();
    let words = Words::Ids(drawn(600, 1));
    let read = reader.read(&words, &[], Path::new(""), &RenderOptions::default()).unwrap();
    let input = Arc::new(Input::prepare(&school.model, &read).unwrap());
    let sample = |member: u32| Sample {
        input: input.clone(),
        tokens: drawn(200, 31 * member),
        old: Vec::new(),
        advantage: 1.0,
        part: 0,
    };
    school.samples = (1..=8).map(sample).collect();
    let together = school.batches(10_000);
    let apart: Vec<Microbatch> = (0..8).map(|number| Microbatch::of(number..number + 1, 799)).collect();
    let tokens = |batches: &[Microbatch]| batches.iter().map(|batch| batch.tokens).sum::<usize>();
    assert_eq!((together.len(), tokens(&together), tokens(&apart)), (1, 600 + 8 * 199, 8 * 799));
    assert!(tokens(&apart) as f64 >= 2.5 * tokens(&together) as f64);
    let [whole, parts] = [together, apart].map(|batches| school.gradients(&batches, fixture_slope));
    for ((name, ours), theirs) in school.lora.names().iter().zip(whole.tensors()).zip(parts.tensors()) {
        let far = distance(&ours.to_f64(), &theirs.to_f64());
        assert!(far < 1e-6, "{name}: off by {far:e}");
    }
}

/// Samples as a sampler gives them: with its log-probs, graded.
fn graded(school: &School) -> Vec<Sample> {
    let adapter = school.lora.adapter(&*school.model.backend, &school.model.config).unwrap();
    let samples = groups(school);
    let request = |sample: &Sample| {
        ScoreRequest::new(&school.model, sample.input.clone(), sample.tokens.clone()).unwrap()
    };
    let requests: Vec<ScoreRequest> = samples.iter().map(request).collect();
    let scores = score(&school.model, Some(&adapter), &requests, 1.0, 4096).unwrap();
    let old = samples.into_iter().zip(scores).enumerate();
    old.map(|(number, (sample, score))| Sample {
        old: score.logprobs,
        advantage: [1.0, -0.4, -0.6][number % 3],
        ..sample
    })
    .collect()
}

fn reinforce() -> TrainSettings {
    let kl = Some((Kl::K3, 0.04));
    let optimiser =
        OptimiserSettings { learning_rate: 1e-3, warmup_steps: 2, ..OptimiserSettings::default() };
    TrainSettings {
        updates: 2,
        microbatch_tokens: 300,
        ..settings(Objective { kl, ..objective() }, optimiser)
    }
}

#[test]
fn completions_with_better_rewards_become_likelier() {
    let school = School::new(&Case::read("qwen2_5_vl"), cpu(), Dtype::BF16);
    let samples = graded(&school);
    let mut trainer = Trainer::new(school.model.clone(), school.lora.clone(), reinforce()).unwrap();
    let first = trainer.step(&samples).unwrap();
    assert_eq!(first.len(), 2);
    assert_eq!(first[0].sampling_difference, 0.0, "the sampler's log-probs are ours");
    assert_eq!(first[0].clip_fraction, 0.0, "the ratio is 1");
    assert!(first[0].kl > 0.0 && first[0].entropy > 0.0 && first[0].grad_norm > 0.0, "{first:?}");
    assert!(first[1].sampling_difference > 0.0, "the first update moved nothing");
    for _ in 0..10 {
        trainer.step(&samples).unwrap();
    }
    let adapter = trainer.adapter();
    let mut learner = Learner::new(school.model.clone()).unwrap();
    let batches = packed(&samples, 10_000);
    let now = learner.read(&samples, &batches[0], Some(&adapter), 1.0).unwrap().logp;
    for (sample, now) in samples.iter().zip(now) {
        let change = now.iter().sum::<f64>() - sample.old.iter().map(|&old| f64::from(old)).sum::<f64>();
        assert!(change * sample.advantage > 0.0, "advantage {}, change {change}", sample.advantage);
    }
}

/// The reference reads as the engine scores without an adapter; a reward loses what the policy has moved from it.
#[test]
fn rewards_are_shaped_by_the_reference() {
    let school = School::new(&Case::read("qwen2_5_vl"), cpu(), Dtype::BF16);
    let samples = graded(&school);
    let mut trainer = Trainer::new(school.model.clone(), school.lora.clone(), reinforce()).unwrap();
    let reference = trainer.reference_logprobs(&samples).unwrap();
    let request = |sample: &Sample| {
        ScoreRequest::new(&school.model, sample.input.clone(), sample.tokens.clone()).unwrap()
    };
    let requests: Vec<ScoreRequest> = samples.iter().map(request).collect();
    let temperature = reinforce().objective.temperature;
    let scores = score(&school.model, None, &requests, temperature, 4096).unwrap();
    for ((sample, reference), score) in samples.iter().zip(&reference).zip(scores) {
        assert_eq!(*reference, score.logprobs);
        let tokens = || sample.old.iter().zip(reference).map(|(&a, &b)| f64::from(a) - f64::from(b));
        for (kind, sum) in [
            (Kl::K1, tokens().sum::<f64>()),
            (Kl::K2, tokens().map(|d| d * d / 2.0).sum()),
            (Kl::K3, tokens().map(|d| (-d).exp() + d - 1.0).sum()),
        ] {
            let shaped = shape_reward(1.0, &sample.old, reference, (kind, 0.25)).unwrap();
            assert!((shaped - (1.0 - 0.25 * sum)).abs() < 1e-12, "{kind:?}: {shaped}");
            assert!(sum != 0.0, "the adapter changes nothing");
        }
    }
}

/// Two parts in one step: at ratio 1 a token loses its advantage, and each part's mean counts in full.
#[test]
fn parts_of_a_step_add_up() {
    let school = School::new(&Case::read("qwen2"), cpu(), Dtype::F32);
    let mut samples = graded(&school);
    let aggregation = Aggregation::TokenMeanGlobal;
    let settings = TrainSettings {
        microbatch_tokens: 300,
        ..settings(Objective { kl: None, aggregation, ..objective() }, OptimiserSettings::default())
    };
    let step = |samples: &[Sample]| {
        let mut trainer = Trainer::new(school.model.clone(), school.lora.clone(), settings.clone()).unwrap();
        trainer.step(samples).unwrap().remove(0)
    };
    for (number, sample) in samples.iter_mut().enumerate() {
        sample.part = u32::from(number % 4 == 1);
    }
    let expected: f64 = [0, 1]
        .map(|part| {
            let mine = || samples.iter().filter(|sample| sample.part == part);
            let lost: f64 = mine().map(|sample| -sample.advantage * sample.tokens.len() as f64).sum();
            lost / mine().map(|sample| sample.tokens.len()).sum::<usize>() as f64
        })
        .iter()
        .sum();
    let stats = step(&samples);
    assert!(stats.microbatches > 1);
    assert!((stats.loss - expected).abs() < 1e-12, "{} for {expected}", stats.loss);
    let apart = [0, 1].map(|part| {
        let mine: Vec<Sample> = samples.iter().filter(|sample| sample.part == part).cloned().collect();
        step(&mine).loss
    });
    assert!((stats.loss - apart[0] - apart[1]).abs() < 1e-12, "{} for {apart:?}", stats.loss);
}

#[test]
fn a_run_that_is_interrupted_goes_on_bit_for_bit() {
    let school = School::new(&Case::read("qwen3"), cpu(), Dtype::BF16);
    let samples = graded(&school);
    let start = || Trainer::new(school.model.clone(), school.lora.clone(), reinforce()).unwrap();
    let tensors = |trainer: &Trainer| -> Vec<Vec<u8>> {
        trainer.lora().unwrap().tensors().map(|tensor| tensor.bytes().to_vec()).collect()
    };
    let mut straight = start();
    let mut expected: Vec<_> = (0..6).map(|_| straight.step(&samples).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = start();
    for step in 1..=3 {
        trainer.step(&samples).unwrap();
        save(&trainer, &[], folder.path(), step, 2, &serde_json::json!({"cursor": step})).unwrap();
    }
    drop(trainer);
    let names = |folder: &Path| {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(folder.path()), ["checkpoint-2", "checkpoint-3"]);

    // A damaged checkpoint is passed over, and said.
    let damaged = folder.path().join("checkpoint-3/adapter_model.safetensors");
    let mut bytes = std::fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, &bytes).unwrap();
    std::fs::create_dir(folder.path().join("checkpoint-9")).unwrap();
    let mut warnings = Vec::new();
    let found = Saved::latest(folder.path(), |warning| warnings.push(warning.to_owned())).unwrap().unwrap();
    assert!(found.folder().ends_with("checkpoint-2"), "{found:?}");
    assert!(warnings[0].contains("checkpoint-9") && warnings[1].contains("checkpoint-3"), "{warnings:?}");
    assert_eq!(found.state.run["cursor"], 2);

    // A digit of the state that is another one is found out, too.
    let path = found.folder().join("trainer_state.json");
    let state = std::fs::read_to_string(&path).unwrap();
    assert!(state.contains("\"taken\": 4"), "{state}");
    std::fs::write(&path, state.replace("\"taken\": 4", "\"taken\": 3")).unwrap();
    let refused = Saved::open(found.folder()).unwrap_err().to_string();
    assert!(refused.contains("trainer_state.json") && refused.contains("not what was written"), "{refused}");
    std::fs::write(&path, state).unwrap();
    assert!(Saved::open(found.folder()).is_ok());

    let mut resumed = found.trainer(school.model.clone(), reinforce()).unwrap();
    let rest: Vec<_> = (2..6).map(|_| resumed.step(&samples).unwrap()).collect();
    assert_eq!(rest, expected.split_off(2));
    assert_eq!(tensors(&resumed), tensors(&straight));
    assert_eq!(resumed.counts(), straight.counts());
}

#[test]
fn a_gradient_that_is_not_finite_moves_nothing_and_is_named() {
    let school = School::new(&Case::read("qwen2"), cpu(), Dtype::F32);
    let mut samples = graded(&school);
    let optimiser = OptimiserSettings { max_bad_steps: 2, ..OptimiserSettings::default() };
    let settings = settings(objective(), optimiser);
    let mut trainer = Trainer::new(school.model.clone(), school.lora.clone(), settings).unwrap();
    let before = trainer.adapter();
    samples[1].advantage = 1e300;
    let stats = trainer.step(&samples).unwrap().remove(0);
    let bad = stats.bad.expect("is named");
    let name = bad.strip_prefix("the gradient of ").unwrap();
    assert!(school.lora.names().iter().any(|known| known == name), "{name}");
    assert!(Arc::ptr_eq(&before, &trainer.adapter()));
    let stopped = trainer.step(&samples).unwrap_err().to_string();
    assert!(stopped.contains("2 steps in a row") && stopped.contains("lora_"), "{stopped}");
    samples[1].advantage = f64::NAN;
    let refused = trainer.step(&samples).unwrap_err().to_string();
    assert!(refused.contains("sample 1") && refused.contains("NaN"), "{refused}");
    samples.clear();
    assert!(trainer.step(&samples).unwrap_err().to_string().contains("no completions"));
}

/// Weights that ran away are finite, what they say is not.
#[test]
fn a_log_prob_that_is_not_finite_moves_nothing_and_is_named() {
    let school = School::new(&Case::read("qwen2"), cpu(), Dtype::F32);
    let optimiser =
        OptimiserSettings { learning_rate: 1e30, max_bad_steps: 2, ..OptimiserSettings::default() };
    let mut trainer =
        Trainer::new(school.model.clone(), school.lora.clone(), settings(objective(), optimiser)).unwrap();
    assert_eq!(trainer.supervise(&school.samples).unwrap().bad, None);
    let before = trainer.adapter();
    let bad = trainer.supervise(&school.samples).unwrap().bad;
    assert_eq!(bad.as_deref(), Some("a log-prob of completion 0"));
    assert!(Arc::ptr_eq(&before, &trainer.adapter()));
    let counts = trainer.counts();
    assert_eq!((counts.step, counts.taken, counts.bad_in_a_row), (2, 1, 1));
    let stopped = trainer.supervise(&school.samples).unwrap_err().to_string();
    assert!(stopped.contains("2 steps in a row") && stopped.contains("lower lr"), "{stopped}");
}

/// On a device the walk may err as plain arithmetic errs that rounds to bf16 where a device does, times two at most.
#[cfg(feature = "emu")]
#[test]
fn a_device_errs_no_more_than_plain_bf16() {
    use pellucid::backend::gpu::{Emulator, Gpu, Settings};
    for name in ["qwen2_5", "qwen3"] {
        let case = Case::read(name);
        let run = |backend: Arc<dyn Backend>, dtype| {
            let mut school = School::new(&case, backend, dtype);
            school.samples = groups(&school);
            let gradients = school.gradients(&school.batches(10_000), fixture_slope);
            let backend = &school.model.backend;
            let host = |tensor: &&Tensor| backend.download(tensor).unwrap().to_f64();
            let all: Vec<Vec<f64>> = gradients.tensors().iter().map(host).collect();
            (school.lora.names(), all)
        };
        let settings = Settings { checked: false, ..Settings::default() };
        let (names, device) = run(Arc::new(Gpu::new(Emulator::new(settings).unwrap())), Dtype::BF16);
        let (_, truth) = run(Arc::new(Plain::<f64>::default()), Dtype::BF16);
        let (_, plain) =
            run(Arc::new(narrow::Narrow { inner: Plain::<f32>::default(), out: Dtype::BF16 }), Dtype::BF16);
        for (((name, device), truth), plain) in names.iter().zip(&device).zip(&truth).zip(&plain) {
            let (ours, theirs) = (distance(device, truth), distance(plain, truth));
            assert!(ours <= 2.0 * theirs + 2e-3, "{name}: off by {ours:e}, plain bf16 by {theirs:e}");
        }
    }
}
