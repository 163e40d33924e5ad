"""The fit of the levels against scikit-learn's, on made features; unknown truth is left out, words are one more feature."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from training.level_fit import LevelFit, Seen, fit_levels

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((300, 6)).astype(np.float32) * np.array([1, 5, 0.1, 1, 2, 1], np.float32) + 3
LATENT = (X - X.mean(0)) / X.std(0) @ RANDOM.standard_normal((6, 3)) + 0.5 * RANDOM.standard_normal((300, 3))
TRUTH = (LATENT > 0.4).astype(np.float32)
NONE = np.zeros((300, 3))
ONES = np.ones(300)


def fit(
    truth: np.ndarray = TRUTH,
    start: np.ndarray = NONE,
    exclusive: tuple[tuple[int, ...], ...] = (),
    penalties: tuple[float, ...] = (0.01,),
) -> LevelFit:
    films = Seen(X, start, truth)
    return fit_levels(films, films, ONES, penalties, exclusive, lambda logits, held: -float(np.abs(logits).mean()))


def oracle(truth: np.ndarray, keep: np.ndarray) -> LogisticRegression:
    standard = (X - X.mean(0)) / X.std(0)
    return LogisticRegression(C=1 / (0.01 * keep.sum()), tol=1e-8, max_iter=2000).fit(standard[keep], truth[keep])


def test_labels_are_fitted_as_scikit_learn_does() -> None:
    found, everything = fit(), np.ones(300, bool)
    for k in range(3):
        expected = oracle(TRUTH[:, k], everything)
        np.testing.assert_allclose(found.weight[k], expected.coef_[0], atol=5e-3)
        assert found.bias[k] == pytest.approx(expected.intercept_[0], abs=5e-3)


def test_unknown_truth_is_left_out() -> None:
    masked = TRUTH.copy()
    masked[:150, 1] = np.nan
    expected = oracle(TRUTH[:, 1], np.arange(300) >= 150)
    np.testing.assert_allclose(fit(masked).weight[1], expected.coef_[0], atol=5e-3)
    assert np.abs(fit().weight[1] - expected.coef_[0]).max() > 0.02  # the test can tell


def test_classes_are_fitted_as_scikit_learn_does() -> None:
    classes = LATENT.argmax(axis=1)
    found = fit(np.eye(3, dtype=np.float32)[classes], exclusive=((0, 1, 2),))
    expected = oracle(classes, np.ones(300, bool))
    np.testing.assert_allclose(found.weight - found.weight.mean(0), expected.coef_, atol=5e-3)


def test_good_words_are_kept_and_bad_ones_dropped() -> None:
    start = np.stack([LATENT[:, 0] * 3, RANDOM.standard_normal(300), NONE[:, 0]], axis=1)
    found = fit(start=start)
    for k in range(2):
        columns = np.column_stack([(X - X.mean(0)) / X.std(0), start[:, k] / start[:, k].std()])
        expected = LogisticRegression(C=1 / (0.01 * 300), tol=1e-8, max_iter=2000).fit(columns, TRUTH[:, k]).coef_[0]
        np.testing.assert_allclose(found.weight[k], expected[:-1], atol=5e-3)
        assert found.slope[k] * start[:, k].std() == pytest.approx(expected[-1], abs=5e-3)
    assert found.slope[0] * start[:, 0].std() > 3 * abs(found.slope[1])


def test_validation_picks_the_penalty() -> None:
    assert fit(penalties=(0.001, 10.0, 0.1)).penalty == 10.0  # the score prefers small logits
