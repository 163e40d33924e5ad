"""What a phantom can show: the findings, where and how large each may be, and how a random patient gets them.

Knows nothing of pixels (see `lesions.py`) nor of sentences (see `words.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foundation.errors import InvalidRequest

SIDES = ("left", "right", "bilateral")
ZONES = ("upper", "middle", "lower")
SEVERITIES = ("small", "moderate", "large")


@dataclass(frozen=True)
class PhantomFinding:
    """One finding; "" means "let the seed choose" in a request and "does not apply" in a phantom.

    side is the patient's: right is on the left of the picture. A venous line's side is where it enters.
    """

    name: str
    side: str = ""
    zone: str = ""
    severity: str = ""


@dataclass(frozen=True)
class Rule:
    """Which sides, zones and severities a finding can take; an empty tuple means that the property does not apply."""

    sides: tuple[str, ...]
    zones: tuple[str, ...]
    severities: tuple[str, ...] = SEVERITIES
    frequency: float = 1.0
    parenchymal: bool = False


RULES: dict[str, Rule] = {
    "effusion": Rule(SIDES, (), frequency=1.3),
    "pneumothorax": Rule(("left", "right"), ()),
    "nodule": Rule(("left", "right"), ZONES, parenchymal=True),
    "mass": Rule(("left", "right"), ZONES, frequency=0.8, parenchymal=True),
    "consolidation": Rule(SIDES, ZONES, parenchymal=True),
    "cardiomegaly": Rule((), ()),
    "edema": Rule(("bilateral",), (), frequency=0.8),
    "atelectasis": Rule(("left", "right"), ("middle", "lower"), parenchymal=True),
    "tube": Rule((), (), (), frequency=0.7),  # an endotracheal tube
    "line": Rule(("left", "right"), (), (), frequency=0.7),  # a central venous catheter
}
FINDINGS: tuple[str, ...] = tuple(RULES)

NORMAL_SHARE = 0.27
_COUNTS = (1, 2, 3)
_COUNT_SHARES = (0.5, 0.33, 0.17)


def draw_findings(rng: np.random.Generator) -> tuple[PhantomFinding, ...]:
    """A random patient's findings: none in about a quarter, otherwise one to three that can be seen together."""
    if rng.random() < NORMAL_SHARE:
        return ()
    weights = np.array([rule.frequency for rule in RULES.values()])
    count = int(rng.choice(_COUNTS, p=_COUNT_SHARES))
    names = rng.choice(FINDINGS, size=count, replace=False, p=weights / weights.sum())
    return complete_findings([str(name) for name in names], rng)


def complete_findings(requested: Sequence[str | PhantomFinding], rng: np.random.Generator) -> tuple[PhantomFinding, ...]:
    """Fill what was left open, in the order of `FINDINGS`, so that no drawn finding is hidden by another."""
    wanted = [_checked(PhantomFinding(item) if isinstance(item, str) else item) for item in requested]
    names = [finding.name for finding in wanted]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f'Finding "{name}" was given twice; ask for it once, or with side "bilateral".')
    done: list[PhantomFinding] = []
    for finding in sorted(wanted, key=lambda one: FINDINGS.index(one.name)):
        done.append(_complete(finding, done, rng))
    return tuple(done)


def _checked(finding: PhantomFinding) -> PhantomFinding:
    rule = RULES.get(finding.name)
    if rule is None:
        known = ", ".join(FINDINGS)
        raise InvalidRequest(f'Unknown finding "{finding.name}"; known findings are: {known}.', param="findings")
    options = {"side": rule.sides, "zone": rule.zones, "severity": rule.severities}
    for field, allowed in options.items():
        value = getattr(finding, field)
        if value and value not in allowed:
            choice = f"choose one of {', '.join(allowed)}" if allowed else "leave it empty"
            raise InvalidRequest(f'{field} "{value}" does not apply to {finding.name}; {choice}.', param=field)
    return finding


def _complete(finding: PhantomFinding, earlier: Sequence[PhantomFinding], rng: np.random.Generator) -> PhantomFinding:
    rule = RULES[finding.name]
    sides = [side for side in rule.sides if side != "bilateral"] or list(rule.sides)
    zones = list(rule.zones)
    coin, share = rng.random(), rng.random(3)
    if rule.parenchymal:
        sides = [side for side in sides if not _occupied(side, "pneumothorax", earlier)] or sides
        sides = [side for side in sides if not _occupied(side, "effusion", earlier)] or sides
        if any(one.name == "effusion" and one.side in (*sides, "bilateral") for one in earlier):
            zones = zones[:1]
    side = _pick(sides, share[0])
    if "bilateral" in rule.sides and (coin < 0.25 and len(sides) == 2):
        side = "bilateral"
    zone = _pick(zones, share[1])
    severities = list(rule.severities)
    if finding.name == "effusion" and side == "bilateral":
        severities = severities[:2]
    return replace(
        finding,
        side=finding.side or side,
        zone=finding.zone or zone,
        severity=finding.severity or _pick(severities, share[2]),
    )


def _occupied(side: str, name: str, earlier: Sequence[PhantomFinding]) -> bool:
    return any(one.name == name and one.side in (side, "bilateral") for one in earlier)


def _pick(options: Sequence[str], share: float) -> str:
    return options[int(share * len(options))] if options else ""
