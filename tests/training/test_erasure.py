"""A reading that is blind to how films were kept: nothing of it goes with the strata, and it still tells the label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.erasure import fit_erasure
from training.finetuning.classification.strata import strata_of, told_by
from training.level_fit import Blind, LevelFit, Seen, fit_levels
from training.measuring.metrics import auroc

FILMS, FEATURES = 900, 40


def made(seed: int) -> tuple[Seen, list[str], np.ndarray]:
    """Features of which some tell how a film was kept; nearly all of the first label is in sharp films, of the other half."""
    random = np.random.default_rng(seed)
    truth = (random.random((FILMS, 2)) < (0.3, 0.4)).astype(np.float32)
    is_sharp = random.random(FILMS) < np.where(truth[:, 0] > 0, 0.9, 0.1)
    x = random.standard_normal((FILMS, FEATURES)).astype(np.float32)
    x[:, :6] += 1.5 * is_sharp[:, None]
    x[:, 6:12] += 0.35 * truth[:, :1]
    x[:, 12:18] += 0.5 * truth[:, 1:]
    start = random.standard_normal((FILMS, 2)) + 2.0 * is_sharp[:, None] + 0.5 * truth
    return Seen(x, start, truth), np.where(is_sharp, "1024x1024", "128x128").tolist(), is_sharp


def fitted(seen: Seen, blind: Blind | None) -> LevelFit:
    return fit_levels(seen, seen, np.ones(FILMS), (0.05,), (), lambda logits, truth: 0.0, blind)


def ranked(scores: np.ndarray, truth: np.ndarray) -> float:
    return float(auroc(scores, truth > 0.5, np.ones((1, len(scores))))[0])


def test_a_blind_reading_leans_on_nothing_that_tells_the_strata() -> None:
    seen, words, is_sharp = made(0)
    strata = strata_of(words)
    assert told_by(strata, seen.truth) == [0]
    plain, blind = fitted(seen, None), fitted(seen, Blind([0], strata))
    assert abs(np.corrcoef(plain.logits(seen)[:, 0], is_sharp)[0, 1]) > 0.6
    assert abs(np.corrcoef(blind.logits(seen)[:, 0], is_sharp)[0, 1]) < 0.01  # words, features and all
    np.testing.assert_allclose(blind.weight[1], plain.weight[1], atol=2e-3)  # the other label is read as before
    new, _, is_sharp = made(1)
    for among in (is_sharp, ~is_sharp):
        assert ranked(blind.logits(new)[among, 0], new.truth[among, 0]) > 0.6
    assert abs(np.corrcoef(blind.logits(new)[:, 0], is_sharp)[0, 1]) < 0.15


def test_films_of_unknown_strata_are_fitted_but_say_nothing_of_them() -> None:
    seen, words, _ = made(0)
    strata = strata_of([*words[:800], *[""] * 100])
    assert np.isnan(strata[800:]).all()
    x = (seen.features - seen.features.mean(0)) / seen.features.std(0)
    whole, part = fit_erasure(x, seen.start, strata), fit_erasure(x[:800], seen.start[:800], strata[:800])
    np.testing.assert_allclose(whole.told, part.told, rtol=1e-6)


def test_few_films_and_many_are_read_alike() -> None:
    seen, words, _ = made(2)
    x, strata = seen.features, strata_of(words)
    wide = np.concatenate([x, np.zeros((FILMS, FILMS), np.float32)], axis=1)  # more features than films: by the films' products
    narrow, by_films = fit_erasure(x, seen.start, strata), fit_erasure(wide, seen.start, strata)
    np.testing.assert_allclose(by_films.of(wide)[:, :FEATURES], narrow.of(x), atol=1e-4)


@pytest.mark.parametrize("share", [0.002, 0.05])
def test_strata_of_a_film_or_two_are_unknown(share: float) -> None:
    rare = max(1, round(share * 1000))
    strata = strata_of(["128x128"] * (900 - rare) + ["512x512"] * rare + ["1024x1024"] * 100)
    assert strata.shape[1] == (1 if share < 0.01 else 2)
    assert np.isnan(strata).any(axis=1).sum() == (rare if share < 0.01 else 0)
    assert strata[-1].tolist() == ([1.0] if share < 0.01 else [1.0, 0.0])


def test_a_label_known_for_nobody_is_not_told() -> None:
    seen, words, _ = made(0)
    unknown = replace(seen, truth=np.full_like(seen.truth, np.nan))
    assert told_by(strata_of(words), unknown.truth) == []
