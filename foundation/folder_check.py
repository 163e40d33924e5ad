"""What may lie in a checkpoint folder: data only. Everything that could run code is refused by name.

Looks at names, sizes and JSON keys; reads no tensor (`checkpoint.py` does) and imports no model library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundation.errors import CheckpointNotFound, CheckpointRefused

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "model.safetensors")  # open_clip's order
SAFE_SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".model", ".md", ".gitattributes", ".gitignore", ""})
TOKENIZER_SUFFIXES = frozenset({".json", ".txt", ".model"})
SAFE_PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.model"]  # all that is ever fetched from a hub
CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "_attn_implementation_internal", "custom_pipelines"})
MAX_JSON_BYTES = 64 * 2**20


def check_folder(folder: Path, *, ignore_foreign_files: bool = False) -> None:
    """Refuse a folder with pickled or executable content, or JSON that asks for code to be run.

    ignore_foreign_files: for a hub's cache, where other programs may have left files that are never read here.
    """
    if not folder.is_dir():
        raise CheckpointNotFound(f"There is no checkpoint folder at {folder}. Give an existing folder.", param="model")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointNotFound(
            f"{folder} holds no {CONFIG_FILE}, so it is not an open_clip checkpoint. Export it from open_clip first.",
            param="model",
        )
    for path in visible_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in SAFE_SUFFIXES and not ignore_foreign_files:
            raise CheckpointRefused(
                f"The checkpoint folder holds `{name}`: pickled, executable or unknown files are not accepted. "
                "Keep only safetensors, JSON and tokenizer files in it.",
                param=name,
            )
    check_json(folder)


def check_json(folder: Path) -> None:
    """Refuse JSON files, anywhere below the folder, with a key that makes a library run code."""
    for path in visible_files(folder):
        if path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json"):
            _check_keys(read_json(path), path.relative_to(folder).as_posix())


def find_weights(folder: Path) -> Path:
    """The safetensors file of the backbone, by open_clip's own names."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointRefused(
        f"{folder} holds no {WEIGHTS_FILE}. Only safetensors are read: convert the weights and put them there.",
        param=WEIGHTS_FILE,
    )


def read_json(path: Path) -> Any:
    """Parse a JSON file of sane size."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointRefused(f"`{path.name}` is larger than {MAX_JSON_BYTES >> 20} MiB.", param=path.name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointRefused(f"`{path.name}` is not valid JSON. Get the file again.", param=path.name) from error


def visible_files(folder: Path) -> Iterator[Path]:
    """Every file below the folder, sorted; names that begin with a dot (and what lies in such folders) are skipped."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(weights: Path, config: Any) -> str:
    """SHA-256 (hex) over the weights file and the config's meaning (not its white space or key order)."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{file_digest(weights)}\n{canonical}".encode()).hexdigest()


def _check_keys(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in CODE_KEYS:
                raise CheckpointRefused(
                    f"`{name}` has the key `{key}`, which makes libraries run code from the folder. Remove the key.",
                    param=name,
                )
            _check_keys(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner, name)
