"""LoRA adapters on the golden checkpoints, written by peft, and what the adapted models compute."""

import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import checkpoint
import reference
import weights
from files import write_json


def write(case, name, model, folder):
    """An adapter with live matrices on both sides, in peft's files."""
    adapted = get_peft_model(checkpoint.load(model, torch.float32), LoraConfig(task_type="CAUSAL_LM", **case.adapter))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                deviation = 0.06 if "lora_B" in key else parameter.shape[1] ** -0.5
                random = weights.generator(case.seed, key).standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(deviation * random))
    adapted.peft_config["default"].base_model_name_or_path = name
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # peft writes a set, in any order
    write_json(folder / "adapter_config.json", config)


def load(model, folder):
    """The adapted model in the three ways of computing; peft keeps the adapter itself in f32."""
    kinds = {
        "f32": checkpoint.load(model, torch.float32),
        "bf16": checkpoint.load(model, torch.bfloat16),
        "bf16_truth": checkpoint.round_to_bf16(checkpoint.load(model, torch.float32)),
    }
    return {kind: PeftModel.from_pretrained(base, folder).eval() for kind, base in kinds.items()}


def describe(model, folder, processor, prompts, expected):
    """Scores under the adapter of the completions already described."""
    models = load(model, folder)
    for (messages, _), plain in zip(prompts.values(), expected, strict=True):
        prompt, answer = processor.prompt(messages), plain["completion_ids"]
        scores = {kind: reference.score(adapted, prompt, answer)["logprobs"] for kind, adapted in models.items()}
        plain["adapter_logprobs"] = {kind: reference.rounded(score) for kind, score in scores.items()}
