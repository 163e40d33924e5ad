"""What a model says about many films: embeddings, zero-shot scores, adapter results. Each film is read and run once.

A film reaches the model through the one `preprocess`, as in serving. Nothing here knows what is true: that is
`questions_of` below, which turns labels into truth, and `sections.py`, which compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.device import autocast_bf16
from foundation.preprocess import InputContract, normalise, render
from foundation.prompts import PromptPair, is_known, is_normal, prompt_pair
from training.manifests.manifest import Row

Film: TypeAlias = npt.NDArray[np.uint8]
"""(S, S, 3) uint8, exactly what the model sees."""
Scores: TypeAlias = npt.NDArray[np.float64]
Truth: TypeAlias = npt.NDArray[np.bool_]


class Backbone(Protocol):
    """What evaluation reads of `foundation.backbone.Backbone`."""

    @property
    def contract(self) -> InputContract: ...
    @property
    def logit_scale(self) -> float: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def image_tower(self) -> torch.nn.Module: ...
    def encode_image(self, pixels: Tensor) -> Any: ...
    def encode_text(self, strings: list[str]) -> Tensor: ...
    def patch_embeddings(self, features: Any) -> Tensor: ...


@dataclass(frozen=True)
class Running:
    """How a model is run: films at a time, device, and whether in bfloat16."""

    batch_size: int = 32
    device: str = "cpu"
    use_bfloat16: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast_bf16(self.device, wanted=self.use_bfloat16)


@dataclass(frozen=True, eq=False)
class Scored:
    """What one model says about N films: a score for each label, (N,), larger meaning more likely.

    is_probability: the scores are calibrated probabilities; thresholds: where the model itself calls a finding.
    """

    by: str
    scores: Mapping[str, Scores]
    is_probability: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, eq=False)
class Question:
    """One label asked of N films: `truth` (N,), and `asked` (N,), False where the label says nothing about a film."""

    label: str
    truth: Truth
    asked: Truth

    @property
    def films(self) -> int:
        return int(self.asked.sum())

    @property
    def positives(self) -> int:
        return int((self.truth & self.asked).sum())


def read_rows(rows: Iterable[Row], contract: InputContract) -> Iterator[Film]:
    """The rows' films one after another, as the model sees them."""
    from foundation.readers import read_film

    for row in rows:
        yield render(read_film(row.image.read_bytes()), contract)


@torch.inference_mode()
def run_films(backbone: Backbone, films: Iterable[Film], running: Running) -> Iterator[Any]:
    """ImageFeatures of one batch after another, in the order of the films."""
    for pixels in batches(backbone, films, running):
        with running.autocast():
            yield backbone.encode_image(pixels)


def batches(backbone: Backbone, films: Iterable[Film], running: Running) -> Iterator[Tensor]:
    """Normalised films (B, 3, S, S) on the device, batch after batch."""
    batch: list[Film] = []
    for film in films:
        batch.append(film)
        if len(batch) == running.batch_size:
            yield _normalised(backbone, batch, running)
            batch = []
    if batch:
        yield _normalised(backbone, batch, running)


def _normalised(backbone: Backbone, batch: Sequence[Film], running: Running) -> Tensor:
    pixels = np.stack([normalise(film, backbone.contract) for film in batch])
    return torch.from_numpy(pixels).to(running.device)


def embed_rows(backbone: Backbone, rows: Sequence[Row], running: Running) -> Tensor:
    """(N, E) float32 unit embeddings, in the order of the rows."""
    films = read_rows(rows, backbone.contract)
    return torch.cat([features.embedding.float().cpu() for features in run_films(backbone, films, running)])


# --- zero-shot -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def directions(backbone: Backbone, pairs: Sequence[PromptPair]) -> Tensor:
    """(K, E): for each pair the mean of its positive sentences less the mean of its negative ones, each of length 1."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (*pair.positive, *pair.negative)))
    embedded = dict(zip(texts, embed_texts(backbone, texts), strict=True))

    def mean(sentences: Sequence[str]) -> Tensor:
        return F.normalize(torch.stack([embedded[text] for text in sentences]).mean(dim=0), dim=0)

    return torch.stack([mean(pair.positive) - mean(pair.negative) for pair in pairs])


@torch.inference_mode()
def embed_texts(backbone: Backbone, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """(len(texts), E) float32 unit embeddings on the CPU."""
    parts = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
    return torch.cat([backbone.encode_text(part).float().cpu() for part in parts])


def zero_shot(backbone: Backbone, embeddings: Tensor, labels: Sequence[str]) -> Scored:
    """Pairwise logits for each label; "normal" is derived: the log probability that none of the findings is present."""
    asked = [label for label in labels if not is_normal(label)]
    logits = backbone.logit_scale * embeddings @ directions(backbone, [prompt_pair(label) for label in asked]).T
    scores = {label: logits[:, k].double().numpy() for k, label in enumerate(asked)}
    scores |= {label: F.logsigmoid(-logits).sum(dim=1).double().numpy() for label in labels if is_normal(label)}
    return Scored("zero-shot", scores)


# --- truth -----------------------------------------------------------------------------------------------------------


def questions_of(rows: Sequence[Row], labels: Sequence[str], min_count: int = 10) -> tuple[Question, ...]:
    """The labels these rows can answer: at least `min_count` films with and without; "normal" where findings are many.

    A label whose prompts are set against another label (bacterial against viral pneumonia) is asked only of films that
    carry one of the two, and only once.
    """
    known = [label for label in labels if not is_normal(label)]
    asked = [question for label in known if (question := _question(rows, label, known)) is not None]
    kept = [one for one in asked if min_count <= one.positives <= one.films - min_count]
    normal = [label for label in labels if is_normal(label)]
    if len(kept) >= 3 and normal:
        kept.insert(0, _question_plain(rows, normal[0]))
    return tuple(kept)


def labels_to_ask(rows: Sequence[Row]) -> tuple[str, ...]:
    """Labels of these rows that have prompts of their own, in order of the alphabet, and `normal`."""
    found = {label for row in rows for label in row.labels}
    return (*sorted(label for label in found if is_known(label)), *sorted(label for label in found if is_normal(label)))


def _question(rows: Sequence[Row], label: str, labels: Sequence[str]) -> Question | None:
    plain = _question_plain(rows, label)
    opposite = prompt_pair(label).against
    if not opposite or opposite not in labels:
        return plain
    if label > opposite:
        return None
    return Question(label, plain.truth, plain.truth | _question_plain(rows, opposite).truth)


def _question_plain(rows: Sequence[Row], label: str) -> Question:
    truth = np.array([label in row.labels for row in rows], dtype=bool)
    return Question(label, truth, np.array([row.is_labelled for row in rows], dtype=bool))
