"""A phantom: one synthetic frontal chest film with exact masks, labels, a report and questions.

Random streams are apart (patient, findings, each lesion, exposure, words), so the same seed is the same patient,
position and exposure whatever is found. Markers that look like a side letter tell the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foundation.errors import InvalidRequest
from foundation.phantom.anatomy import FloatArray, draw_anatomy
from foundation.phantom.canvas import Canvas
from foundation.phantom.film import expose
from foundation.phantom.findings import FINDINGS, PhantomFinding, complete_findings, draw_findings
from foundation.phantom.lesions import Lesion, Mask, Site, draw_lesion, heart_ratio
from foundation.phantom.tissue import Layers, draw_layers
from foundation.phantom.words import Question, write_questions, write_report

_PATIENT, _FINDINGS, _TISSUE, _HEART, _EXPOSURE, _LESIONS = range(6)
_SIZES = (48, 2048)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A film (H, W) uint8, brighter is denser, the patient's right on the left of the picture.

    masks: bool (H, W): "left lung", "right lung" (the visible fields), "heart", and one for each finding's name.
    labels: the names of the findings in the order of `FINDINGS`; empty means normal.
    """

    seed: int
    film: npt.NDArray[np.uint8]
    masks: dict[str, Mask]
    findings: tuple[PhantomFinding, ...]
    report: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings)

    @property
    def is_normal(self) -> bool:
        return not self.findings

    def label_vector(self, names: Sequence[str] = FINDINGS) -> npt.NDArray[np.float32]:
        """1 where a finding is present, 0 where not; raises InvalidRequest on a name phantoms do not have."""
        for name in names:
            _require_known(name)
        return np.array([name in self.labels for name in names], dtype=np.float32)

    def questions(self) -> list[Question]:
        """Questions with true answers, about as many answered "yes" as "no"."""
        return write_questions(self.seed, self.findings)


def make_phantom(seed: int, size: int = 224, findings: Sequence[str | PhantomFinding] | None = None) -> Phantom:
    """Draw the patient of this seed, with random findings (None), or with exactly those asked for ((): normal).

    Fields of a PhantomFinding left "" are chosen by the seed. Raises InvalidRequest for an unknown finding, a property
    it cannot have, a negative seed, or a size outside 48..2048 pixels.
    """
    if seed < 0:
        raise InvalidRequest(f"seed {seed} is negative; give zero or more.", param="seed")
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise InvalidRequest(f"size {size} is outside {_SIZES[0]} to {_SIZES[1]} pixels.", param="size")
    rng = _stream(seed, _FINDINGS)
    shown = draw_findings(rng) if findings is None else complete_findings(findings, rng)
    canvas = Canvas(draw_anatomy(_stream(seed, _PATIENT)), size)
    big_heart = next((finding for finding in shown if finding.name == "cardiomegaly"), None)
    ratio = heart_ratio(canvas.anatomy.heart_ratio, big_heart, _stream(seed, _HEART))
    layers = draw_layers(canvas, ratio, _stream(seed, _TISSUE))
    lesions = {
        finding.name: draw_lesion(Site(canvas, layers, finding, _stream(seed, _LESIONS, FINDINGS.index(finding.name))))
        for finding in shown
    }
    film = expose(_opacity(layers, list(lesions.values())), canvas, _stream(seed, _EXPOSURE))
    return Phantom(seed, film, _masks(layers, lesions), shown, write_report(seed, shown))


def _opacity(layers: Layers, lesions: Sequence[Lesion]) -> FloatArray:
    """What the rays meet: lesions take the place of air, so an effusion hides the nodule in it."""
    passing = (1 - 0.93 * layers.heart) * (1 - 0.95 * layers.centre)
    extra = np.zeros_like(layers.soft)
    lung = np.float32(1) - sum((one.airless for one in lesions if one.airless is not None), np.float32(0))
    for lesion in lesions:
        if lesion.opacity is not None:
            passing = passing * (1 - lesion.opacity * (lung if lesion.diffuse else 1))
        if lesion.extra is not None:
            extra = extra + lesion.extra
    flesh = layers.soft - layers.air * passing * (1 - 0.55 * layers.vessels * lung)
    bone = layers.bone * np.clip(1.7 - flesh, 0.35, 1.0)  # bone shows less where little radiation is left
    return np.asarray(flesh + bone + extra, dtype=np.float32)


def _masks(layers: Layers, lesions: dict[str, Lesion]) -> dict[str, Mask]:
    visible = (layers.heart < 0.5) & (layers.centre < 0.5)
    masks: dict[str, Mask] = {f"{side} lung": (layers.lungs[side] >= 0.5) & visible for side in ("left", "right")}
    masks["heart"] = layers.heart >= 0.5
    masks.update({name: lesion.mask for name, lesion in lesions.items()})
    for hidden, hiding in (("pneumothorax", "effusion"), ("edema", "effusion"), ("edema", "pneumothorax")):
        if hidden in masks and hiding in masks:
            masks[hidden] = masks[hidden] & ~masks[hiding]
    return masks


def _require_known(name: str) -> None:
    if name not in FINDINGS:
        raise InvalidRequest(f'Unknown finding "{name}"; known findings are: {", ".join(FINDINGS)}.', param="names")


def _stream(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng((seed, *path))
