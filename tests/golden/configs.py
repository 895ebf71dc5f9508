"""What transformers makes of `config.json` files: published ones, bare ones, and those it writes itself.

    python tests/golden/configs.py      writes configs.json beside this file

Each entry has the file as published (the keys that matter), the same model as transformers saves it, and the values
it computes with. `tests/config.rs` holds the Rust reader to all three.
"""

import copy
import json
import os
import tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from transformers import CONFIG_MAPPING

HERE = Path(__file__).resolve().parent

QWEN2_5_0_5B = {
    "architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936,
}
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 128256,
}
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 49152,
}
LLAMA_LINEAR = {**SMOLLM2_135M, "rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True, "mlp_bias": True}
QWEN2_VL_2B = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "eos_token_id": 151645, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656,
    "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768,
    "max_window_layers": 28, "model_type": "qwen2_vl", "num_attention_heads": 12, "num_hidden_layers": 28,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
}
QWEN2_5_VL_3B = {
    **{key: value for key, value in QWEN2_VL_2B.items() if key != "vision_config"},
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 2048,
    "intermediate_size": 11008, "max_position_embeddings": 128000, "max_window_layers": 70,
    "num_attention_heads": 16, "num_hidden_layers": 36,
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
}
INTERNVL3_1B_HF = {
    "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5, "image_seq_length": 256,
    "image_token_id": 151667, "model_type": "internvl", "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "rope_theta": 1000000.0,
        "sliding_window": None, "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151674,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "architectures": ["InternVLVisionModel"], "attention_bias": True, "hidden_act": "gelu", "hidden_size": 1024,
        "image_size": [448, 448], "intermediate_size": 4096, "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1, "model_type": "internvl_vision", "norm_type": "layer_norm",
        "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "patch_size": [14, 14],
        "use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True,
        "use_qk_norm": False,
    },
    "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
}

PUBLISHED = {
    "Qwen2.5-0.5B-Instruct": QWEN2_5_0_5B,
    "Qwen3-0.6B": QWEN3_0_6B,
    "Llama-3.2-1B-Instruct": LLAMA_3_2_1B,
    "SmolLM2-135M-Instruct": SMOLLM2_135M,
    "Llama, linear positions and biases": LLAMA_LINEAR,
    "Qwen2-VL-2B-Instruct": QWEN2_VL_2B,
    "Qwen2.5-VL-3B-Instruct": QWEN2_5_VL_3B,
    "InternVL3-1B-hf": INTERNVL3_1B_HF,
    # Nothing but the name: every value is a default.
    "bare qwen2": {"model_type": "qwen2"},
    "bare qwen3": {"model_type": "qwen3"},
    "bare llama": {"model_type": "llama"},
    # The towers' default widths do not fit the decoders' defaults, so one width is given.
    "bare qwen2_vl": {"model_type": "qwen2_vl", "vision_config": {"hidden_size": 8192}},
    "bare qwen2_5_vl": {"model_type": "qwen2_5_vl", "vision_config": {"out_hidden_size": 8192}},
    "bare internvl": {"model_type": "internvl", "text_config": {}},
}


def resolved(config):
    text = config.get_text_config()
    rope = text.rope_parameters
    eos = next((c.eos_token_id for c in (config, text) if getattr(c, "eos_token_id", None) is not None), [])
    values = {
        "hidden": text.hidden_size,
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "ffn": text.intermediate_size,
        "vocab": text.vocab_size,
        "rms_eps": text.rms_norm_eps,
        "max_positions": text.max_position_embeddings,
        "tied_head": config.tie_word_embeddings,
        "theta": rope["rope_theta"],
        "rope_type": rope["rope_type"],
        "factor": rope.get("factor"),
        "low_freq_factor": rope.get("low_freq_factor"),
        "high_freq_factor": rope.get("high_freq_factor"),
        "original_max_positions": rope.get("original_max_position_embeddings"),
        # The model's own default where the file has none.
        "mrope_sections": rope.get("mrope_section", [16, 24, 24]) if config.model_type.endswith("_vl") else None,
        "attention_bias": getattr(text, "attention_bias", None),
        "mlp_bias": getattr(text, "mlp_bias", None),
        "eos": eos if isinstance(eos, list) else [eos],
        "image_token": getattr(config, "image_token_id", None),
    }
    vision = getattr(config, "vision_config", None)
    if vision is not None:
        names = [
            "depth", "embed_dim", "hidden_size", "mlp_ratio", "intermediate_size", "num_heads", "in_channels",
            "patch_size", "temporal_patch_size", "spatial_merge_size", "out_hidden_size", "window_size",
            "fullatt_block_indexes", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
            "layer_norm_eps", "attention_bias", "use_qk_norm", "norm_type",
        ]
        values["vision"] = {name: getattr(vision, name) for name in names if hasattr(vision, name)}
        values["vision"]["downsample_ratio"] = getattr(config, "downsample_ratio", None)
    return values


def entry(name, published):
    # Configuration classes take what they are given apart, so each gets its own copy.
    config = CONFIG_MAPPING[published["model_type"]].from_dict(copy.deepcopy(published))
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        saved = json.loads((Path(folder) / "config.json").read_text())
    saved.pop("transformers_version")
    return {"name": name, "published": published, "saved": saved, "resolved": resolved(config)}


if __name__ == "__main__":
    entries = [entry(name, published) for name, published in PUBLISHED.items()]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (HERE / "configs.json").write_text(f"[\n{lines}\n]\n")
