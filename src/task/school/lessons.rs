//! What pupils are taught, lesson by lesson, and how much each kind of lesson counts.

use crate::error::Result;
use crate::format::ModelFolder;
use crate::model::Model;
use crate::prompt::expand::{Prompt, Span};
use crate::prompt::image::{Geometry, ImageProcessor, ProcessedImage, Rgb};
use crate::prompt::reader::ReadPrompt;
use crate::task::world::*;
use crate::train::Lesson;
use std::sync::Arc;

/// Scenes of a captioner's step, and dialogues of a step.
const SCENES: usize = 16;
const SOLVED_ASIDE: usize = 8;
const DIALOGUES: usize = 16;

/// Requests about one scene, and questions about one long caption.
const REQUESTS: usize = 3;
const QUESTIONS: usize = 6;

/// Who is taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curriculum {
    /// Seeing scenes, describing them and answering requests; and, for roles that one model plays alone, reasoning.
    Captioner {
        /// How often a caption says what is asked for, in percent.
        told: usize,
    },
    /// Saying captions again, then reasoning about them.
    Reasoner {
        /// Steps of only saying captions again.
        warmup: u64,
    },
}

impl Curriculum {
    /// The rate when warm.
    pub fn learning_rate(self) -> f64 {
        match self {
            Curriculum::Captioner { .. } => 2e-3,
            Curriculum::Reasoner { .. } => 1e-3,
        }
    }

    /// Which draws it takes from a seed; seeing takes the first.
    pub(super) fn stage(self) -> u64 {
        match self {
            Curriculum::Captioner { .. } => 1,
            Curriculum::Reasoner { .. } => 2,
        }
    }
}

/// A kind of lesson.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Everything there is to see.
    Dense,
    /// A caption for a question.
    Caption,
    /// What was asked for.
    Clarification,
    /// Reasoning, by a model that reads pictures.
    Aside,
    /// Reasoning, and saying captions again.
    Reasoning,
}

impl Kind {
    /// What all lessons of a kind count in a step: this times the mean over their tokens.
    pub fn weight(self) -> f64 {
        match self {
            Kind::Dense | Kind::Clarification | Kind::Reasoning => 1.0,
            Kind::Caption | Kind::Aside => 0.5,
        }
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dense => "dense",
            Kind::Caption => "caption",
            Kind::Clarification => "clarify",
            Kind::Aside => "aside",
            Kind::Reasoning => "reason",
        }
    }
}

/// Pictures of scenes, as a model's tower reads them.
#[derive(Debug)]
pub(super) struct Pictures(ImageProcessor);

impl Pictures {
    /// The built-in captioner's.
    pub(super) fn new(model: &Model) -> Result<Self> {
        let folder = ModelFolder::find("builtin:tiny-captioner")?;
        Ok(Pictures(ImageProcessor::new(&folder.image_processor(&model.config)?, PICTURE_TOKENS)?))
    }

    pub(super) fn of(&self, scene: &Scene) -> Result<ProcessedImage> {
        self.0.process(&Rgb::new(SIDE, SIDE, Picture::draw(scene).pixels().to_vec())?)
    }

    /// Patches as rows, and their grid.
    pub(super) fn patches(&self, scene: &Scene) -> Result<(Vec<f32>, [usize; 3])> {
        let ProcessedImage { pixels, geometry, .. } = self.of(scene)?;
        match geometry {
            Geometry::Patches { grid } => Ok((pixels, grid)),
            Geometry::Tiles { .. } => Err(crate::Error::internal("pretrain", "tiles of a tiny picture")),
        }
    }
}

/// What is said to an assistant, and its answer, turn by turn.
pub(super) type Dialogue = Vec<[String; 2]>;

/// Makes lessons.
#[derive(Debug)]
pub struct Lessons {
    vocabulary: Vocabulary,
    /// None for a model that reads text only.
    pictures: Option<Pictures>,
}

impl Lessons {
    /// Lessons for a model.
    pub fn new(model: &Model) -> Result<Self> {
        let pictures = model.tower.as_ref().map(|_| Pictures::new(model)).transpose()?;
        Ok(Lessons { vocabulary: Vocabulary::default(), pictures })
    }

    /// The lessons of a step; those of each kind count what the kind does.
    pub fn draw(
        &self,
        curriculum: Curriculum,
        step: u64,
        chance: &mut Chance,
    ) -> Result<Vec<(Kind, Lesson)>> {
        let mut lessons = Vec::new();
        match curriculum {
            Curriculum::Captioner { told } => {
                for _ in 0..SCENES {
                    lessons.extend(self.about_a_scene(told, chance)?);
                }
                for _ in 0..SOLVED_ASIDE {
                    lessons.extend(self.tagged(Kind::Aside, &[dialogue(chance)], None)?);
                }
            }
            Curriculum::Reasoner { warmup } => {
                for _ in 0..DIALOGUES {
                    let restates = step < warmup;
                    let dialogues = match restates || chance.percent(60) {
                        true => about_a_long_caption(restates, chance),
                        false => vec![dialogue(chance)],
                    };
                    lessons.extend(self.tagged(Kind::Reasoning, &dialogues, None)?);
                }
            }
        }
        weigh(&mut lessons);
        Ok(lessons)
    }

    /// What a captioner says about one scene.
    fn about_a_scene(&self, told: usize, chance: &mut Chance) -> Result<Vec<(Kind, Lesson)>> {
        let scene = Scene::random(chance, 4, 5);
        let question = Question::random(chance, &scene);
        let caption = telling_caption(&scene, &question, told, chance);
        let mut kinds = vec![Kind::Dense, Kind::Caption];
        let mut dialogues = vec![
            vec![[ask_for_everything(), full_caption(&scene, chance)]],
            vec![[ask_for_caption(&question.to_string()), caption]],
        ];
        for _ in 0..REQUESTS {
            let name = scene.objects[chance.below(scene.objects.len())].name;
            let attribute = chance.one(&[Attribute::Number, Attribute::Position]);
            let request = Request { name, attribute };
            let answer = request.clarification(&scene).unwrap_or_default();
            kinds.push(Kind::Clarification);
            dialogues.push(vec![[ask_for_clarification(&request.to_string()), answer]]);
        }
        let lessons = self.group(&dialogues, Some(&scene))?;
        Ok(kinds.into_iter().zip(lessons).collect())
    }

    fn tagged(
        &self,
        kind: Kind,
        dialogues: &[Dialogue],
        scene: Option<&Scene>,
    ) -> Result<Vec<(Kind, Lesson)>> {
        Ok(self.group(dialogues, scene)?.into_iter().map(|lesson| (kind, lesson)).collect())
    }

    /// A lesson for each of some dialogues; what they have in common before anything is answered is their prompt.
    pub(super) fn group(&self, dialogues: &[Dialogue], scene: Option<&Scene>) -> Result<Vec<Lesson>> {
        let scripts = dialogues.iter().map(|dialogue| self.script(dialogue)).collect::<Result<Vec<_>>>()?;
        let common = |at: &usize| {
            let first = scripts[0].get(*at);
            first.is_some_and(|(_, said)| !said) && scripts.iter().all(|script| script.get(*at) == first)
        };
        let shared = (0..).take_while(common).count();
        let tokens: Vec<u32> = scripts[0][..shared].iter().map(|(token, _)| *token).collect();
        let prompt = Arc::new(self.read(tokens, scene)?);
        let lesson = |script: Vec<(u32, bool)>| {
            let (tokens, said): (Vec<u32>, Vec<bool>) = script[shared..].iter().copied().unzip();
            let weights = said.into_iter().map(|said| if said { 1.0 } else { 0.0 }).collect();
            Lesson { prompt: prompt.clone(), tokens, weights }
        };
        Ok(scripts.into_iter().map(lesson).collect())
    }

    /// The tokens of a dialogue, and which of them are the assistant's own.
    fn script(&self, dialogue: &Dialogue) -> Result<Vec<(u32, bool)>> {
        let mut script = Vec::new();
        for [asked, answer] in dialogue {
            let given = self.vocabulary.encode(&prompt(&[message(Role::User, asked)]))?;
            let said = self.vocabulary.encode(&format!("{answer} <|im_end|>"))?;
            script.extend(given.into_iter().map(|token| (token, false)));
            script.extend(said.into_iter().map(|token| (token, true)));
        }
        Ok(script)
    }

    /// Tokens as a prompt, with the picture of a scene where its placeholders stand.
    pub(super) fn read(&self, tokens: Vec<u32>, scene: Option<&Scene>) -> Result<ReadPrompt> {
        let (mut spans, mut images) = (Vec::new(), Vec::new());
        if let (Some(scene), Some(pictures)) = (scene, &self.pictures) {
            let opened = self.vocabulary.encode("<|vision_start|>")?[0];
            let start = tokens.iter().position(|token| *token == opened).map_or(0, |at| at + 1);
            spans.push(Span { image: 0, tokens: start..start + PICTURE_TOKENS });
            images.push(pictures.of(scene)?);
        }
        Ok(ReadPrompt { prompt: Prompt { tokens, spans }, images })
    }

    /// As [`Lessons::read`], of words.
    pub(super) fn read_words(&self, words: &str, scene: Option<&Scene>) -> Result<ReadPrompt> {
        self.read(self.vocabulary.encode(words)?, scene)
    }
}

/// The lessons of each kind count what the kind does, every token of theirs alike.
fn weigh(lessons: &mut [(Kind, Lesson)]) {
    let mut tokens = std::collections::BTreeMap::new();
    for (kind, lesson) in lessons.iter() {
        *tokens.entry(*kind).or_insert(0.0) += lesson.weights.iter().sum::<f64>();
    }
    for (kind, lesson) in lessons {
        let scale = kind.weight() / tokens[kind];
        lesson.weights.iter_mut().for_each(|weight| *weight *= scale);
    }
}

/// A question, asked with a caption and answered as soon as nothing is missing.
fn dialogue(chance: &mut Chance) -> Dialogue {
    let scene = Scene::random(chance, 4, 5);
    let question = Question::random(chance, &scene);
    reasoning(&scene, &question, mixed_caption(&scene, &question, chance))
}

/// What a perfect reasoner says, turn by turn.
pub(super) fn reasoning(scene: &Scene, question: &Question, caption: String) -> Dialogue {
    let mut asked = ask_for_answer(&caption, &question.to_string());
    let (mut texts, mut dialogue) = (vec![caption], Vec::new());
    loop {
        let heard: Vec<&str> = texts.iter().map(String::as_str).collect();
        let verdict = Verdict::of(question, &heard);
        dialogue.push([asked, verdict.to_string()]);
        let Some(told) = verdict.decision.err().and_then(|request| request.clarification(scene)) else {
            return dialogue;
        };
        asked = tell(&told);
        texts.push(told);
    }
}

/// A long caption said again, or asked several questions.
fn about_a_long_caption(restates: bool, chance: &mut Chance) -> Vec<Dialogue> {
    let scene = Scene::random(chance, 5, 9);
    let caption = long_caption(&scene, chance);
    if restates || chance.percent(35) {
        let again = restated(&caption, chance);
        return vec![vec![[ask_to_restate(&caption), again]]];
    }
    let ask = |_| {
        let question = Question::random(chance, &scene);
        let verdict = Verdict::of(&question, &[&caption]).to_string();
        vec![[ask_for_answer(&caption, &question.to_string()), verdict]]
    };
    (0..QUESTIONS).map(ask).collect()
}
