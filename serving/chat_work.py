"""The first step of a chat: the film, its findings and its heat map, before a word is generated.

views           the film through the base (patch tokens, gate) and through the findings adapter (probabilities), in the
                batch of everyone else
without_views   its blank and its shuffle, each the same two ways: what reliance is measured against, looked at only
                once the answer is written
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foundation.controls import blank, shuffled
from foundation.errors import InvalidRequest
from foundation.preprocess import normalise
from foundation.prompt import FindingState, Turn
from foundation.relevance import methods_of, relevance_maps
from serving.chat_residency import ChatResident
from serving.evidence import Evidence, HeatMap, asked_finding, heat_map, placed, spread_map, stated
from serving.messages import ChatTurn, Film, Request
from serving.prompts import finding_prompts
from serving.residency import Resident
from serving.wording import plain_words
from serving.works import FindingsReader, Seen, Tools, View, film_of, further_views
from serving.works.findings import findings_reader
from serving.zero_shot import PromptSet

DENSE = "dense"


@dataclass(frozen=True, eq=False)
class Picture:
    """What the decoder is given of one film: patch tokens (N, D) and the findings read from it."""

    tokens: Tensor
    findings: tuple[FindingState, ...]


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
    adapter: ChatResident | None = None


@dataclass(frozen=True, eq=False)
class ChatWork:
    request: Request
    film: Film | None
    reader: FindingsReader
    prompts: PromptSet
    tools: Tools
    adapter: ChatResident | None = None

    @classmethod
    def of(cls, request: Request, tools: Tools, pinned: set[str]) -> ChatWork:
        """pinned: digests of adapters in use, those of chats under way included; added to."""
        adapter = None
        if request.adapter is not None and tools.chats is not None:
            adapter = tools.chats.take(request.adapter, pinned)
            pinned.add(adapter.digest)
        reader = findings_reader(tools, pinned)
        pairs = [finding_prompts(label) for label in reader.labels]
        method = str(request.options.get("map_method") or DENSE)
        if method not in methods_of(tools.backbone.image_tower):
            known = ", ".join(methods_of(tools.backbone.image_tower))
            raise InvalidRequest(f"'{method}' cannot explain this model; it can be explained by {known}.", param="map_method")
        prompts = PromptSet(tuple(yes for yes, _ in pairs), tuple(no for _, no in pairs))
        film = film_of(request, tools) if request.film is not None else None
        return cls(request, film, reader, prompts, tools, adapter)

    @property
    def views(self) -> tuple[View, ...]:
        return () if self.film is None else self._ways(self.film.pixels)

    @property
    def without_views(self) -> tuple[View, ...]:
        if self.film is None:
            return ()
        return (*self._ways(blank(self.film.pixels)), *self._ways(shuffled(self.film.pixels)))

    def _ways(self, pixels: npt.NDArray[np.uint8]) -> tuple[View, ...]:
        """By the base, through the findings adapter, and by the base in the looks that the findings are read from besides."""
        return (View(pixels), View(pixels, self.reader.resident), *further_views(pixels, self.reader.looks))

    @property
    def texts(self) -> tuple[str, ...]:
        return self.prompts.texts if self.film is not None else ()

    @property
    def resident(self) -> Resident | ChatResident | None:
        """Whose adapter the answer rests on: the chat's own, else the findings'."""
        return self.adapter or (self.reader.resident if self.film is not None else None)

    def open(self, seen: Seen) -> Opening:
        return replace(self._open(seen), adapter=self.adapter)

    def _open(self, seen: Seen) -> Opening:
        turns = plain_turns(self.request.turns)
        if self.film is None:
            return Opening(turns)
        verdict = self.tools.verdict(seen.features[0], self.film)
        if not verdict.assessed:
            return Opening(turns, evidence=Evidence(False, verdict.looks_like))
        directions = self._directions(seen)
        patches = self.tools.backbone.patch_embeddings(seen.features[0])[0].float()
        found = self.reader.read(seen.features[1], seen.features[2:], self.prompts, seen.texts)
        findings = tuple(placed(found, patches, seen.features[0].grid, directions))
        label = asked_finding(self.request.turns, findings)
        wants_all = bool(self.request.options.get("maps"))
        shown = self.reader.labels if wants_all else (label,) if label else ()
        maps = self._heat_maps(patches, seen.features[0].grid, {label: directions[label] for label in shown})
        heatmap = next((one for one in maps if one.label == label), None)
        evidence = Evidence(True, "", findings, heatmap, maps if wants_all else None)
        return Opening(turns, Picture(seen.features[0].tokens[0], stated(findings)), evidence)

    def pictures(self, seen: Seen) -> tuple[Picture, ...]:
        """What the decoder is given of each film in `seen`, whose features come film by film, in the order of `_ways`."""
        directions = self._directions(seen)
        pictures = []
        ways = 2 + len(self.reader.looks)
        for start in range(0, len(seen.features), ways):
            base, adapted, *further = seen.features[start : start + ways]
            patches = self.tools.backbone.patch_embeddings(base)[0].float()
            found = self.reader.read(adapted, further, self.prompts, seen.texts)
            pictures.append(Picture(base.tokens[0], stated(placed(found, patches, base.grid, directions))))
        return tuple(pictures)

    def _heat_maps(self, patches: Tensor, grid: tuple[int, int], directions: dict[str, Tensor]) -> tuple[HeatMap, ...]:
        """One for each label of `directions`: "dense" from the forward that was run anyway, others from one of their own."""
        method = str(self.request.options.get("map_method") or DENSE)
        if method != DENSE and directions:
            assert self.film is not None
            backbone = self.tools.backbone
            pixels = torch.from_numpy(normalise(self.film.pixels, backbone.contract))
            maps = relevance_maps(backbone, pixels, torch.stack(list(directions.values())), method)
            return tuple(spread_map(label, one, method) for label, one in zip(directions, maps, strict=True))
        return tuple(heat_map(label, patches, grid, direction) for label, direction in directions.items())

    def _directions(self, seen: Seen) -> dict[str, Tensor]:
        """For each label "there is" minus "there is no", (E,)."""
        positives, negatives = self.prompts.vectors(seen.texts)
        assert negatives is not None
        return dict(zip(self.reader.labels, positives - negatives, strict=True))


def plain_turns(turns: tuple[ChatTurn, ...]) -> tuple[Turn, ...]:
    """As the decoder takes them: no system turn, which it was not trained to heed, its own words, speakers that alternate."""
    kept: list[Turn] = []
    for turn in turns:
        if turn.role == "system" or (turn.role == "assistant" and not kept):
            continue
        text = plain_words(turn.text) if turn.role == "assistant" else turn.text
        if kept and kept[-1].role == turn.role:
            kept[-1] = Turn(turn.role, f"{kept[-1].text}\n{text}")
        else:
            kept.append(Turn(turn.role, text))
    return tuple(kept)
