"""Conformal sets: coverage as stated, patients counted, and nothing ruled out that too few patients cannot rule out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adapters.card import AdapterCard, BaseRecord, Conformal
from adapters.conformal import conformal_sets
from foundation.errors import AdapterRefused
from training.trust.conformal import coverage_of, fit_conformal, least_patients, set_words
from training.trust.trust_metrics import Judged, trust_metrics

LABELS = ("common", "rare")


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities that are right but for noise; up to six films a patient, alike among themselves."""
    random = np.random.default_rng(seed)
    films: list[tuple[float, ...]] = []
    patients: list[str] = []
    while len(films) < count:
        base = random.normal((0.0, -2.5), 1.5)
        present = random.random(2) < 1 / (1 + np.exp(-base))
        name = f"patient {len(films)}"
        for _ in range(int(random.integers(1, 7))):
            patients.append(name)
            films.append((*(1 / (1 + np.exp(-(base + random.normal(0, 0.2, 2))))), *present))
    table = np.array(films)
    return table[:, :2], table[:, 2:].astype(np.float32), patients


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_each_truth_of_each_label_is_covered_as_stated(coverage: float) -> None:
    p, truth, patients = split(30_000, 0)
    fitted = fit_conformal(p, truth, patients, "val", coverage=coverage)
    new, new_truth, _ = split(30_000, 1)
    words = set_words(fitted, new)
    for k in range(2):
        for held in (True, False):
            found = coverage_of(words, new_truth, k, held)(np.ones((1, len(new))))[0]
            assert found == pytest.approx(coverage, abs=0.03), (LABELS[k], held)


def test_few_and_clustered_positives_are_covered_as_stated_and_hardly_more() -> None:
    """Twelve patients of up to six films, much alike: on average not below the coverage, and not far above."""
    random, found = np.random.default_rng(0), []
    for _ in range(400):
        films = random.integers(1, 7, 12)
        patients = np.repeat(np.arange(12), films).astype(str).tolist()
        scores = np.repeat(random.normal(0, 1, 12), films) + random.normal(0, 0.5, films.sum())
        p = 1 / (1 + np.exp(-scores))[:, None]
        fitted = fit_conformal(p, np.ones_like(p, np.float32), patients, "val")
        new = 1 / (1 + np.exp(-random.normal(0, np.hypot(1, 0.5), 2000)))
        found.append((new >= fitted.thresholds[0]).mean())
    assert 0.9 <= np.mean(found) < 0.93


def test_other_films_of_a_patient_take_nothing_from_those_that_have_the_finding() -> None:
    """A patient with one such film among many weighs as one with that film alone."""
    p, truth = np.linspace(0.1, 0.9, 20)[:, None], np.ones((20, 1), np.float32)
    patients = [str(i) for i in range(20)]
    alone = fit_conformal(p, truth, patients, "val")
    assert 0.1 < alone.thresholds[0] < 0.2
    more = np.concatenate([p, np.full((180, 1), 0.5)])
    with_others = fit_conformal(more, np.r_[truth, np.zeros((180, 1), np.float32)], patients * 10, "val")
    assert with_others.thresholds == alone.thresholds


def test_the_correction_counts_patients_and_coverage_either() -> None:
    p = np.array([[0.9], [0.8], [0.7], [0.6], *[[0.1]] * 6])
    truth, patients = np.ones((10, 1), np.float32), ["a", "b", "c", "d", *["e"] * 6]
    fitted = fit_conformal(p, truth, patients, "val", coverage=0.25)  # 0.25 * 6 / 5 of ten films: the third
    assert fitted.thresholds == pytest.approx((0.7,))
    words, even = set_words(Conformal(0.5, (0.5,), "val", (0.5,)), p), np.ones((1, 10))
    assert coverage_of(words, truth, 0, True)(even)[0] == pytest.approx(0.4)
    assert coverage_of(words, truth, 0, True, patients)(even)[0] == pytest.approx(0.8)


def test_too_few_is_as_many_as_the_coverage_asks() -> None:
    for coverage, least in ((0.9, 9), (0.8, 4), (0.95, 19)):
        assert least_patients(coverage) == least
        for count in (least - 1, least):
            p = np.linspace(0.2, 0.9, count)[:, None]
            fitted = fit_conformal(p, np.ones_like(p, np.float32), [str(i) for i in range(count)], "val", coverage=coverage)
            assert (fitted.thresholds[0] > 0) == (count == least)


def test_too_few_patients_rule_nothing_out() -> None:
    p, truth = np.array([[0.9], [0.2]]), np.array([[1.0], [0.0]], np.float32)
    fitted = fit_conformal(p, truth, ["a", "b"], "val")
    assert conformal_sets(fitted, np.array([0.0])) == conformal_sets(fitted, np.array([1.0])) == ("uncertain",)


def test_what_the_sets_say() -> None:
    many = Conformal(0.9, (0.3, 0.8), "val", (0.6, 0.4))
    assert conformal_sets(many, np.array([0.2, 0.9])) == ("absent", "present")
    assert conformal_sets(many, np.array([0.5, 0.5])) == ("uncertain", "uncertain")  # both, and neither
    one_of = Conformal(0.9, (0.3, 0.3, 0.3), "val")
    assert conformal_sets(one_of, np.array([0.6, 0.1, 0.3])) == ("uncertain", "absent", "uncertain")
    assert conformal_sets(one_of, np.array([0.7, 0.1, 0.2])) == ("present", "absent", "absent")
    assert conformal_sets(one_of, np.array([0.29, 0.28, 0.27])) == ("present", "absent", "absent")  # one of them it is
    assert conformal_sets(Conformal(), np.array([0.5])) is None


def test_figures_before_and_after_and_unknown_truth_left_out() -> None:
    p, truth, patients = split(2000, 2)
    truth[:500, 1] = np.nan
    sharpened = np.clip(p * 3, 0, 1)
    conformal = fit_conformal(p, truth, patients, "val")
    found = {(m.name, m.label): m for m in trust_metrics(Judged("test", LABELS, p, sharpened, truth, patients), conformal, 50)}
    for label in LABELS:
        assert found["calibration error", label].value < 0.5 * found["calibration error before", label].value
        assert found["brier", label].value < found["brier before", label].value
        assert found["coverage where present", label].value > 0.85
    assert found["coverage where absent mean", ""].value == pytest.approx(
        np.mean([found["coverage where absent", label].value for label in LABELS]), abs=1e-3
    )
    assert found["brier", "rare"].positives == int(np.nansum(truth[:, 1]))
    known = truth[500:, 1]
    assert found["brier", "rare"].value == pytest.approx(float(((p[500:, 1] - known) ** 2).mean()), abs=1e-4)


def test_a_card_keeps_both_thresholds_and_refuses_half_of_them() -> None:
    card = AdapterCard(
        "a", "classification", LABELS, BaseRecord("b", "f"), 1, conformal=Conformal(0.9, (0.1, 0.2), "val", (0.3, 0.4))
    )
    assert AdapterCard.from_json(card.to_json()).conformal == card.conformal
    short = replace(card, conformal=replace(card.conformal, absent=(0.3,)))
    with pytest.raises(AdapterRefused, match=r"conformal\.absent has 1 values for 2 labels"):
        AdapterCard.from_json(short.to_json())
