"""`pellucid rollout` against its peers at 32 sequences: same machine, threads, weights and prompts, sides taking turns.

    python benches/peers/smollm2.py /tmp/smollm2 --gguf /tmp/smollm2.gguf
    cargo build --release
    python benches/peers/rollout_race.py /tmp/smollm2 --gguf /tmp/smollm2.gguf --threads 4 --turns 3 \\
        --torch-python VENV/bin/python --llama-python VENV/bin/python

What is measured is described in many.py; Pellucid computes the log-prob of every token besides. Every turn runs each
side once, in a process of its own, and last what sharing is worth: 8 completions of one prompt of 600 tokens against
those of 8 such prompts, for several lengths of completions. With P seconds for a prompt and D for a pass that draws 8
tokens, n tokens each take P + nD when shared and 8P + nD apart: the longer the completions and the faster the prompts,
the less there is to share, and the record's `of_prompts` says how much there was. Printed and kept (benches/history/)
are medians over the turns. The ratio is Pellucid's speed over the best peer's: above 1 Pellucid is faster.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import many
import race

HERE, ROOT = race.HERE, race.ROOT
PROMPT, COMPLETIONS, LENGTHS = 600, 8, (32, 64, 128)


def peers(options):
    folder, gguf = options.folder.resolve(), options.gguf and options.gguf.resolve()
    found = {}
    if options.torch_python:
        torch = [options.torch_python, HERE / "torch_rollout.py", folder]
        found |= {
            "transformers generate": torch,
            "transformers generate f32": [*torch, "--dtype", "float32"],
            "transformers generate_batch": [*torch, "--continuous"],
            "transformers generate_batch f32": [*torch, "--continuous", "--dtype", "float32"],
        }
    if options.llama_python:
        llama = [options.llama_python, HERE / "llama_rollout.py", gguf]
        found |= {
            "llama.cpp": llama,
            "llama.cpp flash": [*llama, "--flash"],
            "llama.cpp flash, one cache": [*llama, "--flash", "--unified"],
        }
    return found


def rollout(options, prompts, new, *flags):
    """What `rollout --json` says of completing the prompts."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "prompts.jsonl", Path(folder) / "rollouts.jsonl"
        source.write_text("".join(json.dumps({"prompt_token_ids": prompt}) + "\n" for prompt in prompts))
        command = [options.pellucid, "rollout", "--model", options.folder, "--input", source, "--output", target]
        command += ["--quiet", "--json", "--ignore-eos", "--max-tokens", new, "--threads", options.threads, *flags]
        done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE)
    summary = json.loads(done.stdout)
    assert summary["tokens"] == summary["completions"] * new, summary
    return summary


def ours(options, vocab):
    rounds = (many.prompts(vocab, 1 + turn) for turn in range(options.rounds))
    summaries = [rollout(options, prompts, many.NEW, "--temperature", 0) for prompts in rounds]
    return {"tokens_per_second": statistics.median(summary["tokens_per_second"] for summary in summaries)}


def sharing(options, vocab, new):
    """Eight completions of one prompt, and of eight."""
    prompts = [[(at * 7919 + first * 104729 + 11) % vocab for at in range(PROMPT)] for first in range(COMPLETIONS)]
    shared = rollout(options, prompts[:1], new, "--n", COMPLETIONS)
    apart = rollout(options, prompts, new)
    slower, faster = ((COMPLETIONS * new) / side["tokens_per_second"] for side in (apart, shared))
    # Of the time apart: seven of eight prompts are what it has more.
    of_prompts = (slower - faster) / (COMPLETIONS - 1) * COMPLETIONS / slower
    ratio = shared["tokens_per_second"] / apart["tokens_per_second"]
    return {"new": new, "shared": shared, "apart": apart, "ratio": ratio, "of_prompts": of_prompts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pellucid", default=str(ROOT / "target/release/pellucid"), help="the program")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2, help="rounds within a turn")
    parser.add_argument("--torch-python")
    parser.add_argument("--llama-python")
    parser.add_argument("--only", nargs="*", help="race these peers only")
    parser.add_argument("--note", default="", help="what else to remember, such as what else the machine did")
    options = parser.parse_args()
    race.pin(options.threads)
    vocab = json.loads((options.folder / "config.json").read_text())["vocab_size"]

    programs = peers(options)
    if options.only is not None:
        programs = {side: programs[side] for side in options.only}
    speeds = {side: [] for side in ("pellucid", *programs)}
    shared, names, load = [], {}, []
    for turn in range(options.turns):
        for side in speeds:
            load.append(os.getloadavg()[0])
            record = ours(options, vocab) if side == "pellucid" else race.measure(programs[side], options)
            names[side] = record.get("name", "pellucid")
            speeds[side].append(record["tokens_per_second"])
            print(f"turn {turn + 1}: {side}: {speeds[side][-1]:.1f}", flush=True)
        for new in LENGTHS:
            shared.append(sharing(options, vocab, new))
            print(f"turn {turn + 1}: sharing, {new} tokens: {shared[-1]['ratio']:.2f} times", flush=True)

    table = {side: statistics.median(turns) for side, turns in speeds.items()}
    print(f"\n{race.cpu_name()}, {options.threads} threads; new tokens/s at {many.SEQUENCES} sequences, medians")
    for side, speed in table.items():
        print(f"{side:32}{speed:10.1f}")
    ratio = table["pellucid"] / max(table[side] for side in programs) if programs else None
    print(f"{'over best peer':32}{ratio or float('nan'):10.2f}")
    worth = {}
    for new in LENGTHS:
        turns = [one for one in shared if one["new"] == new]
        worth[new] = statistics.median(one["ratio"] for one in turns)
        tokens = {name: turns[-1][name]["computed_tokens"] for name in ("shared", "apart")}
        of_prompts = statistics.median(one["of_prompts"] for one in turns)
        print(f"sharing a prompt of {PROMPT} tokens among {COMPLETIONS} completions of {new}: {worth[new]:.2f} times the", end=" ")
        print(f"speed, {tokens} computed; apart {of_prompts:.0%} of the time is prompts")

    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "commit": race.commit(),
        "cpu": race.cpu_name(),
        "threads": options.threads,
        "note": options.note,
        "load_before_each_side": load,
        "tokens_per_second": table,
        "over_best_peer": ratio,
        "sharing": worth,
        "names": names,
        "turns": speeds,
        "sharing_turns": shared,
    }
    path = ROOT / "benches/history" / f"{now:%Y-%m-%d}-rollout-{options.threads}-threads.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
