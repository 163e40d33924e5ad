"""Points and boxes for training: what a person could mark in a film whose masks are known, and what is then meant.

a point    means, of each class, the connected part it lies in
a box      means, of each class, the connected parts that lie in it by at least 60 %
a mark on the background means nothing: every target is empty
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.tasks.prompting import CHANNELS, draw_disc

Mask = npt.NDArray[np.bool_]
Parts = npt.NDArray[np.int32]
Hints = npt.NDArray[np.float32]
MISSES = 0.2  # share of prompts that mark nothing
BOXES = 0.4  # share of prompts that are boxes
NEGATIVES = 0.3  # share of prompts with a point that is not meant
INSIDE_BOX = 0.6
JITTER = 0.08  # how far a box's sides may be off, as a share of its own size


@dataclass(frozen=True, eq=False)
class Marked:
    """hints (3, h, w) as `draw_prompt` draws them, and keep (K, h, w): the pixels of each mask that are meant."""

    hints: Hints
    keep: Mask


def mark(masks: Mask, random: np.random.Generator) -> Marked:
    """A random prompt for masks (K, h, w)."""
    from scipy.ndimage import label

    parts = np.stack([label(mask)[0] for mask in masks])  # (K, h, w), 0 outside, 1.. connected parts
    hints = np.zeros((CHANNELS, *masks.shape[1:]), np.float32)
    whole = [(k, part) for k in range(len(parts)) for part in range(1, int(parts[k].max()) + 1)]
    is_miss = not whole or random.random() < MISSES
    target = np.asarray(~masks.any(axis=0)) if is_miss else _chosen(parts, whole, random)
    if random.random() < BOXES and not is_miss:
        meant = _mark_box(hints, parts, target, random)
    else:
        meant = _mark_point(hints, parts, target, random)
    if hints[2].any() or not is_miss:
        _mark_others(hints, parts, meant, random)
    return Marked(hints, meant)


def _chosen(parts: Parts, whole: list[tuple[int, int]], random: np.random.Generator) -> Mask:
    k, part = whole[int(random.integers(len(whole)))]
    return np.asarray(parts[k] == part)


def _mark_point(hints: Hints, parts: Parts, target: Mask, random: np.random.Generator) -> Mask:
    """One to three points in `target`; the parts under the first are meant."""
    cells = np.argwhere(target)
    if not len(cells):
        return np.zeros(parts.shape, bool)
    first = cells[random.integers(len(cells))]
    meant = np.stack([(part == part[tuple(first)]) & (part[tuple(first)] > 0) for part in parts])
    inside = np.argwhere(meant.any(axis=0) if meant.any() else target)
    others = [inside[random.integers(len(inside))] for _ in range(int(random.integers(0, 3)))] if meant.any() else []
    for row, column in [first, *others]:
        draw_disc(hints[0], row + 0.5, column + 0.5)
    return meant


def _mark_box(hints: Hints, parts: Parts, target: Mask, random: np.random.Generator) -> Mask:
    """A box around `target`, its sides a little off."""
    spans = []
    for axis in (1, 0):
        held = np.flatnonzero(target.any(axis=axis))
        start, stop = int(held[0]), int(held[-1]) + 1
        reach = max(1.0, JITTER * (stop - start))
        low, high = np.round(np.array([start, stop]) + random.uniform(-reach, reach, 2)).astype(int)
        low = int(np.clip(low, 0, target.shape[1 - axis] - 1))
        spans.append(slice(low, int(np.clip(high, low + 1, target.shape[1 - axis]))))
    hints[2, spans[0], spans[1]] = 1.0
    meant = np.zeros(parts.shape, bool)
    for k, part in enumerate(parts):
        sizes = np.bincount(part.ravel())
        within = np.bincount(part[spans[0], spans[1]].ravel(), minlength=len(sizes))
        kept = [number for number in range(1, len(sizes)) if within[number] >= INSIDE_BOX * sizes[number]]
        meant[k] = np.isin(part, kept)
    return meant


def _mark_others(hints: Hints, parts: Parts, meant: Mask, random: np.random.Generator) -> None:
    """Sometimes a point outside of what is meant."""
    cells = np.argwhere(~meant.any(axis=0))
    if len(cells) and random.random() < NEGATIVES:
        row, column = cells[random.integers(len(cells))]
        draw_disc(hints[1], row + 0.5, column + 0.5)
