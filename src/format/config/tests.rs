//! The ways a file can be wrong, and InternVL's own layout, which transformers cannot be asked about
//! (`tests/config.rs` asks it about the others).

use super::*;
use serde_json::{Value, json};

fn parse(value: &Value) -> Result<ModelConfig> {
    ModelConfig::parse(Path::new("config.json"), value.to_string().as_bytes())
}

/// The complaint about `value` with `key` (a path with dots) set to `to`.
fn complaint(mut value: Value, key: &str, to: Value) -> String {
    let mut place = &mut value;
    for step in key.split('.') {
        place = &mut place[step];
    }
    *place = to;
    parse(&value).unwrap_err().to_string()
}

fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151936
    })
}

fn qwen2_5_vl() -> Value {
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "bos_token_id": 151643, "eos_token_id": 151645,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
        "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 11008, "max_position_embeddings": 128000, "max_window_layers": 70,
        "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_sliding_window": false,
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2, "temporal_patch_size": 2
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936
    })
}

/// InternVL3-1B as its authors published it.
fn internvl_chat() -> Value {
    json!({
        "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "dynamic_image_size": true,
        "force_image_size": 448,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643,
            "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
            "max_position_embeddings": 32768, "max_window_layers": 70, "model_type": "qwen2", "moe_config": null,
            "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "rope_theta": 1000000.0,
            "sliding_window": null, "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151674
        },
        "max_dynamic_patch": 12, "min_dynamic_patch": 1, "model_type": "internvl_chat", "pad2square": false,
        "ps_version": "v2", "select_layer": -1, "template": "internvl2_5", "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "use_thumbnail": true,
        "vision_config": {
            "architectures": ["InternVisionModel"], "hidden_act": "gelu", "hidden_size": 1024, "image_size": 448,
            "intermediate_size": 4096, "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b",
            "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24,
            "patch_size": 14, "qk_normalization": false, "qkv_bias": true
        }
    })
}

#[test]
fn original_internvl_is_read_as_published() {
    let config = parse(&internvl_chat()).unwrap();
    let expected = ModelConfig {
        family: Family::InternVl,
        decoder: DecoderConfig {
            hidden: 896,
            layers: 24,
            heads: 14,
            kv_heads: 2,
            head_dim: 64,
            ffn: 4864,
            vocab: 151_674,
            rms_eps: 1e-6,
            rope: RopeConfig {
                theta: 1e6,
                scaling: RopeScaling::Dynamic { factor: 2.0 },
                mrope_sections: None,
            },
            qkv_bias: true,
            attention_out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tied_head: false,
            max_positions: 32_768,
        },
        vision: Some(VisionConfig::InternVit(InternVit {
            hidden: 1024,
            layers: 24,
            layers_used: 24,
            heads: 16,
            ffn: 4096,
            channels: 3,
            image: 448,
            patch: 14,
            norm: NormKind::Layer,
            norm_eps: 1e-6,
            qkv_bias: true,
            qk_norm: false,
            shuffle: 2,
            original: true,
            tiling: Some(Tiling { min: 1, max: 12, thumbnail: true }),
        })),
        tokens: ImageTokens::default(),
        dtype: Some(FileDtype::BF16),
        eos: vec![151_643],
    };
    assert_eq!(config, expected);
    let Some(VisionConfig::InternVit(tower)) = config.vision else { panic!("no tower") };
    assert_eq!(tower.tokens_per_tile(), 256);
}

#[test]
fn features_may_come_from_an_earlier_layer() {
    let used = |select: i64| {
        let mut file = internvl_chat();
        file["select_layer"] = json!(select);
        match parse(&file) {
            Ok(ModelConfig { vision: Some(VisionConfig::InternVit(tower)), .. }) => Ok(tower.layers_used),
            Ok(_) => panic!("no tower"),
            Err(error) => Err(error.to_string()),
        }
    };
    assert_eq!([used(-1), used(-4), used(20), used(-25)], [Ok(24), Ok(21), Ok(20), Ok(0)]);
    let beyond = "config.json: select_layer: expected one layer from -25 to 24, got -26";
    assert_eq!(used(-26), Err(beyond.to_owned()));
}

#[test]
fn sliding_windows_are_refused_only_where_they_would_slide() {
    let with = |pairs: &[(&str, Value)]| {
        let mut file = qwen2();
        for (key, value) in pairs {
            file[*key] = value.clone();
        }
        parse(&file).map(|_| ()).map_err(|error| error.to_string())
    };
    let on = || ("use_sliding_window", json!(true));
    assert_eq!(with(&[on(), ("max_window_layers", json!(24))]), Ok(()));
    assert_eq!(with(&[on(), ("sliding_window", Value::Null)]), Ok(()));
    assert_eq!(with(&[("layer_types", json!(["full_attention"]))]), Ok(()));
    assert!(with(&[on()]).is_err());
    let mixed = with(&[("layer_types", json!(["full_attention", "sliding_attention"]))]);
    let expected = "config.json: layer_types: \"sliding_attention\" is not supported, only full_attention";
    assert_eq!(mixed, Err(expected.to_owned()));
}

#[test]
fn bad_values_name_their_key() {
    let seen = [
        complaint(qwen2(), "num_attention_heads", json!(0)),
        complaint(qwen2(), "num_hidden_layers", json!(1_000_000_000_000_000_000u64)),
        complaint(qwen2(), "hidden_size", json!(900)),
        complaint(qwen2(), "use_sliding_window", json!(true)),
        complaint(qwen2(), "model_type", json!("mamba")),
        complaint(qwen2_5_vl(), "vision_config.window_size", json!("112")),
        complaint(qwen2_5_vl(), "rope_scaling.type", json!("yarn")),
        complaint(qwen2_5_vl(), "rope_scaling.mrope_section", json!([16, 24, 23])),
        complaint(qwen2_5_vl(), "vision_config.out_hidden_size", json!(2049)),
        complaint(qwen2(), "num_key_value_heads", json!(3)),
        complaint(qwen2(), "hidden_act", json!("gelu")),
        complaint(qwen2(), "rms_norm_eps", json!(0)),
        complaint(qwen2(), "quantization_config", json!({"bits": 4})),
        complaint(internvl_chat(), "ps_version", json!("v1")),
        complaint(internvl_chat(), "downsample_ratio", json!(0.3)),
        complaint(internvl_chat(), "llm_config.model_type", json!("internlm2")),
    ];
    let expected = [
        "config.json: num_attention_heads: expected a whole number from 1 to 1048576, got 0",
        "config.json: num_hidden_layers: expected a whole number from 1 to 4096, got 1000000000000000000",
        "config.json: num_attention_heads: 14 does not divide the 900 of hidden_size, and head_dim is not given",
        "config.json: use_sliding_window: sliding windows are not supported, set it to false",
        "config.json: model_type: \"mamba\" is not supported; supported are qwen2, qwen3, llama, qwen2_vl, \
         qwen2_5_vl, internvl, internvl_chat",
        "config.json: vision_config.window_size: expected a whole number from 1 to 1048576, got \"112\"",
        "config.json: rope_scaling.type: \"yarn\" is not supported; supported are default, linear, dynamic, \
         llama3, mrope",
        "config.json: rope_scaling.mrope_section: [16, 24, 23] must sum to half of the head width 128",
        "config.json: vision_config: features of width 2049 do not fit the decoder's hidden_size 2048",
        "config.json: num_key_value_heads: 3 does not divide the 14 of num_attention_heads",
        "config.json: hidden_act: expected \"silu\", got \"gelu\", which is not supported",
        "config.json: rms_norm_eps: expected a number above 0, got 0",
        "config.json: quantization_config: quantised weights are not supported, use the bf16, f16 or f32 checkpoint",
        "config.json: ps_version: expected \"v2\", got \"v1\", which is not supported",
        "config.json: downsample_ratio: expected one over a whole number, such as 0.5, got 0.3",
        "config.json: llm_config.model_type: \"internlm2\" is not supported; supported are qwen2, qwen3, llama, \
         qwen2_vl, qwen2_5_vl, internvl, internvl_chat",
    ];
    assert_eq!(seen, expected);
}
