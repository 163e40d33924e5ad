"""A transformers folder of images and text, small enough for tests: a random LLaVA with a tokenizer of a few words."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from foundation.export import CHAT_TEMPLATE
from foundation.tiny_decoder import tiny_vocabulary
from foundation.wordpiece import write_tokenizer

SIDE, PATCH = 32, 8


def write_chat_folder(folder: Path, seed: int = 0) -> Path:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    tokens = tiny_vocabulary()
    write_tokenizer(tokens, folder, 256)
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings.update(post_processor=None, truncation=None, padding=None)
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    special = {name: tokens.index(name) for name in ("[BOS]", "[EOS]", "[PAD]", "<image>")}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            bos_token_id=special["[BOS]"],
            eos_token_id=special["[EOS]"],
            pad_token_id=special["[PAD]"],
        ),
        image_token_index=special["<image>"],
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.02 if parameter.ndim > 1 else 1.0, 0.3 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    image = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 0,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "full",
    }
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "processor_class": "LlavaProcessor",
    }
    _write(folder / "preprocessor_config.json", {**image, "processor_class": "LlavaProcessor"})
    _write(folder / "processor_config.json", processor)
    _write(folder / "tokenizer_config.json", words)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
