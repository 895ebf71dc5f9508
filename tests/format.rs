//! Readers of files under random bytes, random damage and random valid files.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/format.rs"]
mod properties;

use pellucid::format::adapter::{ModuleSet, Pattern};
use pellucid::format::config::{DecoderConfig, RopeConfig, RopeScaling};
use pellucid::format::{AdapterConfig, FileDtype, ModelConfig, header, parse_index};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A property of any bytes.
type Reader = fn(&[u8]);

/// Files to damage: real ones of every kind and family, by the reader they belong to.
fn golden_files() -> Vec<(Reader, Value)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |path: std::path::PathBuf| -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let mut files: Vec<(Reader, Value)> = Vec::new();
    for case in read(golden.join("configs.json")).as_array().unwrap() {
        files.push((properties::config_json, case["published"].clone()));
        files.push((properties::config_json, case["saved"].clone()));
    }
    let kinds: [(Reader, &str); 5] = [
        (properties::adapter_config, "adapters/*/adapter_config.json"),
        (properties::weight_index, "*/model/model.safetensors.index.json"),
        (properties::model_settings, "*/model/generation_config.json"),
        (properties::model_settings, "*/model/preprocessor_config.json"),
        (properties::model_settings, "*/model/tokenizer_config.json"),
    ];
    for (reader, pattern) in kinds {
        let (before, after) = pattern.split_once('*').unwrap();
        let found = std::fs::read_dir(golden.join(before)).unwrap();
        let paths = found.map(|entry| entry.unwrap().path().join(after.trim_start_matches('/')));
        let paths: Vec<_> = paths.filter(|path| path.is_file()).collect();
        assert!(!paths.is_empty(), "{pattern}");
        files.extend(paths.into_iter().map(|path| (reader, read(path))));
    }
    files
}

/// Sets one value somewhere in a tree, chosen by `place`.
fn damage(value: &mut Value, mut place: usize, to: &Value) {
    let length = match value {
        Value::Object(map) => map.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    if length == 0 || place.is_multiple_of(7) {
        *value = to.clone();
        return;
    }
    place /= 7;
    let (index, place) = (place % length, place / length);
    match value {
        Value::Object(map) => damage(map.values_mut().nth(index).unwrap(), place, to),
        Value::Array(items) => damage(&mut items[index], place, to),
        _ => unreachable!("only containers have a length"),
    }
}

/// Values that somebody might have in a file by mistake, or by malice.
fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..20).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(json!("../x")),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[1]]])),
        prop::collection::vec(0u64..100, 0..4).prop_map(Value::from),
    ]
}

/// A header whose entries are right, or nearly.
fn nearly_right_file() -> impl Strategy<Value = Vec<u8>> {
    let dtype = prop::sample::select(vec!["F32", "BF16", "F16", "F64", "I32", "U8", "F4", "F31"]);
    let shape = prop::collection::vec(0usize..5, 0..4);
    let shift = prop_oneof![8 => Just(0i64), 1 => -4i64..5, 1 => any::<i64>()];
    let entry = ("[ab]{1,2}", dtype, shape, shift.clone(), shift);
    let extra = prop_oneof![6 => Just(0i64), 1 => -8i64..9];
    (prop::collection::vec(entry, 0..5), extra).prop_map(|(entries, extra)| {
        let mut header = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
        let mut end = 0i64;
        for (name, dtype, shape, begin_shift, end_shift) in entries {
            let width = [("F64", 8), ("F32", 4), ("I32", 4), ("U8", 1)];
            let width = width.iter().find(|(name, _)| *name == dtype).map_or(2, |(_, width)| *width);
            let begin = end;
            end += shape.iter().product::<usize>() as i64 * width;
            let offsets = [begin.wrapping_add(begin_shift), end.wrapping_add(end_shift)];
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
            header += &format!(",\"{name}\":{entry}");
        }
        header.push('}');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + usize::try_from(end + extra).unwrap_or(0), 7);
        file
    })
}

/// A decoder of the Llama family, whose file can say the most.
fn decoder() -> impl Strategy<Value = DecoderConfig> {
    let scaling = prop_oneof![
        Just(RopeScaling::None),
        (1.0..64.0).prop_map(|factor| RopeScaling::Linear { factor }),
        (1.0..64.0).prop_map(|factor| RopeScaling::Dynamic { factor }),
        (1.0..64.0, 0.5..1.5, 2.0..8.0, 1usize..9999).prop_map(
            |(factor, low_freq_factor, high_freq_factor, original_max_positions)| RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            }
        ),
    ];
    let sizes = (1usize..100, 1usize..9, 1usize..9, 1usize..65, 1usize..99, 1usize..9999);
    let toggles = (any::<bool>(), any::<bool>(), any::<bool>());
    (sizes, toggles, scaling, 1e-9..1e-3, 1.0..1e7).prop_map(|(sizes, toggles, scaling, rms_eps, theta)| {
        let (hidden, group, kv_heads, half_head, layers, vocab) = sizes;
        let (bias, mlp_bias, tied_head) = toggles;
        DecoderConfig {
            hidden,
            layers,
            heads: group * kv_heads,
            kv_heads,
            head_dim: half_head * 2,
            ffn: hidden * 3,
            vocab,
            rms_eps,
            rope: RopeConfig { theta, scaling, mrope_sections: None },
            qkv_bias: bias,
            attention_out_bias: bias,
            mlp_bias,
            qk_norm: false,
            tied_head,
            max_positions: vocab + 1,
        }
    })
}

/// The file that describes a decoder, in the older style or the newer.
fn config_file(decoder: &DecoderConfig, newer: bool) -> Value {
    let mut rope = match &decoder.rope.scaling {
        RopeScaling::None => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_max_positions
        }),
    };
    let mut file = json!({
        "model_type": "llama", "hidden_size": decoder.hidden, "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads, "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim, "intermediate_size": decoder.ffn, "vocab_size": decoder.vocab,
        "rms_norm_eps": decoder.rms_eps, "attention_bias": decoder.qkv_bias, "mlp_bias": decoder.mlp_bias,
        "tie_word_embeddings": decoder.tied_head, "max_position_embeddings": decoder.max_positions
    });
    if newer {
        rope["rope_theta"] = json!(decoder.rope.theta);
        file["rope_parameters"] = rope;
    } else {
        file["rope_theta"] = json!(decoder.rope.theta);
        file["rope_scaling"] = rope;
    }
    file
}

fn adapter() -> impl Strategy<Value = AdapterConfig> {
    let names = || prop::collection::vec("[a-z]{1,4}(\\.[a-z_]{1,4})?", 1..4);
    let expression = || "[a-z.]{1,4}(\\(a\\|b\\))?\\.?\\*?";
    let targets = prop_oneof![
        names().prop_map(ModuleSet::Named),
        expression().prop_map(|text| ModuleSet::Matching(Pattern::whole(&text).unwrap())),
        Just(ModuleSet::AllLinear),
    ];
    let ranks = prop::collection::btree_map(expression(), 1usize..300, 0..3);
    let alphas = prop::collection::btree_map(expression(), 0.25..300.0, 0..3);
    let layers = prop::option::of(prop::collection::vec(0usize..50, 1..4));
    let numbers = (1usize..300, 0.25..300.0, any::<bool>(), 0.0..0.9);
    (targets, prop::option::of(names()), layers, ranks, alphas, numbers, prop::option::of(".{0,9}")).prop_map(
        |(targets, excluded, layers, ranks, alphas, (rank, alpha, rank_stabilised, dropout), base_model)| {
            let ending = |text: &String| Pattern::ending(text).unwrap();
            AdapterConfig {
                targets,
                excluded: excluded.map(ModuleSet::Named),
                layers,
                rank,
                alpha,
                rank_pattern: ranks.iter().map(|(text, rank)| (ending(text), *rank)).collect(),
                alpha_pattern: alphas.iter().map(|(text, alpha)| (ending(text), *alpha)).collect(),
                rank_stabilised,
                dropout,
                base_model,
                task: Some("CAUSAL_LM".into()),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        properties::safetensors_header(&bytes);
        properties::config_json(&bytes);
        properties::adapter_config(&bytes);
        properties::weight_index(&bytes);
        properties::model_settings(&bytes);
    }

    #[test]
    fn nearly_right_headers_are_judged_as_the_reference_judges(file in nearly_right_file(), cut in 0usize..400) {
        properties::safetensors_header(&file);
        properties::safetensors_header(&file[..file.len().min(cut)]);
    }

    #[test]
    fn damaged_files_are_read_or_refused(which: prop::sample::Index, place: usize, to in odd_value()) {
        thread_local!(static FILES: Vec<(Reader, Value)> = golden_files());
        let (reader, mut file) = FILES.with(|files| which.get(files).clone());
        damage(&mut file, place, &to);
        reader(file.to_string().as_bytes());
    }

    #[test]
    fn valid_headers_are_read_as_written(
        tensors in prop::collection::btree_map("\\PC{1,6}", prop::collection::vec(0usize..5, 0..4), 0..6)
    ) {
        let bytes = vec![0; 4 * 5 * 5 * 5];
        let dtypes = [FileDtype::F32, FileDtype::BF16, FileDtype::F16];
        let dtype = |name: &str| dtypes[name.len() % 3];
        let views = tensors.iter().map(|(name, shape)| {
            let length = shape.iter().product::<usize>() * dtype(name).bitsize() / 8;
            let view = safetensors::tensor::TensorView::new(dtype(name), shape.clone(), &bytes[..length]);
            (name.clone(), view.unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        let read = header::parse(&file).unwrap();
        let read: BTreeMap<_, _> = read.into_iter().map(|entry| (entry.name, (entry.dtype, entry.shape))).collect();
        let written = tensors.into_iter().map(|(name, shape)| (name.clone(), (dtype(&name), shape))).collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn valid_configurations_are_read_as_written(decoder in decoder(), newer: bool) {
        let file = config_file(&decoder, newer).to_string();
        prop_assert_eq!(ModelConfig::parse(Path::new("config.json"), file.as_bytes()).unwrap().decoder, decoder);
    }

    #[test]
    fn valid_adapters_are_read_as_written(config in adapter()) {
        let text = config.to_json();
        prop_assert_eq!(AdapterConfig::parse(Path::new("adapter.json"), text.as_bytes()).unwrap(), config);
    }

    #[test]
    fn valid_indices_are_read_as_written(
        shards in prop::collection::btree_map("\\PC{0,6}", "[a-z][a-z0-9.-]{0,6}", 0..6)
    ) {
        let file = json!({"metadata": {"total_size": 7}, "weight_map": shards}).to_string();
        prop_assert_eq!(parse_index(Path::new("index.json"), file.as_bytes()).unwrap(), shards);
    }
}
