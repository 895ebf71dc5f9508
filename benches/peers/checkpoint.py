"""Writes a checkpoint of random weights in the shape of a published model, for measuring speed and loading.

    python benches/peers/checkpoint.py FOLDER [--shape qwen2.5-0.5b] [--shards 1] [--gguf FILE]

The folder holds bf16 safetensors (with an index where sharded), a config.json, and the tiny tokenizer of the
golden fixtures, so that every verb runs on it. --gguf writes the same weights once more for llama.cpp (without a
vocabulary; needs the `gguf` package). Otherwise torch and safetensors suffice. Weights are drawn so that activations
keep their size through the layers: no infinities, no denormals, which would measure something else.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

TOKENIZER = Path(__file__).parents[2] / "tests/golden/qwen2/model"

SHAPES = {
    "tiny-world": dict(hidden=128, ffn=256, layers=3, heads=4, kv_heads=2, vocab=105),
    "tiny": dict(hidden=64, ffn=112, layers=2, heads=4, kv_heads=2, vocab=512),
    "qwen2.5-0.5b": dict(hidden=896, ffn=4864, layers=24, heads=14, kv_heads=2, vocab=151936),
    "qwen2.5-3b": dict(hidden=2048, ffn=11008, layers=36, heads=16, kv_heads=2, vocab=151936),
}


def config(shape):
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": "bfloat16",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["ffn"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "vocab_size": shape["vocab"],
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": shape["layers"],
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": min(358, shape["vocab"] - 1),
    }


def tensor_shapes(shape):
    """Every tensor's name and shape, in the order of the layers."""
    hidden, ffn = shape["hidden"], shape["ffn"]
    keys = hidden // shape["heads"] * shape["kv_heads"]
    yield "model.embed_tokens.weight", (shape["vocab"], hidden)
    for layer in range(shape["layers"]):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (hidden,)
        for name, outputs in (("q", hidden), ("k", keys), ("v", keys)):
            yield f"{block}.self_attn.{name}_proj.weight", (outputs, hidden)
            yield f"{block}.self_attn.{name}_proj.bias", (outputs,)
        yield f"{block}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        yield f"{block}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{block}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{block}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)


def random_tensor(name, shape, generator):
    noise = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return (1 + 0.1 * noise).bfloat16()
    if name.endswith("bias"):
        return (0.1 * noise).bfloat16()
    return (noise / shape[-1] ** 0.5).bfloat16()


def shard_names(sizes, shards):
    """The file of each tensor: in order, each file about as large as the others."""
    if shards == 1:
        return dict.fromkeys(sizes, "model.safetensors")
    total, so_far, files = sum(sizes.values()), 0, {}
    for name, size in sizes.items():
        number = min(shards, so_far * shards // total + 1)
        files[name] = f"model-{number:05}-of-{shards:05}.safetensors"
        so_far += size
    return files


def gguf_writer(path, shape):
    import gguf

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(32768)
    writer.add_block_count(shape["layers"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1000000.0)
    writer.add_vocab_size(shape["vocab"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, shape["layers"])

    def add(name, tensor):
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor.ndim == 1:
            writer.add_tensor(renamed, tensor.float().numpy())
        else:
            raw = tensor.view(torch.uint8).numpy()
            writer.add_tensor(renamed, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)

    return writer, add


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--gguf", type=Path)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)

    shapes = dict(tensor_shapes(shape))
    sizes = {name: 2 * torch.Size(dimensions).numel() for name, dimensions in shapes.items()}
    files = shard_names(sizes, arguments.shards)
    writer, add = gguf_writer(arguments.gguf, shape) if arguments.gguf else (None, None)
    generator = torch.Generator().manual_seed(2)
    for file in sorted(set(files.values())):
        tensors = {name: random_tensor(name, shapes[name], generator) for name in shapes if files[name] == file}
        save_file(tensors, folder / file, {"format": "pt"})
        for name, tensor in tensors.items() if add else ():
            add(name, tensor)
    if arguments.shards > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder / name)
    if writer:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    print(f"{folder}: {sum(sizes.values()) / 1e9:.2f} GB in {len(set(files.values()))} file(s)")


if __name__ == "__main__":
    main()
