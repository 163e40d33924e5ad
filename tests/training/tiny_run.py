"""A pretraining small enough for tests: phantoms as films of several sources, a small visformer, a small text tower."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from foundation.phantom import Phantom, make_phantom
from foundation.wordpiece import SPECIAL_TOKENS, write_tokenizer
from training.pretraining.learner import ModelRecipe
from training.pretraining.recipe import DataRecipe, PretrainRecipe, StageRecipe
from training.pretraining.text.recipe import TextRecipe, build_tower

TOWER = "vesalius_tiny_visformer"
SIZE = 64
TEXT = TextRecipe(vocab_size=512, width=32, heads=2, layers=1, context_length=32, embed_dim=16)
ROWS = {"train": 12, "val": 12}
SOURCES = ("nih_cxr14", "shenzhen")
SHARES = {"nih_cxr14": 0.4, "shenzhen": 0.3, "phantom": 0.3}


def register_tiny_visformer() -> None:
    """Make timm know TOWER: visformer_tiny's kinds of layers, its first patches 16 channels of 4x4, one block a stage.

    Its own size is not SIZE, as the bundled tower's is not the size it is trained at.
    """
    import timm
    from timm.models.visformer import Visformer

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        """timm hands over its own bookkeeping (`pretrained_cfg` and the like) too."""
        kept = {name: value for name, value in options.items() if name in ("img_size", "drop_path_rate", "num_classes")}
        tower = Visformer(
            **{"img_size": 96, "num_classes": 0} | kept,
            init_channels=16,
            embed_dim=64,
            depth=(1, 1, 1),
            num_heads=2,
            attn_stage="011",
            spatial_conv="100",
            norm_layer=nn.BatchNorm2d,
            embed_norm=nn.BatchNorm2d,
            conv_init=True,
        )
        tower.default_cfg = {"pool_size": (3, 3)}
        return tower

    build.__name__ = TOWER
    if not timm.is_model(TOWER):
        timm.models.register_model(build)


@cache
def phantom(seed: int, size: int = SIZE) -> Phantom:
    return make_phantom(seed, size)


def write_manifest(folder: Path) -> Path:
    """Phantoms as the films of two sources, with a patient of two films and labels as the sources have them."""
    lines = []
    places = [(split, source) for split, count in ROWS.items() for source in SOURCES for _ in range(count)]
    for number, (split, source) in enumerate(places):
        made = phantom(number % 12)
        name = f"{number}.png"
        Image.fromarray(made.film).save(folder / name)
        known = [label for label in made.labels if label not in ("tube", "line")]
        labels = (known or ["normal"]) if source == "nih_cxr14" else ["normal" if number % 2 else "tuberculosis"]
        line: dict[str, Any] = {"image": name, "source": source, "split": split, "labels": labels}
        line |= {"patient_id": f"{source}-{split}-{number // 2}", "licence_class": "permissive", "licence": "made"}
        line |= {"view": "AP" if number % 3 else "PA", "size": [320, 256], "age": 20 + number}
        if source == "shenzhen":
            line |= {"sex": "MF"[number % 2], "text": f"reading {number % 5}"}
        lines.append(json.dumps(line))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_text_tower(folder: Path) -> Path:
    """A random text tower in the layout that `pretraining/text/language.py` leaves."""
    letters = [chr(code) for code in range(97, 123)] + [str(digit) for digit in range(10)]
    words = ["no", "there", "is", "of", "the", "film", "shows", "with", "without", "left", "right", "effusion", "reading"]
    tokens = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *words, *".,:-/()'"]
    write_tokenizer(tokens, folder, TEXT.context_length)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = build_tower(TEXT)
    save_file({f"text.{name}": value.contiguous() for name, value in tower.state_dict().items()}, folder / "text.safetensors")
    (folder / "text_cfg.json").write_text(json.dumps(TEXT.text_cfg))
    return folder


def tiny_recipe(manifest: Path, text_folder: Path, cache_folder: Path, **changes: Any) -> PretrainRecipe:
    """Two short stages at two sizes, the second with every objective that needs text."""
    text_objectives = {"findings": 1.0, "prompts": 0.5, "pairs": 0.1, "captions": 0.1, "patches": 0.1}
    stages = (
        StageRecipe("findings", SIZE, 32, 1e-3, {"findings": 1.0}, "cosine", flip=0.5, mix=0.3),
        StageRecipe("align", SIZE + 32, 32, 4e-4, text_objectives, "linear", hide_resolution=0.6, flip=0.5, mix=0.3),
    )
    settings: dict[str, Any] = {
        "name": "tiny",
        "out": "runs/tiny",
        "model": ModelRecipe(TOWER, SIZE + 32, TEXT.embed_dim, str(text_folder)),
        "data": DataRecipe(str(manifest), ("permissive",), 8, str(cache_folder), SHARES),
        "stage": stages,
        "batch": 8,
        "validate_every": 16,
        "save_every_s": -1.0,  # after every step
    }
    return PretrainRecipe(**settings | changes)
