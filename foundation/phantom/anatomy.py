"""The patient of a phantom: outlines in a body frame, drawn from the seed alone, the same whatever is found.

Body frame: x in film widths from the midline, positive to the right of the picture (the patient's left);
y in film widths from the lung apices, downward. Outlines are written in thorax units (d, c):

        d = -1        0        +1          d   half the width of the bony thorax (`Anatomy.half_width`)
    c=0   .-- apex --|-- apex --.          c   apex to dome of the diaphragm (`Anatomy.height`)
         /  right    |   left    \\
    c=1 /__ dome ____|___ dome ___\\        right lung on the left side, as radiologists look at it
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_LUNG = np.array(
    [
        (0.30, -0.02), (0.46, 0.00), (0.68, 0.10), (0.84, 0.28), (0.94, 0.50), (0.99, 0.75), (1.00, 0.97),
        (0.99, 1.09), (0.975, 1.10), (0.93, 1.06), (0.80, 0.995), (0.60, 0.955), (0.40, 0.965), (0.20, 1.02),
        (0.15, 0.80), (0.13, 0.55), (0.13, 0.32), (0.14, 0.14), (0.20, 0.03),
    ]
)  # fmt: skip
_BASE = slice(7, 14)  # the points of `_LUNG` that lie on the diaphragm


@dataclass(frozen=True)
class Anatomy:
    """Sizes and habits of one patient and one exposure; outlines are properties in the body frame."""

    half_width: float
    height: float
    origin: tuple[float, float]  # where the body frame's origin lies, in film widths from the top left corner
    rotation: float  # radians
    heart_ratio: float  # cardiothoracic ratio
    heart_lean: float  # share of the heart's width that lies on the patient's left
    wobble: npt.NDArray[np.float64]  # (2, len(_LUNG), 2) small individual deviations of the lung outlines
    dome_drop: float  # how much lower the left dome stands, in c
    girth: float  # body outline against bony thorax
    arm_spread: float
    rib_slope: float
    clavicle_height: float
    breast: float  # opacity of breast shadows, 0 for none
    stomach: tuple[float, float, float]  # x in d, radius in film widths, lucency
    aeration: float  # opacity that the air of a full lung takes away
    portable: bool

    def points(self, thorax: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Body frame of points given in thorax units (d, c)."""
        return np.asarray(thorax, dtype=np.float64) * (self.half_width, self.height)

    def lung(self, side: str) -> npt.NDArray[np.float64]:
        """Outline of a whole lung field, the part behind the heart included."""
        outline = _LUNG + self.wobble[0 if side == "right" else 1]
        if side == "left":
            outline[_BASE, 1] += self.dome_drop
        return smooth(self.points(outline * (sign_of(side), 1.0)), closed=True)

    def heart(self, ratio: float) -> npt.NDArray[np.float64]:
        """Outline of a heart with this cardiothoracic ratio."""
        left, right = 2 * ratio * self.heart_lean, 2 * ratio * (1 - self.heart_lean)
        sag = max(0.0, ratio - 0.5) * 0.12
        outline = [
            (0.04, 0.33), (-0.14, 0.40), (-0.86 * right, 0.56), (-right, 0.75),
            (-0.90 * right, 0.95), (-0.55 * right, 1.09), (0.0, 1.13),
            (0.5 * left, 1.13 + sag), (0.86 * left, 1.07 + sag), (left, 0.91 + sag), (0.90 * left, 0.76),
            (0.62 * left, 0.56), (0.24, 0.42), (0.18, 0.36),
        ]  # fmt: skip
        return smooth(self.points(outline), closed=True)

    def hilum(self, side: str) -> npt.NDArray[np.float64]:
        return self.points((sign_of(side) * 0.23, 0.46 if side == "right" else 0.43))


def sign_of(side: str) -> float:
    """Direction of a side along x: the patient's left is on the right of the picture."""
    return 1.0 if side == "left" else -1.0


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient and a positioning; consumes a fixed number of random numbers."""
    portable = bool(rng.random() < 0.35)
    female = bool(rng.random() < 0.45)
    half_width = rng.uniform(0.305, 0.395)
    height = half_width * (rng.uniform(1.28, 1.60) if portable else rng.uniform(1.50, 1.85))
    top = rng.uniform(0.06, 0.16) + max(0.0, 0.55 - height) * rng.uniform(0.2, 0.6)
    return Anatomy(
        half_width=half_width,
        height=height,
        origin=(0.5 + rng.normal(0, 0.016), top),
        rotation=float(np.clip(rng.normal(0, 0.035), -0.1, 0.1)),
        heart_ratio=rng.uniform(0.39, 0.485),
        heart_lean=rng.uniform(0.63, 0.72),
        wobble=_draw_wobble(rng),
        dome_drop=rng.uniform(0.0, 0.06),
        girth=rng.uniform(1.14, 1.42) + 0.08 * portable,
        arm_spread=rng.uniform(0.0, 0.25),
        rib_slope=rng.uniform(0.8, 1.25),
        clavicle_height=rng.uniform(-0.04, 0.09),
        breast=rng.uniform(0.10, 0.30) if female else 0.0 * rng.uniform(0.10, 0.30),
        stomach=(rng.uniform(0.35, 0.6), rng.uniform(0.025, 0.06), rng.uniform(-0.3, 0.4)),
        aeration=rng.uniform(0.30, 0.44) + 0.03 * (not portable),
        portable=portable,
    )


def _draw_wobble(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Slow and fast deviations along each lung's outline, and a waist or barrel shape common to both lungs."""
    turn = np.linspace(0, 2 * np.pi, len(_LUNG), endpoint=False)
    slow = rng.normal(0, 0.022, (2, 4, 2))
    waves = np.stack([np.sin(turn), np.cos(turn), np.sin(2 * turn), np.cos(2 * turn)])
    taper = rng.normal(0, 0.06) * (0.9 - _LUNG[:, 1]) * _LUNG[:, 0]
    wobble: npt.NDArray[np.float64] = np.einsum("kl,skd->sld", waves, slow)
    wobble += rng.normal(0, 0.008, (2, len(_LUNG), 2))
    wobble[:, :, 0] += taper
    return wobble


def smooth(points: npt.NDArray[np.float64], *, closed: bool = False, steps: int = 6) -> npt.NDArray[np.float64]:
    """A Catmull-Rom curve through (K, 2) points, `steps` points to a stretch."""
    padded = np.concatenate([points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]])
    before, start, end, after = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, points[-1:]])


def span(outline: npt.NDArray[np.float64], y: float) -> tuple[float, float]:
    """Smallest and largest x at which a closed outline crosses the height y (both NaN where it does not)."""
    following = np.roll(outline, -1, axis=0)
    crosses = (outline[:, 1] <= y) != (following[:, 1] <= y)
    if not crosses.any():
        return float("nan"), float("nan")
    start, end = outline[crosses], following[crosses]
    x = start[:, 0] + (y - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0])
    return float(x.min()), float(x.max())
