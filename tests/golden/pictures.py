"""The picture fixtures: small files of every format and mode, the RGB they decode to, what the processors make of it."""

import math
import struct
import zlib

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers.image_utils import load_image
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor, get_optimal_tiled_canvas
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

from files import write_json

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def scene(width, height, seed=0, noise=6.0):
    """Gradients, a disc and a bar with hard edges, and a little noise: [H, W, 3] u8."""
    random = np.random.Generator(np.random.Philox(key=seed))
    y, x = np.mgrid[0:height, 0:width] / max(width, height, 2)
    planes = [220 * x + 20, 200 * (1 - y), 128 + 100 * np.sin(9 * (x + 2 * y) + seed)]
    rgb = np.stack(planes, axis=-1)
    rgb[(x - 0.3) ** 2 + (y - 0.25) ** 2 < 0.03] = [250, 10, 30]
    rgb[(x > 0.6) & (x < 0.7)] = [0, 40, 255]
    rgb += noise * random.standard_normal(rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def picture(width, height, seed=0, mode="RGB", noise=6.0):
    image = Image.fromarray(scene(width, height, seed, noise))
    if mode in ("RGBA", "LA"):
        alpha = Image.fromarray(scene(width, height, seed + 1)[:, :, 2])
        image.putalpha(alpha)
    return image.convert(mode, dither=Image.Dither.NONE) if mode == "1" else image.convert(mode)


def palette(width, height, colours=16):
    return picture(width, height, 3).quantize(colours, dither=Image.Dither.NONE)


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_png16(path, values):
    """A 16-bit RGB PNG, which PIL reads but does not write; values are [H, W, 3] u16."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def write_files(folder):
    """Every picture file; names say what is special about them."""
    sizes = {
        "even": (64, 48), "odd": (109, 83), "tall": (21, 90), "wide": (130, 20), "tiny": (5, 3), "one": (1, 1),
        "exact": (56, 28), "half": (42, 70), "large": (200, 150), "thread": (1, 201),
    }  # fmt: skip
    for seed, (name, size) in enumerate(sizes.items()):
        picture(*size, seed).save(folder / f"{name}.png")
    for mode in ("1", "L", "LA", "RGBA"):
        picture(37, 29, 1, mode).save(folder / f"mode_{mode.lower()}.png")
    palette(37, 29).save(folder / "mode_p.png")
    palette(37, 29, 4).save(folder / "mode_p_2bit.png", bits=2)
    palette(37, 29).save(folder / "mode_p_transparent.png", transparency=bytes(range(0, 256, 16)))
    picture(37, 29, 1, "L").save(folder / "mode_l_transparent.png", transparency=40)
    picture(37, 29, 1).save(folder / "mode_rgb_transparent.png", transparency=(250, 10, 30))
    deep = scene(37, 29, 4).astype(np.uint16) * 257 + np.arange(37 * 29 * 3, dtype=np.uint16).reshape(29, 37, 3) % 200
    Image.fromarray(deep[:, :, 0]).save(folder / "deep_gray.png")
    write_png16(folder / "deep_rgb.png", deep)
    picture(24, 16, 5).save(folder / "orientation_6.png", exif=with_orientation(6))

    photo = picture(75, 53, 6)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        photo.save(folder / f"jpeg_{subsampling.replace(':', '')}.jpg", quality=90, subsampling=subsampling)
    photo.save(folder / "jpeg_low.jpg", quality=25)
    photo.save(folder / "jpeg_progressive.jpg", quality=85, progressive=True)
    photo.convert("L").save(folder / "jpeg_gray.jpg", quality=90)
    photo.convert("CMYK").save(folder / "jpeg_cmyk.jpg", quality=90)
    for orientation in range(1, 9):
        picture(24, 16, 5).save(
            folder / f"orientation_{orientation}.jpg", quality=95, subsampling="4:4:4", exif=with_orientation(orientation)
        )

    photo.save(folder / "webp_lossless.webp", lossless=True)
    photo.save(folder / "webp_lossy.webp", quality=80)
    picture(37, 29, 1, "RGBA").save(folder / "webp_alpha.webp", lossless=True, exact=True)
    picture(37, 29, 1, "RGBA").save(folder / "webp_lossy_alpha.webp", quality=80)
    picture(24, 16, 5).save(folder / "orientation_6.webp", lossless=True, exif=with_orientation(6))

    for mode in ("1", "L", "RGB", "RGBA"):
        picture(37, 29, 1, mode).save(folder / f"mode_{mode.lower()}.bmp")
    palette(37, 29).save(folder / "mode_p.bmp")

    palette(37, 29).save(folder / "mode_p.gif")
    picture(37, 29, 1, "L").save(folder / "mode_l.gif")
    palette(37, 29).save(folder / "mode_p_transparent.gif", transparency=3)
    palette(37, 29).save(
        folder / "animated.gif", save_all=True, append_images=[palette(37, 29, 8)], duration=50, loop=0
    )


# (file, settings) for the Qwen processors; settings not named here are the default ones
QWEN = [
    ("even", {}),
    ("odd", {}),
    ("odd", {"max_pixels": 4000}),
    ("odd", {"min_pixels": 15000}),
    ("odd", {"patch_size": 8, "min_pixels": 256}),
    ("tall", {}),
    ("wide", {}),
    ("tiny", {}),
    ("one", {}),
    ("exact", {"min_pixels": 784}),
    ("half", {}),
    ("large", {"max_pixels": 6000}),
    ("large", {"patch_size": 6, "max_pixels": 2000}),
]
# (file, settings) for the InternVL processors
INTERNVL = [
    ("even", {"tile": 28, "max_patches": 12}),
    ("odd", {"tile": 28, "max_patches": 12}),
    ("odd", {"tile": 32, "max_patches": 1}),
    ("tall", {"tile": 28, "max_patches": 6}),
    ("wide", {"tile": 28, "max_patches": 12}),
    ("tiny", {"tile": 28, "max_patches": 4}),
    ("one", {"tile": 28, "max_patches": 4}),
    ("exact", {"tile": 28, "max_patches": 4}),
    ("large", {"tile": 36, "max_patches": 4}),
    ("large", {"tile": 48, "min_patches": 2, "max_patches": 2}),
]


def to_bytes(pixels, mean, std, normalise):
    """Undoes the normalisation of channel-first pixels exactly: [..., 3, H, W] f32 -> u8."""
    column = lambda values: torch.tensor(values).view(3, 1, 1) * 255
    restored = torch.round(pixels * column(std) + column(mean)).to(torch.uint8)
    if not torch.equal(normalise(restored), pixels):
        raise SystemExit("normalised pixels do not come from bytes")
    return restored


def normaliser(processor):
    """The processor's own way from bytes to normalised pixels, for channel-first u8."""
    mean, std = processor.image_mean, processor.image_std
    if processor.backend == "torchvision":
        return lambda pixels: processor.rescale_and_normalize(pixels, True, 1 / 255, True, tuple(mean), tuple(std))

    def one(image):
        scaled = processor.rescale(image.numpy(), 1 / 255)
        return torch.from_numpy(np.asarray(processor.normalize(scaled, mean, std), dtype=np.float32))

    return lambda pixels: torch.stack([one(image) for image in pixels.reshape(-1, *pixels.shape[-3:])]).view(pixels.shape)


def unpatch(rows, grid, patch, merge):
    """Undoes the Qwen patch order: [patches, 3 * 2 * patch * patch] -> [3, H, W]; both frames must be the same."""
    _, height, width = grid
    blocks = rows.view(height // merge, width // merge, merge, merge, 3, 2, patch, patch)
    if not torch.equal(blocks[:, :, :, :, :, 0], blocks[:, :, :, :, :, 1]):
        raise SystemExit("the two frames of a still picture differ")
    return blocks[:, :, :, :, :, 0].permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * patch, width * patch)


def qwen(image, backend, settings):
    """Resized picture [H, W, 3] u8, its grid, and the normalised patches [patches, 1176 or so] f32."""
    make = {"fast": Qwen2VLImageProcessor, "pil": Qwen2VLImageProcessorPil}[backend]
    processor = make(**settings)
    output = processor(images=[image], return_tensors="pt")
    grid = output["image_grid_thw"][0].tolist()
    patches = output["pixel_values"].float().contiguous()
    pixels = unpatch(patches, grid, processor.patch_size, processor.merge_size)
    restored = to_bytes(pixels[None], processor.image_mean, processor.image_std, normaliser(processor))[0]
    return restored.permute(1, 2, 0).contiguous(), grid, patches


def internvl(image, backend, settings):
    """The tiles [tiles, H, W, 3] u8, and normalised [tiles, 3, H, W] f32."""
    make = {"fast": GotOcr2ImageProcessor, "pil": GotOcr2ImageProcessorPil}[backend]
    side = {"height": settings["tile"], "width": settings["tile"]}
    limits = {key: value for key, value in settings.items() if key != "tile"}
    processor = make(size=side, crop_to_patches=True, **IMAGENET, **limits)
    output = processor(images=[image], return_tensors="pt")
    pixels = output["pixel_values"].float().contiguous()
    restored = to_bytes(pixels, processor.image_mean, processor.image_std, normaliser(processor))
    return restored.permute(0, 2, 3, 1).contiguous(), len(restored), pixels


def processed(files):
    """What the four processors make of the pictures, as (json, arrays); patches in full for the small ones."""
    entries, arrays = [], {}
    for family, run, table in (("qwen", qwen, QWEN), ("internvl", internvl, INTERNVL)):
        for at, (file, settings) in enumerate(table):
            image = load_image(str(files / f"{file}.png"))
            entry = {"name": f"{family}_{at}", "family": family, "file": f"{file}.png", "settings": settings}
            for backend in ("fast", "pil"):
                resized, shape, values = run(image, backend, settings)
                entry["grid" if family == "qwen" else "tiles"] = shape
                arrays[f"{entry['name']}.{backend}"] = resized
                if values.nbytes < 25_000:
                    arrays[f"{entry['name']}.{backend}.values"] = values
            entries.append(entry)
    return entries, arrays


def size_rules(count=400):
    """The integer decisions alone, on many shapes: both rules are full of ties and roundings."""
    random = np.random.Generator(np.random.Philox(key=7))
    smart, canvas = [], []
    for _ in range(count):
        height, width = (int(math.exp(value)) for value in random.uniform(0, math.log(5000), 2))
        factor, least, most = 28, *((3136, 12845056), (3136, 1003520), (200704, 1003520))[random.integers(3)]
        if max(height, width) / min(height, width) <= 200:
            smart.append([height, width, factor, least, most, *smart_resize(height, width, factor, least, most)])
        least, most = ((1, 12), (1, 6), (2, 4), (1, 40))[random.integers(4)]
        canvas.append([height, width, 448, least, most, *get_optimal_tiled_canvas((height, width), (448, 448), least, most)])
    for height in range(1, 300, 7):
        smart.append([height, 70, 28, 3136, 12845056, *smart_resize(height, 70, 28, 3136, 12845056)])
    return {
        "smart_resize": {"columns": "height width factor min_pixels max_pixels to_height to_width", "rows": smart},
        "tiled_canvas": {"columns": "height width tile min_tiles max_tiles columns rows", "rows": canvas},
    }


def make(folder):
    """files/, the decoded pictures and the processors' output."""
    files = folder / "files"
    files.mkdir(parents=True)
    write_files(files)
    decoded, arrays = [], {}
    for path in sorted(files.iterdir()):
        with Image.open(path) as image:
            decoded.append({"file": path.name, "size": list(image.size), "mode": image.mode})
        arrays[path.name] = torch.from_numpy(np.array(load_image(str(path))))
    save_file(arrays, folder / "decoded.safetensors")
    entries, arrays = processed(files)
    save_file(arrays, folder / "expected.safetensors")
    write_json(folder / "expected.json", {"decoded": decoded, "processed": entries, **size_rules()})
