use super::*;
use serde_json::{Value, json};

fn parse(value: &Value) -> Result<AdapterConfig> {
    AdapterConfig::parse(Path::new(CONFIG), value.to_string().as_bytes())
}

fn plain() -> Value {
    json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]})
}

#[test]
fn variants_are_refused_by_name() {
    let complaint = |key: &str, to: Value| {
        let mut file = plain();
        file[key] = to;
        parse(&file).unwrap_err().to_string()
    };
    let seen = [
        complaint("use_dora", json!(true)),
        complaint("bias", json!("all")),
        complaint("modules_to_save", json!(["lm_head"])),
        complaint("init_lora_weights", json!("pissa")),
        complaint("peft_type", json!("IA3")),
        complaint("target_modules", json!("(q_proj")).split(" is not").next().unwrap().to_owned(),
        complaint("r", json!(0)),
        complaint("rank_pattern", json!({"q_proj": -1})),
    ];
    let expected = [
        "adapter_config.json: use_dora: this variant of LoRA is not supported",
        "adapter_config.json: bias: expected \"none\", got \"all\": trained biases are not supported",
        "adapter_config.json: modules_to_save: this variant of LoRA is not supported",
        "adapter_config.json: init_lora_weights: \"pissa\" changes the base weights, convert the adapter to plain LoRA",
        "adapter_config.json: peft_type: \"IA3\" is not supported, only LORA",
        "adapter_config.json: target_modules: adapter: \"(q_proj\"",
        "adapter_config.json: r: expected a whole number from 1 to 65536, got 0",
        "adapter_config.json: rank_pattern.q_proj: expected a whole number from 1 to 65536, got -1",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn modules_have_one_name_under_every_path() {
    for path in [
        "model.layers.3.self_attn.q_proj",
        "model.language_model.layers.3.self_attn.q_proj",
        "language_model.model.layers.3.self_attn.q_proj",
        "model.language_model.model.layers.3.self_attn.q_proj",
    ] {
        assert_eq!(canonical_module(path), "layers.3.self_attn.q_proj");
    }
    assert_eq!(canonical_module("model.visual.blocks.0.attn.qkv"), "visual.blocks.0.attn.qkv");
    assert_eq!(canonical_module("language_model.lm_head"), "lm_head");
}

#[test]
fn an_expression_that_would_never_end_does() {
    let greedy = json!({"peft_type": "LORA", "target_modules": r"(?=a)(a+)+\1b"});
    let config = parse(&greedy).unwrap();
    assert!(!config.touches(&"a".repeat(200)));
}
