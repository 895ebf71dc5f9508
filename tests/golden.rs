//! Equality with transformers on tiny random checkpoints: log-probs, logits, greedy text. The fixtures and how
//! they were made are described in `tests/golden/README.md`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use pellucid::backend::{Backend, cpu::Cpu};
use pellucid::engine::{Finish, Generation, Input, Sampling, ScoreRequest, generate, score};
use pellucid::model::Model;
use pellucid::prompt::tokenizer::Tokenizer;
use pellucid::tensor::Dtype;
use std::sync::Arc;
use support::golden::{Case, Prompt};

const TEXT: [&str; 5] = ["qwen2", "qwen2_5", "qwen3", "llama3", "smollm2"];

/// One row of numbers against another: the largest distance, and NaN is infinitely far.
fn distance(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let far = |(a, b): (&f32, &f64)| if a.is_nan() { f64::INFINITY } else { (f64::from(*a) - b).abs() };
    ours.iter().zip(theirs).map(far).fold(0.0, f64::max)
}

fn scored(model: &Model, prompt: &Prompt) -> pellucid::engine::Score {
    let input = Input::prepare(model, prompt.prompt_ids.clone(), &[]).unwrap();
    let request = ScoreRequest { input, completion: prompt.completion_ids.clone() };
    score(model, None, &[request], 1.0, 4096).unwrap().remove(0)
}

fn load(case: &Case, backend: Arc<dyn Backend>, dtype: Dtype) -> Model {
    Model::load(&case.model(), backend, Some(dtype)).unwrap()
}

fn cpu() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(None).unwrap())
}

#[test]
fn f32_logprobs_and_entropies_are_those_of_transformers() {
    for case in TEXT.map(Case::read) {
        for backend in [cpu(), Arc::new(Cpu::oracle())] {
            let model = load(&case, backend, Dtype::F32);
            for prompt in &case.expected.prompts {
                let scored = scored(&model, prompt);
                let far = distance(&scored.logprobs, &prompt.logprobs.f32);
                assert!(far <= 1e-4, "{} {}: log-probs differ by {far:e}", case.name, prompt.name);
                let far = distance(&scored.entropy, &prompt.entropy);
                assert!(far <= 1e-4, "{} {}: entropies differ by {far:e}", case.name, prompt.name);
            }
        }
    }
}

/// bf16 may err as transformers errs in bf16, times three at most; both against the same weights in f32.
#[test]
fn bf16_logprobs_err_no_more_than_three_times_as_much_as_transformers() {
    for case in TEXT.map(Case::read) {
        let model = load(&case, cpu(), Dtype::BF16);
        for prompt in &case.expected.prompts {
            let truth = &prompt.logprobs.bf16_truth;
            let theirs: Vec<f32> = prompt.logprobs.bf16.iter().map(|&l| l as f32).collect();
            let (ours, theirs) =
                (distance(&scored(&model, prompt).logprobs, truth), distance(&theirs, truth));
            assert!(
                ours <= 3.0 * theirs,
                "{} {}: off by {ours:e}, theirs {theirs:e}",
                case.name,
                prompt.name
            );
        }
    }
}

#[test]
fn greedy_tokens_and_text_are_those_of_transformers() {
    for case in TEXT.map(Case::read) {
        let model = load(&case, cpu(), Dtype::F32);
        let tokenizer = Tokenizer::load(case.model().join("tokenizer.json")).unwrap();
        for prompt in &case.expected.prompts {
            let input = Input::prepare(&model, prompt.prompt_ids.clone(), &[]).unwrap();
            let greedy = &prompt.greedy;
            let sampling = Sampling { temperature: 0.0, max_tokens: greedy.ids.len(), ..Sampling::default() };
            let end_tokens = case.end_tokens();
            let with = Generation {
                model: &model,
                tokenizer: &tokenizer,
                adapter: None,
                end_tokens: &end_tokens,
                logprobs: true,
            };
            let mut shown = String::new();
            let completion = generate(with, &input, &sampling, |text| {
                shown.push_str(text);
                Ok(())
            })
            .unwrap();
            assert_eq!(completion.tokens, greedy.ids, "{} {}", case.name, prompt.name);
            assert_eq!(
                (&completion.text, &shown),
                (&greedy.text, &greedy.text),
                "{} {}",
                case.name,
                prompt.name
            );
            let finish = if greedy.finish_reason == "stop" { Finish::Stop } else { Finish::Length };
            assert_eq!(completion.finish, finish);

            // The promise: what the sampler records is what scoring the same tokens gives, bit for bit.
            let request = ScoreRequest { input, completion: completion.tokens.clone() };
            let scored = score(&model, None, &[request], 1.0, 4096).unwrap().remove(0);
            assert_eq!(scored.logprobs, completion.logprobs, "{} {}", case.name, prompt.name);
            assert!(scored.greedy.iter().all(|&greedy| greedy), "{} {}", case.name, prompt.name);
        }
    }
}

/// Neither the neighbours in a batch nor the size of a pass change a bit of a score.
#[test]
fn scores_do_not_depend_on_the_batch_or_the_chunking() {
    for case in TEXT.map(Case::read) {
        let model = load(&case, cpu(), Dtype::BF16);
        let alone: Vec<_> = case.expected.prompts.iter().map(|prompt| scored(&model, prompt)).collect();
        let requests = || {
            let request = |prompt: &Prompt| ScoreRequest {
                input: Input::prepare(&model, prompt.prompt_ids.clone(), &[]).unwrap(),
                completion: prompt.completion_ids.clone(),
            };
            case.expected.prompts.iter().map(request).collect::<Vec<_>>()
        };
        for budget in [3, 7, 64, 4096] {
            let together = score(&model, None, &requests(), 1.0, budget).unwrap();
            assert_eq!(together, alone, "{} with passes of {budget}", case.name);
        }
    }
}
