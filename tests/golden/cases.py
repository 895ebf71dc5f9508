"""The table of golden checkpoints: one entry per family, each as small as the family's structure allows."""

from dataclasses import dataclass, field

CHATML = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ IMAGE }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
LLAMA_CHAT = """{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""
TEMPLATE = {
    "qwen2": CHATML,
    "qwen3": CHATML,
    "smollm2": CHATML,
    "llama3": LLAMA_CHAT,
    "qwen_vl": CHATML.replace("IMAGE", "'<|vision_start|><|image_pad|><|vision_end|>'"),
    "internvl": CHATML.replace("IMAGE", "'<IMG_CONTEXT>\\n'"),
}


def user(*parts):
    """A user turn: strings are text, names ending in .png are images of tests/golden/images/files."""
    if all(not part.endswith(".png") for part in parts):
        return {"role": "user", "content": "".join(parts)}
    content = [
        {"type": "image", "image": part} if part.endswith(".png") else {"type": "text", "text": part} for part in parts
    ]
    return {"role": "user", "content": content}


SYSTEM = {"role": "system", "content": "You are a careful assistant."}
# name -> (messages, completion to score)
TEXT_PROMPTS = {
    "short": ([user("Hi")], "Hello! How can I help?"),
    "system": ([SYSTEM, user("What is 3 + 4 * 5?")], "The answer is 23, since 4 * 5 = 20.\n\n\\boxed{23}"),
    "turns": (
        [
            SYSTEM,
            user("Describe the figure."),
            {"role": "assistant", "content": "A right triangle; one side is 3 and the other side is 4."},
            user("And the area?\n```python\nprint(3 * 4 / 2)\n```"),
        ],
        "It is $\\frac{3 \\cdot 4}{2} = 6$.",
    ),
    "scripts": ([user("Größe: 你好世界, привет мир! こんにちは 🙂 " * 4)], "三角形的面积是多少? Ωμέγα, señor."),
}
IMAGE_PROMPTS = {
    "text": ([SYSTEM, user("What is 3 + 4?")], "It is 7."),
    "one": ([user("even.png", "Describe the image.")], "A blue bar and a red bar."),
    "odd": ([SYSTEM, user("What is in ", "odd.png", " this picture?")], "The angle is 90 degrees."),
    "tall": ([user("tall.png", "How many points?")], "There are 7 points."),
    "several": (
        [
            user("tiny.png", "odd.png", "Which is larger?"),
            {"role": "assistant", "content": "The second."},
            user("And this one: ", "wide.png", "?"),
        ],
        "It is as wide as the others together.",
    ),
}


@dataclass
class Case:
    """One checkpoint: its config.json as published, and how its files are written."""

    seed: int
    tokenizer: str
    config: dict
    dtype: str = "bfloat16"
    shards: int = 1
    prompts: dict = field(default_factory=lambda: TEXT_PROMPTS)
    generation: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)  # file name -> content
    stored_names: list = field(default_factory=list)  # (pattern, replacement): from transformers 5 names to the file's
    adapter: dict = field(default_factory=dict)  # arguments of peft.LoraConfig


QWEN_ENDS = {"bos_token_id": "<|endoftext|>", "eos_token_id": ["<|im_end|>", "<|endoftext|>"]}

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 112,
    "max_position_embeddings": 4096,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 384,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "max_window_layers": 3,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 384,
}
LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": "<|begin_of_text|>",
    "eos_token_id": ["<|end_of_text|>", "<|eot_id|>"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    # 64 original positions put one frequency each into the kept, the blended and the stretched range
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 361,
}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": "<|im_start|>",
    "eos_token_id": "<|im_end|>",
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 80,
    "is_llama_config": True,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "pad_token_id": "<|im_end|>",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 360,
}

VISION_IDS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_token_id": "<|vision_pad|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
QWEN2_VL = {
    **QWEN2,
    **VISION_IDS,
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "transformers_version": "4.41.2",
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "in_channels": 3,
        "in_chans": 3,
        "mlp_ratio": 4,
        "model_type": "qwen2_vl",
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}
# windows of 2 x 2 merged cells: the pictures give ragged ones at both edges
QWEN2_5_VL = {
    **QWEN2,
    **VISION_IDS,
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": False,
    "transformers_version": "4.41.2",
    "vision_config": {
        "depth": 4,
        "fullatt_block_indexes": [1, 3],
        "hidden_act": "silu",
        "hidden_size": 40,
        "in_channels": 3,
        "in_chans": 3,
        "intermediate_size": 52,
        "model_type": "qwen2_5_vl",
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "spatial_patch_size": 8,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 32,
    },
}
INTERNVL3 = {
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 0.5,
    "image_seq_length": 9,
    "image_token_id": "<IMG_CONTEXT>",
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "text_config": {
        **QWEN2,
        "max_position_embeddings": 4096,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.0.dev0",
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 32,
        "image_size": [48, 48],
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": 72,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": [8, 8],
        "projection_dropout": 0.0,
        "torch_dtype": "bfloat16",
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
# InternVL3 38B and 78B have another tower: root mean square norms, normed queries and keys, no biases on them
INTERNVL3_LARGE = {
    **INTERNVL3,
    "text_config": {
        **INTERNVL3["text_config"],
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
    },
    "vision_config": {
        **INTERNVL3["vision_config"],
        "attention_bias": False,
        "hidden_size": 48,
        "intermediate_size": 64,
        "norm_type": "rms_norm",
        "num_attention_heads": 3,
        "use_qk_norm": True,
    },
}


def qwen_processor(model, patch, least, most):
    return {
        "preprocessor_config.json": {
            "min_pixels": least,
            "max_pixels": most,
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": f"{model}Processor",
        }
    }


# The published file says no crop; the processor crops all the same, its own default being stronger.
INTERNVL_PROCESSOR = {
    "preprocessor_config.json": {
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 4,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "return_tensors": None,
        "size": {"height": 48, "width": 48},
    },
    "processor_config.json": {"image_seq_length": 9, "processor_class": "InternVLProcessor"},
}
QWEN_VL_NAMES = [(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")]
INTERNVL_NAMES = [
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
]

CASES = {
    "qwen2": Case(
        seed=2, tokenizer="qwen2", config=QWEN2, generation={"repetition_penalty": 1.1, **QWEN_ENDS},
        adapter={
            "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
            "rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"k_proj": 3, r".*\.0\..*o_proj": 20},
        },
    ),
    "qwen2_5": Case(
        seed=2, tokenizer="qwen2",
        config={**QWEN2, "num_hidden_layers": 3, "tie_word_embeddings": False, "torch_dtype": "float16"},
        dtype="float16", generation={"repetition_penalty": 1.05, **QWEN_ENDS},
    ),
    "qwen3": Case(seed=28, tokenizer="qwen3", config=QWEN3, generation=QWEN_ENDS),
    "llama3": Case(
        seed=1, tokenizer="llama3", config=LLAMA3, shards=3,
        generation={"bos_token_id": "<|begin_of_text|>", "eos_token_id": ["<|end_of_text|>", "<|eot_id|>"]},
    ),
    "smollm2": Case(
        seed=1, tokenizer="smollm2", config=SMOLLM2, dtype="float32",
        generation={"bos_token_id": "<|im_start|>", "eos_token_id": "<|im_end|>"},
    ),
    "qwen2_vl": Case(
        seed=8, tokenizer="qwen_vl", config=QWEN2_VL, prompts=IMAGE_PROMPTS, generation=QWEN_ENDS,
        processor=qwen_processor("Qwen2VL", 14, 3136, 12544), stored_names=QWEN_VL_NAMES,
    ),
    "qwen2_5_vl": Case(
        seed=13, tokenizer="qwen_vl", config=QWEN2_5_VL, shards=2, prompts=IMAGE_PROMPTS,
        generation={"repetition_penalty": 1.05, **QWEN_ENDS},
        processor=qwen_processor("Qwen2_5_VL", 8, 1024, 12544), stored_names=QWEN_VL_NAMES,
        adapter={
            "r": 6, "lora_alpha": 12, "use_rslora": True,
            "target_modules": r".*language_model.*\.(q_proj|v_proj|up_proj|down_proj)",
        },
    ),
    "internvl3": Case(
        seed=3, tokenizer="internvl", config=INTERNVL3, prompts=IMAGE_PROMPTS,
        generation={"eos_token_id": "<|im_end|>"}, processor=INTERNVL_PROCESSOR, stored_names=INTERNVL_NAMES,
    ),
    "internvl3_large": Case(
        seed=1, tokenizer="internvl", config=INTERNVL3_LARGE,
        prompts={name: IMAGE_PROMPTS[name] for name in ("text", "one", "tall")},
        generation={"eos_token_id": "<|im_end|>"}, processor=INTERNVL_PROCESSOR, stored_names=INTERNVL_NAMES,
    ),
}  # fmt: skip
