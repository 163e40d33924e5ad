"""How alike two sentences should be where both make a claim: a finding, present or denied, on a side, in a zone, so severe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.pretraining.text.corpus import NORMAL, Claim, Sentence

_SIDE_CODES = {None: 0, "left": 1, "right": 2, "bilateral": 3}
_ZONE_CODES = {None: 0, "upper": 1, "mid": 2, "lower": 3}
_SEVERITY_CODES = {None: 0, "mild": 1, "moderate": 2, "severe": 3}


def claim_codes(sentences: Sequence[Sentence]) -> Tensor:
    """(N, 5) int: finding (-1 none), present, side, zone, severity."""
    names: dict[str, int] = {NORMAL: 0}
    rows = []
    for sentence in sentences:
        claim = sentence.claim or Claim("", False)
        finding = names.setdefault(claim.finding, len(names)) if sentence.claim else -1
        rows.append(
            (
                finding,
                int(claim.is_present),
                _SIDE_CODES[claim.side],
                _ZONE_CODES[claim.zone],
                _SEVERITY_CODES[claim.severity],
            )
        )
    return torch.tensor(rows)


def claim_similarity(codes: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(target similarities (B, B), where they hold (B, B) bool) for the rows of `claim_codes`; `teacher` is (B, B)."""
    finding, present, side, zone, severity = codes.unbind(1)
    both = (finding[:, None] >= 0) & (finding[None] >= 0)
    same = finding[:, None] == finding[None]
    agree = present[:, None] == present[None]
    positive = (present[:, None] == 1) & agree
    normal = (finding == 0)[:, None] | (finding == 0)[None]

    related = torch.full_like(teacher, 0.94)
    related -= 0.10 * _unlike(side, one_unknown=True) + 0.40 * _opposite_sides(side) + 0.12 * _unlike(side)
    related -= 0.10 * _unlike(zone) + 0.08 * _unlike(severity)
    target = torch.where(same & agree, related, 0.0)
    target = torch.where(~same & positive & ~normal, 0.7 * teacher, target)
    target = torch.where(~same & agree & ~positive, 0.3 + 0.5 * teacher, target)
    target = torch.where(same & ~agree, -0.15, target)
    target = torch.where(~same & ~agree & ~normal, 0.3 * teacher, target)
    absent = (present[:, None] == 0) | (present[None] == 0)
    return torch.where(normal & ~same, torch.where(absent, 0.6, -0.1), target), both


def is_denial(codes: Tensor) -> Tensor:
    """(B, B) bool: one claims the finding that the other denies."""
    finding, present = codes[:, 0], codes[:, 1]
    return (finding[:, None] == finding[None]) & (finding[:, None] >= 0) & (present[:, None] != present[None])


def _unlike(codes: Tensor, *, one_unknown: bool = False) -> Tensor:
    first, second = codes[:, None], codes[None]
    if one_unknown:
        return ((first == 0) != (second == 0)).float()
    return ((first != second) & (first > 0) & (second > 0)).float()


def _opposite_sides(side: Tensor) -> Tensor:
    return ((side[:, None] + side[None] == 3) & (side[:, None] * side[None] == 2)).float()
