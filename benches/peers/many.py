"""What every Python peer measures of many sequences at once, so that all measure the same.

SEQUENCES prompts of different lengths (60 to 184 tokens, 122 on average) are completed by NEW tokens each, the
likeliest every time. A round takes all of it, from token ids to token ids; the figure is new tokens per second.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

SEQUENCES, NEW = 32, 96


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser


def prompts(vocab, turn):
    """Some tokens, different in every sequence and every round."""
    return [
        [(at * 7919 + (sequence + turn * SEQUENCES) * 104729 + 11) % vocab for at in range(60 + 4 * sequence)]
        for sequence in range(SEQUENCES)
    ]


def run(name, options, vocab, complete, **notes):
    """`complete(prompts, new)` gives `new` tokens for each prompt. A first, short call warms up."""
    complete(prompts(vocab, 0), 4)
    speeds = []
    for turn in range(options.rounds):
        given = prompts(vocab, 1 + turn)
        start = time.perf_counter()
        completions = complete(given, NEW)
        seconds = time.perf_counter() - start
        assert [len(tokens) for tokens in completions] == [NEW] * SEQUENCES, [len(tokens) for tokens in completions]
        speeds.append(SEQUENCES * NEW / seconds)
    record = {"name": name, "threads": options.threads, "tokens_per_second": statistics.median(speeds), **notes}
    text = json.dumps(record, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
