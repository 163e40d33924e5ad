"""Frames of msgpack over a Unix socket: how the server's processes speak. No pickle, no TCP.

    frame = length (8 bytes, big-endian) + msgpack

A message is a dict with a "kind". Requests, outcomes and films are turned into plain data here and back, so that no
other file knows the wire. Both ends are ours; a frame that does not parse means a broken peer, and is fatal to it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import msgpack
import numpy as np

from foundation.errors import Overloaded, VesaliusError
from foundation.preprocess import InputContract
from serving.arena import Arena
from serving.mask_files import MaskFile
from serving.messages import ChatTurn, Film, Outcome, RawFilm, Request, Sampling

Message = Mapping[str, Any]

_LENGTH = struct.Struct(">Q")
MAX_FRAME_BYTES = 1 << 30


class PeerLostError(Exception):
    """The process at the other end has gone, or speaks nonsense."""


class Channel:
    """The blocking end of a socket, for processes without an event loop. One reader; writers may be several threads."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._writing = threading.Lock()

    def send(self, message: Message) -> None:
        with self._writing:
            try:
                self._socket.sendall(pack(message))
            except OSError as error:
                raise PeerLostError from error

    def receive(self) -> dict[str, Any]:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return unpack(self._read(checked(length)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Messages until the peer has gone."""
        while True:
            try:
                yield self.receive()
            except PeerLostError:
                return

    def _read(self, size: int) -> bytearray:
        held = bytearray(size)
        view, filled = memoryview(held), 0
        while filled < size:
            try:
                got = self._socket.recv_into(view[filled:])
            except OSError as error:
                raise PeerLostError from error
            if not got:
                raise PeerLostError
            filled += got
        return held


class AsyncChannel:
    """The same, for the event loop. One reader; writes never interleave, because a frame is one write."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connection: socket.socket) -> AsyncChannel:
        """Take over one end of a socket pair."""
        reader, writer = await asyncio.open_connection(sock=connection)
        return cls(reader, writer)

    async def send(self, message: Message) -> None:
        frame = pack(message)
        try:
            self._writer.write(frame)
            await self._writer.drain()
        except OSError as error:
            raise PeerLostError from error

    def post(self, message: Message) -> None:
        """Send without waiting; lost if the peer is."""
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    async def receive(self) -> dict[str, Any]:
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return unpack(await self._reader.readexactly(checked(length)))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise PeerLostError from error

    def close(self) -> None:
        self._writer.close()


def pack(message: Message) -> bytes:
    """One frame. Raises UnicodeEncodeError where a text holds half of a character (a lone surrogate), OverflowError for an
    integer of more than 64 bits.
    """
    body: bytes = msgpack.packb(dict(message))
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes | bytearray) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise PeerLostError from error
    if not isinstance(message, dict):
        raise PeerLostError
    return message


def checked(length: int) -> int:
    if length > MAX_FRAME_BYTES:
        raise PeerLostError
    return length


def film_to_plain(film: Film, arena: Arena | None = None) -> dict[str, Any]:
    """The pixels as bytes, or as a place in the arena where it has one left: see `places_of`."""
    place = arena.put(film.pixels) if arena is not None else None
    pixels = np.ascontiguousarray(film.pixels).tobytes() if place is None else place
    return {**vars(film), "pixels": pixels, "shape": film.pixels.shape}


def film_from_plain(plain: Message, arena: Arena | None = None) -> Film:
    """Pixels that lie in the arena are copied out. Raises PeerLostError where there is no such place."""
    rest = {key: value for key, value in plain.items() if key not in ("pixels", "shape", "notes")}
    if isinstance(plain["pixels"], bytes):
        pixels = np.frombuffer(plain["pixels"], dtype=np.uint8).reshape(plain["shape"])
    else:
        try:
            assert arena is not None
            pixels = arena.read(plain["pixels"], plain["shape"])
        except ValueError as error:
            raise PeerLostError from error
    spacing_mm = tuple(plain["spacing_mm"]) if plain["spacing_mm"] else None
    return Film(pixels=pixels, notes=tuple(plain["notes"]), **{**rest, "spacing_mm": spacing_mm})


def places_of(request: Message) -> list[int]:
    """Where the films of a request that is plain by now lie in the arena."""
    films = [request["film"], *request["others"]]
    return [film["pixels"] for film in films if film is not None and not isinstance(film["pixels"], bytes)]


def raw_film_to_plain(raw: RawFilm) -> dict[str, Any]:
    return vars(raw)


def raw_film_from_plain(plain: Message) -> RawFilm:
    window = plain["window"]
    return RawFilm(plain["data"], plain["slice_index"], tuple(window) if window else None)


def mask_file_to_plain(wanted: MaskFile) -> dict[str, Any]:
    return asdict(wanted)


def mask_file_from_plain(plain: Message) -> MaskFile:
    raw = raw_film_from_plain(plain["raw"])
    return MaskFile(**{**plain, "raw": raw, "labels": tuple(plain["labels"]), "masks": tuple(plain["masks"])})


def request_to_plain(request: Request, arena: Arena | None = None) -> dict[str, Any]:
    return {
        **vars(request),
        "film": film_to_plain(request.film, arena) if request.film is not None else None,
        "others": [film_to_plain(film, arena) for film in request.others],
        "turns": [vars(turn) for turn in request.turns],
        "sampling": vars(request.sampling),
        "options": dict(request.options),
    }


def request_from_plain(plain: Message, arena: Arena | None = None) -> Request:
    sampling = dict(plain["sampling"])
    return Request(
        **{
            **plain,
            "film": film_from_plain(plain["film"], arena) if plain["film"] is not None else None,
            "others": tuple(film_from_plain(film, arena) for film in plain["others"]),
            "texts": tuple(plain["texts"]),
            "turns": tuple(ChatTurn(**turn) for turn in plain["turns"]),
            "sampling": Sampling(**{**sampling, "stop": tuple(sampling["stop"])}),
        }
    )


def outcome_to_plain(outcome: Outcome) -> dict[str, Any]:
    return vars(outcome)


def outcome_from_plain(plain: Message) -> Outcome:
    return Outcome(**plain)


def failure(request_id: int, error: VesaliusError) -> Outcome:
    """An error as the last Outcome of a request."""
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    return Outcome(request_id, error_code=error.code, error_message=error.message, retry_after_s=retry_after_s)


def contract_from_plain(plain: Message) -> InputContract:
    """Sequences come back from the wire as lists."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return InputContract(**values)
