"""DecodePool: bytes in, films out, each decoded in a confined process that can be lost without harm.

A decoder that crashes or takes too long (decode_limit.py) is killed and replaced, and the film that did it is refused; films
of others are untouched. The event loop never holds more than the bytes on their way. See `decode_process.py` for the
other side.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundation.errors import (
    EngineUnavailable,
    FilmError,
    FilmTooLarge,
    FilmUnreadable,
    FilmUnsupported,
    InvalidRequest,
    Overloaded,
    VesaliusError,
)
from serving.arena import Arena
from serving.decode_limit import DecodeLimit
from serving.messages import Film, RawFilm
from serving.spawn import end, kill, spawn
from serving.together import together
from serving.transport import AsyncChannel, PeerLostError, film_from_plain, mask_file_to_plain, raw_film_to_plain

if TYPE_CHECKING:
    from foundation.preprocess import InputContract
    from serving.mask_files import MaskFile

log = logging.getLogger("serving.decode")
GIB = 1 << 30
ARENA_BYTES = 1 << 24  # one film of up to 2,364 pixels a side; a larger one travels by the socket
KEPT_BYTES = 1 << 25  # freed memory that a decoder keeps for the next film, instead of having its pages made anew
_REFUSALS = (FilmTooLarge, FilmUnreadable, FilmUnsupported, InvalidRequest)


@dataclass(frozen=True)
class DecodeConfig:
    """processes: films decoded at the same time. time_limit_s (of processor) and memory_bytes: what one film may take.

    wall_limit_s: of the clock, for a film that takes no processor, or is given none.
    """

    processes: int = 2
    time_limit_s: float = 20.0
    wall_limit_s: float = 120.0
    memory_bytes: int = 4 * GIB
    max_waiting: int = 256
    start_limit_s: float = 60.0
    module: str = "serving.decode_process"

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise InvalidRequest("At least one decode process is needed.", param="processes")


@dataclass(eq=False)
class _Decoder:
    process: asyncio.subprocess.Process
    channel: AsyncChannel
    arena: Arena  # for what it reads, alone


class DecodePool:
    """Start it on the running event loop, close it there."""

    def __init__(self, config: DecodeConfig | None = None) -> None:
        self.config = config or DecodeConfig()
        self.replaced = 0  # decoders lost so far
        self.withdrawn = 0  # films whose callers left before they were decoded
        self._idle: asyncio.Queue[_Decoder] = asyncio.Queue()
        self._all: set[_Decoder] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting = 0
        self._is_closed = False

    async def start(self) -> None:
        await together(self._hire() for _ in range(self.config.processes))

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(end(one.process, one.channel) for one in self._all))
        for decoder in self._all:
            decoder.arena.close()
        self._all.clear()

    async def decode(self, raw: RawFilm, contract: InputContract) -> Film:
        """Raises FilmError, InvalidRequest (slice or window), Overloaded or EngineUnavailable.

        A decoder may be lost for reasons that are not its film's, so a film is blamed for it only the second time.
        """
        reply = await self._done({"kind": "decode", "raw": raw_film_to_plain(raw), "contract": vars(contract)})
        film = reply["film"]
        assert isinstance(film, Film)
        return film

    async def mask_file(self, wanted: MaskFile) -> bytes:
        """Masks written over the film they are of; raises as `decode`."""
        content = (await self._done({"kind": "mask_file", "wanted": mask_file_to_plain(wanted)}))["content"]
        assert isinstance(content, bytes)
        return content

    async def _done(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return await self._once(message)
        except PeerLostError:
            pass
        try:
            return await self._once(message)
        except PeerLostError:
            raise FilmUnreadable("The film broke the decoder: it is damaged. Export it again.") from None

    async def _once(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `_done`; raises PeerLostError where the decoder was lost over it."""
        if self._waiting >= self.config.max_waiting:
            raise Overloaded("Too many films wait to be decoded. Try again in a moment.", retry_after_s=1.0)
        self._waiting += 1
        try:
            decoder = await self._next_idle()
        except TimeoutError:
            raise EngineUnavailable("No decoder became free in time. Try again later.") from None
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        finally:
            self._waiting -= 1
        try:  # NOTE: shielded, so that a caller who leaves does not cost the decoder its process.
            return await asyncio.shield(self._background(self._do_with(decoder, message)))
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise

    async def _next_idle(self) -> _Decoder:
        """Raises TimeoutError."""
        if not self._idle.empty():
            return self._idle.get_nowait()
        return await asyncio.wait_for(self._idle.get(), self.config.start_limit_s)

    async def _do_with(self, decoder: _Decoder, message: Mapping[str, Any]) -> Mapping[str, Any]:
        config, process = self.config, decoder.process
        limit = DecodeLimit(process.pid, config.time_limit_s, config.wall_limit_s, lambda: kill(process))
        try:
            await decoder.channel.send({**message, "is_alone": self._idle.qsize() == len(self._all) - 1})
            reply = await decoder.channel.receive()
            if reply["kind"] == "film":  # read before the decoder is asked again
                reply["film"] = film_from_plain(reply["film"], decoder.arena)
        except PeerLostError:
            self._replace(decoder)
            if limit.passed is not None:
                raise limit.passed from None
            raise
        except Exception:  # NOTE: what it was sent or answers then is not known, so it is not asked again.
            self._replace(decoder)
            raise
        finally:
            limit.stop()
        self._idle.put_nowait(decoder)
        if reply["kind"] == "refused":
            raise _error(reply)
        return reply

    async def _hire(self) -> None:
        limits = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
            "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
            "VESALIUS_DECODE_BYTES": str(self.config.memory_bytes),
        }
        arena = Arena.create(ARENA_BYTES)
        try:
            process, channel = await spawn(self.config.module, limits, arena)
        except BaseException:
            arena.close()
            raise
        decoder = _Decoder(process, channel, arena)
        self._all.add(decoder)
        try:
            async with asyncio.timeout(self.config.start_limit_s):
                await channel.receive()
        except (PeerLostError, TimeoutError):
            self._dismiss(decoder)
            raise EngineUnavailable("A decode process could not start; the server's log says more.") from None
        self._idle.put_nowait(decoder)

    def _replace(self, decoder: _Decoder) -> None:
        self.replaced += 1
        self._dismiss(decoder)
        if not self._is_closed:
            log.warning("a decoder was lost; starting another (%d so far)", self.replaced)
            self._background(self._hire_again())

    async def _hire_again(self) -> None:
        pause_s = 0.0
        while not self._is_closed:
            await asyncio.sleep(pause_s)
            try:
                return await self._hire()
            except EngineUnavailable:
                pause_s = min(10.0, pause_s + 1.0)

    def _dismiss(self, decoder: _Decoder) -> None:
        kill(decoder.process)
        decoder.channel.close()
        decoder.arena.close()
        self._all.discard(decoder)
        self._background(decoder.process.wait())

    def _background(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left: mark it as seen


def _error(reply: Mapping[str, Any]) -> VesaliusError:
    kind = next((one for one in _REFUSALS if one.code == reply["code"]), FilmError)
    return kind(str(reply["message"]), param=reply["param"])
