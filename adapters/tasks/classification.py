"""The classification task: findings in a film, multi-label or multi-class.

    logits (B, K) = embedding (B, E) @ text.T  +  bias               starts as zero-shot with the prompts
                  + per-label attention over the tokens (B, N, D)    starts at zero
                  + linear over the pooled levels (`levels.py`)      starts at zero; heads may be without it

"Normal" is the absence of findings and never a label with a prompt of its own: its probability is the product
of (1 - p_k) over the findings, i.e. that none is present if findings were independent given the film. Findings
come together more often than that, so the product is a low estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.card import AdapterCard, Calibration
from adapters.tasks.heads import bind_head, head_options
from adapters.tasks.levels import LevelReader, pool_levels, pools_in
from adapters.tasks.study import StudyPool, pool_studies
from foundation.errors import AdapterRefused, InvalidRequest
from foundation.look import Look, further_looks

TASK = "classification"
OPTIONAL: Mapping[str, Any] = {
    "level_widths": (), "pools": (), "exclusive": (), "study_hidden": 0, "sizes": (), "size_pools": (),
    "is_mirrored": False,
}  # fmt: skip
NORMAL = "normal"


class HasFeatures(Protocol):
    """What the head reads of `ImageFeatures`."""

    @property
    def embedding(self) -> Tensor: ...  # (B, E), L2-normalised

    @property
    def tokens(self) -> Tensor: ...  # (B, N, D)

    @property
    def levels(self) -> tuple[Tensor, ...]: ...  # each (B, D_l, H_l, W_l)


class EncodesText(Protocol):
    """What text initialisation needs of a backbone."""

    @property
    def logit_scale(self) -> float: ...

    @property
    def logit_bias(self) -> float: ...

    def encode_text(self, texts: list[str]) -> Tensor: ...


class ClassificationHead(nn.Module):
    """Image features to K raw logits; `evidence` says where in the film they come from.

    level_widths: the channels of each level that is read besides; empty reads none. study_hidden: the width of the attention
    over the films of a study; 0 weighs them equally. sizes: at which the levels are read once more each, of the same films
    enlarged (`foundation/enlarge.py`) and seen by the base, without the adapter. A tower knows its own training films too well
    at the size it learnt them at; at another size its features tell what it would make of new ones. size_pools: how the levels
    are pooled at those sizes; empty is as at the film's own. is_mirrored: each pooled level is the mean over the film and its
    mirror image, which the base sees as well.
    looks: what the base has to look at besides, in order; `further` in the calls below are its features at each of them.
    """

    levels: LevelReader | None
    study: StudyPool | None

    def __init__(
        self,
        labels: int,
        embed_dim: int,
        width: int,
        level_widths: Sequence[int] = (),
        pools: Sequence[str] = (),
        study_hidden: int = 0,
        sizes: Sequence[int] = (),
        is_mirrored: bool = False,
        size_pools: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if (sizes or is_mirrored) and not level_widths:
            raise AdapterRefused("A head that reads films at further sizes, or mirrored, must read levels.")
        self.sizes, self.is_mirrored = tuple(int(size) for size in sizes), is_mirrored
        self.looks = further_looks(self.sizes, is_mirrored)
        self.size_pools = tuple(size_pools)
        self.text = nn.Linear(embed_dim, labels)
        self.query = nn.Parameter(torch.zeros(labels, width))
        self.value = nn.Parameter(torch.zeros(labels, width))
        nn.init.zeros_(self.text.weight)
        nn.init.zeros_(self.text.bias)
        further = [pools_in(Look(size), pools, size_pools) for size in self.sizes]
        self.levels = LevelReader(level_widths, pools, labels, further) if level_widths else None
        self.study = StudyPool(embed_dim, study_hidden) if study_hidden else None

    def forward(self, features: HasFeatures, pooled: Tensor | None = None, further: Sequence[HasFeatures] = ()) -> Tensor:
        """(B, K). pooled: what `pool` makes of the levels, (B, F), where the caller has it already."""
        attention, values = self._look(features.tokens)
        logits: Tensor = self.text(features.embedding.float()) + (attention * values).sum(dim=1)
        if self.levels is None:
            return logits
        read: Tensor = self.levels(self.pool(features, further) if pooled is None else pooled)
        return logits + read

    def pool(self, features: HasFeatures, further: Sequence[HasFeatures] = ()) -> Tensor:
        """(B, F): the levels of the film and of each size, pooled, as `levels` reads them."""
        assert self.levels is not None
        if len(further) != len(self.looks):
            raise InvalidRequest(f"This head takes {len(self.looks)} further looks at each film; {len(further)} were given.")
        pooled = [pool_levels(features.levels, self.levels.pools)]
        pooled += [pool_levels(one.levels, self.pools_of(look)) for look, one in zip(self.looks, further, strict=True)]
        return self.join(torch.cat(pooled, dim=1))

    def pools_of(self, look: Look) -> tuple[str, ...]:
        """How the levels are pooled in this look."""
        assert self.levels is not None
        return pools_in(look, self.levels.pools, self.size_pools)

    def join(self, pooled: Tensor) -> Tensor:
        """Pooled levels of the film and of each look, side by side, (B, G) -> as `levels` reads them, (B, F)."""
        if not self.is_mirrored:
            return pooled
        upright, mirrored = pooled.chunk(2, dim=1)
        return (upright + mirrored) / 2

    def of_studies(
        self,
        features: HasFeatures,
        study: Tensor,
        pooled: Tensor | None = None,
        further: Sequence[HasFeatures] = (),
    ) -> Tensor:
        """(number of studies, K): films (B, ...) and which study each is of, (B,), from 0 on; each study has a film."""
        logits = self(features, pooled, further)
        if self.study is None:
            weights = 1.0 / torch.bincount(study)[study].to(logits.dtype)
        else:
            weights = self.study(features.embedding, study)
        return pool_studies(logits, weights, study)

    @property
    def options(self) -> dict[str, Any]:
        """What a card keeps of the head; `open` builds it from that again."""
        sizes: dict[str, Any] = {"embed_dim": self.text.in_features, "width": self.query.shape[1]}
        if self.levels is not None:
            sizes |= {"level_widths": list(self.levels.widths), "pools": list(self.levels.pools)}
        if self.sizes:
            sizes["sizes"] = list(self.sizes)
            if self.size_pools:
                sizes["size_pools"] = list(self.size_pools)
        if self.is_mirrored:
            sizes["is_mirrored"] = True
        if self.study is not None:
            sizes["study_hidden"] = self.study.hidden
        return sizes

    def evidence(self, features: HasFeatures) -> Tensor:
        """(B, N, K): the share of each patch in each label's logit, summing over N to the token part of it."""
        attention, values = self._look(features.tokens)
        return attention * values

    def _look(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = F.layer_norm(tokens.float(), tokens.shape[-1:])  # (B, N, D)
        attention = (x @ self.query.T / math.sqrt(x.shape[-1])).softmax(dim=1)  # (B, N, K)
        return attention, x @ self.value.T

    @torch.no_grad()
    def start_from_text(self, backbone: EncodesText, prompts: Prompts) -> None:
        """Fill the rows so that the untrained head equals zero-shot classification with these prompts.

        Row k = logit_scale * (mean positive embedding - mean negative embedding). Without negatives the bias is
        the backbone's logit_bias (zero for CLIP, learned for SigLIP).
        """
        positive = torch.stack([mean_text(backbone, texts) for texts in prompts.positive])
        weight, bias = positive, backbone.logit_bias
        if prompts.negative:
            weight, bias = positive - torch.stack([mean_text(backbone, texts) for texts in prompts.negative]), 0.0
        self.text.weight.copy_(backbone.logit_scale * weight)
        self.text.bias.fill_(bias)


@dataclass(frozen=True)
class Prompts:
    """For each label the sentences that say it is there and, where given, those that say it is not."""

    positive: tuple[tuple[str, ...], ...]
    negative: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def from_templates(cls, labels: Sequence[str], templates: Sequence[str], negatives: Sequence[str] = ()) -> Prompts:
        for template in (*templates, *negatives):
            if template.count("{}") != 1:
                raise InvalidRequest(
                    f"The template {template!r} must hold '{{}}' once, where the label goes.", param="templates"
                )
        if not templates:
            raise InvalidRequest("At least one template is needed to start the head from text.", param="templates")
        fill = [tuple(tuple(text.format(label) for text in texts) for label in labels) for texts in (templates, negatives)]
        return cls(fill[0], fill[1] if negatives else ())


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """What the task says about one film; all arrays (K,), in the order of `labels`."""

    labels: tuple[str, ...]
    logits: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]  # calibrated
    thresholds: npt.NDArray[np.float64]
    is_multi_label: bool = True
    exclusive: tuple[tuple[int, ...], ...] = ()  # groups of labels of which exactly one holds, among free ones

    @property
    def positive(self) -> tuple[str, ...]:
        """The free labels at or above their threshold, and the most probable one of each choice."""
        is_on = self.probabilities >= self.thresholds
        for columns in self.exclusive if self.is_multi_label else [tuple(range(len(self.labels)))]:
            is_on[list(columns)] = False
            is_on[columns[int(self.probabilities[list(columns)].argmax())]] = True
        return tuple(label for label, is_held in zip(self.labels, is_on, strict=True) if is_held)

    @property
    def normal_probability(self) -> float | None:
        """That no finding is present (see the top of this file); None where there are classes to choose from."""
        return float(np.prod(1.0 - self.probabilities)) if self.is_multi_label and not self.exclusive else None


@dataclass(frozen=True, eq=False)
class Classifier:
    """A head with its card: features in, calibrated results out."""

    card: AdapterCard
    head: ClassificationHead

    @classmethod
    def open(cls, card: AdapterCard, tensors: Mapping[str, Tensor]) -> Classifier:
        """Bind the head's tensors; refused where one is missing, unexpected or of another shape."""
        options = head_options(card, TASK, ("embed_dim", "width"), OPTIONAL)
        _exclusive(card)
        widths, pools = tuple(options.get("level_widths", ())), tuple(options.get("pools", ()))
        sizes = (int(options["embed_dim"]), int(options["width"]))
        hidden, further = int(options.get("study_hidden", 0)), tuple(options.get("sizes", ()))
        is_mirrored = bool(options.get("is_mirrored", False))
        size_pools = tuple(options.get("size_pools", ()))
        head = ClassificationHead(len(card.labels), *sizes, widths, pools, hidden, further, is_mirrored, size_pools)
        return cls(card, bind_head(head, tensors))

    @torch.no_grad()
    def __call__(self, features: HasFeatures, further: Sequence[HasFeatures] = ()) -> list[ClassificationResult]:
        """One result per row of the batch; further: the base's features at each of the head's `looks`."""
        logits = self.head(features, further=further).double().cpu().numpy()
        return [self.result(row) for row in logits]

    @torch.no_grad()
    def of_study(self, features: HasFeatures, further: Sequence[HasFeatures] = ()) -> ClassificationResult:
        """One result for all the films of the batch together: the views of a patient, or the slices of a volume."""
        study = torch.zeros(len(features.embedding), dtype=torch.long, device=features.embedding.device)
        return self.result(self.head.of_studies(features, study, further=further).double().cpu().numpy()[0])

    def result(self, logits: npt.NDArray[np.float64]) -> ClassificationResult:
        card = self.card
        exclusive = _exclusive(card)
        probabilities = calibrate(logits, card.calibration, card.is_multi_label, exclusive)
        thresholds = np.array(card.thresholds or [0.5] * len(card.labels))
        return ClassificationResult(card.labels, logits, probabilities, thresholds, card.is_multi_label, exclusive)


def _exclusive(card: AdapterCard) -> tuple[tuple[int, ...], ...]:
    """The card's groups of classes among free labels; refused where a column does not exist or is named twice."""
    groups = tuple(tuple(columns) for columns in card.head.get("exclusive", ()))
    named = [column for columns in groups for column in columns]
    if len(set(named)) != len(named) or not set(named) <= set(range(len(card.labels))) or not all(groups):
        raise AdapterRefused("The card's groups of classes name a label twice or one that is not there.")
    return groups


def calibrate(
    logits: npt.NDArray[np.float64], how: Calibration, is_multi_label: bool, exclusive: Sequence[Sequence[int]] = ()
) -> npt.NDArray[np.float64]:
    """Raw logits (..., K) to probabilities by the card's calibration.

    Without `is_multi_label` all columns are classes of one choice; `exclusive` names columns that are among free labels.
    """
    scores = logits.astype(np.float64)
    if how.method == "platt":
        scores = scores * np.array(how.slope) + np.array(how.bias)
    elif how.method == "temperature":
        scores = scores * how.slope[0]
    elif how.method != "none":
        raise AdapterRefused(f"The card's calibration {how.method!r} is not known here.")
    probabilities = 0.5 * (1.0 + np.tanh(0.5 * scores))  # the logistic function, without overflow
    for columns in exclusive if is_multi_label else [range(scores.shape[-1])]:
        part = scores[..., list(columns)]
        shifted = np.exp(part - part.max(axis=-1, keepdims=True))
        probabilities[..., list(columns)] = shifted / shifted.sum(axis=-1, keepdims=True)
    return np.asarray(probabilities)


def mean_text(backbone: EncodesText, texts: Sequence[str]) -> Tensor:
    """Mean of the texts' embeddings, brought back to length one: (E,)."""
    return F.normalize(backbone.encode_text(list(texts)).float().mean(dim=0), dim=0)
