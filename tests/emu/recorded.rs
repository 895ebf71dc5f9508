//! Decoding that the device does by itself, from recordings: what it draws is what passes launched op by op draw, bit for
//! bit, and how much of the host's work is left.

use pellucid::{
    Result,
    backend::{
        Backend,
        gpu::{Address, Emulator, Gpu, Graph, Launch, Runtime, Settings, TensorMap, TensorShape},
    },
    engine::{Completion, Engine, Event, Finish, Input, Limits, Published, Request, Sampling},
    format::adapter::Adapter as AdapterFile,
    model::{Adapter, Model},
    prompt::{expand::Prompt, reader::ReadPrompt, tokenizer::Tokenizer},
};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

/// The emulated device, counting what it is asked for. What a replay does inside is not asked for again.
struct Counting {
    inner: Emulator,
    launches: AtomicUsize,
    uploads: AtomicUsize,
    /// How often the host waited for the device.
    waits: AtomicUsize,
    captures: AtomicUsize,
    replays: AtomicUsize,
    /// How many captures are under way.
    capturing: AtomicUsize,
}

impl Counting {
    fn new(checked: bool) -> Self {
        let inner = Emulator::new(Settings { checked, ..Settings::default() }).unwrap();
        let [launches, uploads, waits, captures, replays, capturing] =
            std::array::from_fn(|_| AtomicUsize::new(0));
        Counting { inner, launches, uploads, waits, captures, replays, capturing }
    }

    /// Launches, uploads, waits, captures and replays since the last time.
    fn counts(&self) -> [usize; 5] {
        [&self.launches, &self.uploads, &self.waits, &self.captures, &self.replays]
            .map(|count| count.swap(0, Relaxed))
    }

    fn count(&self, what: &AtomicUsize) {
        if self.capturing.load(Relaxed) == 0 {
            what.fetch_add(1, Relaxed);
        }
    }
}

impl Runtime for Counting {
    type Graph = Graph;

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn multiprocessors(&self) -> usize {
        self.inner.multiprocessors()
    }

    fn free_memory(&self) -> Result<usize> {
        self.inner.free_memory()
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        self.inner.alloc(bytes)
    }

    fn release(&self, address: Address) -> Result<()> {
        self.inner.release(address)
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.count(&self.uploads);
        self.inner.upload(to, bytes)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.count(&self.waits);
        self.inner.download(from, bytes)
    }

    type Landing = Vec<u8>;

    fn fetch(&self, from: Address, bytes: usize) -> Result<Vec<u8>> {
        self.inner.fetch(from, bytes)
    }

    fn land(&self, landing: Vec<u8>, bytes: &mut [u8]) -> Result<()> {
        self.count(&self.waits);
        self.inner.land(landing, bytes)
    }

    fn tensor_map(&self, shape: &TensorShape<'_>) -> Result<TensorMap> {
        self.inner.tensor_map(shape)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.count(&self.launches);
        self.inner.launch(launch)
    }

    fn sync(&self) -> Result<()> {
        self.count(&self.waits);
        self.inner.sync()
    }

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        self.count(&self.captures);
        self.capturing.fetch_add(1, Relaxed);
        let graph = self.inner.capture(body);
        self.capturing.fetch_sub(1, Relaxed);
        graph
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        self.count(&self.replays);
        self.inner.replay(graph)
    }
}

struct World {
    gpu: Arc<Gpu<Counting>>,
    model: Model,
    tokenizer: Tokenizer,
    adapters: Vec<Arc<Adapter>>,
}

impl World {
    fn new(name: &str, checked: bool, recording: bool, adapters: &[&Path]) -> Self {
        let folder = Path::new("tests/golden").join(name).join("model");
        let gpu = Arc::new(Gpu::new(Counting::new(checked)).recording(recording));
        let model = Model::load(&folder, gpu.clone() as Arc<dyn Backend>, None).unwrap();
        let load = |path: &&Path| Arc::new(model.adapter(&AdapterFile::open(path).unwrap()).unwrap());
        let adapters = adapters.iter().map(load).collect();
        World { gpu, tokenizer: Tokenizer::open(&folder).unwrap(), model, adapters }
    }

    fn engine(&self, limits: Limits) -> Engine<'_> {
        Engine::new(&self.model, &self.tokenizer, &[], limits).unwrap()
    }

    fn request(&self, from: u32, length: u32, drawn: usize, seeds: &[u64]) -> Request {
        let tokens = (0..length).map(|at| (from * 97 + at * at * 7 + 3) % 150).collect();
        let read = ReadPrompt { prompt: Prompt { tokens, spans: Vec::new() }, images: Vec::new() };
        let sampling =
            Sampling { max_tokens: drawn, temperature: 0.9, ignore_eos: true, ..Sampling::default() };
        let input = Arc::new(Input::prepare(&self.model, &read).unwrap());
        Request { input, sampling, seeds: seeds.to_vec(), adapter: None }
    }
}

fn drain(engine: &mut Engine<'_>) -> BTreeMap<(u64, usize), Completion> {
    let mut all = BTreeMap::new();
    while !engine.is_idle() {
        finished(engine.step().unwrap(), &mut all);
    }
    all
}

fn finished(events: Vec<Event>, all: &mut BTreeMap<(u64, usize), Completion>) {
    for event in events {
        match event {
            Event::Finished { ticket, lane, completion } => drop(all.insert((ticket.0, lane), completion)),
            Event::Text { .. } => {}
            Event::Failed { error, .. } => panic!("{error}"),
        }
    }
}

/// An adapter with another scale, at another place: the number is part of a launch.
fn rescaled(folder: &tempfile::TempDir, adapter: &Path) -> std::path::PathBuf {
    for entry in std::fs::read_dir(adapter).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("adapter_config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let alpha = json["lora_alpha"].as_f64().unwrap();
    json["lora_alpha"] = serde_json::json!(5.0 * alpha);
    std::fs::write(&config, json.to_string()).unwrap();
    folder.path().to_owned()
}

/// Groups and loners, short and long, with one adapter, another, or none, or several at once; work space and page tables
/// that grow on the way.
#[test]
fn replayed_passes_draw_what_launched_ones_do() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = Path::new("tests/golden/qwen2/adapter");
    let other = rescaled(&folder, adapter);
    for (name, checked) in [("qwen2", false), ("qwen3", false), ("qwen2_5_vl", false), ("llama3", true)] {
        let adapters: &[&Path] = if name == "qwen2" { &[adapter, &other] } else { &[] };
        let run = |recording| {
            let world = World::new(name, checked, recording, adapters);
            let mut engine = world.engine(Limits { pages: 40, tokens: 80, sequences: 12 });
            let published: Vec<Published> =
                world.adapters.iter().map(|adapter| engine.publish(adapter.clone())).collect();
            let mut all = Vec::new();
            // (prompt, its length, drawn, completions, adapter), rounds one after the other
            let mut rounds = vec![
                vec![(1, 20, 4, 3, None), (2, 33, 6, 1, None)],
                vec![(1, 20, 4, 3, Some(0))],
                vec![(1, 20, 4, 3, Some(1))],
                vec![(3, 140, 5, 4, None), (4, 9, 5, 1, None)],
                vec![(1, 20, 4, 3, Some(0)), (1, 20, 4, 1, Some(1)), (5, 7, 4, 1, None)],
                vec![(6, 20, 4, 3, Some(1))],
            ];
            if adapters.is_empty() {
                rounds.truncate(4);
                rounds.retain(|round| round.iter().all(|one| one.4.is_none()));
            }
            for round in rounds {
                for (from, length, drawn, lanes, adapter) in round {
                    let seeds: Vec<u64> = (0..lanes).collect();
                    let adapter = adapter.map(|at: usize| published[at].clone());
                    let request = Request { adapter, ..world.request(from, length, drawn, &seeds) };
                    engine.submit(request).unwrap();
                }
                all.push(drain(&mut engine));
                engine.check().unwrap();
            }
            (all, world.gpu.runtime().counts())
        };
        let (launched, [.., captures, replays]) = run(false);
        assert_eq!((captures, replays), (0, 0));
        let (replayed, [.., captures, replays]) = run(true);
        assert!(captures > 1 && replays > captures, "{name}: {captures} captures, {replays} replays");
        assert_eq!(replayed, launched, "{name}");
    }
}

/// The policy, another adapter and the base weights decode in one batch, and go on decoding as they become fewer: the
/// recordings serve all numbers of rows that are rounded up alike.
#[test]
fn mixed_adapters_are_recorded_once_for_many_batches() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = Path::new("tests/golden/qwen2/adapter");
    let other = rescaled(&folder, adapter);
    let run = |recording| {
        let world = World::new("qwen2", false, recording, &[adapter, &other]);
        let mut engine = world.engine(Limits { pages: 60, tokens: 300, sequences: 20 });
        let published: Vec<Published> =
            world.adapters.iter().map(|adapter| engine.publish(adapter.clone())).collect();
        // Of the first, between 5 and 8 rows are one recording's, of the others 3 and 4.
        for (at, drawn) in [3, 9, 9, 14, 22, 22, 22, 22].into_iter().enumerate() {
            let request = world.request(at as u32, 9, drawn, &[at as u64]);
            engine.submit(Request { adapter: Some(published[0].clone()), ..request }).unwrap();
        }
        for (at, drawn) in [5, 22, 22, 22].into_iter().enumerate() {
            let request = world.request(at as u32, 9, drawn, &[at as u64]);
            engine.submit(Request { adapter: Some(published[1].clone()), ..request.clone() }).unwrap();
            engine.submit(request).unwrap();
        }
        (drain(&mut engine), world.gpu.runtime().counts())
    };
    let (launched, _) = run(false);
    let (replayed, [.., captures, replays]) = run(true);
    assert_eq!((replayed, captures), (launched, 2), "8 + 4 + 4 rows, then 4 + 4 + 4");
    assert!(replays > 15, "{replays}");
}

/// Every way to draw, beside each other: temperatures, filters, a penalty on tokens that the device draws meanwhile; ends
/// that come between two looks.
#[test]
fn every_draw_goes_ahead() {
    let run = |recording| {
        let world = World::new("qwen2", false, recording, &[]);
        let mut engine = world.engine(Limits { pages: 40, tokens: 300, sequences: 12 });
        let base = |at: u32| world.request(at, 20 + 9 * at, 21, &[7]);
        let plain = base(0).sampling;
        let ways = [
            Sampling { temperature: 0.0, ..plain.clone() },
            Sampling { top_k: 5, ..plain.clone() },
            Sampling { top_p: 0.7, min_p: 0.01, entropy: true, ..plain.clone() },
            Sampling { repetition_penalty: 1.7, ..plain.clone() },
            Sampling { repetition_penalty: 0.6, temperature: 0.0, ..plain.clone() },
            Sampling { entropy: true, ..plain.clone() },
        ];
        let mut all = Vec::new();
        // All of them at once, and each for itself: other recordings.
        for round in 0..=ways.len() {
            for (at, sampling) in ways.iter().enumerate().filter(|(at, _)| round == 0 || at + 1 == round) {
                engine.submit(Request { sampling: sampling.clone(), ..base(at as u32) }).unwrap();
            }
            all.push(drain(&mut engine));
            engine.check().unwrap();
        }
        // A token that is drawn somewhere becomes one that ends.
        let tokens: Vec<u32> = all[0].values().map(|one| one.tokens[11]).collect();
        for (at, sampling) in ways.iter().enumerate() {
            let sampling = Sampling { stop_token_ids: tokens.clone(), ..sampling.clone() };
            engine.submit(Request { sampling, ..base(at as u32) }).unwrap();
        }
        all.push(drain(&mut engine));
        engine.check().unwrap();
        all
    };
    let launched = run(false);
    let ended = launched[launched.len() - 1].values().filter(|one| one.finish == Finish::Stop);
    assert_eq!(ended.count(), 6);
    assert_eq!(run(true), launched);
}

/// Requests that come while others decode, end at stop tokens or when they have enough, are put out for want of pages or
/// cancelled; some with one adapter, another or none, in groups and alone, with filters and penalties. All of it ahead of
/// the host, and the same as one operation after the other.
#[test]
fn whatever_happens_nobody_gets_another_token() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = Path::new("tests/golden/qwen2/adapter");
    let other = rescaled(&folder, adapter);
    let run = |recording, pages: usize| {
        let world = World::new("qwen2", false, recording, &[adapter, &other]);
        let mut engine = world.engine(Limits { pages, tokens: 120, sequences: 9 });
        let published: Vec<Published> =
            world.adapters.iter().map(|adapter| engine.publish(adapter.clone())).collect();
        let mut state = 5u64;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        let mut all = BTreeMap::new();
        let mut cancelled = Vec::new();
        for number in 0..16u64 {
            let drawn = 1 + below(30) as usize;
            let base = world.request(below(3) as u32, 5 + below(70) as u32, drawn, &[]);
            let mut sampling = Sampling { entropy: below(2) == 0, ..base.sampling };
            match below(6) {
                0 => sampling.top_k = 9,
                1 => sampling.repetition_penalty = 1.3,
                2 | 3 => sampling.stop_token_ids = (0..12).map(|_| below(150) as u32).collect(),
                _ => {}
            }
            let seeds: Vec<u64> = (0..1 + below(3)).map(|seed| 10 * number + seed).collect();
            let adapter = published.get(below(4) as usize).cloned();
            let ticket = engine.submit(Request { sampling, seeds, adapter, ..base }).unwrap();
            let (cancels, steps) = (below(7) == 0, below(4));
            for _ in 0..steps {
                finished(engine.step().unwrap(), &mut all);
                engine.check().unwrap();
            }
            if cancels {
                engine.cancel(ticket);
                engine.check().unwrap();
                cancelled.push(ticket.0);
            }
        }
        all.extend(drain(&mut engine));
        engine.check().unwrap();
        all.retain(|(ticket, _), _| !cancelled.contains(ticket));
        (all, engine.totals(), world.gpu.runtime().counts())
    };
    let (launched, _, [_, _, before, ..]) = run(false, 40);
    let stopped = launched.values().filter(|one| one.finish == Finish::Stop).count();
    assert!(launched.len() > 20 && stopped > 3, "{} completions, {stopped} stopped", launched.len());
    let (ahead, _, [_, _, after, ..]) = run(true, 40);
    assert_eq!(ahead, launched);
    assert!(after < before, "{after} waits and {before}");
    let (crowded, totals, _) = run(true, 5);
    assert_eq!(crowded, launched);
    assert!(totals.preempted > 0);
}

/// A row that wants fewer tokens than others stands still at the end of its last page, and does not run into another's.
#[test]
fn a_row_that_has_enough_stands_still() {
    let run = |recording| {
        let world = World::new("qwen2", false, recording, &[]);
        let mut engine = world.engine(Limits { pages: 8, tokens: 120, sequences: 2 });
        for (from, length, drawn) in [(1, 20, 30), (2, 60, 5)] {
            engine.submit(world.request(from, length, drawn, &[3])).unwrap();
        }
        drain(&mut engine)
    };
    assert_eq!(run(true), run(false));
}

/// What the host does for a token of each sequence: eight replays between an upload and a look, which is at what the device
/// had drawn before them.
#[test]
fn the_host_looks_once_in_eight_passes() {
    let calls = |recording, passes: usize| {
        let world = World::new("qwen2", false, recording, &[]);
        let mut engine = world.engine(Limits { pages: 20, tokens: 90, sequences: 8 });
        for from in 0..3 {
            engine.submit(world.request(from, 30, 40, &[1])).unwrap();
        }
        (0..passes).for_each(|_| drop(engine.step().unwrap()));
        world.gpu.runtime().counts();
        let before = engine.totals();
        engine.step().unwrap();
        let after = engine.totals();
        (world.gpu.runtime().counts(), after.passes - before.passes, after.drawn - before.drawn)
    };
    // The prompts; then the first eight passes, of which one is for the record; then what counts.
    let ([launches, uploads, waits, captures, replays], passes, drawn) = calls(true, 2);
    assert_eq!([launches, uploads, waits, captures, replays], [0, 1, 1, 0, 8]);
    assert_eq!((passes, drawn), (8, 24));
    let ([launches, uploads, waits, captures, replays], passes, drawn) = calls(false, 9);
    assert!(launches > 3 + 2 * 11, "{launches} launches for two blocks");
    assert_eq!([uploads, waits, captures, replays], [8, 2, 0, 0]);
    assert_eq!((passes, drawn), (1, 3));
}

/// A whole life: prompts, then nobody comes or goes until all have their tokens.
#[test]
fn waits_are_few_and_the_next_passes_begin_before_them() {
    let world = World::new("qwen2", false, true, &[]);
    let mut engine = world.engine(Limits { pages: 20, tokens: 90, sequences: 8 });
    for from in 0..3 {
        engine.submit(world.request(from, 30, 41, &[1])).unwrap();
    }
    // What was read is what the passes before the last step have drawn.
    for (passes, read) in [(1, 0), (9, 1), (17, 9), (25, 17), (33, 25), (41, 33), (41, 41)] {
        engine.step().unwrap();
        assert_eq!((engine.totals().passes, engine.totals().drawn), (passes, 3 * read));
    }
    assert!(engine.is_idle());
    let [_, _, waits, ..] = world.gpu.runtime().counts();
    // Of the prompts tokens and log-probs; then the log.
    assert_eq!((engine.totals().passes, waits), (1 + 40, 2 + 40 / 8));
}

/// While one engine records, another on the same device goes on, and neither gets into the other's recording.
#[test]
fn two_engines_record_on_one_device() {
    let runtime = Arc::new(Gpu::new(Counting::new(false)));
    let model = |name: &str| {
        let folder = Path::new("tests/golden").join(name).join("model");
        let model = Model::load(&folder, runtime.clone() as Arc<dyn Backend>, None).unwrap();
        (model, Tokenizer::open(&folder).unwrap())
    };
    let limits = Limits { pages: 12, tokens: 64, sequences: 4 };
    let draw = |(model, tokenizer): &(Model, Tokenizer)| {
        let mut engine = Engine::new(model, tokenizer, &[], limits).unwrap();
        for from in 0..3 {
            let tokens = (0..12 + 5 * from).map(|at| (from * 31 + at * 7) % 150).collect();
            let read = ReadPrompt { prompt: Prompt { tokens, spans: Vec::new() }, images: Vec::new() };
            let input = Arc::new(Input::prepare(model, &read).unwrap());
            let sampling =
                Sampling { max_tokens: 3 + from as usize, ignore_eos: true, ..Sampling::default() };
            engine.submit(Request { input, sampling, seeds: vec![1], adapter: None }).unwrap();
        }
        drain(&mut engine)
    };
    let models = [model("qwen2"), model("llama3")];
    let expected = models.each_ref().map(draw);
    thread::scope(|scope| {
        let both =
            models.each_ref().map(|model| scope.spawn(|| (0..3).map(|_| draw(model)).collect::<Vec<_>>()));
        for (got, expected) in both.into_iter().zip(&expected) {
            assert!(got.join().unwrap().iter().all(|got| got == expected));
        }
    });
}
