"""Pellucid against its peers: same machine, same threads, same weights, sides taking turns.

    python benches/peers/checkpoint.py /tmp/half --gguf /tmp/half.gguf
    python benches/peers/race.py /tmp/half --gguf /tmp/half.gguf --threads 4 --turns 3 \\
        --torch-python VENV/bin/python --llama-python VENV/bin/python [--candle CANDLE-PEER]

Every turn runs each side once, in a process of its own; each side measures itself as benches/model.rs describes.
Printed and kept (benches/history/) are medians over the turns, the read bandwidth, which the Pellucid side
measures in each turn, included. The pythons are those that torch_model.py and llama_model.py say they need; a side whose program is
not given does not run. The ratio is Pellucid's speed over the best peer's: above 1 Pellucid is faster.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEASURES = ("decode1", "decode8", "prefill")


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


def measure(command, options):
    """One side's own record."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "RAYON_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        extra = ["--threads", options.threads, "--rounds", options.rounds, "--json", record]
        command = [str(part) for part in (*command, *extra)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
        return json.loads(record.read_text())


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
    parser.add_argument("--torch-python")
    parser.add_argument("--llama-python")
    parser.add_argument("--candle", help="the program built in benches/peers/candle")
    parser.add_argument("--note", default="", help="what else to remember, such as what else the machine did")
    parser.add_argument("--compile", action="store_true", help="race torch.compile too")
    options = parser.parse_args()

    programs = sides(options)
    records = {side: [] for side in programs}
    load = []
    for turn in range(options.turns):
        for side, command in programs.items():
            load.append(os.getloadavg()[0])
            records[side].append(measure(command, options))
            print(f"turn {turn + 1}: {side}: " + speeds(records[side][-1]), flush=True)

    table = {
        side: {name: statistics.median(record[name] for record in turns) for name in MEASURES}
        for side, turns in records.items()
    }
    bandwidth = statistics.median(record["bandwidth"] for record in records["pellucid"])
    weights = records["pellucid"][0]["weight_bytes"]
    peers = [side for side in table if side != "pellucid"]
    print(f"\n{cpu_name()}, {options.threads} threads, read bandwidth {bandwidth / 1e9:.1f} GB/s; tokens/s, medians")
    print(f"{'':18}" + "".join(f"{name:>12}" for name in MEASURES) + "   bandwidth used by decode1")
    for side, speed in table.items():
        share = speed["decode1"] * weights / bandwidth
        print(f"{side:18}" + "".join(f"{speed[name]:12.1f}" for name in MEASURES) + f"   {share:.0%}")
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
