"""Log-probs of sampled tokens against `score` of the same tokens: the difference has to be exactly 0.

    python tests/golden/rollout_exact.py FOLDER --pellucid target/release/pellucid [--tokens 100000]

Prompts of 1 to 700 tokens, many of which begin alike, are completed under several limits: full batches, one sequence
at a time, budgets that cut prompts into chunks, too few pages (sequences are put out and computed again), several
completions of a prompt (pages are shared and copied on write). `score` then goes over every completion by itself.
What is compared is what stands in the files: f32 in its shortest exact form. Needs no package.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

# What rollout is told, and its share of the tokens.
SETTINGS = [
    (0.30, dict(n=8, sequences=64, budget=1024), {}),
    (0.25, dict(n=4, sequences=32, budget=256, pages=72), {}),
    (0.20, dict(n=2, sequences=24, budget=97, pages=40), dict(temperature=0.7)),
    (0.20, dict(n=1, sequences=48, budget=640, pages=100), dict(temperature=1.3, top_p=0.95)),
    (0.05, dict(n=1, sequences=1, budget=33), {}),
]
LONGEST, COMPLETION = 700, 240


def prompts(count, vocab, rng):
    """Token ids; half of the prompts begin with one of three long texts, cut anywhere."""
    def ids(length):
        return [rng.randrange(vocab) for _ in range(length)]

    common = [ids(LONGEST // 2) for _ in range(3)]
    for number in range(count):
        begin = rng.choice(common)[: rng.randint(1, LONGEST // 2)] if number % 2 else []
        yield begin + ids(rng.choice([1, rng.randint(1, 64), rng.randint(1, LONGEST // 2)]))


def lines(path):
    # Not `splitlines`, which ends a line at characters that a text may hold, such as U+2028.
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def flags(settings):
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def compare(options, tokens, limits, sampling, vocab, seed, work):
    """One setting: how many tokens were drawn, how often log-probs differ, and what rollout says of itself."""
    source, rolled, scored = (work / f"{name}.jsonl" for name in ("prompts", "rollouts", "scores"))
    count = -(-tokens // (limits["n"] * COMPLETION))
    records = [{"prompt_token_ids": ids} for ids in prompts(count, vocab, random.Random(seed))]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [options.pellucid, "rollout", "--model", options.folder, "--input", source, "--output", rolled]
    command += ["--json", "--quiet", "--seed", str(seed), "--max-tokens", str(COMPLETION), "--ignore-eos"]
    command += flags(limits) + flags(sampling)
    summary = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    drawn = [
        (done["logprobs"], {"prompt_token_ids": record["prompt_token_ids"], "completion_token_ids": done["token_ids"]})
        for record in lines(rolled)
        for done in record["completions"]
    ]
    source.write_text("".join(json.dumps(record) + "\n" for _, record in drawn))
    command = [options.pellucid, "score", "--model", options.folder, "--input", source, "--output", scored, "--quiet"]
    command += flags({name: value for name, value in sampling.items() if name == "temperature"})
    subprocess.run(command, check=True)
    again = [record["logprobs"] for record in lines(scored)]
    pairs = [pair for (first, _), second in zip(drawn, again, strict=True) for pair in zip(first, second, strict=True)]
    rolled.unlink()
    return summary, len(pairs), max(abs(a - b) for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pellucid", required=True, help="the program")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    vocab = json.loads((options.folder / "config.json").read_text())["vocab_size"]
    total, widest = 0, 0.0
    with tempfile.TemporaryDirectory() as work:
        for number, (share, limits, sampling) in enumerate(SETTINGS):
            share, seed = int(share * options.tokens), options.seed + number
            summary, count, difference = compare(options, share, limits, sampling, vocab, seed, Path(work))
            total, widest = total + count, max(widest, difference)
            settings = " ".join(flags(limits | sampling))
            print(
                f"{settings}: {count} tokens, {summary['reused_tokens']} prompt tokens found in pages, "
                f"{summary['preempted']} times preempted; largest difference {difference}",
                flush=True,
            )
    print(f"{total} tokens, largest difference of log-probs {widest}")
    if widest != 0 or total < options.tokens:
        raise SystemExit("score has to give the very log-probs of rollout")


if __name__ == "__main__":
    main()
