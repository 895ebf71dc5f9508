"""What transformers computes for one prompt of one checkpoint."""

import torch

NEW_TOKENS = 32
LEAST_NEW_TOKENS = 24
LEAST_KINDS = 8  # different tokens in a greedy text
LEAST_MARGIN = 2e-3  # between the two best logits of a greedy step: far above f32 noise


def rounded(values, digits=9):
    """Floats as JSON wants them: enough digits to give back the f32."""
    return [float(f"{value:.{digits}g}") for value in values]


@torch.no_grad()
def score(model, ids, start, inputs):
    """Log-probs of ids[start:], their distribution's entropy, and the logits before ids[start]."""
    tokens = torch.tensor([ids])
    logits = model(input_ids=tokens, **inputs).logits[0].float()
    logprobs = torch.log_softmax(logits, dim=-1)
    picked = logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)[:-1]
    return {"logprobs": picked[start - 1 :], "entropy": entropy[start - 1 :], "logits": logits[start - 1]}


@torch.no_grad()
def greedy(model, ids, ends, inputs):
    """Greedy continuation, and the least distance between the best and the second logit on its way."""
    output = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=ends[0],
        output_logits=True,
        return_dict_in_generate=True,
        **inputs,
    )
    best = torch.stack(output.logits)[:, 0].topk(2, dim=-1).values
    return output.sequences[0, len(ids) :].tolist(), float((best[:, 0] - best[:, 1]).min())


def require(condition, message):
    """A random checkpoint may be a bad witness; then its seed must be changed."""
    if not condition:
        raise SystemExit(f"{message}: choose another seed for this case")
