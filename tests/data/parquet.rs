//! The same from parquet files, written here column by column as the hub's library writes them.

use super::{KEYS, assert_own_names, configured, folder, open, own_names, pictures};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{SchemaDescriptor, Type};
use pellucid::task::data::Layout;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// One column: its values, and how deep each is defined and repeated.
#[derive(Default)]
struct Column {
    values: Vec<Value>,
    defined: Vec<i16>,
    repeated: Vec<i16>,
}

impl Column {
    /// Takes a row apart along the path of types from the root's child to a leaf.
    fn take(&mut self, path: &[&Type], value: &Value, defined: i16, repeated: i16, depth: i16) {
        let (this, rest) = (path[0], &path[1..]);
        let info = this.get_basic_info();
        let null = |column: &mut Self| {
            column.defined.push(defined);
            column.repeated.push(repeated);
        };
        if format!("{:?}", info.repetition()) == "REPEATED" {
            let items = value.as_array().expect("a list");
            if items.is_empty() {
                return null(self);
            }
            for (i, item) in items.iter().enumerate() {
                // The element of a list's group is the item itself.
                let repeated = if i == 0 { repeated } else { depth + 1 };
                self.take(rest, item, defined + 1, repeated, depth + 1);
            }
            return;
        }
        if value.is_null() {
            return null(self);
        }
        let defined = defined + 1;
        match rest.first() {
            None => {
                self.values.push(value.clone());
                self.defined.push(defined);
                self.repeated.push(repeated);
            }
            Some(next) if format!("{:?}", next.get_basic_info().repetition()) == "REPEATED" => {
                self.take(rest, value, defined, repeated, depth);
            }
            Some(next) => self.take(rest, &value[next.name()], defined, repeated, depth),
        }
    }
}

/// Writes rows under a schema whose fields are all optional.
fn write(path: &Path, schema: &str, rows: &[Value]) {
    let schema = Arc::new(parse_message_type(schema).expect("is a schema"));
    let columns = SchemaDescriptor::new(schema.clone());
    let file = std::fs::File::create(path).expect("there is room");
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, schema.clone(), Arc::new(properties)).expect("starts");
    let mut group = writer.next_row_group().expect("starts");
    for index in 0..columns.num_columns() {
        let mut types = vec![schema.as_ref()];
        for part in columns.column(index).path().parts() {
            let fields = types.last().expect("has a root").get_fields();
            types.push(fields.iter().find(|field| field.name() == part).expect("is in the schema"));
        }
        let mut column = Column::default();
        for row in rows {
            column.take(&types[1..], &row[types[1].name()], 0, 0, 0);
        }
        let Column { values, defined, repeated } = column;
        let levels = (Some(defined.as_slice()), Some(repeated.as_slice()));
        let mut open = group.next_column().expect("follows").expect("is there");
        match open.untyped() {
            ColumnWriter::ByteArrayColumnWriter(column) => {
                let values: Vec<ByteArray> =
                    values.iter().map(|v| v.as_str().expect("a text").into()).collect();
                column.write_batch(&values, levels.0, levels.1).expect("fits");
            }
            ColumnWriter::DoubleColumnWriter(column) => {
                let values: Vec<f64> = values.iter().map(|v| v.as_f64().expect("a number")).collect();
                column.write_batch(&values, levels.0, levels.1).expect("fits");
            }
            ColumnWriter::Int64ColumnWriter(column) => {
                let values: Vec<i64> = values.iter().map(|v| v.as_i64().expect("a whole number")).collect();
                column.write_batch(&values, levels.0, levels.1).expect("fits");
            }
            _ => panic!("no such column is needed"),
        }
        open.close().expect("fits");
    }
    group.close().expect("fits");
    writer.close().expect("fits");
}

const PICTURE: &str = "{ optional binary bytes; optional binary path (UTF8); }";

fn loaded(
    name: Option<&str>,
    fields: &str,
    rows: &[Value],
) -> (tempfile::TempDir, pellucid::task::data::Loaded) {
    let layout = name.map_or_else(Layout::default, |name| Layout::named(name).expect("is published"));
    read(&layout, fields, rows)
}

fn read(layout: &Layout, fields: &str, rows: &[Value]) -> (tempfile::TempDir, pellucid::task::data::Loaded) {
    let folder = folder();
    let path = folder.path().join("train-00000-of-00001.parquet");
    write(&path, &format!("message schema {{ {} }}", fields.replace("PICTURE", PICTURE)), rows);
    let loaded = open(&path, layout);
    assert_eq!(loaded.faults, []);
    assert_eq!(loaded.problems.len(), rows.len());
    (folder, loaded)
}

#[test]
fn pictures_as_structs_in_lists() {
    let fields = "optional group images (LIST) { repeated group list { optional group element PICTURE } }
        optional binary problem (UTF8); optional binary answer (UTF8);";
    let rows = [
        json!({"images": [{"bytes": "one", "path": null}, {"bytes": null, "path": "1.png"}], "problem": "<image>x?", "answer": "3"}),
        json!({"images": [{"bytes": "two", "path": "gone.png"}], "problem": "y?", "answer": "\\frac12"}),
    ];
    let (_folder, loaded) = loaded(Some("geometry3k"), fields, &rows);
    assert_eq!(pictures(&loaded.problems[0]), [b"one".to_vec(), b"1.png".to_vec()]);
    assert_eq!(pictures(&loaded.problems[1]), [b"two".to_vec()]);
    assert_eq!((loaded.problems[1].answer.as_str(), loaded.problems[1].place.row), ("\\frac12", 2));
}

#[test]
fn mathvista() {
    let fields = "optional binary pid (UTF8); optional binary question (UTF8); optional binary image (UTF8);
        optional group decoded_image PICTURE
        optional group choices (LIST) { repeated group list { optional binary element (UTF8); } }
        optional binary unit (UTF8); optional double precision; optional binary answer (UTF8);
        optional binary question_type (UTF8); optional binary answer_type (UTF8);
        optional group metadata { optional binary task (UTF8); optional binary grade (UTF8); }";
    let row = |pid: &str, choices: Value, precision: Value, answer: &str| {
        json!({"pid": pid, "question": "?", "image": "images/1.jpg", "decoded_image": {"bytes": "png", "path": "1.jpg"},
            "choices": choices, "unit": null, "precision": precision, "answer": answer, "question_type": "?",
            "answer_type": "float", "metadata": {"task": "t", "grade": "g"}})
    };
    let rows = [row("1", json!(["a", "b"]), json!(null), "b"), row("2", json!(null), json!(2), "1.25")];
    let (_folder, loaded) = loaded(Some("mathvista"), fields, &rows);
    let [choice, float] = loaded.problems.as_slice() else { panic!("two problems") };
    assert_eq!((choice.choices.len(), choice.subject.as_deref()), (2, Some("t")));
    assert_eq!((float.tolerance, pictures(float)), (Some(0.005), vec![b"png".to_vec()]));
}

#[test]
fn virl39k_and_mmmu_pro() {
    let fields =
        "optional binary question (UTF8); optional binary answer (UTF8); optional double PassRate_32BTrained;
        optional binary category (UTF8); optional binary qid (UTF8);
        optional group image (LIST) { repeated group list { optional binary element (UTF8); } }";
    let row = json!({"question": "<image>?", "answer": "\\boxed{4}", "PassRate_32BTrained": 0.5, "category": "c", "qid": "q",
        "image": ["images/2.png"]});
    let (_folder, virl) = loaded(Some("virl39k"), fields, &[row]);
    assert_eq!(
        (virl.problems[0].id.as_str(), pictures(&virl.problems[0])),
        ("q", vec![b"images/2.png".to_vec()])
    );
    assert_eq!(virl.problems[0].extra["PassRate_32BTrained"], 0.5);
    let fields = "optional binary id (UTF8); optional binary question (UTF8); optional binary options (UTF8);
        optional group image_1 PICTURE optional group image_2 PICTURE optional binary answer (UTF8);";
    let row = json!({"id": "i", "question": "?", "options": "['1', '2']", "image_1": {"bytes": "one", "path": null},
        "image_2": null, "answer": "B"});
    let (_folder, mmmu) = loaded(Some("mmmu_pro"), fields, &[row]);
    assert_eq!((pictures(&mmmu.problems[0]), mmmu.problems[0].choices.len()), (vec![b"one".to_vec()], 2));
}

#[test]
fn verl() {
    let fields = "optional binary data_source (UTF8);
        optional group prompt (LIST) { repeated group list { optional group element {
            optional binary content (UTF8); optional binary role (UTF8); } } }
        optional group images (LIST) { repeated group list { optional group element PICTURE } }
        optional group reward_model { optional binary ground_truth (UTF8); optional binary style (UTF8); }
        optional group extra_info { optional int64 index; optional binary split (UTF8); }";
    let row = json!({"data_source": "s", "prompt": [{"content": "<image>x?", "role": "user"}],
        "images": [{"bytes": "one", "path": null}], "reward_model": {"ground_truth": "7", "style": "rule"},
        "extra_info": {"index": 12, "split": "train"}});
    let (_folder, loaded) = loaded(None, fields, &[row]);
    let problem = &loaded.problems[0];
    assert_eq!((problem.id.as_str(), problem.question.as_str(), problem.answer.as_str()), ("12", "x?", "7"));
}

#[test]
fn columns_can_be_named_one_by_one() {
    let fields = "optional group text { optional binary body (UTF8); } optional binary gold (UTF8);
        optional binary scan (UTF8); optional binary uid (UTF8);
        optional group among (LIST) { repeated group list { optional binary element (UTF8); } }
        optional binary form (UTF8); optional binary topic (UTF8); optional binary stars (UTF8);
        optional binary question (UTF8); optional binary answer (UTF8); optional binary id (UTF8);
        optional binary image (UTF8);";
    let layout = configured(&KEYS).expect("is right");
    let (_folder, loaded) = read(&layout, fields, &[own_names()]);
    assert_own_names(&loaded.problems[0]);
}

/// A file cut short or damaged is an error and no panic.
#[test]
fn damaged_files_are_refused() {
    let folder = folder();
    let path = folder.path().join("a.parquet");
    let fields = "message schema { optional binary question (UTF8); optional binary answer (UTF8); optional binary image; }";
    let row = json!({"question": "?", "answer": "4", "image": "bytes"});
    write(&path, fields, &vec![row; 20]);
    let whole = std::fs::read(&path).unwrap();
    let policy = pellucid::task::verify::Policy::default();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(
            pellucid::task::data::Loaded::open(&path, &Layout::default(), &policy).is_err(),
            "cut at {cut}"
        );
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, damaged).unwrap();
        _ = pellucid::task::data::Loaded::open(&path, &Layout::default(), &policy);
    }
}
