"""Writing a case as a Hugging Face folder, and loading it as any user of transformers does."""

import re

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import tokenizer as tokenizers
import weights
from cases import TEMPLATE
from files import write_json


def with_ids(config, token_to_id):
    """Configs name tokens in the table; files hold their ids."""
    resolve = lambda value: token_to_id(value) if isinstance(value, str) else value
    filled = {}
    for key, value in config.items():
        if isinstance(value, dict):
            value = with_ids(value, token_to_id)
        elif key.endswith("token_id"):
            value = [resolve(item) for item in value] if isinstance(value, list) else resolve(value)
        filled[key] = value
    return filled


def model_class(folder):
    config = AutoConfig.from_pretrained(folder)
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def rename(name, patterns):
    for pattern, replacement in patterns:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name


def write(case, folder):
    """Settings, tokenizer and random weights; what is read back must be what was drawn."""
    folder.mkdir(parents=True)
    token_to_id = tokenizers.save(case.tokenizer, TEMPLATE[case.tokenizer], folder)
    write_json(folder / "config.json", with_ids(case.config, token_to_id))
    write_json(folder / "generation_config.json", with_ids(case.generation, token_to_id))
    for file, content in case.processor.items():
        write_json(folder / file, content)
    dtype = getattr(torch, case.dtype)
    model = model_class(folder).from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    weights.fill(model, case.seed, dtype)
    drawn = dict(model.named_parameters())  # a tied head appears once, as the embedding
    weights.save({rename(name, case.stored_names): tensor.data.to(dtype) for name, tensor in drawn.items()}, case.shards, folder)
    for name, tensor in load(folder, torch.float32).named_parameters():
        if not torch.equal(tensor, drawn.pop(name)):
            raise SystemExit(f"{folder}: {name} is not read back as it was written")
    if drawn:
        raise SystemExit(f"{folder}: {list(drawn)} are not read back")


def load(folder, dtype):
    """Every tensor of the files must find its place, and every place its tensor."""
    model, report = model_class(folder).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise SystemExit(f"{folder}: {kind} {report[kind]}")
    return model.eval()


@torch.no_grad()
def round_to_bf16(model):
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model
