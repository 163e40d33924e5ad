"""Where a checkpoint's files are: bundled, in a folder, or in a hub's cache; and where its text tower's config lies.

A hub is asked only for an `hf-hub:` checkpoint, only for safetensors, JSON and tokenizer files, and only for what the
cache lacks. A folder of one's own is complete in itself or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import CheckpointNotFound, CheckpointRefused
from foundation.folder_check import SAFE_PATTERNS, WEIGHTS_FILES, check_json

HUB_PREFIX = "hf-hub:"
TEXT_PATTERNS = ["*.json", "*.txt", "*.model"]
MODEL_FILES = ("config.json",)
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "spiece.model", "tokenizer.model")
BUNDLED = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True)
class Location:
    """A checkpoint folder on this machine; `is_hub` when it lies in the hub's cache."""

    folder: Path
    is_hub: bool = False


@dataclass(frozen=True)
class TextSources:
    """Folders for the two things a config may name by hub id: the text tower's own config, and the tokenizer."""

    model: Path | None
    tokenizer: Path | None

    def apply(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the config whose two names point at the folders, so that nothing is looked up elsewhere."""
        pointed = deepcopy(dict(config))
        text_cfg = pointed["model_cfg"]["text_cfg"]
        if self.model is not None:
            text_cfg["hf_model_name"] = str(self.model)
        if self.tokenizer is not None:
            text_cfg["hf_tokenizer_name"] = str(self.tokenizer)
        return pointed


def locate(where: str) -> Location:
    """The folder meant by "bundled", a path, or "hf-hub:ORG/NAME"."""
    if where == "bundled":
        return Location(BUNDLED)
    if where.startswith(HUB_PREFIX):
        folder = hub_folder(where.removeprefix(HUB_PREFIX), SAFE_PATTERNS, WEIGHTS_FILES)
        return Location(folder, is_hub=True)
    return Location(Path(where).expanduser().resolve())


def resolve_text_sources(folder: Path, config: Mapping[str, Any], *, may_fetch: bool) -> TextSources:
    """Point at the text tower's config and tokenizer: in the folder itself, or (for a hub checkpoint) in the cache."""
    text_cfg = config["model_cfg"]["text_cfg"]
    model, tokenizer = text_cfg.get("hf_model_name"), text_cfg.get("hf_tokenizer_name")
    return TextSources(
        model=_resolve(model, "hf_model_name", folder, MODEL_FILES, may_fetch) if model else None,
        tokenizer=_resolve(tokenizer, "hf_tokenizer_name", folder, TOKENIZER_FILES, may_fetch) if tokenizer else None,
    )


def hub_folder(repository: str, patterns: list[str], needed: tuple[str, ...]) -> Path:
    """The snapshot of a hub repository with one of the `needed` files: from the cache, else fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    for local_files_only in (True, False):
        try:
            folder = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=local_files_only))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError):
            continue
        if _holds_one(folder, needed):
            return folder
    raise CheckpointNotFound(
        f"`{repository}` is not in the local cache, or not with one of {', '.join(needed)}, and could not be fetched. "
        "Fetch it once while online, or give a folder.",
        param="model",
    )


def _resolve(name: str, field: str, folder: Path, needed: tuple[str, ...], may_fetch: bool) -> Path:
    for candidate in (folder, (folder / name).resolve()):
        if candidate.is_relative_to(folder) and _holds_one(candidate, needed):
            return candidate
    if not may_fetch:
        raise CheckpointRefused(
            f"The config's `text_cfg.{field}` is `{name}`, but the folder holds no {needed[0]} for it. "
            "Put that model's config.json and tokenizer files into the folder.",
            param=needed[0],
        )
    source = hub_folder(name, TEXT_PATTERNS, needed)
    check_json(source)
    return source


def _holds_one(folder: Path, needed: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in needed)
