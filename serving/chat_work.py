"""The first step of a chat: the film, its findings and its heat map, before a word is generated.

views           the film through the base (patch tokens, gate) and through the findings adapter (probabilities), in the
                batch of everyone else
without_views   its blank and its shuffle, each the same two ways: what reliance is measured against, looked at only
                once the answer is written
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from foundation.prompt import FindingState, Turn
from serving.evidence import Evidence, HeatMap, asked_finding, blank, heat_map, shuffled
from serving.messages import ChatTurn, Film, Request
from serving.prompts import finding_prompts
from serving.residency import Resident
from serving.works import FindingsReader, Seen, Tools, View, film_of
from serving.zero_shot import PromptSet


@dataclass(frozen=True, eq=False)
class Picture:
    """What the decoder is given of one film: patch tokens (N, D) and the findings read from it."""

    tokens: Tensor
    findings: tuple[FindingState, ...]


class DecoderAdapter(Protocol):
    """An adapter on the decoder: its slot in the bank, and the digest of the files it came from."""

    @property
    def slot(self) -> int: ...

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Opening:
    """All a chat needs before its first word.

    evidence is None without a film; a film that is not assessed has evidence that says so, and no picture.
    without: gives the blank and the shuffled film, once they are needed; called with whether anything may be kept of them.
    adapter: whose LoRA the decoder answers through; None for the decoder itself.
    """

    turns: tuple[Turn, ...]
    picture: Picture | None = None
    evidence: Evidence | None = None
    without: Callable[[bool], tuple[Picture, ...]] | None = None
    adapter: DecoderAdapter | None = None


@dataclass(frozen=True, eq=False)
class ChatWork:
    request: Request
    film: Film | None
    reader: FindingsReader
    prompts: PromptSet
    tools: Tools

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> ChatWork:
        reader = tools.findings(pinned)
        pairs = [finding_prompts(label) for label in reader.labels]
        prompts = PromptSet(tuple(yes for yes, _ in pairs), tuple(no for _, no in pairs))
        film = film_of(request, tools) if request.film is not None else None
        return cls(request, film, reader, prompts, tools)

    @property
    def views(self) -> tuple[View, ...]:
        return () if self.film is None else self._both_ways(self.film.pixels)

    @property
    def without_views(self) -> tuple[View, ...]:
        if self.film is None:
            return ()
        return (*self._both_ways(blank(self.film.pixels)), *self._both_ways(shuffled(self.film.pixels)))

    def _both_ways(self, pixels: npt.NDArray[np.uint8]) -> tuple[View, ...]:
        return (View(pixels), View(pixels, self.reader.resident))

    @property
    def texts(self) -> tuple[str, ...]:
        return self.prompts.texts if self.film is not None else ()

    @property
    def resident(self) -> Resident | None:
        return self.reader.resident if self.film is not None else None

    def open(self, seen: Seen) -> Opening:
        turns = plain_turns(self.request.turns)
        if self.film is None:
            return Opening(turns)
        verdict = self.tools.verdict(seen.features[0], self.film)
        if not verdict.assessed:
            return Opening(turns, evidence=Evidence(False, verdict.looks_like))
        findings = self.reader.read(seen.features[1], self.prompts, seen.texts)
        label = asked_finding(self.request.turns, findings)
        wants_all = bool(self.request.options.get("maps"))
        maps = self._heat_maps(seen, self.reader.labels if wants_all else (label,) if label else ())
        heatmap = next((one for one in maps if one.label == label), None)
        evidence = Evidence(True, "", findings, heatmap, maps if wants_all else None)
        return Opening(turns, self.pictures(seen)[0], evidence)

    def pictures(self, seen: Seen) -> tuple[Picture, ...]:
        """What the decoder is given of each film in `seen`, whose features come in pairs: base, adapter."""
        base, adapted = seen.features[0::2], seen.features[1::2]
        read = [self.reader.read(features, self.prompts, seen.texts) for features in adapted]
        return tuple(
            Picture(features.tokens[0], tuple(finding.state() for finding in findings))
            for features, findings in zip(base, read, strict=True)
        )

    def _heat_maps(self, seen: Seen, labels: tuple[str, ...]) -> tuple[HeatMap, ...]:
        """One for each of `labels`, all from the forward that was run anyway."""
        positives, negatives = self.prompts.vectors(seen.texts)
        assert negatives is not None
        directions = dict(zip(self.reader.labels, positives - negatives, strict=True))
        return tuple(heat_map(self.tools.backbone, seen.features[0], label, directions[label]) for label in labels)


def plain_turns(turns: tuple[ChatTurn, ...]) -> tuple[Turn, ...]:
    """As the decoder takes them: no system turn, which it was not trained to heed, and speakers that alternate."""
    kept: list[Turn] = []
    for turn in turns:
        if turn.role == "system" or (turn.role == "assistant" and not kept):
            continue
        if kept and kept[-1].role == turn.role:
            kept[-1] = Turn(turn.role, f"{kept[-1].text}\n{turn.text}")
        else:
            kept.append(Turn(turn.role, turn.text))
    return tuple(kept)
