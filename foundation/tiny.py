"""Tiny random checkpoints in the layouts of real ones, for tests and for trying things out; they know nothing.

    layout        image tower                     text tower                       pairs by    like
    "open_clip"   open_clip ViT, 64 px            open_clip, causal, eos           softmax     ViT-B-32
    "resnet"      timm resnet14t, 64 px           open_clip, class token           sigmoid     the bundled model
    "visformer"   timm visformer_tiny, 224 px     open_clip, class token           sigmoid     -
    "biomedclip"  timm ViT, class token, 160 px   BERT, MLP projection             softmax     BiomedCLIP
    "siglip"      timm ViT, attention pool, 64 px open_clip, last token            sigmoid     ViT-B-16-SigLIP

The folders are complete: `open_checkpoint` and open_clip's own `local-dir:` open them without network. Made in well
under a second, but "resnet" and "visformer", whose 8 and 10 million weights take about two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.binding import build_open_clip
from foundation.checkpoint import save_checkpoint

LAYOUTS = ("open_clip", "resnet", "visformer", "biomedclip", "siglip")
TINY_EMBED_DIM = 32
TINY_SIGLIP = "vesalius_tiny_siglip_64"
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_WORDS = (
    "there is a an the no of in and small large left right lung heart pleural effusion pneumothorax nodule mass edema "
    "consolidation atelectasis cardiomegaly normal chest film x ray . ,"
)


def make_tiny_checkpoint(
    folder: Path, layout: str = "open_clip", *, seed: int = 0, vision: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint of one of LAYOUTS into `folder` and return it; the same seed gives the same weights.

    vision: entries of `vision_cfg` to use instead of the tiny ones, for a random model of any size.
    """
    if layout == "siglip":
        register_tiny_siglip()
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    config = tiny_config(layout, len(vocabulary), eos_id=vocabulary["[SEP]"])
    config["model_cfg"]["vision_cfg"].update(vision or {})
    if layout == "biomedclip":
        _write_bert_config(folder, len(vocabulary))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        buildable = _with_text_folder(config, folder)
        model = build_open_clip(buildable)
        _randomise(model)
    save_checkpoint(model, config, folder, folder, dtype=torch.float32)
    return folder


def tiny_config(layout: str, vocab_size: int, eos_id: int) -> dict[str, Any]:
    """The content of open_clip_config.json for one of LAYOUTS."""
    native = {"vocab_size": vocab_size, "width": 32, "heads": 2, "layers": 2, "hf_tokenizer_name": "tokenizer"}
    model_cfgs: dict[str, dict[str, Any]] = {
        "open_clip": {
            "vision_cfg": {
                "image_size": 64,
                "layers": 4,
                "width": 32,
                "head_width": 16,
                "patch_size": 16,
                "ls_init_value": 0.5,
            },
            "text_cfg": {**native, "context_length": 24, "pool_type": "eos", "eos_id": eos_id},
        },
        "resnet": {
            "custom_text": True,
            "init_logit_bias": -10.0,
            "vision_cfg": {"image_size": 64, "timm_model_name": "resnet14t", "timm_pool": "avg", "timm_proj": "linear"},
            "text_cfg": {**native, "context_length": 24, "embed_cls": True, "no_causal_mask": True},
        },
        "visformer": {
            "custom_text": True,
            "init_logit_bias": -10.0,
            "vision_cfg": {"image_size": 224, "timm_model_name": "visformer_tiny", "timm_pool": "avg"},
            "text_cfg": {**native, "context_length": 24, "embed_cls": True, "no_causal_mask": True},
        },
        "biomedclip": {
            "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
            "text_cfg": {
                "context_length": 48,
                "hf_model_name": "an-organisation/a-bert",
                "hf_tokenizer_name": "an-organisation/a-bert",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
            },
        },
        "siglip": {
            "custom_text": True,
            "init_logit_bias": -10.0,
            "vision_cfg": {
                "image_size": 64,
                "timm_model_name": TINY_SIGLIP,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                **native,
                "context_length": 64,
                "hf_tokenizer_name": "an-organisation/a-siglip",
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "norm_kwargs": {"eps": 1e-6},
            },
        },
    }
    embed_dim = 48 if layout == "siglip" else TINY_EMBED_DIM  # without a projection it is the tower's width
    return {
        "model_cfg": {"embed_dim": embed_dim, **model_cfgs[layout]},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    }


def register_tiny_siglip() -> None:
    """Make timm know TINY_SIGLIP, a SigLIP image tower of 4 blocks, in this process."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    def build(pretrained: bool = False, num_classes: int = 0, global_pool: str = "map", **unused: Any) -> nn.Module:
        """timm hands over its own bookkeeping (`pretrained_cfg` and the like) too."""
        tower: nn.Module = VisionTransformer(
            img_size=64,
            embed_dim=48,
            depth=4,
            num_heads=3,
            class_token=False,
            num_classes=num_classes,
            global_pool=global_pool,
        )
        return tower

    build.__name__ = TINY_SIGLIP
    if not timm.is_model(TINY_SIGLIP):
        timm.models.register_model(build)


def _with_text_folder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    from foundation.sources import resolve_text_sources

    return resolve_text_sources(folder.resolve(), config, may_fetch=False).apply(config)


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """A lower-casing WordPiece tokenizer that can spell any Latin word; returns its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*_SPECIAL.values(), *_WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **_SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return vocabulary


def _write_bert_config(folder: Path, vocab_size: int) -> None:
    settings = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _randomise(model: Any) -> None:
    """Move norms, biases and tokens off their initial ones and zeros; give BatchNorms the statistics of some pictures.

    The branches of a visformer are made small beside its residual stream, as training makes them; without that, random
    weights double every rounding error block by block.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 0 < parameter.ndim < 2 or parameter.abs().max() < 1e-4:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if norms and name.endswith(("attn.proj.weight", "mlp.conv3.weight")):
                parameter.mul_(0.1)
        if norms:
            for norm in norms:
                norm.momentum = None  # the plain mean over what is seen
            model.train().visual(torch.randn(4, 3, *model.visual.image_size))
    model.eval()
