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

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from foundation.device import choose_device
from foundation.enlarge import enlarge
from foundation.errors import InvalidRequest
from foundation.prompts import NIH_FINDINGS
from training import resume
from training.augment import AugmentStrength, augment, mirror, mix, to_lower_resolution
from training.manifests import datasets
from training.manifests.manifest import Row, load_manifest
from training.pretraining import objectives
from training.pretraining.learner import Learner, ModelRecipe, Prompts, TextSide, fit_positions
from training.pretraining.start import start_tensors

OF_TARGETS = ("findings", "prompts")  # told by a film's targets alone, so that mirrored and blended films have them too
OBJECTIVES = ("masked", "gradients", "findings", "pairs", "prompts", "captions", "patches")
MASK_GRID = 14
VALIDATION_PHANTOMS = 400
_FIRST_VALIDATION_SEED = 10_000_000


@dataclass(frozen=True)
class DataRecipe:
    manifest: str
    licence_classes: tuple[str, ...]
    phantoms: int
    cache: str
    streams: dict[str, float]  # share of a batch by source; "phantom" for phantoms


@dataclass(frozen=True)
class StageRecipe:
    name: str
    size: int
    films: int  # how many films are drawn in this stage
    learning_rate: float
    objectives: dict[str, float]
    schedule: str = "constant"  # constant | cosine | linear (both to zero), always after a short warm-up
    hide_resolution: float = 0.0  # probability that a film kept at more than 160 px is shown as if kept at 128
    flip: float = 0.0  # probability that a film is mirrored, its left and right targets exchanged
    mix: float = 0.0  # Beta(mix, mix) share of a second film of the same stream (Zhang 2018)
    sizes: tuple[int, ...] = ()  # mirrored and blended films are enlarged to one of these at random; `size` where empty


@dataclass(frozen=True)
class PretrainRecipe:
    name: str
    out: str
    model: ModelRecipe
    data: DataRecipe
    stage: tuple[StageRecipe, ...]
    seed: int = 1
    batch: int = 64
    weight_decay: float = 0.05
    average: float = 0.997  # decay of the averaged weights, which are validated and kept (Polyak)
    validate_every: int = 25_600  # films
    save_every_s: float = 240.0
    is_bf16: bool = True
    start: str = ""  # a checkpoint whose towers the first stage begins from; empty for random ones
    augment: AugmentStrength = field(default_factory=AugmentStrength)


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
        out.mkdir(parents=True, exist_ok=True)

    def table(self, split: str, size: int) -> datasets.FilmTable:
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
        with SummaryWriter(str(self.out / "tensorboard")) as board:
            for index in range(first, min(len(self.recipe.stage), stages or len(self.recipe.stage))):
                self._run_stage(index, first_step if index == first else 0, board)
        return self.out

    # one stage -------------------------------------------------------------------------------------------------

    def _run_stage(self, index: int, first_step: int, board: Any) -> None:
        stage, recipe = self.recipe.stage[index], self.recipe
        table = self.table("train", stage.size)
        learner = self._learner(index, table)
        optimizer = self._optimizer(learner, stage)
        averaged = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
        if first_step:
            resume.load_optimizer(optimizer, dict(learner.named_parameters()), resume.read_part(self.out, "optimizer"))
            averaged.load_state_dict(resume.read_part(self.out, "averaged"))
        sampler = datasets.StreamSampler(table, recipe.data.streams, recipe.batch, recipe.seed * 1000 + index)
        text = self._text if _needs_text(stage) else None
        prompts = self._prompts if _needs_text(stage) else None
        steps = stage.films // recipe.batch
        started = saved = time.monotonic()
        losses: dict[str, float] = {}
        learner.train()
        for step in range(first_step, steps):
            seed = (recipe.seed * 7919 + index) * 1_000_003 + step
            torch.manual_seed(seed)
            rate = _rate(step, steps, stage.schedule)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate
            parts = self._losses(learner, table, sampler.at(step), _at_step(stage, step), text, prompts, seed)
            total = sum((stage.objectives[name] * part for name, part in parts.items()), torch.zeros(()))
            if not torch.isfinite(total):
                raise FloatingPointError(f"stage {stage.name}: the loss is not finite at step {step}")
            total.backward()
            nn.utils.clip_grad_norm_(learner.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            averaged.update_parameters(learner)
            for name, part in parts.items():
                losses[name] = 0.98 * losses.get(name, float(part.detach())) + 0.02 * float(part.detach())
            if step % 50 == 0 or step == steps - 1:
                speed = (step - first_step + 1) * recipe.batch / (time.monotonic() - started)
                shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
                print(f"{stage.name} {step}/{steps}  {speed:.0f} films/s  {shown}", flush=True)
                for name, value in losses.items():
                    board.add_scalar(f"{stage.name}/{name}", value, step)
            if time.monotonic() - saved > recipe.save_every_s:
                self._save(learner, averaged, optimizer, index, step + 1)
                saved = time.monotonic()
            if (step + 1) * recipe.batch % recipe.validate_every < recipe.batch and step + 1 < steps:
                self._report(averaged.module, stage, step + 1, board)  # type: ignore[arg-type]
        kept: Learner = averaged.module  # type: ignore[assignment]
        self._save(kept, None, None, index + 1, 0)
        scores = self._report(kept, stage, steps, board)
        with (self.out / "stages.jsonl").open("a") as log:
            log.write(json.dumps({"stage": asdict(stage), "seconds": time.monotonic() - started, "val": scores}) + "\n")

    def _report(self, learner: Learner, stage: StageRecipe, step: int, board: Any) -> dict[str, float]:
        scores = self.validate(learner, stage.size)
        print(f"{stage.name} val {step}  " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
        for name, value in scores.items():
            board.add_scalar(f"{stage.name}/val {name}", value, step)
        return scores

    def _losses(
        self, learner: Learner, table: datasets.FilmTable, chosen: np.ndarray[Any, Any], stage: StageRecipe,
        text: TextSide | None, prompts: Prompts | None, seed: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        films = self._films(table.pixels[chosen])
        if stage.hide_resolution:
            fine = torch.from_numpy(table.native_pixels[chosen]) > 160
            fine &= torch.rand(len(chosen), generator=generator) < stage.hide_resolution
            if fine.any():
                films[fine.to(self.device)] = to_lower_resolution(films[fine.to(self.device)], 128)
        films = augment(films, stage.size, self.recipe.augment, generator)
        targets = torch.from_numpy(table.targets[chosen]).to(self.device)
        if stage.flip:
            films, targets = mirror(films, targets, table.target_names, stage.flip, generator)
        if stage.mix:
            films, targets = mix(films, targets, [table.streams[i] for i in chosen], stage.mix, generator)
        if stage.sizes:
            films = enlarge(films, stage.sizes[int(torch.randint(len(stage.sizes), (1,), generator=generator))])
        parts: dict[str, Tensor] = {}
        for name in ("masked", "gradients"):
            if name in stage.objectives:
                hider = getattr(learner, name)
                hidden, mask = hider.hide(films, generator)
                with self._autocast():
                    features = learner.feature_map(self._normalise(hidden))
                parts[name] = hider(features, films, mask)
                return parts
        with self._autocast():
            features = learner.feature_map(self._normalise(films))
        features = features.float()
        pooled = features.mean((2, 3))
        if "findings" in stage.objectives:
            parts["findings"] = learner.findings(pooled, targets)
        if text is None or prompts is None:
            return parts
        random = np.random.default_rng(seed)
        scale = learner.logit_scale.exp()
        images = learner.project(pooled)
        reports = [str(random.choice(table.texts[i])) for i in chosen]
        positive, negative, phantom_words = prompts.draw(random)
        sentences = reports + positive + negative + phantom_words
        embedded = learner.project_text(text.pooled(sentences))
        report_e, positive_e, negative_e, phantom_e = embedded.split(
            [len(reports), len(positive), len(negative), len(phantom_words)]
        )
        if "pairs" in stage.objectives:
            soft, weight = objectives.pair_targets(targets, reports)
            parts["pairs"] = objectives.sigmoid_pair_loss(images, report_e, soft, weight, scale, learner.logit_bias)
        if "prompts" in stage.objectives:
            wanted, weights = targets[:, prompts.columns], learner.findings.weights[prompts.columns]
            parts["prompts"] = objectives.prompt_pair_loss(images, positive_e, negative_e, wanted, weights, scale)
        if "captions" in stage.objectives and learner.captions is not None:
            with self._autocast():
                parts["captions"] = learner.captions(features.flatten(2).transpose(1, 2), text.ids(reports))
        if "patches" in stage.objectives and table.masks is not None:
            patches = learner.project(features.flatten(2).transpose(1, 2))
            masks = F.adaptive_avg_pool2d(
                torch.from_numpy(table.masks[chosen]).float().to(self.device), (features.shape[-2], features.shape[-1])
            )
            parts["patches"] = objectives.patch_text_loss(patches, phantom_e, masks, scale)
        return parts

    def _films(self, pixels: np.ndarray[Any, Any]) -> Tensor:
        """(B, S, S) uint8 -> (B, 1, S, S) in 0..1, on the device."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).float().div(255).unsqueeze(1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.is_bf16)

    def _normalise(self, films: Tensor) -> Tensor:
        """(B, 1, S, S) in 0..1 -> (B, 3, S, S) as the tower eats it."""
        films = (films - self.recipe.model.mean) / self.recipe.model.std
        return films.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    # the learner and its files ---------------------------------------------------------------------------------

    def _learner(self, index: int, table: datasets.FilmTable) -> Learner:
        torch.manual_seed(self.recipe.seed)
        stage = self.recipe.stage[index]
        priors = torch.from_numpy(datasets.known_means(table.targets))
        learner = Learner(self.recipe.model, stage.size, table.target_names, priors)
        if stage.sizes and any("pos_embed" in name for name, _ in learner.named_parameters()):
            raise InvalidRequest(
                f"Stage {stage.name!r} names sizes, but {self.recipe.model.timm_name} is bound to one size: leave sizes out.",
                param="sizes",
            )
        if _needs_text(stage):
            reports = (text for texts in table.texts for text in texts)
            self._prompts = Prompts(table.target_names)
            text = TextSide(Path(self.recipe.model.text_folder), {*reports, *self._prompts.sentences})
            learner.add_text(text)
            self._text = text.to(self.device)
        is_begun = resume.read_place(self.out) is not None
        if is_begun or self.recipe.start:
            own = learner.state_dict()
            held = fit_positions(resume.read_part(self.out, "learner") if is_begun else start_tensors(self.recipe.start), own)
            held = {name: tensor for name, tensor in held.items() if name in own and tensor.shape == own[name].shape}
            missing = learner.load_state_dict(held, strict=False)
            lost = [name for name in missing.missing_keys if name.startswith("visual.")]
            if lost:
                raise InvalidRequest(
                    f"The weights to go on from lack {lost[0]}; they are of another recipe. Choose another folder or start.",
                    param="out" if is_begun else "start",
                )
        return learner.to(self.device)

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

    # how well it does ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, learner: Learner, size: int) -> dict[str, float]:
        """AUROC on `val` by the finding head, per group of targets; no number where a group has one class only."""
        from training.measuring.metrics import auroc

        table = self.table("val", size)
        learner.eval()
        logits = []
        for start in range(0, len(table), 128):
            films = self._films(table.pixels[start : start + 128])
            with self._autocast():
                pooled = learner.feature_map(self._normalise(films)).float().mean((2, 3))
            logits.append(learner.findings.head(pooled))
        scores = torch.cat(logits).cpu().numpy()
        learner.train()
        values: dict[str, list[float]] = {}
        for column, name in enumerate(table.target_names):
            known = ~np.isnan(table.targets[:, column])
            truth = table.targets[known, column] > 0.5
            if 5 <= truth.sum() < known.sum():
                group = "nih findings" if name in NIH_FINDINGS else "phantom" if name.startswith("phantom") else name
                values.setdefault(group, []).append(float(auroc(scores[known, column], truth)[0]))
        return {group: float(np.mean(held)) for group, held in values.items()}


def _is_chest(row: Row) -> bool:
    return str(row.get("modality") or "CXR") == "CXR"


def _needs_text(stage: StageRecipe) -> bool:
    return bool({"pairs", "prompts", "captions", "patches"} & set(stage.objectives))


def _at_step(stage: StageRecipe, step: int) -> StageRecipe:
    """What a step of the stage does.

    Reports and masks say left and right of one film. Where a stage has them and blends or mirrors films as well, it does
    the two in turn: films as they are at even steps, blended ones, told by their targets alone, at odd steps.
    """
    if not (stage.flip or stage.mix) or not set(stage.objectives) - set(OF_TARGETS):
        return stage
    if step % 2 == 0:
        return replace(stage, flip=0.0, mix=0.0, sizes=())
    return replace(stage, objectives={name: share for name, share in stage.objectives.items() if name in OF_TARGETS})


def _rate(step: int, steps: int, schedule: str) -> float:
    warm = min(1.0, (step + 1) / max(1, min(100, steps // 10)))
    if schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "linear":
        return warm * (1 - step / steps)
    return warm
