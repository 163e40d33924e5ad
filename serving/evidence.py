"""Evidence: what a chat answer rests on. Findings with probabilities, a heat map, and how much the picture mattered.

Reliance asks what would have been said without the picture. The same answer is scored again with a blank film and with
a film whose patches are shuffled, each speaking through all it changes, its patch tokens and its findings:

    reliance = 1 - exp(min(0, m - r))      r: mean log-probability of the answer's tokens given the film
                                           m: the same given the blank or the shuffled film, whichever is larger

0: the answer is as likely without the picture; near 1: without it nobody would have said that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foundation.places import place_of
from foundation.prompt import FindingState
from foundation.questions import interpret_question
from serving.messages import ChatTurn


@dataclass(frozen=True)
class Finding:
    label: str
    probability: float
    threshold: float
    side: str | None = None  # of a finding that is present, where its heat map tells; see foundation/places.py
    zone: str | None = None

    @property
    def is_present(self) -> bool:
        return self.probability >= self.threshold

    def state(self) -> FindingState:
        """As the decoder's prompt takes it; what is not known of it is not stated."""
        return FindingState(self.label, self.probability, self.is_present, self.side, self.zone)


@dataclass(frozen=True)
class HeatMap:
    """grid: h rows of w numbers, 0 to 1, over the film as the model saw it; larger speaks more for `label`.

    low, high: what 0 and 1 stand for; of method "dense" cosine differences, below zero speaking against the finding.
    """

    label: str
    grid: list[list[float]]
    low: float
    high: float
    method: str = "dense"


@dataclass(frozen=True)
class Evidence:
    assessed: bool
    looks_like: str = ""
    findings: tuple[Finding, ...] = ()
    heatmap: HeatMap | None = None
    maps: tuple[HeatMap, ...] | None = None  # one a finding, in their order, where they were asked for
    reliance: float | None = None

    def to_plain(self) -> dict[str, Any]:
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings]}


def asked_finding(turns: tuple[ChatTurn, ...], findings: tuple[Finding, ...]) -> str | None:
    """What the heat map is for: the finding asked about, else the most probable of those present, else nothing."""
    questions = [turn.text for turn in turns if turn.role == "user"]
    intent = interpret_question(questions[-1], questions[:-1]) if questions else None
    known = {finding.label for finding in findings}
    if intent is not None and intent.finding is not None:
        return intent.finding if intent.finding in known else None
    present = [finding for finding in findings if finding.is_present]
    return max(present, key=lambda finding: finding.probability).label if present else None


def stated(findings: Sequence[Finding]) -> tuple[FindingState, ...]:
    """The findings as the decoder is told them: what is present first, the most probable first of all."""
    ordered = sorted(findings, key=lambda finding: (not finding.is_present, -finding.probability))
    return tuple(finding.state() for finding in ordered)


def placed(
    findings: Sequence[Finding], patches: Tensor, grid: tuple[int, int], directions: Mapping[str, Tensor]
) -> list[Finding]:
    """Those present with their places. patches (N, E) of the film on `grid` (h, w); a direction (E,) for each label."""
    found = []
    for finding in findings:
        if finding.is_present:
            place = place_of(finding.label, _likeness(patches, directions[finding.label], grid).cpu().numpy())
            finding = replace(finding, side=place.side, zone=place.zone)
        found.append(finding)
    return found


def heat_map(label: str, patches: Tensor, grid: tuple[int, int], direction: Tensor) -> HeatMap:
    """Each patch's likeness to `direction` (E,), "there is" minus "there is no"; spread to 0..1 over this film.

    patches (N, E) of the film on `grid` (h, w). A film on which all patches are alike gives zeros.
    """
    return spread_map(label, _likeness(patches, direction, grid))


def spread_map(label: str, likeness: Tensor, method: str = "dense") -> HeatMap:
    """likeness (h, w), larger speaking more for `label`, spread to 0..1; a flat one gives zeros."""
    low, high = float(likeness.min()), float(likeness.max())
    spread = (likeness - low) / (high - low) if high - low > 1e-6 else torch.zeros_like(likeness)
    grid = [[round(value, 4) for value in row] for row in spread.tolist()]
    return HeatMap(label, grid, round(low, 6), round(high, 6), method)


def _likeness(patches: Tensor, direction: Tensor, grid: tuple[int, int]) -> Tensor:
    """(h, w): each patch's cosine difference."""
    return (patches @ direction.to(patches)).reshape(grid)


def reliance(with_film: float, without_film: list[float]) -> float:
    """From mean log-probabilities of the answer; see the top of this file."""
    return 1.0 - math.exp(min(0.0, max(without_film) - with_film))
