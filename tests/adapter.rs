//! LoRA adapters against PEFT: what it wrote is read as it computes it, what is written here it reads.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use pellucid::format::Adapter;
use pellucid::format::adapter::{AdapterConfig, ModuleSet, Pattern, canonical_module, write_adapter};
use pellucid::tensor::Tensor;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters").join(case)
}

/// `scale * B A` in f64, row-major. `[out, in]`
fn delta(a: &[f32], b: &[f32], rank: usize, scale: f64) -> Vec<f64> {
    let inputs = a.len() / rank;
    let entry = |row: &[f32], column: usize| {
        let terms = (0..rank).map(|r| f64::from(row[r]) * f64::from(a[r * inputs + column]));
        scale * terms.sum::<f64>()
    };
    b.chunks(rank).flat_map(|row| (0..inputs).map(move |column| entry(row, column))).collect()
}

fn floats(view: &pellucid::format::TensorView) -> Vec<f32> {
    view.bytes().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Holds an adapter on disk to PEFT's description of it.
fn assert_same(adapter: &Adapter, described: &Value) {
    let described = described["adapted"].as_object().unwrap();
    let modules: BTreeSet<&str> = adapter.pairs().map(|(_, pair)| pair.module.as_str()).collect();
    assert_eq!(modules, described.keys().map(String::as_str).collect());
    for (name, pair) in adapter.pairs() {
        let expected = &described[&pair.module];
        assert_eq!(name, canonical_module(&pair.module));
        assert_eq!(Some(pair.rank() as u64), expected["rank"].as_u64(), "{name}");
        let close = |got: f64, expected: &Value| (got - expected.as_f64().unwrap()).abs() < 1e-4;
        assert!(close(pair.scale, &expected["scale"]), "{name}: scale {}", pair.scale);
        let delta = delta(&floats(&pair.a), &floats(&pair.b), pair.rank(), pair.scale);
        let first_row = expected["first_row"].as_array().unwrap();
        assert_eq!(first_row.len(), pair.a.shape()[1]);
        assert!(delta.iter().zip(first_row).all(|(got, expected)| close(*got, expected)), "{name}");
        assert!(close(delta.iter().sum(), &expected["sum"]), "{name}");
    }
}

#[test]
fn what_peft_wrote_is_read_as_peft_computes_it() {
    for case in ["names", "expression", "everything", "one_layer"] {
        let text = std::fs::read_to_string(golden(case).join("expected.json")).unwrap();
        let described: Value = serde_json::from_str(&text).unwrap();
        let adapter = Adapter::open(&golden(case)).unwrap();
        assert_same(&adapter, &described);
        for module in described["linear"].as_array().unwrap() {
            let module = module.as_str().unwrap();
            let adapted = described["adapted"].get(module).is_some();
            assert_eq!(adapter.config().touches(module), adapted, "{case}: {module}");
        }
    }
}

/// An adapter for the tiny model of `lora.py` that uses every part of the configuration.
fn write_sample(folder: &Path) -> AdapterConfig {
    let config = AdapterConfig {
        targets: ModuleSet::Matching(
            Pattern::whole(r"model\.layers\.\d\.(self_attn\.[qv]|mlp\.up)_proj").unwrap(),
        ),
        excluded: Some(ModuleSet::Named(vec!["layers.1.self_attn.v_proj".into()])),
        layers: None,
        rank: 4,
        alpha: 6.0,
        rank_pattern: vec![(Pattern::ending(r"layers\.0\.mlp\.up_proj").unwrap(), 2)],
        alpha_pattern: vec![(Pattern::ending("v_proj").unwrap(), 3.0)],
        rank_stabilised: true,
        dropout: 0.05,
        base_model: Some("tiny".into()),
        task: Some("CAUSAL_LM".into()),
    };
    let modules = [
        ("model.layers.0.self_attn.q_proj", 16, 16),
        ("model.layers.0.self_attn.v_proj", 16, 8),
        ("model.layers.0.mlp.up_proj", 16, 24),
        ("model.layers.1.self_attn.q_proj", 16, 16),
        ("model.layers.1.mlp.up_proj", 16, 24),
    ];
    let ramp = |shape: [usize; 2], start: usize| {
        let values: Vec<f32> =
            (0..shape[0] * shape[1]).map(|i| ((start + i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        Tensor::from_slice(&shape, &values).unwrap()
    };
    let pairs: Vec<_> = modules
        .iter()
        .enumerate()
        .map(|(i, &(module, inputs, outputs))| {
            let rank = config.rank_of(module);
            (module, ramp([rank, inputs], i), ramp([outputs, rank], i + 7))
        })
        .collect();
    let pairs: Vec<_> = pairs.iter().map(|(module, a, b)| (*module, a, b)).collect();
    write_adapter(folder, &config, &pairs).unwrap();
    config
}

#[test]
fn what_is_written_is_read_back() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("adapter");
    // The second writing replaces the first.
    write_sample(&folder);
    let config = write_sample(&folder);
    let adapter = Adapter::open(&folder).unwrap();
    assert_eq!(*adapter.config(), config);
    assert_eq!(adapter.pairs().count(), 5);
    let pair = adapter.pair("layers.0.mlp.up_proj").unwrap();
    assert_eq!((pair.a.shape(), pair.b.shape()), (&[2, 16][..], &[24, 2][..]));
    assert_eq!(pair.scale, 6.0 / 2f64.sqrt());
    assert_eq!(floats(&pair.a)[..2], [(2.0 / 50.0) - 1.0, (39.0 / 50.0) - 1.0]);
    let left: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["adapter"], "nothing but the adapter is left behind");
}

#[test]
#[ignore = "needs tests/golden/requirements.txt: PYTHON=python cargo test --test adapter -- --ignored"]
fn what_is_written_is_read_by_peft() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("adapter");
    write_sample(&folder);
    let script = golden("../lora.py");
    let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
    let run = std::process::Command::new(python).arg(script).arg("--read").arg(&folder).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_same(&Adapter::open(&folder).unwrap(), &serde_json::from_slice(&run.stdout).unwrap());
}

#[test]
fn halves_of_unlike_shape_or_missing_are_named() {
    let home = tempfile::tempdir().unwrap();
    let module = "model.layers.0.self_attn.q_proj";
    let complaint = |file: Vec<(&str, [usize; 2])>| {
        let config = r#"{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}"#;
        std::fs::write(home.path().join("adapter_config.json"), config).unwrap();
        let bytes = vec![0; 4096];
        let view = |shape: [usize; 2]| {
            let data = &bytes[..shape[0] * shape[1] * 4];
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data).unwrap()
        };
        let tensors = file.into_iter().map(|(name, shape)| (name.replace('*', module), view(shape)));
        let path = home.path().join("adapter_model.safetensors");
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let error =
            Adapter::open(home.path()).and_then(|adapter| adapter.expect_modules(|name| name == "lm_head"));
        error.unwrap_err().to_string().rsplit_once("adapter_model.safetensors: ").unwrap().1.to_owned()
    };
    let (a, b) = ("base_model.model.*.lora_A.weight", "base_model.model.*.lora_B.weight");
    let seen = [
        complaint(vec![(a, [2, 16])]),
        complaint(vec![(b, [16, 2])]),
        complaint(vec![(a, [2, 16]), (b, [16, 3])]),
        complaint(vec![(a, [2, 16]), ("base_model.model.*.lora_magnitude_vector.weight", [1, 1])]),
        complaint(vec![]),
        complaint(vec![(a, [2, 16]), (b, [16, 2])]),
    ];
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let expected = [
        format!("tensor {q}.lora_A.weight: its other half {q}.lora_B.weight is missing"),
        format!("tensor {q}.lora_B.weight: its other half {q}.lora_A.weight is missing"),
        format!(
            "tensor {q}.lora_A.weight: adapter_config.json gives it rank 2, but its halves are [2, 16] and [16, 3]: \
             expected [2, in] and [out, 2]"
        ),
        format!("tensor {q}.lora_A.weight: its other half {q}.lora_B.weight is missing"),
        "holds no lora_A and lora_B tensors".into(),
        format!("tensor {q}.lora_A.weight: the model has no module {module} to adapt"),
    ];
    assert_eq!(seen, expected);
}
