"""The healthy layers of a phantom, as opacity: soft tissue and air, bones, vessels; no finding is known here.

A film's opacity is  soft - air * (what is not in its way) + bone,  in arbitrary units of about 0..1.5 (`phantom.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.phantom.anatomy import Anatomy, FloatArray, sign_of, smooth, span
from foundation.phantom.canvas import Canvas, Points


@dataclass(frozen=True)
class Layers:
    """Pictures (H, W) of one patient; lungs and heart are coverage 0..1, the others opacity."""

    soft: FloatArray  # everything without air, lungs filled
    air: FloatArray  # what the lungs' air takes away where nothing is in the way
    bone: FloatArray
    vessels: FloatArray  # share of the air that vessels hide
    centre: FloatArray  # share of the air that the mediastinum, without the heart, hides
    lungs: dict[str, FloatArray]
    heart: FloatArray
    outlines: dict[str, Points]


def draw_layers(canvas: Canvas, heart_ratio: float, rng: np.random.Generator) -> Layers:
    anatomy = canvas.anatomy
    outlines = {side: anatomy.lung(side) for side in ("right", "left")}
    lungs = {side: canvas.fill(outline) for side, outline in outlines.items()}
    heart = canvas.blur(canvas.fill(anatomy.heart(heart_ratio)), 0.004)
    centre = canvas.blur(canvas.fill(*_mediastinum(anatomy)), 0.011)
    y = canvas.grid[1] / np.float32(anatomy.height)
    depth = np.float32(anatomy.aeration) * (0.72 + 0.42 * np.clip(y * 2.4, 0, 1) + 0.12 * np.clip(y - 0.4, 0, 0.6))
    haze = 1 + 0.06 * canvas.cloud(rng, 6) + 0.035 * canvas.cloud(rng, 34) + 0.03 * canvas.cloud(rng, 70)
    air = canvas.blur(lungs["left"] + lungs["right"], 0.004) * depth * haze
    return Layers(
        soft=_soft_tissue(canvas, centre, rng),
        air=np.asarray(air, dtype=np.float32),
        bone=_bones(canvas, outlines) + _wires(canvas, rng),
        vessels=_vessels(canvas, outlines, rng),
        centre=centre,
        lungs=lungs,
        heart=heart,
        outlines=outlines,
    )


def _mediastinum(anatomy: Anatomy) -> list[Points]:
    trunk = [(-0.13, -0.3), (-0.16, 0.1), (-0.19, 0.3), (-0.17, 0.5), (-0.12, 1.1), (0.12, 1.1),
             (0.17, 0.5), (0.21, 0.40), (0.19, 0.35), (0.26, 0.29), (0.25, 0.24), (0.17, 0.2),
             (0.14, 0.1), (0.13, -0.3)]  # fmt: skip
    return [smooth(anatomy.points(trunk), closed=True)]


def _body(anatomy: Anatomy) -> list[Points]:
    g, spread = anatomy.girth, anatomy.arm_spread
    torso = [(0.30, -1.0), (0.32, -0.30), (0.60, -0.17), (1.15, -0.08), (g + 0.22, 0.14), (g + 0.10, 0.42), (g, 0.60),
             (g - 0.04, 1.0), (g + 0.02, 2.2)]  # fmt: skip
    arm = [(1.05, -0.06), (g + 0.25, 0.06), (g + 0.45 + spread, 0.7), (g + 0.6 + 1.5 * spread, 1.7),
           (g + 0.25 + 1.4 * spread, 1.7), (g + 0.05 + spread, 0.75), (g - 0.05, 0.35)]  # fmt: skip
    outlines = []
    half = smooth(anatomy.points(torso))
    outlines.append(np.concatenate([half, half[::-1] * (-1, 1)]))
    for sign in (-1, 1):
        outlines.append(smooth(anatomy.points(np.array(arm) * (sign, 1)), closed=True))
    return outlines


def _soft_tissue(canvas: Canvas, centre: FloatArray, rng: np.random.Generator) -> FloatArray:
    anatomy = canvas.anatomy
    x, y = canvas.grid
    body = canvas.fill(*_body(anatomy))
    rounded = canvas.blur(body, 0.05)
    c, d = y / np.float32(anatomy.height), np.abs(x) / np.float32(anatomy.half_width)
    square = (d / np.float32(1.22)) ** 2
    trunk = np.exp(-square * square)  # the trunk is thicker than shoulders and arms
    belly = trunk / (1 + np.exp(-(c - 0.95) * 14))
    soft = body * (0.28 + 0.30 * rounded + 0.34 * trunk * np.clip(0.55 + c, 0, 1) + 0.20 * belly)
    soft += 0.08 * centre * body + 0.03 * canvas.cloud(rng, 9) * body
    if anatomy.breast > 0:
        fold = [anatomy.points((sign * 0.62, 0.80)) for sign in (-1, 1)]
        for place in fold:
            r = canvas.disc(place, 0.46 * anatomy.half_width)
            soft += anatomy.breast * np.clip(1.12 - r, 0, 0.4) * np.clip((c - 0.45) * 3, 0, 1) * 1.6
    x_bubble, radius, lucency = anatomy.stomach
    if lucency > 0:
        middle = anatomy.points((x_bubble, 1.14 + anatomy.dome_drop))
        bubble = ((x - middle[0]) / (1.7 * radius)) ** 2 + ((y - middle[1]) / radius) ** 2
        under_dome = np.clip((c - 1.02 - anatomy.dome_drop) * 30, 0, 1)
        soft -= lucency * 0.45 * np.clip(1.5 - bubble - 0.3 * canvas.cloud(rng, 20), 0, 1) * under_dome
    trachea = [(0.0, -0.5), (0.0, 0.1), (0.03, 0.37)]
    left, right = [(0.03, 0.36), (0.20, 0.44)], [(0.03, 0.36), (-0.14, 0.45)]
    tubes = [(smooth(anatomy.points(trachea)), 0.050, 1.0)]
    tubes += [(anatomy.points(one), 0.028, 0.6) for one in (left, right)]
    soft -= 0.16 * canvas.blur(canvas.stroke(tubes), 0.007)
    return np.asarray(soft, dtype=np.float32)


def _bones(canvas: Canvas, outlines: dict[str, Points]) -> FloatArray:
    """Ribs behind and in front, clavicles, shoulder blades, humeri and the spine."""
    anatomy = canvas.anatomy
    behind, front, clavicles, blades = [], [], [], []
    for side in ("right", "left"):
        s = sign_of(side)
        for index in range(11):
            c = -0.06 + index * 0.115
            edge = _edge(outlines[side], c + 0.1, anatomy)
            slope = anatomy.rib_slope
            back = smooth(anatomy.points([(s * 0.10, c), (s * 0.35, c - 0.035 + 0.01 * index * slope),
                                          (s * 0.72 * edge, c + 0.03 + 0.045 * slope),
                                          (s * edge * 1.04, c + 0.17 * slope)]))  # fmt: skip
            behind += [(back, 0.026, 1.0), (back, 0.019, 0.62)]
            if 0 < index < 8:
                fore = smooth(anatomy.points([(s * edge * 1.04, c + 0.17 * slope), (s * edge * 0.84, c + 0.27 * slope),
                                              (s * edge * 0.58, c + 0.36 * slope)]))  # fmt: skip
                front += [(fore, 0.027, 1.0), (fore, 0.021, 0.7)]
        h = anatomy.clavicle_height
        collar = [(s * 0.12, 0.14 + h), (s * 0.40, 0.08 + h), (s * 0.75, 0.03 + h), (s * 1.12, -0.05 + h)]
        bar = smooth(anatomy.points(collar))
        clavicles += [(bar, 0.030, 1.0), (bar, 0.018, 0.75)]
        shaft = smooth(anatomy.points([(s * 1.28, 0.04), (s * (1.42 + anatomy.arm_spread), 0.5),
                                       (s * (1.58 + 2 * anatomy.arm_spread), 1.5)]))  # fmt: skip
        clavicles += [(shaft, 0.062, 1.0), (shaft, 0.036, 0.7)]
        blade = [(s * 0.86, 0.05), (s * 1.2, 0.0), (s * 1.22, 0.14), (s * 1.02, 0.58), (s * 0.93, 0.55)]
        blades.append(smooth(anatomy.points(blade), closed=True))
        blades.append(smooth(anatomy.points([(s * 1.2, -0.04), (s * 1.38, -0.02), (s * 1.36, 0.14), (s * 1.2, 0.13)]),
                             closed=True))  # fmt: skip
    ribs = 0.100 * canvas.stroke(behind) + 0.06 * canvas.stroke(front)
    ribs *= 1 / (1 + np.exp((canvas.grid[1] / np.float32(anatomy.height) - 0.98) * 16)) * 0.85 + 0.15
    bone = canvas.blur(ribs + 0.11 * canvas.stroke(clavicles) + 0.05 * canvas.fill(*blades), 0.0020)
    return np.asarray(bone + _spine(canvas), dtype=np.float32)


def _edge(outline: Points, c: float, anatomy: Anatomy) -> float:
    """Distance of a lung's outer border from the midline at height c, in d; never less than 0.4."""
    low, high = span(outline, c * anatomy.height)
    reach = max(abs(low), abs(high)) / anatomy.half_width
    return max(reach, 0.4) if np.isfinite(reach) else (0.5 if c < 0.2 else 1.0)


def _spine(canvas: Canvas) -> FloatArray:
    x, y = canvas.grid
    d, c = x / np.float32(canvas.anatomy.half_width), y / np.float32(canvas.anatomy.height)
    share = (d / np.float32(0.15)) ** 2
    column = np.exp(-share * share)
    discs = 0.75 + 0.25 * np.cos(c * np.float32(2 * np.pi / 0.125))
    return np.asarray(0.06 * column * discs, dtype=np.float32)


def _wires(canvas: Canvas, rng: np.random.Generator) -> FloatArray:
    """Electrodes and their wires, on some bedside films: things that are no finding."""
    leads = []
    for _ in range(3):
        place = np.array([rng.uniform(-0.9, 0.9), rng.uniform(0.1, 1.3)])
        bends = rng.normal(0, 0.12, (2, 2)) + np.array([(0.3, 0.3), (0.6, 0.7)])
        leads.append((canvas.anatomy.points(place), smooth(canvas.anatomy.points([place, *(place + bends)]))))
    if not (canvas.anatomy.portable and rng.random() < 0.45):
        return np.zeros((canvas.size, canvas.size), dtype=np.float32)
    picture = 0.10 * canvas.stroke([(wire, 0.004, 1.0) for _, wire in leads])
    for place, _ in leads:
        ring = canvas.disc(place, 0.013)
        picture += 0.16 * np.clip(3 - 3 * ring, 0, 1) * (0.5 + 0.5 * (ring < 0.45))
    return np.asarray(picture, dtype=np.float32)


def _vessels(canvas: Canvas, outlines: dict[str, Points], rng: np.random.Generator) -> FloatArray:
    """Branching trees from both hila, thinner towards the periphery, and the hilar shadows themselves."""
    anatomy = canvas.anatomy
    lines: list[tuple[Points, float, float]] = []
    for side in ("right", "left"):
        s, hilum = sign_of(side), anatomy.hilum(side)
        for angle in np.linspace(-1.4, 1.35, 10) + rng.normal(0, 0.14, 10):
            reach = anatomy.height * (0.44 + 0.12 * abs(np.sin(angle)))
            lines += _branch(hilum, s, float(angle), reach, 0.011, rng)
    tree = canvas.blur(canvas.stroke(sorted(lines, key=lambda line: line[2])), 0.0018)
    knots = [np.array(anatomy.hilum(side)) for side in ("right", "left")]
    shadow = sum(0.35 * np.exp(-(canvas.disc(knot, 0.050) ** 2)) for knot in knots)
    return np.asarray(np.clip(0.55 * tree + shadow, 0, 0.9), dtype=np.float32)


def _branch(
    start: Points, sign: float, angle: float, reach: float, width: float, rng: np.random.Generator
) -> list[tuple[Points, float, float]]:
    """A vessel in four bends with a side branch at each, as strokes."""
    lines = []
    bends, turns = rng.normal(0, 0.24, 4), rng.choice((-1.0, 1.0), 4) * rng.uniform(0.3, 0.9, 4)
    reach *= rng.uniform(0.65, 1.1)
    place, heading = start, angle
    for step in range(4):
        heading += float(bends[step])
        ahead = place + reach / 4 * np.array([sign * np.cos(heading), np.sin(heading)])
        thickness, strength = width * (1 - 0.23 * step), 0.95 - 0.17 * step
        lines.append((np.stack([place, ahead]), thickness, strength))
        aside = heading + float(turns[step])
        twig = ahead + reach * (0.26 - 0.03 * step) * np.array([sign * np.cos(aside), np.sin(aside)])
        lines.append((np.stack([ahead, twig]), thickness * 0.6, strength * 0.7))
        place = ahead
    return lines
