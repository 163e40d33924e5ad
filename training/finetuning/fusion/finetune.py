"""Fine-tuning of the fusion task: films, notes and tables, any of them absent, to an adapter that accounts for each.

    rows -> cases -> Loop (LoRA, without labels) -> features -> cross-fitted head -> rules -> card, report

`test` is scored once, beside gradient boosting on the table; figures before it are of cases held back from the member
that answers. What is fitted stands in `fit.py`, the choice of who answers in `rules.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from adapters.card import Conformal
from adapters.files import Adapter
from adapters.lora import LoraWeights, remove_lora
from adapters.tasks.fusion import MAX_MODALITIES, TASK, FusionPredictor, SubsetRule
from adapters.tasks.fusion_head import NOTE, FusionHead, FusionInputs, describe
from adapters.tasks.tabular import TabularField
from foundation.errors import InvalidRequest, ManifestError
from training.augment import AugmentStrength
from training.finetuning.fusion.data import (
    Case,
    FieldStatistics,
    FusionDataRecipe,
    check_columns,
    describe_fields,
    outcome_of,
    patient_weights,
    read_cases,
)
from training.finetuning.fusion.fit import (
    FilmFeatures,
    FusionHeadRecipe,
    Learning,
    Part,
    candidates,
    fit,
    new_head,
    own_logits,
    sizes,
    split_parts,
    without,
)
from training.finetuning.fusion.invariance import InvarianceTrainee, SteadyTower
from training.finetuning.fusion.report import Fusion, Told, write_fusion_report
from training.finetuning.fusion.rules import answer_all, answer_own, choose_rules, conformal_bounds
from training.finetuning.fusion.scores import FusionScores, Grid, card_metrics, score_boosting
from training.finetuning.job import FinetuneJob, FinetuneResult
from training.finetuning.recipe import LoraRecipe, PaceRecipe, TaskRecipe
from training.finetuning.trunk_cache import film_cache, to_pixels
from training.loop import LoopReport
from training.manifests.manifest import Manifest
from training.processes import is_main
from training.trust.calibrate import fit_thresholds

HELD = "held back"  # the split that cross-fitted figures are of
MISSING_RATES = (0.0, 0.3, 0.6, 0.9)
DRAWS = 5  # of what is missing, in the grid
FEW_CASES = 1000
_GENTLE = AugmentStrength(
    rotate_degrees=5.0, zoom=0.08, shift=0.03, gamma=0.25, contrast=0.2, brightness=0.06, noise=0.015, border=0.0, erase=0.0
)


@dataclass(frozen=True)
class FusionViews:
    """Altered views of each film, for LoRA; at least two, the film itself being the first."""

    cached: int = 3
    strength: AugmentStrength = field(default_factory=lambda: _GENTLE)


@dataclass(frozen=True)
class FusionRecipe(TaskRecipe):
    task: str = TASK
    data: FusionDataRecipe = field(default_factory=lambda: FusionDataRecipe())
    lora: LoraRecipe = field(default_factory=lambda: LoraRecipe(rank=2, alpha=2.0, first_block=-1))
    head: FusionHeadRecipe = field(default_factory=FusionHeadRecipe)
    views: FusionViews = field(default_factory=FusionViews)
    training: PaceRecipe = field(default_factory=lambda: PaceRecipe(epochs=3, batch_size=16))

    def __post_init__(self) -> None:
        if self.views.cached < 2:
            raise InvalidRequest("views.cached must be at least 2 for fusion.", param="cached")
        if len(self.data.modalities) > MAX_MODALITIES:
            raise InvalidRequest(f"At most {MAX_MODALITIES} modalities can be accounted for; join some.", param="modality")


Job = FinetuneJob[FusionRecipe]


def fusion_rows(rows: Manifest, recipe: FusionRecipe) -> Manifest:
    """The rows of which the outcome is told (of a case, any of its rows)."""
    if rows.rows:
        check_columns(rows.rows, recipe.data)
    if recipe.data.case:
        return rows
    return rows.select(lambda row: outcome_of(row, recipe.data.outcome) is not None)


def train_fusion(job: Job) -> FinetuneResult:
    """LoRA, features, head, rules; then the figures, the adapter and the report."""
    recipe, started = job.recipe, time.monotonic()
    learning, test = _cases(job)
    fields, statistics = describe_fields(recipe.data, learning)
    parts = split_parts(learning, recipe.head.folds, recipe.seed)
    loop, lora, seen, seen_test = _run_tower(job, learning, test)
    fitter = _Fitter(job, fields, statistics, seen)
    inputs = fitter.inputs(learning, seen)
    asked = fitter.inputs(test, seen_test) if seen_test else None
    truth = np.array([case.truth for case in learning])
    weights = patient_weights(learning, recipe.data.patient_balance)
    lessons = Learning(inputs, truth, weights, parts, tuple(case.patient for case in learning))
    head = fitter.fit(lessons)

    held = candidates(head, inputs, parts)
    rules = choose_rules(fitter.modalities, held, truth, [case.patient for case in learning], recipe.head.hurdle)
    answered = answer_all(fitter.modalities, rules, held, inputs.present.numpy())
    is_held = ~np.isnan(answered)
    chances = 0.5 * (1 + np.tanh(0.5 * answered[is_held]))
    bounds = conformal_bounds(chances, truth[is_held], recipe.head.coverage)
    boosted, boosted_test = score_boosting(parts, fields, learning, test, recipe.seed)
    whole = FusionScores(
        HELD, learning, fitter.modalities, held, rules, inputs.present.numpy(), boosted, bounds, parts if len(parts) > 1 else ()
    )
    scored = [whole.among(is_held)]
    if asked is not None:
        made = candidates(head, asked)
        present = asked.present.numpy()
        scored.append(FusionScores("test", test, fitter.modalities, made, rules, present, boosted_test, bounds))

    rate = float(truth[is_held].mean())
    card = job.card(
        (recipe.data.outcome.label,),
        [row for case in learning for row in case.rows],
        head={
            "shape": asdict(head.shape),
            "modalities": list(fitter.modalities),
            "fields": [asdict(field) for field in fields],
            "rules": [asdict(rule) for rule in rules],
            "prior": float(np.log(rate / (1 - rate))),
            "conformal_absent": bounds.absent,
        },
        thresholds=fit_thresholds(chances[:, None], truth[is_held, None].astype(np.float64)),
        conformal=Conformal(bounds.coverage, (bounds.present,), HELD),
        metrics=tuple(metric for each in scored for metric in card_metrics(each)),
    )
    card = replace(card, limits=(*card.limits, *_limits(recipe, learning)))
    tensors = head.state_dict()
    card = job.write(Adapter(card, lora, tensors))
    predictor = FusionPredictor.open(card, tensors)
    grid = fitter.grid(head, lessons, asked, test)
    examples = _examples(predictor, (test, asked) if asked is not None else (learning, inputs))
    removed, seconds = sum(case.removed for case in learning), time.monotonic() - started
    told = Fusion(card, tuple(scored), grid, loop, predictor, learning, examples, removed, recipe.head.hurdle, seconds)
    if is_main():
        write_fusion_report(job.out, told)
    return FinetuneResult(job.out / recipe.name, card, loop, {each.split: each.full_auroc() for each in scored})


def _cases(job: Job) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Those of train and val, and those of test."""
    every = read_cases(job.rows.rows, job.recipe.data)
    learning = tuple(case for case in every if case.split != "test")
    for split in ("train", "val"):
        if {case.truth for case in learning if case.split == split} != {True, False}:
            raise ManifestError(f"Fusion needs cases with and without the outcome in {split}; set `split` on some patients.")
    return learning, tuple(case for case in every if case.split == "test")


def _run_tower(
    job: Job, learning: Sequence[Case], test: Sequence[Case]
) -> tuple[LoopReport, LoraWeights, _Features, _Features | None]:
    """LoRA learns; then every film passes the adapted tower. The backbone is given back as it was."""
    torch.manual_seed(job.recipe.seed)
    model = SteadyTower(job.backbone, job.recipe.lora, torch.nn.Identity())
    try:
        loop = _steady(job, model, learning)
        job.settle(model.learnt())
        model.eval()
        seen = _Features.read(job, model, learning)
        return loop, model.weights(), seen, _Features.read(job, model, test) if test else None
    finally:
        remove_lora(job.backbone.image_tower)


def _examples(predictor: FusionPredictor, asked: tuple[Sequence[Case], FusionInputs]) -> list[Told]:
    """The most and the least likely case, and the one whose modalities disagree most."""
    cases, inputs = asked
    results = []
    for place in range(len(cases)):
        own = inputs.take(torch.tensor([place]))
        results.append(predictor.judge(own))
    spread = [max(one.unimodal.values()) - min(one.unimodal.values()) for one in results]
    order = np.argsort([one.probability for one in results])
    places = {"most likely": order[-1], "least likely": order[0], "most divided": int(np.argmax(spread))}
    return [Told(words, cases[place].truth, results[place]) for words, place in places.items()]


def _limits(recipe: FusionRecipe, learning: Sequence[Case]) -> tuple[str, ...]:
    patients, ill = ({case.patient for case in group} for group in (learning, [case for case in learning if case.truth]))
    made = []
    if len(learning) < FEW_CASES:
        made.append(
            f"Few rows: learnt from {len(learning)} cases of {len(patients)} patients, {len(ill)} of whom had the outcome; "
            "intervals are wide."
        )
    if recipe.head.folds > 1:
        made.append(
            f"Figures of {HELD!r} are cross-fitted by patient inside train and val: who answers for a subset, calibration, "
            "threshold and conformal bounds were chosen on the same held-back cases."
        )
    else:
        made.append(
            f"Figures of {HELD!r} are of val, where rules, calibration, threshold and conformal bounds were chosen too."
        )
    return tuple(made)


def _steady(job: Job, model: SteadyTower, cases: Sequence[Case]) -> LoopReport:
    """LoRA learns from the films of `train`, without their outcomes; `val` picks the epoch."""
    recipe = job.recipe
    films = {
        split: film_cache(
            _paths([case for case in cases if case.split == split]), job.backbone.contract, job.cache, is_quiet=True
        )
        for split in ("train", "val")
    }
    trainee = InvarianceTrainee(
        model,
        job.backbone,
        films,
        job.cache,
        views=recipe.views.cached,
        strength=recipe.views.strength,
        batch_size=recipe.training.batch_size,
        precision=recipe.training.precision,
        seed=recipe.seed,
        is_quiet=job.is_quiet,
    )
    groups = [group for group in model.groups(recipe.training) if group.parameters]
    return job.train(trainee, model, groups, job.loop_config("agreement"))


@dataclass(frozen=True, eq=False)
class _Features:
    """Of some cases: their films' features, one behind the other, how many each has, and embeddings of their notes."""

    films: FilmFeatures
    counts: tuple[int, ...]
    notes: tuple[npt.NDArray[np.float32] | None, ...]
    level_width: int

    @classmethod
    @torch.no_grad()
    def read(cls, job: Job, model: SteadyTower, cases: Sequence[Case]) -> _Features:
        backbone = job.backbone
        pixels = film_cache(_paths(cases), backbone.contract, job.cache, is_quiet=job.is_quiet)
        device, described, tokens, level_width = next(model.parameters()).device, [], [], 0
        for start in range(0, len(pixels), 16):
            shown = to_pixels(np.asarray(pixels[start : start + 16]), backbone.contract).to(device)
            features = model({"pixels": shown})
            described.append(describe(features).cpu())
            tokens.append(features.tokens.float().cpu())
            level_width = int(features.levels[-2].shape[1])
        notes = [None if case.note is None else backbone.encode_text([case.note])[0].float().cpu().numpy() for case in cases]
        return cls(
            FilmFeatures(torch.cat(described).numpy(), torch.cat(tokens).numpy()),
            tuple(len(case.rows) for case in cases),
            tuple(notes),
            level_width,
        )


class _Fitter:
    """Makes heads for one job's features, and inputs for them."""

    def __init__(self, job: Job, fields: tuple[TabularField, ...], statistics: FieldStatistics, seen: _Features) -> None:
        self.recipe, self.fields, self.settle = job.recipe, fields, job.settle
        self.modalities = self.recipe.data.modalities
        notes = [note for note in seen.notes if note is not None]
        if NOTE in self.modalities and len(notes) < 2:
            raise ManifestError(
                "Fewer than two cases keep a note once sentences that state the outcome are cut; set note = false."
            )
        shape = sizes(self.recipe.head, seen.films, job.backbone.embed_dim, seen.level_width, len(notes), len(seen.counts))
        torch.manual_seed(self.recipe.seed)
        blank = FusionHead(shape, self.modalities, fields, self.recipe.head.dropout)
        stacked = np.stack(notes) if notes else np.zeros((0, shape.embed_dim), np.float32)
        self.template = new_head(self.recipe.head, blank, seen.films, stacked, statistics)
        self.settle(self.template.state_dict().values())  # films are read through it before the head is fitted
        self.start = {name: tensor.clone() for name, tensor in self.template.state_dict().items()}

    def inputs(self, cases: Sequence[Case], seen: _Features) -> FusionInputs:
        with torch.no_grad():
            read = self._read(seen)
            notes = [None if note is None else self.template.read_note(torch.from_numpy(note)[None])[0] for note in seen.notes]
            return self.template.gather(read, notes, [case.table for case in cases])

    def _read(self, seen: _Features) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        film = (torch.from_numpy(seen.films.described) - self.template.film_mean) @ self.template.film_axes
        patch = (torch.from_numpy(seen.films.tokens) - self.template.patch_mean) @ self.template.patch_axes
        return list(zip(film.split(list(seen.counts)), patch.split(list(seen.counts)), strict=True))

    def fit(self, lessons: Learning) -> FusionHead:
        """A head fitted anew from the same start."""
        head = FusionHead(self.template.shape, self.modalities, self.fields, self.recipe.head.dropout)
        head.load_state_dict(self.start)
        fit(head, lessons, self.recipe.head, self.recipe.seed)
        self.settle(head.state_dict().values())
        return head

    def grid(self, whole: FusionHead, lessons: Learning, test: FusionInputs | None, cases: Sequence[Case]) -> Grid:
        """AUROC where modalities were missing in training (first) and in the question (second), on held-back and test."""
        held: dict[tuple[float, float], float] = {}
        tested: dict[tuple[float, float], float] = {}
        asked = [(held, lessons.inputs, lessons.truth, lessons.parts)]
        if test is not None:
            asked.append((tested, test, np.array([case.truth for case in cases]), ()))
        for learnt in MISSING_RATES:
            random = torch.Generator().manual_seed(self.recipe.seed)
            sparse = replace(lessons, inputs=without(lessons.inputs, learnt, random)) if learnt else lessons
            head = self.fit(sparse) if learnt else whole
            made = candidates(head, sparse.inputs, lessons.parts)
            rules = choose_rules(self.modalities, made, lessons.truth, lessons.patients, self.recipe.head.hurdle)
            for rate in MISSING_RATES:
                for cells, inputs, truth, parts in asked:
                    values = [
                        Grid.auroc(self._answer(head, rules, inputs, parts, rate, draw), truth)
                        for draw in range(DRAWS if rate else 1)
                    ]
                    cells[learnt, rate] = float(np.mean(values))
        return Grid(MISSING_RATES, held, tested)

    def _answer(
        self,
        head: FusionHead,
        rules: Sequence[SubsetRule],
        inputs: FusionInputs,
        parts: Sequence[Part],
        rate: float,
        draw: int,
    ) -> npt.NDArray[np.float64]:
        """(N,) calibrated logits where modalities are missing at this rate."""
        random = torch.Generator().manual_seed(self.recipe.seed + draw + 1)
        asked = without(inputs, rate, random)
        return answer_own(self.modalities, rules, own_logits(head, asked, parts or None), asked.present.numpy())


def _paths(cases: Sequence[Case]) -> list[Path]:
    return [row.image for case in cases for row in case.rows]
