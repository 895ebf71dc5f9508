//! `config.json` against transformers: the same file gives the same values, whichever program wrote it.
//! The cases come from `tests/golden/configs.py`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use pellucid::format::ModelConfig;
use pellucid::format::config::{DecoderConfig, Family, NormKind, RopeScaling, VisionConfig};
use serde_json::Value;
use std::path::Path;

fn parse(file: &Value) -> ModelConfig {
    ModelConfig::parse(Path::new("config.json"), file.to_string().as_bytes()).unwrap()
}

fn cases() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/configs.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn whole(value: &Value) -> usize {
    // Sides may be a pair of equal ones.
    let value = value.as_array().map_or(value, |pair| &pair[0]);
    value.as_u64().unwrap() as usize
}

#[test]
fn what_transformers_saves_is_the_model_that_was_published() {
    for case in cases() {
        assert_eq!(parse(&case["saved"]), parse(&case["published"]), "{}", case["name"]);
    }
}

#[test]
fn values_are_those_transformers_computes_with() {
    for case in cases() {
        let name = &case["name"];
        let config = parse(&case["published"]);
        let expected = &case["resolved"];
        assert_decoder(&config.decoder, config.family, expected, name);
        assert_eq!(Value::from(config.eos), expected["eos"], "{name}");
        assert_eq!(Value::from(config.tokens.image), expected["image_token"], "{name}");
        match config.vision {
            Some(vision) => assert_vision(&vision, &expected["vision"], name),
            None => assert!(expected.get("vision").is_none(), "{name}"),
        }
    }
}

fn assert_decoder(decoder: &DecoderConfig, family: Family, expected: &Value, name: &Value) {
    let sizes = [
        (decoder.hidden, "hidden"),
        (decoder.layers, "layers"),
        (decoder.heads, "heads"),
        (decoder.kv_heads, "kv_heads"),
        (decoder.head_dim, "head_dim"),
        (decoder.ffn, "ffn"),
        (decoder.vocab, "vocab"),
        (decoder.max_positions, "max_positions"),
    ];
    for (size, key) in sizes {
        assert_eq!(size, whole(&expected[key]), "{name}: {key}");
    }
    let number = |key: &str| expected[key].as_f64().unwrap();
    assert_eq!((decoder.rms_eps, decoder.rope.theta), (number("rms_eps"), number("theta")), "{name}");
    assert_eq!(Some(decoder.tied_head), expected["tied_head"].as_bool(), "{name}");
    let sections = decoder.rope.mrope_sections.map_or(Value::Null, |sections| Value::from(sections.to_vec()));
    assert_eq!(sections, expected["mrope_sections"], "{name}");
    let scaling = match expected["rope_type"].as_str().unwrap() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor") },
        "dynamic" => RopeScaling::Dynamic { factor: number("factor") },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor"),
            low_freq_factor: number("low_freq_factor"),
            high_freq_factor: number("high_freq_factor"),
            original_max_positions: whole(&expected["original_max_positions"]),
        },
        other => panic!("{name}: {other}"),
    };
    assert_eq!(decoder.rope.scaling, scaling, "{name}");
    // Where the class has no such key, Qwen2's biases are in its code.
    let biases = expected["attention_bias"].as_bool();
    assert_eq!(decoder.qkv_bias, biases.unwrap_or(true), "{name}");
    assert_eq!(decoder.attention_out_bias, biases.unwrap_or(false), "{name}");
    assert_eq!(decoder.mlp_bias, expected["mlp_bias"].as_bool().unwrap_or(false), "{name}");
    assert_eq!(decoder.qk_norm, family == Family::Qwen3, "{name}");
}

fn assert_vision(vision: &VisionConfig, expected: &Value, name: &Value) {
    let sizes = |sizes: &[(usize, &str)]| {
        for (size, key) in sizes {
            assert_eq!(*size, whole(&expected[key]), "{name}: {key}");
        }
    };
    match vision {
        VisionConfig::Qwen2Vl(tower) | VisionConfig::Qwen25Vl { tower, .. } => sizes(&[
            (tower.layers, "depth"),
            (tower.heads, "num_heads"),
            (tower.channels, "in_channels"),
            (tower.patch, "patch_size"),
            (tower.temporal_patch, "temporal_patch_size"),
            (tower.merge, "spatial_merge_size"),
        ]),
        VisionConfig::InternVit(_) => {}
    }
    match vision {
        VisionConfig::Qwen2Vl(tower) => {
            sizes(&[(tower.hidden, "embed_dim"), (tower.out_hidden, "hidden_size")]);
            assert_eq!(tower.ffn, tower.hidden * whole(&expected["mlp_ratio"]), "{name}");
        }
        VisionConfig::Qwen25Vl { tower, window, full_attention_blocks } => {
            sizes(&[
                (tower.hidden, "hidden_size"),
                (tower.out_hidden, "out_hidden_size"),
                (tower.ffn, "intermediate_size"),
                (*window, "window_size"),
            ]);
            assert_eq!(
                Value::from(full_attention_blocks.clone()),
                expected["fullatt_block_indexes"],
                "{name}"
            );
        }
        VisionConfig::InternVit(tower) => {
            sizes(&[
                (tower.hidden, "hidden_size"),
                (tower.layers, "num_hidden_layers"),
                (tower.layers_used, "num_hidden_layers"),
                (tower.heads, "num_attention_heads"),
                (tower.ffn, "intermediate_size"),
                (tower.channels, "num_channels"),
                (tower.image, "image_size"),
                (tower.patch, "patch_size"),
            ]);
            assert_eq!(Some(tower.norm_eps), expected["layer_norm_eps"].as_f64(), "{name}");
            assert_eq!(Some(tower.qkv_bias), expected["attention_bias"].as_bool(), "{name}");
            assert_eq!(Some(tower.qk_norm), expected["use_qk_norm"].as_bool(), "{name}");
            assert_eq!(tower.norm == NormKind::Layer, expected["norm_type"] == "layer_norm", "{name}");
            assert_eq!(Some(1.0 / tower.shuffle as f64), expected["downsample_ratio"].as_f64(), "{name}");
        }
    }
}
