"""A checkpoint, a findings adapter and films small enough for tests: random weights in the layouts of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from adapters.card import AdapterCard, BaseRecord, Calibration
from adapters.files import Adapter, write_adapter
from adapters.lora import LoraPair, LoraSpec, LoraWeights
from adapters.tasks.classification import ClassificationHead
from foundation.backbone import Backbone
from foundation.lexicon import FINDINGS
from foundation.prompt import SPECIALS
from serving.messages import Film
from serving.prompts import finding_prompts

SIZE = 160
LABELS = ("effusion", "mass", "nodule")
_MORE = "is there an effusion and where ? . , ; yes no i see present absent not assessed presence location describe"
WORDS = " ".join([*FINDINGS, *(text for name in FINDINGS for pair in finding_prompts(name) for text in pair), _MORE])


def write_tokenizer(folder: Path) -> int:
    """A word tokenizer over the prompts' own words, with every special token; returns how many tokens it has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    specials = ["[PAD]", "[UNK]", "[CLS]", "[BOS]", "[EOS]", "[SEP]", "<image>", "<findings>", "<user>", "<assistant>"]
    assert set(SPECIALS) <= set(specials)
    words = sorted({*WORDS.replace("{}", "").lower().split(), *(str(number) for number in range(101))})
    letters = [chr(code) for code in range(97, 123)]
    pieces = [*words, *letters, *(f"##{letter}" for letter in [*letters, *"0123456789-"]), *"-/()'!:"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*specials, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


def write_checkpoint(folder: Path, *, with_decoder: bool = True) -> Path:
    """A timm ViT of six narrow blocks, a text tower of one, and a Llama of one."""
    from foundation.checkpoint import build_open_clip, save_checkpoint
    from foundation.decoder import Decoder, DecoderShape

    vocabulary = write_tokenizer(folder)
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "custom_text": True,
            "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": SIZE},
            "text_cfg": {
                "context_length": 24,
                "vocab_size": vocabulary,
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
            vocab_size=vocabulary,
            width=32,
            layers=1,
            heads=2,
            key_value_heads=1,
            mlp_width=32,
            context=512,
        )
        Decoder.create(shape, folder / "tokenizer.json").save(folder, dtype=torch.float32)
    return folder


def write_findings(folder: Path, backbone: Backbone, name: str = "cxr-findings", seed: int = 5) -> Path:
    """An adapter for `backbone` whose LoRA and head change what it says; `folder` is the store's."""
    generator = torch.Generator().manual_seed(seed)
    spec = LoraSpec(tuple(backbone.lora_targets()), rank=4, alpha=8)
    pairs = {}
    for target in spec.targets:
        linear = backbone.image_tower.get_submodule(target)
        A = torch.randn(4, linear.in_features, generator=generator)
        pairs[target] = LoraPair(0.2 * A, 0.2 * torch.randn(linear.out_features, 4, generator=generator))
    head = ClassificationHead(len(LABELS), backbone.embed_dim, backbone.width)
    torch.nn.init.normal_(head.text.weight, generator=generator)
    torch.nn.init.normal_(head.query, generator=generator)
    torch.nn.init.normal_(head.value, generator=generator)
    card = AdapterCard(
        name=name,
        task="classification",
        labels=LABELS,
        base=BaseRecord("tiny", backbone.fingerprint),
        preprocessing_version=1,
        head={"embed_dim": backbone.embed_dim, "width": backbone.width},
        calibration=Calibration("platt", (1.5, 0.5, 1.0), (-0.2, 0.3, 0.0), "val", 10),
        thresholds=(0.4, 0.6, 0.5),
    )
    write_adapter(folder / name, Adapter(card, LoraWeights(spec, pairs), head.state_dict()))
    return folder / name


def noise_film(seed: int, modality: str = "") -> Film:
    """A film of blotches; every seed another one."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (SIZE // 16, SIZE // 16, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    return Film(pixels, digest=f"{seed:064x}", modality=modality)
