"""Tiny tokenizers: byte-level BPE with a family's own pre-tokenizer and special tokens, trained on one page of text."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = """
The picture shows a triangle with a right angle at the lower left corner; one side is 3 and the other side is 4.
What is the length of the longest side? Describe the image in detail so that someone who cannot see it can answer.
In the chart the blue bar is higher than the red bar, and the green bar is the lowest of the three bars.
A user asks, an assistant answers: the answer is 42, the number of points in the figure is 7, the area is 12.5.
def area(width, height):
    return width * height  # the area of a rectangle
for index in range(10): print(index, index ** 2)
\\frac{1}{2} + \\sqrt{x^2 + y^2} = \\alpha \\cdot \\beta, \\quad \\angle ABC = 90^\\circ
Größe und Länge, élève, señor, naïve, Ωμέγα, привет мир, 你好世界, 三角形的面积是多少, こんにちは, 🙂🙃
""".strip().splitlines()

# Words are split before merging, each family in its own way.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_VISION = [
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
INTERNVL = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", "<video>"]
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

SPECIAL = {
    "qwen2": CHATML,
    "qwen3": CHATML,
    "qwen_vl": CHATML + QWEN_VISION,
    "internvl": CHATML + INTERNVL,
    "llama3": LLAMA,
    "smollm2": CHATML,
}
MERGES = 100


def train(style):
    """A tokenizer of 256 bytes, about MERGES merges and then the style's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    if style == "smollm2":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        split = LLAMA_SPLIT if style == "llama3" else QWEN_SPLIT
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if style != "llama3":
            tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL[style]])
    if style == "llama3":
        begin = "<|begin_of_text|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A {begin}:1 $B:1",
            special_tokens=[(begin, tokenizer.token_to_id(begin))],
        )
    return tokenizer


def settings(style, tokenizer):
    """The tokenizer_config.json that goes with it, in the published layout."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True,
        }
        for token in SPECIAL[style]
    }  # fmt: skip
    ends = {"llama3": "<|eot_id|>"}.get(style, "<|im_end|>")
    config = {
        "added_tokens_decoder": added,
        "bos_token": {"llama3": "<|begin_of_text|>", "smollm2": "<|im_start|>"}.get(style),
        "clean_up_tokenization_spaces": False,
        "eos_token": ends,
        "model_max_length": 4096,
        "pad_token": None if style == "llama3" else "<|endoftext|>",
        "tokenizer_class": {
            "llama3": "PreTrainedTokenizerFast", "smollm2": "GPT2Tokenizer",
        }.get(style, "Qwen2Tokenizer"),
        "unk_token": "<|endoftext|>" if style == "smollm2" else None,
    }  # fmt: skip
    if style.startswith("qwen"):
        config["add_prefix_space"] = False
        config["split_special_tokens"] = False
    if style == "internvl":
        config["extra_special_tokens"] = {
            "context_image_token": "<IMG_CONTEXT>",
            "end_image_token": "</img>",
            "start_image_token": "<img>",
            "video_token": "<video>",
        }
    return config


def save(style, template, folder):
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja; returns the token-to-id function."""
    tokenizer = train(style)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    text = json.dumps(settings(style, tokenizer), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n")
    (folder / "chat_template.jinja").write_text(template)
    return tokenizer.token_to_id
