"""Fine-tuning of the anomaly task: normal films, and abnormal ones where there are any, to an adapter with p-values.

rows -> roles -> synthetic lesions -> trunk cache -> Loop (epoch by `choose`) -> memory -> reference -> card
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from adapters.files import Adapter
from adapters.lora import remove_lora
from adapters.tasks.anomaly import BRANCHES, LABEL, TASK, AnomalyHead, HeadShape
from adapters.tasks.classification import NORMAL as NORMAL_LABEL
from adapters.tasks.classification import Prompts
from adapters.tasks.reference import NormalReference
from foundation.errors import InvalidRequest
from foundation.prompts import prompt_pair
from training.augment import AugmentStrength
from training.finetuning.adapted_tower import level_widths
from training.finetuning.anomaly.scores import BASELINES, AnomalyScores, card_metrics
from training.finetuning.anomaly.split import Roles, assign_roles
from training.finetuning.anomaly.trainee import (
    ABNORMAL,
    NORMAL,
    SYNTHETIC,
    AdaptedDetector,
    AnomalyTrainee,
    SortedFilms,
    choose_weights,
    described_patches,
    learn_usual,
    patch_quantiles,
    read_levels,
    remember,
    sampled,
    score_all,
    with_lesions,
)
from training.finetuning.job import FinetuneJob, FinetuneResult
from training.finetuning.recipe import RowsRecipe, TaskRecipe
from training.finetuning.report import write_report
from training.finetuning.segmentation.trainee import level_grids
from training.finetuning.trunk_cache import film_cache
from training.manifests.manifest import Manifest, Row

_GENTLE = AugmentStrength(
    rotate_degrees=6.0, zoom=0.08, shift=0.04, gamma=0.2, contrast=0.15, brightness=0.05, noise=0.01, border=0.0, erase=0.0
)


@dataclass(frozen=True)
class NormalDataRecipe(RowsRecipe):
    """normal: the label of normal films, every other labelled film being abnormal.

    use_abnormal: learn from the abnormal films of `train`; False leaves them to validation and test.
    least_age: films of younger patients, where the age is known, are left out of everything.
    held_out: rows of `train` and `val` that have this field, such as "boxes", are kept for the report alone.
    """

    normal: str = NORMAL_LABEL
    use_abnormal: bool = True
    least_age: float = 0.0
    held_out: str = ""


@dataclass(frozen=True)
class AnomalyHeadRecipe:
    """findings: what the text branch looks for; memory: patches kept, each of memory_width numbers.

    components: of normal patches, from which others are rebuilt. pools: how levels are pooled for the linear reading of them
    (mean, max, std); penalties: of that reading, of which validation picks one; without any, or without abnormal films, the
    levels are not read.
    """

    findings: tuple[str, ...] = (
        "effusion",
        "pneumothorax",
        "consolidation",
        "edema",
        "mass",
        "nodule",
        "cardiomegaly",
        "atelectasis",
    )
    memory: int = 1024
    memory_width: int = 64
    memory_films: int = 1500
    components: int = 16
    pools: tuple[str, ...] = ("mean",)
    penalties: tuple[float, ...] = (4.0, 1.0, 0.3)


@dataclass(frozen=True)
class AnomalyViews:
    """cached: augmented views of each film; synthetic: films with a phantom's lesion, as a multiple of the normal ones.

    synthetic_share: among the films that are not normal, the share of synthetic ones where there are real ones too.
    """

    cached: int = 2
    strength: AugmentStrength = field(default_factory=lambda: _GENTLE)
    synthetic: float = 0.5
    synthetic_share: float = 0.2


@dataclass(frozen=True)
class AnomalyRecipe(TaskRecipe):
    task: str = TASK
    data: NormalDataRecipe = field(default_factory=NormalDataRecipe)
    head: AnomalyHeadRecipe = field(default_factory=AnomalyHeadRecipe)
    views: AnomalyViews = field(default_factory=AnomalyViews)

    def __post_init__(self) -> None:
        if self.views.cached < 1:
            raise InvalidRequest("views.cached must be at least 1 for anomaly detection.", param="cached")
        if not self.head.findings:
            raise InvalidRequest("head.findings must name what the text branch looks for.", param="findings")
        if min(self.head.memory, self.head.memory_width, self.head.memory_films, self.head.components) < 1:
            raise InvalidRequest("head.memory, memory_width, memory_films and components must be at least 1.", param="memory")


Job = FinetuneJob[AnomalyRecipe]
Films = npt.NDArray[np.uint8]


def anomaly_rows(rows: Manifest, recipe: AnomalyRecipe) -> Manifest:
    """The labelled rows of patients old enough, without those of `train` and `val` that are kept for the report."""
    return rows.select(
        lambda row: (
            is_asked(row, recipe) and (row.split == "test" or not (recipe.data.held_out and row.get(recipe.data.held_out)))
        )
    )


def is_asked(row: Row, recipe: AnomalyRecipe) -> bool:
    """Whether the row can be normal or not: it is labelled, and its patient old enough as far as is known."""
    age = row.get("age")
    return row.is_labelled and not (isinstance(age, int | float) and age < recipe.data.least_age)


def train_anomaly(job: Job) -> FinetuneResult:
    """Train, remember normal patches, fit the reference, score and write the adapter."""
    recipe, backbone = job.recipe, job.backbone
    roles = assign_roles(job.rows, lambda row: recipe.data.normal in row.labels, recipe.data.use_abnormal)
    films = _films(job, roles)
    torch.manual_seed(recipe.seed)
    head = _new_head(job, len(roles.reference), is_read=bool(recipe.head.penalties and roles.train_abnormal))
    model = AdaptedDetector(backbone, recipe.lora, head)
    trainee = AnomalyTrainee(
        model,
        backbone,
        films,
        job.cache,
        views=recipe.views.cached,
        strength=recipe.views.strength,
        batch_size=recipe.training.batch_size,
        synthetic_share=recipe.views.synthetic_share,
        patient_balance=recipe.data.patient_balance,
        precision=recipe.training.precision,
        seed=recipe.seed,
        is_quiet=job.is_quiet,
    )
    try:
        groups = model.groups(recipe.training)
        report = job.train(trainee, model, groups, job.loop_config())
        if model.head.reader is not None:
            read_levels(model, trainee, recipe.head.penalties)
        job.settle(model.learnt())
        scored = _finish(job, model, films, roles)
        tensors = {name: tensor.detach().clone() for name, tensor in model.head.state_dict().items()}
        lora = model.weights()
    finally:
        remove_lora(backbone.image_tower)  # the backbone is given back as it was
    card = job.card(
        (LABEL,),
        [*roles.train, *roles.train_abnormal, *roles.choose, *roles.choose_abnormal, *roles.reference],
        head=asdict(model.head.shape)
        | {name: list(getattr(model.head.shape, name)) for name in ("level_widths", "places", "read_widths", "read_pools")},
        metrics=tuple(metric for each in scored for metric in card_metrics(each, LABEL, tuple(BASELINES))),
    )
    card = replace(card, limits=(*card.limits, *_limits(roles, films)))
    card = job.write(Adapter(card, lora, tensors))
    write_report(job.out, card, report, _counts(roles) | {each.split: len(each.patients) for each in scored})
    scores = {each.split: float(each.auroc_of("fusion")(np.ones((1, len(each.patients))))[0]) for each in scored}
    return FinetuneResult(job.out / recipe.name, card, report, scores)


def _new_head(job: Job, reference: int, is_read: bool) -> AnomalyHead:
    """is_read: the levels are read linearly."""
    recipe, widths = job.recipe.head, level_widths(job.backbone)
    last = (widths[-3], widths[-2], widths[-1])
    head = AnomalyHead(
        HeadShape(
            job.backbone.embed_dim,
            last,
            len(recipe.findings),
            recipe.memory,
            recipe.memory_width,
            reference,
            components=min(recipe.components, recipe.memory_width),
            places=level_grids(job.backbone)[-3],
            read_widths=widths if is_read else (),
            read_pools=recipe.pools,
        )
    )
    pairs = [prompt_pair(name) for name in recipe.findings]
    head.start_from_text(job.backbone, Prompts(tuple(p.positive for p in pairs), tuple(p.negative for p in pairs)))
    head.start_projection(job.recipe.seed)
    return head


def _films(job: Job, roles: Roles) -> dict[str, SortedFilms]:
    recipe, contract = job.recipe, job.backbone.contract

    def read(rows: Sequence[Row]) -> Films:
        return film_cache([row.image for row in rows], contract, job.cache, is_quiet=job.is_quiet)

    def sort(normal: Sequence[Row], abnormal: Sequence[Row], synthetic: int, strength: AugmentStrength | None) -> SortedFilms:
        rows = (*normal, *abnormal)
        pixels = read(rows)
        kind = [NORMAL] * len(normal) + [ABNORMAL] * len(abnormal) + [SYNTHETIC] * synthetic
        masks = np.zeros((len(kind), contract.size, contract.size), bool)
        patients = [row.patient_id for row in rows] + [f"synthetic {number}" for number in range(synthetic)]
        if synthetic:
            made, covered = with_lesions(pixels[: len(normal)], synthetic, contract, strength, recipe.seed)
            pixels, masks[len(rows) :] = np.concatenate([pixels, made]), covered
        return SortedFilms(pixels, np.array(kind), masks, tuple(patients), rows)

    wanted = max(round(recipe.views.synthetic * len(roles.train)), 0 if roles.train_abnormal else 1)
    return {
        "train": sort(roles.train, roles.train_abnormal, wanted, recipe.views.strength),
        "choose": sort(roles.choose, roles.choose_abnormal, 0 if roles.choose_abnormal else max(8, len(roles.choose)), None),
        "reference": sort(roles.reference, (), 0, None),
    }


@torch.inference_mode()
def _finish(job: Job, model: AdaptedDetector, films: Mapping[str, SortedFilms], roles: Roles) -> list[AnomalyScores]:
    """Memory, what is usual, weights, reference, quantiles, in this order; then the scores of `choose` (as val) and test."""
    recipe, contract = job.recipe, job.backbone.contract
    normals = films["train"].of(NORMAL)
    chosen = np.random.default_rng(recipe.seed).permutation(len(normals))[: recipe.head.memory_films]
    remember(
        model.head, sampled(described_patches(model, normals[np.sort(chosen)], contract), len(chosen), recipe.seed), recipe.seed
    )
    learn_usual(model, films["choose"].of(NORMAL), contract)
    choose, _ = score_all(model, films["choose"].pixels, contract)
    reference, maps = score_all(model, films["reference"].pixels, contract)
    weights = choose_weights(choose, films["choose"].is_abnormal, films["choose"].patients)
    model.head.reference.copy_(torch.from_numpy(reference))
    model.head.weights.copy_(torch.from_numpy(weights))
    model.head.quantiles.copy_(torch.from_numpy(patch_quantiles(maps, weights)))
    held = NormalReference(model.head.reference.double().cpu().numpy(), weights)
    scored = [_scored("val", films["choose"], choose, held, normals)]
    test = [row for row in job.rows.rows if row.split == "test"]
    if test:
        is_normal = np.array([recipe.data.normal in row.labels for row in test])
        pixels = film_cache([row.image for row in test], contract, job.cache, is_quiet=job.is_quiet)
        kind = np.where(is_normal, NORMAL, ABNORMAL)
        patients = tuple(row.patient_id for row in test)
        asked = SortedFilms(pixels, kind, np.zeros((0, 0, 0), bool), patients, tuple(test))
        scored.append(_scored("test", asked, score_all(model, pixels, contract)[0], held, normals))
    return scored


def _scored(
    split: str, films: SortedFilms, scores: npt.NDArray[np.float64], held: NormalReference, normals: Films
) -> AnomalyScores:
    named = {"fusion": held.surprise(scores)} | dict(zip(BRANCHES, scores.T, strict=True))
    named |= {name: baseline(normals, np.asarray(films.pixels)) for name, baseline in BASELINES.items()}
    # NOTE: the card's float32 reference is what serving compares with, so scores are rounded alike.
    rounded = scores.astype(np.float32).astype(np.float64)
    return AnomalyScores(split, films.patients, films.is_abnormal, held.p_values(rounded), named)


def _limits(roles: Roles, films: Mapping[str, SortedFilms]) -> tuple[str, ...]:
    smallest = 1 / (len(roles.reference) + 1)
    made = [f"p-values rest on {len(roles.reference)} held-out normal films: the smallest is {smallest:.4f}."]
    if not roles.train_abnormal:
        made.append("No abnormal film was learnt from; the trained branch saw phantom lesions laid over normal films.")
    if (films["choose"].kind == SYNTHETIC).any():
        made.append("Epoch and weights were chosen on synthetic lesions, and the figures of val are of those.")
    return tuple(made)


def _counts(roles: Roles) -> dict[str, int]:
    named = {"normal train": roles.train, "abnormal train": roles.train_abnormal, "reference": roles.reference}
    return {name: len(rows) for name, rows in named.items() if rows}
