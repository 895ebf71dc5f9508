"""The same checkpoint as other writers lay it out: everything but the weights, and where each tensor comes from."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor, GenerationConfig

import checkpoint
from files import write_json


def stored(folder):
    """All tensors of a folder, by name."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
    return tensors


def transformers5(case, model, folder):
    """What transformers 5 writes with save_pretrained, and its tensor names."""
    config = AutoConfig.from_pretrained(model)
    config.save_pretrained(folder)
    GenerationConfig.from_pretrained(model).save_pretrained(folder)
    AutoProcessor.from_pretrained(model).save_pretrained(folder)
    names = checkpoint.model_class(model).from_config(config).state_dict()
    known = stored(model)
    return {name: [old] for name in names if (old := checkpoint.rename(name, case.stored_names)) in known}


# (pattern of the -hf name, original name); q, k and v are stacked into one tensor
INTERNVL_ORIGINAL = [
    (r"^vision_tower\.embeddings\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^vision_tower\.embeddings\.position_embeddings$", "vision_model.embeddings.position_embedding"),
    (r"^vision_tower\.embeddings\.patch_embeddings\.projection\.", "vision_model.embeddings.patch_embedding."),
    (r"^vision_tower\.encoder\.layer\.(\d+)\.attention\.[qkv]_proj\.", r"vision_model.encoder.layers.\1.attn.qkv."),
    (r"^vision_tower\.encoder\.layer\.(\d+)\.attention\.([qk])_norm\.", r"vision_model.encoder.layers.\1.attn.\2_norm."),
    (r"^vision_tower\.encoder\.layer\.(\d+)\.attention\.projection_layer\.", r"vision_model.encoder.layers.\1.attn.proj."),
    (r"^vision_tower\.encoder\.layer\.(\d+)\.layernorm_before\.", r"vision_model.encoder.layers.\1.norm1."),
    (r"^vision_tower\.encoder\.layer\.(\d+)\.layernorm_after\.", r"vision_model.encoder.layers.\1.norm2."),
    (r"^vision_tower\.encoder\.layer\.(\d+)\.lambda_([12])$", r"vision_model.encoder.layers.\1.ls\2"),
    (r"^vision_tower\.encoder\.layer\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"^multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^multi_modal_projector\.linear_2\.", "mlp1.3."),
]


def internvl_config(config):
    """The original InternVL3 config.json of the same model."""
    vision = config["vision_config"]
    kept = ("attention_dropout", "dropout", "hidden_act", "hidden_size", "initializer_factor", "initializer_range",
            "intermediate_size", "layer_norm_eps", "norm_type", "num_attention_heads", "num_channels",
            "num_hidden_layers", "torch_dtype")  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "downsample_ratio": config["downsample_ratio"],
        "dynamic_image_size": True,
        "force_image_size": vision["image_size"][0],
        "hidden_size": config["text_config"]["hidden_size"],
        "llm_config": config["text_config"],
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": config["torch_dtype"],
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            **{key: vision[key] for key in kept},
            "architectures": ["InternVisionModel"],
            "drop_path_rate": 0.1,
            "image_size": vision["image_size"][0],
            "model_type": "intern_vit_6b",
            "patch_size": vision["patch_size"][0],
            "qk_normalization": vision["use_qk_norm"],
            "qkv_bias": vision["attention_bias"],
            "use_bfloat16": True,
            "use_flash_attn": True,
        },
    }


def original(case, model, folder):
    """InternVL as its authors publish it: their config, their names, the chat template inside tokenizer_config.json."""
    write_json(folder / "config.json", internvl_config(json.loads((model / "config.json").read_text())))
    side = case.config["vision_config"]["image_size"][0]
    preprocessor = {
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": side,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    shutil.copy(model / "generation_config.json", folder)
    shutil.copy(model / "tokenizer.json", folder)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    del tokenizer["extra_special_tokens"]
    write_json(
        folder / "tokenizer_config.json", {**tokenizer, "chat_template": (model / "chat_template.jinja").read_text()}
    )
    tensors = {}
    for name in stored(model):
        tensors.setdefault(checkpoint.rename(name, INTERNVL_ORIGINAL), []).append(name)
    stacked = ("q_proj", "k_proj", "v_proj")
    for parts in tensors.values():
        parts.sort(key=lambda name: [part in name for part in stacked], reverse=True)
    return tensors


def assemble(model, folder, tensors):
    """A loadable folder out of a variant, as a test would make it."""
    parts = stored(model)
    save_file({name: torch.cat([parts[old] for old in olds]) for name, olds in tensors.items()}, folder / "model.safetensors")


def write(case, model, folder):
    """Every variant of a case, under folder/<name>; those transformers knows are proven to be the same model."""
    for variant in [transformers5, *([original] if case.tokenizer == "internvl" else [])]:
        target = folder / variant.__name__
        target.mkdir(parents=True)
        tensors = variant(case, model, target)
        used = sorted(old for olds in tensors.values() for old in olds)
        if used != sorted(stored(model)):
            raise SystemExit(f"{target}: does not use every tensor once")
        if variant is transformers5:
            with tempfile.TemporaryDirectory() as scratch:
                whole = Path(scratch) / "model"
                shutil.copytree(target, whole)
                assemble(model, whole, tensors)
                here, there = checkpoint.load(model, torch.float32), checkpoint.load(whole, torch.float32)
                for (name, old), new in zip(here.named_parameters(), there.parameters(), strict=True):
                    if not torch.equal(old, new):
                        raise SystemExit(f"{target}: {name} is another tensor")
        write_json(target / "tensors.json", tensors)
