"""The tokenizer of a checkpoint, chosen as open_clip chooses it, but never from the network and never in silence.

open_clip falls back to its own CLIP vocabulary where a config names no tokenizer; here that is accepted only when the
text tower has that vocabulary's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import CheckpointRefused

if TYPE_CHECKING:
    from foundation.backbone import Tokenizer

CLIP_VOCABULARY = 49408
CLIP_CONTEXT = 77


def open_tokenizer(folder: Path | None, text_cfg: Mapping[str, Any]) -> Tokenizer:
    """folder: where the tokenizer's files lie; None for open_clip's built-in one."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    context_length = int(text_cfg.get("context_length", CLIP_CONTEXT))
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    if folder is None:
        _require_clip_vocabulary(text_cfg)
        return SimpleTokenizer(context_length=context_length, **options)  # type: ignore[no-any-return]
    try:
        tokenizer = HFTokenizer(
            str(folder),
            context_length=context_length,
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointRefused(
            "The folder's tokenizer files cannot be read. It needs tokenizer.json and tokenizer_config.json.",
            param="tokenizer.json",
        ) from error
    _require_fitting(tokenizer.tokenizer, text_cfg)
    return tokenizer  # type: ignore[no-any-return]


def _require_clip_vocabulary(text_cfg: Mapping[str, Any]) -> None:
    size = int(text_cfg.get("vocab_size", CLIP_VOCABULARY))
    if size != CLIP_VOCABULARY:
        raise CheckpointRefused(
            f"The config names no tokenizer, and the text tower's vocabulary of {size} is not CLIP's "
            f"{CLIP_VOCABULARY}. Set `text_cfg.hf_tokenizer_name` and put the tokenizer's files into the folder.",
            param="hf_tokenizer_name",
        )


def _require_fitting(tokenizer: Any, text_cfg: Mapping[str, Any]) -> None:
    if tokenizer.pad_token_id is None:
        raise CheckpointRefused(
            "The tokenizer has no padding token. Name one in tokenizer_config.json (`pad_token`).",
            param="tokenizer_config.json",
        )
    size = text_cfg.get("vocab_size")
    if size is not None and not text_cfg.get("hf_model_name") and len(tokenizer) > int(size):
        raise CheckpointRefused(
            f"The tokenizer knows {len(tokenizer)} tokens, the text tower {size}. They do not belong together.",
            param="tokenizer.json",
        )
