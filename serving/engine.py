"""Engine: owns the model and the device, and answers batches. Synchronous; one thread, but for `compute`.

    Batch -> plan each request (works/) -> one trunk forward over all distinct views, each row through its own
    adapter's slot (looks.py) -> missing prompts through the text tower (texts.py) -> finish each -> Outcomes

A batch that fails is split in halves until only the poison item fails. Chats leave `run` without an Outcome and are
written by `generate`, a few tokens a turn. `run` is `prepare`, `compute` and `finish` in one; between prepare and finish the
forward may run in another thread (lanes.py). Knows no socket and no queue: `engine_process.py` joins it to both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adapters.store import AdapterStore, StoredAdapter
from foundation.backbone import Backbone
from foundation.checkpoint import Checkpoint, open_checkpoint
from foundation.errors import InvalidRequest, Overloaded, VesaliusError
from foundation.gate import Gate
from serving.adapter_loader import AdapterLoader
from serving.chat_residency import ChatResidency
from serving.chat_work import ChatWork, Opening, Picture
from serving.config import EngineConfig, Precision
from serving.cost import rows_of, weighed
from serving.device import take_device
from serving.engine_facts import EngineFacts
from serving.faults import fault
from serving.generation import ChatLane, HasNews, never
from serving.lanes import use_threads
from serving.looks import Looks
from serving.messages import Batch, Film, Outcome, Request
from serving.precision import settle, settle_decoder
from serving.prepared import Prepared
from serving.residency import Residency
from serving.texts import Texts
from serving.transport import failure
from serving.withdrawals import Where, Withdrawals
from serving.works import Seen, Tools, Work, plan
from serving.works.work import require_finite

if TYPE_CHECKING:
    from foundation.decoder import Decoder

NO_DECODER = "This model has no decoder, so it cannot chat. Serve a checkpoint with one, such as the bundled model."


class Engine:
    """Use from one thread only, the one that built it; `compute` alone may run in any other."""

    def __init__(self, checkpoint: Checkpoint, store: AdapterStore, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.checkpoint = checkpoint
        self.backbone: Backbone = checkpoint.backbone
        self.precision = settle(self.backbone, self.config.precision)
        decoder = _open_decoder(checkpoint, self.config.precision)
        self._under_way: list[Prepared] = []
        self.withdrawn = Withdrawals()  # marks are put there and taken away by whoever asks
        self.loader = AdapterLoader()
        residency = Residency(
            self.backbone,
            store,
            self.config.adapter_bytes,
            self.config.unloaded,
            memory_bytes=self.config.adapter_memory_bytes,
            loader=self.loader,
        )
        self.bank = residency.bank
        chats = self._chat_residency(decoder, store)
        gate = Gate.load(checkpoint.folder)
        self._tools = Tools(self.backbone, residency, gate, self.config.findings_adapter, chats)
        self._chats = ChatLane(
            decoder,
            self.config.tokens_per_turn,
            chats=self.config.chats,
            prefill_tokens=self.config.prefill_tokens,
            cached_bytes=self.config.cached_prefix_bytes,
            bank=chats.bank if chats else None,
        )
        self._can_chat = decoder is not None
        self._decoder_fingerprint = decoder.fingerprint if decoder is not None else ""
        self.texts = Texts(self.backbone, self.config.cached_texts)
        self.looks = Looks(self.backbone, residency, self.config.cached_film_bytes)

    @classmethod
    def open(cls, config: EngineConfig) -> Engine:
        """Open the checkpoint and the adapter store that `config` names. Raises CheckpointError."""
        opened = open_checkpoint(config.checkpoint, device=take_device(config))
        return cls(opened, AdapterStore.default(config.adapters_dir), config)

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
            decoder=self._decoder_fingerprint,
        )

    def _chat_residency(self, decoder: Decoder | None, store: AdapterStore) -> ChatResidency | None:
        if decoder is None:
            return None
        return ChatResidency(self.backbone, decoder, store, self.config.adapter_bytes, self.loader)

    @property
    def lanes(self) -> int:
        """How many batches may be computed beside each other."""
        return self.config.lanes_on(self.backbone.device.type)

    @property
    def trunk_rows(self) -> int:
        """Films through the trunk so far, each counted once for each adapter."""
        return self.looks.trunk.rows

    @property
    def generating(self) -> int:
        """How many chats are being written."""
        return len(self._chats)

    def absent(self, request: Request) -> tuple[StoredAdapter, ...]:
        """The adapters of a request that are still to be read from disk; `run` would read them while its batch waits."""
        chats, residency = self._tools.chats, self._tools.residency
        if request.operation == "chat":
            found = [chats.absent(name) for name in request.adapters] if chats else []
        else:
            is_load = request.operation == "load"
            found = [residency.absent(name, request.digest, is_load=is_load) for name in request.adapters]
        return tuple(stored for stored in found if stored is not None and request.operation != "unload")

    def weigh(self, request: Request) -> float:
        """What a request will cost, in rows (cost.py)."""
        return weighed(request, self._tools.residency.looks_of, self.backbone.contract.size, self.config.findings_adapter)

    def run(self, batch: Batch) -> list[Outcome]:
        """One Outcome for every request that is not a chat or withdrawn, and for every chat that could not begin."""
        return self._run(batch.requests)

    def prepare(self, batch: Batch) -> Prepared:
        """Plan a batch: what must be known before its forward, and everything that may change the bank."""
        held = frozenset(digest for one in self._computing for digest in one.pinned)
        prepared = Prepared(batch, time.perf_counter(), held, set(held))
        try:
            self._plan_all(prepared)
        except Exception as error:  # told by `finish`, when each request has been tried alone
            prepared.error = error
        self._under_way.append(prepared)
        return prepared

    def compute(self, prepared: Prepared) -> None:
        """The forward of the trunk. Raises nothing; in any thread."""
        try:
            if prepared.error is None and prepared.sighting is not None:
                prepared.sighting.compute()
        except Exception as error:
            prepared.error = error
        finally:
            prepared.is_computed = True

    def finish(self, prepared: Prepared) -> list[Outcome]:
        """As `run`, once it is computed."""
        self._under_way.remove(prepared)
        if prepared.error is None:
            try:
                return self._finish_all(prepared)
            except Exception as error:
                prepared.error = error
        return self._alone(prepared, prepared.error)

    @property
    def _computing(self) -> list[Prepared]:
        """Batches whose adapters must stay where they are."""
        return [one for one in self._under_way if not one.is_computed]

    def use_threads(self, count: int) -> None:
        """On how many cores operations of the calling thread run."""
        use_threads(count)

    def generate(self, has_news: HasNews = never) -> list[Outcome]:
        """Let every chat go on by a few tokens, fewer once there is news."""
        return self._chats.turn(time.monotonic(), fault, has_news)

    def cancel(self, request_id: int) -> bool:
        """Stop writing a chat; False if it is not being written."""
        return self._chats.cancel(request_id)

    def forget(self, tenant: str, study: str) -> None:
        """Drop what is kept of one tenant's film, or of everything the tenant sent where `study` is empty."""
        self.looks.forget(tenant, study)
        self._chats.forget(tenant, study)
        if not study:
            self.texts.forget(tenant)

    def answer(self, request: Request) -> Iterator[Outcome]:
        """One request from beginning to end, without a queue."""
        yield from self.run(Batch((request,)))
        while self.generating:
            yield from self.generate()

    def check(self) -> None:
        """The canary: a blank film through the trunk. Raises what goes wrong."""
        size = self.backbone.contract.size
        film = Film(np.zeros((size, size, 3), np.uint8), digest="0" * 64)
        prepared = self.prepare(Batch((Request(id=0, operation="embed_image", film=film, stores=False),)))
        self.compute(prepared)
        self._under_way.remove(prepared)
        if prepared.error is not None:
            raise prepared.error
        self._finish_all(prepared)

    def _run(self, requests: Sequence[Request]) -> list[Outcome]:
        if not requests:
            return []
        prepared = self.prepare(Batch(tuple(requests)))
        self.compute(prepared)
        return self.finish(prepared)

    def _alone(self, prepared: Prepared, error: Exception) -> list[Outcome]:
        """Whatever the error was, the neighbours of who caused it must not suffer, and it must be told."""
        requests = [request for request in prepared.batch.requests if request.id not in prepared.left]
        if len(prepared.batch.requests) == 1:
            return [
                failure(one.id, error) if isinstance(error, VesaliusError) else fault(one.id, error, one.trace)
                for one in requests
            ]
        half = len(requests) // 2
        return self._run(requests[:half]) + self._run(requests[half:])

    @torch.inference_mode()
    def _plan_all(self, prepared: Prepared) -> None:
        """A request of which we know what is wrong fails alone; anything else raises."""
        for request in prepared.batch.requests:
            if request.id in self.withdrawn:
                self._note_left(prepared, request, "batch")
                continue
            try:
                prepared.planned.append((request, self._plan(request, prepared.pinned)))
            except Overloaded as error:
                if len(prepared.batch.requests) > 1 or prepared.held:  # NOTE: who held it may have been computed meanwhile
                    prepared.crowded.append(request)
                else:
                    prepared.outcomes.append(failure(request.id, error))
            except VesaliusError as error:
                prepared.outcomes.append(failure(request.id, error))
        planned = prepared.planned
        prepared.sighting = self.looks.begin(
            [(request, view) for request, work in planned for view in work.views], self.withdrawn
        )
        prepared.texts = self.texts.read([(request, text) for request, work in planned for text in work.texts])

    @torch.inference_mode()
    def _finish_all(self, prepared: Prepared) -> list[Outcome]:
        assert prepared.sighting is not None
        start, outcomes, planned, texts = prepared.started, prepared.outcomes, prepared.planned, prepared.texts
        features = iter(self.looks.end(prepared.sighting))
        self.withdrawn.note_forward(*prepared.sighting.rows_done)
        openings: list[tuple[Request, ChatWork, Opening]] = []
        for request, work in planned:
            own = [one for one in islice(features, len(work.views)) if one is not None]
            if request.id in self.withdrawn:
                self._note_left(prepared, request, "answer" if len(own) == len(work.views) else "batch")
                continue
            seen = Seen(
                tuple(own),
                torch.stack([texts[text] for text in work.texts]) if work.texts else torch.zeros(0, 0),
            )
            if isinstance(work, ChatWork):
                openings.append((request, work, work.open(seen)))
            else:
                value = work.finish(seen)
                outcomes.append(Outcome(request.id, self._finished(request, work, value, _ms_since(start))))
        for request, work, opening in openings:  # last: nothing after this may fail and run the batch again
            self._begin(request, work, opening, _ms_since(start))
        return outcomes + self._run_crowded(prepared.crowded, prepared.batch.requests)

    def _note_left(self, prepared: Prepared, request: Request, where: Where) -> None:
        """Once, also where the rest of the batch is run again."""
        prepared.left.add(request.id)
        self.withdrawn.note(where, rows_of(request))

    def _run_crowded(self, crowded: Sequence[Request], requests: Sequence[Request]) -> list[Outcome]:
        """In a batch of their own, once their neighbours are done; in halves where that was so from the first."""
        if crowded:
            self.bank.before_change()  # what other batches hold is free when they are computed
        if len(crowded) < len(requests) or len(crowded) == 1:
            return self._run(crowded)
        half = len(crowded) // 2
        return self._run(crowded[:half]) + self._run(crowded[half:])

    def _plan(self, request: Request, pinned: set[str]) -> Work | ChatWork:
        if request.operation != "chat":
            return plan(request, self._tools, pinned)
        if not self._can_chat:
            raise InvalidRequest(NO_DECODER, param="model")
        pinned |= self._chats.adapters
        return ChatWork.of(request, self._tools, pinned)

    def _begin(self, request: Request, work: ChatWork, opening: Opening, encode_ms: float) -> None:
        def finish(last: Mapping[str, Any]) -> Mapping[str, Any]:
            return self._finished(request, work, last, encode_ms + last["compute_ms"])

        if opening.picture is not None:
            opening = replace(opening, without=lambda stores: self._without(replace(request, stores=stores)))
        self._chats.start(request, opening, finish)

    def _without(self, request: Request) -> tuple[Picture, ...]:
        """What the decoder is given of the blank and the shuffled film, when the answer about the real one is written."""
        work = ChatWork.of(request, self._tools, set(self._chats.adapters))  # NOTE: findings may have left the bank meanwhile
        features = self.looks.at([(request, view) for view in work.without_views])
        texts = self.texts.read([(request, text) for text in work.texts])
        return work.pictures(Seen(features, torch.stack([texts[text] for text in work.texts])))

    def _finished(
        self, request: Request, work: Work | ChatWork, value: Mapping[str, Any], compute_ms: float
    ) -> Mapping[str, Any]:
        """The value with what made it. Raises ArithmeticError where a number in it is none."""
        require_finite(value)
        provenance = {
            "model": self.backbone.fingerprint,
            "adapter": work.resident.digest if work.resident is not None else None,
            "pixels": ", ".join(film.digest for film in request.films) or None,
            "preprocessing": str(self.backbone.contract.version),
        }
        return {**value, "provenance": provenance, "compute_ms": compute_ms}


def _open_decoder(checkpoint: Checkpoint, precision: Precision) -> Decoder | None:
    if not checkpoint.has_decoder:
        return None
    from foundation.decoder import Decoder

    decoder = Decoder.load(checkpoint.folder).to(checkpoint.backbone.device)
    settle_decoder(decoder, precision)
    return decoder


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
