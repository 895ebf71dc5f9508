"""Random weights that behave like trained ones: spread logits, live biases, norms away from one."""

import hashlib
import json

import numpy as np
import torch
from safetensors.torch import save_file


def generator(seed, name):
    """One random stream per tensor, so that adding a tensor leaves the others as they were."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:8], "little")))


def scale(name, shape):
    """(mean, standard deviation) of one tensor, by its role."""
    last = name.rsplit(".", 2)[-2] if "." in name else name
    if "lambda_" in name:
        return 0.6, 0.2  # layer scale: neither 1 nor alike
    if "norm" in last or last == "ln_q":
        return (1.0, 0.25) if name.endswith("weight") else (0.0, 0.2)
    if name.endswith("bias"):
        return 0.0, 0.25
    if "embed_tokens" in name or "position_embeddings" in name or "cls_token" in name:
        return 0.0, 0.35
    fan_in = int(np.prod(shape[1:]))
    gain = 2.6 if "lm_head" in name else 1.5 if last in ("q_proj", "k_proj", "qkv") else 1.2
    return 0.0, gain / fan_in**0.5


@torch.no_grad()
def fill(model, seed, dtype):
    """Gives every parameter its random value, rounded to the dtype that will be stored."""
    for name, parameter in model.named_parameters():
        if "lambda_" not in name and parameter.ndim == 1 and not name.endswith((".weight", ".bias")):
            raise ValueError(f"no rule for {name}")
        mean, deviation = scale(name, parameter.shape)
        values = mean + deviation * generator(seed, name).standard_normal(tuple(parameter.shape))
        parameter.copy_(torch.from_numpy(values).to(dtype))


def save(tensors, shards, folder):
    """model.safetensors, or that many shards and their index."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata)
        return
    names = list(tensors)
    where = {name: f"model-{at * shards // len(names) + 1:05}-of-{shards:05}.safetensors" for at, name in enumerate(names)}
    for file in sorted(set(where.values())):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file, metadata)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
