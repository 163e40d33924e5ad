"""Training of the segmentation task: what is shown, what is wanted, and how far off an answer is.

Each film is augmented anew in every epoch, masks along with it. A small share is replaced by a picture that holds
nothing, so that "nothing here" is learnt. A share of batches is asked in free words (`phrases.py`) in the place of classes,
words for what is not there among them. Points and boxes are learnt afterwards (`click_trainee.py`).
Losses are MONAI's (Dice and cross-entropy), imported when the first loss is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.tasks.segmentation import SegmentationHead, SegmentationOutput
from foundation.preprocess import InputContract
from training.augment import AugmentStrength, augment_with_masks
from training.finetuning.adapted_tower import AdaptedTower, level_widths, levels_of_black
from training.finetuning.classification.trainee import patient_chances
from training.finetuning.job import TrainableBackbone
from training.finetuning.recipe import LoraRecipe
from training.finetuning.segmentation.masks import MaskedFilms
from training.finetuning.segmentation.phrases import SpokenPhrases
from training.finetuning.trunk_cache import to_pixels, to_unit

Loss = Callable[[Tensor, Tensor], Tensor]
PRESENCE_WEIGHT = 0.25


class AdaptedSegmenter(AdaptedTower):
    """The adapted tower with the segmentation head, its classes started from text."""

    head: SegmentationHead

    def __init__(self, backbone: TrainableBackbone, lora: LoraRecipe, classes: Sequence[str], templates: Sequence[str]) -> None:
        head = SegmentationHead(len(classes), backbone.embed_dim, level_widths(backbone))
        head.start_from_text(backbone, classes, templates)
        head.refiner.requires_grad_(False)  # until the words are learnt
        super().__init__(backbone, lora, head)

    def forward(self, batch: Mapping[str, Any]) -> SegmentationOutput | Tensor:
        """batch: `pixels` (B, 3, S, S); where given, text embeddings `phrases` (Q, E).

        Or what the refiner takes (`x`, `logits`, `hints`, `newest`): what it gives.
        """
        if "x" in batch:
            return cast(Tensor, self.head.refiner(batch["x"], batch["logits"], batch["hints"], batch["newest"]))
        output: SegmentationOutput = self.head(self.features(batch), batch["pixels"], batch.get("phrases"))
        return output


class SegmentationTrainee:
    """Draws films by patient; validates on whole classes of `val`, by the mean Dice at the model's size."""

    def __init__(
        self,
        films: Mapping[str, MaskedFilms],
        contract: InputContract,
        strength: AugmentStrength,
        *,
        batch_size: int,
        patient_balance: float,
        blanks: float,
        seed: int,
        phrases: SpokenPhrases | None = None,
        spoken: float = 0.0,
    ) -> None:
        self.films, self.contract, self.strength = films, contract, strength
        self.phrases, self.spoken = phrases, spoken if phrases is not None else 0.0
        self.batch_size, self.blanks, self.seed = batch_size, blanks, seed
        self.chances = patient_chances(films["train"].patients, patient_balance)

    def plan(self, epoch: int) -> Sequence[Sequence[tuple[int, int]]]:
        """Batches of (film, seed); as many films as there are."""
        random = np.random.default_rng((self.seed, epoch))
        count = len(self.chances)
        films = random.choice(count, size=count, p=self.chances).tolist()
        draws = list(zip(films, random.integers(0, 2**31, size=count).tolist(), strict=True))
        return [draws[start : start + self.batch_size] for start in range(0, count, self.batch_size)]

    def load(self, draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """What `shown` gives, with some films blanked; or asked in words, with `phrases` (Q, E) and Q for K."""
        batch = self.shown(draws)
        shown, target, known = batch["pixels"], batch["target"], batch["known"]
        for place, (_, seed) in enumerate(draws):
            random = np.random.default_rng(seed)
            if random.random() < self.blanks:
                shown[place], target[place], known[place] = nothing(shown[place], random, int(random.integers(3))), 0.0, True
        random = np.random.default_rng((draws[0][1], 1))
        if self.phrases is not None and random.random() < self.spoken:
            batch |= self.phrases.draw(target, known, random)
        return batch | {"pixels": to_pixels(shown, self.contract)}

    def shown(self, draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Augmented films: pixels (B, C, S, S) in 0..1, target (B, K, S/2, S/2) in 0..1 and known (B, K)."""
        train, places = self.films["train"], [film for film, _ in draws]
        generator = torch.Generator().manual_seed(draws[0][1])
        masks = torch.from_numpy(train.masks[places]).float() / 255
        films = to_unit(np.asarray(train.pixels[places]))
        films, masks = augment_with_masks(films, masks, self.contract.size, self.strength, generator)
        return {"pixels": films, "target": halved(masks), "known": torch.from_numpy(train.known[places])}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        output = model(batch)
        return segmentation_loss(output, batch["target"], batch["known"], dice_and_entropy())

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        chances, presence = self.predict(model, self.films["val"])
        val = self.films["val"]
        truth = halved(torch.from_numpy(val.masks).float() / 255).numpy() > 0.5
        scores = overlap(chances >= 0.5, truth)
        there = truth.any(axis=(2, 3))
        wanted = val.known & there
        return {
            "dice": float(scores[wanted].mean()) if wanted.any() else 0.0,
            "presence": float(((presence >= 0.5) == there)[val.known].mean()),
        }

    @torch.inference_mode()
    def predict(
        self, model: nn.Module, films: MaskedFilms, batch_size: int = 16
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Probabilities (N, K, h, w) and presence (N, K) of whole classes, in float32 as serving computes them."""
        model.eval()
        device = next(model.parameters()).device
        chances, presence = [], []
        for start in range(0, len(films.rows), batch_size):
            pixels = to_pixels(np.asarray(films.pixels[start : start + batch_size]), self.contract).to(device)
            output: SegmentationOutput = model({"pixels": pixels})
            chances.append(output.masks.float().sigmoid().cpu().numpy())
            presence.append(output.presence.double().sigmoid().cpu().numpy())
        return np.concatenate(chances), np.concatenate(presence)


def segmentation_loss(
    output: SegmentationOutput, target: Tensor, known: Tensor, present_loss: Loss
) -> tuple[Tensor, Mapping[str, float]]:
    """Dice and cross-entropy on masks that are there, cross-entropy on those that are not, and on presence itself.

    What is unknown counts nowhere. An empty mask has no Dice worth learning: its loss would be 1 whatever is drawn.
    """
    masks, presence = output.masks.float(), output.presence.float()
    there = target.flatten(2).amax(dim=2) > 0.5
    present, absent = known & there, known & ~there
    zero = masks.sum() * 0.0
    drawn = present_loss(masks[present][:, None], target[present][:, None]) if present.any() else zero
    empty = F.binary_cross_entropy_with_logits(masks[absent], target[absent]) if absent.any() else zero
    seen = F.binary_cross_entropy_with_logits(presence[known], there[known].float()) if known.any() else zero
    total = drawn + empty + PRESENCE_WEIGHT * seen
    return total, {"mask_loss": float(drawn.detach()), "presence_loss": float(seen.detach())}


@cache
def dice_and_entropy() -> Loss:
    from monai.losses import DiceCELoss

    return cast(Loss, DiceCELoss(sigmoid=True))


def level_grids(backbone: TrainableBackbone) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of each level."""
    return tuple((int(level.shape[2]), int(level.shape[3])) for level in levels_of_black(backbone))


def halved(masks: Tensor) -> Tensor:
    """(B, K, S, S) -> (B, K, S/2, S/2), each pixel the mean of four."""
    return F.avg_pool2d(masks, 2, ceil_mode=True)


def overlap(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Dice over the last two axes; NaN where both are empty."""
    both = (found & truth).sum(axis=(-2, -1))
    either = found.sum(axis=(-2, -1)) + truth.sum(axis=(-2, -1))
    return np.asarray(np.divide(2.0 * both, either, out=np.full(both.shape, np.nan), where=either > 0))


def nothing(film: Tensor, random: np.random.Generator, kind: int) -> Tensor:
    """A picture (C, S, S) that holds nothing: 0 one grey, 1 noise, 2 the film's own tiles in disorder."""
    if kind == 0:
        return torch.full_like(film, float(random.random()))
    if kind == 1:
        noise = random.normal(random.random(), 0.2, film.shape[1:]).clip(0, 1)
        return torch.from_numpy(noise.astype(np.float32)).expand_as(film)
    tile = film.shape[-1] // 6
    inner = film[:, : 6 * tile, : 6 * tile].unfold(1, tile, tile).unfold(2, tile, tile)  # (C, 6, 6, tile, tile)
    order = torch.from_numpy(random.permutation(36))
    mixed = inner.reshape(film.shape[0], 36, tile, tile)[:, order].reshape(film.shape[0], 6, 6, tile, tile)
    scrambled = film.clone()
    scrambled[:, : 6 * tile, : 6 * tile] = mixed.permute(0, 1, 3, 2, 4).reshape(film.shape[0], 6 * tile, 6 * tile)
    return scrambled
