"""The load, as the rounds here use it: the seam to `benchmarks.load`, so that Vesalius and its peers meet one generator."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load import clients as load
from benchmarks.load.films import Ask, Form, ask
from benchmarks.peers.catalogue import Peer

STAY_S = 0.25  # how long a caller stays who leaves
_PATIENCE_S = 10.0  # a server that hangs is known by then
_GRACE_S = 2 * _PATIENCE_S


@dataclass(frozen=True)
class Figures:
    """Of one run. rate: good answers a second. p50_s, p99_s: of good answers; None without one. lost: good films unanswered."""

    rate: float = 0.0
    p50_s: float | None = None
    p99_s: float | None = None
    lost: int = 0
    refused: int = 0
    left: int = 0
    is_hung: bool = False


def closed(
    url: str,
    good: Sequence[Ask],
    clients: int,
    seconds: float,
    *,
    bad: Sequence[Ask] = (),
    share: float = 0.0,
    leaving: float = 0.0,
) -> Figures:
    """Each client asks again once answered. share: of films that are broken; leaving: of requests whose caller leaves."""
    pick = load.in_turn(good, broken=bad, share=share)
    stay = {"leaving": leaving, "leave_after_s": STAY_S} if leaving else {}
    return _figures(load.closed_loop(url, pick, clients, seconds, **stay), seconds)


def opened(url: str, good: Sequence[Ask], rate: float, seconds: float) -> Figures:
    """Requests at Poisson times, `rate` a second."""
    return _figures(load.open_loop(url, load.in_turn(good), rate, seconds), seconds)


def _figures(run: Coroutine[Any, Any, load.Tally], seconds: float) -> Figures:
    load.PATIENCE_S = _PATIENCE_S
    try:
        tally = asyncio.run(_limited(run, seconds + _GRACE_S))
    except TimeoutError:
        return Figures(is_hung=True)
    return Figures(
        tally.rate,
        _known(tally.quantile(0.5)),
        _known(tally.quantile(0.99)),
        tally.lost + tally.busy,
        tally.refused,
        tally.left,
    )


async def _limited(run: Coroutine[Any, Any, load.Tally], limit_s: float) -> load.Tally:
    async with asyncio.timeout(limit_s):
        return await run


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


async def status_of(url: str, asked: Ask) -> int:
    """The status of one answer; 0 where there was none in time."""
    load.PATIENCE_S = _PATIENCE_S
    connection = load.Connection(url)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await connection.send(asked)
    except TimeoutError:
        return 0
    finally:
        connection.close()


def question(peer: Peer, film: bytes, form: Form, port: int, *, is_broken: bool = False) -> Ask:
    """The film as this peer wants to be asked about it."""
    host = f"127.0.0.1:{port}"
    if peer.shape == "ours":
        return ask(film, form, host, path=peer.route, is_broken=is_broken)
    picture = "data:image/jpeg;base64," + base64.b64encode(film).decode()
    body = json.dumps({"model": "tower", "modality": "image", "input": [picture]}).encode()
    head = (
        f"POST {peer.route} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Ask(head.encode() + body, is_broken)


def embedding(url: str, asked: Ask) -> list[float]:
    """The vector in the answer to one film."""
    head, _, body = asked.raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    connection = http.client.HTTPConnection(url.partition("//")[2], timeout=60)
    try:
        connection.request("POST", first.split()[1], body, headers)
        plain = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    vector: list[float] = plain["data"][0]["embedding"] if isinstance(plain, dict) else plain[0]
    return vector
