"""The anomaly task: how strange a film is among normal ones, as a p-value, and where.

    text            patches and film compared with what findings are called      no training at all
    memory          distance of each patch to the nearest of many normal ones    a handful of normal films
    reconstruction  what normal patches' main components cannot rebuild          a handful of normal films
    trained         a small map over the last two levels, and for the film as    abnormal or synthetic films
                    a whole a linear reading of its levels

Each branch gives a map (B, h, w) and a score for the film: of the text branch what the film's own embedding says, of others
the mean of their strangest patches. A map is taken relative to what is usual at each place of normal
films. `reference.py` fuses the scores by their ranks among held-out normal films. The heat map is fused likewise: 0.95
means that 95 % of the patches of normal films are less strange. Sources: Zhou 2024 (AnomalyCLIP), Roth 2022 (PatchCore:
greedy coreset of locally averaged patch features), Yang 2020 (DFR: rebuilding of deep features, here linear).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.card import AdapterCard
from adapters.tasks.classification import EncodesText, Prompts, mean_text
from adapters.tasks.heads import bind_head, head_options, standardised
from adapters.tasks.heat import heat_png
from adapters.tasks.levels import LevelReader, pool_levels
from adapters.tasks.reference import NormalReference
from foundation.errors import AdapterRefused
from foundation.preprocess import InputContract, to_film

TASK = "anomaly"
LABEL = "anomaly"
BRANCHES = ("text", "memory", "reconstruction", "trained")
QUANTILES = 257
TRAINED_WIDTH = 32
TOP_SHARE = 0.08  # of the patches: their mean is the film's score
PLACE_WEIGHT = 0.35  # how much a patch's place counts beside what it shows, whose vector has length one


class HasPlaces(Protocol):
    """What the head reads of `ImageFeatures`."""

    @property
    def embedding(self) -> Tensor: ...  # (B, E), L2-normalised

    @property
    def levels(self) -> tuple[Tensor, ...]: ...  # (B, D_l, H_l, W_l)

    @property
    def grid(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class HeadShape:
    """The sizes of a head's tensors; what a card records. level_widths: of the last three levels.

    components: of normal patches, that rebuild others. places: (h, w) of what is usual where, (1, 1) being everywhere.
    read_widths: of the first levels, or all, that are read linearly, pooled by read_pools; empty reads none.
    """

    embed_dim: int
    level_widths: tuple[int, int, int]
    findings: int
    memory: int
    memory_width: int
    reference: int
    components: int = 1
    places: tuple[int, int] = (1, 1)
    read_widths: tuple[int, ...] = ()
    read_pools: tuple[str, ...] = ("mean", "std")


@dataclass(frozen=True)
class AnomalyOutput:
    """maps (B, 4, h, w) and films (B, 4): one for each of BRANCHES, larger is stranger; not yet comparable."""

    maps: Tensor
    films: Tensor


class AnomalyHead(nn.Module):
    """`laterals`, `patch` and `whole` are trained by gradients, then `reader` is fitted in closed form beside them.

    Buffers are computed from normal films afterwards; `share`, how much the first three count beside the reader, is chosen.
    """

    text: Tensor
    share: Tensor
    projection: Tensor
    memory: Tensor
    centre: Tensor
    components: Tensor
    usual: Tensor
    log_spread: Tensor
    reference: Tensor
    weights: Tensor
    quantiles: Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.laterals = nn.ModuleList(nn.Conv2d(width, TRAINED_WIDTH, 1) for width in shape.level_widths[1:])
        self.patch = nn.Conv2d(TRAINED_WIDTH, 1, 3, padding=1)
        self.whole = nn.Linear(shape.embed_dim, 1)
        self.reader = LevelReader(shape.read_widths, shape.read_pools, 1).requires_grad_(False) if shape.read_widths else None
        self.register_buffer("share", torch.ones(()))
        self.register_buffer("text", torch.zeros(shape.findings, shape.embed_dim))
        self.register_buffer("projection", torch.zeros(sum(shape.level_widths[:2]), shape.memory_width))
        self.register_buffer("memory", torch.zeros(shape.memory, shape.memory_width + 2))
        self.register_buffer("centre", torch.zeros(shape.memory_width))
        self.register_buffer("components", torch.zeros(shape.memory_width, shape.components))
        self.register_buffer("usual", torch.zeros(len(BRANCHES), *shape.places))
        self.register_buffer("log_spread", torch.zeros(len(BRANCHES), *shape.places))
        self.register_buffer("reference", torch.zeros(shape.reference, len(BRANCHES)))
        self.register_buffer("weights", torch.ones(len(BRANCHES)))
        self.register_buffer("quantiles", torch.zeros(len(BRANCHES) + 1, QUANTILES))

    def forward(self, features: HasPlaces, patches: Tensor) -> AnomalyOutput:
        """patches (B, N, E): the backbone's patch embeddings, in the space of texts."""
        maps, overall, trained = self.raw(features, patches)
        maps = (maps - self.usual) * torch.exp(-self.log_spread)
        memory, rebuilt = (top_mean(maps[:, branch]) for branch in (1, 2))
        return AnomalyOutput(maps, torch.stack([overall, memory, rebuilt, self.together(features, trained)], dim=1))

    def together(self, features: HasPlaces, trained: Tensor) -> Tensor:
        """(B,) the trained branch's film logits (B,) with the reading of the levels."""
        if self.reader is None:
            return trained
        read: Tensor = self.reader(pool_levels(features.levels[: len(self.reader.widths)], self.reader.pools))[:, 0]
        return read + self.share * trained

    def raw(self, features: HasPlaces, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, 4, h, w) as the branches give them, on the grid of the third level from the end.

        Beside them (B,) each: that any finding is there by the film's own embedding, and the trained branch's film logits.
        """
        described = self.describe(features)
        trained_map, trained = self.trained(features)
        text_map = (patches.float() @ self.text.T).amax(dim=-1).unflatten(1, features.grid)  # (B, h', w')
        maps = [text_map, self.distances(described), self.residuals(described), trained_map]
        overall = -F.logsigmoid(-(features.embedding.float() @ self.text.T)).sum(dim=-1)
        return torch.stack([_resized(one, described[..., 0]) for one in maps], dim=1), overall, trained

    def trained(self, features: HasPlaces) -> tuple[Tensor, Tensor]:
        """Patch logits (B, h, w) on the grid of the last level but one, and film logits (B,)."""
        first, last = (lateral(standardised(x)) for lateral, x in zip(self.laterals, features.levels[-2:], strict=True))
        x = F.gelu(first + F.interpolate(last, first.shape[-2:], mode="bilinear", align_corners=False))
        maps = self.patch(x)[:, 0]
        return maps, self.whole(features.embedding.float())[:, 0] + top_mean(maps)

    def describe(self, features: HasPlaces) -> Tensor:
        """(B, h, w, memory_width + 2): what each patch and its neighbours show, at 1/2 and 3/4 of the depth, and where."""
        low, high = (F.avg_pool2d(standardised(x), 3, 1, 1, count_include_pad=False) for x in features.levels[-3:-1])
        high = F.interpolate(high, low.shape[-2:], mode="bilinear", align_corners=False)
        shown = torch.cat([low, high], dim=1).movedim(1, -1) @ self.projection
        B, h, w, _ = shown.shape
        rows, columns = torch.meshgrid(_places(h, shown), _places(w, shown), indexing="ij")
        place = torch.stack([rows, columns], dim=-1).expand(B, -1, -1, -1)
        return torch.cat([F.normalize(shown, dim=-1), PLACE_WEIGHT * place], dim=-1)

    def distances(self, described: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h, w): distance of each patch to the nearest one in memory."""
        return torch.cdist(described.flatten(0, 2), self.memory).amin(dim=1).view(described.shape[:3])

    def residuals(self, described: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h, w): length of what is left of each patch when the components have rebuilt it."""
        shown = described[..., : self.shape.memory_width] - self.centre
        left: Tensor = (shown - shown @ self.components @ self.components.T).norm(dim=-1)
        return left

    @torch.no_grad()
    def start_from_text(self, backbone: EncodesText, prompts: Prompts) -> None:
        """One direction a finding, from sentences that deny it to sentences that state it.

        "Normal" has no prompt of its own: it is the absence of all of them.
        """
        states = torch.stack([mean_text(backbone, texts) for texts in prompts.positive])
        denies = torch.stack([mean_text(backbone, texts) for texts in prompts.negative])
        self.text.copy_(backbone.logit_scale * (states - denies))

    @torch.no_grad()
    def start_projection(self, seed: int) -> None:
        """A random projection, which keeps distances nearly as they are (Johnson and Lindenstrauss)."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.projection.shape, generator=generator) / math.sqrt(self.shape.memory_width)
        self.projection.copy_(drawn.half().float())


@dataclass(frozen=True, eq=False)
class AnomalyResult:
    """What the task says about one film.

    p_value: the share of normal films at least as strange (see `reference.py`); branches: each branch's own.
    heat (H, W) in 0..1, in the film's geometry: the share of normal films' patches that are less strange.
    """

    p_value: float
    branches: Mapping[str, float]
    heat: npt.NDArray[np.float32]
    normals: int  # how many held-out normal films p rests on

    @property
    def score(self) -> float:
        return 1.0 - self.p_value

    def heat_png(self) -> tuple[bytes, tuple[float, float]]:
        """A 16-bit grey PNG and the values that its 0 and 65535 stand for."""
        return heat_png(self.heat)

    def placed(self, film: tuple[int, int], contract: InputContract) -> AnomalyResult:
        """The same with the heat of the model's square laid over a film of (height, width)."""
        return replace(self, heat=to_film(self.heat, *film, contract))


@dataclass(frozen=True, eq=False)
class Detector:
    """A head with its card: features in, p-values and heat maps out."""

    card: AdapterCard
    head: AnomalyHead

    @classmethod
    def open(cls, card: AdapterCard, tensors: Mapping[str, Tensor]) -> Detector:
        """Bind the head's tensors; refused where one is missing, unexpected or of another shape."""
        sizes = set(HeadShape.__dataclass_fields__) - {"components", "places", "read_widths", "read_pools"}
        optional = {"components": 1, "places": [1, 1], "read_widths": [], "read_pools": ["mean", "std"]}
        options: dict[str, Any] = head_options(card, TASK, tuple(sizes), optional)
        read = tuple(int(width) for width in options.pop("read_widths"))
        pools = tuple(str(name) for name in options.pop("read_pools"))
        widths = tuple(int(width) for width in options.pop("level_widths"))
        rows, columns = (int(count) for count in options.pop("places"))
        if len(widths) != 3 or not int(options["reference"]):
            raise AdapterRefused("The card's head needs three level_widths and at least one reference film.")
        whole = {name: int(value) for name, value in options.items()}
        shape = HeadShape(level_widths=widths, places=(rows, columns), read_widths=read, read_pools=pools, **whole)
        head = AnomalyHead(shape)
        return cls(card, bind_head(head, tensors))

    @property
    def reference(self) -> NormalReference:
        return NormalReference(_double(self.head.reference), _double(self.head.weights))

    @torch.no_grad()
    def __call__(
        self, features: HasPlaces, patches: Tensor, films: Sequence[tuple[int, int]], contract: InputContract
    ) -> list[AnomalyResult]:
        """One result per row; films: each film's (height, width)."""
        return [one.placed(film, contract) for one, film in zip(self.judge(features, patches), films, strict=True)]

    @torch.no_grad()
    def judge(self, features: HasPlaces, patches: Tensor) -> list[AnomalyResult]:
        """One result per row, its heat (h, w) still over the model's square."""
        output = self.head(features, patches)
        scores, reference = _double(output.films), self.reference
        p_values, branches = reference.p_values(scores), reference.branch_p(scores)
        heat = self.heat(output.maps.float().cpu().numpy())
        normals = len(reference.scores)
        named = [dict(zip(BRANCHES, own, strict=True)) for own in branches.tolist()]
        return [AnomalyResult(float(p), own, one, normals) for p, own, one in zip(p_values, named, heat, strict=True)]

    def heat(self, maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, 4, h, w) -> (B, h, w): the rank of the branches' weighted ranks among those of normal patches."""
        *tables, fused = _double(self.head.quantiles)
        ranks = mean_rank(maps, tables, _double(self.head.weights))
        return np.asarray(np.interp(ranks, fused, np.linspace(0.0, 1.0, QUANTILES)), dtype=np.float32)


def mean_rank(
    maps: npt.NDArray[np.float32], tables: Sequence[npt.NDArray[np.float64]], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(B, 4, h, w) -> (B, h, w): each branch's rank among normal patches, whose quantiles `tables` hold, averaged."""
    levels = np.linspace(0.0, 1.0, QUANTILES)
    ranks = [np.interp(maps[:, b], table, levels) for b, table in enumerate(tables)]
    return np.asarray(np.average(ranks, axis=0, weights=weights))


def top_mean(maps: Tensor) -> Tensor:
    """(B, h, w) -> (B,): the mean of the strangest patches."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(TOP_SHARE * flat.shape[1])), dim=1).values.mean(dim=1)


def greedy_coreset(patches: Tensor, count: int, seed: int) -> Tensor:
    """Up to `count` rows of patches (P, D) that cover the others: each next one is the farthest from those taken."""
    count = min(count, len(patches))
    chosen = [int(torch.randint(len(patches), (1,), generator=torch.Generator().manual_seed(seed)))]
    nearest = torch.full((len(patches),), float("inf"))
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (patches - patches[chosen[-1]]).square().sum(dim=1))
        chosen.append(int(nearest.argmax()))
    return patches[chosen]


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    if maps.shape == like.shape:
        return maps
    return F.interpolate(maps[:, None], like.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def _places(count: int, like: Tensor) -> Tensor:
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count * 2 - 1


def _double(tensor: Tensor) -> npt.NDArray[np.float64]:
    return np.asarray(tensor.double().cpu().numpy())
