"""Masks as COCO run lengths: compact text that any COCO tool reads. Numpy only.

A mask is read column by column, top to bottom; the runs alternate between outside and inside, beginning with outside.
In the compressed text each run, less the run two before it from the fourth on, is written in base 32, low digits first,
a digit's sixth bit saying that more follow; characters begin at "0" (chr 48). Source: COCO API, maskApi.c, rleToString.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from foundation.errors import InvalidRequest

Mask = npt.NDArray[np.bool_]
_FIRST = 48
_MAX_CELLS = 1 << 28


def to_rle(mask: Mask) -> dict[str, object]:
    """A mask (H, W) as {"size": [H, W], "counts": text}."""
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": compress(runs_of(mask))}


def from_rle(rle: dict[str, object]) -> Mask:
    """The mask of a COCO object with compressed or plain counts. Raises InvalidRequest where runs do not fill the size."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InvalidRequest("A run-length mask needs `size`: two positive whole numbers, height and width.", param="size")
    height, width = size
    runs = decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise InvalidRequest("A run-length mask needs `counts`: COCO's text, or a list of run lengths.", param="counts")
    if height * width > _MAX_CELLS or sum(runs) != height * width:
        raise InvalidRequest(f"The runs add up to {sum(runs)} pixels, not to {height} x {width}.", param="counts")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.asarray(flat.reshape(width, height).T)


def runs_of(mask: Mask) -> list[int]:
    """Run lengths in column order, the first run being outside (0 where the mask begins inside)."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    places = [0, *edges.tolist(), flat.size]
    runs = [end - start for start, end in pairwise(places)]
    return [0, *runs] if flat.size and flat[0] else runs


def compress(runs: Sequence[int]) -> str:
    text = bytearray()
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text.append(_FIRST + (digit | 32 if more else digit))
    return text.decode("ascii")


def decompress(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - _FIRST
        if not 0 <= digit < 64:
            raise InvalidRequest("The run-length text holds a character that COCO does not use.", param="counts")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise InvalidRequest("The run-length text ends in the middle of a number.", param="counts")
    return runs
