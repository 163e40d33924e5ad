"""What a training film may look like: nothing moves without strength, left and right stay true, a seed is a film."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from training.augment import AugmentStrength, augment, mirror, mix, to_lower_resolution

NONE = AugmentStrength(**{field.name: 0.0 for field in fields(AugmentStrength)})
NAMES = ("effusion", "effusion left", "effusion right", "tube left", "right")
NAN = float("nan")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def films() -> Tensor:
    return torch.rand(6, 1, 48, 48, generator=generator(1))


def test_no_strength_is_the_identity(films: Tensor) -> None:
    torch.testing.assert_close(augment(films, 48, NONE, generator()), films, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", [field.name for field in fields(AugmentStrength)])
def test_every_strength_alone_moves_some_film_and_stays_in_range(films: Tensor, name: str) -> None:
    value = 30.0 if name == "rotate_degrees" else 1.0 if name in ("equalise", "resample", "border", "erase") else 0.3
    films = films * 0.6 + 0.2
    seen = augment(films, 48, AugmentStrength(**{**{f.name: 0.0 for f in fields(NONE)}, name: value}), generator())
    assert not torch.allclose(seen, films, atol=1e-2)
    assert seen.shape == films.shape
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1


def test_the_same_generator_gives_the_same_films_and_another_gives_others(films: Tensor) -> None:
    before = films.clone()
    first, again, other = (augment(films, 32, AugmentStrength(), generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.05)
    assert first.shape == (6, 1, 32, 32)
    assert torch.equal(films, before)  # what was given is not written to


def test_a_mirrored_film_has_its_sides_exchanged_and_twice_is_as_before(films: Tensor) -> None:
    targets = torch.tensor([[1.0, 1.0, 0.0, NAN, 0.2]]).repeat(6, 1)
    targets[:, 2] = torch.arange(6)
    seen, known = mirror(films, targets, NAMES, 1.0, generator())
    assert torch.equal(seen, films.flip(-1))
    torch.testing.assert_close(known, targets[:, [0, 2, 1, 3, 4]], equal_nan=True, atol=0, rtol=0)
    back, again = mirror(seen, known, NAMES, 1.0, generator())
    assert torch.equal(back, films)
    torch.testing.assert_close(again, targets, equal_nan=True, atol=0, rtol=0)


def test_mirroring_some_films_moves_pixels_and_targets_together(films: Tensor) -> None:
    targets = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]).repeat(6, 1)
    seen, known = mirror(films, targets, NAMES, 0.5, generator(2))
    turned = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(seen, films, strict=True)]
    assert set(turned) == {True, False}
    assert [float(row[2]) == 1.0 for row in known] == turned
    assert torch.equal(mirror(films, targets, NAMES, 0.0, generator())[0], films)


def test_films_are_blended_inside_their_stream_and_their_targets_alike() -> None:
    streams = ["a", "a", "a", "a", "b", "b", "c"]
    values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.8, 0.9, 0.5])
    films = values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    targets = torch.stack([values, values * 0 + 1], 1)
    seen, known = mix(films, targets, streams, 0.3, generator(5))
    torch.testing.assert_close(seen[:, 0, 0, 0], known[:, 0])  # the same share for both
    torch.testing.assert_close(known[:, 1], torch.ones(7))
    assert float(known[:4, 0].max()) <= 0.3  # no grey of another stream
    assert float(known[4:6, 0].min()) >= 0.8
    assert float(known[6, 0]) == 0.5  # alone in its stream
    assert not torch.allclose(known[:, 0], values)
    assert float((known[:, 0] - values).abs().max()) <= 0.15 + 1e-6  # a film keeps the larger share of itself


def test_what_is_unknown_of_either_is_unknown_of_the_blend() -> None:
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    _, known = mix(torch.rand(2, 1, 8, 8), targets, ["a", "a"], 1.0, generator(5))
    assert not torch.equal(known[:, 0], targets[:, 0])  # this generator pairs the two
    assert bool(known[:, 1].isnan().all())
    assert not bool(known[:, 0].isnan().any())


def test_lower_resolution_loses_what_is_fine_and_keeps_the_rest() -> None:
    fine = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    coarse = to_lower_resolution(fine, 16)
    assert coarse.shape == fine.shape
    torch.testing.assert_close(coarse, torch.full_like(fine, 0.5), atol=0.05, rtol=0)
    level = torch.full((1, 1, 64, 64), 0.3)
    torch.testing.assert_close(to_lower_resolution(level, 16), level, atol=1e-5, rtol=0)
