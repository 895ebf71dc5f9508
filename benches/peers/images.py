"""Times pellucid's images beside Pillow's decoder and transformers' processors, in one run on one machine.

    cargo build --release --example pixels
    python benches/peers/images.py [--threads N] [--rounds N]

Makes a photograph-like picture of 20 million pixels, and a small one, and takes turns; prints the least wall time
of each in milliseconds and the ratio. Needs tests/golden/requirements.txt.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

PROGRAM = pathlib.Path(__file__).parents[2] / "target/release/examples/pixels"
TILES = {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 12}


def photograph(width, height):
    """Smooth shapes under a little noise: about as hard to compress as a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(arguments.threads)}
    program = subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def ours(step, **request):
        program.stdin.write((json.dumps(request) + "\n").encode())
        program.stdin.flush()
        head = json.loads(program.stdout.readline())
        program.stdout.read(int(np.prod(head["shape"])) * (1 if request["layout"] == "rgb" else 4))
        return head["ms"][step]

    def theirs(work):
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    qwen, pil, tiles = Qwen2VLImageProcessor(), Qwen2VLImageProcessorPil(), GotOcr2ImageProcessor(**TILES)
    print(f"{arguments.threads} threads, least of {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"{'':34} {'pellucid':>10} {'python':>10} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for name, width, height in (("20 Mpx", 5472, 3648), ("0.3 Mpx", 640, 480)):
            path = f"{folder}/picture.jpg"
            photograph(width, height).save(path, quality=90)
            image = Image.open(path).convert("RGB")
            rows = {
                "decode jpeg (pillow)": (
                    lambda: ours(0, path=path, layout="rgb"),
                    lambda: theirs(lambda: np.asarray(Image.open(path).convert("RGB"))),
                ),
                "qwen (torchvision)": (
                    lambda: ours(1, path=path, layout="qwen"),
                    lambda: theirs(lambda: qwen(images=[image], return_tensors="pt")),
                ),
                "qwen (pil)": (
                    lambda: ours(1, path=path, layout="qwen", pil=True),
                    lambda: theirs(lambda: pil(images=[image], return_tensors="np")),
                ),
                "internvl (torchvision)": (
                    lambda: ours(1, path=path, layout="internvl"),
                    lambda: theirs(lambda: tiles(images=[image], return_tensors="pt")),
                ),
            }
            for row, (left, right) in rows.items():
                times = [(left(), right()) for _ in range(arguments.rounds)]
                mine, other = (min(column) for column in zip(*times))
                print(f"{name + ' ' + row:34} {mine:10.2f} {other:10.2f} {other / mine:7.2f}")


if __name__ == "__main__":
    main()
