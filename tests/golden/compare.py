"""The difference between two fixture folders: files and weights byte for byte, measured numbers by their distance."""

import json

import torch
from safetensors.torch import load_file

NOISE = 2e-5  # what another CPU may change in an f32 result; results in bf16 are allowed a thousand times that


def flatten(value, path=""):
    """A JSON value as (path, leaf) pairs."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{path}.{key}")
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from flatten(item, f"{path}[{at}]")
    else:
        yield path, value


def same_number(path, old, new):
    if ".margin" in path:
        return True
    return abs(old - new) <= NOISE * (1000 if ".bf16[" in path else 1) * max(1.0, abs(old))


def json_differences(old, new):
    old, new = (dict(flatten(json.loads(path.read_text()))) for path in (old, new))
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if isinstance(before, float) and isinstance(after, float) and same_number(path, before, after):
            continue
        if before != after:
            yield f"{path}: {before!r} became {after!r}"


def tensor_differences(old, new):
    old, new = load_file(old), load_file(new)
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before is None or after is None or before.shape != after.shape or before.dtype != after.dtype:
            yield f"{name}: is not the same tensor"
        elif before.dtype.is_floating_point:
            distance = (before.double() - after.double()).abs().max().item()
            if distance > NOISE * max(1.0, before.double().abs().max().item()):
                yield f"{name}: differs by {distance:.1e}"
        elif not torch.equal(before, after):
            yield f"{name}: differs in {(before != after).sum().item()} places"


def differences(old, new):
    if not old.exists() or not new.exists():
        return ["is missing on one side"]
    if old.name == "expected.json":
        return list(json_differences(old, new))
    if old.name == "expected.safetensors":
        return list(tensor_differences(old, new))
    return [] if old.read_bytes() == new.read_bytes() else ["differs"]


def report(committed, made):
    """Prints what differs and returns how many files do."""
    files = {path.relative_to(base) for base in (committed, made) for path in base.rglob("*") if path.is_file()}
    different = 0
    for file in sorted(files):
        found = differences(committed / file, made / file)
        different += bool(found)
        for line in found[:5]:
            print(f"{made.name}/{file}: {line}")
    print(f"{made.name}: {different} of {len(files)} files differ")
    return different
