//! A small file in every layout that is published, with the columns it has there.

use super::{folder, lines, load, open, pictures, write};
use pellucid::task::data::{Layout, Problem};
use pellucid::task::verify::{AnswerType, Policy, Verdict};
use serde_json::{Value, json};

fn layout(name: &str) -> Layout {
    Layout::named(name).expect("is published")
}

/// Whether these answers are right.
#[track_caller]
fn right(problem: &Problem, right: &[&str], wrong: &[&str]) {
    for (answers, verdict) in [(right, Verdict::Right), (wrong, Verdict::Wrong)] {
        for answer in answers {
            let grade = problem.grade(&format!("\\boxed{{{answer}}}"), &Policy::default());
            assert_eq!(grade.verdict, verdict, "{answer} for {}: {grade:?}", problem.answer);
        }
    }
}

/// The one problem of a file of JSON lines.
fn one(name: &str, row: Value) -> Problem {
    let (_folder, mut loaded) = load(&layout(name), &[row]);
    assert_eq!(loaded.faults, []);
    loaded.problems.remove(0)
}

/// A picture as the hub's viewer gives it.
fn picture() -> Value {
    json!({"bytes": "iVBORw0KGgo=", "path": null})
}

#[test]
fn every_name_has_a_layout() {
    assert!(Layout::NAMES.iter().all(|name| Layout::named(name).is_some()));
    assert!(Layout::named("MMMU-Pro").is_some() && Layout::named("imagenet").is_none());
}

#[test]
fn verl() {
    let row = json!({
        "data_source": "hiyouga/geometry3k",
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "<image>Find x."}],
        "images": [picture()],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3\\sqrt{2}"},
        "extra_info": {"split": "train", "index": 5, "question": "Find x."}
    });
    let (_folder, loaded) = load(&Layout::default(), &[row]);
    let problem = &loaded.problems[0];
    assert_eq!((problem.id.as_str(), problem.question.as_str()), ("5", "Find x."));
    assert_eq!((problem.images.len(), problem.subject.as_deref()), (1, Some("hiyouga/geometry3k")));
    assert_eq!(problem.extra["ability"], "math");
    right(problem, &["\\sqrt{18}"], &["3"]);
}

#[test]
fn mathvista() {
    let row = |pid: &str, choices: Value, answer: &str, answer_type: &str, precision: Value| {
        json!({
            "pid": pid, "question": "How long?", "image": "images/gone.jpg", "decoded_image": picture(), "choices": choices,
            "unit": "cm", "precision": precision, "answer": answer,
            "question_type": if choices.is_null() { "free_form" } else { "multi_choice" }, "answer_type": answer_type,
            "metadata": {"task": "geometry problem solving", "grade": "high school", "skills": ["geometry reasoning"]},
            "query": "Hint: ..."
        })
    };
    let choice = one("mathvista", row("1", json!(["2.5", "4.5"]), "4.5", "float", json!(null)));
    assert_eq!((choice.id.as_str(), choice.gold.answer_type()), ("1", AnswerType::Choice));
    assert_eq!(choice.subject.as_deref(), Some("geometry problem solving"));
    assert_eq!((choice.difficulty.as_deref(), &choice.extra["unit"]), (Some("high school"), &json!("cm")));
    right(&choice, &["B", "(B) 4.5", "4.5"], &["A", "2.5", "5"]);
    let float = one("mathvista", row("2", json!(null), "1.2", "float", json!(1.0)));
    right(&float, &["1.2", "1.24", "1.2 cm"], &["1.3"]);
    let whole = one("mathvista", row("3", json!(null), "1000", "integer", json!(null)));
    right(&whole, &["1000", "1,000"], &["1000.2"]);
    let list = one("mathvista", row("4", json!(null), "[1, 2, 3]", "list", json!(null)));
    right(&list, &["[1, 2, 3]", "1, 2, 3"], &["1, 2"]);
}

#[test]
fn mathvision() {
    let row = |options: Value, answer: &str| {
        json!({"id": "4", "question": "Which one?\n<image1>", "options": options, "image": "images/gone.jpg",
            "decoded_image": picture(), "answer": answer, "solution": null, "level": 2, "subject": "counting"})
    };
    let choice = one("mathvision", row(json!(["A", "B", "C", "D", "E"]), "C"));
    assert_eq!((choice.question.as_str(), choice.difficulty.as_deref()), ("Which one?", Some("2")));
    right(&choice, &["C"], &["D"]);
    right(&one("mathvision", row(json!(["1", "3"]), "B")), &["B", "3"], &["1"]);
    right(&one("mathvision", row(json!([]), "\\frac{1}{2}")), &["0.5"], &["B"]);
}

#[test]
fn mathverse() {
    let row = |question: &str, version: &str, kind: &str, answer: &str| {
        json!({"sample_index": "7", "problem_index": "2", "problem_version": version, "question": question,
            "image": picture(), "answer": answer, "question_type": kind,
            "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"},
            "query_wo": "Answer by a letter.", "query_cot": "Reason.", "question_for_eval": "..."})
    };
    let text = one("mathverse", row("Angle?\nChoices:\nA:145°\nB:35°", "Text Dominant", "multi-choice", "A"));
    assert_eq!((text.id.as_str(), text.subject.as_deref()), ("7", Some("Plane Geometry")));
    assert_eq!(text.difficulty.as_deref(), Some("Text Dominant"));
    right(&text, &["A", "A:145°"], &["B"]);
    let blank = one("mathverse", row("", "Vision Only", "multi-choice", "A"));
    assert_eq!(blank.question, "Answer by a letter.");
    right(&one("mathverse", row("x?", "Vision Intensive", "free-form", "2x+1")), &["1 + 2x"], &["2x"]);
}

#[test]
fn wemath() {
    let row = json!({"ID": "3steps_3", "split": "testmini", "knowledge concept": "Area of Circles", "question": "Area?",
        "option": "A. 200.96;B. 3215.36;C. 6280;D. 32; E. No correct answer", "answer": "B", "image_path": picture(),
        "key": "3steps_multi", "question number": 1575, "knowledge concept description": "..."});
    let problem = one("wemath", row);
    assert_eq!(problem.choices, ["200.96", "3215.36", "6280", "32", "No correct answer"]);
    assert_eq!((problem.id.as_str(), &problem.extra["ID"]), ("1575", &json!("3steps_3")));
    assert_eq!(
        (problem.subject.as_deref(), problem.difficulty.as_deref()),
        (Some("Area of Circles"), Some("3steps_multi"))
    );
    right(&problem, &["B", "3215.36"], &["32", "E"]);
}

#[test]
fn dynamath() {
    let row = |answer: &str, kind: &str| {
        json!({"id": "1", "question": "Period?", "image": "images/gone.png", "decoded_image": picture(),
            "ground_truth": answer, "answer_type": kind, "subject": "graph theory", "knowledge_level": "high school"})
    };
    let float = one("dynamath", row("3.142", "float"));
    assert_eq!((float.id.as_str(), float.difficulty.as_deref()), ("rows/1", Some("high school")));
    right(&float, &["3.1415", "\\pi"], &["3.15"]);
    right(&one("dynamath", row("B", "multiple choice")), &["B"], &["A"]);
    right(&one("dynamath", row("even", "text")), &["Even"], &["odd"]);
    // The variants of a problem share its id.
    let folder = folder();
    for variant in ["sample1.jsonl", "sample2.jsonl"] {
        write(folder.path(), &format!("data/{variant}"), lines(&[row("1", "float")]));
    }
    assert_eq!(open(&folder.path().join("data"), &layout("dynamath")).problems.len(), 2);
}

#[test]
fn logicvista() {
    let row = |answer: &str| {
        json!({"imagename": "2.png", "question": "Which choice (A, B, C, or D)?", "answer": answer, "reasoning": "...",
            "skill": ["inductive"], "capability": ["diagram", "ocr"], "imagesource": "here", "sourcelink": "there"})
    };
    let folder = folder();
    let rows = json!({"v1_0": row("C"), "v1_1": row("A, D")});
    let loaded = open(&write(folder.path(), "dataset.json", rows.to_string()), &layout("logicvista"));
    assert_eq!(loaded.faults, []);
    let [one, several] = loaded.problems.as_slice() else { panic!("two problems") };
    assert_eq!((one.id.as_str(), one.subject.as_deref()), ("v1_0", Some("inductive")));
    assert_eq!(pictures(one), [b"images/2.png".to_vec()]);
    right(one, &["C"], &["D"]);
    right(several, &["D, A", "AD"], &["A"]);
}

#[test]
fn mmmu_pro() {
    let standard = json!({"id": "test_History_1", "question": "Is it <image 1> or <image 2>?",
        "options": "['Before', \"1857's\", 'Both', 'Neither']", "explanation": "?", "image_1": picture(), "image_2": picture(),
        "image_3": null, "img_type": "['Maps']", "answer": "B", "topic_difficulty": "Medium", "subject": "History"});
    let problem = one("mmmu_pro", standard);
    assert_eq!((problem.images.len(), problem.question.as_str()), (2, "Is it <image 1> or <image 2>?"));
    assert_eq!((problem.choices[1].as_str(), problem.difficulty.as_deref()), ("1857's", Some("Medium")));
    right(&problem, &["B", "1857's"], &["Both", "A"]);
    let vision = json!({"id": "test_History_2", "image": picture(), "options": "['1', '2']", "answer": "A",
        "subject": "History"});
    assert_eq!(one("mmmu_pro", vision).question, "Answer the question in the picture.");
}

#[test]
fn geometry3k() {
    let hub = json!({"images": [picture()], "problem": "<image>Find x.", "answer": "8 \\sqrt { 2 }"});
    let problem = one("geometry3k", hub);
    assert_eq!(problem.question, "Find x.");
    right(&problem, &["8\\sqrt2"], &["8"]);
    // As its authors publish it.
    let folder = folder();
    for (number, answer) in [(2401, "B"), (9, "A")] {
        let row = json!({"problem_text": "Find y.", "choices": ["21", "21 \\sqrt 2"], "answer": answer,
            "problem_type_graph": ["Triangle"], "problem_type_goal": ["Length"]});
        write(folder.path(), &format!("test/{number}/data.json"), row.to_string());
        write(folder.path(), &format!("test/{number}/img_diagram.png"), number.to_string());
    }
    let loaded = open(&folder.path().join("test"), &layout("geometry3k"));
    assert_eq!(loaded.faults, []);
    let [small, large] = loaded.problems.as_slice() else { panic!("two problems") };
    assert_eq!((small.id.as_str(), large.id.as_str()), ("9", "2401"));
    assert_eq!((pictures(large), large.subject.as_deref()), (vec![b"2401".to_vec()], Some("Triangle")));
    right(large, &["B", "\\sqrt{882}"], &["21"]);
}

#[test]
fn virl39k() {
    let row = json!({"question": "<image><image>Which?", "answer": "\\boxed{17^\\circ}", "PassRate_32BTrained": 0.5,
        "PassRate_7BBase": 0.25, "category": "Geometry", "source": "MM-Math", "qid": "q-1",
        "image": ["images/2.png", "images/3.png"]});
    let problem = one("virl39k", row);
    assert_eq!((problem.id.as_str(), problem.images.len()), ("q-1", 2));
    assert_eq!(
        (problem.subject.as_deref(), &problem.extra["PassRate_32BTrained"]),
        (Some("Geometry"), &json!(0.5))
    );
    right(&problem, &["17", "17^\\circ"], &["18"]);
}
