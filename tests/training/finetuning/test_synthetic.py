"""Lesions made for training are what they are said to be."""

from __future__ import annotations

import numpy as np
import torch

from foundation.phantom import make_phantom
from training.augment import AugmentStrength, augment, augment_with_masks
from training.finetuning.anomaly.synthetic import FINDINGS, SMALLEST, draw_lesion, lay_over

STILL = AugmentStrength(**dict.fromkeys(AugmentStrength.__dataclass_fields__, 0.0))


def test_a_lesion_is_what_the_finding_changes() -> None:
    for seed, finding in enumerate(FINDINGS):
        lesion = draw_lesion(seed, 96)
        truth = make_phantom(seed, 96, (finding,)).masks[finding]
        assert lesion.finding == finding
        assert lesion.mask.any()
        if finding in ("effusion", "mass", "consolidation"):  # whose masks are what can be seen of them
            assert (lesion.mask & truth).sum() > 0.5 * lesion.mask.sum()


def test_only_the_masked_pixels_of_the_film_change() -> None:
    film = np.random.default_rng(0).integers(60, 200, (96, 96, 3), dtype=np.uint8)
    ill, mask = lay_over(film, draw_lesion(0, 96), np.random.default_rng(1))
    changed = np.abs(ill.astype(int) - film.astype(int)).max(axis=-1)
    assert mask.any()
    assert not mask.all()
    assert np.array_equal(mask, changed >= SMALLEST)
    assert changed[~mask].max() < SMALLEST


def test_masks_move_with_their_films() -> None:
    masks = torch.zeros(3, 2, 48, 48)
    masks[:, 0, 10:30, 8:20] = masks[:, 1, 25:40, 25:40] = 1.0
    moving = AugmentStrength(rotate_degrees=15, zoom=0.3, shift=0.1, **dict.fromkeys(
        ("gamma", "contrast", "brightness", "equalise", "resample", "noise", "border", "erase"), 0.0
    ))  # fmt: skip
    films = masks[:, :1]  # each film shows its first mask
    moved, along = augment_with_masks(films, masks, 48, moving, torch.Generator().manual_seed(3))
    torch.testing.assert_close(moved, along[:, :1], atol=1e-3, rtol=0)
    assert (moved - films).abs().max() > 0.5
    alone = augment(films, 48, moving, torch.Generator().manual_seed(3))
    assert torch.equal(alone, moved)  # the same draws, masks or not
    same, kept = augment_with_masks(films, masks, 48, STILL, torch.Generator().manual_seed(3))
    torch.testing.assert_close(kept, masks, atol=1e-4, rtol=0)
    torch.testing.assert_close(same, films, atol=1e-3, rtol=0)
