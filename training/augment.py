"""What a training film may look like: geometry, exposure, sharpness, borders, as another hospital's scanner would give them.

All functions take and return a batch (B, C, H, W) of float films in 0..1 and draw from the generator they are
given, so that a resumed run sees the same films. No horizontal flip: left and right carry meaning in a chest film.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AugmentStrength:
    """How far a film may be moved; 0 everywhere is the identity."""

    rotate_degrees: float = 12.0
    zoom: float = 0.2
    shift: float = 0.08
    gamma: float = 0.5
    contrast: float = 0.35
    brightness: float = 0.12
    equalise: float = 0.25  # probability of a per-film percentile stretch
    resample: float = 0.4  # probability of going down to a lower resolution and up again
    noise: float = 0.03
    border: float = 0.15  # probability of a dark or bright frame
    erase: float = 0.25  # probability of a grey rectangle


def augment(films: Tensor, size: int, strength: AugmentStrength, generator: torch.Generator) -> Tensor:
    """(B, C, h, w) in 0..1 -> (B, C, size, size) in 0..1."""
    return _appearance(_affine(films, size, strength, generator), strength, generator)


def augment_with_masks(
    films: Tensor, masks: Tensor, size: int, strength: AugmentStrength, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Films (B, C, h, w) as `augment` makes them, and masks (B, K, h, w) in 0..1 moved along with them."""
    moved = _affine(torch.cat([films, masks], dim=1), size, strength, generator)
    channels = films.shape[1]
    return _appearance(moved[:, :channels], strength, generator), moved[:, channels:]


def _appearance(films: Tensor, strength: AugmentStrength, generator: torch.Generator) -> Tensor:
    """All that moves nothing."""
    films = _resample(films, strength.resample, generator)
    films = _expose(films, strength, generator)
    films = _frame(films, strength.border, generator)
    films = _erase(films, strength.erase, generator)
    if strength.noise:
        sigma = strength.noise * _uniform(films, generator, 0.0, 1.0).view(-1, 1, 1, 1)
        films = films + sigma * _normal(films, generator)
    return films.clamp(0.0, 1.0)


def mirror(
    films: Tensor, targets: Tensor, target_names: Sequence[str], probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Films (B, 1, H, W) mirrored with `probability`; the targets (B, K) whose name ends in left and right change places."""
    other = {"left": "right", "right": "left"}
    places = {name: column for column, name in enumerate(target_names)}
    swapped = [
        places.get(f"{name.rpartition(' ')[0]} {other[name.rpartition(' ')[2]]}", column)
        if name.rpartition(" ")[2] in other
        else column
        for column, name in enumerate(target_names)
    ]
    chosen = _chosen(films, generator, probability).to(films.device)
    films, targets = films.clone(), targets.clone()
    films[chosen] = films[chosen].flip(-1)
    targets[chosen] = targets[chosen][:, swapped]
    return films, targets


def mix(
    films: Tensor, targets: Tensor, streams: Sequence[str], strength: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each film (B, 1, H, W) blended with another of its stream, targets (B, K) alike (mixup, Zhang 2018).

    The share is drawn from Beta(strength, strength). Only films of one stream are blended: across streams little is
    known of both, and what is unknown of either is unknown of the blend.
    """
    partner = torch.arange(len(streams))
    for stream in set(streams):
        members = torch.tensor([i for i, name in enumerate(streams) if name == stream])
        partner[members] = members[torch.randperm(len(members), generator=generator)]
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    share = torch.from_numpy(random.beta(strength, strength, len(streams)).astype(np.float32)).to(films.device)
    share = torch.maximum(share, 1 - share)
    pixels, values = share.view(-1, 1, 1, 1), share.view(-1, 1)
    return films * pixels + films[partner] * (1 - pixels), targets * values + targets[partner] * (1 - values)


def to_lower_resolution(films: Tensor, pixels: int) -> Tensor:
    """Films as if they had only been kept at `pixels` squared: down and up again, same shape."""
    size = films.shape[-1]
    small = F.interpolate(films, pixels, mode="bilinear", antialias=True)
    return F.interpolate(small, size, mode="bicubic").clamp(0.0, 1.0)


def _uniform(films: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """(B,) one value a film, where the films are; drawn on the CPU, so that every device is dealt the same."""
    return (torch.rand(films.shape[0], generator=generator) * (high - low) + low).to(films.device)


def _chosen(films: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """(B,) bool on the CPU: which films were drawn."""
    return torch.rand(films.shape[0], generator=generator) < probability


def _normal(films: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the films' shape, drawn where they are: too many numbers to be carried there."""
    if films.device.type == "cpu":
        return torch.randn(films.shape, generator=generator)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    own = torch.Generator(films.device).manual_seed(seed)
    return torch.randn(films.shape, generator=own, device=films.device)


def _affine(films: Tensor, size: int, strength: AugmentStrength, generator: torch.Generator) -> Tensor:
    count = films.shape[0]
    angle = _uniform(films, generator, -1, 1) * math.radians(strength.rotate_degrees)
    zoom = 1 + _uniform(films, generator, -1.0, 0.5) * strength.zoom
    stretch = 1 + _uniform(films, generator, -1, 1) * strength.zoom * 0.4
    shift = torch.stack([_uniform(films, generator, -1, 1), _uniform(films, generator, -1, 1)], 1) * 2 * strength.shift
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack(
        [torch.stack([cos * stretch, -sin, shift[:, 0]], 1), torch.stack([sin * stretch, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
    return F.grid_sample(films, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _resample(films: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """One lower resolution is drawn for the batch; each film goes there and back with `probability`."""
    size = films.shape[-1]
    pixels = int(size * (float(torch.rand(1, generator=generator)) * 0.45 + 0.45))
    chosen = _chosen(films, generator, probability)
    if chosen.any():
        films = films.clone()
        films[chosen] = to_lower_resolution(films[chosen], pixels)
    return films


def _expose(films: Tensor, strength: AugmentStrength, generator: torch.Generator) -> Tensor:
    stretched = _chosen(films, generator, strength.equalise)
    if stretched.any():
        films = films.clone()
        flat = films[stretched].flatten(1)
        low, high = (torch.quantile(flat[:, ::7], q, dim=1).view(-1, 1, 1, 1) for q in (0.02, 0.98))
        films[stretched] = ((films[stretched] - low) / (high - low).clamp_min(0.05)).clamp(0.0, 1.0)
    gamma = torch.exp(_uniform(films, generator, -1, 1) * strength.gamma).view(-1, 1, 1, 1)
    contrast = 1 + _uniform(films, generator, -1, 1).view(-1, 1, 1, 1) * strength.contrast
    brightness = _uniform(films, generator, -1, 1).view(-1, 1, 1, 1) * strength.brightness
    films = films.clamp_min(1e-4) ** gamma
    mean = films.mean(dim=(2, 3), keepdim=True)
    return (films - mean) * contrast + mean + brightness


def _some_of(films: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Films that may be written to, and the places of those that were drawn."""
    chosen = _chosen(films, generator, probability).nonzero().flatten().tolist()
    return (films.clone() if chosen else films), chosen


def _frame(films: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    height, width = films.shape[-2:]
    films, chosen = _some_of(films, probability, generator)
    for index in chosen:
        sides = (torch.rand(4, generator=generator) * 0.12 * width).int().tolist()
        grey = float(torch.rand(1, generator=generator) < 0.15)
        films[index, :, : sides[0]] = grey
        films[index, :, height - sides[1] :] = grey
        films[index, :, :, : sides[2]] = grey
        films[index, :, :, width - sides[3] :] = grey
    return films


def _erase(films: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    height, width = films.shape[-2:]
    films, chosen = _some_of(films, probability, generator)
    for index in chosen:
        edge = torch.rand(4, generator=generator)
        tall, wide = int(height * (0.08 + 0.2 * edge[0])), int(width * (0.08 + 0.2 * edge[1]))
        top, left = int((height - tall) * edge[2]), int((width - wide) * edge[3])
        films[index, :, top : top + tall, left : left + wide] = float(torch.rand(1, generator=generator))
    return films
