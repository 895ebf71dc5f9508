"""LoRA gradients and ten steps of AdamW, by torch and peft, on every golden checkpoint in f32.

    python tests/golden/gradients.py [CASE...]         writes CASE/training/: the adapter to begin with, gradients, losses
    python tests/golden/gradients.py --full [CASE...]  writes CASE/full.json: the same of every weight, without an adapter

The gradients are those of the sum of slope(i, t) times the log-prob of token t of completion i; the steps minimise the
mean cross-entropy of all completions' tokens.
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import checkpoint
import reference
import weights
from cases import CASES
from files import write_json

HERE = Path(__file__).resolve().parent
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = dict(lr=2e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
CLIP = 0.5
FULL = ["qwen2_5", "qwen3", "qwen2_5_vl"]
FULL_STEPS = dict(lr=5e-4, betas=(0.9, 0.99), eps=1e-6)


def slope(sample, token):
    return math.sin(1 + 3 * sample + token) / 8


def adapted(case, folder):
    model = checkpoint.load(folder, torch.float32)
    vision = hasattr(model.config, "vision_config")
    targets = rf".*language_model.*\.({'|'.join(LINEARS)})" if vision else LINEARS
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=targets))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                deviation = 0.06 if "lora_B" in key else parameter.shape[1] ** -0.5
                random = weights.generator(case.seed, "training " + key).standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(deviation * random))
    return model


def logprobs(model, prompt, answer):
    start = len(prompt.ids)
    tokens = torch.tensor([prompt.ids + answer])
    logits = model(input_ids=tokens, **prompt.inputs(tokens.shape[1])).logits[0, start - 1 : -1].float()
    return torch.log_softmax(logits, dim=-1).gather(1, tokens[0, start:, None])[:, 0]


def key_of(name):
    return name.replace(".default.", ".")


def samples(name):
    """Prompts of a case and the completions to learn."""
    folder = HERE / name
    processor = reference.Processor(folder / "model", HERE / "images" / "files")
    expected = json.loads((folder / "expected.json").read_text())["prompts"]
    return [
        (processor.prompt(messages), plain["completion_ids"])
        for (messages, _), plain in zip(CASES[name].prompts.values(), expected, strict=True)
    ]


def weighted(model, lessons):
    total = 0
    for number, (prompt, answer) in enumerate(lessons):
        slopes = torch.tensor([slope(number, token) for token in range(len(answer))])
        total = total + (slopes * logprobs(model, prompt, answer)).sum()
    return total


def mean_loss(model, lessons):
    count = sum(len(answer) for _, answer in lessons)
    return -sum(logprobs(model, prompt, answer).sum() for prompt, answer in lessons) / count


def descend(model, lessons, optimiser):
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    losses, norms = [], []
    for _ in range(10):
        optimiser.zero_grad()
        loss = mean_loss(model, lessons)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, CLIP)))
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, norms


def stored_name(name):
    """As the files of the cases call a parameter."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def make_full(name):
    folder = HERE / name
    model = checkpoint.load(folder / "model", torch.float32).eval()
    lessons = samples(name)
    parameters = {stored_name(key): p.requires_grad_() for key, p in model.named_parameters()}
    mean_loss(model, lessons).backward()
    gradients = {}
    for key, parameter in sorted(parameters.items()):
        gradient = parameter.grad.double().flatten()
        along = torch.sin(1 + 0.37 * torch.arange(len(gradient), dtype=torch.float64))
        gradients[key] = {"norm": float(gradient.norm()), "along": float(gradient @ along)}
    wide = [p for p in parameters.values() if p.dim() > 1]
    narrow = [p for p in parameters.values() if p.dim() == 1]
    groups = [{"params": wide, "weight_decay": 0.01}, {"params": narrow, "weight_decay": 0.0}]
    losses, norms = descend(model, lessons, torch.optim.AdamW(groups, **FULL_STEPS))
    write_json(folder / "full.json", {"gradients": gradients, "losses": losses, "norms": norms})
    print(name, [round(loss, 4) for loss in losses], [round(norm, 3) for norm in norms])


def make(name):
    case, folder = CASES[name], HERE / name
    out = folder / "training"
    shutil.rmtree(out, ignore_errors=True)
    model = adapted(case, folder / "model").eval()
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(out)
    (out / "README.md").unlink()
    config = json.loads((out / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(out / "adapter_config.json", config)

    lessons = samples(name)
    parameters = {key_of(key): p for key, p in model.named_parameters() if p.requires_grad}
    weighted(model, lessons).backward()
    save_file({key: p.grad.clone() for key, p in parameters.items()}, out / "gradients.safetensors")

    losses, norms = descend(model, lessons, torch.optim.AdamW(parameters.values(), **STEPS))
    write_json(out / "steps.json", {"losses": losses, "norms": norms})
    print(name, [round(loss, 4) for loss in losses], [round(norm, 3) for norm in norms])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    full = "--full" in arguments
    for name in [argument for argument in arguments if argument != "--full"] or (FULL if full else CASES):
        (make_full if full else make)(name)
