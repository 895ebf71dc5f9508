//! What pupils can do, by exact words, and what they do about problems they have never seen.

use super::lessons::{Lessons, reasoning};
use crate::engine::{Engine, Event, Features, Input, Limits, Request as Job, Sampling};
use crate::error::{Error, Result};
use crate::format::ModelFolder;
use crate::model::{Model, pages_for};
use crate::prompt::reader::ReadPrompt;
use crate::prompt::tokenizer::Tokenizer;
use crate::task::world::*;
use std::fmt;
use std::sync::Arc;

/// The most tokens of a verdict, and of what an exam asks for beside captions.
const VERDICT: usize = 20;
const LINE: usize = 12;

/// Sequences at work at a time, and the most tokens of one.
const TOGETHER: usize = 256;
const LONGEST: usize = 128;

/// How often something was right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rate {
    /// How often.
    pub right: usize,
    /// Of how many.
    pub of: usize,
}

impl Rate {
    fn count(&mut self, right: bool) {
        self.right += usize::from(right);
        self.of += 1;
    }

    /// Of 1; 0 where nothing was asked.
    pub fn share(self) -> f64 {
        self.right as f64 / self.of.max(1) as f64
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:5.1} % of {}", 100.0 * self.share(), self.of)
    }
}

/// Every rate by what it is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Marks(pub Vec<(&'static str, Rate)>);

impl Marks {
    /// The rate of this name.
    pub fn rate(&self, name: &str) -> Rate {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, rate)| *rate).unwrap_or_default()
    }

    fn count(&mut self, name: &'static str, right: bool) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, rate)) => rate.count(right),
            None => self.0.push((name, Rate { right: usize::from(right), of: 1 })),
        }
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, rate)| writeln!(f, "{name:34} {rate}"))
    }
}

/// A model that is examined.
#[derive(Debug)]
struct Candidate<'m> {
    model: &'m Model,
    lessons: Lessons,
    tokenizer: Tokenizer,
    end: Vec<u32>,
}

/// A captioner and a reasoner that are examined.
#[derive(Debug)]
pub struct Exam<'m> {
    captioner: Candidate<'m>,
    reasoner: Candidate<'m>,
}

impl<'m> Exam<'m> {
    /// Of two models with the built-in ones' words.
    pub fn new(captioner: &'m Model, reasoner: &'m Model) -> Result<Self> {
        let candidate = |model: &'m Model| -> Result<Candidate<'m>> {
            let folder = ModelFolder::find("builtin:tiny-reasoner")?;
            let (tokenizer, end) = (Tokenizer::open(folder.path())?, folder.eos(&model.config)?);
            Ok(Candidate { model, lessons: Lessons::new(model)?, tokenizer, end })
        };
        Ok(Exam { captioner: candidate(captioner)?, reasoner: candidate(reasoner)? })
    }

    /// Skills, each by `count` examples: requests answered, verdicts given.
    pub fn skills(&self, seed: u64, count: u64) -> Result<Marks> {
        let mut marks = Marks::default();
        self.clarifications(seed, count, &mut marks)?;
        self.verdicts(seed, count, &mut marks)?;
        Ok(marks)
    }

    fn clarifications(&self, seed: u64, count: u64, marks: &mut Marks) -> Result<()> {
        for (name, attribute) in
            [("numbers told", Attribute::Number), ("positions told", Attribute::Position)]
        {
            let (mut prompts, mut expected) = (Vec::new(), Vec::new());
            for index in 0..count {
                let scene = Example::new(seed, index).scene;
                let request = Request { name: scene.objects[0].name, attribute };
                expected.push(request.clarification(&scene).unwrap_or_default());
                prompts
                    .push(self.captioner.asked(&ask_for_clarification(&request.to_string()), Some(&scene))?);
            }
            let told = self.captioner.answers(&prompts, 0.0, LINE)?;
            told.iter().zip(&expected).for_each(|(told, expected)| marks.count(name, told == expected));
        }
        Ok(())
    }

    fn verdicts(&self, seed: u64, count: u64, marks: &mut Marks) -> Result<()> {
        let (mut prompts, mut expected) = (Vec::new(), Vec::new());
        for index in 0..count {
            let example = Example::new(seed, index);
            let caption = mixed_caption(&example.scene, &example.question, &mut example.chance());
            let dialogue = reasoning(&example.scene, &example.question, caption);
            let mut turns = Vec::new();
            for (turn, [asked, verdict]) in dialogue.iter().enumerate() {
                turns.push(message(Role::User, asked));
                prompts.push(self.reasoner.lessons.read_words(&prompt(&turns), None)?);
                turns.push(message(Role::Assistant, verdict));
                let missing = verdict.matches("unknown").count();
                expected.push((kind_of_verdict(turn, missing), verdict.clone()));
            }
        }
        let given = self.reasoner.answers(&prompts, 0.0, VERDICT)?;
        for (given, (name, expected)) in given.iter().zip(&expected) {
            marks.count(name, given == expected);
        }
        Ok(())
    }

    /// Problems solved with captions drawn at a temperature, and one clarification where the reasoner asks for it.
    pub fn problems(&self, seed: u64, count: u64, temperature: f32) -> Result<Marks> {
        let examples: Vec<Example> = (0..count).map(|index| Example::new(seed, index)).collect();
        let asked = |example: &Example| {
            self.captioner.asked(&ask_for_caption(&example.question.to_string()), Some(&example.scene))
        };
        let prompts = examples.iter().map(asked).collect::<Result<Vec<_>>>()?;
        let captions = self.captioner.answers(&prompts, temperature, CAPTION_BUDGET)?;
        let asked: Vec<String> = examples
            .iter()
            .zip(&captions)
            .map(|(example, caption)| {
                message(Role::User, &ask_for_answer(caption, &example.question.to_string()))
            })
            .collect();
        let read = |turns: &[String], begun: &str| {
            self.reasoner.lessons.read_words(&format!("{} {begun}", prompt(turns)), None)
        };
        let prompts =
            asked.iter().map(|asked| read(std::slice::from_ref(asked), "")).collect::<Result<Vec<_>>>()?;
        let first = self.reasoner.answers(&prompts, 0.0, VERDICT)?;

        let (mut forced, mut requests, mut asking) = (Vec::new(), Vec::new(), Vec::new());
        for (at, verdict) in first.iter().enumerate() {
            if let Some((thought, request)) = verdict.split_once("NEED MORE INFO :") {
                forced.push(read(&asked[at..=at], &format!("{thought}SOLVED :"))?);
                let request = ask_for_clarification(request.trim());
                requests.push(self.captioner.asked(&request, Some(&examples[at].scene))?);
                asking.push(at);
            }
        }
        let forced = self.reasoner.answers(&forced, 0.0, LINE)?;
        let told = self.captioner.answers(&requests, 0.0, LINE)?;
        let second = asking.iter().zip(&told).map(|(&at, told)| {
            let turns =
                [asked[at].clone(), message(Role::Assistant, &first[at]), message(Role::User, &tell(told))];
            read(&turns, "")
        });
        let second = self.reasoner.answers(&second.collect::<Result<Vec<_>>>()?, 0.0, VERDICT)?;

        let mut marks = Marks::default();
        let solved = |verdict: &str, example: &Example| {
            verdict.split_once("SOLVED :").is_some_and(|(_, answer)| answer.trim() == example.answer)
        };
        for (at, example) in examples.iter().enumerate() {
            let asks = asking.binary_search(&at).ok();
            let right = solved(&first[at], example);
            marks.count("right at once", right);
            marks
                .count("right if made to answer", asks.map_or(right, |i| forced[i].trim() == example.answer));
            marks.count("asks", asks.is_some());
            marks.count("right, clarified once", asks.map_or(right, |i| solved(&second[i], example)));
        }
        Ok(marks)
    }
}

fn kind_of_verdict(turn: usize, missing: usize) -> &'static str {
    match (turn, missing) {
        (0, 0) => "solved, nothing missing",
        (0, 1) => "asks for the one missing",
        (0, _) => "asks for the first of two missing",
        (_, 0) => "solved, after clarification",
        _ => "asks again for the other",
    }
}

impl Candidate<'_> {
    fn asked(&self, text: &str, scene: Option<&Scene>) -> Result<ReadPrompt> {
        self.lessons.read_words(&prompt(&[message(Role::User, text)]), scene)
    }

    /// What it says to prompts.
    fn answers(&self, prompts: &[ReadPrompt], temperature: f32, max_tokens: usize) -> Result<Vec<String>> {
        let pages = TOGETHER * pages_for(LONGEST);
        let limits = Limits { pages, tokens: 2048, sequences: TOGETHER };
        let mut engine = Engine::new(self.model, &self.tokenizer, &self.end, limits)?;
        let mut features = Features::default();
        let mut answers = vec![String::new(); prompts.len()];
        for (read, seed) in prompts.iter().zip(0..) {
            let input = Arc::new(Input::prepare_with(self.model, read, &mut features)?);
            let sampling = Sampling { max_tokens, temperature, ..Sampling::default() };
            engine.submit(Job { input, sampling, seeds: vec![seed], adapter: None })?;
        }
        while !engine.is_idle() {
            for event in engine.step()? {
                match event {
                    Event::Text { .. } => {}
                    Event::Failed { error, .. } => return Err(error),
                    Event::Finished { ticket, completion, .. } => {
                        let answer = answers.get_mut(ticket.0 as usize);
                        *answer.ok_or_else(|| Error::internal("exam", "an answer to nothing"))? =
                            completion.text.trim().to_owned();
                    }
                }
            }
        }
        Ok(answers)
    }
}
