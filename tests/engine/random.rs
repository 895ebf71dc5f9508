//! Ten thousand random sequences of operations on engines of all sizes, with a model so small that a pass costs next to
//! nothing: the books on pages agree after every operation, and every completion is what its request gets alone.

use super::{Random, cpu_of, drain, drawn, step};
use crate::support::golden::Case;
use pellucid::engine::{Completion, Engine, Generation, Input, Limits, Request, Sampling, Ticket, generate};
use pellucid::format::{ModelFolder, config::DecoderConfig};
use pellucid::model::{Decoder, Model, PAGE};
use pellucid::prompt::expand::Prompt;
use pellucid::prompt::reader::{ImageOptions, ReadPrompt, Reader};
use pellucid::tensor::{Dtype, Tensor};
use std::{collections::BTreeMap, sync::Arc, thread};

const SEQUENCES: u64 = 10_000;
const THREADS: u64 = 4;
const VOCABULARY: usize = 48;
/// The most tokens of a completion.
const MOST: usize = 7;
const SEEDS: u64 = 3;

struct World {
    model: Model,
    reader: Reader,
    inputs: Vec<Arc<Input>>,
    /// What each input and seed gets with nothing beside it.
    alone: Vec<Vec<Completion>>,
}

impl World {
    fn new() -> Self {
        let case = Case::read("qwen2");
        let backend = cpu_of(1);
        let mut model = Model::load(&case.model(), backend.clone(), None).unwrap();
        let reader =
            Reader::open(&ModelFolder::at(case.model()), &model.config, ImageOptions::default()).unwrap();
        let tiny = DecoderConfig {
            hidden: 8,
            layers: 1,
            heads: 3,
            kv_heads: 1,
            head_dim: 4,
            ffn: 8,
            vocab: VOCABULARY,
            ..model.config.decoder.clone()
        };
        let make = |name: &str, shape: &[usize]| {
            let mut random =
                Random(name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte)));
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect();
            Tensor::from_slice(shape, &values)?.converted(Dtype::BF16)
        };
        model.decoder = Decoder::made(&*backend, &tiny, &make).unwrap();
        model.config.decoder = tiny;
        // Prompts with and without a beginning in common, that end around the ends of pages.
        let mut random = Random(11);
        let mut tokens =
            |count: usize| (0..count).map(|_| random.below(VOCABULARY) as u32).collect::<Vec<_>>();
        let begin = tokens(2 * PAGE);
        let prompts = [(0, 1), (0, PAGE - 3), (PAGE, 1), (PAGE, 5), (PAGE, PAGE - 2), (PAGE, PAGE - 2)]
            .into_iter()
            .chain([(PAGE + 9, 2), (2 * PAGE - 4, 3), (2 * PAGE, 1), (2 * PAGE, 2)]);
        let inputs = prompts.map(|(shared, own)| {
            let tokens = [&begin[..shared], &tokens(own)].concat();
            let prompt = Prompt { tokens, spans: Vec::new() };
            Arc::new(Input::prepare(&model, &ReadPrompt { prompt, images: Vec::new() }).unwrap())
        });
        let inputs: Vec<Arc<Input>> = inputs.collect();
        let alone = |input: &Arc<Input>| {
            let with =
                Generation { model: &model, tokenizer: reader.tokenizer(), adapter: None, end_tokens: &[] };
            let one = |seed| generate(with, input, &Sampling { seed, ..drawn(MOST) }, |_| Ok(())).unwrap();
            (0..SEEDS).map(one).collect()
        };
        let alone = inputs.iter().map(alone).collect();
        World { model, reader, inputs, alone }
    }

    /// One sequence of operations; how often pages were shared, taken from others and given up.
    fn live(&self, number: u64) -> [u64; 3] {
        let mut random = Random(number);
        random.below(1);
        let limits = Limits {
            pages: 1 + random.below(9),
            tokens: [1, 5, 40, 300][random.below(4)],
            sequences: 1 + random.below(6),
        };
        let mut engine = Engine::new(&self.model, self.reader.tokenizer(), &[], limits).unwrap();
        let mut asked: BTreeMap<Ticket, (usize, usize, Vec<u64>)> = BTreeMap::new();
        let mut ended = BTreeMap::new();
        for _ in 0..4 + random.below(12) {
            match random.below(12) {
                0..5 => {
                    let (input, most) = (random.below(self.inputs.len()), 1 + random.below(MOST));
                    let seeds: Vec<u64> =
                        (0..1 + random.below(3)).map(|_| random.below(SEEDS as usize) as u64).collect();
                    let request = Request {
                        input: self.inputs[input].clone(),
                        sampling: drawn(most),
                        seeds: seeds.clone(),
                        adapter: None,
                    };
                    match request.check(&self.model, limits) {
                        Ok(()) => drop(asked.insert(engine.submit(request).unwrap(), (input, most, seeds))),
                        Err(_) => assert!(engine.submit(request).is_err(), "{number}: submitted"),
                    }
                }
                5..10 => step(&mut engine, &mut ended),
                10 => {
                    let tickets: Vec<Ticket> = asked.keys().copied().collect();
                    if let Some(&ticket) = tickets.get(random.below(tickets.len().max(1))) {
                        engine.cancel(ticket);
                        // Lanes that had ended before have said so.
                        let lanes = asked.remove(&ticket).map_or(0, |(_, _, seeds)| seeds.len());
                        (0..lanes).for_each(|lane| drop(ended.remove(&(ticket, lane))));
                    }
                }
                _ => engine.reset_prefixes(),
            }
            engine.check().unwrap_or_else(|error| panic!("{number}: {error}"));
        }
        drain(&mut engine, &mut ended);
        for (ticket, (input, most, seeds)) in asked {
            for (lane, seed) in seeds.into_iter().enumerate() {
                let (got, whole) =
                    (ended.remove(&(ticket, lane)).unwrap(), &self.alone[input][seed as usize]);
                let what = format!("{number}: input {input}, seed {seed}, {limits:?}");
                assert_eq!(
                    (&got.tokens[..], &got.logprobs[..]),
                    (&whole.tokens[..most], &whole.logprobs[..most]),
                    "{what}"
                );
            }
        }
        assert!(ended.is_empty(), "{number}: {ended:?} is nobody's");
        let totals = engine.totals();
        [totals.reused, totals.preempted, totals.drawn]
    }
}

#[test]
fn ten_thousand_lives_of_an_engine() {
    let part = |first: u64| {
        let world = World::new();
        (first..SEQUENCES)
            .step_by(THREADS as usize)
            .map(|number| world.live(number))
            .fold([0; 3], |all, one| [0, 1, 2].map(|at| all[at] + one[at]))
    };
    let parts: Vec<[u64; 3]> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || part(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let [reused, preempted, drawn] = [0, 1, 2].map(|at| parts.iter().map(|part| part[at]).sum::<u64>());
    assert!(reused > 100_000 && preempted > 1000 && drawn > 50_000, "{reused}, {preempted}, {drawn}");
}
