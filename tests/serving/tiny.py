"""A checkpoint, a findings adapter and films small enough for tests: random weights in the layouts of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adapters.fake import make_fake_adapter
from adapters.files import write_adapter
from foundation.backbone import Backbone
from foundation.lexicon import FINDINGS
from foundation.wordpiece import SPECIAL_TOKENS, write_tokenizer
from serving.messages import Film
from serving.prompts import finding_prompts

SIZE = 160
CONTEXT = 24
LABELS = ("effusion", "mass", "nodule")
_MORE = "is there an effusion and where ? . , ; yes no i see present absent not assessed presence location describe"
WORDS = " ".join([*FINDINGS, *(text for name in FINDINGS for pair in finding_prompts(name) for text in pair), _MORE])


def vocabulary() -> list[str]:
    """The prompts' own words, every special token, and letters enough to spell anything else."""
    words = sorted({*WORDS.replace("{}", "").lower().split(), *(str(number) for number in range(101))})
    letters = [chr(code) for code in range(97, 123)]
    pieces = [*words, *letters, *(f"##{letter}" for letter in [*letters, *"0123456789-"]), *"-/()'!:"]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *pieces]))


def write_checkpoint(folder: Path, *, with_decoder: bool = True) -> Path:
    """A timm ViT of six narrow blocks, a text tower of one, and a Llama of one."""
    from foundation.checkpoint import build_open_clip, save_checkpoint
    from foundation.decoder import Decoder, DecoderShape

    tokens = vocabulary()
    write_tokenizer(tokens, folder, CONTEXT)
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "custom_text": True,
            "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": SIZE},
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": len(tokens),
                "width": 32,
                "heads": 2,
                "layers": 1,
                "hf_tokenizer_name": "tokenizer",
                "pool_type": "first",
                "no_causal_mask": True,
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"},
    }
    torch.manual_seed(0)
    model = build_open_clip(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)  # random towers see all films alike; this spreads them
    save_checkpoint(model, config, folder, folder, dtype=torch.float32)
    if with_decoder:
        shape = DecoderShape(
            image_width=64,
            vocab_size=len(tokens),
            width=32,
            layers=1,
            heads=2,
            key_value_heads=1,
            mlp_width=32,
            context=512,
        )
        Decoder.create(shape, folder / "tokenizer.json").save(folder, dtype=torch.float32)
    return folder


def write_task(folder: Path, backbone: Backbone, name: str, task: str, *, first_block: int = 0, seed: int = 5) -> Path:
    """An adapter of any task for `backbone`; `folder` is the store's."""
    labels = {"anomaly": ("anomaly",), "segmentation": ("lungs", "heart"), "fusion": ("icu",)}.get(task, LABELS)
    adapter = make_fake_adapter(backbone, name, labels, base="tiny", seed=seed, task=task, first_block=first_block)
    write_adapter(folder / name, adapter)
    return folder / name


def write_findings(folder: Path, backbone: Backbone, name: str = "cxr-findings", seed: int = 5) -> Path:
    """An adapter for `backbone` whose LoRA and head change what it says; `folder` is the store's."""
    write_adapter(folder / name, make_fake_adapter(backbone, name, LABELS, base="tiny", seed=seed))
    return folder / name


def noise_film(seed: int, modality: str = "") -> Film:
    """A film of blotches; every seed another one."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (SIZE // 16, SIZE // 16, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    return Film(pixels, digest=f"{seed:064x}", modality=modality)
