"""Marks correct what words drew: one click after another, each only the region it speaks of.

    words' logits --click 1--> refiner -> settle --click 2--> refiner -> settle ... -> the parts that are meant

The refiner is a small network beside the decoder (Sofiiuk 2022; Kirillov 2023): it sees the decoder's finest map, the
answer so far, all marks, and where the newest click fell. `settle` lets a click change one region, the connected one under
it, and to its own side only: an inside click never takes away, an outside click never adds, and the clicked cell itself
always ends on the side that the click says. All grids are (h, w) cells over the model's square; points are in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.tasks.parts import largest_parts
from adapters.tasks.prompting import CHANNELS, Point, Prompt, draw, draw_disc

Grid = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
WIDTH = 32
LEAVING = 16
DILATIONS = (1, 2, 4, 8, 4)
MAPS = CHANNELS + 3  # the answer so far, where the newest click fell, what looks like the place under it
NEAR = 0.08  # of the side: how wide the newest click is told
UNDER = 0.97  # of its height: the cells under it
BUMP = 0.02  # of the side: how wide a click is put through where the refiner did not follow it
SURE = 1.0  # logit on the click's side
REACH = 0.1  # of the side: how far from a part a click outside of all parts still speaks of it
INSIDE_BOX = 0.6  # share of a part that lies in a box that means it


class Refiner(nn.Module):
    """The decoder's finest map, the answer so far and marks to a corrected answer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = _normed(nn.Conv2d(channels + MAPS, WIDTH, 3, 2, 1), WIDTH)
        self.wide = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH, WIDTH, 3, 1, reach, reach, groups=WIDTH, bias=False),
                _normed(nn.Conv2d(WIDTH, WIDTH, 1), WIDTH),
            )
            for reach in DILATIONS
        )
        self.join = _normed(nn.Conv2d(WIDTH + channels + MAPS, LEAVING, 3, 1, 1), LEAVING)
        self.leave = nn.Conv2d(LEAVING, 1, 1)

    def forward(self, x: Tensor, logits: Tensor, hints: Tensor, newest: Tensor) -> Tensor:
        """x (M, C, h, w); logits (M, h, w) so far; hints (M, 3, h, w); newest (M, h, w) of `near` -> logits (M, h, w)."""
        alike = _alike(x, newest)
        maps = torch.stack([torch.tanh(logits / 4), newest, alike], dim=1)
        seen = torch.cat([x, hints, maps], dim=1)
        y = self.enter(seen)
        for layer in self.wide:
            y = y + layer(y)
        y = F.interpolate(y, seen.shape[-2:], mode="bilinear", align_corners=False)
        change: Tensor = self.leave(self.join(torch.cat([y, seen], dim=1)))
        return logits.clamp(-6, 6) + change[:, 0]


def near(point: Point, side: int) -> Grid:
    """(side, side): a bell around the newest click, 1 at its middle where it is inside and -1 where it is outside."""
    return (1.0 if point.is_inside else -1.0) * _bell(point, side, NEAR)


def settle(before: Grid, after: Grid, click: Point) -> Grid:
    """The answer so far with what the click may change of it: see the top of this file."""
    from scipy.ndimage import binary_dilation, label

    side, sign = before.shape[0], 1.0 if click.is_inside else -1.0
    cell = _cell(click, side)
    short = SURE - sign * float(after[cell])
    if short > 0:
        after = after + sign * short * _bell(click, side, BUMP)
    changed = ((after > 0) != (before > 0)) & ((after > 0) == click.is_inside)
    parts, _ = label(changed)
    disc = np.zeros(before.shape, np.float32)
    draw_disc(disc, click.row, click.column)
    spoken = np.setdiff1d(parts[(disc > 0) & changed], [0])
    region = np.isin(parts, spoken)
    border = binary_dilation(region) & ((after > 0) == (before > 0))  # a smooth edge
    return np.asarray(np.where(region | border, after, before), np.float32)


@dataclass(frozen=True, eq=False)
class Words:
    """What words say of one film on the model's grid: x (C, h, w) and logits (K, h, w)."""

    x: Tensor
    logits: Grid


@dataclass(frozen=True, eq=False)
class Corrected:
    """The answer of one class: logits (h, w) above zero in the parts that are meant, and the points that spoke of it."""

    logits: Grid
    points: tuple[int, ...]  # places among the prompt's
    is_pointed: bool  # one of them is inside


@torch.no_grad()
def answer_marks(refiner: Refiner, words: Words, marks: Prompt, asked: Sequence[int], parts: int) -> list[Corrected | None]:
    """Of each of the K classes the corrected answer; None where the marks do not speak of it.

    asked: the classes that points can speak of. An inside point speaks of those whose mask it lies in; outside of all of
    them, of the likeliest there. An outside point speaks of all. parts: how many a class can have at most, 0 any number.
    """
    starts = [_only_parts(grid, parts) for grid in words.logits]
    owners = [_owners(point, starts, asked) for point in marks.points]
    answers: list[Corrected | None] = []
    for k, start in enumerate(starts):
        own = [n for n, point in enumerate(marks.points) if not point.is_inside or k in owners[n]]
        held = Prompt(tuple(marks.points[n] for n in own), marks.boxes)
        kept, is_pointed = meant(start, held, parts), any(point.is_inside for point in held.points)
        if not kept.any() and not is_pointed:
            answers.append(None)
            continue
        logits = _emptied_but(correct(refiner, words.x, start, held), kept, held.points)
        answers.append(Corrected(logits, tuple(own), is_pointed))
    return answers


def correct(refiner: Refiner, x: Tensor, start: Grid, marks: Prompt) -> Grid:
    """The start's logits after every click in turn. Boxes choose parts and are told to the refiner; they correct nothing."""
    now, side = start, start.shape[0]
    for count, click in enumerate(marks.points, start=1):
        hints = draw(Prompt(marks.points[:count], marks.boxes), side)
        now = settle(now, _refined(refiner, x, now, hints, click), click)
    return now


def meant(start: Grid, marks: Prompt, parts: int) -> Mask:
    """The parts of the start that marks speak of: under an inside point or else the nearest, or mostly in a box."""
    from scipy.ndimage import distance_transform_edt, label

    numbers, count = label(start > 0)
    if not count:
        return np.zeros(start.shape, bool)
    side = start.shape[0]
    chosen: set[int] = set()
    away, nearest = distance_transform_edt(numbers == 0, return_indices=True)
    for point in (point for point in marks.points if point.is_inside):
        cell = _cell(point, side)
        if parts == 1 or away[cell] <= REACH * side:
            chosen.add(int(numbers[tuple(nearest[:, cell[0], cell[1]])]))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    for box in marks.boxes:
        boxed = draw(Prompt(boxes=(box,)), side)[2] > 0
        within = np.bincount(numbers[boxed], minlength=count + 1)
        chosen |= {number for number in range(1, count + 1) if within[number] >= INSIDE_BOX * sizes[number]}
    return np.asarray(np.isin(numbers, list(chosen)))


def _refined(refiner: Refiner, x: Tensor, logits: Grid, hints: Grid, newest: Point) -> Grid:
    maps = [torch.from_numpy(each)[None].to(x.device) for each in (logits, hints, near(newest, logits.shape[0]))]
    return np.asarray(refiner(x[None].float(), *maps)[0].cpu().numpy(), np.float32)


def _owners(point: Point, starts: Sequence[Grid], asked: Sequence[int]) -> set[int]:
    cell = _cell(point, starts[0].shape[0])
    within = {k for k in asked if starts[k][cell] > 0}
    return within or {max(asked, key=lambda k: float(starts[k][cell]))}


def _only_parts(grid: Grid, count: int) -> Grid:
    """Logits with only the `count` largest parts above zero; as they are where count is 0."""
    return np.where(largest_parts(grid > 0, count), grid, np.minimum(grid, -np.abs(grid))).astype(np.float32)


def _emptied_but(grid: Grid, kept: Mask, points: Sequence[Point]) -> Grid:
    """Only parts that overlap `kept` or hold an inside point."""
    from scipy.ndimage import label

    numbers, _ = label(grid > 0)
    cells = [_cell(point, grid.shape[0]) for point in points if point.is_inside]
    chosen = np.setdiff1d([*np.unique(numbers[kept]), *(numbers[cell] for cell in cells)], [0])
    return np.where(np.isin(numbers, chosen), grid, np.minimum(grid, -np.abs(grid))).astype(np.float32)


def _alike(x: Tensor, newest: Tensor) -> Tensor:
    """(M, h, w): cosine of x with its mean under the newest click; 0 without one."""
    under = (newest.abs() >= UNDER * newest.abs().amax(dim=(1, 2), keepdim=True)) & (newest != 0)
    mean = torch.einsum("mchw,mhw->mc", x, under.float())
    return torch.einsum("mchw,mc->mhw", F.normalize(x, dim=1), F.normalize(mean, dim=1))


def _bell(point: Point, side: int, width: float) -> Grid:
    y, x = np.ogrid[:side, :side]
    away = (y + 0.5 - point.row) ** 2 + (x + 0.5 - point.column) ** 2
    least = float(away.min())  # the clicked cell itself has the whole height
    return np.exp(-(away - least) / (2 * (width * side) ** 2)).astype(np.float32)


def _cell(point: Point, side: int) -> tuple[int, int]:
    return min(side - 1, max(0, int(point.row))), min(side - 1, max(0, int(point.column)))


def _normed(convolution: nn.Conv2d, width: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.GroupNorm(8, width), nn.GELU())
