//! Engines on threads of their own: requests from many threads, cancelled ones, failures, and two models at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use pellucid::backend::{Backend, cpu::Cpu};
use pellucid::engine::{
    Completion, Engine, Event, Generation, Input, Limits, Pending, Request, Sampling, Service, Serving,
    Totals, generate,
};
use pellucid::format::{ModelFolder, adapter::Adapter as AdapterFile};
use pellucid::model::{Adapter, Model, PAGE};
use pellucid::prompt::expand::Prompt;
use pellucid::prompt::reader::ReadPrompt;
use pellucid::prompt::tokenizer::Tokenizer;
use pellucid::tensor::Dtype;
use std::{sync::Arc, thread, time::Duration};
use support::golden::Case;

const LIMITS: Limits = Limits { pages: 24, tokens: 64, sequences: 8 };

fn cpu() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(Some(2)).unwrap())
}

/// The backends two engines may share.
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

fn serving(name: &'static str, backend: Arc<dyn Backend>, limits: Limits) -> Serving {
    let folder = Case::read(name).model();
    let tokenizer = Arc::new(Tokenizer::open(ModelFolder::at(&folder).path()).unwrap());
    let model = Arc::new(Model::load(&folder, backend, Some(Dtype::BF16)).unwrap());
    Serving { model, tokenizer, end_tokens: Vec::new(), limits }
}

fn service(name: &'static str) -> Service {
    Service::start(serving(name, cpu(), LIMITS)).unwrap()
}

fn adapter(name: &'static str, model: &Model) -> Arc<Adapter> {
    Arc::new(model.adapter(&AdapterFile::open(&Case::read(name).adapter()).unwrap()).unwrap())
}

fn prompt(model: &Model, length: usize, from: u32) -> Arc<Input> {
    prompt_of(model, (0..length as u32).map(|at| (from * 7919 + at * at * 31 + 7) % 150).collect())
}

fn prompt_of(model: &Model, tokens: Vec<u32>) -> Arc<Input> {
    let read = ReadPrompt { prompt: Prompt { tokens, spans: Vec::new() }, images: Vec::new() };
    Arc::new(Input::prepare(model, &read).unwrap())
}

fn sampling(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, temperature: 0.8, ignore_eos: true, ..Sampling::default() }
}

fn request(input: &Arc<Input>, max_tokens: usize, seeds: &[u64]) -> Request {
    let (input, sampling) = (input.clone(), sampling(max_tokens));
    Request { input, sampling, seeds: seeds.to_vec(), adapter: None }
}

/// The same with nothing beside it.
fn alone(serving: &Serving, request: &Request) -> Vec<Completion> {
    let Serving { model, tokenizer, end_tokens, .. } = serving;
    let adapter = None;
    let one = |&seed: &u64| {
        let with = Generation { model, tokenizer, adapter, end_tokens };
        generate(with, &request.input, &Sampling { seed, ..request.sampling.clone() }, |_| Ok(())).unwrap()
    };
    request.seeds.iter().map(one).collect()
}

/// Every page is free once idle prefixes are forgotten.
fn assert_all_pages_are_free(service: &Service) {
    let Limits { pages, .. } = service.serving().limits;
    let totals = service.visit(|engine| {
        engine.check().unwrap();
        engine.reset_prefixes();
        engine.totals()
    });
    let before: Totals = totals.unwrap();
    let whole = prompt(&service.serving().model, pages * PAGE - 10, 77);
    assert_eq!(service.submit(request(&whole, 8, &[1])).unwrap().wait().unwrap().len(), 1);
    let after = service.visit(|engine| engine.totals()).unwrap();
    assert_eq!(after.preempted, before.preempted);
}

/// Whoever asks first, and however many ask, each gets what it would get alone.
#[test]
fn many_threads_ask_one_engine() {
    let service = service("qwen2");
    let inputs: Vec<Arc<Input>> =
        (0..4).map(|from| prompt(&service.serving().model, 50 + 20 * from as usize, from)).collect();
    let asked = |thread: u64, number: u64| {
        let input = &inputs[(thread + number) as usize % inputs.len()];
        request(input, 3 + (5 * thread + 11 * number) as usize % 30, &[100 * thread + number, 7])
    };
    let (service, asked) = (&service, &asked);
    let answers: Vec<Vec<Vec<Completion>>> = thread::scope(|scope| {
        let ask = |thread: u64| {
            move || {
                let pending: Vec<_> =
                    (0..4).map(|number| service.submit(asked(thread, number)).unwrap()).collect();
                pending.into_iter().map(|pending| pending.wait().unwrap()).collect()
            }
        };
        let threads: Vec<_> = (0..6).map(|thread| scope.spawn(ask(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (thread, answers) in answers.iter().enumerate() {
        for (number, answer) in answers.iter().enumerate() {
            let expected = alone(service.serving(), &asked(thread as u64, number as u64));
            assert_eq!(*answer, expected, "request {number} of thread {thread}");
        }
    }
    assert_all_pages_are_free(service);
}

#[test]
fn text_arrives_as_it_is_made_and_asking_again_does_not_wait() {
    let service = service("qwen2");
    let input = prompt(&service.serving().model, 30, 3);
    let mut pending = service.submit(request(&input, 40, &[1, 2])).unwrap();
    let mut texts = [String::new(), String::new()];
    let mut whole = vec![None, None];
    loop {
        match pending.try_next_event().unwrap() {
            Some(Event::Text { lane, text, .. }) => texts[lane].push_str(&text),
            Some(Event::Finished { lane, completion, .. }) => whole[lane] = Some(completion),
            Some(Event::Failed { error, .. }) => panic!("{error}"),
            None if pending.is_finished() => break,
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!(pending.next_event().unwrap().is_none());
    for (text, completion) in texts.iter().zip(whole) {
        assert_eq!(*text, completion.unwrap().text);
    }
}

/// A request that nobody waits for any more leaves in the middle, and everybody else goes on.
#[test]
fn whoever_stops_waiting_gives_the_pages_back() {
    let service = service("qwen2");
    let model = &service.serving().model;
    let inputs: Vec<Arc<Input>> = (0..6).map(|from| prompt(model, 100, from)).collect();
    let all: Vec<Request> = inputs.iter().map(|input| request(input, 150, &[1, 2])).collect();
    let mut pending: Vec<_> = all.iter().map(|one| Some(service.submit(one.clone()).unwrap())).collect();
    // In the batch and under way, then gone; one that waits in the line goes by being dropped.
    pending[0].as_mut().unwrap().next_event().unwrap();
    pending[0].take().unwrap().cancel();
    pending[2].take();
    drop(pending[5].take());
    for (one, pending) in all.iter().zip(pending) {
        if let Some(pending) = pending {
            assert_eq!(pending.wait().unwrap(), alone(service.serving(), one));
        }
    }
    let totals = service.visit(|engine| engine.totals()).unwrap();
    assert!(totals.drawn < 12 * 150, "cancelled requests were finished: {totals:?}");
    assert_all_pages_are_free(&service);
}

#[test]
fn what_could_never_run_is_refused_where_it_is_asked() {
    let service = service("qwen2");
    let input = prompt(&service.serving().model, 30, 1);
    let refused = |request: Request, word: &str| {
        let error = service.submit(request).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(request(&input, 0, &[1]), "max-tokens");
    refused(request(&input, 24 * PAGE, &[1]), "25 pages");
    refused(request(&input, 3, &[]), "0 completions");
    // Prompts and adapters belong to a model and an engine; mistaking them costs nobody else anything.
    let llama = serving("llama3", cpu(), LIMITS);
    let longer = prompt_of(&service.serving().model, vec![383]);
    let reasoner = Service::start(llama).unwrap();
    let error = reasoner.submit(request(&longer, 3, &[1])).unwrap_err().to_string();
    assert!(error.contains("prepared for another model"), "{error}");
    let own = adapter("qwen2", &service.serving().model);
    let foreign = Service::start(service.serving().clone()).unwrap().publish(own).unwrap();
    let bystander = service.submit(request(&input, 40, &[1])).unwrap();
    let wrong = Request { adapter: Some(foreign), ..request(&input, 3, &[1, 2]) };
    let error = service.submit(wrong).and_then(Pending::wait).unwrap_err().to_string();
    assert!(error.contains("another engine"), "{error}");
    assert_eq!(bystander.wait().unwrap(), alone(service.serving(), &request(&input, 40, &[1])));
    let limits = Limits { pages: 0, ..LIMITS };
    let error = Service::start(Serving { limits, ..service.serving().clone() }).unwrap_err();
    assert!(error.to_string().contains("at least 1"), "{error}");
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(|error| format!("{error}\n")).collect()
}

/// A pass that fails ends the engine, and everyone who waits or comes later is told why.
#[test]
fn a_failure_reaches_everyone_who_waits() {
    let service = service("qwen2_5");
    let model = &service.serving().model;
    let other = Model::load(&Case::read("qwen2").model(), cpu(), None).unwrap();
    // What no trainer of ours would do: another model's adapter.
    let foreign = service.publish(adapter("qwen2", &other)).unwrap();
    let input = prompt(model, 30, 1);
    let bystanders: Vec<_> =
        (0..3).map(|seed| service.submit(request(&input, 400, &[seed])).unwrap()).collect();
    let culprit = Request { adapter: Some(foreign), ..request(&input, 400, &[9]) };
    let culprit = service.submit(culprit).unwrap();
    for pending in bystanders.into_iter().chain([culprit]) {
        let told = chain(&pending.wait().unwrap_err());
        assert!(told.contains("it ended") && told.contains("blocks of 3"), "{told}");
    }
    for told in [
        chain(&service.submit(request(&input, 3, &[1])).and_then(Pending::wait).unwrap_err()),
        chain(&service.visit(|engine| engine.totals()).unwrap_err()),
    ] {
        assert!(told.contains("it ended") && told.contains("blocks of 3"), "{told}");
    }
}

#[test]
fn a_thread_that_is_gone_leaves_nobody_waiting() {
    let service = service("qwen2");
    let pending = service.submit(request(&prompt(&service.serving().model, 30, 1), 400, &[1])).unwrap();
    let error =
        service.visit(|_| -> () { std::panic::resume_unwind(Box::new("nothing to print")) }).unwrap_err();
    assert!(error.to_string().contains("thread is gone"), "{error}");
    assert!(pending.wait().unwrap_err().to_string().contains("thread is gone"));
}

#[test]
fn dropping_a_service_ends_it_and_says_so() {
    let service = service("qwen2");
    let pending = service.submit(request(&prompt(&service.serving().model, 30, 1), 1400, &[1])).unwrap();
    let model = service.serving().model.clone();
    drop(service);
    assert_eq!(Arc::strong_count(&model), 1, "the thread still runs");
    let told = chain(&pending.wait().unwrap_err());
    assert!(told.contains("the service was dropped"), "{told}");
}

/// A captioner and a reasoner in one process, on one backend: on two threads at once, and by turns on one.
#[test]
fn two_models_share_a_backend() {
    for backend in backends() {
        let limits = Limits { pages: 12, tokens: 48, sequences: 4 };
        let both = ["qwen2_5_vl", "llama3"].map(|name| serving(name, backend.clone(), limits));
        let (rounds, tokens) = if backend.activation() == Dtype::BF16 { (1, 6) } else { (4, 40) };
        let asked = both.each_ref().map(|serving| -> Vec<Request> {
            let input = |from| prompt(&serving.model, 60 + 10 * from as usize, from);
            (0..rounds).map(|from| request(&input(from), tokens, &[u64::from(from), 5])).collect()
        });
        let expected: Vec<Vec<Vec<Completion>>> = both
            .iter()
            .zip(&asked)
            .map(|(serving, asked)| asked.iter().map(|request| alone(serving, request)).collect())
            .collect();

        let services = both.each_ref().map(|serving| Service::start(serving.clone()).unwrap());
        let pending = [0, 1].map(|at| -> Vec<_> {
            asked[at].iter().map(|request| services[at].submit(request.clone()).unwrap()).collect()
        });
        for (pending, expected) in pending.into_iter().zip(&expected) {
            let got: Vec<_> = pending.into_iter().map(|pending| pending.wait().unwrap()).collect();
            assert_eq!(got, *expected, "on two threads, {}", backend.describe());
        }

        let mut engines = both.each_ref().map(|Serving { model, tokenizer, end_tokens, limits }| {
            Engine::new(model, tokenizer, end_tokens, *limits).unwrap()
        });
        let mut got = [0, 1].map(|at| {
            let submit = |request: &Request| engines[at].submit(request.clone()).unwrap();
            asked[at].iter().map(submit).map(|ticket| (ticket, vec![None, None])).collect::<Vec<_>>()
        });
        while engines.iter().any(|engine| !engine.is_idle()) {
            for (engine, got) in engines.iter_mut().zip(&mut got).filter(|(engine, _)| !engine.is_idle()) {
                for event in engine.step().unwrap() {
                    let Event::Finished { ticket, lane, completion } = event else { continue };
                    let (_, lanes) = got.iter_mut().find(|(asked, _)| *asked == ticket).unwrap();
                    lanes[lane] = Some(completion);
                }
            }
        }
        for (got, expected) in got.into_iter().zip(&expected) {
            let got: Vec<Vec<_>> =
                got.into_iter().map(|(_, lanes)| lanes.into_iter().flatten().collect()).collect();
            assert_eq!(got, *expected, "by turns, {}", backend.describe());
        }
    }
}
