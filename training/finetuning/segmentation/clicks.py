"""Section on marks: Dice over the clicks of a simulated reader (`reader.py`) on the answer to a class's name.

    0 clicks   the answer to the classes' names alone
    1 click    mending: in the middle of the largest region that this answer missed; anew: in the middle of the aim
    2 ...      in the middle of the region most in error: inside where it is missing, outside where it is too much
    a box      around the aim, in the place of clicks

The aim is the largest connected part of a class's mask, since a click means the part it lies in. The class is asked by name
together with the marks; each answer is made from all clicks so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.tasks.parts import largest_parts
from adapters.tasks.prompting import Point, Prompt
from training.finetuning.segmentation.asked import Segmentation, size_of
from training.finetuning.segmentation.masks import Mask
from training.finetuning.segmentation.reader import box_around, first_click, next_click
from training.finetuning.segmentation.trainee import overlap
from training.manifests.manifest import Row
from training.measuring.metrics import Estimate, PatientBootstrap, Statistic, difference, weighted_mean
from training.measuring.plots import band_plot
from training.measuring.report import Measure, Section

CLICKS = 5
TITLES = ("0 clicks", "1 click", *(f"{k} clicks" for k in range(2, CLICKS + 1)), "a box")
ALL = "all"
Answer = Callable[[Prompt], Mask]
"""From marks to the mask (H, W) drawn for one class of one film."""


@dataclass(frozen=True)
class Marked:
    """One class of one film. mending: Dice by words, after 1 to CLICKS clicks that mend them, by a box; anew: after clicks."""

    patient: str
    label: str
    mending: tuple[float, ...]
    anew: tuple[float, ...]


def click_section(asked: Segmentation, rows: Sequence[Row]) -> list[Section]:
    """One section; none where no film has a mask. rows: plain films. The tower must carry the adapter."""
    marked = [one for row in rows for one in _marked(asked, row)]
    if not marked:
        return []
    name, classes = asked.adapter.card.name, np.array([one.label for one in marked])
    mending, anew = np.array([one.mending for one in marked]), np.array([one.anew for one in marked])
    draws = PatientBootstrap([one.patient for one in marked], asked.resamples, asked.seed)
    everyone = np.ones(len(marked), bool)
    groups = {ALL: everyone, **{label: classes == label for label in asked.adapter.card.labels if (classes == label).any()}}
    curves: dict[str, list[Estimate]] = {}
    measures: list[Measure] = []
    for k, title in enumerate(TITLES):
        for group, among in groups.items():
            dice = draws.estimate(_mean(mending[:, k], among))
            measures.append(Measure("dice", dice, name, title, group, films=int(among.sum())))
            if k <= CLICKS:
                curves.setdefault(group, []).append(dice)
        if k:
            gain = difference(_mean(mending[:, k], everyone), _mean(mending[:, 0], everyone))
            measures.append(Measure("gain over 0 clicks", draws.estimate(gain), name, title))
        if 1 <= k <= CLICKS:
            dice = draws.estimate(_mean(anew[:, k - 1], everyone))
            measures.append(Measure("dice, clicked anew", dice, name, title))
            curves.setdefault("all, clicked anew", [Estimate(float("nan"))]).append(dice)
    plot = band_plot("clicks.png", "Dice over simulated clicks", "clicks", "Dice", curves, range(CLICKS + 1))
    note = (
        f"{len(marked)} masks in {len(rows)} films of {draws.patients} patients: the largest connected part of each. 0 clicks: "
        "the classes' names alone; then a click in the middle of the largest region that was missed, and each further one in "
        "the middle of what is most in error. Clicked anew: the first click is in the middle of the whole part instead."
    )
    return [Section("What clicks and boxes add", note, tuple(measures), ("label",), ("name", "group"), plots=(plot,))]


def _mean(values: npt.NDArray[np.float64], among: npt.NDArray[np.bool_]) -> Statistic:
    kept = np.where(among, values, np.nan)
    return lambda weights: weighted_mean(kept, weights)


def _marked(asked: Segmentation, row: Row) -> list[Marked]:
    """Every class whose mask this film has."""
    film, truth = asked.read(row)
    seen, size, contract = asked.look(film), [size_of(film)], asked.backbone.contract
    [by_words] = asked.segmenter(*seen, size, contract)
    found = []
    for label in asked.adapter.card.labels:
        aim = largest_parts(truth[label], 1) if label in truth else np.zeros((1, 1), bool)
        if aim.any():

            def answer(prompt: Prompt, label: str = label) -> Mask:
                [result] = asked.segmenter(*seen, size, contract, [prompt], [label])
                return result.mask(label)

            words = by_words.mask(label)
            mended = click_through(first_click(words, aim), aim, answer)
            anew = click_through(next_click(np.zeros_like(aim), aim), aim, answer)
            boxed = float(overlap(answer(Prompt(boxes=(box_around(aim),))), aim))
            found.append(Marked(row.patient_id, label, (float(overlap(words, aim)), *mended, boxed), anew))
    return found


def click_through(first: Point, aim: Mask, answer: Answer) -> tuple[float, ...]:
    """Dice (CLICKS) with the aim after each click, the first one given."""
    points: tuple[Point, ...] = (first,)
    dice = []
    for _ in range(CLICKS):
        found = answer(Prompt(points))
        dice.append(float(overlap(found, aim)))
        points = (*points, next_click(found, aim))
    return tuple(dice)
