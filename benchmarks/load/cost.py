"""Processor milliseconds a film in each of the server's processes: `python -m benchmarks.load.cost`.

Processor time, not wall time, so that the figures hold on a machine that others use as well:

    taskset -c 1 python -m benchmarks.load.cost --form multipart --size 2048

Beside them: the same films decoded and run by the bare model in one process (`offline.py`), one at a time and by eights.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.figures import PRECISION
from benchmarks.load.__main__ import FILMS, MANIFEST, VIT_12M, say
from benchmarks.load.clients import Connection
from benchmarks.load.films import FORMS, Ask, asks, films
from benchmarks.load.offline import offline
from benchmarks.load.server import Served, serve

ROLES = {"serving.decode_process": "decode", "serving.engine_process": "engine"}


def spent_ms(served: Served) -> dict[str, float]:
    """Milliseconds of processor used so far, by role."""
    found = dict.fromkeys(["front", *ROLES.values()], 0.0)
    for process in served.processes:
        with suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes().decode()
            role = next((name for module, name in ROLES.items() if module in command), "front")
            for thread in Path(f"/proc/{process}/task").iterdir():
                found[role] += int((thread / "schedstat").read_text().split()[0]) / 1e6
    return found


async def ask_all(url: str, wanted: Sequence[Ask], clients: int) -> None:
    """Every request once, from so many clients. Raises SystemExit where one is not answered."""
    left = iter(wanted)

    async def client() -> None:
        connection = Connection(url)
        for one in left:
            status = await connection.send(one)
            if status != 200:
                raise SystemExit(f"an answer has status {status}")
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load.cost", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--form", choices=FORMS, default="base64")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    parser.add_argument("options", nargs="*", help="further options of `vesalius serve`, after --")
    chosen = parser.parse_args(arguments)
    from foundation.tiny import make_tiny_checkpoint

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        files = films(chosen.size, FILMS, chosen.manifest)
        (home / "films").mkdir()
        for number, file in enumerate(files):
            (home / "films" / f"{number:03d}.jpg").write_bytes(file)
        checkpoint = make_tiny_checkpoint(home / "vit-12m", vision=VIT_12M)
        rows: list[dict[str, float]] = []
        options = ("--precision", PRECISION, *chosen.options)
        with serve(checkpoint, home, options) as served, offline(checkpoint, PRECISION) as bare:
            good = asks(files, chosen.form, served.url.partition("//")[2])
            wanted = [good[number % len(good)] for number in range(chosen.requests)]
            asyncio.run(ask_all(served.url, wanted[:32], chosen.clients))
            for _ in range(chosen.rounds):
                row = {f"offline, {way}": bare.ask(way, home / "films", 2.0, 1)["cpu_ms"] for way in ("bare", "lanes")}
                before = spent_ms(served)
                asyncio.run(ask_all(served.url, wanted, chosen.clients))
                row |= {role: (now - before[role]) / chosen.requests for role, now in spent_ms(served).items()}
                row["server"] = sum(row[role] for role in before)
                say("  ".join(f"{key} {value:.2f}" for key, value in row.items()))
                rows.append(row)
    say(f"medians of {chosen.rounds}, {chosen.size} px {chosen.form}, {chosen.clients} clients, processor ms a film:")
    say("  ".join(f"{key} {statistics.median(row[key] for row in rows):.2f}" for key in rows[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
