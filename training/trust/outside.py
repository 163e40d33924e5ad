"""Pictures that are no frontal chest film, made in code: what a person may hand over by mistake.

    made from films     turned to a side or upside down, inverted, two side by side
    drawn               pages, drawings, body slices as CT and MR show them, bones as films of limbs show them
    drawn at random     noise, empty pictures, scenes with the statistics of photographs (dead leaves, Lee 2001; 1/f fields)
    cut out             of the two photographs that scikit-learn carries

Every function is a pure function of its generator. `gate.py` fits on them; `evaluating/gate_check.py` asks with other seeds and
with kinds that are not made here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Films = npt.NDArray[np.uint8]  # (N, S, S) grey
Random = np.random.Generator

TURNED = "a chest film turned on its side or upside down"
INVERTED = "an inverted film"
SLICE = "a CT or MR slice"
LIMB = "a film of another part of the body"
PAGE = "a page of text"
SCENE = "a drawing or a photograph"
NOISE = "noise"
EMPTY = "an empty picture"
PAIR = "two films side by side"


def outside_films(inside: Films, seed: int = 0, each: int = 60) -> dict[str, Films]:
    """word -> about `each` films (J, S, S) of that kind; scenes, the widest kind, thrice as many, and pairs twice."""
    random = np.random.default_rng(seed)
    size = inside.shape[-1]
    chosen = inside[random.choice(len(inside), min(each, len(inside)), replace=False)]
    return {
        TURNED: np.stack([_exposed(_turned(film, index, random), random) for index, film in enumerate(chosen)]),
        INVERTED: np.stack([_exposed(255 - film, random) for film in chosen]),
        SLICE: _made(_body_slice, each, size, random),
        LIMB: _made(_limb, each, size, random),
        PAGE: _made(_page, each, size, random),
        SCENE: np.concatenate([_made(make, each // 2, size, random) for make in _SCENES]),
        NOISE: _made(_noise, each, size, random),
        EMPTY: _made(_empty, each // 2 + 1, size, random),
        PAIR: np.stack([_pair(inside, random) for _ in range(2 * each)]),
    }


def _made(make: Callable[[int, Random], Films], count: int, size: int, random: Random) -> Films:
    return np.stack([make(size, random) for _ in range(count)])


def _turned(film: Films, index: int, random: Random) -> Films:
    """By one, two or three quarters; every fifth by any angle from 40 degrees on."""
    if index % 5:
        return np.rot90(film, index % 3 + 1)
    return np.asarray(Image.fromarray(film).rotate(float(random.uniform(40, 320)), resample=Image.Resampling.BILINEAR))


def _pair(films: Films, random: Random) -> Films:
    """Two films, now and then the same one or a cutting of it, beside each other on one ground.

    More often than not squeezed to the full height, as a square picture of both is; else nearer to their own shape.
    """
    size = films.shape[-1]
    ground = np.full((size, size), random.choice([0, 0, 0, 255, int(random.integers(256))]), np.uint8)
    places = random.integers(len(films), size=2)
    pair = [films[places[0]], films[places[0 if random.random() < 0.15 else 1]]]
    if random.random() < 0.25:
        start = int(size * random.uniform(0, 0.35))
        pair[int(random.integers(2))] = pair[1][:, start : start + int(size * random.uniform(0.5, 0.65))]
    if random.random() < 0.3:
        pair = [_exposed(film, random) for film in pair]
    edge, gap = int(size * random.choice([0, random.uniform(0, 0.06)])), int(size * random.choice([0, random.uniform(0, 0.08)]))
    first = int((size - 2 * edge - gap) * random.choice([0.5, random.uniform(0.4, 0.6)]))
    widths = (first, size - 2 * edge - gap - first)
    height = size - 2 * edge if random.random() < 0.6 else int((size - 2 * edge) * random.uniform(0.5, 0.95))
    top = edge + (size - 2 * edge - height) // 2
    for film, left, width in zip(pair, (edge, edge + first + gap), widths, strict=True):
        ground[top : top + height, left : left + width] = np.asarray(Image.fromarray(film).resize((width, height)))
    return ground


def _exposed(film: Films, random: Random) -> Films:
    """Another exposure of the same picture: half of the time a gamma and a narrower range, else untouched."""
    if random.random() < 0.5:
        return np.ascontiguousarray(film)
    low, high = random.uniform(0, 50), random.uniform(190, 255)
    grey = (film / 255.0) ** random.uniform(0.6, 1.6)
    return np.asarray(low + grey * (high - low), np.uint8)


def _noise(size: int, random: Random) -> Films:
    cells = size if random.random() < 0.5 else int(random.integers(3, size))
    make = [
        lambda shape: random.random(shape),
        lambda shape: random.standard_normal(shape) * random.uniform(0.05, 0.3) + random.uniform(0.2, 0.8),
        lambda shape: np.less(random.random(shape), random.uniform(0.05, 0.5)).astype(float),
        lambda shape: np.repeat(random.random((shape[0], 1)), shape[1], 1),
    ][int(random.integers(4))]
    grid = make((cells, cells))
    filtering = Image.Resampling.BICUBIC if random.random() < 0.7 else Image.Resampling.NEAREST
    return _resized(np.clip(grid, 0, 1) * 255, size, filtering)


def _empty(size: int, random: Random) -> Films:
    """One grey, a ramp, or light falling off around a point."""
    grey, slope = random.uniform(0, 255), random.choice([0.0, random.uniform(-160, 160)])
    ramp = np.linspace(-0.5, 0.5, size)
    shape = [ramp[:, None], ramp[None], np.hypot(ramp[:, None] - random.normal() / 2, ramp[None] - random.normal() / 2)]
    field = grey + slope * shape[int(random.integers(3))]
    return np.asarray(np.clip(field + random.standard_normal((size, size)) * random.choice([0, 1, 4]), 0, 255), np.uint8)


def _page(size: int, random: Random) -> Films:
    """Lines of letters, as print or as a screen shows them, with a frame, rules or a table now and then."""
    scale = 2
    is_dark, letters = random.random() < 0.3, list("abcdefghijklmnopqrstuvwxyz      ABCDEGHMNRST0123456789.,")
    paper, ink = (
        (int(random.integers(0, 60)), 220) if is_dark else (int(random.integers(200, 256)), int(random.integers(0, 90)))
    )
    page = Image.new("L", (size * scale, size * scale), paper)
    draw = ImageDraw.Draw(page)
    height = int(random.integers(8, 34))
    font = ImageFont.load_default(height)
    left, top = (int(v) for v in random.integers(2, size // 4, 2))
    while top < size * scale - height:
        if random.random() < 0.85:
            text = "".join(random.choice(letters, int(random.integers(4, max(5, size * 4 // height)))))
            draw.text((left, top), text, fill=ink, font=font)
        if random.random() < 0.1:
            draw.line((left, top, size * scale - left, top), fill=ink, width=2)
        top += int(height * random.uniform(1.1, 1.6))
    if random.random() < 0.2:
        for column in range(int(random.integers(2, 6))):
            draw.line((column * size // 2, 0, column * size // 2, size * scale), fill=ink, width=2)
    return _resized(np.asarray(page), size)


# --- scenes ----------------------------------------------------------------------------------------------------------


def _drawing(size: int, random: Random) -> Films:
    """Flat shapes and lines on an even or ramped ground."""
    first, last = random.uniform(0, 255, 2).tolist()
    ground = np.linspace(first, last, size)[:, None] * np.ones((1, size))
    picture = Image.fromarray(np.clip(ground + random.standard_normal((size, size)) * 4, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(2, 14))):
        x, y, w, h = (int(v) for v in random.integers(-size // 6, size, 4))
        box, fill = (x, y, x + abs(w) // 2 + 8, y + abs(h) // 2 + 8), int(random.integers(0, 256))
        shape = random.integers(5)
        if shape == 0:
            draw.rectangle(box, fill=fill)
        elif shape == 1:
            draw.ellipse(box, fill=fill)
        elif shape == 2:
            draw.ellipse(box, outline=fill, width=int(random.integers(1, 5)))
        elif shape == 3:
            draw.line(
                [tuple(p) for p in random.integers(0, size, (5, 2)).tolist()], fill=fill, width=int(random.integers(1, 4))
            )
        else:
            draw.polygon([tuple(p) for p in random.integers(0, size, (4, 2)).tolist()], fill=fill)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(float(random.random() * 1.5))))


def _leaves(size: int, random: Random) -> Films:
    """Dead leaves: discs, boxes and slabs of power-law sizes in front of each other, under one texture."""
    picture = Image.new("L", (size, size), int(random.integers(0, 256)))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(30, 140))):
        radius = size * 0.5 * max(random.random(), 0.02) ** 2 + 2
        y, x, stretch = random.uniform(0, size), random.uniform(0, size), random.uniform(0.4, 2.5)
        shape = draw.ellipse if random.random() < 0.6 else draw.rectangle
        shape((x - radius, y - radius * stretch, x + radius, y + radius * stretch), fill=int(random.integers(0, 256)))
    texture = _field(size, random.uniform(0.8, 1.6), random) * random.uniform(3, 25)
    soft = Image.fromarray(np.clip(np.asarray(picture) + texture, 0, 255).astype(np.uint8))
    turned = soft.rotate(float(random.uniform(0, 90)), expand=True, resample=Image.Resampling.BILINEAR)
    inset = (turned.width - size * 2 // 3) // 2
    cut = turned.crop((inset, inset, turned.width - inset, turned.height - inset)).resize((size, size))
    return np.asarray(cut.filter(ImageFilter.GaussianBlur(float(random.random() * 1.2))))


def _clouds(size: int, random: Random) -> Films:
    """A field whose amplitude falls as frequency to the power -1 to -2, as that of photographs does."""
    field = _field(size, random.uniform(0.9, 2.0), random)
    if random.random() < 0.3:
        field = np.abs(field) * 2 - 1
    return np.asarray(np.clip(random.uniform(70, 185) + field * random.uniform(25, 75), 0, 255), np.uint8)


def _silhouette(size: int, random: Random) -> Films:
    """One black or white shape on its opposite."""
    field = _field(size, random.uniform(1.6, 2.6), random)
    dark, light = random.uniform(0, 40), random.uniform(180, 255)
    return np.asarray(np.where(field > random.normal() / 2, *random.permutation([dark, light])), np.uint8)


def _cutting(size: int, random: Random) -> Films:
    """A piece of one of two photographs, turned, mirrored, darkened or lightened."""
    picture = _photographs()[int(random.integers(2))]
    side = int(random.integers(90, min(picture.shape)))
    top, left = (int(random.integers(0, length - side + 1)) for length in picture.shape)
    piece = np.rot90(picture[top : top + side, left : left + side], int(random.integers(4)))
    piece = piece[:, ::-1] if random.random() < 0.5 else piece
    piece = 255 - piece if random.random() < 0.3 else piece
    return _exposed(_resized(piece, size), random)


_SCENES = (_drawing, _leaves, _clouds, _cutting, _silhouette, _leaves)


def _field(size: int, power: float, random: Random) -> npt.NDArray[np.float64]:
    """(size, size) of mean 0 and spread 1, its spectrum falling as frequency ** -power."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(random.standard_normal((size, size))) * frequency**-power
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, (size, size))
    return np.asarray(field / (field.std() + 1e-9))


@cache
def _photographs() -> tuple[Films, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(np.asarray(Image.fromarray(picture).convert("L")) for picture in load_sample_images().images)


# --- bodies ----------------------------------------------------------------------------------------------------------


def _body_slice(size: int, random: Random) -> Films:
    """A cut through a trunk or a head: an oval on black, a bright or dark rim, organs or a folded brain within it."""
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    tall, wide = random.uniform(0.5, 0.95, 2)
    across = np.hypot((rows - random.normal() * 0.06) / tall, (columns - random.normal() * 0.06) / wide)
    picture = np.full((size, size), random.choice([0.0, random.uniform(0, 25)]))
    tissue = random.uniform(70, 170)
    texture = _field(size, random.uniform(0.8, 1.6), random)
    inner = tissue + texture * random.uniform(4, 28)
    if random.random() < 0.5:  # a head: folds of grey on white, dark chambers in the middle
        inner = np.where(np.abs(texture) < random.uniform(0.1, 0.4), tissue * random.uniform(0.4, 1.4), inner)
        chambers = np.hypot(rows / 0.3, (np.abs(columns) - 0.08) / random.uniform(0.04, 0.14)) < 1
        inner = np.where(chambers, random.choice([tissue * 0.2, 230]), inner)
    else:  # a trunk: organs, air, a spine
        for _ in range(int(random.integers(3, 10))):
            y, x = random.uniform(-0.6, 0.6, 2)
            a, b = random.uniform(0.05, 0.4, 2)
            organ = np.hypot((rows - y) / a, (columns - x) / b) < 1
            inner = np.where(organ, random.choice([random.uniform(0, 40), tissue * random.uniform(0.7, 1.5)]), inner)
        inner = np.where(np.hypot(rows - random.uniform(0.3, 0.5), columns * 0.8) < 0.11, 230, inner)
        below = np.abs(np.hypot(rows + 1.2, columns) - random.uniform(2.0, 2.2)) < 0.02
        picture = np.where(below, 110, picture)
    rim = random.choice([235.0, 20.0, tissue * 0.6])
    picture = np.where(across < 1, rim, picture)
    picture = np.where(across < 1 - random.uniform(0.04, 0.14), inner, picture)
    soft = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).rotate(float(random.normal() * 10))
    return np.asarray(soft.filter(ImageFilter.GaussianBlur(float(random.uniform(0.3, 1.6)))))


def _limb(size: int, random: Random) -> Films:
    """Bright shafts with wider ends inside softer flesh on a dark ground: a hand, a leg, an arm."""
    picture = np.full((size, size), random.uniform(0, 40))
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    turn = random.uniform(0, np.pi)
    along, aside = rows * np.cos(turn) + columns * np.sin(turn), columns * np.cos(turn) - rows * np.sin(turn)
    flesh = np.clip(random.uniform(0.3, 0.8) - np.abs(aside + 0.1 * along**2), 0, 0.25) * 4
    picture += flesh * random.uniform(40, 90)
    for centre in np.linspace(-0.35, 0.35, int(random.integers(1, 5))):
        joint = random.uniform(-0.4, 0.4)
        width = random.uniform(0.05, 0.11) * (1 + 0.8 * np.exp(-(((along - joint) / 0.15) ** 2)))
        depth = np.clip(1 - ((aside - centre) / width) ** 2, 0, 1)
        gap = np.abs(along - joint) > random.uniform(0.01, 0.04)
        picture += np.sqrt(depth) * gap * random.uniform(70, 140)
    texture = _field(size, 1.2, random) * random.uniform(2, 8)
    soft = Image.fromarray(np.clip(picture + texture, 0, 255).astype(np.uint8))
    return np.asarray(soft.filter(ImageFilter.GaussianBlur(float(random.uniform(0.4, 1.4)))))


def _resized(grey: npt.NDArray[np.generic], size: int, how: Image.Resampling = Image.Resampling.BICUBIC) -> Films:
    return np.asarray(Image.fromarray(np.asarray(grey).astype(np.uint8)).resize((size, size), how))
