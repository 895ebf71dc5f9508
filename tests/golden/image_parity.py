"""Compares pellucid's images with Pillow's and transformers', over hundreds of made ones.

    cargo build --release --example pixels
    python tests/golden/image_parity.py [--count N] [--seed N]

Prints, per kind of comparison, how many images differ in how many values and by how much, and exits 1 if any
does by more than the stated bound. Needs tests/golden/requirements.txt; nothing else in the repository does.
"""

import argparse
import collections
import io
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

PROGRAM = pathlib.Path(__file__).parents[2] / "target/release/examples/pixels"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


class Pellucid:
    """The example program, asked one image at a time."""

    def __init__(self):
        self.process = subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request):
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()
        head = json.loads(self.process.stdout.readline())
        if "error" in head:
            return head, None
        kind = np.uint8 if request["layout"] == "rgb" else np.float32
        size = int(np.prod(head["shape"])) * np.dtype(kind).itemsize
        return head, np.frombuffer(self.process.stdout.read(size), kind).reshape(head["shape"])


class Tally:
    """Mismatches per kind."""

    def __init__(self):
        self.rows = collections.defaultdict(lambda: [0, 0, 0, 0, 0.0])

    def add(self, kind, ours, theirs, level=1.0):
        row = self.rows[kind]
        row[0] += 1
        if ours is None or ours.shape != theirs.shape:
            row[1], row[4] = row[1] + 1, float("inf")
            return
        wrong = int((ours != theirs).sum())
        row[1] += wrong > 0
        row[2] += wrong
        row[3] += ours.size
        if wrong:
            difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max() / level
            row[4] = max(row[4], float(difference))

    def report(self):
        print(f"{'kind':34} {'images':>7} {'differing':>9} {'values':>12} {'wrong':>9} {'share':>9} {'levels':>7}")
        bad = False
        for kind, (images, differing, wrong, values, worst) in sorted(self.rows.items()):
            share = wrong / max(values, 1)
            print(f"{kind:34} {images:7} {differing:9} {values:12} {wrong:9} {share:9.2e} {worst:7.2f}")
            bad |= share > 1e-3 or worst > 1.01
        return bad


def made(rng, width, height):
    """Noise, blurred to a random degree, so that there are edges, gradients and flat parts."""
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    radius = int(rng.choice([0, 1, 3, 10]))
    image = noise.filter(ImageFilter.GaussianBlur(radius)) if radius else noise
    return ImageOps.autocontrast(image)


def size(rng, most):
    side = lambda: int(np.exp(rng.uniform(0, np.log(most))))
    while True:
        width, height = side(), side()
        if max(width, height) <= 200 * min(width, height):
            return width, height


def processors(tally, pellucid, rng, count, folder):
    path = str(folder / "image.png")
    for _ in range(count):
        image = made(rng, *size(rng, 2500))
        image.save(path)
        low = int(rng.choice([56 * 56, 256 * 28 * 28]))
        high = int(rng.choice([512 * 28 * 28, 28 * 28 * 1280, 12845056]))
        tiles = int(rng.choice([1, 6, 12]))
        for pil in (False, True):
            name = "pil" if pil else "torch"
            kind = Qwen2VLImageProcessorPil if pil else Qwen2VLImageProcessor
            theirs = kind(min_pixels=low, max_pixels=high)(images=[image], return_tensors="np")
            head, ours = pellucid.ask(path=path, layout="qwen", pil=pil, min=low, max=high)
            tally.add(f"qwen {name}", ours, np.asarray(theirs["pixel_values"]), level=1 / (255 * 0.2758))
            grid = [int(side) for side in theirs["image_grid_thw"][0]]
            assert str(grid) in head["geometry"], (head, grid)
            kind = GotOcr2ImageProcessorPil if pil else GotOcr2ImageProcessor
            reference = kind(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=tiles, **IMAGENET)
            theirs = np.asarray(reference(images=[image], return_tensors="np")["pixel_values"])
            _, ours = pellucid.ask(path=path, layout="internvl", pil=pil, max=tiles)
            tally.add(f"internvl {name}", ours, theirs, level=1 / (255 * 0.229))


def rgb(image):
    """What transformers.image_utils.load_image does with an opened file."""
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def files(tally, pellucid, rng, count, folder):
    for _ in range(count):
        image = made(rng, *size(rng, 700))
        alpha = Image.fromarray(rng.integers(0, 256, image.size[::-1], dtype=np.uint8))
        clear = image.convert("RGBA")
        clear.putalpha(alpha)
        palette = image.quantize(int(rng.integers(2, 257)))
        deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * int(rng.integers(1, 257)))
        plain = {
            "L": image.convert("L"), "LA": clear.convert("LA"), "1": image.convert("1"),
            "P": palette, "RGB": image, "RGBA": clear, "I;16": deep,
        }
        orientation = Image.Exif()
        orientation[0x0112] = int(rng.integers(1, 9))
        for mode, source in plain.items():
            compare(tally, pellucid, folder, source, f"png {mode}", "png", exif=orientation)
        compare(tally, pellucid, folder, palette, "png P tRNS", "png", transparency=int(rng.integers(0, 2)))
        compare(tally, pellucid, folder, image, "png RGB tRNS", "png", transparency=image.getpixel((0, 0)))
        for mode in ("1", "L", "P", "RGB", "RGBA"):
            compare(tally, pellucid, folder, plain[mode], f"bmp {mode}", "bmp")
        for mode in ("1", "L", "P", "RGB", "RGBA"):
            compare(tally, pellucid, folder, plain[mode], f"gif {mode}", "gif")
        frames = [made(rng, *image.size) for _ in range(2)]
        compare(tally, pellucid, folder, image, "gif animated", "gif", save_all=True, append_images=frames)
        compare(tally, pellucid, folder, image, "webp animated", "webp", save_all=True, append_images=frames)
        for mode in ("RGB", "RGBA"):
            quality = int(rng.integers(1, 101))
            compare(tally, pellucid, folder, plain[mode], f"webp {mode}", "webp", quality=quality, exif=orientation)
            compare(tally, pellucid, folder, plain[mode], f"webp {mode} lossless", "webp", lossless=True)
        for mode, source in {"L": plain["L"], "RGB": image, "CMYK": image.convert("CMYK")}.items():
            for progressive in (False, True):
                for sampling in ("4:4:4", "4:2:2", "4:2:0"):
                    options = {
                        "quality": int(rng.integers(1, 101)), "progressive": progressive, "exif": orientation,
                        "optimize": bool(rng.integers(0, 2)),
                    }
                    if mode != "L":
                        options["subsampling"] = sampling
                    if rng.integers(0, 2):
                        options["restart_marker_blocks"] = int(rng.integers(1, 40))
                    kind = f"jpeg {mode} {sampling if mode != 'L' else ''} {'progressive' if progressive else ''}"
                    compare(tally, pellucid, folder, source, kind, "jpeg", **options)


        for factors in (0x12, 0x41, 0x14, 0x22):
            resampled(tally, pellucid, rng, folder, factors)


def resampled(tally, pellucid, rng, folder, factors):
    """Samplings that Pillow does not write: a file whose header is changed to another of as many blocks."""
    across, down = factors >> 4, factors & 15
    columns, rows = int(rng.integers(1, 8)), int(rng.integers(1, 8))
    ours = (2, 1) if across * down == 2 else (2, 2)
    buffer = io.BytesIO()
    image = made(rng, columns * 8 * ours[0], rows * 8 * ours[1])
    image.save(buffer, "jpeg", subsampling="4:2:2" if ours == (2, 1) else "4:2:0")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\xff\xc0") + 5
    height, width = rows * 8 * down - int(rng.integers(0, 8)), columns * 8 * across - int(rng.integers(0, 8))
    data[frame:frame + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    data[frame + 6] = factors
    compare(tally, pellucid, folder, image, f"jpeg sampling {across}x{down}", "jpeg", data=bytes(data))


def compare(tally, pellucid, folder, image, kind, form, data=None, **options):
    buffer = io.BytesIO(data)
    if data is None:
        image.save(buffer, form, **options)
    path = folder / "file"
    path.write_bytes(buffer.getvalue())
    _, ours = pellucid.ask(path=str(path), layout="rgb")
    tally.add(kind, ours, rgb(Image.open(buffer)))
    if image.mode in ("RGBA", "LA") and form == "png":
        _, ours = pellucid.ask(path=str(path), layout="rgb", white=True)
        tally.add(f"{kind} over white", ours, convert_to_rgb(ImageOps.exif_transpose(Image.open(buffer)), True))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--count", type=int, default=150)
    arguments.add_argument("--seed", type=int, default=0)
    arguments = arguments.parse_args()
    rng = np.random.default_rng(arguments.seed)
    tally, pellucid = Tally(), Pellucid()
    with tempfile.TemporaryDirectory() as folder:
        processors(tally, pellucid, rng, arguments.count, pathlib.Path(folder))
        files(tally, pellucid, rng, arguments.count // 3, pathlib.Path(folder))
    sys.exit(tally.report())


if __name__ == "__main__":
    main()
