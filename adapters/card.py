"""An adapter folder without its tensors: names, the card, hashes. Knows no torch, so any process may list adapters.

    NAME/
      adapter_config.json          as PEFT writes it
      adapter_model.safetensors    as PEFT writes it
      head.safetensors             the task's head
      card.json                    what it is for, what it was measured to do, every other file's SHA-256
      README.md                    optional, for people

The tensors are read and bound in `files.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from foundation.errors import AdapterNotFound, AdapterRefused, InvalidRequest

CARD_FORMAT = 1
CARD = "card.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
REQUIRED = (CONFIG, WEIGHTS, HEAD, CARD)
KNOWN = (*REQUIRED, "README.md")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_MAX_CARD_BYTES = 4 << 20


def check_name(name: str) -> str:
    """A name that is safe as a folder and inside tensor names; returned as it is.

    NOTE: PEFT finds its tensors by cutting the adapter's name out of names like `lora_A.NAME.weight`: a name
    that is itself a part of "lora_" loses weights on load.
    """
    if not _NAME.fullmatch(name) or name in "lora_":
        raise InvalidRequest(
            f"The adapter name {name!r} cannot be used; take 1 to 63 of a-z, 0-9, '-' and '_', beginning with a "
            "letter or digit, and not a part of the word 'lora_'.",
            param="name",
        )
    return name


@dataclass(frozen=True)
class BaseRecord:
    """The checkpoint an adapter belongs to. decoder: the fingerprint of its decoder, for adapters that change that."""

    name: str
    fingerprint: str
    decoder: str = ""

    def fits(self, fingerprint: str, decoder: str) -> bool:
        """Whether these towers, and where it matters this decoder, are the ones meant."""
        return self.fingerprint == fingerprint and self.decoder in ("", decoder)


@dataclass(frozen=True)
class Calibration:
    """Turns raw outputs into probabilities, fitted on `split`.

    method "platt": sigmoid(slope_k * logit_k + bias_k) for each label; "temperature": softmax(slope_0 * logits);
    "none": slopes 1 and biases 0.
    """

    method: str = "none"
    slope: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    split: str = ""
    films: int = 0


@dataclass(frozen=True)
class Conformal:
    """A conformal set: a label enters where its probability is at least its threshold. Empty until computed.

    absent: of labels that do not exclude each other, the probability up to which "absent" enters; see `conformal.py`.
    """

    coverage: float | None = None
    thresholds: tuple[float, ...] = ()
    split: str = ""
    absent: tuple[float, ...] = ()


@dataclass(frozen=True)
class Metric:
    """One measured number with its interval at `level` (patient-level bootstrap)."""

    name: str
    label: str
    split: str
    value: float
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    positives: int | None = None
    films: int | None = None


@dataclass(frozen=True)
class DataRecord:
    """What the adapter was trained on, and under which licence."""

    source: str
    films: int
    patients: int
    splits: tuple[str, ...]
    licence: str
    licence_class: str


@dataclass(frozen=True)
class AdapterCard:
    """What an adapter is. `head` holds the head's own options; `files` the SHA-256 of every other file."""

    name: str
    task: str
    labels: tuple[str, ...]
    base: BaseRecord
    preprocessing_version: int
    description: str = ""
    licence: str = ""
    is_multi_label: bool = True
    head: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: tuple[float, ...] = ()
    conformal: Conformal = field(default_factory=Conformal)
    metrics: tuple[Metric, ...] = ()
    data: tuple[DataRecord, ...] = ()
    citations: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = CARD_FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> AdapterCard:
        """Refuses unknown and missing fields, and lists whose length is not that of the labels."""
        try:
            raw = json.loads(text)
        except ValueError:
            raise AdapterRefused(f"{CARD} is not valid JSON; the adapter has to be written again.") from None
        if not isinstance(raw, dict) or raw.get("format") != CARD_FORMAT:
            raise AdapterRefused(f"{CARD} is not of format {CARD_FORMAT}; write the adapter again with this version.")
        nested: dict[str, Any] = {
            "base": lambda value: _record(BaseRecord, value, "base"),
            "calibration": lambda value: _record(Calibration, value, "calibration"),
            "conformal": lambda value: _record(Conformal, value, "conformal"),
            "metrics": lambda value: tuple(_record(Metric, item, "metrics") for item in value),
            "data": lambda value: tuple(_record(DataRecord, item, "data") for item in value),
        }
        try:
            card: AdapterCard = _record(cls, {key: nested[key](v) if key in nested else v for key, v in raw.items()}, CARD)
            card._check()
        except TypeError:  # a number where a list belongs, and the like
            raise AdapterRefused(f"{CARD} holds a value of the wrong kind; the adapter has to be written again.") from None
        return card

    def _check(self) -> None:
        count = len(self.labels)
        if not count or len(set(self.labels)) != count or not all(isinstance(label, str) for label in self.labels):
            raise AdapterRefused(f"{CARD} must name its labels, each once.")
        per_label = {
            "thresholds": self.thresholds,
            "calibration.bias": self.calibration.bias,
            "conformal.thresholds": self.conformal.thresholds,
            "conformal.absent": self.conformal.absent,
        }
        if self.calibration.method == "platt":
            per_label["calibration.slope"] = self.calibration.slope
        for name, values in per_label.items():
            if values and len(values) != count:
                raise AdapterRefused(f"{CARD}: {name} has {len(values)} values for {count} labels.")


def read_card(folder: Path) -> AdapterCard:
    """The card alone; nothing else of the folder is looked at."""
    return read_card_with_digest(folder)[0]


def read_card_with_digest(folder: Path) -> tuple[AdapterCard, str]:
    """The card and the folder's content digest, of one reading: they belong together even while a store replaces the folder."""
    path = folder / CARD
    try:  # NOTE: no look beforehand: a store may be replacing the folder at this moment
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise AdapterRefused(f"{CARD} is larger than {_MAX_CARD_BYTES >> 20} MiB; it cannot be a card.")
        content = path.read_bytes()
        card = AdapterCard.from_json(content.decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise AdapterNotFound(f"There is no adapter called {folder.name!r} here: its {CARD} is missing.") from None
    except UnicodeDecodeError:
        raise AdapterRefused(f"{CARD} is not UTF-8 text; the adapter has to be written again.") from None
    return card, hashlib.sha256(content).hexdigest()


def verify_folder(folder: Path) -> AdapterCard:
    """The card, after every file was found, known and equal to its recorded hash."""
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in present if name.endswith(PICKLED)]
    if pickled:
        raise AdapterRefused(f"The adapter holds {', '.join(pickled)}; only safetensors weights are read. Convert it.")
    card = read_card(folder)
    unknown = [name for name in present if name not in KNOWN]
    if unknown:
        raise AdapterRefused(f"The adapter holds files that do not belong there: {', '.join(unknown)}. Remove them.")
    missing = [name for name in REQUIRED if name not in present]
    if missing:
        raise AdapterRefused(f"The adapter lacks {', '.join(missing)}; it is incomplete.")
    if set(card.files) != set(present) - {CARD}:
        odd = sorted(set(card.files) ^ (set(present) - {CARD}))
        raise AdapterRefused(f"{CARD} and the folder disagree about {', '.join(odd)}; the adapter is incomplete.")
    for name, digest in card.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or sha256_of(path) != digest:
            raise AdapterRefused(f"{name} is not the file its card describes (SHA-256 differs); copy the adapter again.")
    return card


def digest_of(folder: Path) -> str:
    """The content digest: the card holds every other file's hash, so the card's own SHA-256 covers the folder."""
    return sha256_of(folder / CARD)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(cls: type[Any], raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise AdapterRefused(f"{where} in {CARD} must be an object.")
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise AdapterRefused(f"{where} has unknown fields: {', '.join(unknown)}.")
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})
    except TypeError:
        raise AdapterRefused(f"{where} lacks a required field of {cls.__name__}.") from None
