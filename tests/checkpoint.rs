//! Checkpoints on disk, whole and broken: what is read, what it costs, and what each fault is called.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use half::{bf16, f16};
use pellucid::format::{Checkpoint, FileDtype, NonFinite, non_finite};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The bytes of a safetensors file with this header and so many bytes of data.
fn file(header: &Value, data: usize) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn f32s(elements: usize, begin: usize) -> Value {
    json!({"dtype": "F32", "shape": [elements], "data_offsets": [begin, begin + 4 * elements]})
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(home.path().join(name), bytes).unwrap();
    }
    home
}

/// The complaint of opening a folder, without the folder's own path.
fn complaint(files: &[(&str, Vec<u8>)]) -> String {
    let home = folder(files);
    let error = Checkpoint::open(home.path()).unwrap_err().to_string();
    error
        .replace(&format!("{}/", home.path().display()), "")
        .replace(&home.path().display().to_string(), "folder")
}

fn single(bytes: Vec<u8>) -> String {
    let complaint = complaint(&[("model.safetensors", bytes)]);
    complaint.strip_prefix("model.safetensors: ").unwrap().to_owned()
}

#[test]
fn every_lie_of_a_header_is_named() {
    let mut truncated = file(&json!({"a": f32s(4, 0)}), 16);
    truncated.truncate(40);
    let huge = u64::MAX.to_le_bytes().to_vec();
    let seen = [
        single(vec![1, 2, 3]),
        single(huge),
        single(truncated),
        single(file(&json!({"a": f32s(4, 0)}), 15)),
        single(file(&json!({"a": f32s(4, 0)}), 17)),
        single(file(&json!({"a": f32s(4, 0), "b": f32s(4, 12)}), 28)),
        single(file(&json!({"a": f32s(4, 0), "b": f32s(4, 20)}), 36)),
        single(file(&json!({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}), 16)),
        single(file(&json!({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}), 16)),
        single(file(&json!({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}), 2)),
        single(file(&json!({"a": {"dtype": "F32", "shape": [1u64 << 62, 4], "data_offsets": [0, 16]}}), 16)),
    ];
    let expected = [
        "3 bytes are too few for a safetensors file",
        "header length 18446744073709551615 is beyond the 100000000 bytes allowed: not a safetensors file",
        "header length 55 is beyond the file's 40 bytes: truncated",
        "tensor a: data offsets 0..16 are beyond the file's 15 bytes of data: truncated",
        "bytes 16..17 of the data belong to no tensor",
        "tensor b: data offsets 12..28 overlap those of tensor a",
        "tensor b: bytes 16..20 of the data before it belong to no tensor",
        "tensor a: F32 [5] needs 20 bytes, data offsets 0..16 hold 16",
        "tensor a: data offsets 16..0 run backwards",
        "tensor a: F4 [3] needs an impossible number of bytes, data offsets 0..2 hold 2",
        "tensor a: F32 [4611686018427387904, 4] needs an impossible number of bytes, data offsets 0..16 hold 16",
    ];
    assert_eq!(seen, expected);

    let unknown = single(file(&json!({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}), 4));
    assert!(unknown.starts_with("header: tensor a: unknown variant `F31`"), "{unknown}");
    let negative = single(file(&json!({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), 4));
    assert!(negative.starts_with("header: tensor a: invalid value: integer `-1`"), "{negative}");
    let one = f32s(1, 0);
    let twice = format!("{{\"a\": {one}, \"a\": {one}}}");
    let mut bytes = (twice.len() as u64).to_le_bytes().to_vec();
    bytes.extend(twice.as_bytes());
    bytes.extend([0; 4]);
    assert_eq!(single(bytes), "tensor a: listed twice in the header");
}

#[test]
fn every_lie_of_an_index_is_named() {
    const INDEX: &str = "model.safetensors.index.json";
    let one = || file(&json!({"a": f32s(1, 0)}), 4);
    let index = |map: Value| (INDEX, json!({"metadata": {}, "weight_map": map}).to_string().into_bytes());
    let seen = [
        complaint(&[]),
        complaint(&[("pytorch_model.bin", vec![])]),
        complaint(&[(INDEX, b"{\n\"weight_map\": [}".to_vec())]),
        complaint(&[(INDEX, b"{}".to_vec())]),
        complaint(&[index(json!({"a": 7}))]),
        complaint(&[index(json!({"a": "../model.safetensors"}))]),
        complaint(&[index(json!({"a": "/etc/passwd"}))]),
        complaint(&[index(json!({"a": "gone.safetensors"}))]),
        complaint(&[index(json!({"a": "1", "b": "1"})), ("1", one())]),
        complaint(&[index(json!({"a": "1", "b": "2"})), ("1", one()), ("2", one())]),
        complaint(&[
            index(json!({"a": "2", "b": "1"})),
            ("1", one()),
            ("2", file(&json!({"b": f32s(1, 0)}), 4)),
        ]),
    ];
    let expected = [
        "folder: holds neither model.safetensors nor model.safetensors.index.json",
        "folder: holds neither model.safetensors nor model.safetensors.index.json; pytorch_model.bin is there, \
         convert it to safetensors first",
        "model.safetensors.index.json: line 2, column 16: not valid json",
        "model.safetensors.index.json: weight_map: missing, expected an object",
        "model.safetensors.index.json: weight_map.a: expected the name of a shard, got 7",
        "model.safetensors.index.json: weight_map.a: shard \"../model.safetensors\" is not a file name in this folder",
        "model.safetensors.index.json: weight_map.a: shard \"/etc/passwd\" is not a file name in this folder",
        "model.safetensors.index.json: weight_map: shard gone.safetensors is not in the folder",
        "model.safetensors.index.json: weight_map: tensor b is not in its shard 1",
        "1: tensor a: is in 2 too",
        "model.safetensors.index.json: weight_map: tensor a is not in its shard 2 (1 has it)",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn tensors_come_from_every_shard_and_are_counted() {
    let shard = |name: &str, values: [f32; 2]| {
        let mut bytes = file(&json!({name: f32s(2, 0)}), 0);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    };
    let index = json!({"weight_map": {"a": "1", "b": "2"}}).to_string();
    let home = folder(&[
        ("1", shard("a", [1.0, 2.0])),
        ("2", shard("b", [3.0, 4.0])),
        ("model.safetensors.index.json", index.into_bytes()),
    ]);
    let checkpoint = Checkpoint::open(home.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    let b = checkpoint.view("b").unwrap().shaped(&[2]).unwrap();
    assert_eq!((b.dtype(), b.shape(), b.elements()), (FileDtype::F32, &[2][..], 2));
    assert_eq!(b.bytes(), [3f32, 4.0].map(f32::to_le_bytes).concat());
    assert_eq!(b.file(), home.path().join("2"));
    assert_eq!(checkpoint.surplus().map(|view| view.name()).collect::<Vec<_>>(), ["a"]);
    let missing = checkpoint.view("c").unwrap_err().to_string();
    assert!(missing.ends_with("model.safetensors.index.json: tensor c: missing"), "{missing}");
    let shape = b.clone().shaped(&[3]).unwrap_err().to_string();
    assert!(shape.ends_with("2: tensor b: expected shape [3], got [2]"), "{shape}");
    // The mapping outlives the checkpoint.
    drop(checkpoint);
    assert_eq!(b.bytes()[..4], 3f32.to_le_bytes());
}

#[test]
fn an_odd_header_leaves_tensors_unaligned() {
    for padding in 0..4 {
        let header = format!("{}{}", json!({"a": f32s(1, 0)}), " ".repeat(padding));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 4]);
        let aligned = (8 + header.len()).is_multiple_of(4);
        let home = folder(&[("model.safetensors", bytes)]);
        let view = Checkpoint::open(home.path()).unwrap().view("a").unwrap();
        assert_eq!(view.is_aligned(), aligned);
    }
}

#[test]
fn axes_of_length_zero_hold_nothing() {
    let empty = json!({"dtype": "BF16", "shape": [0, 7], "data_offsets": [0, 0]});
    let home = folder(&[("model.safetensors", file(&json!({"empty": empty}), 0))]);
    let view = Checkpoint::open(home.path()).unwrap().view("empty").unwrap();
    assert_eq!((view.elements(), view.bytes().len()), (0, 0));
    assert_eq!(non_finite(&view).unwrap(), NonFinite::default());
}

#[test]
fn numbers_that_are_not_finite_are_counted() {
    // More than one piece is read of each, and the values asked about lie at the ends.
    let long = 700_000;
    let count = |dtype: &str, width: usize, nan: &[u8], infinite: &[u8]| {
        let tensor = json!({"dtype": dtype, "shape": [long], "data_offsets": [0, long * width]});
        let mut bytes = file(&json!({"w": tensor}), long * width);
        let start = bytes.len() - long * width;
        bytes[start..start + width].copy_from_slice(nan);
        for at in [start + width, start + (long - 1) * width] {
            bytes[at..at + width].copy_from_slice(infinite);
        }
        let home = folder(&[("model.safetensors", bytes)]);
        non_finite(&Checkpoint::open(home.path()).unwrap().view("w").unwrap()).unwrap()
    };
    let expected = NonFinite { nan: 1, infinite: 2 };
    assert_eq!(count("F32", 4, &f32::NAN.to_le_bytes(), &f32::NEG_INFINITY.to_le_bytes()), expected);
    assert_eq!(count("F64", 8, &f64::NAN.to_le_bytes(), &f64::INFINITY.to_le_bytes()), expected);
    assert_eq!(count("BF16", 2, &bf16::NAN.to_le_bytes(), &bf16::INFINITY.to_le_bytes()), expected);
    assert_eq!(count("F16", 2, &f16::NAN.to_le_bytes(), &f16::NEG_INFINITY.to_le_bytes()), expected);
    assert_eq!(count("I32", 4, &[0xff; 4], &[0x7f; 4]), NonFinite::default());
}

/// Bytes of this process in memory.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn opening_reads_headers_only() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.safetensors");
    let elements = 2usize << 30;
    let tensor = json!({"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]});
    let bytes = file(&json!({"w": tensor}), 0);
    // A hole of 4 GiB costs no disk, and reading it would cost memory.
    fs::write(&path, &bytes).unwrap();
    let sparse = fs::OpenOptions::new().write(true).open(&path).unwrap();
    sparse.set_len((bytes.len() + 2 * elements) as u64).unwrap();

    let before = resident();
    let checkpoint = Checkpoint::open(home.path()).unwrap();
    let view = checkpoint.view("w").unwrap();
    assert_eq!(view.bytes().len(), 4 << 30);
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "opening took {grown} bytes");
}

#[test]
fn folders_and_devices_are_not_files() {
    let complaint = |home: &Path| Checkpoint::open(home).unwrap_err().to_string();
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("model.safetensors")).unwrap();
    assert!(complaint(home.path()).ends_with("model.safetensors: expected a plain file"));
    #[cfg(unix)]
    {
        let home = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", home.path().join("model.safetensors")).unwrap();
        assert!(complaint(home.path()).ends_with("model.safetensors: expected a plain file"));
    }
}
