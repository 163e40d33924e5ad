"""From opacity to a film: exposure, tone, grain, collimation, side marker; none of it depends on a finding."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foundation.phantom.anatomy import FloatArray
from foundation.phantom.canvas import Canvas

_NO_COLLIMATION = 0.55


def expose(opacity: FloatArray, canvas: Canvas, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Develop opacity (about 0..1.4) into an 8-bit film, in one of many styles."""
    dark, bright = rng.uniform(0.08, 0.32), rng.uniform(1.02, 1.30)
    gamma, curve, sharpen = rng.uniform(0.6, 1.25), rng.uniform(0, 0.7), rng.uniform(0, 0.9)
    black, white = rng.uniform(0, 22), rng.uniform(215, 255)
    grain, tilt = rng.uniform(0.003, 0.02), rng.normal(0, 0.05, 2)
    light = np.clip((opacity - dark) / (bright - dark), 0, 1)
    light = (1 - curve) * light + curve * light * light * (3 - 2 * light)
    light = np.asarray(light ** np.float32(gamma), dtype=np.float32)
    light += np.float32(sharpen) * (light - canvas.blur(light, 0.03)) * 0.6
    x, y = canvas.grid
    light *= 1 + np.float32(tilt[0]) * x + np.float32(tilt[1]) * (y - np.float32(0.3))
    border, word, flip = _collimation(rng), _marker(rng), rng.random()
    soft = rng.uniform(0.0, 0.0035)
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    light = light + np.float32(grain) * noise * np.sqrt(np.clip(light, 0.05, 1))
    grey = np.clip(black + (white - black) * light, 0, 255).astype(np.uint8)
    film = Image.fromarray(grey).filter(ImageFilter.GaussianBlur(soft * canvas.size))
    _burn_in(film, word, border, left_of_picture=flip < 0.5)
    return np.array(film)


def _collimation(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Widths of the black borders at left, top, right and bottom, in film widths."""
    widths = rng.uniform(0, 0.045, 4) * (rng.random(4) > _NO_COLLIMATION)
    return (float(widths[0]), float(widths[1]), float(widths[2]), float(widths[3]))


def _marker(rng: np.random.Generator) -> tuple[str, float, float, float]:
    """A text for the marker ("" for none), its size, and its distance from the side and the top, in film widths."""
    words = ("", "", "S", "PORTABLE", "SUPINE", "ERECT")
    extra = str(words[int(rng.integers(len(words)))])
    present = rng.random() < 0.65
    return (extra if present else "-", rng.uniform(0.035, 0.06), rng.uniform(0.04, 0.12), rng.uniform(0.04, 0.2))


def _burn_in(
    film: Image.Image,
    marker: tuple[str, float, float, float],
    border: tuple[float, float, float, float],
    *,
    left_of_picture: bool,
) -> None:
    size, pen = film.width, ImageDraw.Draw(film)
    left, top, right, bottom = (round(width * size) for width in border)
    for box in ((0, 0, left, size), (0, 0, size, top), (size - right, 0, size, size), (0, size - bottom, size, size)):
        if box[2] > box[0] and box[3] > box[1]:
            pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=0)
    extra, height, aside, down = marker
    if extra == "-":
        return
    letter = "R" if left_of_picture else "L"  # the patient's right is on the left of the picture
    x = aside * size if left_of_picture else (1 - aside - height) * size
    pen.text((x, down * size), letter, fill=245, font=_font(round(height * size)))
    if extra:
        small = _font(round(height * size * 0.5))
        x_small = x if left_of_picture else x + height * size - pen.textlength(extra, font=small)
        pen.text((x_small, (down + 1.3 * height) * size), extra, fill=235, font=small)


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(5, pixels))
