//! Equality with transformers on tiny random checkpoints, from messages and pictures to token ids, log-probs and
//! greedy text. The fixtures and how they were made are described in `tests/golden/README.md`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use pellucid::backend::{Backend, cpu::Cpu};
use pellucid::engine::{
    Completion, Finish, Generation, Input, PREFILL_CHUNK, Sampling, Score, ScoreRequest, generate, score,
};
use pellucid::format::adapter::Adapter;
use pellucid::format::{Checkpoint, ModelFolder};
use pellucid::model::Model;
use pellucid::prompt::image::Arithmetic;
use pellucid::prompt::message::Message;
use pellucid::prompt::reader::{ImageOptions, ReadPrompt, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::tensor::Dtype;
use std::{path::Path, sync::Arc};
use support::golden::{Case, Prompt, images};

const CASES: [&str; 9] = [
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

/// A model with its reader.
struct Loaded {
    model: Model,
    reader: Reader,
}

impl Loaded {
    fn new(case: &Case, backend: Arc<dyn Backend>, dtype: Dtype) -> Self {
        Self::at(&case.model(), backend, dtype, ImageOptions::default())
    }

    fn at(folder: &Path, backend: Arc<dyn Backend>, dtype: Dtype, images: ImageOptions) -> Self {
        let model = Model::load(folder, backend, Some(dtype)).unwrap();
        let reader = Reader::open(&ModelFolder::at(folder), &model.config, images).unwrap();
        Loaded { model, reader }
    }

    fn read(&self, prompt: &Prompt) -> ReadPrompt {
        let words = Words::Messages(Message::list_from_json(prompt.messages.clone()).unwrap());
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        self.reader.read(&words, &[], &images(), &options).unwrap()
    }

    fn request(&self, prompt: &Prompt) -> ScoreRequest {
        let input = Input::prepare(&self.model, &self.read(prompt)).unwrap();
        ScoreRequest::new(&self.model, input, prompt.completion_ids.clone()).unwrap()
    }

    fn score(&self, prompt: &Prompt) -> Score {
        score(&self.model, None, &[self.request(prompt)], 1.0, 4096).unwrap().remove(0)
    }
}

fn cpu() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(None).unwrap())
}

/// A backend, and the dtype of the weights on it.
type Place = (Arc<dyn Backend>, Dtype);

/// The CPU with weights of this dtype, and the emulated device with those it has.
fn everywhere(dtype: Dtype) -> Vec<Place> {
    let mut all = vec![(cpu(), dtype)];
    all.extend(emulated().map(|backend| (backend, Dtype::BF16)));
    all
}

#[cfg(feature = "emu")]
fn emulated() -> Option<Arc<dyn Backend>> {
    use pellucid::backend::gpu::{Emulator, Gpu, Settings};
    // What its checks find is found over ragged sizes in `tests/ops.rs`; here the numbers count.
    let settings = Settings { checked: false, ..Settings::default() };
    Some(Arc::new(Gpu::new(Emulator::new(settings).unwrap())))
}

/// Every case on every backend.
fn pairs(cases: impl IntoIterator<Item = Case>, places: Vec<Place>) -> Vec<(Case, Place)> {
    let each = |case: Case| places.iter().map(move |place| (case.clone(), place.clone())).collect::<Vec<_>>();
    cases.into_iter().flat_map(each).collect()
}

#[cfg(not(feature = "emu"))]
fn emulated() -> Option<Arc<dyn Backend>> {
    None
}

/// One row of numbers against another: the largest distance, and NaN is infinitely far.
fn distance(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let far = |(a, b): (&f32, &f64)| if a.is_nan() { f64::INFINITY } else { (f64::from(*a) - b).abs() };
    ours.iter().zip(theirs).map(far).fold(0.0, f64::max)
}

#[test]
fn prompts_have_the_ids_of_transformers() {
    for case in CASES.map(Case::read) {
        let loaded = Loaded::new(&case, cpu(), Dtype::F32);
        for prompt in &case.expected.prompts {
            assert_eq!(loaded.read(prompt).prompt.tokens, prompt.prompt_ids, "{} {}", case.name, prompt.name);
            let completion = loaded.reader.tokenizer().encode(&prompt.completion).unwrap();
            let (end, text) = prompt.completion_ids.split_last().unwrap();
            assert_eq!(completion, text, "{} {}", case.name, prompt.name);
            assert!(case.end_tokens().contains(end), "{} {}", case.name, prompt.name);
        }
    }
}

#[test]
fn f32_logprobs_and_entropies_are_those_of_transformers() {
    for case in CASES.map(Case::read) {
        for backend in [cpu(), Arc::new(Cpu::oracle())] {
            let loaded = Loaded::new(&case, backend, Dtype::F32);
            for prompt in &case.expected.prompts {
                let scored = loaded.score(prompt);
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
    for (case, (backend, dtype)) in pairs(CASES.map(Case::read), everywhere(Dtype::BF16)) {
        let loaded = Loaded::new(&case, backend, dtype);
        for prompt in &case.expected.prompts {
            let truth = &prompt.logprobs.bf16_truth;
            let theirs: Vec<f32> = prompt.logprobs.bf16.iter().map(|&l| l as f32).collect();
            let (ours, theirs) = (distance(&loaded.score(prompt).logprobs, truth), distance(&theirs, truth));
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
    for (case, (backend, dtype)) in pairs(CASES.map(Case::read), everywhere(Dtype::F32)) {
        let loaded = Loaded::new(&case, backend, dtype);
        let end_tokens = case.end_tokens();
        for prompt in &case.expected.prompts {
            let greedy = &prompt.greedy;
            let input = Arc::new(Input::prepare(&loaded.model, &loaded.read(prompt)).unwrap());
            let sampling = Sampling { temperature: 0.0, max_tokens: greedy.ids.len(), ..Sampling::default() };
            let with = Generation {
                model: &loaded.model,
                tokenizer: loaded.reader.tokenizer(),
                adapter: None,
                end_tokens: &end_tokens,
            };
            let mut shown = String::new();
            let completion = generate(with, &input, &sampling, |text| {
                shown.push_str(text);
                Ok(())
            })
            .unwrap();
            let finish = if greedy.finish_reason == "stop" { Finish::Stop } else { Finish::Length };
            let name = format!("{} {}", case.name, prompt.name);
            if dtype == Dtype::F32 {
                assert_eq!(completion.tokens, greedy.ids, "{name}");
            }
            match completion.tokens == greedy.ids {
                true => assert_eq!((&completion.text, completion.finish), (&greedy.text, finish), "{name}"),
                false => differs_at_a_near_tie(&loaded, prompt, &input, &completion),
            }
            assert_eq!(shown, completion.text, "{name}");

            // The promise: what the sampler records is what scoring the same tokens gives, bit for bit.
            let request = ScoreRequest::new(&loaded.model, input, completion.tokens).unwrap();
            let scored = score(&loaded.model, None, &[request], 1.0, 4096).unwrap().remove(0);
            assert_eq!(scored.logprobs, completion.logprobs, "{} {}", case.name, prompt.name);
            assert!(scored.greedy.iter().all(|&greedy| greedy), "{} {}", case.name, prompt.name);
        }
    }
}

/// In bf16 the likeliest token may be another where two are as good as equally likely: by no more than bf16 errs.
fn differs_at_a_near_tie(loaded: &Loaded, prompt: &Prompt, input: &Arc<Input>, completion: &Completion) {
    let ids = &prompt.greedy.ids;
    let at = completion.tokens.iter().zip(ids).position(|(ours, theirs)| ours != theirs).unwrap();
    let request = ScoreRequest::new(&loaded.model, input.clone(), ids[..=at].to_vec()).unwrap();
    let theirs = score(&loaded.model, None, &[request], 1.0, 4096).unwrap().remove(0).logprobs[at];
    let gap = f64::from(completion.logprobs[at] - theirs);
    let bf16: Vec<f32> = prompt.logprobs.bf16.iter().map(|&logp| logp as f32).collect();
    // Both tokens may be off, each by as much as is allowed for one.
    let allowed = 2.0 * 3.0 * distance(&bf16, &prompt.logprobs.bf16_truth);
    assert!(
        (0.0..=allowed).contains(&gap),
        "{}: token {at} differs by {gap:e}, allowed {allowed:e}",
        prompt.name
    );
}

/// The promise where it is hardest to keep: drawn at a temperature, with pictures and an adapter, behind a prompt
/// of several chunks of prefill and splits of the attention, scored in chunks of another size.
#[test]
fn sampled_logprobs_are_the_scored_ones_behind_long_prompts() {
    let dtypes = [Dtype::F32, Dtype::BF16].into_iter().cycle();
    let on_cpu = CASES.map(Case::read).into_iter().zip(dtypes).map(|(case, dtype)| (case, (cpu(), dtype)));
    let emulated = emulated().map(|backend| (Case::read("qwen2_5_vl"), (backend, Dtype::BF16)));
    for (case, (backend, dtype)) in on_cpu.chain(emulated) {
        let loaded = Loaded::new(&case, backend, dtype);
        let adapter = case.adapter().exists().then(|| Adapter::open(&case.adapter()).unwrap());
        let adapter = adapter.map(|file| Arc::new(loaded.model.adapter(&file).unwrap()));
        let prompt = case.expected.prompts.last().unwrap();
        let mut read = loaded.read(prompt);
        read.prompt.tokens.extend((1..200).cycle().take(PREFILL_CHUNK + 100));
        let input = Arc::new(Input::prepare(&loaded.model, &read).unwrap());
        let sampling =
            Sampling { temperature: 0.7, max_tokens: 40, ignore_eos: true, seed: 5, ..Sampling::default() };
        let with = Generation {
            model: &loaded.model,
            tokenizer: loaded.reader.tokenizer(),
            adapter: adapter.as_ref(),
            end_tokens: &[],
        };
        let completion = generate(with, &input, &sampling, |_| Ok(())).unwrap();
        let request = ScoreRequest::new(&loaded.model, input, completion.tokens).unwrap();
        let scored = score(&loaded.model, adapter.as_deref(), &[request], 0.7, 300).unwrap().remove(0);
        assert_eq!(scored.logprobs, completion.logprobs, "{} {dtype}", case.name);
        assert!(scored.greedy.contains(&false), "{}: nothing was drawn", case.name);
    }
}

/// Neither the neighbours in a batch nor the size of a pass change a bit of a score.
#[test]
fn scores_do_not_depend_on_the_batch_or_the_chunking() {
    for (case, (backend, dtype)) in pairs(CASES.map(Case::read), everywhere(Dtype::BF16)) {
        let loaded = Loaded::new(&case, backend, dtype);
        let prompts = &case.expected.prompts;
        let alone: Vec<Score> = prompts.iter().map(|prompt| loaded.score(prompt)).collect();
        for budget in [3, 7, 64, 4096] {
            let requests: Vec<ScoreRequest> = prompts.iter().map(|prompt| loaded.request(prompt)).collect();
            let together = score(&loaded.model, None, &requests, 1.0, budget).unwrap();
            assert_eq!(together, alone, "{} with passes of {budget}", case.name);
        }
    }
}

/// Other writers' configs, file layouts and tensor names hold the same model.
#[test]
fn variants_are_the_same_models() {
    let scratch = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for case in CASES.map(Case::read) {
        for (variant, folder) in case.variants(scratch.path()) {
            // InternVL's authors resize with Pillow; what is expected here comes from transformers.
            let images = ImageOptions { arithmetic: Some(Arithmetic::Torch), ..ImageOptions::default() };
            let loaded = Loaded::at(&folder, cpu(), Dtype::F32, images);
            for prompt in &case.expected.prompts {
                let name = format!("{} as {variant}: {}", case.name, prompt.name);
                assert_eq!(loaded.read(prompt).prompt.tokens, prompt.prompt_ids, "{name}");
                let far = distance(&loaded.score(prompt).logprobs, &prompt.logprobs.f32);
                assert!(far <= 1e-4, "{name}: log-probs differ by {far:e}");
            }
            seen += 1;
        }
    }
    assert!(seen >= CASES.len(), "only {seen} variants");
}

/// Settings and names change hands independently: transformers 5 saves its config beside the names it loaded.
#[test]
fn a_new_config_beside_old_names_is_the_same_model() {
    let scratch = tempfile::tempdir().unwrap();
    for case in CASES.map(Case::read) {
        let mut variants = case.variants(scratch.path()).into_iter();
        let (_, folder) = variants.find(|(variant, _)| variant == "transformers5").unwrap();
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        for file in std::fs::read_dir(case.model()).unwrap().map(|entry| entry.unwrap()) {
            if file.file_name().to_string_lossy().contains(".safetensors") {
                std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
        let mixed = Loaded::at(&folder, cpu(), Dtype::BF16, ImageOptions::default());
        let plain = Loaded::new(&case, cpu(), Dtype::BF16);
        for prompt in &case.expected.prompts {
            assert_eq!(mixed.score(prompt), plain.score(prompt), "{} {}", case.name, prompt.name);
        }
    }
}

#[test]
fn adapters_give_the_logprobs_of_peft() {
    let mut seen = 0;
    for case in CASES.map(Case::read) {
        for (backend, dtype) in [(cpu(), Dtype::F32)].into_iter().chain(everywhere(Dtype::BF16)) {
            let allowed = (dtype == Dtype::BF16).then_some(3.0);
            let loaded = Loaded::new(&case, backend, dtype);
            for prompt in &case.expected.prompts {
                let Some(expected) = &prompt.adapter_logprobs else { continue };
                let adapter = loaded.model.adapter(&Adapter::open(&case.adapter()).unwrap()).unwrap();
                let request = [loaded.request(prompt)];
                let scored = score(&loaded.model, Some(&adapter), &request, 1.0, 4096).unwrap().remove(0);
                let (truth, limit) = match allowed {
                    None => (&expected.f32, 1e-4),
                    Some(factor) => {
                        let theirs: Vec<f32> = expected.bf16.iter().map(|&logp| logp as f32).collect();
                        (&expected.bf16_truth, factor * distance(&theirs, &expected.bf16_truth))
                    }
                };
                let far = distance(&scored.logprobs, truth);
                assert!(far <= limit, "{} {} {dtype}: off by {far:e}", case.name, prompt.name);
                let base = distance(&loaded.score(prompt).logprobs, truth);
                assert!(base > 0.1, "{} {}: the adapter changes next to nothing", case.name, prompt.name);
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

/// Every tensor of every fixture has its place.
#[test]
fn surveys_find_nothing_missing_and_nothing_surplus() {
    for case in CASES.map(Case::read) {
        let folder = ModelFolder::at(case.model());
        let survey =
            Model::survey(&folder.config().unwrap(), &Checkpoint::open(folder.path()).unwrap(), &*cpu())
                .unwrap();
        assert_eq!(survey, pellucid::model::Survey::default(), "{}", case.name);
    }
}

/// A head beside a config that calls it tied is used all the same, as transformers does.
#[test]
fn a_head_in_the_file_wins_over_tying() {
    let case = Case::read("qwen2_5");
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(case.model()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(case.model().join("config.json")).unwrap();
    let untied = "\"tie_word_embeddings\": false";
    assert!(config.contains(untied));
    std::fs::write(
        folder.path().join("config.json"),
        config.replace(untied, "\"tie_word_embeddings\": true"),
    )
    .unwrap();
    let loaded = Loaded::at(folder.path(), cpu(), Dtype::F32, ImageOptions::default());
    for prompt in &case.expected.prompts {
        let far = distance(&loaded.score(prompt).logprobs, &prompt.logprobs.f32);
        assert!(far <= 1e-4, "{}: log-probs differ by {far:e}", prompt.name);
    }
}

/// A checkpoint of another shape than its config says is refused by the name of the first tensor that differs.
#[test]
fn a_config_that_lies_about_the_weights_is_refused() {
    let case = Case::read("qwen2");
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(case.model().join("config.json")).unwrap();
    std::fs::copy(case.model().join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(config.contains(from));
        std::fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        let error = Model::load(folder.path(), cpu(), None).unwrap_err().to_string();
        assert!(Path::new(&error).starts_with(folder.path()), "{error}");
        error
    };
    let error = refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(error.contains("tensor model.layers.2.") && error.contains("missing"), "{error}");
    let error = refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert!(error.contains("tensor model.layers.1.") && error.contains("more: no place"), "{error}");
    let error = refused("\"vocab_size\": 384", "\"vocab_size\": 385");
    assert!(error.contains("embed_tokens.weight: expected shape [385"), "{error}");
}
