"""The network of the fusion task: one expert a modality, their product, and a small attention network over all tokens.

    film    descriptor -> P numbers          expert: ridge regression            joint: a token, and one a patch
    note    embedding  -> P numbers          expert: ridge regression            joint: a token
    group   each field -> value, state       expert: ridge regression            joint: a token a field

    product   prior + sum over present modalities of (expert - prior)            a product of experts (Hinton 2002)
    joint     masked attention over the tokens of the present modalities only

What is absent is put to zero before anything is computed from it and takes no part in attention: whatever stands in its
place, NaN included, changes nothing. `members` networks, each fitted without one part of the patients, are averaged.
Means and axes are fixed statistics of the training rows; only experts and joint networks are learnt from outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.tasks.tabular import CATEGORY, MISSING, NUMBER, STATES, VALUE, Cell, TabularField

FILM, NOTE = "film", "note"
PRODUCT, JOINT = "product", "joint"
KNOTS = 17  # quantiles kept of each number
FARTHEST = 3.0  # robust deviations; a wild value counts no more
HEADS = 2


class HasLevels(Protocol):
    """What is read of `ImageFeatures`."""

    @property
    def embedding(self) -> Tensor: ...  # (B, E), L2-normalised

    @property
    def tokens(self) -> Tensor: ...  # (B, N, D)

    @property
    def levels(self) -> tuple[Tensor, ...]: ...  # (B, D_l, H_l, W_l), four of them


@dataclass(frozen=True)
class HeadShape:
    """embed_dim, token_width, level_width: of the backbone. film, patch, note: numbers kept of each; width: of a token."""

    embed_dim: int
    token_width: int
    level_width: int
    film: int
    patch: int
    note: int
    width: int
    members: int


@dataclass(frozen=True, eq=False)
class FusionInputs:
    """B patients, ready for the head. present (B, M) bool, in the order of the head's modalities.

    films (B, I, P), patches (B, I, N, Q), shown (B, I) bool: which places hold a film; note (B, P');
    numbers (B, F, 2): scaled value and rank; states (B, F) and words (B, F): see `tabular.py`.
    """

    films: Tensor
    patches: Tensor
    shown: Tensor
    note: Tensor
    numbers: Tensor
    states: Tensor
    words: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.present)

    def take(self, rows: Tensor) -> FusionInputs:
        return FusionInputs(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def with_present(self, present: Tensor) -> FusionInputs:
        return replace(self, present=present)


class JointNetwork(nn.Module):
    """Tokens of the present modalities -> one logit: a block of attention, then one query that reads them."""

    first_word: Tensor
    is_word: Tensor

    def __init__(self, shape: HeadShape, modalities: Sequence[str], fields: Sequence[TabularField], dropout: float = 0.0):
        super().__init__()
        width, counts = shape.width, [len(field.categories) for field in fields]
        self.modalities = tuple(modalities)
        self.group_of = [self.modalities.index(field.modality) for field in fields]
        self.register_buffer("first_word", torch.tensor([0, *accumulate(counts)][: len(fields)]).long(), persistent=False)
        self.register_buffer("is_word", torch.tensor(counts).bool()[:, None], persistent=False)
        self.film = nn.Linear(shape.film, width)
        self.patch = nn.Linear(shape.patch, width)
        self.note = nn.Linear(shape.note, width) if NOTE in modalities else None
        self.value = nn.Parameter(torch.randn(len(fields), 2, width) * 0.1)
        self.state = nn.Parameter(torch.randn(len(fields), STATES, width) * 0.1)  # the field itself; missing, below, above
        self.word = nn.Parameter(torch.randn(max(1, sum(counts)), width) * 0.1)
        self.before, self.between, self.after = (nn.LayerNorm(width) for _ in range(3))
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.query = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: FusionInputs) -> Tensor:
        """(B,) logits; a row with nothing present gives no meaningful number."""
        tokens, mask = self.tokens(inputs)
        B, T, W = tokens.shape
        parts = self.attend(self.before(tokens)).view(B, T, 3, HEADS, W // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask[:, None, None, :])
        tokens = tokens + self.dropout(self.project(mixed.transpose(1, 2).reshape(B, T, W)))
        tokens = self.after(tokens + self.dropout(self.mix(self.between(tokens))))
        weight = (tokens @ self.query).masked_fill(~mask, float("-inf")).softmax(dim=1)
        pooled = (weight[..., None] * tokens.masked_fill(~mask[..., None], 0.0)).sum(dim=1)
        logits: Tensor = self.out(self.dropout(pooled))[:, 0]
        return logits

    def tokens(self, inputs: FusionInputs) -> tuple[Tensor, Tensor]:
        """(B, T, W) and which of them are there (B, T); absent ones are zero."""
        film = inputs.present[:, :1] & inputs.shown  # (B, I)
        patches = self.patch(inputs.patches).flatten(1, 2)
        parts = [self.film(inputs.films), patches]
        masks = [film, film.repeat_interleave(inputs.patches.shape[2], dim=1)]
        if self.note is not None:
            parts.append(self.note(inputs.note)[:, None])
            masks.append(inputs.present[:, self.modalities.index(NOTE), None])
        if self.group_of:
            parts.append(self._fields(inputs))
            masks.append(inputs.present[:, self.group_of])
        mask = torch.cat(masks, dim=1)
        return torch.where(mask[..., None], torch.cat(parts, dim=1), 0.0), mask

    def _fields(self, inputs: FusionInputs) -> Tensor:
        fields = torch.arange(len(self.group_of), device=inputs.states.device)
        has_value = (inputs.states == VALUE)[..., None]
        value = (inputs.numbers[..., None] * self.value).sum(dim=2)
        word = self.word[(self.first_word + inputs.words).clamp(max=len(self.word) - 1)]
        return self.state[fields, inputs.states] + torch.where(has_value, torch.where(self.is_word, word, value), 0.0)


class FusionHead(nn.Module):
    """Statistics, experts and joint networks. modalities: "film", "note" where notes are read, then groups of fields."""

    film_mean: Tensor
    film_axes: Tensor
    patch_mean: Tensor
    patch_axes: Tensor
    note_mean: Tensor
    note_axes: Tensor
    centre: Tensor
    spread: Tensor
    knots: Tensor

    def __init__(
        self, shape: HeadShape, modalities: Sequence[str], fields: Sequence[TabularField], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.shape, self.modalities, self.fields = shape, tuple(modalities), tuple(fields)
        described = shape.embed_dim + shape.token_width + shape.level_width
        sizes = {
            "film_mean": (described,),
            "film_axes": (described, shape.film),
            "patch_mean": (shape.token_width,),
            "patch_axes": (shape.token_width, shape.patch),
            "note_mean": (shape.embed_dim,),
            "note_axes": (shape.embed_dim, shape.note),
            "centre": (len(fields),),
            "spread": (len(fields),),
            "knots": (len(fields), KNOTS),
        }
        for name, size in sizes.items():
            self.register_buffer(name, torch.ones(size) if name == "spread" else torch.zeros(size))
        self.prior = nn.Parameter(torch.zeros(shape.members), requires_grad=False)
        self.experts = nn.ParameterList(
            nn.Parameter(torch.zeros(shape.members, self.expert_width(name) + 1), requires_grad=False) for name in modalities
        )
        self.joint = nn.ModuleList(JointNetwork(shape, modalities, fields, dropout) for _ in range(shape.members))

    @property
    def methods(self) -> tuple[str, ...]:
        """The columns of `candidates`."""
        return (*self.modalities, PRODUCT, JOINT)

    def expert_width(self, modality: str) -> int:
        if modality in (FILM, NOTE):
            return self.shape.film if modality == FILM else self.shape.note
        own = [field for field in self.fields if field.modality == modality]
        return sum(len(field.categories) + 1 if field.kind == CATEGORY else STATES + 1 for field in own)

    def forward(self, inputs: FusionInputs) -> Tensor:
        """(K, B, M + 2): each member's logit by each of `methods`; a column means nothing where its modality is absent."""
        experts = torch.stack([self._expert(place, inputs) for place in range(len(self.modalities))], dim=-1)  # (K, B, M)
        prior = self.prior[:, None]
        known = torch.where(inputs.present, experts - prior[..., None], 0.0)
        joint = torch.stack([network(inputs) for network in self.joint])  # (K, B)
        return torch.cat([experts, (prior + known.sum(dim=-1))[..., None], joint[..., None]], dim=-1)

    def _expert(self, place: int, inputs: FusionInputs) -> Tensor:
        weights = self.experts[place]  # (K, P + 1)
        x = self.expert_features(self.modalities[place], inputs)
        logits: Tensor = (x @ weights[:, :-1].T + weights[:, -1]).T
        return logits

    def expert_features(self, modality: str, inputs: FusionInputs) -> Tensor:
        """(B, P) what the modality's expert reads; zeros where it is absent."""
        if modality == FILM:
            shown = inputs.shown[..., None]
            x = torch.where(shown, inputs.films, 0.0).sum(dim=1) / shown.sum(dim=1).clamp(min=1)
        elif modality == NOTE:
            x = inputs.note
        else:
            x = torch.cat([self._columns(place, inputs) for place in self._places(modality)], dim=1)
        return torch.where(inputs.present[:, self.modalities.index(modality), None], x, 0.0)

    def _places(self, modality: str) -> list[int]:
        return [place for place, field in enumerate(self.fields) if field.modality == modality]

    def _columns(self, place: int, inputs: FusionInputs) -> Tensor:
        field, state = self.fields[place], inputs.states[:, place]
        if field.kind == CATEGORY:
            count = len(field.categories)
            return F.one_hot(torch.where(state == VALUE, inputs.words[:, place], count), count + 1).float()
        number = torch.where((state == VALUE)[:, None], inputs.numbers[:, place], 0.0)
        return torch.cat([number, F.one_hot(state, STATES)[:, 1:].float()], dim=1)

    # --- from features and tables to inputs --------------------------------------------------------------------------

    def read_films(self, features: HasLevels) -> tuple[Tensor, Tensor]:
        """(B, P) and (B, N, Q): the films' descriptors and patches, in this head's coordinates."""
        film = (describe(features) - self.film_mean) @ self.film_axes
        return film, (features.tokens.float() - self.patch_mean) @ self.patch_axes

    def read_note(self, embedding: Tensor) -> Tensor:
        """(B, E) -> (B, P')."""
        return (embedding.float() - self.note_mean) @ self.note_axes

    def read_table(self, table: Mapping[str, Cell]) -> tuple[Tensor, Tensor, Tensor]:
        """numbers (F, 2), states (F,) and words (F,) of one patient; what is not given is missing."""
        numbers, states, words = np.zeros((len(self.fields), 2), np.float32), [], []
        for place, field in enumerate(self.fields):
            state, value = field.read(table.get(field.name))
            states.append(state)
            words.append(field.categories.index(str(value)) if field.kind == CATEGORY and state == VALUE else 0)
            if field.kind == NUMBER and isinstance(value, float):
                numbers[place] = self._scaled(place, value)
        return torch.from_numpy(numbers), torch.tensor(states, dtype=torch.long), torch.tensor(words, dtype=torch.long)

    def _scaled(self, place: int, value: float) -> tuple[float, float]:
        """Robust deviations from the median, and the rank among the training rows from -1 to 1."""
        scaled = (value - float(self.centre[place])) / float(self.spread[place])
        knots = self.knots[place].double().cpu().numpy()
        below, above = np.searchsorted(knots, value, "left"), np.searchsorted(knots, value, "right")
        if above > below:  # on a knot, or on several: the middle of them
            rank = float(below + above - 1) / 2 / (KNOTS - 1)
        else:
            rank = float(np.interp(value, knots, np.linspace(0.0, 1.0, KNOTS)))
        return float(np.clip(scaled, -FARTHEST, FARTHEST)), 2.0 * rank - 1.0

    def gather(
        self,
        films: Sequence[tuple[Tensor, Tensor] | None],
        notes: Sequence[Tensor | None],
        tables: Sequence[Mapping[str, Cell]],
        places: int | None = None,
    ) -> FusionInputs:
        """Inputs of B patients. films: what `read_films` gave for each; notes: (P',) each; places: per patient for films.

        A group of which every field is missing is absent.
        """
        device = self.film_mean.device
        most = places or max([1, *(len(one[0]) for one in films if one is not None)])
        patches = next((one[1].shape[1] for one in films if one is not None), 1)
        B = len(tables)
        shown = torch.zeros(B, most, dtype=torch.bool)
        film, patch = torch.zeros(B, most, self.shape.film), torch.zeros(B, most, patches, self.shape.patch)
        note, has_note = torch.zeros(B, self.shape.note), torch.zeros(B, dtype=torch.bool)
        for row, (seen, text) in enumerate(zip(films, notes, strict=True)):
            if seen is not None:
                count = len(seen[0])
                film[row, :count], patch[row, :count], shown[row, :count] = seen[0].cpu(), seen[1].cpu(), True
            if text is not None:
                note[row], has_note[row] = text.cpu(), True
        numbers, states, words = (torch.stack(part) for part in zip(*map(self.read_table, tables), strict=True))
        present = [shown.any(dim=1)]
        for name in self.modalities[1:]:
            own = states[:, self._places(name)]
            present.append(has_note if name == NOTE else (own != MISSING).any(dim=1))
        made = FusionInputs(film, patch, shown, note, numbers, states, words, torch.stack(present, dim=1))
        return FusionInputs(**{name: getattr(made, name).to(device) for name in made.__dataclass_fields__})


def describe(features: HasLevels) -> Tensor:
    """(B, E + D + D_l): the embedding, the mean patch, and the mean over the places of the level at 3/4 of the depth."""
    parts = (features.embedding, features.tokens.float().mean(dim=1), features.levels[-2].float().mean(dim=(2, 3)))
    return torch.cat([part.float() for part in parts], dim=1)
