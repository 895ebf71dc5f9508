"""What every Python peer measures, so that all measure the same: see benches/model.rs for the definition."""

import argparse
import json
import statistics
import time
from pathlib import Path

CONTEXT, STEPS, WARM_UP = 512, 32, 3


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser


def prompt(vocab, sequence):
    """Some tokens, different in every sequence."""
    return [(at * 7919 + sequence * 104729 + 11) % vocab for at in range(CONTEXT)]


def run(name, options, decode, prefill, **notes):
    """`decode(batch)` yields a fresh `step()` per round, the context in place; `prefill(round)` does one pass."""
    record = {"name": name, "threads": options.threads, **notes}
    for batch in (1, 8):
        seconds = []
        for step in decode(batch):
            for at in range(WARM_UP + STEPS):
                start = time.perf_counter()
                step(at)
                if at >= WARM_UP:
                    seconds.append(time.perf_counter() - start)
        record[f"decode{batch}"] = batch / statistics.median(seconds)
    seconds = []
    for number in range(1 + 2 * options.rounds):
        start = time.perf_counter()
        prefill(number)
        if number > 0:
            seconds.append(time.perf_counter() - start)
    record["prefill"] = CONTEXT / statistics.median(seconds)
    text = json.dumps(record, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
