"""A vision-language model of anyone's: any transformers `AutoModelForImageTextToText` folder, opened as data only.

    FOLDER/  config.json  *.safetensors  tokenizer files  processor_config.json  [chat_template.jinja]

Nothing in it is run: no remote code, no pickles, no network, and the keys of `config.json` that make a library fetch or run
code are dropped before transformers sees them. Every tensor must find its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foundation.errors import CheckpointNotFound, CheckpointRefused
from foundation.folder_check import CODE_KEYS, CONFIG_FILE, SAFE_SUFFIXES, file_digest, read_json, visible_files
from foundation.preprocess import InputContract

MODEL_CONFIG = "config.json"
_SUFFIXES = SAFE_SUFFIXES | {".jinja"}
_REFUSED_FILES = ("adapter_config.json",)  # transformers would fetch the base it names
_LARGEST_SIDE = 1024


@dataclass(frozen=True, eq=False)
class ChatFolder:
    """model and processor are transformers' own. fingerprint: of weights and config; context: prompt plus answer, in tokens."""

    model: Any
    processor: Any
    folder: Path
    fingerprint: str
    context: int

    @property
    def contract(self) -> InputContract:
        """A film is drawn as a square of the side the model's own processor asks for, which then does the rest."""
        image = self.processor.image_processor
        size: Any = dict(getattr(image, "size", None) or {})
        side = max((int(value) for key, value in size.items() if key in ("height", "shortest_edge")), default=448)
        mean, std = (_three(getattr(image, name, None)) for name in ("image_mean", "image_std"))
        return InputContract(size=min(max(side, 32), _LARGEST_SIDE), mean=mean, std=std)


def is_chat_folder(folder: Path) -> bool:
    """Whether it is a transformers model and no open_clip checkpoint."""
    return (folder / MODEL_CONFIG).is_file() and not (folder / CONFIG_FILE).is_file()


def open_chat_folder(folder: Path, device: str | torch.device = "cpu") -> ChatFolder:
    """Raises CheckpointNotFound, or CheckpointRefused naming what is wrong with the folder."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    _check_files(folder)
    config = _config(folder)
    try:
        model, told = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32 if torch.device(device).type == "cpu" else "auto",
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        raise CheckpointRefused(
            f"transformers can not open {folder.name} as a model of images and text ({type(error).__name__}). It needs "
            "config.json, safetensors, tokenizer and processor files of a model that transformers knows by itself.",
            param="model",
        ) from error
    missing = sorted(told.get("missing_keys", ())) + sorted(str(key) for key in told.get("mismatched_keys", ()))
    if missing:
        raise CheckpointRefused(f"{folder.name} lacks weights: {', '.join(missing[:5])}. Copy the folder again.", param="model")
    if not getattr(processor, "chat_template", None):
        raise CheckpointRefused(f"{folder.name} has no chat template, so nobody knows how to ask it.", param="model")
    text = config.get_text_config()
    context = int(getattr(text, "max_position_embeddings", 0) or 4096)
    return ChatFolder(model.eval().to(device), processor, folder, _fingerprint(folder), context)


def _check_files(folder: Path) -> None:
    if not (folder / MODEL_CONFIG).is_file():
        raise CheckpointNotFound(f"There is no {MODEL_CONFIG} in {folder}. Give a transformers folder.", param="model")
    for path in visible_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in _SUFFIXES or path.name in _REFUSED_FILES:
            raise CheckpointRefused(
                f"The folder holds `{name}`: pickled, executable or unknown files are not accepted, nor adapters of other "
                "models. Keep only safetensors, JSON, tokenizer and template files in it.",
                param=name,
            )


def _config(folder: Path) -> Any:
    from transformers import CONFIG_MAPPING

    settings = scrubbed(read_json(folder / MODEL_CONFIG))
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in CONFIG_MAPPING:
        raise CheckpointRefused(
            f"transformers does not know the model type {str(kind)[:60]!r} by itself, and code from a folder is not run.",
            param=MODEL_CONFIG,
        )
    if settings.get("quantization_config"):
        raise CheckpointRefused("The weights are quantised, which is not supported. Give full ones.", param=MODEL_CONFIG)
    return CONFIG_MAPPING[kind].from_dict(settings)


def scrubbed(value: Any) -> Any:
    """JSON without the keys that make a library run or fetch code, at any depth."""
    if isinstance(value, dict):
        return {key: scrubbed(inner) for key, inner in value.items() if key not in CODE_KEYS}
    return [scrubbed(inner) for inner in value] if isinstance(value, list) else value


def _fingerprint(folder: Path) -> str:
    import hashlib

    files = [path for path in visible_files(folder) if path.suffix == ".safetensors" or path.name == MODEL_CONFIG]
    return hashlib.sha256("\n".join(file_digest(path) for path in files).encode()).hexdigest()


def _three(value: Any) -> tuple[float, float, float]:
    given = [float(one) for one in value] if isinstance(value, list | tuple) else []
    return (given[0], given[1], given[2]) if len(given) == 3 else (0.5, 0.5, 0.5)
