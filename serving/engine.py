"""Engine: owns the model and the device, and answers batches. Synchronous; one thread.

    Batch -> plan each request (works.py) -> one trunk forward over all distinct views, each row through its own
    adapter's slot -> missing prompts through the text tower -> finish each -> Outcomes

A batch that fails is split in halves until only the poison item fails. Chats leave `run` without an Outcome and are
written by `generate`, a few tokens a turn. Knows no socket and no queue: `engine_process.py` joins it to both.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adapters.store import AdapterStore
from foundation.backbone import Backbone, ImageFeatures
from foundation.checkpoint import Checkpoint, open_checkpoint
from foundation.errors import InvalidRequest, VesaliusError
from foundation.gate import Gate
from foundation.preprocess import normalise
from serving.cache import LruCache
from serving.chat_work import ChatWork, Opening, Picture
from serving.config import EngineConfig
from serving.feature_cache import FeatureCache, FeatureKey
from serving.generation import ChatLane
from serving.messages import Batch, Film, Outcome, Request
from serving.precision import settle
from serving.residency import Residency
from serving.transport import failure
from serving.works import Seen, Tools, View, Work, plan

if TYPE_CHECKING:
    from foundation.decoder import Decoder

log = logging.getLogger("serving.engine")
FAULT = "The server failed on this item. Nothing is wrong with the others; if it happens again, report it."
NO_DECODER = "This model has no decoder, so it cannot chat. Serve a checkpoint with one, such as the bundled model."


@dataclass(frozen=True)
class EngineFacts:
    """What the front process needs to know of an opened model. contract: InputContract as plain data."""

    name: str
    fingerprint: str
    embed_dim: int
    licence: str
    precision: str
    can_chat: bool
    created: int
    contract: Mapping[str, Any]
    can_embed: bool = True  # False where there is nothing but chat


class Engine:
    """Use from one thread only, the one that built it."""

    def __init__(self, checkpoint: Checkpoint, store: AdapterStore, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.checkpoint = checkpoint
        self.backbone: Backbone = checkpoint.backbone
        self.precision = settle(self.backbone, self.config.precision)
        decoder = _open_decoder(checkpoint)
        residency = Residency(self.backbone, store, capacity=self.config.adapters + 1)
        self._tools = Tools(self.backbone, residency, Gate.load(checkpoint.folder), self.config.findings_adapter)
        self._chats = ChatLane(
            decoder,
            self.config.tokens_per_turn,
            chats=self.config.chats,
            prefill_tokens=self.config.prefill_tokens,
            cached_bytes=self.config.cached_prefix_bytes,
        )
        self._can_chat = decoder is not None
        self._texts: LruCache[tuple[str, str], Tensor] = LruCache(self.config.cached_texts)  # by tenant and text
        self._films = FeatureCache(self.config.cached_film_bytes)
        self.trunk_rows = 0  # films through the trunk so far

    @classmethod
    def open(cls, config: EngineConfig) -> Engine:
        """Open the checkpoint and the adapter store that `config` names. Raises CheckpointError."""
        if config.threads:
            torch.set_num_threads(config.threads)
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(open_checkpoint(config.checkpoint, device=device), AdapterStore.default(config.adapters_dir), config)

    @property
    def facts(self) -> EngineFacts:
        passport = self.checkpoint.passport
        return EngineFacts(
            name=self.config.base_name,
            fingerprint=self.backbone.fingerprint,
            embed_dim=self.backbone.embed_dim,
            licence=passport.licence,
            precision=self.precision,
            can_chat=self._can_chat,
            created=int(self.checkpoint.folder.stat().st_mtime),
            contract=asdict(self.backbone.contract),
        )

    @property
    def generating(self) -> int:
        """How many chats are being written."""
        return len(self._chats)

    def run(self, batch: Batch) -> list[Outcome]:
        """One Outcome for every request that is not a chat, and for every chat that could not begin."""
        return self._run(batch.requests)

    def generate(self) -> list[Outcome]:
        """Let every chat go on by a few tokens."""
        return self._chats.turn(time.monotonic(), fault)

    def cancel(self, request_id: int) -> bool:
        """Stop writing a chat; False if it is not being written."""
        return self._chats.cancel(request_id)

    def forget(self, tenant: str, study: str) -> None:
        """Drop what is kept of one tenant's film, or of everything the tenant sent where `study` is empty."""
        self._films.forget(tenant, study)
        self._chats.forget(tenant, study)
        while not study and self._texts.evict(lambda key: key[0] == tenant) is not None:
            pass

    def answer(self, request: Request) -> Iterator[Outcome]:
        """One request from beginning to end, without a queue."""
        yield from self.run(Batch((request,)))
        while self.generating:
            yield from self.generate()

    def check(self) -> None:
        """The canary: a blank film through the trunk. Raises what goes wrong."""
        size = self.backbone.contract.size
        film = Film(np.zeros((size, size, 3), np.uint8), digest="0" * 64)
        self._answer_all((Request(id=0, operation="embed_image", film=film, stores=False),))

    def _run(self, requests: Sequence[Request]) -> list[Outcome]:
        if not requests:
            return []
        try:
            return self._answer_all(requests)
        except Exception as error:  # whatever it was, its neighbours must not suffer, and it must be told
            if len(requests) == 1:
                return [fault(requests[0].id, error, requests[0].trace)]
        half = len(requests) // 2
        return self._run(requests[:half]) + self._run(requests[half:])

    @torch.inference_mode()
    def _answer_all(self, requests: Sequence[Request]) -> list[Outcome]:
        """Plan, one forward, finish. A request of which we know what is wrong fails alone; anything else raises."""
        start = time.perf_counter()
        outcomes: list[Outcome] = []
        pinned: set[str] = set()
        planned: list[tuple[Request, Work | ChatWork]] = []
        for request in requests:
            try:
                planned.append((request, self._plan(request, pinned)))
            except VesaliusError as error:
                outcomes.append(failure(request.id, error))
        features = self._look([(request, view) for request, work in planned for view in work.views])
        texts = self._read([(request, text) for request, work in planned for text in work.texts])
        openings: list[tuple[Request, ChatWork, Opening]] = []
        for request, work in planned:
            seen = Seen(
                tuple(features[_view_key(view)] for view in work.views),
                torch.stack([texts[text] for text in work.texts]) if work.texts else torch.zeros(0, 0),
            )
            if isinstance(work, ChatWork):
                openings.append((request, work, work.open(seen)))
            else:
                value = work.finish(seen)
                outcomes.append(Outcome(request.id, self._finished(request, work, value, _ms_since(start))))
        for request, work, opening in openings:  # last: nothing after this may fail and run the batch again
            self._begin(request, work, opening, _ms_since(start))
        return outcomes

    def _plan(self, request: Request, pinned: set[str]) -> Work | ChatWork:
        if request.operation != "chat":
            return plan(request, self._tools, pinned)
        if not self._can_chat:
            raise InvalidRequest(NO_DECODER, param="model")
        return ChatWork.of(request, self._tools, pinned)

    def _begin(self, request: Request, work: ChatWork, opening: Opening, encode_ms: float) -> None:
        def finish(last: Mapping[str, Any]) -> Mapping[str, Any]:
            return self._finished(request, work, last, encode_ms + last["compute_ms"])

        if opening.picture is not None:
            opening = replace(opening, without=lambda stores: self._without(replace(request, stores=stores)))
        self._chats.start(request, opening, finish)

    def _without(self, request: Request) -> tuple[Picture, ...]:
        """What the decoder is given of the blank and the shuffled film, when the answer about the real one is written."""
        work = ChatWork.of(request, self._tools, set())  # NOTE: the adapter may have left the bank meanwhile
        features = self._look([(request, view) for view in work.without_views])
        texts = self._read([(request, text) for text in work.texts])
        seen = tuple(features[_view_key(view)] for view in work.without_views)
        return work.pictures(Seen(seen, torch.stack([texts[text] for text in work.texts])))

    def _look(self, wanted: Sequence[tuple[Request, View]]) -> dict[Any, ImageFeatures]:
        """Each distinct view's features (B = 1): what its tenant has asked about before, and the rest from one forward."""
        found: dict[Any, ImageFeatures] = {}
        missing: dict[Any, View] = {}
        for request, view in wanted:
            held = self._films.get(_feature_key(request, view)) if self._films.capacity_bytes else None
            if held is None:
                missing[_view_key(view)] = view
            else:
                found[_view_key(view)] = held
        found |= self._forward(missing)  # what anyone misses is computed, whoever else has it
        for request, view in wanted:
            if request.stores and self._films.capacity_bytes:
                self._films.put(_feature_key(request, view), found[_view_key(view)])
        return found

    def _forward(self, distinct: Mapping[Any, View]) -> dict[Any, ImageFeatures]:
        if not distinct:
            return {}
        films = [normalise(view.pixels, self.backbone.contract) for view in distinct.values()]
        pixels = torch.from_numpy(np.stack(films))
        with self._tools.residency.bank.rows([view.slot for view in distinct.values()]):
            features = self.backbone.encode_image(pixels)
        self.trunk_rows += len(distinct)
        return {key: _row(features, index) for index, key in enumerate(distinct)}

    def _read(self, wanted: Sequence[tuple[Request, str]]) -> dict[str, Tensor]:
        """Each distinct text's embedding (E,), from the cache where its tenant has sent it before."""
        known: dict[str, Tensor] = {}
        missing: dict[str, None] = {}
        for request, text in wanted:
            held = self._texts.get((request.tenant, text))
            if held is None:
                missing[text] = None
            else:
                known[text] = held
        if missing:
            known |= dict(zip(missing, self.backbone.encode_text(list(missing)).float(), strict=True))
        for request, text in wanted:
            if request.stores and (request.tenant, text) not in self._texts:
                self._texts.put((request.tenant, text), known[text].clone())
        return known

    def _finished(
        self, request: Request, work: Work | ChatWork, value: Mapping[str, Any], compute_ms: float
    ) -> Mapping[str, Any]:
        """The value with what made it. Raises ArithmeticError where a number in it is none."""
        if not _is_finite(value):
            raise ArithmeticError("a result is not finite")
        provenance = {
            "model": self.backbone.fingerprint,
            "adapter": work.resident.digest if work.resident is not None else None,
            "pixels": request.film.digest if request.film is not None else None,
            "preprocessing": str(self.backbone.contract.version),
        }
        return {**value, "provenance": provenance, "compute_ms": compute_ms}


def fault(request_id: int, error: Exception, trace: str = "") -> Outcome:
    """The Outcome of something unforeseen. The log says where, never what: its text may hold a caller's words."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    log.error("unforeseen %s at %s", type(error).__name__, places, extra={"request": trace})
    return Outcome(request_id, error_code="internal_error", error_message=FAULT)


def _open_decoder(checkpoint: Checkpoint) -> Decoder | None:
    if not checkpoint.has_decoder:
        return None
    from foundation.decoder import Decoder

    return Decoder.load(checkpoint.folder).to(checkpoint.backbone.device)


def _view_key(view: View) -> tuple[bytes, int]:
    """Equal for equal pixels through the same adapter."""
    return view.pixels.tobytes(), view.slot


def _feature_key(request: Request, view: View) -> FeatureKey:
    study = request.film.digest if request.film is not None else ""
    return FeatureKey.of(request.tenant, study, view.pixels.tobytes(), view.resident.digest if view.resident else "")


def _row(features: ImageFeatures, index: int) -> ImageFeatures:
    here = slice(index, index + 1)
    levels = tuple(level[here] for level in features.levels)
    return ImageFeatures(features.embedding[here], features.tokens[here], levels, features.grid)


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    return all(_is_finite(item) for item in value) if isinstance(value, list | tuple) else True
