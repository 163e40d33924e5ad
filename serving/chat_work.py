"""The first step of a chat: the film, its findings and its heat map, before a word is generated.

views   the film, and where reliance is to be measured its blank and its shuffle: each through the base (patch
        tokens, gate) and through the findings adapter (probabilities); all in the batch of everyone else
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.errors import InvalidRequest
from foundation.preprocess import normalise
from foundation.prompt import FindingState, Turn
from foundation.relevance import methods_of, relevance_maps
from serving.evidence import Evidence, HeatMap, asked_finding, blank, heat_map, shuffled, spread_map
from serving.messages import ChatTurn, Film, Request
from serving.prompts import finding_prompts
from serving.residency import Resident
from serving.works import FindingsReader, Seen, Tools, View, film_of
from serving.zero_shot import PromptSet

DENSE = "dense"


@dataclass(frozen=True, eq=False)
class Picture:
    """What the decoder is given of one film: patch tokens (N, D) and the findings read from it."""

    tokens: Tensor
    findings: tuple[FindingState, ...]


@dataclass(frozen=True, eq=False)
class Opening:
    """All a chat needs before its first word. pictures: the film, the blank, the shuffle; empty without a film.

    evidence is None without a film; a film that is not assessed has evidence that says so, and no pictures.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...] = ()
    evidence: Evidence | None = None


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
        method = str(request.options.get("map_method") or DENSE)
        if method not in methods_of(tools.backbone.image_tower):
            known = ", ".join(methods_of(tools.backbone.image_tower))
            raise InvalidRequest(f"'{method}' cannot explain this model; it can be explained by {known}.", param="map_method")
        prompts = PromptSet(tuple(yes for yes, _ in pairs), tuple(no for _, no in pairs))
        film = film_of(request, tools) if request.film is not None else None
        return cls(request, film, reader, prompts, tools)

    @property
    def views(self) -> tuple[View, ...]:
        if self.film is None:
            return ()
        films = (self.film.pixels, blank(self.film.pixels), shuffled(self.film.pixels))
        return tuple(View(film, resident) for film in films for resident in (None, self.reader.resident))

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
        base, adapted = seen.features[0::2], seen.features[1::2]
        read = [self.reader.read(features, self.prompts, seen.texts) for features in adapted]
        pictures = tuple(
            Picture(features.tokens[0], tuple(finding.state() for finding in findings))
            for features, findings in zip(base, read, strict=True)
        )
        label = asked_finding(self.request.turns, read[0])
        wants_all = bool(self.request.options.get("maps"))
        maps = self._heat_maps(seen, self.reader.labels if wants_all else (label,) if label else ())
        heatmap = next((one for one in maps if one.label == label), None)
        return Opening(turns, pictures, Evidence(True, "", read[0], heatmap, maps if wants_all else None))

    def _heat_maps(self, seen: Seen, labels: tuple[str, ...]) -> tuple[HeatMap, ...]:
        """One for each of `labels`: "dense" from the forward that was run anyway, others from one of their own."""
        positives, negatives = self.prompts.vectors(seen.texts)
        assert negatives is not None
        directions = dict(zip(self.reader.labels, positives - negatives, strict=True))
        method = str(self.request.options.get("map_method") or DENSE)
        if method != DENSE and labels:
            assert self.film is not None
            backbone = self.tools.backbone
            pixels = torch.from_numpy(normalise(self.film.pixels, backbone.contract))
            maps = relevance_maps(backbone, pixels, torch.stack([directions[label] for label in labels]), method)
            return tuple(spread_map(label, one, method) for label, one in zip(labels, maps, strict=True))
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
