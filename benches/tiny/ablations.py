#!/usr/bin/env python3
"""Runs of the tiny world side by side: what the paper leaves open, as far as a small world can answer it.

    cargo build --release
    python3 benches/tiny/ablations.py --out runs/ablations --seeds 0 1 2 [--only alpha binary] [--threads 2] [--jobs 2]

Each row is `pellucid demo --json --seed S --out DIR CHANGES...`; rows that are there already are not run again. Prints a
Markdown table of means over the seeds, with the sample deviation where there are several, in percent.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import threading

KL = 'objective.kl={kind="%s",coef=%s}'
SUMS = ["data.train=builtin:world/sum", "data.eval=builtin:world/sum", "run.steps=40"]
ROWS = [
    ("the demo: alpha 0.7, group_std, KL 0.01", []),
    ("alpha 0", ["episode.alpha=0.0"]),
    ("alpha 0.3", ["episode.alpha=0.3"]),
    ("alpha 0.5", ["episode.alpha=0.5"]),
    ("alpha 0.9", ["episode.alpha=0.9"]),
    ("alpha 1", ["episode.alpha=1.0"]),
    ("alpha from 1 to 0.3 over 40 steps", ["episode.alpha={from=1.0,to=0.3,steps=40}"]),
    ("binary: asking not offered", ["episode.kind=binary"]),
    ("no KL", [KL % ("k3", "0.0")]),
    ("KL 0.04", [KL % ("k3", "0.04")]),
    ("KL k1 in the reward, 0.003", [KL % ("k1_in_reward", "0.003")]),
    ("BNPO (beta_density), KL 0.01", ["objective.advantage=beta_density"]),
    ("BNPO (beta_density), KL 0.001", ["objective.advantage=beta_density", KL % ("k3", "0.001")]),
    ("tiers apart (decompose)", ["objective.tiers=decompose"]),
    ("mean-centred (none)", ["objective.advantage=none"]),
    ("two requests, 1, 0.7, 0.49", ["episode.max_turns=2"]),
    ("the reasoner learns, too", ["reasoner.temperature=1.0", "reasoner.learn={lr=2e-4,lora={rank=16,alpha=32}}"]),
    ("sampled during the update", ["run.overlap=true"]),
    ("a worse clarifier", ["reference.clarifier={worse}"]),
    ("a poor clarifier", ["reference.clarifier={poor}"]),
    ("sums alone, alpha 0.7", SUMS),
    ("sums alone, binary", SUMS + ["episode.kind=binary"]),
    ("a captioner taught to say more", ["captioner.model={told}"]),
    ("a start like the paper's: half is said", ["captioner.adapter={half}", "reference.anchor={half}"]),
    ("the same, binary", ["captioner.adapter={half}", "reference.anchor={half}", "episode.kind=binary"]),
    ("PRCO", ["--prco", "episode.leaks=rule"]),
    ("PRCO, one reward for both roles", ["--prco", "episode.shared=true", "episode.answers=1"]),
]

# What rows name in braces is made where it is needed: a captioner, or the adapter of a short run.
MODELS = {
    "worse": ["pretrain", "--out", "{out}", "--only", "captioner", "--captioner-steps", "250"],
    "poor": ["pretrain", "--out", "{out}", "--only", "captioner", "--looking-steps", "100", "--captioner-steps", "150"],
    "told": ["pretrain", "--out", "{out}", "--only", "captioner", "--told", "95", "--captioner-steps", "1200"],
    "half": ["train", "-c", "assets/demo.toml", "seed=99", "run.steps=11", "run.out={out}"],
}
MADE = {"half": "checkpoint-11"}


def made(program, folder, changes, threads):
    """The changes with the folders of models, which are made if they are not there."""
    for name, command in MODELS.items():
        place = "{%s}" % name
        if any(place in change for change in changes):
            out = folder / "models" / name
            model = out / MADE.get(name, "tiny-captioner")
            with LOCK:
                if not model.exists():
                    command = [part.replace("{out}", str(out)) for part in command]
                    subprocess.run([program] + command + ["--quiet", "--threads", str(threads)], check=True)
            changes = [change.replace(place, str(model)) for change in changes]
    return changes


LOCK = threading.Lock()


def run(program, folder, name, changes, seed, threads):
    slug = "".join(c if c.isalnum() else "-" for c in name)
    out = folder / f"{slug}-{seed}"
    record = folder / f"{slug}-{seed}.json"
    if not record.exists():
        if out.exists():
            subprocess.run(["rm", "-r", str(out)], check=True)
        command = [program, "demo", "--json", "--quiet", "--seed", str(seed), "--threads", str(threads), "--out", str(out)]
        done = subprocess.run(command + made(program, folder, changes, threads), check=True, capture_output=True, text=True)
        record.write_text(done.stdout.splitlines()[-1])
    lines = (out / "metrics.jsonl").read_text().splitlines()
    early = [json.loads(line) for line in lines[:10]]
    result = json.loads(record.read_text())
    if "--prco" in changes:
        roles = {name.split(":")[0]: rate(evaluation, "accuracy_single") for name, evaluation in result["roles"].items()}
        greedy = rate(result["after"]["greedy"], "accuracy_single")
        leaks = json.loads(lines[-1]).get("leak_rate")
        return roles | {"greedy": greedy, "leak rate, last step": None if leaks is None else 100 * leaks}
    return {
        "before: asks": rate(result["before"]["drawn"], "clarification_rate"),
        "first pass": rate(result["after"]["drawn"], "first_pass_right"),
        "asks": rate(result["after"]["drawn"], "clarification_rate"),
        "with a request": rate(result["after"]["drawn"], "accuracy_clarified"),
        "asking not offered": rate(result["after"]["drawn"], "accuracy_single"),
        "greedy, not offered": rate(result["after"]["greedy"], "accuracy_single"),
        "false facts": 100 * result["after"]["false_facts"],
        "equal groups, steps 1-10": 100 * statistics.mean(line["frac_reward_zero_std"] for line in early),
        "KL": result["last"].get("kl") or None,  # 0 is what nobody has estimated
    }


def rate(evaluation, name):
    found = evaluation["metrics"][name]
    return None if found is None else 100 * found["rate"]


def cell(values):
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/pellucid")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="rows whose name holds one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if not arguments.only or any(part in row[0] for part in arguments.only)]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        found = {
            (name, seed): pool.submit(run, arguments.program, arguments.out, name, changes, seed, arguments.threads)
            for name, changes in rows
            for seed in arguments.seeds
        }
        head = None
        for name, changes in rows:
            results = [found[name, seed].result() for seed in arguments.seeds]
            if head != list(results[0]):
                head = list(results[0])
                print("\n| run | " + " | ".join(head) + " | changes |")
                print("|---" * (len(head) + 2) + "|")
            cells = [cell([result[column] for result in results]) for column in head]
            print(f"| {name} | " + " | ".join(cells) + " | `" + " ".join(changes) + "` |", flush=True)


if __name__ == "__main__":
    main()
