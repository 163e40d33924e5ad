"""The losses of pretraining, each a small module that says what it compares.

Tensor letters: B batch, D tower width, E embedding, K targets, T tokens, h x w the last feature map's grid.
Targets are in 0..1; NaN means unknown and takes no part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def known_bce(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy averaged over every known (film, target); unknown targets take no part.

    logits, targets (B, K); weights (K,) say how much each target counts. NOTE: averaging per target first gives a target
    known for three films of a batch the weight of one known for fifty; with a constant rate of 1e-3 that noise undid
    the tower (validation AUROC 0.5 after 115,000 films).
    """
    known = ~targets.isnan() * weights
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.nan_to_num(), reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1e-6)


class MaskedFilm(nn.Module):
    """Self-supervision: squares of the film are hidden, a linear map of the features must paint them (SimMIM, Xie 2022)."""

    def __init__(self, width: int, stride: int, square: int = 16, hidden: float = 0.55) -> None:
        super().__init__()
        self.paint = nn.Conv2d(width, stride * stride, 1)
        self.stride, self.square, self.hidden = stride, square, hidden

    def hide(self, films: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> the films with squares set to their mean, and the mask (B, 1, H, W) of what was hidden."""
        count, _, height, width = films.shape
        drawn = torch.rand(count, 1, height // self.square, width // self.square, generator=generator)
        cells = (drawn < self.hidden).to(films.device)
        mask = F.interpolate(cells.float(), (height, width), mode="nearest")
        return films * (1 - mask) + films.mean((2, 3), keepdim=True) * mask, mask

    def forward(self, feature_map: Tensor, films: Tensor, mask: Tensor) -> Tensor:
        painted = F.pixel_shuffle(self.paint(feature_map.float()), self.stride)
        local = _coarse_mean(films)
        spread = (_coarse_mean((films - local) ** 2) + 1e-3).sqrt()
        wanted = 0.5 * (films - local) / spread + (films - 0.5)
        return ((painted - wanted).abs() * mask).sum() / mask.sum().clamp_min(1)


class MaskedGradients(nn.Module):
    """Self-supervision: squares of the film are hidden, and of every place the histogram of oriented gradients must be told.

    MaskFeat (Wei 2022), the hidden places weighing four times the seen ones. Histograms of `cell` pixels, `bins`
    unsigned orientations, each of unit length: what shape there is, whatever the exposure.
    """

    def __init__(self, width: int, stride: int, cell: int = 8, bins: int = 9, hidden: float = 0.4) -> None:
        super().__init__()
        self.cell, self.bins, self.stride, self.hidden = cell, bins, stride, hidden
        self.tell = nn.Conv2d(width, bins * (stride // cell) ** 2, 1)

    def hide(self, films: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> films with squares of one stride set to their mean, and what was hidden (B, 1, h, w)."""
        count, _, height, width = films.shape
        shape = (count, 1, height // self.stride, width // self.stride)
        cells = (torch.rand(shape, generator=generator) < self.hidden).float().to(films.device)
        mask = F.interpolate(cells, (height, width), mode="nearest")
        return films * (1 - mask) + films.mean((2, 3), keepdim=True) * mask, cells

    def histograms(self, films: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, bins, H/cell, W/cell), each of unit length (near zero where the film is flat)."""
        across = F.pad(films, (1, 1, 0, 0), mode="replicate").diff(dim=-1, n=1)
        along = F.pad(films, (0, 0, 1, 1), mode="replicate").diff(dim=-2, n=1)
        dx, dy = across[..., 1:] + across[..., :-1], along[..., 1:, :] + along[..., :-1, :]
        angle = torch.atan2(dy, dx) % torch.pi / torch.pi * self.bins
        low = angle.floor()
        share = angle - low
        strength = (dx.square() + dy.square()).sqrt()
        votes = films.new_zeros(films.shape[0], self.bins, *films.shape[2:])
        votes.scatter_add_(1, (low.long() % self.bins), strength * (1 - share))
        votes.scatter_add_(1, ((low.long() + 1) % self.bins), strength * share)
        pooled = F.avg_pool2d(votes, self.cell)
        unit: Tensor = pooled / (pooled.norm(dim=1, keepdim=True) + 0.01)
        return unit

    def forward(self, feature_map: Tensor, films: Tensor, hidden: Tensor) -> Tensor:
        told = F.pixel_shuffle(self.tell(feature_map.float()), self.stride // self.cell)
        with torch.no_grad():
            wanted = self.histograms(films)
        weight = F.interpolate(1 + 3 * hidden, wanted.shape[-2:], mode="nearest")
        loss: Tensor = ((told - wanted).square() * weight).sum() / (weight.sum() * self.bins)
        return loss * 100


def _coarse_mean(films: Tensor) -> Tensor:
    """The film's local mean: averaged over 16-pixel squares and spread out again."""
    return F.interpolate(F.avg_pool2d(films, 16), films.shape[-2:], mode="bilinear")


class FindingSupervision(nn.Module):
    """A linear head over pooled features for everything the manifest knows of a film."""

    def __init__(self, width: int, priors: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", weights, persistent=False)
        self.head = nn.Linear(width, len(priors))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.logit(priors.clamp(0.01, 0.99)))

    def forward(self, pooled: Tensor, targets: Tensor) -> Tensor:
        return known_bce(self.head(pooled.float()), targets, self.weights)


def pair_targets(targets: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Which film fits which text of a batch: (B, B) soft targets in 0..1 and (B, B) weights.

    Equal text is a positive pair. Two films of one source (same known targets) fit as far as their known findings agree;
    a pair of different sources that only differ in what is unknown is left out, so that the source is not the lesson.
    """
    known = (~targets.isnan()).float()
    values = targets.nan_to_num()
    positives = values @ values.T
    either = known @ known.T - (1 - values).mul(known) @ (1 - values).mul(known).T
    overlap = torch.where(either > 0, positives / either.clamp_min(1e-6), torch.ones_like(positives))
    same_kind = (known.unsqueeze(1) == known.unsqueeze(0)).all(-1)
    equal = torch.tensor([[left == right for right in texts] for left in texts], device=targets.device)
    soft = torch.where(equal, torch.ones_like(overlap), overlap.pow(2) * 0.9)
    weight = torch.where(same_kind | equal, 1.0, 0.1)
    return torch.where(same_kind | equal, soft, torch.zeros_like(soft)), weight


def sigmoid_pair_loss(images: Tensor, texts: Tensor, soft: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss (Zhai 2023) with soft targets. images, texts (B, E) unit length; positives and negatives balanced."""
    logits = (scale * images @ texts.T + bias).float()
    loss = F.binary_cross_entropy_with_logits(logits, soft, reduction="none") * weight
    likely = soft > 0.5
    return loss[likely].mean() + loss[~likely].mean() if (~likely).any() else loss.mean()


def prompt_pair_loss(
    images: Tensor, positive: Tensor, negative: Tensor, targets: Tensor, weights: Tensor, scale: Tensor
) -> Tensor:
    """Each target asked of each film as "this" against "not this". positive, negative (K, E); targets (B, K), weights (K,)."""
    return known_bce(scale * (images @ positive.T - images @ negative.T), targets, weights)


def patch_text_loss(patches: Tensor, texts: Tensor, masks: Tensor, scale: Tensor) -> Tensor:
    """Where a finding is, its text and the patch agree.

    patches (B, N, E), texts (F, E), masks (B, F, h, w), NaN for real films.
    """
    fraction = masks.flatten(2).transpose(1, 2).float()  # (B, N, F)
    target = torch.where(fraction.isnan(), fraction, (fraction * 4).clamp(0, 1))
    logits = (scale * (patches @ texts.T)).float()
    logits = logits - logits.detach().mean()
    known = ~target.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
    likely, unlikely = known & (target > 0.25), known & (target <= 0.25)
    if not likely.any():
        return logits.sum() * 0.0
    return loss[likely].mean() + loss[unlikely].mean()


class Captioning(nn.Module):
    """A small text decoder that must write the report from the patch tokens (CapPa, Tschannen 2023)."""

    def __init__(
        self, width: int, vocabulary: int, pad_id: int, model_width: int = 128, layers: int = 2, length: int = 40
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, model_width)
        nn.init.normal_(self.embed.weight, std=0.03)  # tied to the output: larger would start far from uniform
        self.position = nn.Parameter(torch.randn(length, model_width) * 0.02)
        self.memory = nn.Linear(width, model_width)
        layer = nn.TransformerDecoderLayer(model_width, 4, model_width * 4, 0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.norm = nn.LayerNorm(model_width)
        self.pad_id, self.length = pad_id, length

    def forward(self, tokens: Tensor, text_ids: Tensor) -> Tensor:
        """tokens (B, N, D), text_ids (B, T) -> mean cross-entropy of the next token."""
        ids = text_ids[:, : self.length + 1]
        given, wanted = ids[:, :-1], ids[:, 1:]
        steps = given.shape[1]
        causal = torch.triu(torch.ones(steps, steps, dtype=torch.bool, device=given.device), 1)
        x = self.embed(given) + self.position[:steps]
        x = self.norm(self.decoder(x, self.memory(tokens), tgt_mask=causal))
        logits = x @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=self.pad_id)
