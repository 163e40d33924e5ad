"""How each finding looks, and exactly where it is: one function a finding, all in the body frame.

opacity   share 0..1 of the lung's air that is replaced (fluid, pus, tumour)
extra     opacity added to the film (lines, tubes) or taken from it (free air)
mask      the truth
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foundation.phantom.anatomy import FloatArray, sign_of, smooth, span
from foundation.phantom.canvas import Canvas, Points
from foundation.phantom.findings import SEVERITIES, PhantomFinding
from foundation.phantom.tissue import Layers

Mask = npt.NDArray[np.bool_]
ZONE_BOUNDS = {"upper": (0.10, 0.33), "middle": (0.40, 0.62), "lower": (0.70, 0.90)}  # of the lung's height, c
HEART_RATIOS = {"small": (0.555, 0.595), "moderate": (0.605, 0.66), "large": (0.67, 0.75)}


@dataclass(frozen=True)
class Lesion:
    """Pictures (H, W); `airless` marks where lung and vessels are gone, and what is `diffuse` in the lung."""

    mask: Mask
    opacity: FloatArray | None = None
    extra: FloatArray | None = None
    airless: FloatArray | None = None
    diffuse: bool = False


@dataclass(frozen=True)
class Site:
    """Everything a lesion needs to know about where it is drawn."""

    canvas: Canvas
    layers: Layers
    finding: PhantomFinding
    rng: np.random.Generator

    @property
    def sides(self) -> tuple[str, ...]:
        return ("right", "left") if self.finding.side == "bilateral" else (self.finding.side,)

    @property
    def grade(self) -> int:
        """0 small, 1 moderate, 2 large."""
        return SEVERITIES.index(self.finding.severity)

    def open_lung(self, side: str) -> FloatArray:
        """Coverage of the part of a lung that neither heart nor mediastinum hides."""
        hidden = np.maximum(self.layers.heart, self.layers.centre > 0.5)
        return np.asarray(self.layers.lungs[side] * (1 - hidden), dtype=np.float32)

    def half(self, side: str) -> FloatArray:
        """1 on this side of the midline; lesions are cut there, not at the lung's edge, which air itself draws."""
        return np.asarray(self.canvas.grid[0] * np.float32(sign_of(side)) > 0, dtype=np.float32)

    def place(self, side: str, margin: float = 0.25) -> Points:
        """A point in the visible lung of that side and zone; margin is the share of the width kept free at an edge."""
        anatomy = self.canvas.anatomy
        low, high = ZONE_BOUNDS[self.finding.zone]
        y = self.rng.uniform(low, high) * anatomy.height
        inner, outer = sorted(span(self.layers.outlines[side], y), key=abs)
        heart = span(anatomy.heart(anatomy.heart_ratio), y)
        reach = max(0.0, heart[1] if side == "left" else -heart[0]) if np.isfinite(heart[0]) else 0.0
        inner = sign_of(side) * max(abs(inner), reach, 0.2 * anatomy.half_width)
        return np.array([inner + (outer - inner) * self.rng.uniform(margin, 1 - margin), y])


def heart_ratio(normal: float, finding: PhantomFinding | None, rng: np.random.Generator) -> float:
    """The cardiothoracic ratio to draw: the patient's own, or an enlarged one."""
    return normal if finding is None else rng.uniform(*HEART_RATIOS[finding.severity])


def draw_lesion(site: Site) -> Lesion:
    return _LESIONS[site.finding.name](site)


def _effusion(site: Site) -> Lesion:
    """Fluid that fills the pleural space from below: blunted angle, then a meniscus that climbs the lateral wall."""
    anatomy = site.canvas.anatomy
    x, y = site.canvas.grid
    opacity = np.zeros_like(x)
    for side in site.sides:
        level = site.rng.uniform(*((1.00, 1.02), (0.78, 0.86), (0.42, 0.58))[site.grade])
        climb = site.rng.uniform(*((0.18, 0.23), (0.24, 0.34), (0.22, 0.34))[site.grade])
        base = anatomy.dome_drop if side == "left" else 0.0
        d = np.clip(x * np.float32(sign_of(side) / anatomy.half_width), 0, 1.1)
        surface = level + base - climb * d**4
        depth = (y / np.float32(anatomy.height) - surface) * np.float32(anatomy.height)
        soft_edge = np.clip(depth / np.float32(0.022) + 0.5, 0, 1)
        opacity = np.maximum(opacity, soft_edge * site.half(side))
    within = np.maximum(*site.layers.lungs.values())
    density = np.float32(site.rng.uniform(0.86, 0.97))
    return Lesion(mask=opacity * within >= 0.5, opacity=np.asarray(opacity * density, dtype=np.float32))


def _pneumothorax(site: Site) -> Lesion:
    """Air between chest wall and a thin white pleural line; beyond the line there are no lung markings."""
    canvas, layers = site.canvas, site.layers
    anatomy, side = canvas.anatomy, site.finding.side
    outline, hilum = layers.outlines[side], anatomy.hilum(side)
    gap = site.rng.uniform(*((0.17, 0.22), (0.28, 0.38), (0.48, 0.62))[site.grade])
    height = np.clip(outline[:, 1] / anatomy.height, 0, 1)
    outward = np.clip((np.abs(outline[:, 0]) / anatomy.half_width - 0.15) / 0.35, 0, 1)
    keep = 1 - outward * (gap * (1 - (0.85, 0.6, 0.25)[site.grade] * height) + 0.02 * np.sin(7 * height))
    shrunk = hilum + (outline - hilum) * keep[:, None]
    collapsed = canvas.fill(shrunk) * layers.lungs[side]
    lateral = canvas.grid[0] * np.float32(sign_of(side)) > 0.2 * anatomy.half_width
    free = layers.lungs[side] * (1 - collapsed) * lateral
    free *= (canvas.grid[1] < 1.0 * anatomy.height) | (site.grade > 0)
    free *= 1 - layers.heart
    pleura = canvas.stroke([(np.concatenate([shrunk, shrunk[:1]]), 0.0055, 1.0)]) * layers.lungs[side] * lateral
    pleura *= (1 - layers.heart) * np.clip(1.02 - canvas.grid[1] / np.float32(anatomy.height), 0, 0.1) * 10
    extra = 0.15 * canvas.blur(pleura, 0.001) - 0.09 * free
    return Lesion(
        mask=free >= 0.5,
        opacity=np.asarray(collapsed * (0.04, 0.12, 0.34)[site.grade], dtype=np.float32),
        extra=np.asarray(extra, dtype=np.float32),
        airless=np.asarray(free, dtype=np.float32),
    )


def _nodule(site: Site) -> Lesion:
    radius = site.rng.uniform(*((0.017, 0.020), (0.022, 0.026), (0.028, 0.034))[site.grade])
    return _round_opacity(site, radius, lobes=0.05, edge=0.30, strength=site.rng.uniform(0.45, 0.65))


def _mass(site: Site) -> Lesion:
    radius = site.rng.uniform(*((0.048, 0.056), (0.062, 0.074), (0.082, 0.105))[site.grade])
    return _round_opacity(site, radius, lobes=0.13, edge=0.16, strength=site.rng.uniform(0.6, 0.85))


def _round_opacity(site: Site, radius: float, *, lobes: float, edge: float, strength: float) -> Lesion:
    side = site.finding.side
    centre = site.place(side)
    x, y = site.canvas.grid
    angle = np.arctan2(y - centre[1], x - centre[0])
    phase = site.rng.uniform(0, 2 * np.pi, 2)
    border = 1 + lobes * (np.sin(2 * angle + phase[0]) + 0.7 * np.sin(3 * angle + phase[1]))
    r = site.canvas.disc(centre, radius) / border
    inside = np.clip((1 - r) / edge + 0.5, 0, 1) * site.layers.lungs[side]
    body = 0.8 + 0.2 * np.sqrt(np.clip(1 - r * r, 0, 1))
    return Lesion(mask=inside >= 0.5, opacity=np.asarray(inside * body * strength, dtype=np.float32))


def _consolidation(site: Site) -> Lesion:
    """A fluffy, ill-defined opacity with air bronchograms."""
    canvas = site.canvas
    rough = 0.22 * canvas.cloud(site.rng, 14) + 0.16 * canvas.cloud(site.rng, 26)
    opacity = np.zeros_like(rough)
    bronchi = []
    for side in site.sides:
        centre = site.place(side, margin=0.35)
        reach = site.rng.uniform(*((0.062, 0.072), (0.085, 0.100), (0.120, 0.150))[site.grade])
        r = canvas.disc(centre, reach)
        opacity = np.maximum(opacity, np.clip(1.45 - 1.05 * r + rough, 0, 1) * site.open_lung(side))
        for turn in site.rng.uniform(-0.9, 0.9, 4):
            away = np.array([sign_of(side) * np.cos(turn), np.sin(turn)]) * reach * 0.8
            bronchi.append((np.stack([centre - 0.4 * away, centre + away]), 0.005, 1.0))
    air = canvas.blur(canvas.stroke(bronchi), 0.0015)
    return Lesion(mask=opacity >= 0.45, opacity=opacity * (1 - 0.22 * air) * np.float32(site.rng.uniform(0.62, 0.8)))


def _edema(site: Site) -> Lesion:
    """Perihilar haze in a bat's wing shape, blurred thick vessels, and short Kerley lines at the bases."""
    canvas = site.canvas
    anatomy = canvas.anatomy
    rough = 0.18 * canvas.cloud(site.rng, 18) + 0.14 * canvas.cloud(site.rng, 36)
    opacity = np.zeros_like(rough)
    kerley = []
    for side in site.sides:
        wing = anatomy.hilum(side) + anatomy.points((sign_of(side) * 0.14, 0.10))
        r = canvas.disc(wing, (0.12, 0.15, 0.19)[site.grade])
        opacity = np.maximum(opacity, np.exp(-(r**2) * 0.7) * (1 + rough) * site.open_lung(side))
        for c in np.arange(0.72, 0.98, 0.033):
            wall = sign_of(side) * (0.93 + site.rng.uniform(-0.02, 0.02))
            ends = anatomy.points([(wall, c), (wall - sign_of(side) * 0.11, c + 0.006)])
            kerley.append((ends, 0.0035, 1.0))
    lines = 0.14 * canvas.blur(canvas.stroke(kerley), 0.001) * np.maximum(*site.layers.lungs.values())
    haze = np.clip(opacity, 0, 1)
    strength = (0.52, 0.64, 0.78)[site.grade]
    density = np.asarray(np.clip(haze * strength + lines, 0, 0.95), dtype=np.float32)
    return Lesion(mask=haze >= 0.4, opacity=density, diffuse=True)


def _atelectasis(site: Site) -> Lesion:
    """Plate-like bands; when large, a sharply bordered wedge from the hilum to the lung's edge."""
    canvas, side = site.canvas, site.finding.side
    anatomy, s = canvas.anatomy, sign_of(side)
    lung = site.open_lung(side)
    if site.grade == 2:
        centre = site.place(side, margin=0.45)
        hilum = anatomy.hilum(side)
        outward = (centre - hilum) / np.hypot(*(centre - hilum))
        across = np.array([-outward[1], outward[0]])
        far = centre + outward * 0.10
        wedge = smooth(np.stack([hilum, far + across * 0.085, far + outward * 0.02, far - across * 0.085]), closed=True)
        shape = canvas.blur(canvas.fill(wedge), 0.0025) * lung
        return Lesion(mask=shape >= 0.5, opacity=shape * np.float32(0.72))
    strokes = []
    centre, lean = site.place(side, margin=0.38), site.rng.uniform(-0.3, 0.3)
    for index in range(site.grade + 1 if site.grade == 0 else 3):
        middle = centre + np.array([s * 0.012 * index, 0.036 * (index - site.grade)])
        tilt, half = lean + site.rng.uniform(-0.1, 0.1), site.rng.uniform(0.07, 0.095)
        arm = np.array([np.cos(tilt), np.sin(tilt)]) * half * (1 - 0.2 * index)
        thickness = site.rng.uniform(0.011, 0.017)
        bow = np.array([0.0, site.rng.uniform(-0.008, 0.008)])
        strokes.append((smooth(np.stack([middle - arm, middle + bow, middle + arm])), thickness, 1.0))
    bands = canvas.blur(canvas.stroke(strokes), 0.003) * lung * (1 + 0.12 * canvas.cloud(site.rng, 24))
    return Lesion(mask=bands >= 0.4, opacity=np.clip(bands, 0, 1) * np.float32(0.6))


def _cardiomegaly(site: Site) -> Lesion:
    """The enlarged heart is already drawn; its mask is the whole silhouette."""
    return Lesion(mask=site.layers.heart >= 0.5)


def _tube(site: Site) -> Lesion:
    """An endotracheal tube: two walls and a bright stripe in the trachea, its tip above the carina."""
    anatomy = site.canvas.anatomy
    tip = site.rng.uniform(0.18, 0.29)
    lean = site.rng.uniform(-0.02, 0.02)
    course = smooth(anatomy.points([(0.03 + lean, -1.0), (lean, -0.3), (0.0, 0.0), (0.015, tip)]))
    stripe = course + np.array([0.006, 0.0])
    tube = site.canvas.stroke([(course, 0.024, 0.8), (course, 0.013, 0.22), (stripe, 0.005, 1.0)])
    return Lesion(mask=tube >= 0.2, extra=np.asarray(0.24 * tube, dtype=np.float32))


def _line(site: Site) -> Lesion:
    """A central venous catheter from the neck or below the clavicle to the superior vena cava."""
    anatomy, s = site.canvas.anatomy, sign_of(site.finding.side)
    tip = (-0.12 + site.rng.uniform(-0.03, 0.02), site.rng.uniform(0.44, 0.58))
    if site.rng.random() < 0.5:
        entry = [(s * 0.42, -0.42), (s * 0.30, -0.15), (s * 0.20, 0.06)]
    else:
        entry = [(s * 1.1, 0.20), (s * 0.72, 0.08), (s * 0.40, 0.08), (s * 0.22, 0.13)]
    across = [(0.02, 0.20), (-0.11, 0.30)] if s > 0 else [(-0.16, 0.22)]
    course = smooth(anatomy.points([*entry, *across, tip]))
    line = site.canvas.stroke([(course, 0.0085, 1.0)])
    return Lesion(mask=line >= 0.3, extra=np.asarray(0.24 * line, dtype=np.float32))


_LESIONS: dict[str, Callable[[Site], Lesion]] = {
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "nodule": _nodule,
    "mass": _mass,
    "consolidation": _consolidation,
    "cardiomegaly": _cardiomegaly,
    "edema": _edema,
    "atelectasis": _atelectasis,
    "tube": _tube,
    "line": _line,
}
