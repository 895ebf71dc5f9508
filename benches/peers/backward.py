"""PyTorch's backward ops beside ours, same shapes, same threads, in turn within one run.

    cargo bench --bench backward --no-run        # prints the program's path
    python benches/peers/backward.py PATH --threads 4 [words of cases]

A ratio above 1 says that ours is faster. Ours reads and writes f32 activations and adds parameter gradients to f32 sums;
where weights or keys are bf16, torch has everything in bf16. `head` recomputes the logits that torch has kept.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

CASES = [
    f"{op} {dtype} {sizes}"
    for dtype in ("bf16", "f32")
    for op, shapes in {
        "dx": ["2048 576 1536", "2048 1536 576", "2048 576 576", "2048 576 192", "2048 128 256", "2048 256 128", "256 576 1536"],
        "dw": ["2048 576 1536", "2048 1536 576", "2048 576 576", "2048 576 192", "2048 128 256", "2048 256 128", "256 576 1536"],
        "lora": ["2048 576 1536", "2048 1536 576", "2048 576 576"],
        "head": ["512 576 49152", "2048 128 105"],
        "head-frozen": ["512 576 49152"],
        "attention": ["1024 2 9 3 64", "256 8 9 3 64", "64 32 4 2 32"],
        "norm": ["2048 576", "2048 128"],
        "gated": ["2048 1536", "2048 256"],
        "adamw": ["10000000", "400000"],
        "sq_norm": ["10000000"],
    }.items()
    for sizes in shapes
]
ENOUGH = 0.4


def median(work) -> float:
    work()
    seconds = []
    while sum(seconds) < ENOUGH or len(seconds) < 3:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def torch_seconds(op: str, dtype: torch.dtype, sizes: list[int]) -> float:
    def new(*shape, grad=False):
        return (torch.rand(shape) - 0.5).to(dtype).requires_grad_(grad)

    def backward(out, inputs):
        """Of a graph that is kept."""
        dout = torch.rand(out.shape).to(out.dtype)
        return median(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True))

    match op, sizes:
        case "dx", [t, k, n]:
            dy, weight = new(t, n), new(n, k)
            return median(lambda: dy @ weight)
        case "dw", [t, k, n]:
            dy, x, dw = new(t, n), new(t, k), new(n, k)
            return median(lambda: dw.addmm_(dy.t(), x))
        case "lora", [t, k, n]:
            x, weight, a, b = new(t, k, grad=True), new(n, k), new(16, k, grad=True), new(n, 16, grad=True)
            return backward(F.linear(x, weight) + 2.0 * F.linear(F.linear(x, a), b), [x, a, b])
        case "head" | "head-frozen", [t, c, v]:
            hidden, weight = new(t, c, grad=True), new(v, c, grad=op == "head")
            targets = torch.arange(t) * 7919 % v
            loss = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
            return backward(loss, [hidden, weight] if op == "head" else [hidden])
        case "attention", [length, b, h, g, d]:
            q, k, v = new(b, h, length, d, grad=True), new(b, g, length, d, grad=True), new(b, g, length, d, grad=True)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125, enable_gqa=True)
            return backward(out, [q, k, v])
        case "norm", [t, c]:
            x, weight = new(t, c, grad=True), new(c, grad=True)
            return backward(F.rms_norm(x, (c,), weight, 1e-6), [x, weight])
        case "gated", [t, f]:
            gate, up = new(t, f, grad=True), new(t, f, grad=True)
            return backward(F.silu(gate) * up, [gate, up])
        case "adamw", [n]:
            parameter = torch.rand(n).requires_grad_()
            parameter.grad = torch.rand(n)
            return median(torch.optim.AdamW([parameter], fused=True).step)
        case "sq_norm", [n]:
            gradient = torch.rand(n)
            return median(lambda: torch.linalg.vector_norm(gradient))
    raise ValueError(f"{op} {sizes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("cases", nargs="*", help="words a case must have one of")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    environment = {**os.environ, "PELLUCID_THREADS": str(arguments.threads)}
    ours = subprocess.Popen([arguments.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    print(f"torch {torch.__version__}, {arguments.threads} threads, medians of {arguments.rounds} rounds")
    for case in CASES:
        op, dtype, *sizes = case.split()
        if arguments.cases and not set(arguments.cases) & set(case.split()):
            continue
        sizes = [int(size) for size in sizes]
        rounds = []
        for _ in range(arguments.rounds):
            ours.stdin.write(case + "\n")
            ours.stdin.flush()
            mine = float(ours.stdout.readline())
            rounds.append((mine, torch_seconds(op, torch.bfloat16 if dtype == "bf16" else torch.float32, sizes)))
        mine, theirs = (statistics.median(side) for side in zip(*rounds))
        ratio = statistics.median(theirs / mine for mine, theirs in rounds)
        print(f"{case:34} ours {mine * 1e6:10.0f} us  torch {theirs * 1e6:10.0f} us  ratio {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
