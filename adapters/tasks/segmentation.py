"""The segmentation task: for each class a mask in the film's own geometry, or "nothing here".

    levels 1/4 .. end --1x1--> added from coarse to fine --+--> x at 1/4 --+--> x at 1/2 of the square's side
    film (B, 3, S, S) --two strided convolutions-----------'---------------'         (borders come from the film)

    mask_k      = x . query_k            query_k: the class's text vector through a linear map
    presence_k  = is there any of it?    below its threshold the mask is emptied

A class starts from the words of its name and goes on learning; a phrase in free words takes its place by its text
embedding (`Segmenter.ask`). Points and boxes (`prompting.py`) come after: they choose among the parts that were drawn and
correct them one by one (`refining.py`). Without marks the whole of each class is meant.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from adapters.card import AdapterCard
from adapters.tasks.classification import EncodesText, mean_text
from adapters.tasks.heads import bind_head, head_options, standardised
from adapters.tasks.parts import largest_parts
from adapters.tasks.prompting import Prompt, on_grid
from adapters.tasks.refining import Refiner, Words, answer_marks
from adapters.tasks.rle import to_rle
from foundation.errors import AdapterRefused, InvalidRequest
from foundation.preprocess import InputContract, placement, to_film

TASK = "segmentation"
DECODER_WIDTH = 64
FINE_WIDTH = 32


class HasLevels(Protocol):
    """What the head reads of `ImageFeatures`."""

    @property
    def levels(self) -> tuple[Tensor, ...]: ...  # (B, D_l, H_l, W_l), fine to coarse or all alike


@dataclass(frozen=True)
class SegmentationOutput:
    """masks (B, K, S/2, S/2) and presence (B, K), both raw logits; x (B, C, S/2, S/2), what the masks are read from."""

    masks: Tensor
    presence: Tensor
    x: Tensor


class SegmentationHead(nn.Module):
    """Levels and film to K mask logits and K presence logits; `refiner` corrects them by marks."""

    def __init__(self, labels: int, embed_dim: int, level_widths: Sequence[int]) -> None:
        super().__init__()
        C, C_fine = DECODER_WIDTH, FINE_WIDTH
        self.text = nn.Parameter(torch.zeros(labels, embed_dim))
        self.laterals = nn.ModuleList(nn.Conv2d(width, C, 1) for width in level_widths)
        self.mixes = nn.ModuleList(_convolution(C, C) for _ in level_widths)
        self.shallow = _convolution(3, 16, stride=2)
        self.fine = _convolution(16, FINE_WIDTH, stride=2)
        self.join_fine = _convolution(C + FINE_WIDTH, C_fine)
        self.join_shallow = _convolution(C_fine + 16, C_fine)
        self.query = nn.Linear(embed_dim, C_fine)
        self.bias = nn.Linear(embed_dim, 1)
        self.presence_query = nn.Linear(embed_dim, C)
        self.presence_scale = nn.Parameter(torch.ones(2))
        self.presence_bias = nn.Linear(embed_dim, 1)
        self.refiner = Refiner(C_fine)

    def forward(self, features: HasLevels, pixels: Tensor, phrases: Tensor | None = None) -> SegmentationOutput:
        """pixels (B, 3, S, S), normalised. phrases: text embeddings (Q, E) asked for in the place of the K classes."""
        shallow = self.shallow(pixels.float())  # (B, 16, S/2, S/2)
        fine = self.fine(shallow)  # (B, C_fine, S/4, S/4)
        coarse, x = self._descend(features.levels)
        x = self.join_fine(torch.cat([_resize(x, fine), fine], dim=1))
        x = self.join_shallow(torch.cat([_resize(x, shallow), shallow], dim=1))
        text = self.text if phrases is None else phrases.float()
        text = F.layer_norm(text, text.shape[-1:])  # (K, E)
        query = self.query(text).expand(x.shape[0], -1, -1)  # (B, K, C_fine)
        sought = self.presence_query(text).expand(x.shape[0], -1, -1)
        masks = torch.einsum("bkc,bchw->bkhw", query, x) + self.bias(text).view(1, -1, 1, 1)
        best = F.avg_pool2d(masks, max(1, masks.shape[-1] // 12)).amax(dim=(2, 3))
        seen = torch.einsum("bkc,bc->bk", sought, coarse.mean(dim=(2, 3)))
        usual = self.presence_bias(text).view(1, -1)
        return SegmentationOutput(masks, self.presence_scale[0] * best + self.presence_scale[1] * seen + usual, x)

    @torch.no_grad()
    def start_from_text(self, backbone: EncodesText, labels: Sequence[str], templates: Sequence[str]) -> None:
        """Each class's vector is the mean embedding of the templates filled with its name."""
        for template in templates:
            if template.count("{}") != 1:
                raise InvalidRequest(f"The template {template!r} must hold '{{}}' once.", param="templates")
        rows = [mean_text(backbone, [template.format(label) for template in templates]) for label in labels]
        self.text.copy_(torch.stack(rows))

    def _descend(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The coarsest map after mixing, for what needs the whole picture, and the finest (B, C, h, w)."""
        coarse = x = None
        for level, lateral, mix in reversed(list(zip(levels, self.laterals, self.mixes, strict=True))):
            own = lateral(standardised(level))
            if x is not None:
                own = own + _resize(x, own)
            x = own + mix(own)
            coarse = x if coarse is None else coarse
        if x is None or coarse is None:
            raise InvalidRequest("Segmentation needs a backbone whose features have levels.", param="checkpoint")
        return coarse, x


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """What the task says about one film; masks (K, H, W) in the film's own pixels, emptied where nothing was found.

    unions: names for several classes together, for which `mask`, `rle`, `png` and `area_mm2` can be asked as well.
    """

    labels: tuple[str, ...]
    masks: npt.NDArray[np.bool_]
    presence: npt.NDArray[np.float64]  # (K,) probability that there is any of the class
    thresholds: npt.NDArray[np.float64]  # (K,) on presence
    unions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def found(self) -> tuple[str, ...]:
        return tuple(label for label, mask in zip(self.labels, self.masks, strict=True) if mask.any())

    def mask(self, label: str) -> npt.NDArray[np.bool_]:
        if label in self.unions:
            return np.asarray(np.any([self.mask(part) for part in self.unions[label]], axis=0))
        if label not in self.labels:
            known = ", ".join((*self.labels, *self.unions))
            raise InvalidRequest(f"There is no class {label!r} here; known are {known}.", param="label")
        return np.asarray(self.masks[self.labels.index(label)])

    def rle(self, label: str) -> dict[str, object]:
        """The mask as COCO run lengths."""
        return to_rle(self.mask(label))

    def png(self, label: str) -> bytes:
        """The mask as a one-bit grey PNG: 255 inside."""
        target = io.BytesIO()
        Image.fromarray(np.where(self.mask(label), np.uint8(255), np.uint8(0))).convert("1").save(target, "PNG")
        return target.getvalue()

    def area_mm2(self, label: str, spacing_mm: tuple[float, float]) -> float:
        """Area for pixels of (row, column) spacing."""
        return float(self.mask(label).sum()) * spacing_mm[0] * spacing_mm[1]


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A head with its card: features and pixels in, masks in each film's geometry out.

    parts: how many connected parts a class can have, the largest being kept; 0: any number. context: how many slices away
    the neighbours are that a volume's slice is shown with (`volume.py`); 0: it was taught on single pictures.
    """

    card: AdapterCard
    head: SegmentationHead
    unions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parts: int = 0
    context: int = 0

    @classmethod
    def open(cls, card: AdapterCard, tensors: Mapping[str, Tensor]) -> Segmenter:
        """Bind the head's tensors; refused where one is missing, unexpected or of another shape."""
        options: dict[str, Any] = head_options(
            card, TASK, ("embed_dim", "level_widths"), {"context": 0, "parts": 0, "unions": {}}
        )
        widths = [int(width) for width in options["level_widths"]]
        unions = {str(name): tuple(map(str, parts)) for name, parts in dict(options["unions"]).items()}
        odd = sorted({part for parts in unions.values() for part in parts} - set(card.labels))
        if odd:
            raise AdapterRefused(f"The card's unions name classes that it does not have: {', '.join(odd)}.")
        head = SegmentationHead(len(card.labels), int(options["embed_dim"]), widths)
        return cls(card, bind_head(head, tensors), unions, int(options["parts"]), int(options["context"]))

    @torch.no_grad()
    def __call__(
        self,
        features: HasLevels,
        pixels: Tensor,
        films: Sequence[tuple[int, int]],
        contract: InputContract,
        prompts: Sequence[Prompt | None] | None = None,
        asked: Sequence[str] = (),
    ) -> list[SegmentationResult]:
        """One result per row. films: each film's (height, width); pixels (B, 3, S, S) as the backbone saw them.

        asked: the classes and unions that marks can speak of; all classes where it is empty. A class that no inside mark
        speaks of is empty in the answer to a prompt.
        """
        output = self.head(features, pixels)
        results = [self.result(*each, film, contract) for each, film in zip(_chances(output), films, strict=True)]
        for row, prompt in enumerate(prompts or ()):
            if prompt is not None and (prompt.points or prompt.boxes):
                results[row] = self._marked(output, row, results[row], prompt, films[row], contract, asked)
        return results

    @torch.no_grad()
    def ask(
        self,
        features: HasLevels,
        pixels: Tensor,
        films: Sequence[tuple[int, int]],
        contract: InputContract,
        phrases: Mapping[str, Tensor],
    ) -> list[SegmentationResult]:
        """What free words mean, in the place of the classes. phrases: each with the backbone's text embedding (E,)."""
        labels = tuple(phrases)
        output = self.head(features, pixels, torch.stack([phrases[label] for label in labels]).to(pixels.device))
        halves = np.full(len(labels), 0.5)
        return [
            SegmentationResult(labels, _drawn(chances, presence, halves, film, contract, 0), presence, halves)
            for (chances, presence), film in zip(_chances(output), films, strict=True)
        ]

    def result(
        self,
        chances: npt.NDArray[np.float32],
        presence: npt.NDArray[np.float64],
        film: tuple[int, int],
        contract: InputContract,
    ) -> SegmentationResult:
        """chances (K, h, w) over the model's square, each pixel's probability -> masks in the film."""
        thresholds = np.array(self.card.thresholds or [0.5] * len(self.card.labels))
        masks = _drawn(chances, presence, thresholds, film, contract, self.parts)
        return SegmentationResult(self.card.labels, masks, presence, thresholds, self.unions)

    def _marked(
        self,
        output: SegmentationOutput,
        row: int,
        words: SegmentationResult,
        prompt: Prompt,
        film: tuple[int, int],
        contract: InputContract,
        asked: Sequence[str],
    ) -> SegmentationResult:
        """The answer to marks. A class that a point speaks of is there, since a person says so."""
        names = {part for label in asked or self.card.labels for part in self.unions.get(label, (label,))}
        classes = [k for k, label in enumerate(self.card.labels) if label in names]
        looked = Words(output.x[row], output.masks[row].float().cpu().numpy())
        marks = on_grid(prompt, film, placement(*film, contract), output.masks.shape[-1])
        answers = answer_marks(self.head.refiner, looked, marks, classes, self.parts)
        masks, presence = np.zeros_like(words.masks), np.zeros_like(words.presence)
        for k, answer in enumerate(answers):
            if answer is None:
                continue
            presence[k] = 1.0 if answer.is_pointed else words.presence[k]
            if presence[k] < words.thresholds[k]:
                continue
            chances = torch.from_numpy(answer.logits).sigmoid().numpy()
            masks[k] = to_film(chances, *film, contract) >= 0.5
            for point in (prompt.points[place] for place in answer.points):  # exact, where a cell is larger than a pixel
                masks[k, int(point.row), int(point.column)] = point.is_inside
        return replace(words, masks=masks, presence=presence)


def _chances(output: SegmentationOutput) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]]:
    """Of each row the masks' (K, h, w) and the presences' (K,) probabilities."""
    yield from zip(output.masks.float().sigmoid().cpu().numpy(), output.presence.double().sigmoid().cpu().numpy(), strict=True)


def _drawn(
    chances: npt.NDArray[np.float32],
    presence: npt.NDArray[np.float64],
    thresholds: npt.NDArray[np.float64],
    film: tuple[int, int],
    contract: InputContract,
    parts: int,
) -> npt.NDArray[np.bool_]:
    """(K, H, W) in the film's pixels."""
    masks = np.stack([largest_parts(to_film(chance, *film, contract) >= 0.5, parts) for chance in chances])
    masks[presence < thresholds] = False
    return masks


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.GELU())


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
