//! Published configurations, their nested twins, and the ways a file can be wrong.

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

#[test]
fn qwen2_is_read_as_published() {
    let expected = ModelConfig {
        family: Family::Qwen2,
        decoder: DecoderConfig {
            hidden: 896,
            layers: 24,
            heads: 14,
            kv_heads: 2,
            head_dim: 64,
            ffn: 4864,
            vocab: 151_936,
            rms_eps: 1e-6,
            rope: RopeConfig { theta: 1e6, scaling: RopeScaling::None, mrope_sections: None },
            qkv_bias: true,
            attention_out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tied_head: true,
            max_positions: 32_768,
        },
        vision: None,
        tokens: ImageTokens::default(),
        dtype: Some(FileDtype::BF16),
        eos: vec![151_645],
    };
    assert_eq!(parse(&qwen2()).unwrap(), expected);
}

#[test]
fn flat_and_nested_styles_are_one_model() {
    let flat = qwen2_5_vl();
    let mut nested = json!({"text_config": {}});
    for (key, value) in flat.as_object().unwrap() {
        match key.as_str() {
            "rope_scaling" | "rope_theta" | "torch_dtype" => {}
            "architectures" | "vision_config" | "tie_word_embeddings" => nested[key] = value.clone(),
            "model_type" => nested[key] = value.clone(),
            key if key.ends_with("token_id") && key != "eos_token_id" => nested[key] = value.clone(),
            _ => nested["text_config"][key] = value.clone(),
        }
    }
    nested["dtype"] = json!("bfloat16");
    nested["text_config"]["model_type"] = json!("qwen2_5_vl_text");
    nested["text_config"]["rope_parameters"] = json!({
        "mrope_section": [16, 24, 24], "rope_theta": 1000000.0, "rope_type": "default", "type": "default"
    });
    let flat = parse(&flat).unwrap();
    assert_eq!(parse(&nested).unwrap(), flat);
    assert_eq!(flat.decoder.rope.mrope_sections, Some([16, 24, 24]));
    assert_eq!(flat.decoder.rope.scaling, RopeScaling::None);
    assert_eq!(flat.tokens.image, Some(151_655));
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
    ];
    assert_eq!(seen, expected);
}
