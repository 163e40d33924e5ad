"""The films that are sent, as JPEG files of one size, and the bodies they are sent in.

Real films where a manifest is there, phantoms otherwise; larger ones are enlarged to the size asked for, so that a film
of 2,048 pixels costs what such a file costs to decode. Knows no server.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

Form = Literal["base64", "multipart"]
FORMS: tuple[Form, ...] = ("base64", "multipart")
QUALITY = 90
BOUNDARY = "-----------------------------vesalius-load"


@dataclass(frozen=True)
class Ask:
    """One HTTP request, ready to be written: head and body. is_broken: its film is one, and must be refused."""

    raw: bytes
    is_broken: bool = False


def films(size: int, count: int, manifest: Path | None = None) -> list[bytes]:
    """JPEG files of size x size pixels, `count` different ones."""
    pictures = _real(manifest, count) if manifest is not None and manifest.exists() else _phantoms(count)
    return [_jpeg(picture.resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures]


def broken(film: bytes) -> bytes:
    """The film with its second half missing."""
    return film[: len(film) // 2]


def ask(
    film: bytes, form: Form, host: str, *, path: str = "/v1/embeddings", deadline_ms: int = 0, is_broken: bool = False
) -> Ask:
    """A request that nothing may be kept of, so that the same film costs the same again."""
    if form == "base64":
        body = json.dumps({"images": ["data:image/jpeg;base64," + base64.b64encode(film).decode()]}).encode()
        kind = "application/json"
    else:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="film"\r\n\r\n'.encode()
        body = head + film + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={BOUNDARY}"
    headers = {"Host": host, "Content-Type": kind, "Content-Length": len(body), "Cache-Control": "no-store"}
    if deadline_ms:
        headers["X-Deadline-Ms"] = deadline_ms
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return Ask("\r\n".join(lines).encode() + b"\r\n\r\n" + body, is_broken)


def asks(files: Sequence[bytes], form: Form, host: str) -> list[Ask]:
    return [ask(file, form, host) for file in files]


def _real(manifest: Path, count: int) -> list[Image.Image]:
    """Films spread over the whole manifest."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    chosen = rows[:: max(1, len(rows) // count)][:count]
    return [Image.open(manifest.parent / row["image"]).convert("L") for row in chosen]


def _phantoms(count: int) -> list[Image.Image]:
    from foundation.phantom import make_phantom

    return [Image.fromarray(make_phantom(seed=seed, size=320).film) for seed in range(count)]


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
