"""What the decoder is told of a film: places of what is present, and the most probable of it first."""

from __future__ import annotations

import torch

from serving.evidence import Finding, placed, stated

GRID = (4, 4)


def patches_speaking_at(row: int, column: int) -> torch.Tensor:
    """(16, 2) unit vectors that point along (1, 0) at one place and against it everywhere else."""
    patches = torch.tensor([[-0.4, 0.9165]]).repeat(16, 1)
    patches[row * 4 + column] = torch.tensor([0.6, 0.8])
    return patches


def test_only_what_is_present_has_a_place() -> None:
    found = (Finding("effusion", 0.3, 0.2), Finding("mass", 0.1, 0.2), Finding("cardiomegaly", 0.9, 0.2))
    direction = torch.tensor([1.0, 0.0])
    directions = {finding.label: direction for finding in found}
    effusion, mass, heart = placed(found, patches_speaking_at(3, 0), GRID, directions)
    assert (effusion.side, effusion.zone) == ("right", None)
    assert (mass.side, mass.zone) == (None, None)  # below its threshold
    assert heart.side is None
    assert effusion.state().side == "right"


def test_the_decoder_is_told_the_most_probable_finding_first() -> None:
    found = (Finding("mass", 0.5, 0.6), Finding("edema", 0.1, 0.05), Finding("effusion", 0.3, 0.2))
    assert [state.name for state in stated(found)] == ["effusion", "edema", "mass"]
