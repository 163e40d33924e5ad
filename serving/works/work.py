"""The parts of every work: views in, what was seen of them, a value out; and the tools that works are planned with.

A View is a film through one adapter (or none); the engine runs equal views once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foundation.errors import InvalidRequest
from foundation.gate import Gate, GateVerdict, gate_vectors
from foundation.look import AS_IT_IS, Look
from foundation.preprocess import normalise
from serving.chat_residency import ChatResidency
from serving.messages import Film, Request
from serving.residency import Residency, Resident

if TYPE_CHECKING:
    from foundation.backbone import Backbone, ImageFeatures

Value = dict[str, Any]


@dataclass(frozen=True, eq=False)
class View:
    """A film, pixels (S, S, 3), in one look, as seen through an adapter; None is the base itself."""

    pixels: npt.NDArray[np.uint8]
    resident: Resident | None = None
    look: Look = AS_IT_IS

    @property
    def slot(self) -> int:
        return self.resident.slot if self.resident else 0


@dataclass(frozen=True, eq=False)
class Seen:
    """The answers to a work's views and texts, in their order. texts: (T, E)."""

    features: tuple[ImageFeatures, ...]  # each of one film (B = 1)
    texts: Tensor


class Work(Protocol):
    @property
    def views(self) -> tuple[View, ...]: ...

    @property
    def texts(self) -> tuple[str, ...]: ...

    @property
    def resident(self) -> Resident | None: ...  # whose adapter the answer rests on

    def finish(self, seen: Seen) -> Value: ...


@dataclass(frozen=True, eq=False)
class Tools:
    """What plans are made with: the opened model and what is resident on it."""

    backbone: Backbone
    residency: Residency
    gate: Gate | None
    findings_adapter: str
    chats: ChatResidency | None = None  # where there is a decoder

    def verdict(self, features: ImageFeatures, film: Film) -> GateVerdict:
        """Whether this film is of a kind the model knows; without a gate every film is. features: of the base."""
        if self.gate is None:
            return GateVerdict(True, "", 0.0)
        return self.gate.assess(gate_vectors(features)[0], film.pixels, film.modality)

    def adapter_of(self, request: Request, pinned: set[str], doing: str) -> Resident:
        """The adapter a request names, resident and pinned. doing: for the sentence where it names none."""
        if request.adapter is None:
            raise InvalidRequest(f"{doing} needs an adapter: name one in 'model'.", param="model")
        resident = self.residency.take(request.adapter, pinned, request.digest)
        pinned.add(resident.digest)
        return resident

    def views(self, film: Film, resident: Resident) -> tuple[View, ...]:
        """The film through an adapter and, for the gate, which knows films as the base sees them, as it is."""
        through = View(film.pixels, resident)
        return (through, View(film.pixels)) if self.gate else (through,)

    def pixels(self, film: Film) -> Tensor:
        """(1, 3, S, S), normalised: what the trunk was given, for heads that read the film itself."""
        return torch.from_numpy(normalise(film.pixels, self.backbone.contract))[None].to(self.backbone.device)


def further_views(pixels: npt.NDArray[np.uint8], looks: Sequence[Look]) -> tuple[View, ...]:
    """The film as the base sees it in further looks."""
    return tuple(View(pixels, look=look) for look in looks)


def film_of(request: Request, tools: Tools) -> Film:
    """The request's film, of the size the model eats."""
    if request.film is None:
        raise InvalidRequest("This operation needs a film. Send one.", param="images")
    check_film(request.film, tools)
    return request.film


def check_film(film: Film, tools: Tools) -> None:
    size = tools.backbone.contract.size
    if film.pixels.shape != (size, size, 3):
        raise InvalidRequest(f"The film must be {size} x {size} pixels in three channels by now.", param="images")


def assessment(verdict: GateVerdict) -> Value:
    return {"assessed": verdict.assessed, "looks_like": verdict.looks_like}


def require_finite(value: Any) -> None:
    """Raise ArithmeticError where a number in a value is none."""
    if not _is_finite(value):
        raise ArithmeticError("a result is not finite")


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    return all(_is_finite(item) for item in value) if isinstance(value, list | tuple) else True
