"""Marks and lesions made for training are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundation.phantom import make_phantom
from training.augment import AugmentStrength, augment, augment_with_masks
from training.finetuning.anomaly.synthetic import FINDINGS, SMALLEST, draw_lesion, lay_over
from training.finetuning.segmentation.prompted import mark

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


def two_parts() -> np.ndarray:
    masks = np.zeros((2, 40, 40), bool)
    masks[0, 5:15, 5:15] = masks[0, 25:35, 20:35] = True
    masks[1, 27:33, 22:30] = True
    return masks


def test_a_mark_means_whole_parts_under_it() -> None:
    masks, seen = two_parts(), set()
    for seed in range(300):
        marked = mark(masks, np.random.default_rng(seed))
        meant = marked.keep
        assert not (meant & ~masks).any()
        for part in (masks[0] & (np.arange(40)[:, None] < 20), masks[0] & (np.arange(40)[:, None] > 20), masks[1]):
            k = 1 if part.sum() == masks[1].sum() else 0
            assert meant[k][part].all() or not meant[k][part].any()  # never a piece of a part
        inside, box = marked.hints[0] > 0, marked.hints[2] > 0
        assert inside.any() != box.any()
        if inside.any() and meant.any():
            assert (inside & meant.any(axis=0)).any()
        seen.add((bool(meant[0].any()), bool(meant[1].any()), bool(box.any())))
    assert {(True, False, False), (True, True, False), (False, False, False), (True, False, True), (True, True, True)} <= seen


def test_a_mark_on_an_empty_film_means_nothing() -> None:
    for seed in range(20):
        marked = mark(np.zeros((2, 30, 30), bool), np.random.default_rng(seed))
        assert marked.hints[0].any()
        assert not marked.keep.any()


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


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_seed_marks_the_same(seed: int) -> None:
    first, again = (mark(two_parts(), np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first.hints, again.hints)
    assert np.array_equal(first.keep, again.keep)
