"""From the bytes of a request to a checked body: JSON or multipart, counted while they arrive.

The framework's own body limit is not used: past a declared Content-Length it replaces our error object by
plain text. Files of a multipart body stay in memory, since a film should not be left in a temporary folder,
and their names, which may be a patient's, are never looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from foundation.errors import InvalidRequest
from serving.call import current_call
from serving.http_errors import BodyTimeout, BodyTooLarge, MediaTypeUnsupported
from serving.limits import MIB, ServerLimits
from serving.schemas.parsing import BodyT, parse_fields, parse_json

FILE_PART = "file"
_LINGER_S = 2.0  # how long a body that is too large is still read, so that its sender gets to see the answer


class _InMemoryParser(MultiPartParser):
    spool_max_size = 1 << 62


def declared_bytes(request: Request, limits: ServerLimits) -> int:
    """What to reserve for a body: its declared length, or the most it may be when it comes in chunks."""
    declared = request.headers.get("content-length", "")
    return min(int(declared), limits.max_body_bytes) if declared.isdecimal() else limits.max_body_bytes


async def read_body(request: Request, model: type[BodyT], limits: ServerLimits) -> BodyT:
    """The request's body as `model`.

    Raises BodyTooLarge, BodyTimeout, MediaTypeUnsupported, or InvalidRequest naming the field at fault.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(current_call().within(limits.body_timeout_s)):
            if kind == "multipart/form-data":
                return parse_fields(model, await _fields(await _read_form(request, limits), model))
            if kind == "application/json" or kind.endswith("+json"):
                body = b"".join([chunk async for chunk in _counted(request, limits)])
                return parse_json(model, body)
    except TimeoutError:
        current_call().within(limits.body_timeout_s)  # raises where it was the caller's own deadline that passed
        raise BodyTimeout(f"The body did not arrive within {limits.body_timeout_s:g} seconds.") from None
    except ClientDisconnect:
        raise InvalidRequest("The body ended early.") from None
    raise MediaTypeUnsupported("Send the body as application/json or multipart/form-data.")


async def _counted(request: Request, limits: ServerLimits) -> AsyncGenerator[bytes, None]:
    """The body's chunks, refused past the limit; a declared length is believed before a byte is read."""
    declared = request.headers.get("content-length", "")
    received = 0
    stream = request.stream()
    if not declared.isdecimal() or int(declared) <= limits.max_body_bytes:
        async for chunk in stream:
            received += len(chunk)
            if received > limits.max_body_bytes:
                break
            yield chunk
        else:
            return
    await _linger(stream)
    raise BodyTooLarge(
        f"The body is larger than {limits.max_body_bytes / MIB:.4g} MiB. Send fewer films at once, or a smaller volume."
    )


async def _linger(stream: AsyncGenerator[bytes, None]) -> None:
    """Read on and throw away for a moment: closing at once would reset the connection before the answer is seen."""
    until = time.monotonic() + _LINGER_S
    try:
        async with asyncio.timeout(_LINGER_S):
            async for _ in stream:
                if time.monotonic() > until:
                    return
    except (TimeoutError, ClientDisconnect):
        return


async def _read_form(request: Request, limits: ServerLimits) -> FormData:
    parser = _InMemoryParser(
        request.headers,
        _counted(request, limits),
        max_files=limits.max_images,
        max_fields=limits.max_labels + limits.max_texts,
        max_part_size=limits.max_body_bytes,
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError):
        raise InvalidRequest(
            f"The multipart body could not be read: it needs a boundary, a name for each part, and at most "
            f"{limits.max_images} files."
        ) from None


async def _fields(form: FormData, model: type[BodyT]) -> dict[str, Any]:
    """Fields by name. Files become the model's film field; a repeated field becomes a list."""
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(form.keys()):
        values = form.getlist(name)
        if name == FILE_PART:
            continue
        if any(isinstance(value, UploadFile) for value in values):
            raise InvalidRequest(f"Send files in parts named '{FILE_PART}', not '{name}'.", param=name)
        texts = [_field_value(str(value)) for value in values]
        fields[name] = texts[0] if len(texts) == 1 else texts
    films = [{"data": await _file_bytes(value)} for value in form.getlist(FILE_PART)]
    if films and model.film_field in fields:
        raise InvalidRequest(f"Send films as '{FILE_PART}' parts or in '{model.film_field}', not both.", param=model.film_field)
    if films:
        fields[model.film_field] = films[0] if len(films) == 1 else films
    return fields


async def _file_bytes(value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise InvalidRequest(f"The part '{FILE_PART}' must be sent as a file, with a filename.", param=FILE_PART)
    return await value.read()


def _field_value(text: str) -> Any:
    """Lists and objects may be sent as JSON in a form field; anything else is its own text."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return from_json(text)
        except ValueError:
            return text
    return text
