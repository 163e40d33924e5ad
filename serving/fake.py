"""A gateway without a model: deterministic numbers from the film's digest, for tests and for building a page.

    python -m serving.fake --port 8000

It reads PNG and JPEG films, and takes DICOM and NIfTI by their first bytes only, drawing a pattern instead.
A colour picture is "not assessed", as a photograph would be by a real model.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foundation.errors import FilmTooLarge, FilmUnreadable, FilmUnsupported
from serving.gateway import ModelInfo, Readiness
from serving.messages import Film, Outcome, RawFilm, Request

SIZE = 224
EMBED_DIM = 16
BASE = "vesalius-fake"
ADAPTER = "cxr-findings"
FINDINGS = ("atelectasis", "cardiomegaly", "consolidation", "effusion", "pneumothorax")
MODELS = (
    ModelInfo(
        name=BASE,
        kind="base",
        capabilities=("embed_image", "embed_text", "zero_shot", "chat"),
        digest="0" * 64,
        description="Deterministic numbers without a model",
        embed_dim=EMBED_DIM,
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
    ),
)


def draw(*parts: str) -> float:
    """A number in 0..1 that depends on the words alone."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def fake_film(raw: RawFilm) -> Film:
    """A film from bytes, as far as PNG and JPEG go. Raises the FilmErrors a reader would."""
    source_format, slices = _recognise(raw.data)
    slice_index = slices // 2 if raw.slice_index is None else raw.slice_index
    if slice_index >= slices:
        raise FilmUnsupported(f"The film has {slices} slices; slice_index must be below that.")
    pixels = _pixels(raw.data, slice_index) if source_format in ("png", "jpeg") else _pattern(raw.data, slice_index)
    return Film(
        pixels=pixels,
        digest=hashlib.sha256(raw.data).hexdigest(),
        modality={"dicom": "DX", "nifti": "CT"}.get(source_format, ""),
        source_format=source_format,
        slices=slices,
        slice_index=slice_index,
        decode_ms=1.0,
    )


def _recognise(data: bytes) -> tuple[str, int]:
    if data.startswith(b"\x89PNG"):
        return "png", 1
    if data.startswith(b"\xff\xd8"):
        return "jpeg", 1
    if data[128:132] == b"DICM":
        return "dicom", 1
    if data.startswith((b"\x1f\x8b", b"\x5c\x01\x00\x00")):
        return "nifti", 20
    raise FilmUnsupported("This is not a film this server reads. Send DICOM, NIfTI, PNG, JPEG or TIFF.")


def _pixels(data: bytes, slice_index: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > 50_000_000:
                raise FilmTooLarge("The film has more than 50 million pixels. Send a smaller one.")
            return np.asarray(picture.convert("RGB").resize((SIZE, SIZE)), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError):
        raise FilmUnreadable("The film is broken or cut short. Send it again whole.") from None


def _pattern(data: bytes, slice_index: int) -> npt.NDArray[np.uint8]:
    phase = 2 * math.pi * draw(hashlib.sha256(data).hexdigest(), str(slice_index))
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    grey = (127.5 + 127.5 * np.sin(9 * rows + phase) * np.cos(7 * columns + slice_index / 4)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _is_color(film: Film) -> bool:
    return bool(np.ptp(film.pixels.astype(int), axis=2).max() > 40)


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
        values = {
            "embed_image": self._embed_image,
            "embed_text": self._embed_text,
            "zero_shot": self._zero_shot,
            "classify": self._classify,
        }
        return Outcome(request.id, {**values[request.operation](request), **_provenance(request), "compute_ms": 1.0})

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
                yield Outcome(request.id, {"delta": word}, is_final=False)
            is_whole = True
            yield Outcome(request.id, _last_piece(request, len(shown), is_cut=len(shown) < len(words)))
        finally:
            if not is_whole:
                self.cancelled.append(request.id)

    def models(self) -> list[ModelInfo]:
        return list(MODELS)

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
            **_assessment(request.film),
        }


def _unit_vector(word: str) -> list[float]:
    numbers = [draw(word, str(index)) - 0.5 for index in range(EMBED_DIM)]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def _provenance(request: Request) -> dict[str, Any]:
    pixels = None if request.film is None else request.film.digest
    return {"provenance": {"model": BASE, "adapter": request.adapter, "pixels": pixels, "preprocessing": "fake-1"}}


def _assessment(film: Film) -> dict[str, Any]:
    return (
        {"assessed": False, "looks_like": "a photograph"} if _is_color(film) else {"assessed": True, "looks_like": ""}
    )


def _findings(film: Film) -> list[dict[str, Any]]:
    found = [{"label": label, "probability": draw(film.digest, label), "threshold": 0.5} for label in FINDINGS]
    return sorted(found, key=lambda finding: -finding["probability"])


def answer_words(request: Request) -> Sequence[str]:
    """The answer word by word, each with the space before it."""
    film = request.film
    if film is None:
        sentence = "Please send a film; I answer questions about films."
    elif _is_color(film):
        sentence = "Not assessed: this looks like a photograph."
    else:
        present = [f"{one['label']} ({one['probability']:.2f})" for one in _findings(film) if one["probability"] >= 0.5]
        sentence = f"The film shows {', '.join(present)}." if present else "The film shows none of the findings I know."
    for stop in request.sampling.stop:
        sentence = sentence.partition(stop)[0]
    words = sentence.split(" ")
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)]


def _last_piece(request: Request, completion_tokens: int, is_cut: bool) -> dict[str, Any]:
    prompt_tokens = sum(len(turn.text.split()) for turn in request.turns)
    evidence: dict[str, Any] | None = None
    if request.film is not None:
        evidence = {**_assessment(request.film), "findings": [], "heatmap": None, "reliance": None}
        if evidence["assessed"]:
            findings = _findings(request.film)
            evidence |= {"findings": findings, "heatmap": _heatmap(request.film, findings[0]["label"]), "reliance": 0.8}
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
    return {"label": label, "grid": grid}


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
