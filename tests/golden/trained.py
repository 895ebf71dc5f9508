"""Has PEFT load what training left behind.

    python tests/golden/trained.py CASE CHECKPOINT     CHECKPOINT is a folder that Pellucid wrote

Prints the log-probs of the case's completions under its model in f32 with the adapter on, a list for each prompt.
"""

import json
import sys
import warnings

import torch
from peft import PeftModel

import checkpoint
from gradients import HERE, logprobs, samples


def main(name, folder):
    model = checkpoint.load(HERE / name / "model", torch.float32)
    # PEFT only warns of matrices it misses or does not know.
    warnings.simplefilter("error", UserWarning)
    model = PeftModel.from_pretrained(model, folder).eval()
    with torch.inference_mode():
        print(json.dumps([logprobs(model, prompt, answer).tolist() for prompt, answer in samples(name)]))


main(*sys.argv[1:])
