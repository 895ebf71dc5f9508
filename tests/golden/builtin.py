"""Has transformers read the built-in models, and compares its tokens and log-probs with those of `pellucid score`.

    python tests/golden/builtin.py PELLUCID     PELLUCID is the program

AutoProcessor reads the captioner's folder as it is. AutoTokenizer of transformers 5 builds Qwen2's byte-level tokenizer
for whatever is of type `qwen2`, so that the reasoner's words are read by the class that its tokenizer_config.json names.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

ASSETS = Path(__file__).resolve().parents[2] / "assets"
QUESTION = "what is the sum of the number on the red-circle and the number on the blue-square ?"
CAPTION = "red-circle 3 , blue-square 4 ."


def scored(program, model, folder, line):
    """What the program reads and computes."""
    (folder / "in.jsonl").write_text(json.dumps(line) + "\n")
    command = [program, "score", "--model", ASSETS / model, "--input", folder / "in.jsonl", "--output", folder / "out.jsonl"]
    subprocess.run([*command, "--dtype", "f32", "--device", "cpu", "--threads", "2", "--quiet"], check=True)
    return json.loads((folder / "out.jsonl").read_text())


def compare(name, ours, prompt, answer, logits):
    """The same tokens, and log-probs as close as f32 can be."""
    assert ours["prompt_token_ids"] == prompt, f"{name}: {ours['prompt_token_ids']} for {prompt}"
    assert ours["completion_token_ids"] == answer, f"{name}: {ours['completion_token_ids']} for {answer}"
    theirs = logits[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), answer]
    far = (theirs - torch.tensor(ours["logprobs"])).abs().max().item()
    assert far < 1e-4, f"{name}: log-probs are off by {far:e}"
    print(f"{name}: {len(prompt)} tokens of the prompt and {len(answer)} behind them are the same, log-probs within {far:.1e}")


def captioner(program, folder):
    picture = Image.new("RGB", (84, 84), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 8, 36, 36), fill="red")
    draw.rectangle((46, 46, 74, 74), fill="blue")
    picture.save(folder / "picture.png")
    processor = AutoProcessor.from_pretrained(ASSETS / "tiny-captioner")
    model = AutoModelForImageTextToText.from_pretrained(ASSETS / "tiny-captioner", dtype=torch.float32).eval()
    words = f"describe the image for the question : {QUESTION}"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    answer = processor.tokenizer(f"{CAPTION} <|im_end|>")["input_ids"]
    prompt = inputs["input_ids"][0].tolist()
    whole = processor(text=[f"{text} {CAPTION} <|im_end|>"], images=[picture], return_tensors="pt")
    assert whole["input_ids"][0].tolist() == prompt + answer
    with torch.inference_mode():
        logits = model(**whole).logits
    line = {"messages": messages, "images": ["picture.png"], "completion_token_ids": answer}
    compare("tiny-captioner", scored(program, "tiny-captioner", folder, line), prompt, answer, logits)


def reasoner(program, folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ASSETS / "tiny-reasoner")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny-reasoner", dtype=torch.float32).eval()
    messages = [{"role": "user", "content": f"caption : {CAPTION} question : {QUESTION}"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt, answer = (tokenizer(words)["input_ids"] for words in (text, "SOLVED : 7 <|im_end|>"))
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits
    line = {"messages": messages, "completion_token_ids": answer}
    compare("tiny-reasoner", scored(program, "tiny-reasoner", folder, line), prompt, answer, logits)


with tempfile.TemporaryDirectory() as folder:
    captioner(sys.argv[1], Path(folder))
    reasoner(sys.argv[1], Path(folder))
