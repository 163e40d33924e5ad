"""Drawing body-frame shapes onto a square film: polygons, strokes, soft noise, blur. numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from foundation.phantom.anatomy import Anatomy, FloatArray

Points = npt.NDArray[np.float64]


class Canvas:
    """A film of `size` pixels with a patient's position; every picture it returns is (size, size) float32."""

    def __init__(self, anatomy: Anatomy, size: int) -> None:
        self.anatomy = anatomy
        self.size = size
        self._fine = 2 if size < 400 else 1  # drawn larger and reduced, for smooth edges
        cosine, sine = np.cos(anatomy.rotation), np.sin(anatomy.rotation)
        self._turn = np.array([[cosine, -sine], [sine, cosine]])

    @cached_property
    def grid(self) -> tuple[FloatArray, FloatArray]:
        """Body-frame x and y of every pixel's centre."""
        place = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        x, y = place[None, :] - self.anatomy.origin[0], place[:, None] - self.anatomy.origin[1]
        turn = self._turn.astype(np.float32)
        return turn[0, 0] * x + turn[1, 0] * y, turn[0, 1] * x + turn[1, 1] * y

    def fill(self, *outlines: Points) -> FloatArray:
        """Coverage 0..1 of the union of closed outlines."""
        picture = self._blank()
        pen = ImageDraw.Draw(picture)
        for outline in outlines:
            pen.polygon(self._pixels(outline), fill=255)
        return self._finish(picture)

    def stroke(self, lines: Iterable[tuple[Points, float, float]]) -> FloatArray:
        """Lines given as (points, width in film widths, strength 0..1); a later line covers an earlier one."""
        picture = self._blank()
        pen = ImageDraw.Draw(picture)
        fine = self.size * self._fine
        for points, width, strength in lines:
            pen.line(self._pixels(points), fill=int(255 * strength), width=max(1, round(width * fine)))
        return self._finish(picture)

    def blur(self, picture: FloatArray, radius: float) -> FloatArray:
        """Gaussian blur; radius in film widths. Values outside 0..1 are clipped, in steps of 1/255."""
        eight_bit = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
        return _unit(eight_bit.filter(ImageFilter.GaussianBlur(radius * self.size)))

    def cloud(self, rng: np.random.Generator, cells: int) -> FloatArray:
        """Smooth noise of unit variance, about `cells` lumps across the film, the same at every size."""
        small = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        return np.asarray(small.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def disc(self, centre: Points, radius: float) -> FloatArray:
        """Distance from a body-frame centre in units of `radius`."""
        x, y = self.grid
        return np.asarray(np.hypot(x - np.float32(centre[0]), y - np.float32(centre[1])) / np.float32(radius))

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        place = (points @ self._turn.T + self.anatomy.origin) * (self.size * self._fine) - 0.5
        return [(x, y) for x, y in place.tolist()]

    def _blank(self) -> Image.Image:
        return Image.new("L", (self.size * self._fine, self.size * self._fine))

    def _finish(self, picture: Image.Image) -> FloatArray:
        return _unit(picture.reduce(self._fine) if self._fine > 1 else picture)


def _unit(picture: Image.Image) -> FloatArray:
    return np.asarray(picture, dtype=np.float32) / np.float32(255)
