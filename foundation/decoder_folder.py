"""A decoder on disk: the files it is made of, read strictly as data, and the fingerprint over them.

    FOLDER/decoder/config.json  model.safetensors  tokenizer.json ...     a plain Hugging Face Llama
    FOLDER/projector.safetensors

Nothing executable, missing or left over is accepted. `decoder.py` makes a model of what is read here, and writes it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foundation.errors import CheckpointNotFound, CheckpointRefused
from foundation.folder_check import file_digest

DECODER_FOLDER = "decoder"
PROJECTOR_FILE = "projector.safetensors"
_SPOKEN = (f"{DECODER_FOLDER}/config.json", f"{DECODER_FOLDER}/model.safetensors", f"{DECODER_FOLDER}/tokenizer.json")
_FORBIDDEN_KEYS = ("auto_map", "_attn_implementation_internal", "quantization_config")


def decoder_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over all files that decide what the decoder in `folder` says to given patch tokens."""
    digests = [f"{name} {file_digest(folder / name)}" for name in (*_SPOKEN, PROJECTOR_FILE)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_settings(folder: Path) -> dict[str, Any]:
    """What LlamaConfig is made of; refuses other models and keys that may run code. folder: `decoder/` itself."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointNotFound(f"No decoder in {folder.parent.name}: {DECODER_FOLDER}/config.json is missing.")
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise CheckpointRefused("The decoder's config.json is not JSON; copy the folder again.") from broken
    if settings.get("model_type") != "llama":
        raise CheckpointRefused(f"The decoder is a {settings.get('model_type')!r}; only Llama folders are opened here.")
    forbidden = [key for key in _FORBIDDEN_KEYS if settings.get(key) is not None]
    if forbidden:
        raise CheckpointRefused(f"The decoder's config.json names {', '.join(forbidden)}, which may run code; remove it.")
    return {key: value for key, value in settings.items() if key not in ("architectures", "dtype", "torch_dtype")}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, as float32."""
    if not file.is_file():
        raise CheckpointNotFound(f"{file.name} is missing from the checkpoint folder; copy the folder again.")
    try:
        return {name: tensor.float() for name, tensor in load_file(file).items()}
    except SafetensorError as broken:
        raise CheckpointRefused(f"{file.name} is not a whole safetensors file; copy it again.") from broken


def bind_strictly(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Load strictly: every tensor has its place and shape, and every place its tensor."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if wrong:
        raise CheckpointRefused(
            f"{file.name} does not fit its config: {', '.join(wrong[:5])} missing, unexpected or misshaped."
        )
    module.load_state_dict(tensors)


def projected_width(tensors: dict[str, Tensor], folder: Path) -> int:
    """The width of the patch tokens that a projector with these tensors takes."""
    weight = tensors.get("linear_1.weight")
    if weight is None or weight.ndim != 2:
        raise CheckpointRefused(f"{PROJECTOR_FILE} in {folder.name} is no projector: linear_1.weight is missing.")
    return int(weight.shape[1])


def copy_tokenizer(file: Path, folder: Path) -> None:
    """The tokenizer as it is, but adding no [CLS] and [SEP]: prompts carry their own marks."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.update(post_processor=None, truncation=None, padding=None)
    write_json(folder / "tokenizer.json", settings)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
