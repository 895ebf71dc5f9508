"""PyTorch's bf16 linear (oneDNN) beside ours, same shapes, same threads.

Run `cargo bench --bench ops -- linear` first, then this with a Python that has torch; it reads criterion's
estimates from target/criterion, times torch and prints both with their ratio (above 1: ours is faster).
Weights are used in turn out of a quarter of a gigabyte, as in benches/ops.rs.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch

SHAPES = [(896, 896), (896, 128), (896, 4864), (4864, 896)]  # (k, n)
ROWS = {"decode1": 1, "decode8": 8, "prefill": 512}
WEIGHTS = 256 << 20


def seconds(rows: int, k: int, n: int) -> float:
    copies = max(1, WEIGHTS // (2 * n * k))
    weight = torch.randn(n, k).bfloat16()
    weights = [weight.clone() for _ in range(copies)]
    x = torch.randn(rows, k).bfloat16()
    times = []
    begin = time.perf_counter()
    while len(times) < 15 or time.perf_counter() - begin < 1.0:
        start = time.perf_counter()
        torch.nn.functional.linear(x, weights[len(times) % copies])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--criterion", type=pathlib.Path, default=pathlib.Path("target/criterion"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    with torch.inference_mode():
        for name, rows in ROWS.items():
            for k, n in SHAPES:
                folder = arguments.criterion / f"linear-{name}" / f"{k}x{n}" / "new"
                ours = json.loads((folder / "estimates.json").read_text())["median"]["point_estimate"] / 1e9
                theirs = seconds(rows, k, n)
                print(f"{name:8} {k:5}x{n:<5} ours {ours * 1e6:9.1f} us  torch {theirs * 1e6:9.1f} us  ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
