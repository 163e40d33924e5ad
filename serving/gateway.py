"""The seam between the API and everything behind it: what the routes may ask for, and no more.

The routes in `api/` speak only to a Gateway. `worker.py` implements it over the decode pool, the
scheduler and the engine process; `fake.py` implements it without any of them, for tests and for the page.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from adapters.tasks.tabular import TabularField
from foundation.preprocess import InputContract
from serving.mask_files import MaskFile
from serving.messages import Film, Operation, Outcome, RawFilm, Request

_request_ids = itertools.count(1)


def next_request_id() -> int:
    """A number no other Request of this process has."""
    return next(_request_ids)


@dataclass(frozen=True)
class ModelInfo:
    """A base model or an adapter as callers see it; never a path on this machine.

    capabilities: the operations `name` may be asked for. task: the adapter's task, "" for the base.
    labels: what a classifier scores, in order. templates: the prompts zero-shot labels are put into
    when a caller names none, each with "{}". contract: how films become what the base sees. created: seconds
    since the epoch. limits: the card's own sentences on what the adapter cannot do. unions: names that stand for several of
    a segmenter's classes. modalities, fields: what a fusion adapter judges by, and the table's fields among it.
    """

    name: str
    kind: Literal["base", "adapter"]
    capabilities: tuple[Operation, ...]
    base: str = ""  # the base model's name, for an adapter
    task: str = ""
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    digest: str = ""
    description: str = ""
    licence: str = ""
    embed_dim: int | None = None
    contract: InputContract | None = None
    created: int = 0
    limits: tuple[str, ...] = ()
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    fields: tuple[TabularField, ...] = ()


@dataclass(frozen=True)
class Readiness:
    """Whether answers can be expected. last_forward_age_s: since the engine last finished a batch, None if never.

    withdrawn: rows of requests whose callers had left, by where they were; forwarded: rows through the trunk, by whether
    anyone still waited for them (withdrawals.py). Both since the start.
    """

    ready: bool
    last_forward_age_s: float | None = None
    queue_length: int = 0
    reason: str = ""  # a sentence, when not ready
    withdrawn: Mapping[str, float] = field(default_factory=dict)
    forwarded: Mapping[str, float] = field(default_factory=dict)


class Gateway(Protocol):
    """Films in, answers out. All methods are called on the API's event loop."""

    async def decode(self, raw: RawFilm) -> Film:
        """The film as the model will see it. Raises FilmError, Overloaded or EngineUnavailable."""
        ...

    async def mask_file(self, wanted: MaskFile) -> bytes:
        """Masks written over the film they are of. Raises FilmError, InvalidRequest, Overloaded or EngineUnavailable."""
        ...

    async def administer(self, request: Request) -> Outcome:
        """Load or unload the adapter that `request` names: who asks from here on is answered by what is there then."""
        ...

    async def ask(self, request: Request) -> Outcome:
        """The one answer to a request that does not stream.

        Raises nothing for what goes wrong behind the seam: the Outcome carries code and sentence.
        Cancelling the awaiting task withdraws the request.
        """
        ...

    def stream(self, request: Request) -> AsyncIterator[Outcome]:
        """The pieces of a chat answer in order; the last has `is_final`. Closing the iterator cancels the request."""
        ...

    def forget(self, tenant: str, study: str = "") -> None:
        """Drop what is kept of one tenant's film (by its digest), or of everything the tenant sent."""
        ...

    def models(self) -> list[ModelInfo]:
        """The base model first, then the adapters, each with its capabilities."""
        ...

    def readiness(self) -> Readiness: ...
