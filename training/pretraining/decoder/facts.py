"""Facts: what is stated of a film, and draws of it as a findings adapter might state it of a film with given labels.

Probabilities, thresholds and the number of findings are drawn as serving states them: low thresholds, many findings just
above them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foundation.lexicon import FINDINGS
from foundation.prompt import FindingState


@dataclass(frozen=True)
class FilmFacts:
    """What is stated of a film; None: not assessed."""

    stated: tuple[FindingState, ...] | None
    has_film: bool = True

    def known(self, name: str) -> FindingState | None:
        """The stated finding; None if it was not assessed."""
        return next((state for state in self.stated or () if state.name == name), None)

    @property
    def present(self) -> list[FindingState]:
        return [state for state in self.stated or () if state.is_present]


def draw_facts(rng: random.Random, labels: Sequence[str]) -> FilmFacts:
    """What a findings adapter might state of a film with these labels: noisy verdicts, places and sizes where known.

    Thresholds are low, as those of calibrated probabilities of rare findings are, so that many findings are present by a
    little. A third of the films states any percentage at all, so that every one of them is met.
    """
    if rng.random() < 0.03:
        return FilmFacts(None)
    names = _assessed(rng)
    false_alarms = rng.choice((0.02, 0.1, 0.3))
    is_even = rng.random() < 0.35
    stated = []
    for name in names:
        is_present = rng.random() < (0.8 if name in labels else false_alarms)
        state = FindingState(name, _probability(rng, is_present, is_even), is_present)
        stated.append(_placed(rng, state) if is_present else state)
    if rng.random() < 0.6:
        stated = stated_order(stated)
    else:
        rng.shuffle(stated)
    return FilmFacts(tuple(stated))


def stated_order(states: Sequence[FindingState]) -> list[FindingState]:
    """As serving states them: what is present first, the most probable first of all."""
    return sorted(states, key=lambda state: (not state.is_present, -state.probability))


def _probability(rng: random.Random, is_present: bool, is_even: bool) -> float:
    if is_even:
        return rng.random()
    threshold = 10 ** rng.uniform(-1.6, -0.4)
    if is_present:
        return threshold + (1 - threshold) * rng.betavariate(1, 2.5)
    return threshold * rng.betavariate(1.2, 1.5)


def _placed(rng: random.Random, state: FindingState) -> FindingState:
    if state.name == "cardiomegaly" or rng.random() < 0.3:
        side = zone = None
    else:
        side = rng.choice(("left", "right", "bilateral")) if rng.random() < 0.9 else None
        zone = rng.choice(("upper", "middle", "lower")) if rng.random() < 0.5 else None
    severity = rng.choice(("small", "moderate", "large")) if rng.random() < 0.1 else None
    return replace(state, side=side, zone=zone, severity=severity)


def _assessed(rng: random.Random) -> list[str]:
    """Mostly all thirteen findings that are scored; now and then fewer, or hernia too."""
    names = [name for name in FINDINGS if name != "hernia" or rng.random() < 0.15]
    if rng.random() < 0.25:
        kept = set(rng.sample(names, rng.randint(3, len(names))))
        names = [name for name in names if name in kept]
    return names
