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


class TableField(Answer):
    """A field that a fusion adapter reads, of the group `modality`. kind "category": one of `categories`.

    low, high: what is possible, beyond which a value is refused; seen_low, seen_high: the range of the training rows.
    """

    name: str
    modality: str
    kind: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    seen_low: float | None = None
    seen_high: float | None = None
    categories: list[str] = Field(default_factory=list)
    description: str = ""


class ModelExtras(Answer):
    """limits: what the adapter cannot do, in its card's own sentences. unions: names of several of a segmenter's classes
    together. modalities, fields: what a fusion adapter judges by.
    """

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
    limits: list[str] = Field(default_factory=list)
    unions: dict[str, list[str]] = Field(default_factory=dict)
    modalities: list[str] = Field(default_factory=list)
    fields: list[TableField] = Field(default_factory=list)


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
            limits=list(info.limits),
            unions={name: list(parts) for name, parts in info.unions.items()},
            modalities=list(info.modalities),
            fields=[TableField.model_validate({**asdict(one), "categories": list(one.categories)}) for one in info.fields],
        )
        return cls(id=info.name, created=info.created, vesalius=extras)


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(Answer):
    status: Literal["ok"] = "ok"


class FrontHealth(Health):
    """worker: which of several front processes answers, from 1."""

    worker: int


class ReadinessAnswer(Answer):
    ready: bool
    last_forward_age_s: float | None = None
    queue_length: int = 0
    reason: str = ""
