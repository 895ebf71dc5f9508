"""Pellucid against its peers: same machine, same cores, same weights, sides taking turns.

    python benches/peers/checkpoint.py /tmp/half --gguf /tmp/half.gguf
    python benches/peers/race.py /tmp/half --gguf /tmp/half.gguf --threads 4 --turns 3 \\
        --torch-python VENV/bin/python --llama-python VENV/bin/python [--candle CANDLE-PEER]

Every turn runs each side once, in a process of its own; each side measures itself as benches/model.rs describes. One
side after the other, or with `--slice 2 --rounds 12` all of them alternately, two seconds each, so that what else the
machine and its neighbours do meets all alike: a side that has to wait is stopped, and the few passes that a stop cuts
in two do not move a median.

Printed and kept (benches/history/) are medians over the turns. The read bandwidth is measured by the Pellucid side, once
per turn, and before every round of its decoding, whose share of it is kept, too. The pythons are those that
torch_model.py and llama_model.py say they need; a side whose program is not given does not run. The ratio is Pellucid's
speed over the best peer's: above 1 Pellucid is faster.
"""

import argparse
import datetime
import json
import os
import signal
import statistics
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEASURES = ("decode1", "decode8", "prefill")


def pin(threads):
    """Puts all that is started from here on the same cores: on a shared machine pairs of cores differ in what memory gives
    them, and a side would keep the pair it happened to begin on."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def program(bench):
    """Builds a bench and says where the program is."""
    command = ["cargo", "bench", "--bench", bench, "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    messages = (json.loads(line) for line in lines)
    return [m["executable"] for m in messages if m.get("target", {}).get("name") == bench and m.get("executable")][-1]


def sides(options):
    folder, gguf = options.folder.resolve(), options.gguf and options.gguf.resolve()
    found = {"pellucid": [program("model"), folder]}
    if options.torch_python:
        torch = [options.torch_python, HERE / "torch_model.py", folder]
        found |= {"torch": torch, "torch static": [*torch, "--cache", "static"]}
        if options.compile:
            found["torch compiled"] = [*torch, "--cache", "static", "--compile"]
    if options.llama_python:
        llama = [options.llama_python, HERE / "llama_model.py", gguf]
        found |= {"llama.cpp": llama, "llama.cpp flash": [*llama, "--flash"]}
    if options.candle:
        found["candle f32"] = [options.candle, folder, "--dtype", "f32"]
    return found


class Side:
    """One side at work, in a group of processes of its own."""

    def __init__(self, command, options):
        threads = {"OMP_NUM_THREADS": str(options.threads), "RAYON_NUM_THREADS": str(options.threads)}
        self.folder = tempfile.TemporaryDirectory()
        self.record, self.log = Path(self.folder.name) / "record.json", Path(self.folder.name) / "log.txt"
        extra = ["--threads", options.threads, "--rounds", options.rounds, "--json", self.record]
        self.command = [str(part) for part in (*command, *extra)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, env=os.environ | threads, stdout=log, stderr=log, start_new_session=True
            )

    def send(self, number):
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def result(self):
        """Its own record, once it is done."""
        if self.process.wait() != 0:
            raise SystemExit(f"{' '.join(self.command)}\n{self.log.read_text()}")
        return json.loads(self.record.read_text())


def measure(command, options):
    """One side's own record."""
    return Side(command, options).result()


def alternate(programs, options):
    """All sides' records; one at a time runs, for a slice."""
    started = {}
    try:
        for side, command in programs.items():
            started[side] = Side(command, options)
            started[side].send(signal.SIGSTOP)
        while running := [side for side in started.values() if side.process.poll() is None]:
            for side in running:
                side.send(signal.SIGCONT)
                try:
                    side.process.wait(options.slice)
                except subprocess.TimeoutExpired:
                    side.send(signal.SIGSTOP)
        return {name: side.result() for name, side in started.items()}
    finally:
        for side in started.values():
            side.send(signal.SIGKILL)


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def commit():
    return output("git", "rev-parse", "--short", "HEAD") + ("+" if output("git", "status", "--porcelain") else "")


def cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2, help="rounds within a turn")
    parser.add_argument("--slice", type=float, help="let the sides alternate by so many seconds")
    parser.add_argument("--torch-python")
    parser.add_argument("--llama-python")
    parser.add_argument("--candle", help="the program built in benches/peers/candle")
    parser.add_argument("--note", default="", help="what else to remember, such as what else the machine did")
    parser.add_argument("--compile", action="store_true", help="race torch.compile too")
    options = parser.parse_args()

    pin(options.threads)
    programs = sides(options)
    records = {side: [] for side in programs}
    load = []
    for turn in range(options.turns):
        together = alternate(programs, options) if options.slice else {}
        for side, command in programs.items():
            load.append(os.getloadavg()[0])
            records[side].append(together.get(side) or measure(command, options))
            print(f"turn {turn + 1}: {side}: " + speeds(records[side][-1]), flush=True)

    table = {
        side: {name: statistics.median(record[name] for record in turns) for name in MEASURES}
        for side, turns in records.items()
    }
    bandwidth = statistics.median(record["bandwidth"] for record in records["pellucid"])
    weights = records["pellucid"][0]["weight_bytes"]
    peers = [side for side in table if side != "pellucid"]
    print(f"\n{cpu_name()}, {options.threads} threads, read bandwidth {bandwidth / 1e9:.1f} GB/s; tokens/s, medians")
    print(f"{'':18}" + "".join(f"{name:>12}" for name in MEASURES))
    for side, speed in table.items():
        print(f"{side:18}" + "".join(f"{speed[name]:12.1f}" for name in MEASURES))
    share = statistics.median(record["read_share1"] for record in records["pellucid"])
    print(f"decode of one sequence reads weights at {share:.0%} of the bandwidth measured beside it")
    ratios = {}
    if peers:
        ratios = {name: table["pellucid"][name] / max(table[peer][name] for peer in peers) for name in MEASURES}
        print(f"{'over best peer':18}" + "".join(f"{ratios[name]:12.2f}" for name in MEASURES))

    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_name(),
        "threads": options.threads,
        "note": options.note,
        "load_before_each_side": load,
        "bandwidth": bandwidth,
        "weight_bytes": weights,
        "slice": options.slice,
        "read_share1": share,
        "tokens_per_second": table,
        "over_best_peer": ratios,
        "turns": records,
    }
    history = ROOT / "benches/history"
    history.mkdir(exist_ok=True)
    path = history / f"{now:%Y-%m-%d}-model-{options.threads}-threads.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.relative_to(ROOT))


def speeds(record):
    return ", ".join(f"{name} {record[name]:.1f}" for name in MEASURES)


if __name__ == "__main__":
    main()
