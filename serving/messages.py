"""The values that travel between the server's parts. All frozen; none holds a tensor, a socket or a patient's name.

    api --RawFilm--> decode pool --Film--> worker --Request--> scheduler --Batch--> engine --Outcome--> worker --> api

`api` fills a Request from a caller's JSON, the decode pool fills its films, the scheduler groups Requests
into a Batch, the engine answers each with an Outcome. The engine process receives and returns them as
msgpack; films travel as uint8 bytes in shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Operation = Literal[
    "embed_image", "embed_text", "zero_shot", "classify", "segment", "anomaly", "fuse", "analyze", "chat", "load", "unload"
]


@dataclass(frozen=True)
class RawFilm:
    """A film as the caller sent it. slice_index and window choose what of a volume is shown; None: the reader decides."""

    data: bytes
    slice_index: int | None = None
    window: tuple[float, float] | None = None  # (center, width) in stored physical units


@dataclass(frozen=True, eq=False)
class Film:
    """A decoded film: `pixels` (S, S, 3) uint8, exactly what the model sees, and what reading found out about it.

    height, width: of the slice as it was sent, in its own pixels, in which points and masks are told; 0 where unknown.
    spacing_mm: (row, column) distance of those pixels, where the file says it.
    """

    pixels: npt.NDArray[np.uint8]
    digest: str  # MedicalImage.digest of the whole film or volume
    modality: str = ""
    view: str = ""
    source_format: str = ""
    slices: int = 1
    slice_index: int = 0
    notes: tuple[str, ...] = ()
    decode_ms: float = 0.0
    height: int = 0
    width: int = 0
    spacing_mm: tuple[float, float] | None = None

    @property
    def extent(self) -> tuple[int, int]:
        """(height, width) of the film's own pixels; the model's square where the film's are not known."""
        return (self.height, self.width) if self.height and self.width else (self.pixels.shape[0], self.pixels.shape[1])


@dataclass(frozen=True)
class ChatTurn:
    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sampling:
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0  # how many of the most probable tokens are told beside each one chosen


@dataclass(frozen=True, eq=False)
class Request:
    """One item of work for the engine: one film (fuse: any number), one adapter (analyze: one a task).

    id is unique per process; deadline and arrival are seconds on the monotonic clock.
    options holds only what the operation names:
      zero_shot: labels (list of str), templates (list of str, each with "{}"), negatives (list of str or None),
                 scoring ("softmax" | "sigmoid" | "pairwise")
      chat: maps (bool, a heat map for every finding), map_method (see foundation/relevance.py)
      segment: labels (list of str or None, which classes), points ([[row, column, is_inside], ...]) and boxes
               ([[top, left, bottom, right], ...]) in the film's own pixels
      fuse: tabular (field name -> number, word or None); the note is in `texts`, further films in `others`
      analyze: tasks (list of {"operation", "adapter", "digest", "options"}), all about `film`
      anomaly: heat (bool, also a heat map; true where it is not said)
      load: digest (str, "" for whatever the store holds)
      classify, embed_image, embed_text, unload: {}
    """

    id: int
    operation: Operation
    adapter: str | None = None
    film: Film | None = None
    texts: tuple[str, ...] = ()
    turns: tuple[ChatTurn, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    options: Mapping[str, Any] = field(default_factory=dict)
    arrival: float = 0.0
    deadline: float | None = None
    tenant: str = ""  # whose request it is: nothing kept for one tenant is ever used for another
    stores: bool = True  # whether anything of it may be kept once it is answered
    trace: str = ""  # the call's id, for the log
    digest: str = ""  # of the adapter as it was when the request came; "" for whatever it is by then
    others: tuple[Film, ...] = ()  # the films after the first
    rows: float = 0.0  # what it costs (cost.py), as the engine weighed it when it came; 0 before

    @property
    def films(self) -> tuple[Film, ...]:
        return self.others if self.film is None else (self.film, *self.others)

    @property
    def adapters(self) -> frozenset[str]:
        """The names of all adapters its films go through."""
        named = [self.adapter, *(task.get("adapter") for task in self.options.get("tasks", ()))]
        return frozenset(name for name in named if name)


@dataclass(frozen=True)
class Batch:
    """Requests to be run together, in order."""

    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one request: `value` (plain msgpack-able data, see below) or an error's code and sentence.

    value by operation:
      embed_image, embed_text: {"embeddings": [[float, ...], ...]}
      zero_shot: {"scores": [K floats], "logits": [K floats], "assessed": bool, "looks_like": str}
      classify: {"labels", "probabilities", "logits", "thresholds": [K values], "normal": float | None, "calibration": str,
            "conformal": {"coverage": float, "labels": [str]} | None, "assessed": bool, "looks_like": str}
      segment: {"labels", "presence", "thresholds": [K values], "masks": [K COCO run lengths], "assessed", "looks_like"}
      anomaly: {"score", "p_value", "branches": {name: p}, "normals": int, "heat": h rows of w numbers over the model's
            square or None, "assessed", "looks_like"}
      fuse: FusionResult's fields with "subsets": [{"modalities", "probability", "logit", "method"}], "note": {"removed"}
            or None, "films": [{"assessed", "looks_like"}], "assessed", "looks_like"
      analyze: {"parts": [one a task: its operation's value with its "adapter" digest, or {"error": [code, sentence]}],
            "assessed", "looks_like"}
      load: {"name", "digest", "task", "slot": int, "deviation": float} ; unload: {"name", "was_resident": bool}
      chat, one Outcome per streamed piece: {"delta": str, "logprobs": [{"token", "logprob", "top": [[token, logprob]]}]}
            (logprobs only where asked for) ... then
            {"finish_reason": "stop" | "length", "usage": {"prompt_tokens": int, "completion_tokens": int}, "evidence": {...}}
    evidence (chat): {"assessed": bool, "looks_like": str,
            "findings": [{"label", "probability", "threshold", "side", "zone"}...],
            "heatmap": {"label": str, "grid": [[float]], "low": float, "high": float} | None,
            "maps": [heatmap, ...] | None, "reliance": float | None}
    Every value also carries "provenance": {"model", "adapter", "pixels", "preprocessing"} and "compute_ms".
    """

    request_id: int
    value: Mapping[str, Any] | None = None
    error_code: str | None = None
    error_message: str = ""
    retry_after_s: float = 0.0  # of an error that passes: when to ask again
    is_final: bool = True

    @property
    def is_error(self) -> bool:
        return self.error_code is not None
