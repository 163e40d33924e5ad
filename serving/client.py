"""A typed client for the API: what the page and the command line speak through.

    with Client("http://127.0.0.1:8000") as client:
        for piece in client.ask("Is there an effusion?", film=data):
            print(piece.text, end="")

Every failure is a VesaliusError of the class its code stands for. Knows nothing of torch or of the model.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from foundation.errors import DeadlineExceeded, EngineUnavailable, ServiceError, VesaliusError
from serving.http_errors import STATUS, error_from
from serving.messages import ChatTurn, Sampling
from serving.schemas.adapters import LoadAnswer, UnloadAnswer
from serving.schemas.analyze import AnalyzeAnswer, AnalyzeTask
from serving.schemas.anomaly import AnomalyAnswer
from serving.schemas.chat import ChatChunk, ChatExtras, Usage
from serving.schemas.classify import ClassifyAnswer
from serving.schemas.embeddings import EmbeddingsAnswer
from serving.schemas.fuse import Cell, FuseAnswer
from serving.schemas.models import Model, ModelList, ReadinessAnswer
from serving.schemas.parsing import Answer
from serving.schemas.segment import BoxMark, MaskFormat, PointMark, SegmentAnswer
from serving.schemas.zero_shot import Scoring, ZeroShotAnswer

DEFAULT_URL = "http://127.0.0.1:8000"
AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass(frozen=True)
class Picture:
    """A film's bytes, and which slice and grey window (center, width) of it to show. Plain bytes may stand for it."""

    data: bytes
    slice_index: int | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class ChatPiece:
    """A piece of a streamed answer. The last one has a finish reason, the usage and what the answer rests on."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    extras: ChatExtras | None = None


class Client:
    """One connection pool to one server. Not for use from several threads at once while closing."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 150.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.base_url = base_url.rstrip("/")
        # trust_env=False: a film must not travel through a proxy that happens to be set in the environment.
        self._http = httpx.Client(
            base_url=self.base_url, headers=headers, timeout=timeout_s, transport=transport, trust_env=False
        )

    def models(self) -> list[Model]:
        """The base model first, then the adapters."""
        return self._get("/v1/models", ModelList).data

    def model(self, name: str) -> Model:
        return self._get(f"/v1/models/{quote(name)}", Model)

    def health(self) -> ReadinessAnswer:
        """Whether the engine answers; a server that is not ready is an answer, not an error."""
        return self._get("/readyz", ReadinessAnswer, accepted=(503,))

    def zero_shot(
        self,
        films: Sequence[Picture | bytes],
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        negatives: Sequence[str] | None = None,
        scoring: Scoring | None = None,
        model: str | None = None,
        include_film: bool = False,
    ) -> ZeroShotAnswer:
        """Films against labels of your own. Among several films, each carries its own error."""
        body = {
            "images": [_film(film) for film in films],
            "labels": list(labels),
            "templates": None if templates is None else list(templates),
            "negatives": None if negatives is None else list(negatives),
            "scoring": scoring,
            "model": model,
            "include_film": include_film,
        }
        return self._post("/v1/zero_shot", body, ZeroShotAnswer)

    def classify(self, films: Sequence[Picture | bytes], model: str, *, include_film: bool = False) -> ClassifyAnswer:
        """Films through the classification adapter called `model`."""
        body = {"images": [_film(film) for film in films], "model": model, "include_film": include_film}
        return self._post("/v1/classify", body, ClassifyAnswer)

    def segment(
        self,
        films: Sequence[Picture | bytes],
        model: str,
        *,
        labels: Sequence[str] | None = None,
        points: Sequence[PointMark] = (),
        boxes: Sequence[BoxMark] = (),
        mask_format: MaskFormat = "rle",
        include_film: bool = False,
    ) -> SegmentAnswer:
        """Masks of the adapter's classes in each film's own pixels; points and boxes hold for every film."""
        body = _segment_body(films, model, labels, points, boxes)
        return self._post("/v1/segment", {**body, "mask_format": mask_format, "include_film": include_film}, SegmentAnswer)

    def mask_file(
        self,
        film: Picture | bytes,
        model: str,
        kind: Literal["application/dicom", "application/x-nifti"] = "application/x-nifti",
        *,
        labels: Sequence[str] | None = None,
        points: Sequence[PointMark] = (),
        boxes: Sequence[BoxMark] = (),
    ) -> bytes:
        """One film's masks as a DICOM segmentation or a NIfTI volume."""
        body = _segment_body([film], model, labels, points, boxes)
        with self._translated():
            response = self._http.post("/v1/segment", json=body, headers={"Accept": kind})
        if response.is_error:
            raise _error(response)
        return response.content

    def anomaly(
        self, films: Sequence[Picture | bytes], model: str, *, heat: bool = True, include_film: bool = False
    ) -> AnomalyAnswer:
        """How strange films are among normal ones, by the adapter called `model`."""
        body = {"images": [_film(film) for film in films], "model": model, "heat": heat, "include_film": include_film}
        return self._post("/v1/anomaly", body, AnomalyAnswer)

    def fuse(
        self,
        model: str,
        films: Sequence[Picture | bytes] = (),
        *,
        text: str | None = None,
        tabular: Mapping[str, Cell] | None = None,
        contributions: bool = False,
        include_film: bool = False,
    ) -> FuseAnswer:
        """One patient's outcome from any of films, a note and fields of a table."""
        body = {
            "images": [_film(film) for film in films],
            "model": model,
            "text": text,
            "tabular": dict(tabular or {}),
            "contributions": contributions,
            "include_film": include_film,
        }
        return self._post("/v1/fuse", body, FuseAnswer)

    def analyze(
        self, film: Picture | bytes, tasks: Sequence[AnalyzeTask | str], *, include_film: bool = False
    ) -> AnalyzeAnswer:
        """One film, many tasks in one call; a string among them is an adapter's name."""
        asked = [{"model": task} if isinstance(task, str) else task.model_dump(mode="json") for task in tasks]
        body = {"images": [_film(film)], "tasks": asked, "include_film": include_film}
        return self._post("/v1/analyze", body, AnalyzeAnswer)

    def load_adapter(self, name: str, digest: str | None = None) -> LoadAnswer:
        """Have the server answer by what its store holds under this name. Needs a key with the scope `admin`."""
        return self._post(f"/v1/adapters/{quote(name, safe='')}", {"digest": digest}, LoadAnswer)

    def unload_adapter(self, name: str) -> UnloadAnswer:
        with self._translated():
            response = self._http.delete(f"/v1/adapters/{quote(name, safe='')}")
        return _read(response, UnloadAnswer)

    def embed(
        self, texts: Sequence[str] = (), films: Sequence[Picture | bytes] = (), *, model: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Unit vectors (N, E): those of the texts, then those of the films."""
        body = {
            "input": [{"type": "text", "text": text} for text in texts],
            "images": [_film(film) for film in films],
            "model": model,
            "encoding_format": "base64",
        }
        found = self._post("/v1/embeddings", body, EmbeddingsAnswer).data
        return np.stack([np.frombuffer(base64.b64decode(str(one.embedding)), dtype="<f4") for one in found])

    def ask(
        self,
        question: str,
        *,
        film: Picture | bytes | None = None,
        history: Sequence[ChatTurn] = (),
        model: str | None = None,
        sampling: Sampling | None = None,
        include_film: bool = False,
        maps: bool = False,
    ) -> Iterator[ChatPiece]:
        """The answer piece by piece. Closing the iterator withdraws the question.

        `film` is what the question is about; a later question of the same conversation sends it again.
        maps: whether the evidence shall hold a heat map for every finding.
        """
        turns = [*history, ChatTurn("user", question)]
        body: dict[str, Any] = {
            "messages": [{"role": turn.role, "content": turn.text} for turn in turns],
            "images": [] if film is None else [_film(film)],
            "model": model,
            "include_film": include_film,
            "stream": True,
            "stream_options": {"include_usage": True},
            "vesalius": {"maps": maps},
            **_sampling(sampling or Sampling()),
        }
        yield from _pieces(self._events("/v1/chat/completions", body))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _get(self, path: str, answer: type[AnswerT], accepted: Sequence[int] = ()) -> AnswerT:
        with self._translated():
            response = self._http.get(path)
        return _read(response, answer, accepted)

    def _post(self, path: str, body: Mapping[str, Any], answer: type[AnswerT]) -> AnswerT:
        with self._translated():
            response = self._http.post(path, json=body)
        return _read(response, answer)

    def _events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The data of each server-sent event up to [DONE]."""
        with self._translated(), self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
                raise _error(response)
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield _json_object(line.removeprefix("data: "))
        raise EngineUnavailable("The answer broke off before its end. Ask again.")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise DeadlineExceeded(f"The server at {self.base_url} did not answer in time. Try again.") from None
        except httpx.TransportError:
            raise EngineUnavailable(f"No server answers at {self.base_url}. Start one with: vesalius serve") from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _not_understood()
    return content


def _film(film: Picture | bytes) -> dict[str, Any]:
    picture = Picture(film) if isinstance(film, bytes) else film
    data = base64.b64encode(picture.data).decode("ascii")
    return {"data": data, "slice_index": picture.slice_index, "window": picture.window}


def _segment_body(
    films: Sequence[Picture | bytes],
    model: str,
    labels: Sequence[str] | None,
    points: Sequence[PointMark],
    boxes: Sequence[BoxMark],
) -> dict[str, Any]:
    return {
        "images": [_film(film) for film in films],
        "model": model,
        "labels": None if labels is None else list(labels),
        "points": [point.model_dump() for point in points],
        "boxes": [box.model_dump() for box in boxes],
    }


def _sampling(sampling: Sampling) -> dict[str, Any]:
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
    }


def _pieces(events: Iterator[dict[str, Any]]) -> Iterator[ChatPiece]:
    """Text as it comes; finish reason, usage and extras together in the last piece."""
    finish_reason, extras, usage = None, None, None
    for content in events:
        if "error" in content:
            raise _error_of(content["error"])
        chunk = _checked(ChatChunk, content)
        usage = chunk.usage or usage
        extras = chunk.vesalius or extras
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            if choice.delta.content:
                yield ChatPiece(choice.delta.content)
    yield ChatPiece(finish_reason=finish_reason, usage=usage, extras=extras)


def _read(response: httpx.Response, answer: type[AnswerT], accepted: Sequence[int] = ()) -> AnswerT:
    if response.is_error and response.status_code not in accepted:
        raise _error(response)
    try:
        return answer.model_validate_json(response.content)
    except ValidationError:
        raise (_error(response) if response.is_error else _not_understood()) from None


def _checked(answer: type[AnswerT], content: object) -> AnswerT:
    try:
        return answer.model_validate(content)
    except ValidationError:
        raise _not_understood() from None


def _not_understood() -> ServiceError:
    return ServiceError("The server gave an answer this client does not understand. Update the older of the two.")


def _error(response: httpx.Response) -> VesaliusError:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"The server answered with status {response.status_code} and no explanation.")
    return _error_of(error, response.headers.get("Retry-After", ""))


def _error_of(error: object, retry_after: str = "") -> VesaliusError:
    if not isinstance(error, Mapping):
        return ServiceError("The server failed and gave no explanation.")
    code, message = str(error.get("code")), str(error.get("message", "The server gave no explanation."))
    if code not in STATUS:
        return ServiceError(message)
    retry_after_s = float(retry_after) if retry_after.isdecimal() else 1.0
    return error_from(code, message, param=error.get("param"), retry_after_s=retry_after_s)
