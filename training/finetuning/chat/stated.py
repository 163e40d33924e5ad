"""What the decoder is given of a film in training: patch tokens of the base, and findings as the server states them.

    film -> the base (slot 0) -> patch tokens;  zero-shot findings where there is no findings adapter for this base;
            and where what is present lies (`foundation/places.py`)
         -> the findings adapter (slot 1) -> calibrated probabilities, present from their thresholds on

`serving/chat_work.py` opens a chat with the same values from the same functions; a test holds the two prompts equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.bank import AdapterBank
from adapters.card import CARD
from adapters.files import Adapter, read_adapter
from adapters.store import AdapterStore
from adapters.tasks.chat import StatedBy
from adapters.tasks.classification import Classifier
from foundation.errors import AdapterNotFound
from foundation.lexicon import FINDINGS
from foundation.places import UNKNOWN, place_of
from foundation.preprocess import normalise
from foundation.prompt import FindingState
from foundation.prompts import NEGATIVE_TEMPLATES, POSITIVE_TEMPLATES, terms

if TYPE_CHECKING:
    from foundation.backbone import Backbone, ImageFeatures

_UNSCORED = "hernia"  # too rare to be scored, in serving as here
_BATCH = 16


@dataclass(frozen=True, eq=False)
class SeenFilm:
    """Patch tokens (N, D) and the findings stated of one film; `pixels` of it may be real, blank or shuffled."""

    tokens: Tensor
    findings: tuple[FindingState, ...]


class FilmReader:
    """Owns a bank on the backbone's image tower; `close` gives the tower back as it was."""

    def __init__(self, backbone: Backbone, findings: Adapter | None) -> None:
        self.backbone = backbone
        self.stated_by = StatedBy() if findings is None else StatedBy(findings.card.name, findings.digest)
        self._bank = AdapterBank(backbone)
        self._classifier: Classifier | None = None
        if findings is not None:
            self._slot = self._bank.install(findings.lora)
            self._classifier = Classifier.open(findings.card, findings.head)
            self._classifier.head.to(backbone.device)
            self._labels = self._classifier.card.labels
        else:
            self._labels = tuple(name for name in FINDINGS if name != _UNSCORED)
        self._sentences = self._read_prompts()

    def close(self) -> None:
        self._bank.close()

    def see_films(self, films: Sequence[npt.NDArray[np.uint8]]) -> list[SeenFilm]:
        """films: each (S, S, 3) as the one preprocess renders it."""
        return self.see(torch.from_numpy(np.stack([normalise(film, self.backbone.contract) for film in films])))

    @torch.inference_mode()
    def see(self, pixels: Tensor) -> list[SeenFilm]:
        """pixels (B, 3, S, S), normalised."""
        return [seen for chunk in pixels.split(_BATCH) for seen in self._see(chunk)]

    def _see(self, pixels: Tensor) -> list[SeenFilm]:
        with self._bank.rows([0] * len(pixels)):
            base = self.backbone.encode_image(pixels)
        if self._classifier is None:
            states = [self._zero_shot(row) for row in base.embedding.float()]
        else:
            with self._bank.rows([0] * len(pixels)):
                further = [self.backbone.encode_image(look.of(pixels)) for look in self._classifier.head.looks]
            with self._bank.rows([self._slot] * len(pixels)):
                states = self._adapted(self.backbone.encode_image(pixels), further)
        patches, tokens = self.backbone.patch_embeddings(base).float(), base.tokens.float().cpu()
        return [
            SeenFilm(row, self._placed(told, patch, base.grid))
            for row, told, patch in zip(tokens, states, patches, strict=True)
        ]

    def _placed(self, states: Sequence[FindingState], patches: Tensor, grid: tuple[int, int]) -> tuple[FindingState, ...]:
        """patches (N, E): what is present with its place and first of all, the most probable before the others."""
        positives, negatives = self._sentences
        told = []
        for state, direction in zip(states, positives - negatives, strict=True):
            place = place_of(state.name, (patches @ direction).reshape(grid).cpu().numpy()) if state.is_present else UNKNOWN
            told.append(replace(state, side=place.side, zone=place.zone))
        return tuple(sorted(told, key=lambda state: (not state.is_present, -state.probability)))

    def _adapted(self, features: ImageFeatures, further: Sequence[ImageFeatures]) -> list[tuple[FindingState, ...]]:
        assert self._classifier is not None
        made = []
        for found in self._classifier(features, further):
            rows = zip(found.labels, found.probabilities.tolist(), found.thresholds.tolist(), strict=True)
            made.append(tuple(FindingState(label, chance, chance >= threshold) for label, chance, threshold in rows))
        return made

    def _zero_shot(self, embedding: Tensor) -> tuple[FindingState, ...]:
        """embedding (E,): each finding against its denial; present from one half on."""
        positives, negatives = self._sentences
        scale = self.backbone.logit_scale
        logits = (scale * (positives @ embedding)).double() - (scale * (negatives @ embedding)).double()
        chances = torch.sigmoid(logits).tolist()
        return tuple(FindingState(name, chance, chance >= 0.5) for name, chance in zip(self._labels, chances, strict=True))

    @torch.inference_mode()
    def _read_prompts(self) -> tuple[Tensor, Tensor]:
        """(K, E) each: the mean of the sentences for a finding, and of those against it, of length one."""

        def mean(templates: Sequence[str], name: str) -> Tensor:
            texts = [form.format(terms(name)[0]) for form in templates]
            return F.normalize(self.backbone.encode_text(texts).float().mean(dim=0), dim=0)

        sides = (POSITIVE_TEMPLATES, NEGATIVE_TEMPLATES)
        positives, negatives = (torch.stack([mean(side, name) for name in self._labels]) for side in sides)
        return positives, negatives


def open_findings(name: str, backbone: Backbone, store: AdapterStore | None = None) -> Adapter | None:
    """The findings adapter by folder, or by name in the store; None where there is none of that name for this base."""
    folder = Path(name)
    if name and (folder / CARD).is_file():
        return read_adapter(folder, backbone)
    try:
        stored = (store or AdapterStore.default()).get(name) if name else None
    except AdapterNotFound:
        return None
    if stored is None or stored.card.base.fingerprint != backbone.fingerprint:
        return None
    return read_adapter(stored.folder, backbone)
