"""A policy-gradient step of a LoRA adapter in PyTorch and PEFT.

    python benches/peers/torch_train.py FOLDER --threads 4 [--dtype float32|bfloat16] [--autocast] [--checkpointing]
    python benches/peers/torch_train.py FOLDER --device cuda --dtype bfloat16 --checkpointing [--liger]

The step is that of `pellucid bench train`, from token ids and the sampler's log-probs to moved weights: the clipped
surrogate over completions of --completion tokens, the gradient clipped at norm 1, AdamW. The adapter is on every
linear of the decoder and kept in f32. All completions have one length, so that a batch is without padding; each
carries its own prompt, and the head computes the rows of completions alone.

Needs torch, transformers and peft (tests/golden/requirements.txt names the versions); --liger needs liger-kernel, which
puts its norms, rotations and gates in the place of those of transformers.
"""

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path

import peft
import torch
import transformers


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--liger", action="store_true", help="with the kernels of liger-kernel")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    for name, default in (("groups", 1), ("group-size", 8), ("prompt", 200), ("completion", 56), ("rank", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int, default=32, help="sequences of a pass")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the model's weights")
    parser.add_argument("--autocast", action="store_true", help="f32 weights, bf16 products")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again on the way back")
    return parser.parse_args()


def sequences(options, vocab):
    """The tokens of `pellucid bench train`: a prompt for each group, other completions in each of its lanes."""
    tokens = lambda start, count: [at * 7919 % vocab for at in range(start, start + count)]
    return torch.tensor(
        [
            tokens(group * 31, options.prompt) + tokens(group * 131 + lane * 17 + 5, options.completion)
            for group in range(options.groups)
            for lane in range(options.group_size)
        ]
    )


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    loader = transformers.AutoModelForCausalLM
    if options.liger:
        from liger_kernel.transformers import AutoLigerKernelForCausalLM as loader
    base = loader.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    ).to(options.device)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=options.rank, lora_alpha=options.rank, target_modules="all-linear"
    )
    model = peft.get_peft_model(base, settings).train()
    if options.checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    autocast = torch.autocast(options.device, torch.bfloat16) if options.autocast else contextlib.nullcontext()

    ids = sequences(options, model.config.vocab_size).to(options.device)
    advantages = torch.tensor([1.0, -1.0], device=options.device).repeat(options.group_size)[: options.group_size].repeat(options.groups)

    def logprobs(rows):
        with autocast:
            logits = model(input_ids=rows, use_cache=False, logits_to_keep=options.completion + 1).logits
        logits = logits[:, :-1].float()
        targets = rows[:, -options.completion :, None]
        return logits.gather(2, targets)[..., 0] - logits.logsumexp(-1)

    with torch.inference_mode():
        old = torch.cat([logprobs(rows) for rows in ids.split(options.batch)])

    def step():
        total = 0.0
        for rows, before, advantage in zip(*(t.split(options.batch) for t in (ids, old, advantages)), strict=True):
            ratio = (logprobs(rows) - before).exp()
            advantage = advantage[:, None]
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum() / old.numel()
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return total, norm.item()

    on_chip = options.device != "cpu"
    loss, norm = step()
    seconds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        step()
        if on_chip:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    record = {
        "name": f"torch {torch.__version__}, peft {peft.__version__}",
        "seconds": statistics.median(seconds),
        "first_loss": loss,
        "first_norm": norm,
        "trained": sum(parameter.numel() for parameter in trained),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_chip else None,
        "tokens_per_second": ids.numel() / statistics.median(seconds),
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
