"""A gateway without a model: deterministic numbers from the film's digest, for tests and for building a page.

    python -m serving.fake --port 8000

Films are read as a real server reads them; a colour picture or a CT slice is "not assessed".
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from foundation.errors import VesaliusError
from foundation.preprocess import InputContract
from serving.fake_tasks import FIELDS, LUNGS, MODALITIES, draw, fused, masks, strangeness
from serving.gateway import ModelInfo, Readiness
from serving.mask_files import MaskFile, write_mask_file
from serving.messages import Film, Outcome, RawFilm, Request

CONTRACT = InputContract(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
EMBED_DIM = 16
BASE = "vesalius-fake"
ADAPTER = "cxr-findings"
SEGMENTER = "lungs"
DETECTOR = "cxr-anomaly"
FUSER = "course"
FINDINGS = ("atelectasis", "cardiomegaly", "consolidation", "effusion", "pneumothorax")
MODELS = (
    ModelInfo(
        name=BASE,
        kind="base",
        capabilities=("embed_image", "embed_text", "zero_shot", "chat"),
        digest="0" * 64,
        description="Deterministic numbers without a model",
        embed_dim=EMBED_DIM,
        contract=CONTRACT,
    ),
    ModelInfo(
        name=ADAPTER,
        kind="adapter",
        capabilities=("classify",),
        base=BASE,
        task="classification",
        labels=FINDINGS,
        digest="1" * 64,
        description="Findings on a chest film",
        limits=("Research use only; not a medical device.", "The numbers depend on the film's digest alone."),
    ),
    ModelInfo(
        name=SEGMENTER,
        kind="adapter",
        capabilities=("segment",),
        base=BASE,
        task="segmentation",
        labels=LUNGS,
        digest="2" * 64,
        description="Lungs and heart on a chest film",
        limits=("Ellipses at places that the film's digest chooses.",),
        unions={"lungs": ("left lung", "right lung")},
    ),
    ModelInfo(
        name=DETECTOR,
        kind="adapter",
        capabilities=("anomaly",),
        base=BASE,
        task="anomaly",
        labels=("anomaly",),
        digest="3" * 64,
        description="How strange a chest film is among normal ones",
        limits=("Strangeness that the film's digest chooses.",),
    ),
    ModelInfo(
        name=FUSER,
        kind="adapter",
        capabilities=("fuse",),
        base=BASE,
        task="fusion",
        labels=("intensive care",),
        digest="4" * 64,
        description="The course of a disease from films, notes and laboratory",
        limits=("The outcome is drawn from what is sent.",),
        modalities=MODALITIES,
        fields=FIELDS,
    ),
)


def fake_film(raw: RawFilm) -> Film:
    """A film from bytes, read and shown as a real server would. Raises FilmError or InvalidRequest as it would."""
    from serving.decode_process import decode

    return decode(raw, CONTRACT)


def _looks_like(film: Film) -> str:
    """What a film is when it is not of the kind the model knows; "" for a chest film."""
    if film.modality in ("CT", "MR", "US", "NM", "PT"):
        return f"an image of modality {film.modality}"
    if np.ptp(film.pixels.astype(int), axis=2).max() > 40:
        return "a photograph"
    return ""


@dataclass
class FakeGateway:
    """Implements `Gateway`. What it was asked is kept in `requests`, the questions withdrawn in `cancelled`.

    delay_s: how long each answer, and each piece of a chat, takes. error: (code, sentence) to answer everything
    with. break_after: pieces after which a chat fails with `error`. is_ready: what readiness says.
    """

    delay_s: float = 0.0
    error: tuple[str, str] | None = None
    break_after: int | None = None
    is_ready: bool = True
    requests: list[Request] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    forgotten: list[tuple[str, str]] = field(default_factory=list)
    unloaded: set[str] = field(default_factory=set)

    async def decode(self, raw: RawFilm) -> Film:
        return fake_film(raw)

    async def ask(self, request: Request) -> Outcome:
        self.requests.append(request)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if self.error is not None:
            return Outcome(request.id, error_code=self.error[0], error_message=self.error[1])
        try:
            return Outcome(request.id, {**self._value(request), **_provenance(request), "compute_ms": 1.0})
        except VesaliusError as error:
            return Outcome(request.id, error_code=error.code, error_message=error.message)

    async def mask_file(self, wanted: MaskFile) -> bytes:
        return write_mask_file(wanted)

    async def administer(self, request: Request) -> Outcome:
        self.requests.append(request)
        known = next((info for info in MODELS if info.name == request.adapter and info.kind == "adapter"), None)
        if known is None:
            return Outcome(request.id, error_code="adapter_not_found", error_message="There is no such adapter.")
        if request.operation == "unload":
            was_there = known.name not in self.unloaded
            self.unloaded.add(known.name)
            return Outcome(request.id, {"name": known.name, "was_resident": was_there})
        if request.options["digest"] not in ("", known.digest):
            return Outcome(request.id, error_code="adapter_refused", error_message="The store holds another digest.")
        self.unloaded.discard(known.name)
        value = {"name": known.name, "digest": known.digest, "task": known.task, "slot": 1, "deviation": 0.0}
        return Outcome(request.id, value)

    def _value(self, request: Request) -> dict[str, Any]:
        values = {
            "embed_image": self._embed_image,
            "embed_text": self._embed_text,
            "zero_shot": self._zero_shot,
            "classify": self._classify,
            "segment": self._segment,
            "anomaly": self._anomaly,
            "fuse": self._fuse,
            "analyze": self._analyze,
        }
        return values[request.operation](request)

    def forget(self, tenant: str, study: str = "") -> None:
        self.forgotten.append((tenant, study))

    async def stream(self, request: Request) -> AsyncGenerator[Outcome, None]:
        self.requests.append(request)
        is_whole = False
        try:
            if self.error is not None and self.break_after is None:
                yield Outcome(request.id, error_code=self.error[0], error_message=self.error[1])
                is_whole = True
                return
            words = answer_words(request)
            shown = words[: request.sampling.max_tokens]
            for count, word in enumerate(shown):
                await asyncio.sleep(self.delay_s)
                if self.error is not None and count == self.break_after:
                    yield Outcome(request.id, error_code=self.error[0], error_message=self.error[1])
                    is_whole = True
                    return
                yield Outcome(request.id, {"delta": word, **_reports(request, word)}, is_final=False)
            is_whole = True
            yield Outcome(request.id, _last_piece(request, len(shown), is_cut=len(shown) < len(words)))
        finally:
            if not is_whole:
                self.cancelled.append(request.id)

    def models(self) -> list[ModelInfo]:
        return [info for info in MODELS if info.name not in self.unloaded]

    def readiness(self) -> Readiness:
        return Readiness(ready=self.is_ready, last_forward_age_s=0.5, reason="" if self.is_ready else "No model.")

    def _embed_image(self, request: Request) -> dict[str, Any]:
        assert request.film is not None
        return {"embeddings": [_unit_vector(request.film.digest)]}

    def _embed_text(self, request: Request) -> dict[str, Any]:
        tokens = sum(len(text.split()) for text in request.texts)
        return {"embeddings": [_unit_vector(text) for text in request.texts], "prompt_tokens": tokens}

    def _zero_shot(self, request: Request) -> dict[str, Any]:
        assert request.film is not None
        labels = request.options["labels"]
        logits = [8 * draw(request.film.digest, label) - 4 for label in labels]
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
        if request.options["scoring"] == "softmax":
            total = sum(math.exp(logit) for logit in logits)
            scores = [math.exp(logit) / total for logit in logits]
        return {"scores": scores, "logits": logits, "calibration": None, **_assessment(request.film)}

    def _classify(self, request: Request) -> dict[str, Any]:
        assert request.film is not None
        probabilities = [draw(request.film.digest, label) for label in FINDINGS]
        return {
            "labels": list(FINDINGS),
            "probabilities": probabilities,
            "logits": [math.log((p + 1e-9) / (1 - p + 1e-9)) for p in probabilities],
            "thresholds": [0.5] * len(FINDINGS),
            "conformal_sets": {"coverage": 0.9, "sets": [_conformal(one) for one in probabilities]},
            **_assessment(request.film),
        }

    def _segment(self, request: Request) -> dict[str, Any]:
        assert request.film is not None
        assessment = _assessment(request.film)
        if assessment["assessed"]:
            return {**masks(request), **assessment}
        return {"labels": list(LUNGS), "presence": [], "thresholds": [], "masks": [], **assessment}

    def _anomaly(self, request: Request) -> dict[str, Any]:
        assert request.film is not None
        nothing: dict[str, Any] = {"score": None, "p_value": None, "branches": {}, "normals": 0, "heat": None}
        assessment = _assessment(request.film)
        return {**(strangeness(request.film) if assessment["assessed"] else nothing), **assessment}

    def _fuse(self, request: Request) -> dict[str, Any]:
        found = [_assessment(film) for film in request.films]
        refused = next((one for one in found if not one["assessed"]), {"assessed": True, "looks_like": ""})
        return {"films": found, **refused, "result": fused(request) if refused["assessed"] else None}

    def _analyze(self, request: Request) -> dict[str, Any]:
        assert request.film is not None
        parts = []
        for task in request.options["tasks"]:
            part = replace(request, operation=task["operation"], adapter=task["adapter"], options=task["options"])
            parts.append({**self._value(part), "adapter": task["adapter"]})
        return {"parts": parts, **_assessment(request.film)}


def _conformal(probability: float) -> str:
    return "present" if probability > 0.7 else "absent" if probability < 0.3 else "uncertain"


def _unit_vector(word: str) -> list[float]:
    numbers = [draw(word, str(index)) - 0.5 for index in range(EMBED_DIM)]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def _provenance(request: Request) -> dict[str, Any]:
    pixels = None if request.film is None else request.film.digest
    return {"provenance": {"model": BASE, "adapter": request.adapter, "pixels": pixels, "preprocessing": "fake-1"}}


def _assessment(film: Film) -> dict[str, Any]:
    looks_like = _looks_like(film)
    return {"assessed": not looks_like, "looks_like": looks_like}


def _findings(film: Film) -> list[dict[str, Any]]:
    found = [{"label": label, "probability": draw(film.digest, label), "threshold": 0.5} for label in FINDINGS]
    return sorted(found, key=lambda finding: -finding["probability"])


def answer_words(request: Request) -> Sequence[str]:
    """The answer word by word, each with the space before it."""
    film = request.film
    if film is None:
        sentence = "Please send a film; I answer questions about films."
    elif looks_like := _looks_like(film):
        sentence = f"Not assessed: this looks like {looks_like}."
    else:
        present = [f"{one['label']} ({one['probability']:.2f})" for one in _findings(film) if one["probability"] >= 0.5]
        sentence = f"The film shows {', '.join(present)}." if present else "The film shows none of the findings I know."
    for stop in request.sampling.stop:
        sentence = sentence.partition(stop)[0]
    words = sentence.split(" ")
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)]


def _reports(request: Request, word: str) -> dict[str, Any]:
    """What is told of a word where log-probabilities are asked for: its own, and made-up words in its place."""
    if not request.sampling.logprobs:
        return {}
    top = [[word, -0.25], *([f"other{place}", -2.0 - place] for place in range(1, request.sampling.top_logprobs))]
    return {"logprobs": [{"token": word, "logprob": -0.25, "top": top[: request.sampling.top_logprobs]}]}


def _last_piece(request: Request, completion_tokens: int, is_cut: bool) -> dict[str, Any]:
    prompt_tokens = sum(len(turn.text.split()) for turn in request.turns)
    evidence: dict[str, Any] | None = None
    if request.film is not None:
        evidence = {**_assessment(request.film), "findings": [], "heatmap": None, "maps": None, "reliance": None}
        if evidence["assessed"]:
            findings = _findings(request.film)
            evidence |= {"findings": findings, "heatmap": _heatmap(request.film, findings[0]["label"]), "reliance": 0.8}
            if request.options.get("maps"):
                evidence["maps"] = [_heatmap(request.film, finding["label"]) for finding in findings]
    return {
        "finish_reason": "length" if is_cut else "stop",
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        "evidence": evidence,
        "compute_ms": 2.0,
        **_provenance(request),
    }


def _heatmap(film: Film, label: str) -> dict[str, Any]:
    """A 14 x 14 bump at a place the digest chooses."""
    row, column = 13 * draw(film.digest, label, "row"), 13 * draw(film.digest, label, "column")
    grid = [[math.exp(-((r - row) ** 2 + (c - column) ** 2) / 8) for c in range(14)] for r in range(14)]
    return {"label": label, "grid": grid, "low": -0.05, "high": 0.15}


def main() -> None:
    """Serve the API over a FakeGateway on this machine."""
    import argparse

    import uvicorn

    from serving.api.app import create_app

    parser = argparse.ArgumentParser(description="The API over a model that is not there")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds for each answer and each word of a chat")
    options = parser.parse_args()
    app = create_app(FakeGateway(delay_s=options.delay))
    uvicorn.run(app, host="127.0.0.1", port=options.port, access_log=False, server_header=False)


if __name__ == "__main__":
    main()
