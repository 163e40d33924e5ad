"""What every peer serves: a JPEG in, its image embedding out, through our own tower and our own preprocessing in bfloat16.

Only the server around it differs from peer to peer, so that a peer's figures over the bare model speak of the server
alone. Runs in each peer's own environment: imports no more of this repository than opening a checkpoint needs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from foundation.checkpoint import open_checkpoint
from foundation.image import MedicalImage
from foundation.preprocess import preprocess

ROUTE = "/v1/embeddings"
Pixels = npt.NDArray[np.float32]


class BrokenFilmError(ValueError):
    """The bytes are no whole JPEG file."""


class Embedder:
    """The open model. `decode` may run in any thread."""

    def __init__(self, checkpoint: str, precision: str = "bfloat16") -> None:
        self._backbone = open_checkpoint(checkpoint).backbone
        self._backbone.image_tower.to(getattr(torch, precision))

    def decode(self, film: bytes) -> Pixels:
        """(3, S, S) normalised. Raises BrokenFilmError."""
        try:
            with Image.open(io.BytesIO(film), formats=["JPEG"]) as picture:
                pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
        except OSError as error:
            raise BrokenFilmError("not a whole JPEG file") from error
        image = MedicalImage(pixels=pixels[None], value_range=(0.0, 255.0), source_format="jpeg")
        return preprocess(image, self._backbone.contract)

    def embed(self, pixels: Sequence[Pixels]) -> list[list[float]]:
        """One unit vector a film."""
        with torch.inference_mode():
            found = self._backbone.encode_image(torch.from_numpy(np.stack(pixels))).embedding.float()
            vectors: list[list[float]] = torch.nn.functional.normalize(found, dim=-1).tolist()
        return vectors


def film_in_json(body: Mapping[str, Any]) -> bytes:
    """The film of {"images": ["data:image/jpeg;base64,..."]}. Raises BrokenFilmError."""
    try:
        return base64.b64decode(body["images"][0].partition(",")[2], validate=True)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise BrokenFilmError("no film in 'images'") from error


async def film_in_request(request: Any) -> bytes:
    """The film of a starlette request, JSON or multipart (field "file")."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        form = await request.form()
        film: bytes = await form["file"].read()
        return film
    return film_in_json(await request.json())


def answer(vector: Sequence[float]) -> dict[str, Any]:
    return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": list(vector)}]}
