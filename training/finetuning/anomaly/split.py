"""Which films learn, which choose, which are what "normal" is measured against: three roles, no patient in two.

    train       normal films for memory and training, abnormal ones where the manifest has them
    choose      picks the epoch and the weights of the branches
    reference   normal films that p-values and heat maps are ranked among; seen by nothing before

With enough normal films in `val` its patients are divided between `choose` and `reference`; with a handful all normal
films of `train` and `val` are divided between the three. `test` is never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foundation.errors import ManifestError
from training.manifests.manifest import Manifest, Row

ENOUGH = 20  # normal films in `val`, from ten patients or more, for it to be divided
FEWEST = 6  # normal patients in all


@dataclass(frozen=True)
class Roles:
    """Rows by role; `choose_abnormal` and `train_abnormal` are empty where the manifest has no abnormal films."""

    train: tuple[Row, ...]
    train_abnormal: tuple[Row, ...]
    choose: tuple[Row, ...]
    choose_abnormal: tuple[Row, ...]
    reference: tuple[Row, ...]


def assign_roles(rows: Manifest, is_normal: Callable[[Row], bool], use_abnormal: bool) -> Roles:
    """Raises ManifestError where there are too few normal films."""
    train, val = ([row for row in rows.rows if row.split == split] for split in ("train", "val"))
    normal_train, normal_val = ([row for row in part if is_normal(row)] for part in (train, val))
    if len(normal_val) >= ENOUGH and len(_patients(normal_val)) >= ENOUGH // 2:
        learn = normal_train
        choose, reference = _divide(normal_val, (0.5, 0.5))
    else:
        pool = [*normal_train, *normal_val]
        if len(_patients(pool)) < FEWEST:
            raise ManifestError(
                f"There are normal films of {len(_patients(pool))} patients in train and val; give at least {FEWEST}, as some "
                "learn, some choose, and some are what others are measured against."
            )
        learn, choose, reference = _divide(pool, (0.5, 0.2, 0.3))
    if not learn:
        raise ManifestError("No train row is normal; say in data.normal which label means normal.", param="normal")
    # A patient's abnormal films stay out of `reference` patients' way: what was learnt of them would be known of both.
    held = _patients(choose) | _patients(reference)
    abnormal = [row for row in train if not is_normal(row) and row.patient_id not in held] if use_abnormal else []
    chosen = [row for row in val if not is_normal(row) and row.patient_id not in _patients(reference)]
    return Roles(*(tuple(part) for part in (learn, abnormal, choose, chosen, reference)))


def _patients(rows: Sequence[Row]) -> set[str]:
    return {row.patient_id for row in rows}


def _divide(rows: Sequence[Row], shares: Sequence[float]) -> list[list[Row]]:
    """By patient, in an order that has nothing to do with the file's; each part gets at least one patient."""
    order = sorted(_patients(rows), key=lambda patient: hashlib.sha256(patient.encode()).hexdigest())
    parts: list[list[str]] = []
    start, total = 0, 0.0
    for number, share in enumerate(shares):
        total += share
        left = len(shares) - number - 1
        stop = len(order) if not left else min(len(order) - left, max(start + 1, round(total * len(order))))
        parts.append(order[start:stop])
        start = stop
    return [[row for row in rows if row.patient_id in set(part)] for part in parts]
