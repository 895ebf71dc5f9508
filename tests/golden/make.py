"""Makes the golden fixtures: tiny random checkpoints and what transformers computes from them.

    python tests/golden/make.py [CASE...]           writes the cases (all of them without a name)
    python tests/golden/make.py --check [CASE...]   makes them elsewhere and reports what differs from the committed ones
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import compare
import pictures
import reference
import tokenizer as tokenizers
import weights
from cases import CASES, TEMPLATE

HERE = Path(__file__).resolve().parent


def write_json(path, value):
    """Indented, but lists of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    numbers = re.compile(r"\[\s+(-?\d[^\[\]\"{}]*?)\s+\]")
    path.write_text(numbers.sub(lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text) + "\n")


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


def write_checkpoint(case, folder):
    """The Hugging Face folder of a case: settings, tokenizer and random weights."""
    folder.mkdir(parents=True)
    token_to_id = tokenizers.save(case.tokenizer, TEMPLATE[case.tokenizer], folder)
    write_json(folder / "config.json", with_ids(case.config, token_to_id))
    write_json(folder / "generation_config.json", with_ids(case.generation, token_to_id))
    dtype = getattr(torch, case.dtype)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    weights.fill(model, case.seed, dtype)
    tied = case.config["tie_word_embeddings"]
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    weights.save(tensors, case.shards, folder)
    return model


def load(folder, dtype):
    """A model as any user of transformers gets it; every tensor of the file must find its place."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise SystemExit(f"{folder}: {kind} {report[kind]}")
    return model.eval()


@torch.no_grad()
def round_to_bf16(model):
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model


def describe(name, messages, completion, tokenizer, models, ends):
    """Everything expected of one prompt, as (json, arrays)."""
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(rendered, add_special_tokens=False).input_ids
    answer = tokenizer(completion, add_special_tokens=False).input_ids + ends[:1]
    scores = {kind: reference.score(model, prompt + answer, len(prompt), {}) for kind, model in models.items()}
    generated, margin = reference.greedy(models["f32"], prompt, ends, {})
    reference.require(len(generated) >= reference.LEAST_NEW_TOKENS, f"{name}: greedy stops after {len(generated)} tokens")
    reference.require(len(set(generated)) >= reference.LEAST_KINDS, f"{name}: greedy repeats itself")
    reference.require(margin >= reference.LEAST_MARGIN, f"{name}: greedy is undecided by {margin:.1e}")
    finished = generated[-1] in ends
    expected = {
        "name": name,
        "messages": messages,
        "rendered": rendered,
        "prompt_ids": prompt,
        "completion": completion,
        "completion_ids": answer,
        "logprobs": {kind: reference.rounded(score["logprobs"].tolist()) for kind, score in scores.items()},
        "entropy": reference.rounded(scores["f32"]["entropy"].tolist()),
        "greedy": {
            "ids": generated,
            "text": tokenizer.decode(generated, skip_special_tokens=True),
            "finish_reason": "stop" if finished else "length",
            "margin": margin,
        },
    }
    arrays = {f"{name}.logits": scores["f32"]["logits"]}
    return expected, arrays


def make_case(name, folder):
    """One case: its checkpoint, and beside it what is expected of it."""
    case = CASES[name]
    written = write_checkpoint(case, folder / "model")
    models = {"f32": load(folder / "model", torch.float32), "bf16": load(folder / "model", torch.bfloat16)}
    models["bf16_truth"] = round_to_bf16(load(folder / "model", torch.float32))
    for (key, parameter), original in zip(models["f32"].named_parameters(), written.parameters(), strict=True):
        if not torch.equal(parameter, original):
            raise SystemExit(f"{name}: {key} is not read back as it was written")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ends = models["f32"].generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    prompts, arrays = [], {}
    for prompt, (messages, completion) in case.prompts.items():
        expected, more = describe(prompt, messages, completion, tokenizer, models, ends)
        prompts.append(expected)
        arrays |= more
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    write_json(folder / "expected.json", {"case": name, "dtype": case.dtype, "made_with": versions, "prompts": prompts})
    save_file(arrays, folder / "expected.safetensors")


def make(name, folder):
    if name == "images":
        pictures.make(folder, write_json)
    else:
        make_case(name, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="of images " + " ".join(CASES))
    parser.add_argument("--check", action="store_true", help="compare with the committed fixtures, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    names = arguments.cases or ["images", *CASES]
    with tempfile.TemporaryDirectory() as scratch:
        different = 0
        for name in names:
            made = Path(scratch) / name
            make(name, made)
            if arguments.check:
                different += compare.report(HERE / name, made)
            else:
                shutil.rmtree(HERE / name, ignore_errors=True)
                shutil.copytree(made, HERE / name)
                print(f"{name}: {sum(file.stat().st_size for file in made.rglob('*') if file.is_file()) // 1024} KiB")
        sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
