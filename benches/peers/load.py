"""Loading a checkpoint with the page cache cold and warm, beside a plain read of its files.

    python benches/peers/checkpoint.py /tmp/3b --shape qwen2.5-3b --shards 3
    python benches/peers/load.py /tmp/3b --threads 4 [--turns 3]

Cold means that the kernel was asked to forget the files (posix_fadvise), which it does for clean pages nobody maps.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from race import ROOT, cpu_name, output, program


def forget(files):
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files):
    """Seconds to read the files, as `cat` would."""
    buffer, start = bytearray(1 << 24), time.perf_counter()
    for file in files:
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    return time.perf_counter() - start


def load(bench, folder, threads):
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record.json"
        command = [bench, folder, "--threads", str(threads), "--json", record]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(record.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    bench = program("load")

    turns = {"read cold": [], "load cold": [], "read warm": [], "load warm": []}
    for _ in range(options.turns):
        forget(files)
        turns["read cold"].append({"seconds": read(files)})
        forget(files)
        turns["load cold"].append(load(bench, options.folder, options.threads))
        turns["read warm"].append({"seconds": read(files)})
        turns["load warm"].append(load(bench, options.folder, options.threads))

    print(f"{cpu_name()}, {options.threads} threads, {size / 1e9:.2f} GB in {len(files)} files; medians of {options.turns}")
    for name, records in turns.items():
        middle = {key: statistics.median(r[key] for r in records) for key in records[0] if isinstance(records[0][key], float)}
        if "seconds" in middle:
            print(f"{name}: {middle['seconds']:.2f} s, {size / middle['seconds'] / 1e9:.2f} GB/s")
            continue
        ready = middle["load"] + middle["first_pass"]
        peak = max(r["first pass"]["VmHWM"] for r in records)
        own = max(r["first pass"]["RssAnon"] for r in records)
        print(
            f"{name}: load {middle['load']:.2f} s, first token after {ready:.2f} s ({size / ready / 1e9:.2f} GB/s), "
            f"the second pass {middle['second_pass']:.2f} s; peak RSS {peak / 1e9:.2f} GB, of it anonymous {own / 1e6:.0f} MB"
        )

    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
        "cpu": cpu_name(),
        "threads": options.threads,
        "bytes": size,
        "files": len(files),
        "turns": turns,
    }
    path = ROOT / "benches/history" / f"{now:%Y-%m-%d}-load.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
