"""Phantoms: the same seed is the same patient, masks and words are true of the film, refusals name what is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest

from foundation.errors import InvalidRequest
from foundation.phantom import FINDINGS, SEVERITIES, Phantom, PhantomFinding, make_phantom
from foundation.phantom.findings import draw_findings
from foundation.phantom.words import write_questions

SIZE = 96
SEEDS = range(4)
SYNONYMS = {
    "effusion": ("effusion", "pleural fluid"),
    "pneumothorax": ("pneumothorax",),
    "nodule": ("nodule",),
    "mass": ("mass",),
    "consolidation": ("consolidation", "airspace opacity"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlarged", "enlargement"),
    "edema": ("edema",),
    "atelectasis": ("atelectasis",),
    "tube": ("tube",),
    "line": ("line", "catheter"),
}
SIDED = [name for name in FINDINGS if name not in ("cardiomegaly", "edema", "tube")]
GRADED = [name for name in FINDINGS if name not in ("tube", "line")]


def split_report(phantom: Phantom) -> tuple[str, str]:
    findings, impression = phantom.report.removeprefix("Findings: ").split(" Impression: ")
    return findings, impression


def test_same_seed_gives_the_same_film_masks_and_words() -> None:
    first, second = make_phantom(11, SIZE), make_phantom(11, SIZE)
    np.testing.assert_array_equal(first.film, second.film)
    assert first.findings == second.findings
    assert first.report == second.report
    assert first.questions() == second.questions()
    for name, mask in first.masks.items():
        np.testing.assert_array_equal(mask, second.masks[name])
    assert not np.array_equal(first.film, make_phantom(12, SIZE).film)


@pytest.mark.parametrize("name", FINDINGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_finding_changes_the_film_only_where_it_is(name: str, seed: int) -> None:
    healthy, ill = make_phantom(seed, SIZE, findings=()), make_phantom(seed, SIZE, findings=[name])
    mask = ill.masks[name]
    changed = np.abs(ill.film.astype(int) - healthy.film)
    assert mask.dtype == np.bool_
    assert mask.shape == ill.film.shape == (SIZE, SIZE)
    assert 5 <= mask.sum() < SIZE * SIZE / 2
    where = mask & ~healthy.masks["heart"] if name == "cardiomegaly" else mask
    visible = where & (healthy.film < 250)
    assert changed[visible].mean() > 3 * changed[~mask].mean()
    assert changed[visible].mean() > 4


@pytest.mark.parametrize("name", [name for name in GRADED if name != "cardiomegaly"])
def test_mask_grows_with_severity(name: str) -> None:
    areas = [
        sum(make_phantom(s, SIZE, [PhantomFinding(name, severity=grade)]).masks[name].sum() for s in SEEDS)
        for grade in SEVERITIES
    ]
    assert areas[0] < areas[1] < areas[2]


def test_cardiothoracic_ratio_tells_a_large_heart_from_a_normal_one() -> None:
    def ratio(phantom: Phantom) -> float:
        columns = np.flatnonzero(phantom.masks["heart"].any(axis=0))
        lungs = np.flatnonzero((phantom.masks["left lung"] | phantom.masks["right lung"]).any(axis=0))
        return float(np.ptp(columns) / np.ptp(lungs))

    for seed in range(8):
        assert ratio(make_phantom(seed, SIZE, ())) < 0.53
        assert ratio(make_phantom(seed, SIZE, ["cardiomegaly"])) > 0.53


@pytest.mark.parametrize("name", [name for name in SIDED if name != "line"])
@pytest.mark.parametrize("seed", SEEDS)
def test_mask_lies_on_the_patients_side(name: str, seed: int) -> None:
    """The patient's right is on the left of the picture, and the right lung is there too."""
    healthy = make_phantom(seed, SIZE, ())
    columns = np.arange(SIZE)
    centres = {}
    for side in ("left", "right"):
        centres[side] = columns[np.nonzero(healthy.masks[f"{side} lung"])[1]].mean()
        mask = make_phantom(seed, SIZE, [PhantomFinding(name, side=side)]).masks[name]
        other = healthy.masks["left lung" if side == "right" else "right lung"]
        assert not (mask & other).any()
        assert abs(np.nonzero(mask)[1].mean() - centres[side]) < 0.15 * SIZE
    assert centres["right"] < centres["left"]


def test_zones_lie_above_one_another() -> None:
    rows = [
        np.mean([np.nonzero(make_phantom(s, SIZE, [PhantomFinding("nodule", zone=zone)]).masks["nodule"])[0].mean()
                 for s in SEEDS])
        for zone in ("upper", "middle", "lower")
    ]  # fmt: skip
    assert rows[0] < rows[1] < rows[2]


def test_lung_and_heart_masks_are_always_there_and_apart() -> None:
    for seed in SEEDS:
        masks = make_phantom(seed, SIZE).masks
        assert not (masks["left lung"] & masks["right lung"]).any()
        assert not (masks["heart"] & (masks["left lung"] | masks["right lung"])).any()
        assert all(masks[name].mean() > 0.03 for name in ("left lung", "right lung", "heart"))


def test_free_air_has_no_lung_markings() -> None:
    """Beyond the pleural line the film is darker than the lung that was there."""
    asked = [PhantomFinding("pneumothorax", side="right", severity="large")]
    for seed in SEEDS:
        healthy, ill = make_phantom(seed, SIZE, ()), make_phantom(seed, SIZE, asked)
        free = ill.masks["pneumothorax"]
        assert ill.film[free].mean() < healthy.film[free].mean() - 4


def test_masks_of_what_cannot_be_in_one_place_are_apart() -> None:
    asked = [PhantomFinding("pneumothorax", "right", severity="large"), "edema", PhantomFinding("effusion", "right")]
    for seed in SEEDS:
        masks = make_phantom(seed, SIZE, asked).masks
        assert not (masks["edema"] & (masks["pneumothorax"] | masks["effusion"])).any()
        assert not (masks["pneumothorax"] & masks["effusion"]).any()
        assert masks["edema"].any()


def test_anatomy_does_not_depend_on_the_size() -> None:
    small, large = make_phantom(3, 80, ["mass"]), make_phantom(3, 160, ["mass"])
    reduced = large.masks["mass"].reshape(80, 2, 80, 2).mean(axis=(1, 3)) >= 0.5
    assert (reduced & small.masks["mass"]).sum() > 0.85 * (reduced | small.masks["mass"]).sum()


def test_random_phantoms_are_normal_in_about_a_quarter_and_show_every_finding() -> None:
    drawn = [draw_findings(np.random.default_rng((seed, 1))) for seed in range(2000)]
    assert 0.24 < np.mean([not one for one in drawn]) < 0.30
    shares = {name: np.mean([name in [finding.name for finding in one] for one in drawn]) for name in FINDINGS}
    assert min(shares.values()) > 0.05
    assert any(len(one) == 3 for one in drawn)


@pytest.mark.parametrize("seed", range(60))
def test_report_says_what_is_there_and_denies_only_what_is_not(seed: int) -> None:
    phantom = make_phantom(seed, 48)
    findings, impression = split_report(phantom)
    affirmed = " ".join(s for s in re.split(r"(?<=\.) ", findings) if not re.match(r"No |There is no ", s)).lower()
    denied = " ".join(s for s in re.split(r"(?<=\.) ", findings) if re.match(r"No |There is no ", s)).lower()
    for finding in phantom.findings:
        words = SYNONYMS[finding.name]
        assert any(word in affirmed for word in words), finding
        assert any(word in impression.lower() for word in words), finding
        assert not any(re.search(rf"\b{word}\b", denied) for word in words), finding
        for text in (affirmed, impression.lower()):
            assert finding.zone in text
            assert ("both" in text or "bilateral" in text) if finding.side == "bilateral" else finding.side in text
    for name in set(FINDINGS) - set(phantom.labels):
        assert not any(re.search(rf"\b{word}\b", impression.lower()) for word in SYNONYMS[name]), name
    assert not re.search(r"  | \.|\.\.|\ba [aeiou]|\ban [^aeiou]", phantom.report)
    assert impression.endswith(".")


def test_words_depend_on_side_and_vary_with_the_seed() -> None:
    left, right = (make_phantom(5, 48, [PhantomFinding("effusion", side, severity="small")]).report
                   for side in ("left", "right"))  # fmt: skip
    assert left.replace("left", "right") == right
    texts = {split_report(make_phantom(s, 48, [PhantomFinding("effusion", "left", severity="small")]))[0] for s in range(20)}
    assert len(texts) > 10


@pytest.mark.parametrize("seed", range(20))
def test_answers_are_true(seed: int) -> None:
    phantom = make_phantom(seed, 48)
    for question in phantom.questions():
        if question.kind != "closed" or "normal" in question.question or "any" in question.question:
            continue
        asked = [name for name in FINDINGS if any(word in question.question for word in SYNONYMS[name])]
        assert question.answer.startswith("Yes" if asked[0] in phantom.labels else "No"), question
        assert len(asked) == 1


def test_answers_name_place_and_severity() -> None:
    asked = [
        PhantomFinding("consolidation", "right", "lower", "large"),
        PhantomFinding("effusion", "left", severity="small"),
    ]
    answers = {q.question: q.answer for q in make_phantom(1, 48, asked).questions() if q.kind in ("location", "severity")}
    assert "In the right lower zone." in answers.values()
    assert "On the left." in answers.values()
    assert answers["How large is the pleural effusion?"] == "Small."
    description = make_phantom(1, 48, asked).questions()[-1]
    assert description.kind == "open"
    assert description.answer == (
        "The film shows a small left pleural effusion and large consolidation in the right lower zone."
    )


def test_yes_and_no_are_balanced() -> None:
    drawn = [(seed, draw_findings(np.random.default_rng(seed))) for seed in range(600)]
    closed = [q.answer for seed, findings in drawn for q in write_questions(seed, findings) if q.kind == "closed"]
    share = np.mean([answer.startswith("Yes") for answer in closed])
    assert 0.42 < share < 0.58


def test_label_vector_follows_the_names_given() -> None:
    phantom = make_phantom(0, 48, ["nodule", "effusion"])
    assert phantom.labels == ("effusion", "nodule")
    assert phantom.label_vector(["nodule", "edema", "effusion"]).tolist() == [1.0, 0.0, 1.0]
    assert phantom.label_vector().sum() == 2
    assert make_phantom(0, 48, ()).is_normal


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["fracture"], ("fracture", "effusion", "line")),
        ([PhantomFinding("edema", side="left")], ("left", "edema", "bilateral")),
        ([PhantomFinding("tube", severity="small")], ("small", "tube", "empty")),
        (["mass", "mass"], ("mass", "twice")),
    ],
)
def test_impossible_findings_are_refused(asked: list[str | PhantomFinding], words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_phantom(0, 48, asked)
    assert all(word in caught.value.message for word in words)


def test_bad_seed_size_and_label_are_refused() -> None:
    for call in (lambda: make_phantom(-1), lambda: make_phantom(0, 8), lambda: make_phantom(0, 48).label_vector(["x"])):
        with pytest.raises(InvalidRequest):
            call()
