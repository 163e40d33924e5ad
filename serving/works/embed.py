"""Embeddings of films and texts, in the one space they share. No adapter, and no gate: a vector claims nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.messages import Film
from serving.works.work import Seen, Value, View

if TYPE_CHECKING:
    from foundation.backbone import Backbone


@dataclass(frozen=True, eq=False)
class EmbedImage:
    film: Film
    texts: tuple[str, ...] = ()
    resident: None = None

    @property
    def views(self) -> tuple[View, ...]:
        return (View(self.film.pixels),)

    def finish(self, seen: Seen) -> Value:
        return {"embeddings": seen.features[0].embedding.float().tolist()}


@dataclass(frozen=True, eq=False)
class EmbedText:
    texts: tuple[str, ...]
    backbone: Backbone
    views: tuple[View, ...] = ()
    resident: None = None

    def finish(self, seen: Seen) -> Value:
        return {"embeddings": seen.texts.tolist(), "prompt_tokens": self._count_tokens()}

    def _count_tokens(self) -> int:
        inner: Any = getattr(self.backbone.tokenizer, "tokenizer", None)
        padding = getattr(inner, "pad_token_id", None) or 0
        return int((self.backbone.tokenizer(list(self.texts)) != padding).sum())
