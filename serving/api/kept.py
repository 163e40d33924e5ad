"""DELETE /v1/cache: drop what the server keeps of the caller's films and texts. Nothing of another caller's is touched.

What is kept is kept in memory alone: features of recent films, embeddings of recent texts. A request sent with
`Cache-Control: no-store` leaves nothing to delete.
"""

from __future__ import annotations

import re

from fastapi import Request
from starlette.responses import Response

from foundation.errors import InvalidRequest
from serving.api.routes import routes
from serving.api.service import service_of
from serving.call import current_call

router = routes("cache")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@router.delete("/v1/cache", status_code=204, response_class=Response)
async def forget_everything(request: Request) -> Response:
    """Drop everything kept for the caller's key."""
    return _forget(request, "")


@router.delete("/v1/cache/{digest}", status_code=204, response_class=Response)
async def forget_film(request: Request, digest: str) -> Response:
    """Drop what is kept of one film, by the `film.digest` of its answer. Also 204 where nothing was kept."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest("The digest must be the 64 hexadecimal digits of an answer's film.digest.", param="digest")
    current_call().note_study(digest)
    return _forget(request, digest)


def _forget(request: Request, study: str) -> Response:
    call = current_call()
    call.note("forget", "")
    service_of(request).gateway.forget(call.caller, study)
    return Response(status_code=204)
