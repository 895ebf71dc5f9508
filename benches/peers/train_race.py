"""`pellucid bench train` against PyTorch and PEFT: same machine, threads, weights and tokens, sides taking turns.

    cargo build --release
    python benches/peers/checkpoint.py /tmp/tiny-world --shape tiny-world
    python benches/peers/smollm2.py /tmp/smollm2
    python benches/peers/train_race.py --tiny /tmp/tiny-world --small /tmp/smollm2 --threads 2 4 --turns 3 \\
        --torch-python VENV/bin/python

A step goes forward and back, clips the gradient and moves the adapter, rank 16 on every linear: torch_train.py
describes it. Every turn runs each side once, in a process of its own. Printed and kept (benches/history/) are medians
over the turns, in seconds. The ratio is the best peer's time over Pellucid's: above 1 Pellucid is faster. Where
several completions stand behind one prompt Pellucid computes it once, as its users get it; the steps whose groups hold
one completion have nothing to share.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
from pathlib import Path

import race

ROOT = race.ROOT
# Which model, and the step's groups, their size, the tokens of a prompt and of a completion.
STEPS = {
    "tiny 32x8 of 34+12": ("tiny", 32, 8, 34, 12),
    "tiny 256x1 of 34+12": ("tiny", 256, 1, 34, 12),
    "small 1x8 of 200+56": ("small", 1, 8, 200, 56),
    "small 8x1 of 200+56": ("small", 8, 1, 200, 56),
}
TORCH = {
    "torch f32": [],
    "torch f32, checkpointing": ["--checkpointing"],
    "torch bf16 weights": ["--dtype", "bfloat16"],
    "torch bf16 autocast": ["--autocast"],
}


def ours(options, folder, flags, threads):
    command = [options.pellucid, "bench", "train", "--model", folder, "--threads", threads, "--json", *flags]
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    [timing] = json.loads(done.stdout)["kernels"]
    return timing["us"] / 1e6


def theirs(options, folder, flags, threads, extra):
    command = [options.torch_python, race.HERE / "torch_train.py", folder, *flags, *extra]
    # All sequences at once: on the tiny model passes of 64 are as fast, of 16 slower.
    command += ["--batch", 256]
    run = argparse.Namespace(threads=threads, rounds=options.rounds)
    return race.measure(command, run)["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--pellucid", default=str(ROOT / "target/release/pellucid"), help="the program")
    parser.add_argument("--threads", type=int, nargs="+", required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="rounds within a turn")
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--only", nargs="*", default=list(TORCH), help="race these peers only")
    parser.add_argument("--note", default="", help="what else to remember, such as what else the machine did")
    options = parser.parse_args()

    seconds, load = {}, []
    for name, (model, groups, size, prompt, completion) in STEPS.items():
        folder = getattr(options, model)
        if folder is None:
            continue
        flags = ["--groups", groups, "--group-size", size, "--prompt", prompt, "--completion", completion, "--rank", 16]
        for threads in options.threads:
            turns = {side: [] for side in ("pellucid", *options.only)}
            for _ in range(options.turns):
                for side, record in turns.items():
                    load.append(os.getloadavg()[0])
                    if side == "pellucid":
                        record.append(ours(options, folder.resolve(), flags, threads))
                    else:
                        record.append(theirs(options, folder.resolve(), flags, threads, TORCH[side]))
            seconds[f"{name}, {threads} threads"] = turns
            medians = {side: statistics.median(record) for side, record in turns.items()}
            best = min(medians[side] for side in options.only)
            print(f"{name}, {threads} threads: " + ", ".join(f"{side} {s:.4f} s" for side, s in medians.items()))
            print(f"    best peer over ours: {best / medians['pellucid']:.2f}", flush=True)

    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "commit": race.commit(),
        "cpu": race.cpu_name(),
        "note": options.note,
        "load_before_each_side": load,
        "seconds": seconds,
    }
    path = ROOT / "benches/history" / f"{now:%Y-%m-%d}-train.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
