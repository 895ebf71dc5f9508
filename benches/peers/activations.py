"""What training takes from the system, beside what the program says that its activations take.

    cargo build --release
    python benches/peers/smollm2.py /tmp/smollm2
    python benches/peers/activations.py /tmp/smollm2 [--tokens 100 1500]

Two runs of `sft`, of a step each, whose one microbatch is short and long. Weights, the adapter and the program itself
are in both, so the difference of their greatest sizes (ru_maxrss) is that of their activations.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """[captioner]
model = {model}
lora = {{ rank = 16, alpha = 16 }}
[data]
train = {data}
[optim]
prompts_per_step = 1
microbatch_tokens = {tokens}
keep_bytes = 0
[run]
steps = 1
out = {out}
"""


def train(program, model, tokens):
    """The greatest size of a run, and the activations it says it held."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        line = {"prompt_token_ids": [at * 7919 % 4096 for at in range(tokens - 2)], "completion_token_ids": [5, 6]}
        (scratch / "data.jsonl").write_text(json.dumps(line) + "\n")
        quoted = {"model": model, "data": scratch / "data.jsonl", "out": scratch / "out"}
        text = CONFIG.format(tokens=tokens, **{name: json.dumps(str(value)) for name, value in quoted.items()})
        (scratch / "run.toml").write_text(text)
        command = [program, "sft", "--json", "--quiet", "-c", scratch / "run.toml"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        summary = json.loads(child.stdout.read().splitlines()[-1])
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0, status
        return usage.ru_maxrss * 1024, summary["activation_bytes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, nargs=2, default=[100, 1500])
    parser.add_argument("--program", default=ROOT / "target/release/pellucid")
    options = parser.parse_args()
    (small, less), (large, more) = (train(options.program, options.model.resolve(), count) for count in options.tokens)
    grown, said = large - small, more - less
    print(f"{grown / 2**20:.1f} MiB more for {said / 2**20:.1f} MiB of activations: {100 * (grown / said - 1):+.1f} %")


if __name__ == "__main__":
    main()
