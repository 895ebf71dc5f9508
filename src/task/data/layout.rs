//! Which column means what: our own names, and the layouts in which data sets are published.
//!
//! Where a data set has a column for something, its name is here; what a layout says in a way of its own (options in
//! one text, pictures in seven columns) is brought into shape by the flags.

use crate::error::{Error, Result, unknown};
use std::borrow::Cow;

/// Names of columns, in order of preference; `a.b` is a column inside another.
pub type Names = Cow<'static, [Cow<'static, str>]>;

/// Where a row has what.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// A name for the row, which no other row has.
    pub id: Names,
    /// Pictures: paths, bytes, `{bytes, path}`, base64, data URLs, one or a list. All that are there are taken from
    /// the first column that has one.
    pub images: Names,
    /// The question; the first that is not blank. A conversation is asked by its last user turn.
    pub question: Names,
    /// The right answer.
    pub answer: Names,
    /// The options.
    pub choices: Names,
    /// What kind of answer is asked for, by a name that the verifier knows; others are ignored.
    pub answer_type: Names,
    /// What the problem is about.
    pub subject: Names,
    /// How hard it is.
    pub difficulty: Names,
    /// Several questions about the row's pictures, each with an answer and options under their names.
    pub questions: Names,
    /// How many decimals of the answer count.
    pub precision: Names,
    /// How far from the answer a number may lie, where no precision is given.
    pub tolerance: Option<f64>,
    /// A folder in which picture files are.
    pub folder: &'static str,
    /// Pictures stand in these columns, all of them.
    pub numbered_images: Names,
    /// What is asked where the question stands in the picture.
    pub fallback_question: Option<&'static str>,
    /// Ids repeat from file to file.
    pub ids_per_file: bool,
    /// Whether a row without a picture is a fault.
    pub needs_image: bool,
    /// Columns that were asked for by [`Layout::set`]: some row has to have each.
    pub asked: Vec<String>,
}

const fn names(names: &'static [Cow<'static, str>]) -> Names {
    Cow::Borrowed(names)
}

macro_rules! names {
    ($($name:literal),*) => { names(&[$(Cow::Borrowed($name)),*]) };
}

impl Default for Layout {
    /// Our own layout, of which verl's `{data_source, prompt, images, reward_model, extra_info}` is a part.
    fn default() -> Self {
        Layout {
            id: names!["id", "qid", "pid", "extra_info.index"],
            images: names!["images", "image"],
            question: names!["question", "problem", "prompt"],
            answer: names!["answer", "solution", "reward_model.ground_truth"],
            choices: names!["choices", "options"],
            answer_type: names!["answer_type"],
            subject: names!["subject", "data_source"],
            difficulty: names!["difficulty", "level"],
            questions: names!["questions"],
            precision: names![],
            tolerance: None,
            folder: "",
            numbered_images: names![],
            fallback_question: None,
            ids_per_file: false,
            needs_image: true,
            asked: Vec::new(),
        }
    }
}

impl Layout {
    /// Every published layout by its name.
    pub const NAMES: [&'static str; 9] = [
        "mathvista",
        "mathvision",
        "mathverse",
        "wemath",
        "dynamath",
        "logicvista",
        "mmmu_pro",
        "geometry3k",
        "virl39k",
    ];

    /// The layout of this name: one of [`Layout::NAMES`].
    pub fn named(name: &str) -> Option<Self> {
        let layout = Layout::default();
        Some(match name.to_ascii_lowercase().replace(['-', ' '], "_").as_str() {
            // pid, question, image (a path), decoded_image, choices, unit, precision, answer (of an option: its
            // content), question_type, answer_type (text, integer, float, list), metadata {task, grade, skills, ...}, query
            "mathvista" => Layout {
                id: names!["pid"],
                images: names!["decoded_image", "image"],
                subject: names!["metadata.task"],
                difficulty: names!["metadata.grade"],
                precision: names!["precision"],
                ..layout
            },
            // id, question, options, image (a path), decoded_image, answer (of options: the letter), solution, level,
            // subject
            "mathvision" => {
                Layout { images: names!["decoded_image", "image"], answer: names!["answer"], ..layout }
            }
            // sample_index, problem_index, problem_version, question (blank where it stands in the picture), image,
            // answer, question_type (multi-choice, free-form), metadata {subject, subfield, ...}, query_wo, query_cot,
            // question_for_eval; options stand in the question
            "mathverse" => Layout {
                id: names!["sample_index"],
                question: names!["question", "query_wo"],
                answer: names!["answer"],
                answer_type: names!["question_type"],
                subject: names!["metadata.subject"],
                difficulty: names!["problem_version"],
                ..layout
            },
            // ID (of a problem and its steps), split, knowledge concept, question, option (all in one text), answer (the
            // letter), image_path (a picture, or a path), key (2steps_1, ...), question number, knowledge concept description
            "wemath" => Layout {
                id: names!["question number"],
                images: names!["image_path"],
                choices: names!["option"],
                subject: names!["knowledge concept"],
                difficulty: names!["key"],
                ..layout
            },
            // id (the same in every variant's file), question, image (a path), decoded_image, ground_truth, answer_type (float,
            // multiple choice, text), subject, knowledge_level
            "dynamath" => Layout {
                images: names!["decoded_image", "image"],
                answer: names!["ground_truth"],
                difficulty: names!["knowledge_level"],
                tolerance: Some(1e-3),
                ids_per_file: true,
                ..layout
            },
            // An object of rows by id: imagename (in images/), question (with its options), answer (one or more letters),
            // reasoning, skill, capability, imagesource, sourcelink
            "logicvista" => Layout {
                images: names!["imagename", "image"],
                subject: names!["skill"],
                folder: "images",
                ..layout
            },
            // id, question, options (a list as Python writes it), explanation, image_1 to image_7, img_type, answer (the letter),
            // topic_difficulty, subject; of the set for vision alone: id, image, options, answer, subject
            "mmmu_pro" => Layout {
                numbered_images: names![
                    "image_1", "image_2", "image_3", "image_4", "image_5", "image_6", "image_7"
                ],
                difficulty: names!["topic_difficulty"],
                fallback_question: Some("Answer the question in the picture."),
                ..layout
            },
            // On the hub: images, problem, answer. From its authors, a folder per problem with img_diagram.png and data.json:
            // problem_text, choices, answer (the letter), problem_type_graph, problem_type_goal, ...
            "geometry3k" => Layout {
                question: names!["problem", "problem_text", "compact_text"],
                choices: names!["choices", "compact_choices"],
                subject: names!["problem_type_graph"],
                ..layout
            },
            // question, answer (boxed), PassRate_32BTrained, PassRate_7BBase, category, source, qid, image (a list of paths)
            "virl39k" => Layout { id: names!["qid"], subject: names!["category"], ..layout },
            _ => return None,
        })
    }

    /// What [`Layout::set`] knows.
    pub const COLUMNS: [&'static str; 9] =
        ["id", "image", "question", "answer", "choices", "answer_type", "subject", "difficulty", "questions"];

    /// Asks for one of [`Layout::COLUMNS`] in this column of the files and in no other.
    pub fn set(&mut self, what: &str, column: &str) -> Result<()> {
        let names = match what {
            "id" => &mut self.id,
            "image" => {
                self.numbered_images = names![];
                &mut self.images
            }
            "question" => &mut self.question,
            "answer" => &mut self.answer,
            "choices" => &mut self.choices,
            "answer_type" => &mut self.answer_type,
            "subject" => &mut self.subject,
            "difficulty" => &mut self.difficulty,
            "questions" => &mut self.questions,
            _ => return Err(Error::caller("data.keys", unknown(what, &Layout::COLUMNS))),
        };
        *names = Cow::Owned(vec![Cow::Owned(column.to_owned())]);
        self.asked.push(column.to_owned());
        Ok(())
    }
}
