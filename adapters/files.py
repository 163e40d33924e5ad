"""Adapter folders on disk: LoRA exactly as PEFT writes and reads it, the head, and the card.

`card.py` describes the folder and checks names and hashes. Reading has two halves: `parse_adapter` needs the folder
alone and no arithmetic of torch, so any thread may do it; `bind_adapter` fits what was read to a backbone. Both fail
closed: wrong base, unknown file or option, a tensor that is missing or does not fit, an adapter that changes nothing:
all refused, with a sentence that says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.card import CARD, CONFIG, HEAD, WEIGHTS, AdapterCard, digest_of, sha256_of, verify_folder
from adapters.half import stored
from adapters.lora import LoraPair, LoraSpec, LoraWeights, check_binding
from adapters.tensors import as_float32, read_tensors
from foundation.errors import AdapterNotFound, AdapterRefused

_PREFIX = "base_model.model."
# Options of PEFT's LoraConfig that may hold anything, because they do not change the arithmetic read here.
_FREE = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    )
)
# Initialisations that rewrite the base weights; such adapters have to be converted before they are saved.
_KEEPS_BASE = (True, False, "gaussian", "orthogonal")


class HasFingerprint(Protocol):
    """What reading needs of a backbone."""

    @property
    def image_tower(self) -> nn.Module: ...

    @property
    def fingerprint(self) -> str: ...


class HasLanguageModel(Protocol):
    """What reading an adapter of the decoder needs of it. model: a Hugging Face causal LM."""

    @property
    def model(self) -> Any: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory: its card, LoRA factors, head tensors, and the digest of the folder it came from."""

    card: AdapterCard
    lora: LoraWeights
    head: Mapping[str, Tensor]
    digest: str = ""


def write_adapter(folder: Path, adapter: Adapter) -> AdapterCard:
    """Write the folder (which must be new or empty) and return the card with the files' hashes."""
    if folder.exists() and any(folder.iterdir()):
        raise AdapterRefused(f"The folder {folder.name!r} is not empty; an adapter is written into a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_lora(folder, adapter.lora, base_name=adapter.card.base.name)
    save_file({key: stored(value) for key, value in adapter.head.items()}, folder / HEAD, metadata={"format": "pt"})
    card = replace(adapter.card, files={path.name: sha256_of(path) for path in sorted(folder.iterdir())})
    (folder / CARD).write_text(card.to_json(), encoding="utf-8")
    return card


@dataclass(frozen=True, eq=False)
class ParsedLora:
    """What the two PEFT files say, not yet compared with any tower."""

    config: Mapping[str, Any]
    weights: LoraWeights


@dataclass(frozen=True, eq=False)
class ParsedAdapter:
    """A whole folder with its hashes verified, not yet bound to a backbone."""

    card: AdapterCard
    lora: ParsedLora
    head: Mapping[str, Tensor]
    digest: str


def parse_adapter(folder: Path) -> ParsedAdapter:
    """Read and verify a folder, or refuse it. Safe beside a thread that runs the model."""
    card = verify_folder(folder)
    return ParsedAdapter(card, _parse_lora(folder), read_tensors(folder / HEAD), digest_of(folder))


def bind_adapter(parsed: ParsedAdapter, backbone: HasFingerprint) -> Adapter:
    """The adapter for this backbone, or a refusal with the reason."""
    card = _made_for(parsed.card, backbone)
    if card.base.decoder:
        raise AdapterRefused(f"The adapter {card.name!r} adapts the decoder, not the image tower: chat through it instead.")
    return Adapter(card, _bind_lora(parsed.lora, backbone.image_tower), parsed.head, parsed.digest)


def bind_decoder_adapter(parsed: ParsedAdapter, backbone: HasFingerprint, decoder: HasLanguageModel) -> Adapter:
    """The adapter of the decoder, made for these towers (what it was shown) and this decoder, or a refusal."""
    card = _made_for(parsed.card, backbone)
    if not card.base.decoder:
        raise AdapterRefused(f"The adapter {card.name!r} is for {card.task}: it does not chat.")
    if card.base.decoder != decoder.fingerprint:
        raise AdapterRefused(
            f"The adapter {card.name!r} was made for another decoder ({card.base.decoder[:12]}), not for the one that "
            f"is loaded ({decoder.fingerprint[:12]}); fine-tune it on this one or load the other."
        )
    return Adapter(card, _bind_lora(parsed.lora, decoder.model), parsed.head, parsed.digest)


def read_adapter(folder: Path, backbone: HasFingerprint) -> Adapter:
    """Open an adapter for this backbone, or refuse it with the reason."""
    return bind_adapter(parse_adapter(folder), backbone)


def read_decoder_adapter(folder: Path, backbone: HasFingerprint, decoder: HasLanguageModel) -> Adapter:
    """As `read_adapter`, for an adapter of the decoder."""
    return bind_decoder_adapter(parse_adapter(folder), backbone, decoder)


def _made_for(card: AdapterCard, backbone: HasFingerprint) -> AdapterCard:
    if card.base.fingerprint != backbone.fingerprint:
        raise AdapterRefused(
            f"The adapter {card.name!r} was made for the base {card.base.name!r} ({card.base.fingerprint[:12]}), not "
            f"for the one that is loaded ({backbone.fingerprint[:12]}); fine-tune it on this base or load the other."
        )
    return card


def write_lora(folder: Path, weights: LoraWeights, base_name: str | None = None) -> None:
    """PEFT's own two files; `target_modules` names every layer in full. float16 where no number changes by it."""
    from peft import LoraConfig  # the writer of the format, so that the file is PEFT's to the letter

    spec = weights.spec
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=_whole(spec.alpha),
        target_modules=sorted(spec.targets),
        use_rslora=spec.use_rslora,
        inference_mode=True,
        base_model_name_or_path=base_name,
    )
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, pair in weights.pairs.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = stored(pair.A)
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = stored(pair.B)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def read_lora(folder: Path, tower: nn.Module) -> LoraWeights:
    """The LoRA part alone, of our folders and of those that peft saved; bound to `tower` in full or refused."""
    return _bind_lora(_parse_lora(folder), tower)


def _parse_lora(folder: Path) -> ParsedLora:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise AdapterNotFound(f"The folder {folder.name!r} holds no {CONFIG} with {WEIGHTS}; it is not a LoRA adapter.")
    config = _read_config(folder / CONFIG)
    pairs = _pair_up(read_tensors(folder / WEIGHTS))
    if not any(np.any(pair.A.numpy()) and np.any(pair.B.numpy()) for pair in pairs.values()):
        raise AdapterRefused("Every LoRA product of the adapter is zero: it changes nothing. It was saved untrained.")
    spec = LoraSpec(tuple(pairs), int(config["r"]), float(config["lora_alpha"]), bool(config.get("use_rslora", False)))
    return ParsedLora(config, LoraWeights(spec, pairs))


def _bind_lora(parsed: ParsedLora, tower: nn.Module) -> LoraWeights:
    check_binding(tower, parsed.weights)
    _check_complete(tower, parsed.config, parsed.weights.pairs)
    return parsed.weights


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise AdapterRefused(f"{CONFIG} is not valid JSON; save the adapter again.") from None
    if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA":
        raise AdapterRefused(f"{CONFIG} does not describe a LoRA adapter; other PEFT methods are not read.")
    active = sorted(key for key, value in config.items() if key not in _FREE and value and (key, value) != ("bias", "none"))
    if active:
        raise AdapterRefused(f"{CONFIG} uses options that are not read here: {', '.join(active)}.")
    if config.get("init_lora_weights", True) not in _KEEPS_BASE:
        raise AdapterRefused(
            f"{CONFIG}: init_lora_weights {config['init_lora_weights']!r} changes the base; convert it on save."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise AdapterRefused(f"{CONFIG} must name a rank r of at least 1 and a lora_alpha.")
    return config


def _pair_up(tensors: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    sides: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
        if match is None or tensor.ndim != 2:
            raise AdapterRefused(f"{WEIGHTS} holds the tensor {key!r}, which is no LoRA factor of a linear layer.")
        sides.setdefault(match[1], {})[match[2]] = as_float32(tensor)
    for name, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise AdapterRefused(f"{WEIGHTS} holds only one of the two factors of {name!r}.")
    if not sides:
        raise AdapterRefused(f"{WEIGHTS} holds no tensors.")
    if not all(bool(np.isfinite(side).all()) for pair in sides.values() for side in pair.values()):
        raise AdapterRefused(f"{WEIGHTS} holds numbers that are not finite.")
    return {name: LoraPair(torch.from_numpy(pair["A"]), torch.from_numpy(pair["B"])) for name, pair in sides.items()}


def _check_complete(tower: nn.Module, config: Mapping[str, Any], pairs: Mapping[str, LoraPair]) -> None:
    """Every linear layer that the config's target_modules choose has its tensors, and no other."""
    chosen = {
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear)
        and _matches(name, config.get("target_modules"))
        and not _matches(name, config.get("exclude_modules"))
    }
    odd = sorted(chosen ^ set(pairs))
    if odd:
        raise AdapterRefused(f"{CONFIG} and {WEIGHTS} disagree about {len(odd)} layers, first {odd[0]!r}.")


def _matches(name: str, pattern: str | Sequence[str] | None) -> bool:
    """PEFT's rule: a string is a regular expression for the whole name, a list holds names or their endings."""
    if pattern is None:
        return False
    if isinstance(pattern, str):
        if pattern == "all-linear":
            return True
        try:
            return re.fullmatch(pattern, name) is not None
        except re.error:
            raise AdapterRefused(f"{CONFIG}: target_modules is not a valid pattern.") from None
    return any(name == ending or name.endswith(f".{ending}") for ending in pattern)


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
