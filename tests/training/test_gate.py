"""The gate: films like those of training enter, others do not and are called what they resemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import phantom

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.gate import Gate, Vector, gate_vectors
from foundation.preprocess import normalise
from foundation.tiny import make_tiny_checkpoint
from training.gate import film_vectors, fit_gate, grey_films, outside_films, rates


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_checkpoint(str(make_tiny_checkpoint(tmp_path_factory.mktemp("gate"), "open_clip"))).backbone


def cloud(count: int, seed: int, shift: float = 0.0) -> Vector:
    """Vectors in which the second direction repeats the first, so that breaking the repetition is unheard of."""
    random = np.random.default_rng(seed)
    first = random.normal(0, 2, count)
    rest = random.normal(0, 1, (count, 3))
    repeated = first + random.normal(0, 0.05, count) + shift
    return np.column_stack([first, repeated, rest]).astype(np.float32) + 5


KINDS = {"shifted up": cloud(50, 3, 3.0), "shifted down": cloud(50, 4, -3.0)}


@pytest.fixture(scope="module")
def gate() -> Gate:
    return fit_gate(cloud(2000, 0), cloud(1000, 1), KINDS, let_through=0.95)


def test_the_limit_lets_the_asked_share_of_held_out_films_in(gate: Gate) -> None:
    shares = rates(gate, {"held out": cloud(1000, 1), "new": cloud(2000, 2), **KINDS})
    assert shares["held out"] == pytest.approx(0.95, abs=0.002)
    assert shares["new"] == pytest.approx(0.95, abs=0.02)
    assert shares["shifted up"] == shares["shifted down"] == 0.0


def test_distance_is_mahalanobis(gate: Gate) -> None:
    inside, asked = cloud(2000, 0).astype(float), cloud(5, 9, 0.5)
    inverse = np.linalg.inv(np.cov(inside.T))
    for vector in asked:
        away = vector - inside.mean(0)
        assert gate.assess(vector).score == pytest.approx(away @ inverse @ away / gate.limit, rel=1e-2)


def test_an_outside_film_is_called_what_it_resembles(gate: Gate) -> None:
    for word, seed, shift in (("shifted up", 20, 4.0), ("shifted down", 21, -4.0)):
        for vector in cloud(10, seed, shift):
            verdict = gate.assess(vector)
            assert (verdict.assessed, verdict.looks_like) == (False, word)
    inside = gate.assess(cloud(2000, 0).mean(0))
    assert (inside.assessed, inside.looks_like) == (True, "")
    assert gate.assess(cloud(2000, 0).mean(0), "CT").looks_like == "a CT slice"


def test_a_gate_is_the_same_after_saving(gate: Gate, tmp_path: Path) -> None:
    assert Gate.load(tmp_path) is None
    gate.save(tmp_path)
    again = Gate.load(tmp_path)
    assert again is not None
    assert again.kind_words == gate.kind_words
    for vector in [*cloud(5, 6), *cloud(5, 7, 3.0)]:
        assert again.assess(vector).score == pytest.approx(gate.assess(vector).score, rel=0.02)  # whitening in float16
        assert again.assess(vector).looks_like == gate.assess(vector).looks_like


def test_vectors_are_mean_and_spread_of_every_level(backbone: Backbone) -> None:
    films = np.stack([phantom(seed, 64).film for seed in range(3)])
    found = film_vectors(backbone, films, batch=2)
    pixels = torch.from_numpy(np.stack([normalise(np.repeat(film[..., None], 3, 2), backbone.contract) for film in films]))
    with torch.inference_mode():
        features = backbone.encode_image(pixels)
    expected = []
    for row in range(3):
        parts = []
        for level in features.levels:
            maps = level[row].reshape(level.shape[1], -1).double().numpy()
            parts += [maps.mean(1), maps.std(1, ddof=1)]
        expected.append(np.concatenate([*parts, features.embedding[row].numpy()]))
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-4)
    np.testing.assert_allclose(found, gate_vectors(features), atol=1e-4)


def test_pictures_that_are_no_chest_film_are_kept_out_by_a_tower(backbone: Backbone) -> None:
    films = np.stack([phantom(seed, 64).film for seed in range(90)])
    kinds = outside_films(films, seed=1)
    assert {word: made.shape[1:] for word, made in kinds.items()} == dict.fromkeys(kinds, (64, 64))
    assert all(made.dtype == np.uint8 for made in kinds.values())
    again = outside_films(films, seed=1)
    assert all(np.array_equal(kinds[word], again[word]) for word in kinds)
    vectors = {word: film_vectors(backbone, made) for word, made in kinds.items()}
    fitted = fit_gate(film_vectors(backbone, films[:60]), film_vectors(backbone, films[60:]), vectors, directions=30)
    shares = rates(fitted, {**vectors, "films": film_vectors(backbone, films[60:])})
    assert shares["films"] > 0.9
    for word in ("noise", "an empty picture", "a page of text"):
        assert shares[word] < 0.1, word


def test_grey_films_are_the_one_preprocess(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(phantom(0).film).save(tmp_path / "film.png")
    assert np.array_equal(grey_films([tmp_path / "film.png"], 64)[0], phantom(0).film)
