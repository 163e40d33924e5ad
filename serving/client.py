"""A typed client for the API: what the page and the command line speak through.

    with Client("http://127.0.0.1:8000") as client:
        for piece in client.ask("Is there an effusion?", film=data):
            print(piece.text, end="")

Every failure is a VesaliusError of the class its code stands for. Knows nothing of torch or of the model.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from serving.chat_pieces import ChatPiece, pieces
from serving.connection import Connection
from serving.messages import ChatTurn, Sampling
from serving.schemas.adapters import LoadAnswer, UnloadAnswer
from serving.schemas.analyze import AnalyzeAnswer, AnalyzeTask
from serving.schemas.anomaly import AnomalyAnswer
from serving.schemas.classify import ClassifyAnswer
from serving.schemas.embeddings import EmbeddingsAnswer
from serving.schemas.fuse import Cell, FuseAnswer
from serving.schemas.models import Model, ModelList, ReadinessAnswer
from serving.schemas.segment import BoxMark, MaskFormat, PointMark, SegmentAnswer
from serving.schemas.zero_shot import Scoring, ZeroShotAnswer

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Picture:
    """A film's bytes, and which slice and grey window (center, width) of it to show. Plain bytes may stand for it."""

    data: bytes
    slice_index: int | None = None
    window: tuple[float, float] | None = None


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
        self._server = Connection(base_url, api_key, timeout_s, transport)

    @property
    def base_url(self) -> str:
        return self._server.base_url

    def models(self) -> list[Model]:
        """The base model first, then the adapters."""
        return self._server.get("/v1/models", ModelList).data

    def model(self, name: str) -> Model:
        return self._server.get(f"/v1/models/{quote(name)}", Model)

    def health(self) -> ReadinessAnswer:
        """Whether the engine answers; a server that is not ready is an answer, not an error."""
        return self._server.get("/readyz", ReadinessAnswer, accepted=(503,))

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
        return self._server.post("/v1/zero_shot", body, ZeroShotAnswer)

    def classify(self, films: Sequence[Picture | bytes], model: str, *, include_film: bool = False) -> ClassifyAnswer:
        """Films through the classification adapter called `model`."""
        body = {"images": [_film(film) for film in films], "model": model, "include_film": include_film}
        return self._server.post("/v1/classify", body, ClassifyAnswer)

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
        return self._server.post(
            "/v1/segment", {**body, "mask_format": mask_format, "include_film": include_film}, SegmentAnswer
        )

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
        return self._server.content("/v1/segment", body, kind)

    def anomaly(
        self, films: Sequence[Picture | bytes], model: str, *, heat: bool = True, include_film: bool = False
    ) -> AnomalyAnswer:
        """How strange films are among normal ones, by the adapter called `model`."""
        body = {"images": [_film(film) for film in films], "model": model, "heat": heat, "include_film": include_film}
        return self._server.post("/v1/anomaly", body, AnomalyAnswer)

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
        return self._server.post("/v1/fuse", body, FuseAnswer)

    def analyze(
        self, film: Picture | bytes, tasks: Sequence[AnalyzeTask | str], *, include_film: bool = False
    ) -> AnalyzeAnswer:
        """One film, many tasks in one call; a string among them is an adapter's name."""
        asked = [{"model": task} if isinstance(task, str) else task.model_dump(mode="json") for task in tasks]
        body = {"images": [_film(film)], "tasks": asked, "include_film": include_film}
        return self._server.post("/v1/analyze", body, AnalyzeAnswer)

    def load_adapter(self, name: str, digest: str | None = None) -> LoadAnswer:
        """Have the server answer by what its store holds under this name. Needs a key with the scope `admin`."""
        return self._server.post(f"/v1/adapters/{quote(name, safe='')}", {"digest": digest}, LoadAnswer)

    def unload_adapter(self, name: str) -> UnloadAnswer:
        return self._server.delete(f"/v1/adapters/{quote(name, safe='')}", UnloadAnswer)

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
        found = self._server.post("/v1/embeddings", body, EmbeddingsAnswer).data
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
        yield from pieces(self._server.events("/v1/chat/completions", body))

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


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
