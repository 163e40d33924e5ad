"""BentoML with its adaptive batching; started by `bentoml serve`, and so told by the environment what to open."""

from __future__ import annotations

import os

import bentoml
from embedder import ROUTE, BrokenFilmError, Embedder, film_in_json

BATCH = int(os.environ.get("PEER_BATCH", "16"))


@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False})
class Embeddings:
    def __init__(self) -> None:
        self.embedder = Embedder(os.environ["PEER_CHECKPOINT"], os.environ.get("PEER_PRECISION", "bfloat16"))

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000, route=ROUTE)
    def embed(self, images: list[str]) -> list[list[float]]:
        """images: one data URI a request, those of a whole batch here."""
        try:
            return self.embedder.embed([self.embedder.decode(film_in_json({"images": [image]})) for image in images])
        except BrokenFilmError as error:
            raise bentoml.exceptions.BadInput(str(error)) from error
