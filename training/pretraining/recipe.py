"""Recipe of pretraining: which films, which stages, and what each step of a stage does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from training.augment import AugmentStrength
from training.pretraining.learner import ModelRecipe

OF_TARGETS = ("findings", "prompts")  # told by a film's targets alone, so that mirrored and blended films have them too
OF_TEXT = ("pairs", "prompts", "captions", "patches")
OBJECTIVES = ("masked", "gradients", "findings", *OF_TEXT)


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
    second_opinion: float = 0.0  # share of the findings' targets that the towers tell as the stage begins (`opinions.py`)


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


def needs_text(stage: StageRecipe) -> bool:
    """Whether the stage reads sentences."""
    return bool(set(OF_TEXT) & set(stage.objectives))


def at_step(stage: StageRecipe, step: int) -> StageRecipe:
    """What a step of the stage does.

    Reports and masks say left and right of one film. Where a stage has them and blends or mirrors films as well, it does
    the two in turn: films as they are at even steps, blended ones, told by their targets alone, at odd steps.
    """
    if not (stage.flip or stage.mix) or not set(stage.objectives) - set(OF_TARGETS):
        return stage
    if step % 2 == 0:
        return replace(stage, flip=0.0, mix=0.0, sizes=())
    return replace(stage, objectives={name: share for name, share in stage.objectives.items() if name in OF_TARGETS})


def rate_share(step: int, steps: int, schedule: str) -> float:
    """Share of the stage's learning rate at this step: up to 1 in the first tenth (at most 100 steps), then by the schedule."""
    warm = min(1.0, (step + 1) / max(1, min(100, steps // 10)))
    if schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "linear":
        return warm * (1 - step / steps)
    return warm
