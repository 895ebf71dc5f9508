"""What transformers makes of one prompt: tokens, pixels, positions, scores and a greedy continuation."""

from dataclasses import dataclass

import torch
from transformers import AutoProcessor
from transformers.image_utils import load_image

import pictures

NEW_TOKENS = 32
LEAST_NEW_TOKENS = 24
LEAST_KINDS = 8  # different tokens in a greedy text
LEAST_MARGIN = 2e-3  # between the two best logits of a greedy step: far above f32 noise


@dataclass
class Prompt:
    rendered: str
    ids: list
    pixels: dict  # what the model takes beside the tokens
    token_types: torch.Tensor | None  # 1 on image tokens, for the models that ask

    def inputs(self, length):
        """Keyword arguments for a sequence that opens with this prompt and is that long."""
        if self.token_types is None or not self.pixels:
            return dict(self.pixels)
        types = torch.zeros(1, length, dtype=torch.long)
        types[:, : len(self.ids)] = self.token_types
        return {**self.pixels, "mm_token_type_ids": types}


class Processor:
    """transformers' processor (for text models: tokenizer) of a folder, with pictures by file name."""

    def __init__(self, folder, files):
        self.inner = AutoProcessor.from_pretrained(folder)
        self.tokenizer = getattr(self.inner, "tokenizer", self.inner)
        self.image_processor = getattr(self.inner, "image_processor", None)
        self.files = files
        self.seen = set()

    def tokens(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def open(self, file):
        self.seen.add(file)
        return load_image(str(self.files / file))

    def prompt(self, messages):
        rendered = self.inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        images = [self.open(part["image"]) for part in parts if part["type"] == "image"]
        if not images:
            return Prompt(rendered, self.tokens(rendered), {}, None)
        output = self.inner(images=images, text=[rendered], return_tensors="pt", add_special_tokens=False)
        pixels = {key: output[key] for key in ("pixel_values", "image_grid_thw") if key in output}
        return Prompt(rendered, output["input_ids"][0].tolist(), pixels, output.get("mm_token_type_ids"))


def end_tokens(model):
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def rounded(values, digits=9):
    """Floats as JSON wants them: enough digits to give back the f32."""
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


@torch.no_grad()
def score(model, prompt, answer):
    """Log-probs of the answer's tokens, their distributions' entropy, and the logits after the prompt."""
    start = len(prompt.ids)
    tokens = torch.tensor([prompt.ids + answer])
    logits = model(input_ids=tokens, **prompt.inputs(tokens.shape[1])).logits[0, start - 1 : -1].float()  # [T, V]
    logprobs = torch.log_softmax(logits, dim=-1)
    picked = logprobs.gather(1, tokens[0, start:, None])[:, 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return {"logprobs": picked, "entropy": entropy, "logits": logits[0].clone()}


@torch.no_grad()
def greedy(model, prompt, ends):
    """Greedy continuation, and the least distance between the best and the second logit on its way."""
    output = model.generate(
        input_ids=torch.tensor([prompt.ids]),
        attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=ends[0],
        output_logits=True,
        return_dict_in_generate=True,
        **prompt.inputs(len(prompt.ids)),
    )
    best = torch.stack(output.logits)[:, 0].topk(2, dim=-1).values
    return output.sequences[0, len(prompt.ids) :].tolist(), float((best[:, 0] - best[:, 1]).min())


def judge(name, generated, margin, config):
    """A random checkpoint may be a bad witness; then its seed must be changed."""
    placeholders = [getattr(config, key, None) for key in ("image_token_id", "video_token_id")]
    for flaw, found in {
        "stops early": len(generated) < LEAST_NEW_TOKENS,
        "repeats itself": len(set(generated)) < LEAST_KINDS,
        f"is undecided by {margin:.1e}": margin < LEAST_MARGIN,
        "calls for pictures": any(token in generated for token in placeholders),
    }.items():
        if found:
            raise SystemExit(f"{name}: greedy {flaw}: choose another seed for this case")


def layout(model, prompt):
    """The shape of the pictures of a prompt, and the three-axis positions of its tokens where the model has them."""
    found = {}
    if "image_grid_thw" in prompt.pixels:
        types = prompt.inputs(len(prompt.ids))["mm_token_type_ids"]
        grid = prompt.pixels["image_grid_thw"]
        positions, delta = model.model.get_rope_index(torch.tensor([prompt.ids]), types, image_grid_thw=grid)
        found = {"grid_thw": grid.tolist(), "position_ids": positions[:, 0].tolist(), "rope_delta": int(delta[0, 0])}
    elif "pixel_values" in prompt.pixels:
        found = {"tiles": len(prompt.pixels["pixel_values"])}
    return found


@torch.no_grad()
def picture(file, processor, model):
    """One picture alone: the bytes it is resized to, and the features the decoder receives."""
    image, inner = processor.open(file), processor.image_processor
    if hasattr(inner, "merge_size"):
        output = inner(images=[image], return_tensors="pt")
        grid = output["image_grid_thw"]
        pixels = pictures.unpatch(output["pixel_values"], grid[0].tolist(), inner.patch_size, inner.merge_size)[None]
        features = model.model.get_image_features(output["pixel_values"], image_grid_thw=grid).pooler_output
    else:
        output = inner(images=[image], return_tensors="pt", crop_to_patches=True)
        pixels = output["pixel_values"]
        features = model.model.get_image_features(pixels).pooler_output
    features = features[0] if isinstance(features, (list, tuple)) else features
    resized = pictures.to_bytes(pixels, inner.image_mean, inner.image_std, pictures.normaliser(inner))
    return {
        f"{file}.pixels": resized.permute(0, 2, 3, 1).contiguous(),
        f"{file}.features": features.flatten(0, -2).contiguous(),
    }
