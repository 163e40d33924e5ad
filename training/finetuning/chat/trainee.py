"""What the loop trains for the chat task: LoRA on the decoder's blocks; towers, projector and the rest stay as they are.

An epoch is the course's draws in batches of like length; validation is on every pair of `val`, the film as it is. The
figures of validation: `loss`, the mean over answers of their tokens' cross-entropy, and `closed`, how often the likelier
of yes and no is right, yes and no counting the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.lora import LoraSpec, LoraWeights, apply_lora, read_weights, remove_lora, targets_from
from adapters.tasks.chat import CANNOT_TELL
from foundation.decoder import Decoder
from foundation.prompt import Turn
from training.finetuning.chat.lessons import Course, Draw, Shelf, Written, sentence, stack, write
from training.finetuning.recipe import LoraRecipe
from training.loop import ParameterGroup
from training.manifests.qa import QaRow
from training.pretraining.decoder.lessons import Lesson, answer_logits

_EVALUATED = 32


class AdaptedDecoder(nn.Module):
    """The decoder with fresh LoRA; everything else is frozen. `release` gives the decoder back as it was."""

    def __init__(self, decoder: Decoder, recipe: LoraRecipe) -> None:
        super().__init__()
        self.decoder = decoder
        decoder.requires_grad_(False)
        targets = targets_from(decoder.lora_targets(), recipe.first_block)
        self.spec = LoraSpec(targets, recipe.rank, recipe.alpha, recipe.use_rslora)
        self._layers = apply_lora(decoder.model, self.spec)

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(logits (A, V), target ids (A,)) of all answer tokens, row by row."""
        return answer_logits(self.decoder, Lesson(batch["ids"], batch["is_answer"], batch["tokens"]))

    def groups(self, rate: float) -> list[ParameterGroup]:
        return [ParameterGroup("lora", self.learnt(), rate)]

    def learnt(self) -> list[nn.Parameter]:
        return [factor for layer in self._layers.values() for factor in (layer.lora_A, layer.lora_B)]

    def weights(self) -> LoraWeights:
        return read_weights(self.decoder.model, self.spec)

    def release(self) -> None:
        remove_lora(self.decoder.model)


@dataclass(frozen=True, eq=False)
class ChatTrainee:
    """See `loop.Trainee`. shelves: every film by its row's id."""

    decoder: Decoder
    course: Course
    val: tuple[QaRow, ...]
    shelves: Mapping[str, Shelf]
    batch_size: int

    def plan(self, epoch: int) -> list[list[Draw]]:
        draws, size = self.course.draws(epoch), self.batch_size
        return [draws[start : start + size] for start in range(0, len(draws), size)]

    def load(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        return stack([self._written(draw) for draw in draws], self._pad_id)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, float]]:
        logits, targets = model(batch)
        return per_answer(logits, targets, batch["is_answer"]).mean(), {}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        device = next(model.parameters()).device
        losses: list[Tensor] = []
        hits: dict[str, list[bool]] = {"yes": [], "no": []}
        for start in range(0, len(self.val), _EVALUATED):
            pairs = self.val[start : start + _EVALUATED]
            batch = stack([self._real(pair) for pair in pairs], self._pad_id)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits, targets = model(batch)
            losses.append(per_answer(logits, targets, batch["is_answer"]))
            first = first_places(batch["is_answer"])
            leans = lean_to_yes(self.decoder, logits[first])
            for pair, lean in zip(pairs, leans.tolist(), strict=True):
                if pair.is_closed and pair.is_yes_no:
                    hits[pair.truth].append((lean > 0) is (pair.truth == "yes"))
        closed = [float(np.mean(side)) for side in hits.values() if side]
        return {"loss": float(torch.cat(losses).mean()), "closed": float(np.mean(closed)) if closed else 0.0}

    @property
    def _pad_id(self) -> int:
        return self.decoder.tokenizer.special_ids["[PAD]"]

    def _real(self, pair: QaRow) -> Written:
        return write(self.decoder, pair.turns, self.shelves[pair.film.id].of("real"), sentence(pair.answer))

    def _written(self, draw: Draw) -> Written:
        if draw.twin == "false premise":
            premise = self.course.premises[draw.pair]
            seen = self.shelves[premise.film.film.id].of("real", draw.view)
            return write(self.decoder, (Turn("user", premise.question),), seen, premise.answer)
        pair = self.course.asked(draw)
        answer = sentence(pair.answer) if draw.twin == "real" else CANNOT_TELL
        return write(self.decoder, pair.turns, self.shelves[pair.film.id].of(draw.twin, draw.view), answer)


def per_answer(logits: Tensor, targets: Tensor, is_answer: Tensor) -> Tensor:
    """(B,) mean cross-entropy of each answer's tokens, so that a long answer weighs as much as a short one."""
    rows = is_answer[:, 1:].nonzero()[:, 0]
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    sums = torch.zeros(len(is_answer), device=losses.device).index_add(0, rows, losses)
    return sums / is_answer.sum(1)


def first_places(is_answer: Tensor) -> Tensor:
    """(B,) where each answer begins among all answer tokens."""
    counts = is_answer.sum(1)
    return counts.cumsum(0) - counts


def lean_to_yes(decoder: Decoder, logits: Tensor) -> Tensor:
    """logits (..., V) of the first word of an answer -> (...,) the log odds of "yes" against "no"."""
    yes, no = (decoder.tokenizer.encode_plain(word)[0] for word in ("yes", "no"))
    return logits[..., yes].float() - logits[..., no].float()
