//! Problems from the files people have: our own layout, the published ones, and what is wrong with a row.

mod layouts;
#[cfg(feature = "parquet")]
mod parquet;

use pellucid::prompt::message::ImageReference;
use pellucid::task::data::{Layout, Loaded, Problem};
use pellucid::task::verify::{AnswerType, Policy, Verdict};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A folder with pictures `1.png` and `images/2.png`, which nobody decodes here.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::create_dir(folder.path().join("images")).expect("there is room");
    for picture in ["1.png", "images/2.png", "images/3.png"] {
        std::fs::write(folder.path().join(picture), picture).expect("there is room");
    }
    folder
}

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("is in a folder")).expect("there is room");
    std::fs::write(&path, text).expect("there is room");
    path
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn open(path: &Path, layout: &Layout) -> Loaded {
    Loaded::open(path, layout, &Policy::default()).expect("holds problems")
}

/// The rows as a file of JSON lines in a layout.
fn load(layout: &Layout, rows: &[Value]) -> (tempfile::TempDir, Loaded) {
    let folder = folder();
    let loaded = open(&write(folder.path(), "rows.jsonl", lines(rows)), layout);
    (folder, loaded)
}

/// The pictures' bytes, read if they are files.
fn pictures(problem: &Problem) -> Vec<Vec<u8>> {
    let bytes = |image: &ImageReference| match image {
        ImageReference::Path(path) => std::fs::read(path).expect("was found"),
        ImageReference::Bytes(bytes) => bytes.clone(),
    };
    problem.images.iter().map(bytes).collect()
}

#[test]
fn our_own_layout() {
    let rows = [
        json!({"id": "a", "image": "1.png", "question": "Which?", "answer": "B", "choices": ["3", "4"],
            "subject": "counting", "difficulty": 2, "source": "here"}),
        json!({"images": ["1.png", "images/2.png"], "prompt": "How many?", "solution": 7}),
        json!({"images": [], "image": "1.png", "problem": "<image>True?", "answer": true, "answer_type": "yesno"}),
    ];
    let (_folder, loaded) = load(&Layout::default(), &rows);
    assert_eq!(loaded.faults, []);
    let [first, second, third] = loaded.problems.as_slice() else { panic!("three problems") };
    assert_eq!((first.id.as_str(), first.asked().as_str()), ("a", "Which?\n(A) 3\n(B) 4"));
    assert_eq!((first.subject.as_deref(), first.difficulty.as_deref()), (Some("counting"), Some("2")));
    assert_eq!((&first.extra["source"], first.extra.get("answer")), (&json!("here"), None));
    assert_eq!(first.grade(r"\boxed{4}", &Policy::default()).verdict, Verdict::Right);
    assert_eq!((second.id.as_str(), second.answer.as_str(), second.images.len()), ("1", "7", 2));
    assert_eq!(second.grade(r"\boxed{7}", &Policy::default()).verdict, Verdict::Right);
    assert_eq!((third.question.as_str(), third.gold.answer_type()), ("True?", AnswerType::YesNo));
    assert_eq!(third.place.row, 3);
}

#[test]
fn several_questions_about_a_picture() {
    let choice =
        |answer: &str| json!({"question": "Which?", "options": ["3 cm", "4 cm", "5 cm"], "answer": answer});
    let rows = [
        json!({"image": "1.png", "questions": [choice("B"), {"problem": "How many?", "solution": 7}]}),
        json!({"image": "1.png", "question": "Own?", "answer": "1", "questions": [choice("C")]}),
        json!({"image": "1.png", "question": "Own?", "answer": "1"}),
        json!({"image": "1.png", "questions": [choice("B"), choice("E")]}),
        json!({"image": "1.png", "questions": "Which?"}),
        json!({"image": "1.png", "questions": []}),
    ];
    let (_folder, loaded) = load(&Layout::default(), &rows);
    let [first, second, third] = loaded.problems.as_slice() else { panic!("three problems") };
    let asked = |problem: &Problem| -> Vec<(String, String)> {
        problem.questions.iter().map(|one| (one.id.clone(), one.question.clone())).collect()
    };
    assert_eq!(first.question, "Which?");
    assert_eq!(asked(first), [("0/1".into(), "Which?".into()), ("0/2".into(), "How many?".into())]);
    assert_eq!(asked(second), [("1/0".into(), "Own?".into()), ("1/1".into(), "Which?".into())]);
    assert_eq!(asked(third), []);
    assert_eq!(first.questions[1].grade(r"\boxed{7}", &Policy::default()).verdict, Verdict::Right);
    let faults: Vec<String> = loaded.faults.iter().map(|fault| fault.what.clone()).collect();
    assert!(faults[0].starts_with("question 2: gold \"E\""), "{}", faults[0]);
    assert!(faults[1].contains("expected a list") && faults[2].contains("no question in"), "{faults:?}");
}

#[test]
fn options_in_another_order_have_the_same_answer() {
    let row = |answer: &str, options: Value| json!({"image": "1.png", "question": "?", "answer": answer, "choices": options});
    let plain = json!(["1", "2", "3", "4"]);
    let rows = [
        row("B", plain.clone()),
        row("AC", plain.clone()),
        row("A", json!(["A. one", "B. two", "C. three"])),
        row("A", json!(["one", "two", "all of the above"])),
        json!({"image": "1.png", "question": "?", "answer": "2"}),
    ];
    let (_folder, loaded) = load(&Layout::default(), &rows);
    let policy = Policy::default();
    let [one, several, lettered, speaking, open] = loaded.problems.as_slice() else {
        panic!("five problems")
    };
    let turned = one.reordered(&[3, 1, 0, 2], &policy).unwrap();
    assert_eq!((turned.choices.join(" "), turned.answer.as_str()), ("4 2 1 3".into(), "B"));
    let turned = one.reordered(&[1, 0, 3, 2], &policy).unwrap();
    assert_eq!((turned.choices.join(" "), turned.answer.as_str()), ("2 1 4 3".into(), "A"));
    let turned = several.reordered(&[3, 2, 1, 0], &policy).unwrap();
    assert_eq!((turned.answer.as_str(), turned.gold.answer_type()), ("BD", AnswerType::MultiChoice));
    let turned = lettered.reordered(&[2, 0, 1], &policy).unwrap();
    assert_eq!((turned.choices.join(" "), turned.answer.as_str()), ("three one two".into(), "B"));
    assert_eq!(speaking.reordered(&[2, 0, 1], &policy).unwrap(), *speaking);
    assert_eq!(open.reordered(&[], &policy).unwrap(), *open);
    for wrong in [&[0, 1, 2][..], &[0, 0, 1, 2], &[1, 2, 3, 4], &[]] {
        assert!(one.reordered(wrong, &policy).unwrap_err().to_string().contains("no order of 4 options"));
    }
}

/// Every form in which the hub and people write a picture.
#[test]
fn pictures_in_all_their_forms() {
    let bytes: Vec<u8> = (0..60).collect();
    let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7";
    let row = |image: Value| json!({"image": image, "question": "?", "answer": "1"});
    let rows = [
        row(json!("1.png")),
        row(json!({"bytes": null, "path": "images/2.png"})),
        row(json!({"bytes": base64, "path": "gone.png"})),
        row(json!(format!("data:image/png;base64,{base64}"))),
        row(json!(base64)),
        row(json!([{"bytes": base64}, "1.png"])),
    ];
    let (folder, loaded) = load(&Layout::default(), &rows);
    assert_eq!(loaded.faults, []);
    let found: Vec<Vec<Vec<u8>>> = loaded.problems.iter().map(pictures).collect();
    let file = b"1.png".to_vec();
    let wanted = [
        vec![file.clone()],
        vec![b"images/2.png".to_vec()],
        vec![bytes.clone()],
        vec![bytes.clone()],
        vec![bytes.clone()],
        vec![bytes, file],
    ];
    assert_eq!(found, wanted);
    let path = folder.path().join("1.png");
    assert_eq!(loaded.problems[0].images, [ImageReference::Path(path)]);
}

#[test]
fn what_is_wrong_is_named_by_line() {
    let good = json!({"id": 1, "image": "1.png", "question": "?", "answer": "1"});
    let with = |key: &str, value: Value| {
        let mut row = good.clone();
        row[key] = value;
        row["id"] = json!(key);
        row
    };
    let rows = [
        good.clone(),
        good.clone(),
        with("question", json!(" <image> ")),
        with("question", json!({"a": 1})),
        with("image", json!("gone.png")),
        with("image", json!([])),
        with("image", json!(3)),
        with("image", json!("https://example.org/1.png")),
        with("image", json!("data:image/png;base64,***")),
        with("answer", json!("\\frac{1")),
        with("answer", json!("")),
        with("answer", json!([1, 2])),
        with("answer", json!(null)),
        with("choices", json!(["3", "4"])),
        with("choices", json!("neither list nor letters")),
        with("answer_type", json!("yesno")),
        json!([1]),
    ];
    let folder = folder();
    let path = write(folder.path(), "rows.jsonl", lines(&rows) + "{\"image\": ");
    let loaded = open(&path, &Layout::default());
    assert_eq!(loaded.problems.len(), 1);
    let wanted = [
        "id \"1\" was used at",
        "no question in question, problem, prompt",
        "the question is an object of 1 keys",
        "picture gone.png is missing",
        "no picture in images, image",
        "a picture is 3",
        "is on the network",
        "does not decode",
        "its brackets do not match",
        "empty",
        "the answer is a list of 2",
        "no answer in answer, solution",
        "none of the 2 options",
        "expected a list, or A. ...; B. ...",
        "neither yes nor no",
        "expected an object, got a list of 1",
        "not valid json at column",
    ];
    for (fault, (line, wanted)) in loaded.faults.iter().zip((2..).zip(wanted)) {
        let text = fault.to_string();
        let place = format!("rows.jsonl:{line}: ");
        assert!(text.contains(&place) && text.contains(wanted), "line {line}: {text}");
    }
    assert_eq!(loaded.faults.len(), wanted.len());
}

#[test]
fn files_that_hold_nothing_are_errors() {
    let folder = folder();
    let fault =
        |path: &Path| Loaded::open(path, &Layout::default(), &Policy::default()).unwrap_err().to_string();
    for (name, text, wanted) in [
        ("empty.jsonl", "", "holds no rows"),
        ("bad.jsonl", "{}\n[]\n", "none of its 2 rows is a problem; the first: "),
        ("list.json", "3", "expected a list of rows"),
        ("broken.json", "[{]", "line 1, column 3: not valid json"),
        ("rows.csv", "", "expected a folder, or a file ending in"),
        (
            "rows.parquet",
            "PAR1",
            if cfg!(feature = "parquet") { "not valid parquet" } else { "feature `parquet`" },
        ),
        ("sub/notes.txt", "", "expected a folder, or a file ending in"),
    ] {
        let text = fault(&write(folder.path(), name, text));
        assert!(text.contains(wanted), "{name}: {text}");
    }
    assert!(fault(&folder.path().join("gone.jsonl")).contains("cannot be read"));
    assert!(fault(&folder.path().join("sub")).contains("holds no .jsonl or .parquet file"));
}

/// A layout as a run's configuration says it.
fn configured(changes: &[&str]) -> pellucid::error::Result<Layout> {
    let text = "captioner = { model = \"m\" }\ndata = { train = \"d\" }\nrun = { steps = 1, out = \"o\" }";
    let changes: Vec<String> = changes.iter().map(|change| format!("data.{change}")).collect();
    pellucid::rl::config::Config::parse(text, &changes)?.layout()
}

/// Columns with names of somebody's own.
const KEYS: [&str; 8] = [
    "keys.question=text.body",
    "keys.answer=gold",
    "keys.image=scan",
    "keys.id=uid",
    "keys.choices=among",
    "keys.answer_type=form",
    "keys.subject=topic",
    "keys.difficulty=stars",
];

fn own_names() -> Value {
    json!({"text": {"body": "Which?"}, "gold": "B", "scan": "1.png", "uid": "x7", "among": ["3", "4"], "form": "choice",
        "topic": "sums", "stars": "5", "question": "not this", "answer": "A", "id": "no", "image": "gone.png"})
}

fn assert_own_names(problem: &Problem) {
    assert_eq!((problem.question.as_str(), problem.answer.as_str()), ("Which?", "B"));
    assert_eq!((problem.id.as_str(), pictures(problem)), ("x7", vec![b"1.png".to_vec()]));
    assert_eq!((problem.choices.join(" ").as_str(), problem.gold.answer_type()), ("3 4", AnswerType::Choice));
    assert_eq!((problem.subject.as_deref(), problem.difficulty.as_deref()), (Some("sums"), Some("5")));
}

#[test]
fn columns_can_be_named_one_by_one() {
    let (_folder, loaded) = load(&configured(&KEYS).expect("is right"), &[own_names()]);
    assert_own_names(&loaded.problems[0]);
    // On top of a layout, whose other columns stay.
    let layout = configured(&["layout=mmmu_pro", "keys.image=scan"]).expect("is right");
    let row = json!({"id": "i", "question": "?", "options": "['1', '2']", "answer": "B", "scan": "1.png", "image_1": "gone.png"});
    let (_folder, loaded) = load(&layout, &[row]);
    assert_eq!(
        (pictures(&loaded.problems[0]), loaded.problems[0].choices.len()),
        (vec![b"1.png".to_vec()], 2)
    );
    // In several questions about a picture, too.
    let layout = configured(&["keys.question=ask", "keys.questions=several"]).expect("is right");
    let row = json!({"image": "1.png", "several": [{"ask": "One?", "answer": "1"}, {"ask": "Two?", "answer": "2"}]});
    let (_folder, loaded) = load(&layout, &[row]);
    assert_eq!(loaded.problems[0].questions[1].question, "Two?");

    let odd = configured(&["keys.anwser=gold"]).expect_err("is no key").to_string();
    assert!(odd.contains("\"anwser\" is not known (did you mean \"answer\"?)"), "{odd}");
    let folder = folder();
    let path = write(folder.path(), "rows.jsonl", lines(&[own_names()]));
    let layout = configured(&["keys.subject=topics"]).expect("is right");
    let odd = Loaded::open(&path, &layout, &Policy::default()).expect_err("is not there").to_string();
    assert!(odd.contains("rows.jsonl: no row has the column \"topics\" that data.keys names"), "{odd}");
}

#[test]
fn files_of_a_folder_are_read_in_order() {
    let folder = folder();
    let row = |id: u32| json!({"id": id, "image": "../1.png", "question": "?", "answer": "1"});
    write(folder.path(), "data/b.jsonl", lines(&[row(2)]));
    write(folder.path(), "data/a.jsonl", lines(&[row(1), row(2)]));
    write(folder.path(), "data/notes.txt", "");
    let loaded = open(&folder.path().join("data"), &Layout::default());
    assert_eq!(loaded.problems.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    let fault = loaded.faults[0].to_string();
    assert!(fault.contains("b.jsonl:1: id \"2\" was used at") && fault.ends_with("a.jsonl:2"), "{fault}");
}
