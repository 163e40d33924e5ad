"""The gate: films like those of training enter, others do not and are called what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import phantom

from foundation.backbone import Backbone
from foundation.checkpoint import open_checkpoint
from foundation.errors import CheckpointRefused
from foundation.gate import COLOURED, GATE_FILE, OTHER, Gate, Vector, gate_vectors, other_odds, sketch
from foundation.gate_look import LOOK_WIDTH, SIZE, film_looks, is_coloured
from foundation.preprocess import normalise
from foundation.tiny import make_tiny_checkpoint
from training.trust.gate import GateRecipe, altered, film_vectors, fit_distance, fit_gate, grey_films
from training.trust.outside import EMPTY, INVERTED, NOISE, PAGE, TURNED, Films, outside_films

RECIPE = GateRecipe(epochs=40, directions=30, let_through=0.97)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_checkpoint(str(make_tiny_checkpoint(tmp_path_factory.mktemp("gate"), "open_clip"))).backbone


@pytest.fixture(scope="module")
def films() -> Films:
    return np.stack([phantom(seed, 64).film for seed in range(120)])


@pytest.fixture(scope="module")
def kinds(films: Films) -> dict[str, Films]:
    return outside_films(np.concatenate([films[:80], altered(films[:80], 3)]), seed=1, each=80)


@pytest.fixture(scope="module")
def gate(backbone: Backbone, films: Films, kinds: dict[str, Films]) -> Gate:
    inside, held = np.concatenate([films[:80], altered(films[:80], 3)]), films[80:100]
    return fit_gate(inside, film_vectors(backbone, films[:80]), kinds, held, film_vectors(backbone, held), RECIPE)


def share_let_through(gate: Gate, backbone: Backbone, films: Films) -> float:
    return float(np.mean([gate.assess(v, f).assessed for v, f in zip(film_vectors(backbone, films), films, strict=True)]))


def test_films_enter_and_new_pictures_of_known_kinds_do_not(gate: Gate, backbone: Backbone, films: Films) -> None:
    assert share_let_through(gate, backbone, films[100:]) >= 0.85
    for word, made in outside_films(films, seed=9, each=24).items():
        assert share_let_through(gate, backbone, made) <= 0.15, word


def test_a_refused_picture_is_called_what_it_is(gate: Gate, backbone: Backbone, films: Films) -> None:
    made = outside_films(films, seed=9, each=24)
    for word in (TURNED, INVERTED, PAGE, NOISE, EMPTY):
        verdicts = [gate.assess(v, f) for v, f in zip(film_vectors(backbone, made[word]), made[word], strict=True)]
        assert np.mean([verdict.looks_like == word for verdict in verdicts]) > 0.6, word
        assert all((verdict.looks_like == "") == verdict.assessed == (verdict.score <= 1) for verdict in verdicts)


def test_what_the_header_and_the_colours_say_comes_first(gate: Gate, backbone: Backbone, films: Films) -> None:
    vector = film_vectors(backbone, films[:1])[0]
    grey = np.repeat(films[0][..., None], 3, 2)
    assert gate.assess(vector, grey).assessed
    assert gate.assess(vector, grey, "CT").looks_like == "a CT slice"
    red = grey.copy()
    red[..., 1:] //= 3
    assert (gate.assess(vector, red).assessed, gate.assess(vector, red).looks_like) == (False, COLOURED)
    marked = grey.copy()
    marked[:8, :8] = (255, 0, 0)  # a coloured mark does not make a film a colour picture
    assert not is_coloured(marked)


def test_a_film_far_from_training_for_the_tower_alone_is_refused_without_a_name(gate: Gate, films: Films) -> None:
    far = gate.distance.centre + 40 * gate.distance.scale
    verdict = gate.assess(far, films[0])
    assert (verdict.assessed, verdict.looks_like) == (False, OTHER)


def test_the_distance_is_mahalanobis_in_the_sketch() -> None:
    random = np.random.default_rng(0)
    inside = (random.normal(0, 1, (4000, 6)) * (1, 2, 3, 1, 1, 1) + 5).astype(np.float32)
    inside[:, 1] += inside[:, 0]  # a direction repeated
    fitted = fit_distance(inside, 6)
    asked = inside[:5] + np.array([0, 1, 0, 0, 2, 0], np.float32)
    inverse = np.linalg.inv(np.cov(inside.T.astype(float)))
    for vector, found in zip(asked, fitted.squared(asked), strict=True):
        away = vector - inside.mean(0)
        assert found == pytest.approx(away @ inverse @ away, rel=2e-2)


def test_the_sketch_keeps_distances() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(0, 1, (2, 40, 6000)).astype(np.float32)
    true, kept = np.linalg.norm(first - second, axis=1), np.linalg.norm(sketch(first) - sketch(second), axis=1)
    assert np.abs(kept / true - 1).max() < 0.15
    np.testing.assert_allclose(sketch(first + second), sketch(first) + sketch(second), atol=1e-3)


def test_a_gate_is_the_same_after_saving_and_small(gate: Gate, backbone: Backbone, films: Films, tmp_path: Path) -> None:
    assert Gate.load(tmp_path) is None
    gate.save(tmp_path)
    assert (tmp_path / GATE_FILE).stat().st_size < 1 << 20
    again = Gate.load(tmp_path)
    assert again is not None
    assert again.kind_words == gate.kind_words
    for vector, film in zip(film_vectors(backbone, films[:6]), films[:6], strict=True):
        assert again.assess(vector, film).score == pytest.approx(gate.assess(vector, film).score, rel=0.05)


def test_a_file_that_is_no_gate_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"mean": np.zeros(3, np.float32)}, tmp_path / GATE_FILE, metadata={"kind_words": "[]"})
    with pytest.raises(CheckpointRefused, match=r"training\.trust\.fit_gate"):
        Gate.load(tmp_path)


def test_looks_tell_brightness_from_place() -> None:
    film = phantom(0, SIZE).film  # at the size of looks: greys are rounded in no resampling
    looks = film_looks(np.stack([film, 255 - film, np.rot90(film)]))
    assert looks.shape == (3, LOOK_WIDTH)
    thumbnails = looks[:, : 32 * 32]
    np.testing.assert_allclose(thumbnails[0], -thumbnails[1], atol=1e-4)
    np.testing.assert_allclose(np.rot90(thumbnails[0].reshape(32, 32)).ravel(), thumbnails[2], atol=1e-4)


def test_odds_are_of_everything_but_a_film() -> None:
    logits = np.array([[1.0, 2.0, 0.5]], np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert other_odds(logits)[0] == pytest.approx(np.log((1 - p[0]) / p[0]), rel=1e-4)


def test_vectors_are_mean_and_spread_of_every_level(backbone: Backbone) -> None:
    films = np.stack([phantom(seed, 64).film for seed in range(3)])
    found = film_vectors(backbone, films, batch=2)
    pixels = torch.from_numpy(np.stack([normalise(np.repeat(film[..., None], 3, 2), backbone.contract) for film in films]))
    with torch.inference_mode():
        features = backbone.encode_image(pixels)
    expected: list[Vector] = []
    for row in range(3):
        parts = []
        for level in features.levels:
            maps = level[row].reshape(level.shape[1], -1).double().numpy()
            parts += [maps.mean(1), maps.std(1, ddof=1)]
        expected.append(np.concatenate([*parts, features.embedding[row].numpy()]))
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-4)
    np.testing.assert_allclose(found, gate_vectors(features), atol=1e-4)


def test_made_pictures_are_of_the_films_size_and_made_again_alike(films: Films, kinds: dict[str, Films]) -> None:
    assert {word: made.shape[1:] for word, made in kinds.items()} == dict.fromkeys(kinds, (64, 64))
    assert all(made.dtype == np.uint8 for made in kinds.values())
    first, second = (outside_films(films, seed=4, each=4) for _ in range(2))
    assert all(np.array_equal(first[word], second[word]) for word in first)


def test_grey_films_are_the_one_preprocess(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(phantom(0).film).save(tmp_path / "film.png")
    assert np.array_equal(grey_films([tmp_path / "film.png"], 64)[0], phantom(0).film)
