"""Pretraining: from films and sentences to a backbone, stage by stage, as a recipe says.

    warm start   hidden squares of the film are painted (no labels)
    findings     pooled features must tell what the manifest knows
    align        films and sentences meet: sigmoid pairs with label-aware targets, finding prompts, captions, patch-text
    finish       the same at full size, learning rate down to zero

Each stage is a pure function of (weights it starts from, recipe, seed): every step draws its films, views and
dropout from (seed, stage, step), so that a run stopped at any checkpoint resumes to the same numbers (on a GPU as far as
its kernels repeat themselves).
The result is a folder in open_clip's layout (see foundation/checkpoint.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from foundation.device import choose_device
from foundation.errors import InvalidRequest
from training import resume
from training.manifests import datasets
from training.manifests.manifest import Row, load_manifest
from training.pretraining.feed import Feed
from training.pretraining.learner import Learner, Prompts, TextSide, fit_positions
from training.pretraining.losses import Language, Losses
from training.pretraining.opinions import Floats, findings_opinions, softened
from training.pretraining.progress import Progress
from training.pretraining.recipe import OBJECTIVES, PretrainRecipe, StageRecipe, at_step, needs_text, rate_share
from training.pretraining.stage_log import note_stage, read_stages
from training.pretraining.start import start_tensors
from training.pretraining.validation import validate
from training.whole_file import whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MASK_GRID = 14
VALIDATION_PHANTOMS = 400
LONGEST_GRADIENT = 5.0
_FIRST_VALIDATION_SEED = 10_000_000


class Pretraining:
    """One run: its tables, its learner, its place (stage, step) and its files under `out`."""

    def __init__(self, recipe: PretrainRecipe, out: Path, device: str = "cpu") -> None:
        self.recipe, self.out, self.device = recipe, out, choose_device(device)
        unknown = {name for stage in recipe.stage for name in stage.objectives} - set(OBJECTIVES)
        if unknown:
            raise InvalidRequest(
                f"Unknown objective {sorted(unknown)[0]!r}; known: {', '.join(OBJECTIVES)}.", param="objectives"
            )
        manifest = load_manifest(Path(recipe.data.manifest))
        allowed = set(recipe.data.licence_classes)
        self.rows = {
            split: [row for row in manifest.of(split) if row.licence_class in allowed and _is_chest(row)]
            for split in ("train", "val")
        }
        self.tables: dict[tuple[str, int], datasets.FilmTable] = {}
        self.feed = Feed(self.device, recipe.model.mean, recipe.model.std, recipe.is_bf16)
        out.mkdir(parents=True, exist_ok=True)

    def table(self, split: str, size: int) -> datasets.FilmTable:
        """The films of a split at a size; tables of one size are held at a time."""
        if (split, size) not in self.tables:
            self.tables = {key: table for key, table in self.tables.items() if key[1] == size}
            cache = Path(self.recipe.data.cache)
            is_train, phantoms = split == "train", self.recipe.data.phantoms
            count = phantoms if is_train else min(phantoms, VALIDATION_PHANTOMS)
            first = 0 if is_train else _FIRST_VALIDATION_SEED
            real = datasets.real_films(self.rows[split], size, cache)
            made = datasets.phantom_films(count, size, first, cache, MASK_GRID)
            self.tables[split, size] = datasets.join([real, made], MASK_GRID)
        return self.tables[split, size]

    def run(self, stages: int | None = None) -> Path:
        """All stages, or the first `stages` of them; goes on where a stopped run was saved."""
        from torch.utils.tensorboard import SummaryWriter

        first, first_step = self._read_place()
        read_stages(self.out)  # what is broken there is told before anything is trained
        with SummaryWriter(str(self.out / "tensorboard")) as board:
            for index in range(first, min(len(self.recipe.stage), stages or len(self.recipe.stage))):
                self._run_stage(index, first_step if index == first else 0, board)
        return self.out

    # one stage -------------------------------------------------------------------------------------------------

    def _run_stage(self, index: int, first_step: int, board: SummaryWriter) -> None:
        stage, recipe = self.recipe.stage[index], self.recipe
        table = self.table("train", stage.size)
        learner, language = self._begin(index, table)
        if stage.second_opinion:
            table = softened(table, self._opinions(index, table, learner, is_begun=first_step > 0), stage.second_opinion)
        losses = Losses(self.feed, recipe.augment, language)
        optimizer = self._optimizer(learner, stage)
        averaged = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
        if first_step:
            resume.load_optimizer(optimizer, dict(learner.named_parameters()), resume.read_part(self.out, "optimizer"))
            averaged.load_state_dict(resume.read_part(self.out, "averaged"))
        kept: Learner = averaged.module  # type: ignore[assignment]
        sampler = datasets.StreamSampler(table, recipe.data.streams, recipe.batch, recipe.seed * 1000 + index)
        steps = stage.films // recipe.batch
        progress = Progress(stage.name, recipe.batch, first_step, steps, board)
        saved = time.monotonic()
        learner.train()
        for step in range(first_step, steps):
            seed = (recipe.seed * 7919 + index) * 1_000_003 + step
            torch.manual_seed(seed)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate_share(step, steps, stage.schedule)
            parts = losses(learner, table, sampler.at(step), at_step(stage, step), seed)
            _take_step(learner, optimizer, _total(parts, stage, step))
            averaged.update_parameters(learner)
            progress.note(step, parts)
            if time.monotonic() - saved > recipe.save_every_s:
                self._save(learner, averaged, optimizer, index, step + 1)
                saved = time.monotonic()
            if (step + 1) * recipe.batch % recipe.validate_every < recipe.batch and step + 1 < steps:
                progress.tell(step + 1, self._scores(kept, stage))
        scores = self._scores(kept, stage)
        progress.tell(steps, scores)
        # NOTE: before the state moves on, or a run killed here would never tell them.
        note_stage(self.out, index + 1, {"stage": asdict(stage), "seconds": progress.seconds, "val": scores})
        self._save(kept, None, None, index + 1, 0)

    def _opinions(self, index: int, table: datasets.FilmTable, learner: Learner, *, is_begun: bool) -> Floats:
        """What the towers made of the findings as the stage began; kept beside the run's state, to go on from."""
        kept = self.out / f"opinions-{index}.npy"
        if not is_begun:
            patients = [row.patient_id for row in self.rows["train"]]
            with whole(kept) as partial:
                np.save(partial, findings_opinions(table, patients, learner.visual, self.feed))
        elif not kept.is_file():
            raise InvalidRequest(f"The stage goes on from {kept.name}, which is not in {self.out}: put it back.", param="out")
        return np.asarray(np.load(kept), np.float32)

    def _scores(self, learner: Learner, stage: StageRecipe) -> dict[str, float]:
        return validate(learner, self.table("val", stage.size), self.feed)

    # the learner and its files ---------------------------------------------------------------------------------

    def _begin(self, index: int, table: datasets.FilmTable) -> tuple[Learner, Language | None]:
        """The learner with the weights that the stage goes on from, on the device; Language for a stage with text."""
        torch.manual_seed(self.recipe.seed)
        stage, model = self.recipe.stage[index], self.recipe.model
        learner = Learner(model, stage.size, table.target_names, torch.from_numpy(datasets.known_means(table.targets)))
        if stage.sizes and any("pos_embed" in name for name, _ in learner.named_parameters()):
            raise InvalidRequest(
                f"Stage {stage.name!r} names sizes, but {model.timm_name} is bound to one size: leave sizes out.", param="sizes"
            )
        language = None
        if needs_text(stage):
            reports, prompts = (text for texts in table.texts for text in texts), Prompts(table.target_names)
            text = TextSide(Path(model.text_folder), {*reports, *prompts.sentences})
            learner.add_text(text)
            language = Language(text.to(self.device), prompts)
        self._load(learner)
        return learner.to(self.device), language

    def _load(self, learner: Learner) -> None:
        """The weights of the run so far, or of the recipe's start; random ones where there is neither."""
        is_begun = resume.read_place(self.out) is not None
        if not is_begun and not self.recipe.start:
            return
        own = learner.state_dict()
        held = fit_positions(resume.read_part(self.out, "learner") if is_begun else start_tensors(self.recipe.start), own)
        held = {name: tensor for name, tensor in held.items() if name in own and tensor.shape == own[name].shape}
        lost = [name for name in learner.load_state_dict(held, strict=False).missing_keys if name.startswith("visual.")]
        if lost:
            raise InvalidRequest(
                f"The weights to go on from lack {lost[0]}; they are of another recipe. Choose another folder or start.",
                param="out" if is_begun else "start",
            )

    def _optimizer(self, learner: Learner, stage: StageRecipe) -> torch.optim.Optimizer:
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in learner.named_parameters():
            decay = self.recipe.weight_decay if parameter.ndim > 1 and "pos_embed" not in name else 0.0
            groups.setdefault(decay, []).append(parameter)
        return torch.optim.AdamW(
            [{"params": held, "weight_decay": decay} for decay, held in groups.items()],
            lr=stage.learning_rate,
        )

    def _save(
        self, learner: nn.Module, averaged: nn.Module | None, optimizer: torch.optim.Optimizer | None, stage: int, step: int
    ) -> None:
        parts: dict[str, Mapping[str, Tensor]] = {"learner": learner.state_dict()}
        if averaged is not None:
            parts["averaged"] = averaged.state_dict()
        if optimizer is not None:
            parts["optimizer"] = resume.optimizer_tensors(optimizer, dict(learner.named_parameters()))
        resume.save_state(self.out, self._made_by(stage, step), {"stage": stage, "step": step}, parts)

    def _made_by(self, stage: int, step: int) -> dict[str, Any]:
        """Everything that had a part in the numbers up to this place; stages still to come may be changed."""
        told = asdict(self.recipe)
        idle = ("out", "stage", "validate_every", "save_every_s")
        made_by = {one.name: told[one.name] for one in fields(PretrainRecipe) if one.name not in idle}
        del made_by["model"]["image_size"]  # of the checkpoint, not of training
        begun = self.recipe.stage[: stage + (step > 0)]
        return made_by | {"stage": {str(number): asdict(one) for number, one in enumerate(begun, start=1)}}

    def _read_place(self) -> tuple[int, int]:
        """(stage, step) to go on from."""
        place = resume.read_place(self.out)
        if place is None:
            return 0, 0
        stage, step = int(place["stage"]), int(place["step"])
        own = self._made_by(stage, step)
        if isinstance(place["recipe"], str):  # older states know their recipe by name alone
            resume.check_recipe(self.out, {"name": place["recipe"]}, {"name": own["name"]})
        else:
            resume.check_recipe(self.out, place["recipe"], own)
        return stage, step


def _total(parts: Mapping[str, Tensor], stage: StageRecipe, step: int) -> Tensor:
    """The stage's weighted sum of its losses. Raises InvalidRequest where it is not finite."""
    total = sum((stage.objectives[name] * part for name, part in parts.items()), torch.zeros(()))
    if not torch.isfinite(total):
        raise InvalidRequest(
            f"Stage {stage.name!r}: the loss is not finite at step {step}; lower its learning_rate, or set is_bf16 = false.",
            param="learning_rate",
        )
    return total


def _take_step(learner: Learner, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), LONGEST_GRADIENT)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _is_chest(row: Row) -> bool:
    return str(row.get("modality") or "CXR") == "CXR"
