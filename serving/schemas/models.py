"""GET /v1/models and the health routes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal, Self

from pydantic import Field

from serving.gateway import ModelInfo
from serving.schemas.parsing import Answer


class Preprocessing(Answer):
    """How a film becomes what the model sees, in open_clip's words: a square of `size` pixels, (film / 255 - mean) / std."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: int
    version: int


class ModelExtras(Answer):
    kind: Literal["base", "adapter"]
    capabilities: list[str]
    base: str = ""
    task: str = ""
    labels: list[str] = Field(default_factory=list)
    templates: list[str] = Field(default_factory=list)
    digest: str = ""
    description: str = ""
    licence: str = ""
    embed_dim: int | None = None
    preprocessing: Preprocessing | None = None


class Model(Answer):
    """OpenAI's model object with what it can do. Never a path."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vesalius"
    vesalius: ModelExtras

    @classmethod
    def from_info(cls, info: ModelInfo) -> Self:
        extras = ModelExtras(
            kind=info.kind,
            capabilities=list(info.capabilities),
            base=info.base,
            task=info.task,
            labels=list(info.labels),
            templates=list(info.templates),
            digest=info.digest,
            description=info.description,
            licence=info.licence,
            embed_dim=info.embed_dim,
            preprocessing=None if info.contract is None else Preprocessing.model_validate(asdict(info.contract)),
        )
        return cls(id=info.name, created=info.created, vesalius=extras)


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(Answer):
    status: Literal["ok"] = "ok"


class ReadinessAnswer(Answer):
    ready: bool
    last_forward_age_s: float | None = None
    queue_length: int = 0
    reason: str = ""
