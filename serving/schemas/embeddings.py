"""POST /v1/embeddings in OpenAI's shape, for texts and for films."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from serving.schemas.common import FilmReport, ImageBody, Provenance, Timings
from serving.schemas.content import ContentPart
from serving.schemas.parsing import Answer, field_error


def _as_parts(value: Any) -> Any:
    """A string, a list of strings, or content parts -> content parts. A data URI is a film, wherever it stands."""
    if isinstance(value, (str, dict)):
        value = [value]
    if not isinstance(value, list):
        return value
    if any(isinstance(entry, (int, list)) for entry in value):
        raise field_error("", "holds token numbers; send text.")
    return [_as_part(entry) for entry in value]


def _as_part(entry: Any) -> Any:
    if not isinstance(entry, str):
        return entry
    if entry.startswith("data:"):
        return {"type": "image_url", "image_url": {"url": entry}}
    return {"type": "text", "text": entry}


class EmbeddingsBody(ImageBody):
    """Embeddings come in the order of `input`, then those of `images`."""

    model: str | None = None
    input: Annotated[list[ContentPart], BeforeValidator(_as_parts)] = Field(default_factory=list)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None

    @field_validator("encoding_format", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return "float" if value is None else value


class Embedding(Answer):
    """A unit vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingExtras(Answer):
    """What stands behind each embedding, in the same order."""

    films: list[FilmReport | None]
    provenance: list[Provenance]
    timings: Timings


class EmbeddingsAnswer(Answer):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    vesalius: EmbeddingExtras
