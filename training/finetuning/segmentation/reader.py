"""A simulated reader, who knows the mask and clicks where the answer is wrong.

    report     the middle of the largest wrong region (Xu 2016; Sofiiuk 2022): `first_click`, `next_click`, `box_around`
    training   a random place in a random wrong region, larger ones more often, after a start that was spoilt at random, for
               what was learnt by heart errs too seldom to learn from: `random_click`, `random_box`, `spoil`

The middle of a region is its point furthest from its border.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adapters.tasks.parts import largest_parts
from adapters.tasks.prompting import Box, Point

Mask = npt.NDArray[np.bool_]
Grid = npt.NDArray[np.float32]
MIDDLE = 0.5  # share of random clicks in the middle of their region
JITTER = 0.08  # how far a random box's sides may be off, as a share of its own size
EMPTY = 0.15  # share of starts that hold nothing
SMOOTH = 0.6  # share of starts with smooth noise
STRONGEST = 5.0  # its standard deviation in logits, at most
COARSEST, FINEST = 3, 16  # its cells across the square


def first_click(found: Mask, truth: Mask) -> Point:
    """The middle of the largest part that is missing; of the truth where nothing is."""
    missing = largest_parts(truth & ~found, 1)
    return _middle(missing if missing.any() else truth, is_inside=True)


def next_click(found: Mask, truth: Mask) -> Point:
    """The middle of the largest part that is wrong: inside where it is missing, outside where it is too much.

    On an empty answer it is the middle of the truth. An exact answer is clicked there again.
    """
    missing, surplus = largest_parts(truth & ~found, 1), largest_parts(found & ~truth, 1)
    if surplus.sum() > missing.sum():
        return _middle(surplus, is_inside=False)
    return _middle(missing if missing.any() else truth, is_inside=True)


def box_around(mask: Mask) -> Box:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return Box(float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1))


def random_click(found: Mask, truth: Mask, random: np.random.Generator, *, is_first: bool) -> Point:
    """A click in a wrong region; the first is inside what is meant. In the truth where nothing is wrong. truth: not empty."""
    from scipy.ndimage import label

    missing, surplus = truth & ~found, found & ~truth
    numbers, count = label(missing)
    more, others = label(surplus) if not is_first else (np.zeros(truth.shape, int), 0)
    sizes = np.bincount(np.where(more > 0, more + count, numbers).ravel(), minlength=count + others + 1)[1:]
    if not len(sizes):
        return _within(truth, True, random)
    chosen = 1 + int(random.choice(len(sizes), p=sizes / sizes.sum()))
    return _within(numbers == chosen, True, random) if chosen <= count else _within(more == chosen - count, False, random)


def random_box(mask: Mask, random: np.random.Generator) -> Box:
    """A box around the mask, its sides a little off, within the grid."""
    height, width = mask.shape
    box = box_around(mask)
    down, right = JITTER * (box.bottom - box.top), JITTER * (box.right - box.left)
    top, bottom = np.clip(np.array([box.top, box.bottom]) + random.uniform(-down, down, 2), 0, height)
    left, right = np.clip(np.array([box.left, box.right]) + random.uniform(-right, right, 2), 0, width)
    return Box(float(top), float(left), float(bottom), float(right))


def spoil(logits: Grid, random: np.random.Generator) -> Grid:
    """Logits (h, w) with errors such as another film would bring: emptied, or bent by smooth noise, or as they are."""
    from PIL import Image

    chance = random.random()
    if chance < EMPTY:
        return np.full_like(logits, -6.0)
    if chance > EMPTY + SMOOTH:
        return logits
    cells = int(random.integers(COARSEST, FINEST + 1))
    noise = random.normal(0, random.uniform(0, STRONGEST), (cells, cells)).astype(np.float32)
    spread = Image.fromarray(noise).resize(logits.shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(logits.clip(-6, 6) + np.asarray(spread), np.float32)


def _within(region: Mask, is_inside: bool, random: np.random.Generator) -> Point:
    if random.random() < MIDDLE:
        return _middle(region, is_inside)
    cells = np.argwhere(region)
    row, column = cells[int(random.integers(len(cells)))]
    return Point(float(row) + 0.5, float(column) + 0.5, is_inside)


def _middle(region: Mask, is_inside: bool) -> Point:
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Point(float(row) + 0.5, float(column) + 0.5, is_inside)
