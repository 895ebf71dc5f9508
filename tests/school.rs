//! How the built-in models are taught: lessons hold what the world says and count what they should, and classes learn the
//! same on any number of threads.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use pellucid::backend::cpu::Cpu;
use pellucid::format::ModelFolder;
use pellucid::model::Model;
use pellucid::task::school::{Class, Curriculum, Eyes, Kind, Lessons, fresh};
use pellucid::task::world::*;
use pellucid::tensor::Dtype;
use pellucid::train::Lesson;
use std::collections::BTreeMap;
use std::sync::Arc;

fn pupil(name: &str, threads: usize) -> Model {
    let folder = ModelFolder::find(&format!("builtin:tiny-{name}")).unwrap();
    let model =
        Model::load(folder.path(), Arc::new(Cpu::new(Some(threads)).unwrap()), Some(Dtype::F32)).unwrap();
    fresh(model, 7).unwrap()
}

fn drawn(name: &str, curriculum: Curriculum, step: u64) -> Vec<(Kind, Lesson)> {
    let mut chance = Chance::new(3, step, Purpose::Lesson);
    Lessons::new(&pupil(name, 1)).unwrap().draw(curriculum, step, &mut chance).unwrap()
}

/// What was said to the assistant and what it says, as a lesson has them.
fn parts(lesson: &Lesson) -> (String, String, Vec<bool>) {
    let prompt = &lesson.prompt.prompt.tokens;
    let words = Vocabulary::default();
    let learned = [vec![false; prompt.len()], lesson.weights.iter().map(|w| *w > 0.0).collect()].concat();
    (words.decode(prompt), words.decode(&[prompt.as_slice(), &lesson.tokens].concat()), learned)
}

/// The assistant's words are learned, its end token included, and nobody else's.
fn check(lesson: &Lesson) -> String {
    let (_, text, learned) = parts(lesson);
    let (mut said, mut before) = (false, "");
    for (word, learned) in text.split(' ').zip(learned) {
        said &= before != "<|im_end|>";
        assert_eq!(said, learned, "{word} in {text}");
        said |= word == "assistant" && before == "<|im_start|>";
        before = word;
    }
    assert!(before == "<|im_end|>" && said, "{text}");
    text
}

#[test]
fn a_captioner_is_taught_to_see_tell_and_reason() {
    let lessons = drawn("captioner", Curriculum::Captioner { told: TOLD }, 5);
    let mut counted: BTreeMap<Kind, (usize, f64)> = BTreeMap::new();
    for (kind, lesson) in &lessons {
        let text = check(lesson);
        let asked = match kind {
            Kind::Dense => "describe the image in full",
            Kind::Caption => "describe the image for the question :",
            Kind::Clarification => "answer the request :",
            Kind::Aside | Kind::Reasoning => "caption :",
        };
        assert!(text.contains(asked), "{text}");
        let sees = *kind != Kind::Aside;
        let spans: Vec<_> = lesson.prompt.prompt.spans.iter().map(|span| span.tokens.clone()).collect();
        assert_eq!(spans, vec![3..3 + PICTURE_TOKENS; usize::from(sees)]);
        let (count, weight) = counted.entry(*kind).or_default();
        *count += 1;
        *weight += lesson.weights.iter().sum::<f64>();
    }
    for (kind, count) in [(Kind::Dense, 16), (Kind::Caption, 16), (Kind::Clarification, 48), (Kind::Aside, 8)]
    {
        let (found, weight) = counted[&kind];
        assert_eq!(found, count, "{kind:?}");
        assert!((weight - kind.weight()).abs() < 1e-9, "{kind:?}: {weight}");
    }
    // What is told about a scene shares the picture.
    let first = &lessons[0].1.prompt;
    assert!(lessons[..5].iter().all(|(_, lesson)| Arc::ptr_eq(&lesson.prompt, first)));
    assert!(!Arc::ptr_eq(&lessons[5].1.prompt, first));
}

#[test]
fn a_reasoner_says_captions_again_before_it_reasons() {
    let curriculum = Curriculum::Reasoner { warmup: 10 };
    let texts = |step| -> Vec<String> {
        drawn("reasoner", curriculum, step).iter().map(|(_, lesson)| check(lesson)).collect()
    };
    assert!(texts(9).iter().all(|text| text.contains("describe the caption in full")));
    let later = texts(10);
    let (told, verdicts) =
        (tell(""), |text: &&String| text.contains("SOLVED") || text.contains("NEED MORE INFO"));
    assert!(later.iter().any(|text| text.contains("describe the caption in full")));
    assert!(later.iter().any(|text| text.contains(told.trim())), "some are told what they asked for");
    assert!(later.iter().filter(verdicts).count() > later.len() / 2);
}

#[test]
fn classes_learn_and_threads_change_nothing() {
    let curriculum = Curriculum::Reasoner { warmup: 8 };
    let taught = |threads| {
        let mut class = Class::new(pupil("reasoner", threads), curriculum, 1, 8).unwrap();
        let losses: Vec<f64> = (0..8).map(|_| class.step().unwrap().loss).collect();
        let weights: Vec<u8> =
            class.model().parameters().iter().flat_map(|(_, weight)| weight.bytes().to_vec()).collect();
        assert_eq!(class.losses().unwrap().len(), 1);
        (losses, weights)
    };
    let (losses, weights) = taught(1);
    assert!(losses[7] < losses[0] - 0.5, "{losses:?}");
    assert!(taught(2) == (losses, weights));
}

#[test]
fn eyes_learn_to_see() {
    let mut eyes = Eyes::new(pupil("captioner", 2), 1, 12).unwrap();
    let before = pupil("captioner", 2);
    let losses: Vec<f64> = (0..12).map(|_| eyes.step().unwrap().losses.iter().sum()).collect();
    assert!(losses[11] < losses[0] - 0.5, "{losses:?}");
    for ((name, old), (_, new)) in before.parameters().iter().zip(eyes.into_model().parameters()) {
        // A tower's biases begin at 0 and norms at 1; all of it learns, and nothing of the decoder.
        assert_eq!(name.contains("visual."), old.bytes() != new.bytes(), "{name}");
    }
}
