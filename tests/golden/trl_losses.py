"""GRPO losses as TRL's own trainer computes them, on recorded log-probs: writes trl_losses.json beside this file.

    venv/bin/pip install trl==1.16.0      besides requirements.txt
    venv/bin/python tests/golden/trl_losses.py

`GRPOTrainer._compute_loss` runs on a stand-in that holds the trainer's settings and hands out recorded log-probs where
the trainer asks its model. The sum over microbatches is the loss of the step, its gradient by each log-prob the slope.
"""

import itertools
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import trl
from trl import GRPOTrainer

from files import write_json

# Tokens of each completion by microbatch. TRL pads to the longest; what lies beyond a length must not count.
LENGTHS = [[5, 1, 7], [2, 8, 6]]
LONGEST = 8
CLIP = dict(epsilon_low=0.2, epsilon_high=0.28)
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")


def recorded():
    """Log-probs far enough from the sampler's that ratios lie on both sides of the clip, and some beyond `delta`."""
    random = np.random.default_rng(5)
    shape = (2, 3, LONGEST)
    old = -random.gamma(1.5, 0.8, shape)
    new = np.minimum(old + random.normal(0, 0.7, shape), -1e-3)
    new[0, 0, 2] = old[0, 0, 2]
    new[1, 1, 4] = old[1, 1, 4] + 1.4
    reference = np.minimum(old + random.normal(0, 0.6, shape), -1e-3)
    advantages = np.array([[0.9, -1.1, 0.2], [0.0, -0.6, 1.3]])
    return {"new": new, "old": old, "reference": reference, "advantages": advantages}


def stand_in(loss_type, beta, delta, logp):
    """What `_compute_loss` looks at in its trainer."""
    return SimpleNamespace(
        loss_type=loss_type,
        beta=beta,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=len(LENGTHS)),
        current_gradient_accumulation_steps=len(LENGTHS),
        max_completion_length=LONGEST,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        **CLIP,
    )


def step(loss_type, beta, delta, tensors):
    total, gradient, clipped = 0.0, [], 0.0
    for number, lengths in enumerate(LENGTHS):
        own = {name: torch.tensor(values[number]) for name, values in tensors.items()}
        logp = own["new"].requires_grad_()
        mask = (torch.arange(LONGEST) < torch.tensor(lengths)[:, None]).int()
        prompt = torch.zeros(len(lengths), 1, dtype=torch.int)
        inputs = dict(
            prompt_ids=prompt,
            prompt_mask=prompt + 1,
            completion_ids=mask,
            completion_mask=mask,
            advantages=own["advantages"],
            old_per_token_logps=own["old"],
            ref_per_token_logps=own["reference"],
            num_items_in_batch=torch.tensor(sum(map(sum, LENGTHS))),
        )
        trainer = stand_in(loss_type, beta, delta, logp)
        loss = GRPOTrainer._compute_loss(trainer, None, inputs)
        loss.backward()
        total += loss.item()
        gradient.append(logp.grad)
        clipped += trainer._metrics["train"]["clip_ratio/region_mean"][0] * sum(lengths)
    return {"loss": total, "clipped": round(clipped), "gradient": ragged(gradient)}


def ragged(batches):
    """Values that count, sequence by sequence."""
    pairs = zip(LENGTHS, batches, strict=True)
    return [[row[:length].tolist() for length, row in zip(*pair, strict=True)] for pair in pairs]


def main():
    tensors = recorded()
    settings = [*itertools.product(LOSS_TYPES, (0.0, 0.04), (None,)), ("grpo", 0.04, 3.0)]
    cases = [
        {"loss_type": loss_type, "beta": beta, "delta": delta, **step(loss_type, beta, delta, tensors)}
        for loss_type, beta, delta in settings
    ]
    advantages = tensors.pop("advantages").tolist()
    fixture = {
        "made_with": f"trl {trl.__version__}",
        **CLIP,
        "longest": LONGEST,
        "advantages": advantages,
        **{name: ragged(values) for name, values in tensors.items()},
        "cases": cases,
    }
    write_json(Path(__file__).with_name("trl_losses.json"), fixture)
    for case in cases:
        print(case["loss_type"], case["beta"], case["delta"], case["loss"], case["clipped"])


if __name__ == "__main__":
    main()
