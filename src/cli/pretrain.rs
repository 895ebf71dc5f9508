//! `pellucid pretrain`: the built-in models, made.

use super::Global;
use anyhow::Result;
use pellucid::backend::cpu::Cpu;
use pellucid::format::ModelFolder;
use pellucid::model::Model;
use pellucid::task::school::{Class, Curriculum, Exam, Eyes, Marks, fresh};
use pellucid::task::world::{HELD_OUT, TOLD};
use pellucid::tensor::Dtype;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Make the built-in models: teach fresh weights the tiny world, on a CPU, and examine them
///
/// The captioner and the reasoner learn side by side, each with half of the threads. Weights are a function of --seed
/// and the options below. The built-in models are those of --seed 0 and no options.
///
/// Example: pellucid pretrain --out assets --threads 2
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the folders tiny-captioner and tiny-reasoner go; those there are replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Make only one of them, or none, and examine what is there
    #[arg(long, value_name = "WHICH")]
    only: Option<Part>,

    /// How often the captions that are learned from say what is asked for, in percent
    #[arg(long, value_name = "N", default_value_t = TOLD as u8, value_parser = clap::value_parser!(u8).range(0..=100))]
    told: u8,

    /// Steps of learning to see
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = steps())]
    looking_steps: u64,

    /// Steps of learning to caption and to clarify
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = steps())]
    captioner_steps: u64,

    /// Steps of learning to reason
    #[arg(long, value_name = "N", default_value_t = 1600, value_parser = steps())]
    reasoner_steps: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Captioner,
    Reasoner,
    Exam,
}

fn steps() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=1_000_000)
}

/// Steps of the reasoner in which it only says captions again, at most.
const WARMUP: u64 = 250;

/// Steps from one line of progress to the next.
const EVERY: u64 = 50;

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let threads =
        global.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let school = &School { arguments, seed: global.seed(), quiet: global.quiet, begun: Instant::now() };
    match arguments.only {
        Some(Part::Captioner) => school.captioner(threads)?,
        Some(Part::Reasoner) => school.reasoner(threads)?,
        Some(Part::Exam) => {}
        None => std::thread::scope(|scope| {
            let half = threads.div_ceil(2);
            let reasoner = scope.spawn(move || school.reasoner(half));
            let captioner = school.captioner(half);
            let reasoner = reasoner.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            captioner.and(reasoner)
        })?,
    }
    let folders = ["tiny-captioner", "tiny-reasoner"].map(|name| arguments.out.join(name));
    if folders.iter().all(|folder| folder.is_dir()) {
        let marks = school.exam(&folders, threads)?;
        global.print(&marks)?;
    }
    Ok(())
}

struct School<'a> {
    arguments: &'a Arguments,
    seed: u64,
    quiet: bool,
    begun: Instant,
}

impl School<'_> {
    fn captioner(&self, threads: usize) -> Result<()> {
        let folder = ModelFolder::find("builtin:tiny-captioner")?;
        let steps = self.arguments.looking_steps;
        let mut eyes = Eyes::new(fresh(load(folder.path(), threads)?, self.seed)?, self.seed, steps)?;
        for step in 1..=steps {
            let sight = eyes.step()?;
            if step % EVERY == 0 || step == steps {
                let right: Vec<String> = sight.right.iter().map(|right| format!("{right:.3}")).collect();
                let loss: f64 = sight.losses.iter().sum();
                self.say(&format!("looking    {step:5}  loss {loss:.4}  right {}", right.join(" ")));
            }
        }
        let curriculum = Curriculum::Captioner { told: self.arguments.told.into() };
        self.attend("captioner", eyes.into_model(), curriculum, self.arguments.captioner_steps, &folder)
    }

    fn reasoner(&self, threads: usize) -> Result<()> {
        let folder = ModelFolder::find("builtin:tiny-reasoner")?;
        let steps = self.arguments.reasoner_steps;
        let curriculum = Curriculum::Reasoner { warmup: WARMUP.min(steps / 2) };
        let model = fresh(load(folder.path(), threads)?, self.seed)?;
        self.attend("reasoner", model, curriculum, steps, &folder)
    }

    /// Teaches a model and writes it.
    fn attend(
        &self,
        name: &str,
        model: Model,
        curriculum: Curriculum,
        steps: u64,
        source: &ModelFolder,
    ) -> Result<()> {
        let mut class = Class::new(model, curriculum, self.seed, steps)?;
        for step in 1..=steps {
            let stats = class.step()?;
            if step % EVERY == 0 || step == steps {
                let losses = class.losses()?;
                let losses: Vec<String> =
                    losses.iter().map(|(kind, loss)| format!("{} {loss:.4}", kind.name())).collect();
                let norm = stats.grad_norm;
                self.say(&format!("{name:10} {step:5}  {}  norm {norm:.2}", losses.join("  ")));
            }
        }
        let folder = self.arguments.out.join(format!("tiny-{name}"));
        class.model().write(&folder, source, Dtype::BF16)?;
        self.say(&format!("{name} is in {}", folder.display()));
        Ok(())
    }

    /// Skills on 600 examples each, and the 1,000 held-out problems.
    fn exam(&self, folders: &[PathBuf; 2], threads: usize) -> Result<Marks> {
        let backend = Arc::new(Cpu::new(Some(threads))?);
        let [captioner, reasoner] =
            [0, 1].map(|which: usize| Model::load(&folders[which], backend.clone(), None));
        let (captioner, reasoner) = (captioner?, reasoner?);
        let exam = Exam::new(&captioner, &reasoner)?;
        let mut marks = exam.skills(HELD_OUT - 1, 600)?;
        marks.0.extend(exam.problems(HELD_OUT, 1000, 1.0)?.0);
        Ok(marks)
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{:6.1} s  {line}", self.begun.elapsed().as_secs_f64());
        }
    }
}

/// A model on the CPU, in f32: bf16 is too coarse to learn in.
fn load(folder: &Path, threads: usize) -> Result<Model> {
    Ok(Model::load(folder, Arc::new(Cpu::new(Some(threads))?), Some(Dtype::F32))?)
}
