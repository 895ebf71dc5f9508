"""The ops of `pellucid bench kernels`, at the same shapes, by PyTorch, PEFT, Liger and FlashInfer.

    target/release/pellucid bench kernels --out ours.json
    python benches/peers/kernels.py target/release/pellucid --out torch.json
    target/release/pellucid bench compare ours.json torch.json

Shapes come from `bench kernels --list --json`; flags after `--` go there (`-- --shapes "linear T=1" --rows 128`).
Everything is bf16, random and warm; copies of the arguments take turns as ours do; sides take turns, too, and the median
of twenty rounds at least counts. On a GPU a round is a CUDA graph between two events; what cannot be captured is timed
eagerly and called so. A library that is not there is skipped by name. Peers are given what they like best: cosines at
hand for rope, contiguous keys where ours are in pages.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import race

SCALE, EPS, TEMPERATURE, TOP_P = 0.5, 1e-6, 0.7, 0.9
FEWEST, MOST, SECONDS = 20, 500, 0.25
PAGE = 64


def optional(name):
    """A library, or none and a word about it."""
    try:
        return __import__(name, fromlist=["*"])
    except Exception as error:  # a broken library is a lacking one
        print(f"skipped {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


class Peers:
    """One method an op: from a case to its arguments and the sides that compute it from them."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.peft = optional("peft.tuners.lora")
        self.liger = optional("liger_kernel.ops.rms_norm") if self.on_gpu else None
        self.liger_mlp = optional("liger_kernel.ops.swiglu") if self.on_gpu else None
        self.flashinfer = optional("flashinfer") if self.on_gpu else None

    def random(self, *shape):
        return torch.randn(shape, device=self.device).bfloat16()

    def indices(self, count, limit):
        return torch.randint(limit, (count,), device=self.device)

    # Linears

    def lora_module(self, k, n, r, bias):
        """peft's own layer, merged into nothing."""
        base = torch.nn.Linear(k, n, bias=bias, device=self.device, dtype=torch.bfloat16)
        config = {"config": self.peft.LoraConfig(r=r, lora_alpha=SCALE * r, init_lora_weights=False)}
        try:
            layer = self.peft.layer.Linear(base, "default", r=r, lora_alpha=SCALE * r, **config)
        except TypeError:  # before peft 0.19 there was no config here
            layer = self.peft.layer.Linear(base, "default", r=r, lora_alpha=SCALE * r, init_lora_weights=False)
        return layer.to(self.device, torch.bfloat16).eval()

    def parts(self, k, n, r, bias):
        part = {"w": self.random(n, k), "bias": self.random(n) if bias else None}
        if r > 0:
            part |= {"a": self.random(r, k), "b": self.random(n, r)}
            if self.peft:
                part["module"] = self.lora_module(k, n, r, bias)
        return part

    @staticmethod
    def product(x, part):
        y = F.linear(x, part["w"], part["bias"])
        return y + SCALE * F.linear(F.linear(x, part["a"]), part["b"]) if "a" in part else y

    def linear(self, case):
        t, k, n, r = (case[name] for name in "tknr")

        def arguments():
            part = self.parts(k, n, r, case["bias"])
            return part | {"x": self.random(t, k), "out": self.random(t, n), "gain": self.random(n)}

        def end(y, given):
            match case["then"]:
                case "add":
                    return given["out"].add_(y)
                case "add_scaled":
                    return given["out"].addcmul_(y, given["gain"])
                case "gelu":
                    return F.gelu(y)
                case "quick_gelu":
                    return y * torch.sigmoid(1.702 * y)
            return y

        sides = {"torch": lambda given: end(self.product(given["x"], given), given)}
        if r > 0 and self.peft:
            sides["peft"] = lambda given: end(given["module"](given["x"]), given)
        return arguments, sides

    def gated_linear(self, case):
        t, k, n, r = (case[name] for name in "tknr")

        def arguments():
            gate, up = (self.parts(k, n, r, case["bias"]) for _ in range(2))
            return {"x": self.random(t, k), "gate": gate, "up": up}

        def torch_side(given):
            return F.silu(self.product(given["x"], given["gate"])) * self.product(given["x"], given["up"])

        sides = {"torch": torch_side}
        if r > 0 and self.peft:
            sides["peft"] = lambda given: (
                F.silu(given["gate"]["module"](given["x"])) * given["up"]["module"](given["x"])
            )
        if self.liger_mlp:
            sides["liger"] = lambda given: self.liger_mlp.LigerSiLUMulFunction.apply(
                self.product(given["x"], given["gate"]), self.product(given["x"], given["up"])
            )
        return arguments, sides

    # Rows

    def rms_norm(self, case):
        t, c, d = case["t"], case["c"], case["d"]

        def arguments():
            return {"x": self.random(t * c // d, d), "w": self.random(d)}

        sides = {"torch": lambda given: F.rms_norm(given["x"], (d,), given["w"], EPS)}
        if self.liger:
            function = self.liger.LigerRMSNormFunction
            sides["liger"] = lambda given: function.apply(given["x"], given["w"], EPS, 0.0, "llama", False)
        if self.flashinfer:
            sides["flashinfer"] = lambda given: self.flashinfer.norm.rmsnorm(given["x"], given["w"], EPS)
        return arguments, sides

    def layer_norm(self, case):
        t, c = case["t"], case["c"]

        def arguments():
            return {"x": self.random(t, c), "w": self.random(c), "b": self.random(c)}

        return arguments, {"torch": lambda given: F.layer_norm(given["x"], (c,), given["w"], given["b"], EPS)}

    def rope(self, case):
        t, h, d = case["t"], case["h"], case["d"]

        def arguments():
            return {"x": self.random(t, h, d), "cos": self.random(t, 1, d), "sin": self.random(t, 1, d)}

        def turned(given):
            first, second = given["x"].chunk(2, -1)
            return given["x"] * given["cos"] + torch.cat((-second, first), -1) * given["sin"]

        return arguments, {"torch": turned}

    def gather_rows(self, case):
        t, c, v = case["t"], case["c"], case["v"]

        def arguments():
            return {"table": self.random(v, c), "rows": self.indices(t, v)}

        return arguments, {"torch": lambda given: F.embedding(given["rows"], given["table"])}

    def scatter_rows(self, case):
        t, c = case["t"], case["c"]

        def arguments():
            rows = torch.randperm(2 * t, device=self.device)[:t]
            return {"out": self.random(2 * t, c), "source": self.random(t, c), "rows": rows}

        return arguments, {"torch": lambda given: given["out"].index_copy_(0, given["rows"], given["source"])}

    # Attention

    def attention_backends(self):
        if self.on_gpu:
            return {"sdpa cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa flash": SDPBackend.FLASH_ATTENTION}
        return {"sdpa": SDPBackend.FLASH_ATTENTION}

    def attention(self, case):
        b, length, h, g, d = (case[name] for name in ("b", "length", "h", "g", "d"))

        def arguments():
            return {"q": self.random(b, h, length, d), "k": self.random(b, g, length, d), "v": self.random(b, g, length, d)}

        def side(backend):
            def run(given):
                with sdpa_kernel(backend):
                    q, k, v = given["q"], given["k"], given["v"]
                    return F.scaled_dot_product_attention(q, k, v, is_causal=case["causal"], enable_gqa=h != g)

            return run

        return arguments, {name: side(backend) for name, backend in self.attention_backends().items()}

    def paged_attention(self, case):
        b, queries, keys, h, g, d = (case[name] for name in ("b", "queries", "keys", "h", "g", "d"))
        # The last query sees all keys, each one before it one less.
        seen = torch.ones(queries, keys, dtype=torch.bool, device=self.device).tril(keys - queries)
        mask = None if queries == 1 else seen

        def arguments():
            return {"q": self.random(b, h, queries, d), "k": self.random(b, g, keys, d), "v": self.random(b, g, keys, d)}

        def contiguous(given):
            q, k, v = given["q"], given["k"], given["v"]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        sides = {"sdpa contiguous": contiguous}
        if self.flashinfer and queries == 1:
            run = self.flashinfer_decode(b, keys, h, g, d)
            sides["flashinfer"] = lambda given: run(given)
        return arguments, sides

    def group_attention(self, case):
        """Without groups: every sequence reads its own copy of what it shares."""
        rows = case["b"] * case["members"]
        return self.paged_attention({"b": rows, "queries": 1, **{name: case[name] for name in ("keys", "h", "g", "d")}})

    def flashinfer_decode(self, b, keys, h, g, d):
        """Its paged decoding with tensor cores, which take every grouping; pools are made of the contiguous keys."""
        width = -(-keys // PAGE)
        workspace = torch.empty(256 << 20, dtype=torch.uint8, device=self.device)
        wrapper = self.flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        pages = torch.arange(b + 1, dtype=torch.int32) * width
        last = torch.full((b,), keys - (width - 1) * PAGE, dtype=torch.int32)
        numbers = torch.randperm(b * width).int()
        wrapper.plan(pages, numbers, last, h, g, d, PAGE, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)

        def run(given):
            if "pool" not in given:
                given["pool"] = self.random(b * width, 2, g, PAGE, d)
            return wrapper.run(given["q"][:, :, 0], given["pool"])

        return run

    def kv_append(self, case):
        t, g, d = case["t"], case["g"], case["d"]
        pages = -(-t // PAGE) + 2

        def arguments():
            rows = torch.arange(t, device=self.device)
            page = torch.randperm(pages, device=self.device)[rows // PAGE]
            new, pools = [self.random(t, g, d) for _ in "kv"], [self.random(pages, g, PAGE, d) for _ in "kv"]
            return {"new": new, "pools": pools, "page": page, "offset": rows % PAGE}

        def torch_side(given):
            for new, pool in zip(given["new"], given["pools"]):
                pool[given["page"], :, given["offset"]] = new

        return arguments, {"torch": torch_side}

    # The head

    def logprobs(self, case):
        t, c, v = case["t"], case["c"], case["v"]

        def arguments():
            return {"hidden": self.random(t, c), "w": self.random(v, c), "targets": self.indices(t, v)}

        def logits(given):
            return F.linear(given["hidden"], given["w"]).float() / TEMPERATURE

        def selective(given):
            tempered = logits(given)
            return tempered.gather(1, given["targets"][:, None])[:, 0] - tempered.logsumexp(-1)

        def all_four(given):
            tempered = logits(given)
            lse = tempered.logsumexp(-1)
            logp = tempered.gather(1, given["targets"][:, None])[:, 0] - lse
            entropy = lse - ((tempered - lse[:, None]).exp() * tempered).sum(-1)
            return logp, lse, entropy, tempered.argmax(-1)

        return arguments, {
            "torch, four results": all_four,
            "torch, log-prob alone": selective,
            "torch cross_entropy": lambda given: F.cross_entropy(logits(given), given["targets"], reduction="none"),
        }

    def sample(self, case):
        t, c, v = case["t"], case["c"], case["v"]

        def arguments():
            return {"hidden": self.random(t, c), "w": self.random(v, c)}

        def probabilities(given):
            return (F.linear(given["hidden"], given["w"]).float() / TEMPERATURE).softmax(-1)

        def sorted_top_p(given):
            falling, order = probabilities(given).sort(dim=-1, descending=True)
            falling[falling.cumsum(-1) - falling >= TOP_P] = 0.0
            return order.gather(1, falling.multinomial(1))

        sides = {"torch sort": sorted_top_p} if case["top_p"] else {
            "torch multinomial": lambda given: probabilities(given).multinomial(1)
        }
        if self.flashinfer and case["top_p"]:
            sides["flashinfer"] = lambda given: self.flashinfer.sampling.top_p_sampling_from_probs(probabilities(given), TOP_P)
        elif self.flashinfer:
            sides["flashinfer"] = lambda given: self.flashinfer.sampling.sampling_from_probs(probabilities(given))
        return arguments, sides

    # Training: the backward half alone, of a graph that is kept

    @staticmethod
    def gradients(forward):
        def arguments():
            with torch.enable_grad():
                leaves, y = forward()
            return [leaves, y, torch.randn_like(y)]

        def side(given):
            leaves, y, dy = given
            return torch.autograd.grad(y, leaves, dy, retain_graph=True)

        return arguments, {"torch": side}

    def leaf(self, *shape):
        return self.random(*shape).requires_grad_()

    def linear_backward(self, case):
        def forward():
            t, k, n, r = (case[name] for name in "tknr")
            x, weight = self.leaf(t, k), self.random(n, k).requires_grad_(r == 0)
            if r == 0:
                return [x, weight], F.linear(x, weight)
            a, b = self.leaf(r, k), self.leaf(n, r)
            return [x, a, b], F.linear(x, weight) + SCALE * F.linear(F.linear(x, a), b)

        return self.gradients(forward)

    def gated_backward(self, case):
        def forward():
            gate, up = self.leaf(case["t"], case["f"]), self.leaf(case["t"], case["f"])
            return [gate, up], F.silu(gate) * up

        return self.gradients(forward)

    def activate_backward(self, case):
        def forward():
            x = self.leaf(case["t"], case["f"])
            return [x], F.gelu(x, approximate="tanh")

        return self.gradients(forward)

    def rms_norm_backward(self, case):
        def forward():
            x, weight = self.leaf(case["t"] * case["c"] // case["d"], case["d"]), self.leaf(case["d"])
            return [x, weight], F.rms_norm(x, (case["d"],), weight, EPS)

        return self.gradients(forward)

    def attention_backward(self, case):
        def forward():
            # A parent's rows stand before those of each child, which is what sharing them saves.
            b, h, g, d = (case[name] for name in "bhgd")
            length = case["prefix"] + case["length"]
            q, k, v = self.leaf(b, h, length, d), self.leaf(b, g, length, d), self.leaf(b, g, length, d)
            return [q, k, v], F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return self.gradients(forward)

    def adamw(self, case):
        def arguments():
            parameters = [torch.randn(case["n"], device=self.device, requires_grad=True) for _ in range(case["tensors"])]
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            options = {"fused": {"fused": True}, "foreach": {"foreach": True}}
            return {name: torch.optim.AdamW(parameters, **option) for name, option in options.items()}

        sides = {f"torch {name}": lambda given, name=name: given[name].step() for name in ("fused", "foreach")}
        return arguments, sides


class Clock:
    """Seconds of a round, by the host or by the device."""

    def __init__(self, run, on_gpu):
        self.run, self.graph, self.on_gpu = run, None, on_gpu
        run()
        if not on_gpu:
            return
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
            self.graph = graph
        except Exception:  # whatever a library does that a graph cannot hold
            torch.cuda.synchronize()

    def seconds(self):
        if not self.on_gpu:
            start = time.perf_counter()
            self.run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        once = self.graph.replay if self.graph else self.run
        once()  # keeps the device busy while what is timed is queued
        begin.record()
        once()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def held(argument):
    """Bytes of all tensors in an argument."""
    match argument:
        case torch.Tensor():
            return argument.nbytes
        case torch.nn.Module():
            return sum(parameter.nbytes for parameter in argument.parameters())
        case dict():
            return sum(held(part) for part in argument.values())
        case list():
            return sum(held(part) for part in argument)
    return 0


def measure(peers, entry, table, ceilings):
    """Timings of all sides of one case."""
    op = getattr(peers, entry["case"]["op"], None)
    if op is None:
        print(f"skipped {entry['name']}: no peer has it as one op", file=sys.stderr)
        return []
    arguments, sides = op(entry["case"])
    given = [arguments()]
    copies = int(min(max(-(-table["rotated_bytes"] // held(given[0])), 1), table["copies"]))
    given += [arguments() for _ in range(copies - 1)]
    clocks = {}
    for side, compute in sides.items():
        try:
            clocks[side] = Clock(lambda compute=compute: [compute(one) for one in given], peers.on_gpu)
        except Exception as error:
            print(f"skipped {side}, {entry['name']}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    if not clocks:
        return []
    slowest = max(clock.seconds() for clock in clocks.values())
    rounds = int(min(max(SECONDS / slowest, FEWEST), MOST))
    seconds = {side: [] for side in clocks}
    for _ in range(rounds):
        for side, clock in clocks.items():
            seconds[side].append(clock.seconds() / copies)
    timings = []
    for side, all_seconds in seconds.items():
        eager = " eager" if peers.on_gpu and not clocks[side].graph else ""
        median = statistics.median(all_seconds)
        floor = max(entry["bytes"] / ceilings["bytes_per_second"], entry["flops"] / ceilings["flops_per_second"])
        timings.append({
            "side": side + eager,
            "name": entry["name"],
            "us": 1e6 * median,
            "us_fastest": 1e6 * min(all_seconds),
            "us_slowest": 1e6 * max(all_seconds),
            "samples": rounds,
            "copies": copies,
            "bytes": entry["bytes"],
            "flops": entry["flops"],
            "gigabytes_per_second": entry["bytes"] / median / 1e9,
            "teraflops_per_second": entry["flops"] / median / 1e12,
            "floor_us": 1e6 * floor,
            "share_of_floor": floor / median,
        })
    return timings


def ceilings(peers):
    """The best of PyTorch's copy and matrix product."""
    size, edge = (1 << 28, 8192) if peers.on_gpu else (1 << 26, 2048)
    source, to = torch.randn(size, device=peers.device), torch.empty(size, device=peers.device)
    a, b = peers.random(edge, edge), peers.random(edge, edge)
    copy, product = Clock(lambda: to.copy_(source), peers.on_gpu), Clock(lambda: a @ b, peers.on_gpu)
    best = [min(clock.seconds() for _ in range(FEWEST)) for clock in (copy, product)]
    by = f"PyTorch's copy of {4 * size >> 20} MiB and its bf16 product of {edge} x {edge} matrices"
    return {"bytes_per_second": 8 * size / best[0], "flops_per_second": 2 * edge**3 / best[1], "by": by}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pellucid", help="the program, for its table of shapes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="what else to remember, such as what else the machine did")
    parser.add_argument("--out", type=Path)
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    torch.set_num_threads(options.threads)
    if options.device != "cpu" and "--rows" not in flags:
        flags = [*flags, "--rows", str(1 << 30)]
    listed = subprocess.run(
        [options.pellucid, "bench", "kernels", "--list", "--json", *flags], check=True, stdout=subprocess.PIPE, text=True
    )
    table = json.loads(listed.stdout)
    peers = Peers(options.device)
    name = torch.cuda.get_device_name(peers.device) if peers.on_gpu else f"cpu, {options.threads} threads"
    changed = "+" if race.output("git", "status", "--porcelain") else ""
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": race.output("git", "rev-parse", "--short", "HEAD") + changed,
        "cpu": race.cpu_name(),
        "threads": options.threads,
        "device": f"{name}, torch {torch.__version__}",
        "note": options.note,
        "load_before": os.getloadavg()[0],
        "ceilings": ceilings(peers),
        "kernels": [],
    }
    print(record["device"], record["ceilings"], sep="\n")
    for entry in table["cases"]:
        with torch.set_grad_enabled(False):
            timings = measure(peers, entry, table, record["ceilings"])
        for timing in timings:
            speed = f"{timing['us']:11.1f} us {timing['gigabytes_per_second']:8.1f} GB/s {timing['share_of_floor']:6.0%}"
            print(f"{timing['name']:62}{speed}  {timing['side']}", flush=True)
        record["kernels"] += timings
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
