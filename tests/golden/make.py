"""Makes the golden fixtures: tiny random checkpoints and what transformers computes from them.

    python tests/golden/make.py [CASE...]           writes the cases (all of them without a name)
    python tests/golden/make.py --check [CASE...]   makes them elsewhere and reports what differs from the committed ones
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from safetensors.torch import save_file

import adapters
import checkpoint
import compare
import pictures
import reference
import variants
from cases import CASES
from files import write_json

HERE = Path(__file__).resolve().parent


def describe(name, messages, completion, processor, models):
    """Everything expected of one prompt, as (json, arrays)."""
    prompt = processor.prompt(messages)
    ends = reference.end_tokens(models["f32"])
    answer = processor.tokens(completion) + ends[:1]
    scores = {kind: reference.score(model, prompt, answer) for kind, model in models.items()}
    generated, margin = reference.greedy(models["f32"], prompt, ends)
    reference.judge(name, generated, margin, models["f32"].config)
    expected = {
        "name": name,
        "messages": messages,
        "rendered": prompt.rendered,
        "prompt_ids": prompt.ids,
        **reference.layout(models["f32"], prompt),
        "completion": completion,
        "completion_ids": answer,
        "logprobs": {kind: reference.rounded(score["logprobs"]) for kind, score in scores.items()},
        "entropy": reference.rounded(scores["f32"]["entropy"]),
        "greedy": {
            "ids": generated,
            "text": processor.text(generated),
            "finish_reason": "stop" if generated[-1] in ends else "length",
            "margin": margin,
        },
    }
    return expected, {f"{name}.logits": scores["f32"]["logits"]}


def make_case(name, folder):
    """One case: its checkpoint, and beside it what is expected of it."""
    case = CASES[name]
    checkpoint.write(case, folder / "model")
    variants.write(case, folder / "model", folder / "variants")
    models = {
        "f32": checkpoint.load(folder / "model", torch.float32),
        "bf16": checkpoint.load(folder / "model", torch.bfloat16),
        "bf16_truth": checkpoint.round_to_bf16(checkpoint.load(folder / "model", torch.float32)),
    }
    processor = reference.Processor(folder / "model", HERE / "images" / "files")
    prompts, arrays = [], {}
    for prompt, (messages, completion) in case.prompts.items():
        expected, more = describe(prompt, messages, completion, processor, models)
        prompts.append(expected)
        arrays |= more
    if case.adapter:
        adapters.write(case, name, folder / "model", folder / "adapter")
        adapters.describe(folder / "model", folder / "adapter", processor, case.prompts, prompts)
    for file in sorted(processor.seen):
        arrays |= reference.picture(file, processor, models["f32"])
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    write_json(folder / "expected.json", {"case": name, "dtype": case.dtype, "made_with": versions, "prompts": prompts})
    save_file(arrays, folder / "expected.safetensors")


def make(name, folder):
    if name == "images":
        pictures.make(folder)
    else:
        make_case(name, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="of images " + " ".join(CASES))
    parser.add_argument("--check", action="store_true", help="compare with the committed fixtures, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.cases or ["images", *CASES]:
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
