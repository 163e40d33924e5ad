"""Conformal sets: coverage as stated of new patients, however few calibrate them and however many films they have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from adapters.card import AdapterCard, BaseRecord, Conformal
from adapters.conformal import conformal_sets
from foundation.errors import AdapterRefused
from training.trust.conformal import coverage_of, fit_conformal, set_words
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
    new, new_truth, who = split(30_000, 1)
    words = set_words(fitted, new)
    for k in range(2):
        for held in (True, False):
            found = coverage_of(words, new_truth, k, held, who)(np.ones((1, len(new))))[0]
            assert found == pytest.approx(coverage, abs=0.03), (LABELS[k], held)  # one split: 900 patients have the rare one


def with_finding(count: int, random: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Scores of films of `count` patients: half have one film, half six, alike among themselves and higher by 0.7."""
    films = random.choice([1, 6], count)
    middle = 0.7 * (films == 6) + random.normal(0, np.sqrt(0.6), count)
    scores = np.repeat(middle, films) + random.normal(0, np.sqrt(0.4), films.sum())
    return scores, [f"patient {number}" for number in np.repeat(np.arange(count), films)]


def normal_below(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def mean_coverage(count: int, held: bool, draws: int) -> float:
    """Over draws of `count` patients with the finding (or, all mirrored, without) and 200 others: of a new patient's film."""
    random, found = np.random.default_rng(count), []
    for _ in range(draws):
        scores, patients = with_finding(count, random)
        others = random.normal(-1, 1, 200)
        values = np.r_[scores, others] * (1 if held else -1)
        truth = np.r_[np.full(len(scores), held), np.full(len(others), not held)].astype(np.float32)
        names = [*patients, *(f"other {number}" for number in range(len(others)))]
        fitted = fit_conformal((1 / (1 + np.exp(-values)))[:, None], truth[:, None], names, "val")
        bound = fitted.thresholds[0] if held else 1 - fitted.absent[0]
        lowest = np.log(bound / (1 - bound)) if bound > 0 else -np.inf
        found.append(1 - (normal_below(lowest) + normal_below(lowest - 0.7)) / 2)
    return float(np.mean(found))


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("count", [10, 30, 100])
def test_few_patients_with_several_films_are_covered_as_stated(count: int, held: bool) -> None:
    """The mean over many draws is within two points, whichever number of patients and however many films they have."""
    assert mean_coverage(count, held, 400 if count < 100 else 150) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("count", [3, 6])
def test_fewer_patients_than_the_coverage_asks_are_covered_by_what_the_probabilities_expect(count: int) -> None:
    assert mean_coverage(count, True, 300) == pytest.approx(0.9, abs=0.04)


def test_one_film_a_patient_is_the_textbook_rank() -> None:
    p = np.linspace(0.05, 0.95, 19)[:, None]  # (19 + 1) * 0.9: the 18th from the top
    fitted = fit_conformal(p, np.ones_like(p, np.float32), [str(i) for i in range(19)], "val")
    assert fitted.thresholds == pytest.approx((0.1,))
    between = fit_conformal(p, np.ones_like(p, np.float32), [str(i) for i in range(19)], "val", coverage=0.875)
    assert between.thresholds == pytest.approx((0.125,))


def test_between_two_films_stands_what_the_probabilities_expect_between() -> None:
    """Half way between 0.2 and 0.6 is where half of what the films between them (and half of their own) add up to is."""
    scores = np.array([0.2, 0.6, 0.95, 0.3, 0.3, 0.3])
    truth = np.array([1, 1, 1, 0, 0, 0], np.float32)
    fitted = fit_conformal(scores[:, None], truth[:, None], list("abcdef"), "val", coverage=0.625)  # rank 2.5 of three
    below, at, above = 0.1, 0.2 + 0.45, 0.2 + 0.9 + 0.3
    share = ((below + above) / 2 - at) / (above - at)
    assert fitted.thresholds == pytest.approx((0.3 + share * (0.6 - 0.3),))


def test_other_films_of_a_patient_take_nothing_from_those_that_have_the_finding() -> None:
    """A patient with one such film among many weighs as one with that film alone."""
    p, truth = np.linspace(0.1, 0.9, 20)[:, None], np.ones((20, 1), np.float32)
    patients = [str(i) for i in range(20)]
    alone = fit_conformal(p, truth, patients, "val")
    assert 0.1 < alone.thresholds[0] < 0.2
    more = np.concatenate([p, np.full((180, 1), 0.5)])
    with_others = fit_conformal(more, np.r_[truth, np.zeros((180, 1), np.float32)], patients * 10, "val")
    assert with_others.thresholds == pytest.approx(alone.thresholds)


def test_a_patient_weighs_one_however_many_films_and_order_does_not_matter() -> None:
    p = np.array([[0.9], [0.8], [0.7], [0.6], *[[0.1]] * 6])
    truth, patients = np.ones((10, 1), np.float32), ["a", "b", "c", "d", *["e"] * 6]
    fitted = fit_conformal(p, truth, patients, "val", coverage=0.5)  # 0.5 * 6 of five patients: the third
    assert fitted.thresholds == pytest.approx((0.7,))
    words, even = set_words(Conformal(0.5, (0.5,), "val", (0.5,)), p), np.ones((1, 10))
    assert coverage_of(words, truth, 0, True)(even)[0] == pytest.approx(0.4)
    assert coverage_of(words, truth, 0, True, patients)(even)[0] == pytest.approx(0.8)
    scores, names = with_finding(30, np.random.default_rng(0))
    table, mixed = (1 / (1 + np.exp(-scores)))[:, None], np.random.default_rng(1).permutation(len(scores))
    one = fit_conformal(table, np.ones_like(table, np.float32), names, "val")
    other = fit_conformal(table[mixed], np.ones_like(table, np.float32), [names[i] for i in mixed], "val")
    assert one == other


def test_films_whose_truth_is_unknown_weigh_nothing() -> None:
    p, truth = np.array([[0.9], [0.1], [0.2]]), np.array([[0.0], [np.nan], [0.0]], np.float32)
    words = set_words(Conformal(0.9, (0.5,), "val", (0.5,)), p)
    assert coverage_of(words, truth, 0, False, ["a", "b", "b"])(np.ones((1, 3)))[0] == pytest.approx(0.5)


def test_too_few_patients_rule_nothing_out() -> None:
    p, truth = np.array([[0.9], [0.2], [0.6], [0.5]]), np.array([[1.0], [0.0], [1.0], [1.0]], np.float32)
    fitted = fit_conformal(p, truth, ["a", "b", "a", "c"], "val")
    assert fitted.thresholds == (0.0,)
    assert fitted.absent == (1.0,)
    assert conformal_sets(fitted, np.array([0.0])) == conformal_sets(fitted, np.array([1.0])) == ("uncertain",)
    assert fit_conformal(p, truth, ["a", "b", "d", "c"], "val").thresholds[0] > 0
    zeros = fit_conformal(np.zeros((4, 1)), np.ones((4, 1), np.float32), ["a", "b", "c", "d"], "val")
    assert zeros.thresholds == pytest.approx((0.0,), abs=1e-9)


def test_what_the_sets_say() -> None:
    many = Conformal(0.9, (0.3, 0.8), "val", (0.6, 0.4))
    assert conformal_sets(many, np.array([0.2, 0.9])) == ("absent", "present")
    assert conformal_sets(many, np.array([0.5, 0.5])) == ("uncertain", "uncertain")  # both, and neither
    one_of = Conformal(0.9, (0.3, 0.3, 0.3), "val")
    assert conformal_sets(one_of, np.array([0.6, 0.1, 0.3])) == ("uncertain", "absent", "uncertain")
    assert conformal_sets(one_of, np.array([0.7, 0.1, 0.2])) == ("present", "absent", "absent")
    assert conformal_sets(one_of, np.array([0.29, 0.28, 0.27])) == ("present", "absent", "absent")  # one of them it is
    assert conformal_sets(Conformal(), np.array([0.5])) is None
    table = np.random.default_rng(0).dirichlet((1, 1, 1), 50)
    for one in (many, one_of):
        width = len(one.thresholds)
        assert set_words(one, table[:, :width]).tolist() == [list(conformal_sets(one, row[:width]) or ()) for row in table]


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
