"""LoRA adapters as PEFT itself writes and reads them.

    python tests/golden/lora.py                makes the fixtures beside this file, in adapters/
    python tests/golden/lora.py --read DIR     has PEFT load the adapter in DIR and prints what it makes of it

Both tell, for each adapted module, its rank, its scale and what it adds to the weight, so that `tests/adapter.rs`
can hold the Rust reader to what PEFT computes, and PEFT to what the Rust writer wrote.
"""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).resolve().parent

# The ways a configuration can name modules and set their strength.
CASES = {
    "names": dict(r=4, lora_alpha=8, target_modules=["q_proj", "mlp.down_proj"]),
    "expression": dict(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=r".*\.(self_attn\.[qko]_proj|mlp\.\w+_proj)",
        exclude_modules=["mlp.gate_proj", "model.layers.1.self_attn.k_proj"],
        rank_pattern={r"layers\.1\.mlp\.\w+_proj": 2, r"^model\.layers\.0\.self_attn\.q_proj": 3, "q_proj": 5},
        alpha_pattern={"k_proj": 16, r"self_attn\.\w+": 2},
    ),
    "everything": dict(r=2, lora_alpha=3, target_modules="all-linear"),
    "one_layer": dict(r=2, lora_alpha=2, target_modules=["o_proj", "up_proj"], layers_to_transform=[1]),
}


def tiny_model():
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def described(model):
    """What the adapter does to each module of `model`."""
    linear, adapted = [], {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            linear.append(name)
            delta = module.get_delta_weight("default")
            adapted[name] = {
                "rank": module.r["default"],
                "scale": module.scaling["default"],
                "shape": list(delta.shape),
                "first_row": delta[0].tolist(),
                "sum": delta.sum().item(),
            }
        elif isinstance(module, torch.nn.Linear) and "lora_" not in name and not name.endswith("base_layer"):
            linear.append(name)
    return {"linear": linear, "adapted": adapted}


def make(folder, settings):
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "expected.json").write_text(json.dumps(described(model)) + "\n")


def read(folder):
    # PEFT only warns of tensors it misses; here none may be missing.
    warnings.simplefilter("error", UserWarning)
    print(json.dumps(described(PeftModel.from_pretrained(tiny_model(), folder))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(sys.argv[2])
    else:
        for case, settings in CASES.items():
            make(HERE / "adapters" / case, settings)
