//! The engine on tiny models: what a request gets does not depend on what else is going on, and pages are kept in
//! order whatever happens.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "engine/random.rs"]
mod random;
mod support;

use pellucid::backend::{Backend, cpu::Cpu};
use pellucid::engine::{
    Completion, Engine, Event, Features, Finish, Generation, Input, Limits, Published, Request, Sampling,
    ScoreRequest, Ticket, generate, score,
};
use pellucid::format::{ModelFolder, adapter::Adapter as AdapterFile};
use pellucid::model::{Adapter, Model, PAGE};
use pellucid::prompt::expand::Prompt;
use pellucid::prompt::message::Message;
use pellucid::prompt::reader::{ImageOptions, ReadPrompt, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::tensor::Dtype;
use std::{collections::BTreeMap, sync::Arc};
use support::golden::{Case, images};

struct World {
    case: Case,
    model: Model,
    reader: Reader,
}

impl World {
    fn open(name: &'static str, backend: Arc<dyn Backend>) -> Self {
        let case = Case::read(name);
        let model = Model::load(&case.model(), backend, Some(Dtype::BF16)).unwrap();
        let folder = ModelFolder::at(case.model());
        let reader = Reader::open(&folder, &model.config, ImageOptions::default()).unwrap();
        World { case, model, reader }
    }

    fn engine(&self, limits: Limits) -> Engine<'_> {
        Engine::new(&self.model, self.reader.tokenizer(), &[], limits).unwrap()
    }

    /// A prompt of plain tokens.
    fn tokens(&self, tokens: Vec<u32>) -> Arc<Input> {
        let prompt = Prompt { tokens, spans: Vec::new() };
        let read = ReadPrompt { prompt, images: Vec::new() };
        Arc::new(Input::prepare(&self.model, &read).unwrap())
    }

    /// A prompt of the fixtures, pictures and all, followed by `more` tokens.
    fn prompt(&self, number: usize, more: &[u32]) -> Arc<Input> {
        let messages = self.case.expected.prompts[number].messages.clone();
        let words = Words::Messages(Message::list_from_json(messages).unwrap());
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let mut read = self.reader.read(&words, &[], &images(), &options).unwrap();
        read.prompt.tokens.extend(more);
        Arc::new(Input::prepare(&self.model, &read).unwrap())
    }

    fn adapter(&self) -> Arc<Adapter> {
        Arc::new(self.model.adapter(&AdapterFile::open(&self.case.adapter()).unwrap()).unwrap())
    }

    /// The same completion with nothing beside it.
    fn alone(&self, input: &Arc<Input>, sampling: &Sampling, adapter: Option<&Arc<Adapter>>) -> Completion {
        let tokenizer = self.reader.tokenizer();
        let with = Generation { model: &self.model, tokenizer, adapter, end_tokens: &[] };
        generate(with, input, sampling, |_| Ok(())).unwrap()
    }
}

fn cpu() -> Arc<dyn Backend> {
    cpu_of(2)
}

fn cpu_of(threads: usize) -> Arc<dyn Backend> {
    Arc::new(Cpu::new(Some(threads)).unwrap())
}

/// The backends an engine has to behave the same on.
fn backends() -> Vec<Arc<dyn Backend>> {
    #[cfg(feature = "emu")]
    {
        use pellucid::backend::gpu::{Emulator, Gpu, Settings};
        let settings = Settings { checked: false, ..Settings::default() };
        vec![cpu(), Arc::new(Gpu::new(Emulator::new(settings).unwrap()))]
    }
    #[cfg(not(feature = "emu"))]
    vec![cpu()]
}

fn drawn(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, temperature: 0.8, ignore_eos: true, ..Sampling::default() }
}

fn request(input: &Arc<Input>, sampling: &Sampling, seeds: &[u64], adapter: Option<&Published>) -> Request {
    let (input, sampling) = (input.clone(), sampling.clone());
    Request { input, sampling, seeds: seeds.to_vec(), adapter: adapter.cloned() }
}

/// Steps until nothing is left to do, looking at the books every time.
fn drain(engine: &mut Engine<'_>, into: &mut BTreeMap<(Ticket, usize), Completion>) {
    while !engine.is_idle() {
        step(engine, into);
    }
}

fn step(engine: &mut Engine<'_>, into: &mut BTreeMap<(Ticket, usize), Completion>) {
    for event in engine.step().unwrap() {
        match event {
            Event::Finished { ticket, lane, completion } => {
                assert!(into.insert((ticket, lane), completion).is_none(), "{ticket:?} ended twice");
            }
            Event::Text { .. } => {}
            Event::Failed { error, .. } => panic!("{error}"),
        }
    }
    engine.check().unwrap();
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % limit
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(150) as u32).collect()
    }
}

/// Arrival, batch size, chunking, preemption, sharing, adapters beside each other: the same tokens, and log-probs that
/// scoring gives bit for bit.
#[test]
fn a_completion_depends_on_its_request_alone() {
    for backend in backends() {
        let world = World::open("qwen2", backend);
        let adapter = world.adapter();
        let mut random = Random(7);
        let begin = random.tokens(2 * PAGE + 9);
        // The emulated device takes its time.
        let all = [(7, 300, 16), (8, 37, 5), (60, 64, 12)];
        let some = if world.model.backend.activation() == Dtype::BF16 { &all[..1] } else { &all };
        for &(pages, tokens, sequences) in some {
            let mut engine = world.engine(Limits { pages, tokens, sequences });
            let published = engine.publish(adapter.clone());
            let mut asked = Vec::new();
            let mut ended = BTreeMap::new();
            for number in 0..10u64 {
                let own = 1 + random.below(PAGE + 20);
                let (shared, own) = (random.below(begin.len()), random.tokens(own));
                let input = world.tokens([&begin[..shared], &own].concat());
                let sampling = Sampling { entropy: number % 2 == 0, ..drawn(1 + random.below(90)) };
                let seeds: Vec<u64> =
                    (0..1 + random.below(3) as u64).map(|seed| 100 * number + seed).collect();
                let adapted = number % 3 == 1;
                let with = request(&input, &sampling, &seeds, Some(&published).filter(|_| adapted));
                asked.push((engine.submit(with).unwrap(), input, sampling, seeds, adapted));
                for _ in 0..random.below(if pages > 30 { 6 } else { 2 }) {
                    step(&mut engine, &mut ended);
                }
            }
            drain(&mut engine, &mut ended);
            let totals = engine.totals();
            assert!(totals.reused > 0, "nothing was shared: {totals:?}");
            assert!(pages > 30 || totals.preempted > 0, "nobody was preempted: {totals:?}");
            for (ticket, input, sampling, seeds, adapted) in asked {
                let adapter = Some(&adapter).filter(|_| adapted);
                for (lane, seed) in seeds.into_iter().enumerate() {
                    let got = &ended[&(ticket, lane)];
                    let expected = world.alone(&input, &Sampling { seed, ..sampling.clone() }, adapter);
                    assert_eq!(*got, expected, "{ticket:?}.{lane} with {pages} pages");
                    let scoring = ScoreRequest::new(&world.model, input.clone(), got.tokens.clone()).unwrap();
                    let scored = score(&world.model, adapter.map(|a| &**a), &[scoring], 0.8, 50).unwrap();
                    assert_eq!(scored[0].logprobs, got.logprobs, "{ticket:?}.{lane} scored");
                    let entropy = if sampling.entropy { &scored[0].entropy[..] } else { &[] };
                    assert_eq!(entropy, got.entropy, "{ticket:?}.{lane} scored");
                }
            }
        }
    }
}

/// A group's prompt is read once, and so is one that comes again.
#[test]
fn a_prompt_is_read_once() {
    let world = World::open("qwen2_5", cpu());
    let mut engine = world.engine(Limits { pages: 100, tokens: 256, sequences: 16 });
    let input = world.tokens(Random(3).tokens(600));
    let seeds: Vec<u64> = (0..8).collect();
    let mut ended = BTreeMap::new();
    engine.submit(request(&input, &drawn(5), &seeds, None)).unwrap();
    drain(&mut engine, &mut ended);
    // The last drawn token is never run, and lanes do not wait for one another.
    assert_eq!(engine.totals().computed, 600 + 8 * 4);
    assert_eq!(
        engine.totals().passes,
        3 + 4,
        "256 tokens of the prompt in a pass, then a token of each lane"
    );
    assert_eq!(ended.len(), 8);
    let texts: std::collections::BTreeSet<_> = ended.values().map(|one| one.tokens.clone()).collect();
    assert!(texts.len() > 4, "eight seeds gave {} completions", texts.len());

    let before = engine.totals().computed;
    engine.submit(request(&input, &drawn(5), &[9], None)).unwrap();
    drain(&mut engine, &mut ended);
    assert_eq!(engine.totals().computed - before, (600 % PAGE + 4) as u64);
    engine.reset_prefixes();
    let before = engine.totals().computed;
    engine.submit(request(&input, &drawn(5), &[9], None)).unwrap();
    drain(&mut engine, &mut ended);
    assert_eq!(engine.totals().computed - before, 604);
}

/// A stop token ends a completion as an end token does, is in its ids and not in its text, and is asked for: going on
/// past the model's own end tokens does not concern it.
#[test]
fn a_stop_token_ends_a_completion() {
    let world = World::open("qwen2", cpu());
    let input = world.tokens(Random(9).tokens(20));
    let whole = world.alone(&input, &drawn(40), None);
    let stop = whole.tokens[25];
    let at = whole.tokens.iter().position(|&token| token == stop).unwrap();
    let stopping = Sampling { stop_token_ids: vec![stop, 1_000], ..drawn(40) };
    let refused = generate(
        Generation {
            model: &world.model,
            tokenizer: world.reader.tokenizer(),
            adapter: None,
            end_tokens: &[],
        },
        &input,
        &stopping,
        |_| Ok(()),
    );
    assert!(refused.unwrap_err().to_string().contains("stop token 1000"));
    let got = world.alone(&input, &Sampling { stop_token_ids: vec![stop], ..drawn(40) }, None);
    assert_eq!((got.finish, &got.tokens[..]), (Finish::Stop, &whole.tokens[..=at]));
    let words = world.reader.tokenizer().decode(&whole.tokens[..at], true).unwrap();
    assert_eq!(got.text, words);
}

/// Two that arrive together share what one of them computes.
#[test]
fn requests_that_arrive_together_share_a_prompt() {
    let world = World::open("qwen2", cpu());
    let mut engine = world.engine(Limits { pages: 100, tokens: 4096, sequences: 16 });
    let input = world.tokens(Random(4).tokens(3 * PAGE + 1));
    let mut ended = BTreeMap::new();
    for seed in 0..4 {
        engine.submit(request(&input, &drawn(1), &[seed], None)).unwrap();
    }
    drain(&mut engine, &mut ended);
    assert_eq!(engine.totals().computed, (3 * PAGE + 1 + 3) as u64);
}

/// The same placeholders over other pixels are another prompt, and so is the same prompt with another adapter.
#[test]
fn pixels_and_adapters_are_part_of_a_prefix() {
    let world = World::open("qwen2_5_vl", cpu());
    let with_pictures: Vec<usize> = (0..world.case.expected.prompts.len())
        .filter(|&number| !world.prompt(number, &[]).images().is_empty())
        .collect();
    let more = Random(5).tokens(2 * PAGE);
    let mut engine = world.engine(Limits { pages: 200, tokens: 512, sequences: 4 });
    let mut ended = BTreeMap::new();
    for &number in &with_pictures {
        let input = world.prompt(number, &more);
        let before = engine.totals().reused;
        engine.submit(request(&input, &drawn(6), &[1], None)).unwrap();
        drain(&mut engine, &mut ended);
        assert_eq!(engine.totals().reused, before, "prompt {number} matched another's pages");
        let (_, got) = ended.pop_last().unwrap();
        assert_eq!(got, world.alone(&input, &Sampling { seed: 1, ..drawn(6) }, None), "prompt {number}");
        // The same again does match, and gives the same.
        engine.submit(request(&input, &drawn(6), &[1], None)).unwrap();
        drain(&mut engine, &mut ended);
        assert!(engine.totals().reused > before, "prompt {number} did not match itself");
        assert_eq!(ended.pop_last().unwrap().1, got);
    }
    let adapter = world.adapter();
    let input = world.prompt(with_pictures[0], &more);
    for _ in 0..2 {
        let published = engine.publish(adapter.clone());
        let before = engine.totals().reused;
        engine.submit(request(&input, &drawn(6), &[1], Some(&published))).unwrap();
        drain(&mut engine, &mut ended);
        assert_eq!(engine.totals().reused, before, "an adapter matched pages that are not its own");
        let expected = world.alone(&input, &Sampling { seed: 1, ..drawn(6) }, Some(&adapter));
        assert_eq!(ended.pop_last().unwrap().1, expected);
    }
}

/// The tower sees a picture once while any prompt holds its features.
#[test]
fn a_picture_is_encoded_once() {
    let world = World::open("qwen2_5_vl", cpu());
    let prompts = &world.case.expected.prompts;
    let number = (0..prompts.len()).find(|&number| world.prompt(number, &[]).images().len() == 1).unwrap();
    let words = Words::Messages(Message::list_from_json(prompts[number].messages.clone()).unwrap());
    let read = world.reader.read(&words, &[], &images(), &RenderOptions::default()).unwrap();
    let mut features = Features::default();
    let first = Input::prepare_with(&world.model, &read, &mut features).unwrap();
    let second = Input::prepare_with(&world.model, &read, &mut features).unwrap();
    assert_eq!(features.encoded, 1);
    drop((first, second));
    Input::prepare_with(&world.model, &read, &mut features).unwrap();
    assert_eq!(features.encoded, 2, "features nobody holds are kept");
}

#[test]
fn cancelled_requests_give_their_pages_back() {
    let world = World::open("qwen2", cpu());
    let mut engine = world.engine(Limits { pages: 20, tokens: 64, sequences: 8 });
    let mut ended = BTreeMap::new();
    let mut random = Random(6);
    let tickets: Vec<Ticket> = (0..6)
        .map(|number| {
            let input = world.tokens(random.tokens(90));
            engine.submit(request(&input, &drawn(30), &[number, 50 + number], None)).unwrap()
        })
        .collect();
    for ticket in [tickets[0], tickets[3], tickets[5]] {
        (0..3).for_each(|_| step(&mut engine, &mut ended));
        assert!(engine.cancel(ticket));
        assert!(!engine.cancel(ticket));
        engine.check().unwrap();
    }
    drain(&mut engine, &mut ended);
    assert_eq!(ended.len(), 6, "three requests of two completions are left");
    engine.reset_prefixes();
    let whole = world.tokens(random.tokens(19 * PAGE));
    engine.submit(request(&whole, &drawn(PAGE), &[0], None)).unwrap();
    drain(&mut engine, &mut ended);
}

#[test]
fn what_could_never_run_is_refused_by_name() {
    let world = World::open("qwen2", cpu());
    let mut engine = world.engine(Limits { pages: 4, tokens: 64, sequences: 2 });
    let input = world.tokens(Random(8).tokens(100));
    let refused = |engine: &mut Engine<'_>, request: Request, words: &[&str]| {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(&mut engine, request(&input, &drawn(200), &[0], None), &["5 pages", "has 4"]);
    refused(&mut engine, request(&input, &drawn(10), &[0, 1, 2], None), &["3 completions", "1 to 2"]);
    refused(&mut engine, request(&input, &drawn(10), &[], None), &["0 completions"]);
    refused(&mut engine, request(&input, &drawn(1 << 40), &[0], None), &["context"]);
    refused(&mut engine, request(&input, &drawn(0), &[0], None), &["max-tokens"]);
    let greedy = Sampling { temperature: 0.0, ..drawn(5) };
    refused(&mut engine, request(&input, &greedy, &[0, 1], None), &["2 completions at temperature 0"]);
    assert!(engine.is_idle());
    let limits = Limits { pages: 0, tokens: 1, sequences: 1 };
    assert!(Engine::new(&world.model, world.reader.tokenizer(), &[], limits).is_err());
}
