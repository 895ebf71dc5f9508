"""Greedy continuations of a trained model: `pellucid rollout` against transformers.

    python benches/peers/smollm2.py FOLDER
    python tests/golden/smollm2_parity.py FOLDER --pellucid target/release/pellucid

50 prompts (prose, code, lists, tables, other languages, turns of chat) are continued by 64 tokens. The reference is
transformers in f32; where Pellucid first chooses another token than it, the log-probs of both under the reference
are compared: a gap below NEAR_TIE is a tie that rounding decides, a wider one a failure. transformers in bf16 is put to
the same test, to show what rounding alone does. Needs torch and transformers.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS = 64
# Nats between two tokens; keys and values in bf16 move log-probs by some hundredths.
NEAR_TIE = 0.1

TEXTS = [
    "The old lighthouse keeper climbed the stairs every evening to",
    "In the spring of 1848, revolutions broke out across Europe because",
    "Photosynthesis is the process by which",
    "Once upon a time, in a village at the edge of a great forest, there lived",
    "It was a bright cold day in April, and the clocks were striking",
    "The committee's report, published on Tuesday, concluded that",
    "\"I never asked for any of this,\" she said, and",
    "Water boils at a lower temperature on a mountain. The reason is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Abstract. We study the problem of",
    "The capital of France is",
    "A triangle has sides of length 3, 4 and 5. Its area is",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "#include <stdio.h>\n\nint main(void) {\n",
    "fn largest(values: &[i32]) -> Option<i32> {\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "SELECT customers.name, SUM(orders.total) FROM customers JOIN",
    "import numpy as np\n\nx = np.linspace(0, 1, 100)\n",
    "<!DOCTYPE html>\n<html>\n<head>\n<title>",
    "const sum = (a, b) =>",
    "for i in $(ls *.txt); do\n",
    "{\n  \"name\": \"example\",\n  \"version\": \"1.0.0\",\n",
    "# Installation\n\nTo install the package, run:\n\n```bash\n",
    "Shopping list:\n- milk\n- eggs\n-",
    "The planets in order from the Sun:\n1. Mercury\n2. Venus\n3.",
    "Ten ways to save energy at home:\n\n1.",
    "Monday: soup\nTuesday: pasta\nWednesday:",
    "| Country | Capital |\n|---|---|\n| Italy | Rome |\n| Spain |",
    "2, 4, 8, 16, 32,",
    "1 + 1 = 2\n2 + 2 = 4\n3 + 3 =",
    "x,y\n1,1\n2,4\n3,9\n",
    "Q: What is the largest ocean?\nA: The Pacific.\n\nQ: What is the longest river?\nA:",
    "Le chat est assis sur",
    "Es war einmal ein König, der",
    "El perro corre por el parque y",
    "La storia di Roma comincia",
    "Однажды вечером",
    "日本の首都は",
    "中国的长城是",
    "안녕하세요, 저는",
    "O Brasil é o maior país da",
    "Η Αθήνα είναι",
    "مرحبا، كيف",
    "🙂 Happy birthday! 🎂",
]
CHATS = [
    "What is gravity?",
    "Write a haiku about autumn.",
    "Give me three names for a cat.",
    "Explain what a hash table is to a ten-year-old.",
    "Translate 'good morning' into French, German and Spanish.",
    "Solve for x: 2x + 3 = 11.",
]


def ours(program, folder, prompts):
    """The tokens Pellucid goes on with, in the order of the prompts; what it makes of the texts is checked too."""
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "prompts.jsonl", Path(work) / "rollouts.jsonl"
        source.write_text("".join(json.dumps(prompt) + "\n" for prompt, _ in prompts))
        command = [program, "rollout", "--model", folder, "--input", source, "--output", target, "--quiet"]
        command += ["--temperature", "0", "--max-tokens", str(TOKENS), "--ignore-eos"]
        subprocess.run(command, check=True)
        records = {record["id"]: record for record in map(json.loads, target.open(encoding="utf-8"))}
    for at, (prompt, ids) in enumerate(prompts):
        if records[at]["prompt_token_ids"] != ids:
            raise SystemExit(f"prompt {at} is other tokens: {prompt}\n{records[at]['prompt_token_ids']}\n{ids}")
    return [records[at]["completions"][0]["token_ids"] for at in range(len(prompts))]


def transformers(folder, prompts, dtype):
    """The tokens transformers goes on with, and the log-probs it chose each from."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokens, logprobs = [], []
    for _, ids in prompts:
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens.append(out.sequences[0, len(ids) :].tolist())
        logprobs.append(torch.stack(out.logits)[:, 0].float().log_softmax(-1))
    return tokens, logprobs


def compare(name, chosen, reference, logprobs, prompts, tokenizer):
    """Names every first difference; returns whether each is a near-tie."""
    same, widest, fine = 0, 0.0, True
    for at, (these, those) in enumerate(zip(chosen, reference, strict=True)):
        first = next((i for i, (a, b) in enumerate(zip(these, those, strict=True)) if a != b), None)
        if first is None:
            same += 1
            continue
        a, b = these[first], those[first]
        gap = (logprobs[at][first, b] - logprobs[at][first, a]).item()
        widest, fine = max(widest, gap), fine and gap < NEAR_TIE
        a, b = (repr(tokenizer.decode([token])) for token in (a, b))
        print(f"  {name}, prompt {at}, token {first}: {a} for {b}, {gap:.4f} less likely")
    print(f"{name}: {same} of {len(prompts)} the same to the end; the widest gap at a first difference is {widest:.4f}")
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pellucid", required=True, help="the program")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    prompts = [({"prompt": text}, tokenizer(text).input_ids) for text in TEXTS]
    for text in CHATS:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True).input_ids
        prompts.append(({"messages": messages}, ids))
    chosen = ours(options.pellucid, options.folder, prompts)
    reference, logprobs = transformers(options.folder, prompts, torch.float32)
    half, _ = transformers(options.folder, prompts, torch.bfloat16)
    compare("transformers in bf16", half, reference, logprobs, prompts, tokenizer)
    if not compare("pellucid", chosen, reference, logprobs, prompts, tokenizer):
        raise SystemExit(f"a gap of {NEAR_TIE} or more is no tie")


if __name__ == "__main__":
    main()
