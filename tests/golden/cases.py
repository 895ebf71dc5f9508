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
    variants: dict = field(default_factory=dict)  # name -> function of the case, see variants.py
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

CASES = {
    "qwen2": Case(
        seed=2, tokenizer="qwen2", config=QWEN2, generation={"repetition_penalty": 1.1, **QWEN_ENDS},
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
}  # fmt: skip
