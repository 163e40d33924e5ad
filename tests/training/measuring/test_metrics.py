"""Figures of merit against scikit-learn, and the weighted bootstrap against resampling rows by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as reference

from training.measuring.metrics import (
    Estimate,
    PatientBootstrap,
    auroc,
    average_precision,
    brier,
    calibration_error,
    difference,
    distinct,
    image_ranks,
    interval,
    mean_over,
    reliability,
    sensitivity,
    specificity,
    text_ranks,
    weighted_mean,
)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("levels", [5, 10_000])  # 5: nearly every score is tied
def test_ranking_figures_equal_sklearn(random: np.random.Generator, levels: int) -> None:
    for _ in range(5):
        truth = random.random(200) < 0.2
        scores = random.integers(levels, size=200) + truth * levels * 0.3
        weight = random.integers(0, 4, size=200).astype(float)
        assert auroc(scores, truth)[0] == pytest.approx(reference.roc_auc_score(truth, scores))
        assert average_precision(scores, truth)[0] == pytest.approx(reference.average_precision_score(truth, scores))
        expected = reference.roc_auc_score(truth, scores, sample_weight=weight)
        assert auroc(scores, truth, weight[None])[0] == pytest.approx(expected)
        expected = reference.average_precision_score(truth, scores, sample_weight=weight)
        assert average_precision(scores, truth, weight[None])[0] == pytest.approx(expected)


def test_single_class_is_undefined_not_a_number_made_up() -> None:
    assert np.isnan(auroc([0.1, 0.2], [True, True])[0])
    assert np.isnan(auroc([0.1, 0.2], [False, False])[0])
    assert np.isnan(average_precision([0.1, 0.2], [False, False])[0])
    assert str(Estimate(float("nan"))) == "n/a"


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        auroc([0.1, float("nan")], [True, False])
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        calibration_error([1.2], [True])


def test_weights_are_the_same_as_repeated_rows(random: np.random.Generator) -> None:
    truth, scores = random.random(60) < 0.4, random.random(60).round(1)
    weight = random.integers(0, 3, size=60)
    rows = np.repeat(np.arange(60), weight)
    for statistic in (auroc, average_precision, brier, calibration_error, sensitivity, specificity):
        by_hand = statistic(scores[rows], truth[rows])[0]
        assert statistic(scores, truth, weight[None].astype(float))[0] == pytest.approx(by_hand), statistic


def test_bootstrap_draws_whole_patients(random: np.random.Generator) -> None:
    patients = ["a", "a", "b", "c", "c", "c"]
    seen = []
    PatientBootstrap(patients, 50, seed=1).samples(lambda weights: seen.append(weights) or weights.sum(axis=1))
    weights = np.concatenate(seen)
    assert weights.shape == (50, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()  # three patients drawn from three


def test_interval_covers_the_truth_about_as_often_as_it_says(random: np.random.Generator) -> None:
    truth_value, hits = 0.3, 0
    for trial in range(60):
        values = random.random(150) < truth_value
        draws = PatientBootstrap([str(i) for i in range(150)], 300, seed=trial)
        found = draws.estimate(lambda weights, values=values: weighted_mean(values, weights))
        hits += found.low <= truth_value <= found.high
    assert 0.85 <= hits / 60 <= 1.0


def test_clustered_rows_widen_the_interval(random: np.random.Generator) -> None:
    values = np.repeat(random.random(40) < 0.5, 10)

    def width(patients: list[str]) -> float:
        found = PatientBootstrap(patients, 400, seed=0).estimate(lambda weights: weighted_mean(values, weights))
        return found.high - found.low

    assert width([str(i // 10) for i in range(400)]) > 2 * width([str(i) for i in range(400)])


def test_same_seed_same_interval_and_differences_are_paired(random: np.random.Generator) -> None:
    truth = random.random(300) < 0.3
    good, bad = truth + random.normal(size=300), random.normal(size=300)
    draws = PatientBootstrap([str(i // 2) for i in range(300)], 200, seed=7)
    first, second = (lambda weights, s=s: auroc(s, truth, weights) for s in (good, bad))
    assert draws.estimate(first) == draws.estimate(first)
    gap = draws.estimate(difference(first, second))
    assert gap.value == pytest.approx(draws.estimate(first).value - draws.estimate(second).value)
    assert draws.estimate(difference(first, first)) == Estimate(0.0, 0.0, 0.0)
    assert gap.low > 0.0


def test_mean_leaves_out_what_a_resample_does_not_define() -> None:
    def undefined(weights: np.ndarray) -> np.ndarray:
        return np.full(len(weights), np.nan)

    def half(weights: np.ndarray) -> np.ndarray:
        return np.full(len(weights), 0.5)

    assert mean_over([undefined, half])(np.ones((2, 3))).tolist() == [0.5, 0.5]
    assert np.isnan(mean_over([undefined])(np.ones((1, 3)))[0])
    assert np.isnan(interval(0.5, np.array([np.nan, np.nan, 0.4])).low)  # mostly undefined: no interval claimed


def test_calibration_of_known_bins() -> None:
    probabilities, truth = [0.05, 0.05, 0.95, 0.95], [False, False, True, False]
    assert calibration_error(probabilities, truth)[0] == pytest.approx((0.05 + 0.45) / 2)
    assert brier(probabilities, truth)[0] == pytest.approx(reference.brier_score_loss(truth, probabilities))
    curve = reliability(probabilities, truth)
    assert curve.predicted.tolist() == pytest.approx([0.05, 0.95])
    assert curve.observed.tolist() == pytest.approx([0.0, 0.5])
    assert curve.films.tolist() == [2, 2]
    assert calibration_error([1.0, 0.0], [True, False])[0] == 0.0


def test_retrieval_scores_equal_text_as_one_target() -> None:
    texts = ["normal", "normal", "left PTB"]
    assert distinct(texts) == ["normal", "left PTB"]
    similarity = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])  # images x distinct texts
    assert text_ranks(similarity, texts).tolist() == [1, 2, 1]
    assert image_ranks(similarity, texts).tolist() == [1, 2]  # "left PTB": the second image beats its own
    assert text_ranks(np.zeros((3, 2)), texts).tolist() == [2, 2, 2]  # saying the same of everything finds nothing


def test_a_thousand_resamples_of_a_thousand_rows_and_fourteen_labels_take_seconds(random: np.random.Generator) -> None:
    truth, scores = random.random((1000, 14)) < 0.1, random.random((1000, 14))
    draws = PatientBootstrap([str(i // 3) for i in range(1000)], 1000)
    start = time.process_time()
    found = [draws.estimate(lambda w, k=k: auroc(scores[:, k], truth[:, k], w)) for k in range(14)]
    assert time.process_time() - start < 10
    assert all(one.low < one.value < one.high for one in found)
