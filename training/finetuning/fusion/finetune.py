"""Fine-tuning of the fusion task: films, notes and tables, any of them absent, to an adapter that accounts for each.

    rows -> cases -> Loop (LoRA, without labels) -> features -> cross-fitted head -> rules -> card, report

`test` is scored once, beside gradient boosting on the table; figures before it are of cases held back from the member
that answers. Options stand in `recipe.py`, what the towers say of cases in `features.py`,
what is fitted in `fit.py` and `fitter.py`, the choice of who answers in `rules.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from adapters.card import Conformal
from adapters.files import Adapter
from adapters.lora import LoraWeights, remove_lora
from adapters.tasks.fusion import FusionPredictor
from adapters.tasks.fusion_head import FusionInputs
from foundation.errors import ManifestError
from training.finetuning.fusion.data import Case, check_columns, describe_fields, outcome_of, patient_weights, read_cases
from training.finetuning.fusion.features import Features, film_paths
from training.finetuning.fusion.fit import Learning, candidates, split_parts
from training.finetuning.fusion.fitter import Fitter
from training.finetuning.fusion.invariance import InvarianceTrainee, SteadyTower
from training.finetuning.fusion.recipe import FusionRecipe, Job
from training.finetuning.fusion.report import Fusion, Told, write_fusion_report
from training.finetuning.fusion.rules import answer_all, choose_rules, conformal_bounds
from training.finetuning.fusion.scores import FusionScores, card_metrics, score_boosting
from training.finetuning.job import FinetuneResult
from training.finetuning.trunk_cache import film_cache
from training.loop import LoopReport
from training.manifests.manifest import Manifest
from training.processes import is_main
from training.trust.calibrate import fit_thresholds

HELD = "held back"  # the split that cross-fitted figures are of
FEW_CASES = 1000


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
    fitter = Fitter(job, fields, statistics, seen)
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
) -> tuple[LoopReport, LoraWeights, Features, Features | None]:
    """LoRA learns; then every film passes the adapted tower. The backbone is given back as it was."""
    torch.manual_seed(job.recipe.seed)
    model = SteadyTower(job.backbone, job.recipe.lora, torch.nn.Identity())
    try:
        loop = _steady(job, model, learning)
        job.settle(model.learnt())
        model.eval()
        seen = Features.read(job, model, learning)
        return loop, model.weights(), seen, Features.read(job, model, test) if test else None
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
            film_paths([case for case in cases if case.split == split]), job.backbone.contract, job.cache, is_quiet=True
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
