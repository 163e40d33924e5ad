"""New splits of val and test: their mean is what is stated, their spread what chance allows, other patients stand out."""

from __future__ import annotations

from dataclasses import replace
from math import erf

import numpy as np
import pytest

from adapters.card import Conformal
from training.trust.conformal import fit_conformal
from training.trust.resplit import Coverage, coverages, rates
from training.trust.trust_metrics import Judged

LABELS = ("finding", "other")


def judged(split: str, patients: int, seed: int, shift: float = 0.0) -> Judged:
    """Up to four films a patient, alike among themselves; two patients in five have the finding, one in three the other."""
    random = np.random.default_rng(seed)
    has, films = random.random((patients, 2)) < (0.4, 0.33), random.integers(1, 5, patients)
    scores = 1.5 * has + random.normal(0, 1, (patients, 2)) + shift * has
    table = np.repeat(scores, films, axis=0) + random.normal(0, 0.4, (films.sum(), 2))
    names = [f"{split} {number}" for number in np.repeat(np.arange(patients), films)]
    chances = 1 / (1 + np.exp(-table))
    return Judged(split, LABELS, chances, chances, np.repeat(has, films, axis=0).astype(np.float32), names)


def measured(val: Judged, test: Judged, splits: int = 300, is_multi_label: bool = True) -> dict[tuple[str, bool], Coverage]:
    fitted = fit_conformal(val.probabilities, val.truth, val.patients, "val", is_multi_label=is_multi_label)
    return {(one.label, one.held): one for one in coverages(val, test, fitted, splits, 0, 50)}


def test_the_mean_over_splits_is_what_is_stated_and_one_split_is_not() -> None:
    found = measured(judged("val", 60, 0), judged("test", 80, 1))
    assert set(found) == {(label, held) for label in LABELS for held in (True, False)}
    for one in found.values():
        assert one.resplit.own.value == pytest.approx(0.9, abs=0.02)
        fitted, left = one.patients
        expected = np.sqrt(0.09 * (1 / fitted + 1 / left))
        assert 2 * expected < one.resplit.own.high - one.resplit.own.low < 5 * expected  # 95 % of a normal one: 3.9
        assert one.as_far > 0.05
        spread = (one.resplit.own.high - one.resplit.own.low) / 3.9
        assert one.near == pytest.approx(erf(0.02 / spread / np.sqrt(2)), abs=0.12)  # as of a normal one around what is stated
    both = found["finding", True].patients, found["finding", False].patients
    assert [sum(counts) for counts in zip(*both, strict=True)] == [60, 80]


def test_patients_of_test_who_differ_stand_out() -> None:
    val, test = judged("val", 80, 0), judged("test", 120, 1, shift=-1.5)
    found = measured(val, test)["finding", True]
    assert found.one.own.value < found.resplit.own.low
    assert found.as_far < 0.05
    assert found.resplit.own.value == pytest.approx(0.9, abs=0.02)  # dealt anew, both are of one kind


def test_a_set_is_told_so_that_it_covers_no_less() -> None:
    test = judged("test", 200, 1)
    gap = Conformal(0.9, (0.8, 0.8), "val", (0.2, 0.2))  # between the two thresholds the set is empty, and told as undecided
    even = np.ones((1, len(test.truth)))
    for own, served, _ in rates(test, gap).values():
        assert served(even)[0] > own(even)[0] + 0.05
    classes = replace(test, probabilities=np.random.default_rng(0).dirichlet((1, 1), len(test.truth)))
    few_left = rates(classes, Conformal(0.9, (0.9, 0.9), "val"))
    assert set(few_left) == {(0, True), (1, True)}  # classes are ruled out or left, never told absent
    assert all(served(even)[0] > own(even)[0] for own, served, _ in few_left.values())


def test_by_film_patients_with_many_count_more() -> None:
    chances, truth = np.array([[0.5], [0.5], [0.5], [0.1]]), np.ones((4, 1), np.float32)
    four = Judged("test", ("finding",), chances, chances, truth, ["a", "a", "a", "b"])
    found = rates(four, Conformal(0.9, (0.3,), "val", (0.4,)))[0, True]
    assert [counted(np.ones((1, 4)))[0] for counted in found] == [0.5, 0.5, 0.75]  # own, served, by film


def test_the_same_seed_deals_the_same_splits() -> None:
    val, test = judged("val", 40, 0), judged("test", 40, 1)
    assert measured(val, test, 20) == measured(val, test, 20)
