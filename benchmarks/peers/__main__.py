"""Vesalius beside other servers on this machine, all serving one image tower, under one load, in one run.

    python -m benchmarks.peers                                    all of them, three rounds, base64 at 320 px: half an hour
    python -m benchmarks.peers --rounds 1 --seconds 2 --peer naive                                   about three minutes
    python -m benchmarks.peers --case base64:320 --case multipart:2048 -- --workers 2       options of `vesalius serve`
    python -m benchmarks.peers --install                          only make the environments

Each round starts every server in turn (another one first each time), measures it and ends it; the bare model is measured
right before and after each. A peer that cannot be installed or does not start is reported as such. Figures are written
after every server, so that a run cut short leaves what it had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import keep
from benchmarks.load.__main__ import FILMS, MANIFEST, VIT_12M
from benchmarks.load.films import FORMS, Form, broken, films
from benchmarks.load.server import HOUSE
from benchmarks.peers.bare import BareModel, BareModelError, bare_model
from benchmarks.peers.catalogue import NEEDS, OURS, PEERS, Peer, Start, python_path
from benchmarks.peers.drive import embedding, question
from benchmarks.peers.environments import FOLDER, NotInstalledError, lock, pinned_version, python_of
from benchmarks.peers.measure import Plan, Row, lives, measure
from benchmarks.peers.process import NotStartedError, free_port, running
from benchmarks.peers.table import markdown, medians
from benchmarks.section import put_section
from training.measuring.report import hardware

RANDOM = "random-12m"
REPORT, PAGE = HOUSE / "docs/results/peers.json", HOUSE / "docs/benchmarks.md"
_ALIKE = 0.98  # cosine of two embeddings of one film in bfloat16


@dataclass
class Case:
    """One form and size: what every round found of each server, and why a server failed."""

    form: Form
    size: int
    rounds: dict[str, list[Row]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        rounds = {name: [_rounded(row) for row in rows] for name, rows in self.rounds.items()}
        servers = {name: medians(rows) for name, rows in self.rounds.items()}
        return {"form": self.form, "size": self.size, "servers": servers, "failed": self.failed, "rounds": rounds}


class Contest:
    """The servers of one run. home: where their folders and the films lie."""

    def __init__(self, plan: Plan, checkpoint: Path, options: tuple[str, ...], home: Path, log: Callable[[str], None]) -> None:
        self.plan, self.checkpoint, self.options, self.home, self.log = plan, checkpoint, options, home, log
        self.patience = 1.0
        self.pythons: dict[str, Path] = {"": Path(sys.executable)}
        self.missing: dict[str, str] = {}

    def install(self, peers: Sequence[Peer], folder: Path) -> list[Peer]:
        """Those whose environment is there."""
        for name in dict.fromkeys(peer.environment for peer in peers if peer.environment):
            self.log(f"environment {name}")
            try:
                self.pythons[name] = python_of(name, folder)
            except NotInstalledError as error:
                self.missing |= {peer.name: f"not installed: {error}" for peer in peers if peer.environment == name}
        return [peer for peer in peers if peer.environment in self.pythons]

    def round(self, case: Case, peers: Sequence[Peer], files: Sequence[bytes], folder: Path, bare: BareModel) -> None:
        """Every server once. One that fails is named in `case.failed` and the others go on."""
        for peer in peers:
            if case.form not in peer.forms:
                case.failed[peer.name] = f"takes no {case.form}"
                continue
            try:
                row = self._measured(peer, case, files, folder, bare)
            except (NotStartedError, BareModelError, OSError, ValueError, LookupError) as error:
                case.failed[peer.name] = str(error) or type(error).__name__
                self.log(f"{peer.name}: {case.failed[peer.name]}")
                continue
            case.rounds.setdefault(peer.name, []).append(row)
            self.log(f"{case.form} {case.size} round {len(case.rounds[peer.name])} {peer.name}: {json.dumps(_rounded(row))}")

    def _measured(self, peer: Peer, case: Case, files: Sequence[bytes], folder: Path, bare: BareModel) -> Row:
        port, own = free_port(), Path(tempfile.mkdtemp(prefix=f"{peer.name}-", dir=self.home))
        start = Start(self.pythons[peer.environment], self.checkpoint, port, self.plan.precision, own, self.options)
        good = [question(peer, file, case.form, port) for file in files]
        bad = [question(peer, broken(file), case.form, port, is_broken=True) for file in files]
        variables = {"PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", **peer.variables(start)}
        with running(peer.command(start), variables, port, good[0], own / "server.log", self.patience * peer.limit_s) as served:
            vector = embedding(served.url, good[0])
            row = measure(served, bare, folder, good, bad, self.plan)
            row["lives_on"] = float(asyncio.run(lives(served, good[0])))
        row["cosine"] = self._alike(peer, case, vector)
        return row

    def _alike(self, peer: Peer, case: Case, vector: Sequence[float]) -> float:
        """Raises ValueError for a server that gives another embedding than the first one asked in this case."""
        kept = self.home / f"{case.form}-{case.size}.vector.json"
        if not kept.exists():
            kept.write_text(json.dumps(vector), encoding="utf-8")
        other = json.loads(kept.read_text(encoding="utf-8"))
        dot = sum(a * b for a, b in zip(vector, other, strict=True))
        cosine = dot / (math.hypot(*vector) * math.hypot(*other))
        if cosine < _ALIKE:
            raise ValueError(f"{peer.name} answers another embedding (cosine {cosine:.3f}), so it is not compared")
        return cosine


def _rounded(row: Row) -> Row:
    return {key: None if value is None else round(value, 3) for key, value in row.items()}


def run(chosen: argparse.Namespace, log: Callable[[str], None]) -> dict[str, Any]:
    from foundation.tiny import make_tiny_checkpoint

    cores = len(os.sched_getaffinity(0))
    plan = Plan(chosen.clients, chosen.rounds, chosen.seconds, chosen.precision, cores)
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        home = Path(name)
        is_random = chosen.model == RANDOM
        checkpoint = make_tiny_checkpoint(home / "vit", vision=VIT_12M) if is_random else Path(chosen.model).resolve()
        contest = Contest(plan, checkpoint, tuple(chosen.options), home, log)
        contest.patience = chosen.patience
        wanted = [peer for peer in PEERS if not chosen.peer or peer.name in (OURS, *chosen.peer)]
        peers = contest.install(wanted, chosen.environments)
        cases = [Case(form, size) for form, size in chosen.case or [("base64", 320)]]
        with bare_model(checkpoint, plan.precision) as bare:
            for case in cases:
                files, folder = films(case.size, FILMS, chosen.manifest), home / f"{case.form}-{case.size}"
                folder.mkdir()
                for number, file in enumerate(files):
                    (folder / f"{number:03d}.jpg").write_bytes(file)
                for number in range(plan.rounds):
                    for peer in _turned(peers, number):
                        contest.round(case, [peer], files, folder, bare)
                        keep(found := _found(chosen, plan, contest, cases, peers), chosen.report)
    return found


def _turned(peers: Sequence[Peer], number: int) -> list[Peer]:
    """The same ring, begun elsewhere in each round; the first round begins with Vesalius."""
    at = number * 3 % len(peers)
    return [*peers[at:], *peers[:at]]


def _found(
    chosen: argparse.Namespace, plan: Plan, contest: Contest, cases: Sequence[Case], peers: Sequence[Peer]
) -> dict[str, Any]:
    model = "a random open_clip ViT of 12.7 M at 224 px" if chosen.model == RANDOM else Path(chosen.model).name
    told = {peer.name: f"{peer.note} {_version(peer)}".strip() for peer in peers}
    return {
        "hardware": hardware(),
        "plan": {
            "model": model, "clients": plan.clients, "rounds": plan.rounds, "seconds": plan.seconds,
            "precision": plan.precision, "options": list(contest.options),
        },
        "servers": told,
        "missing": contest.missing,
        "cases": [case.plain for case in cases],
    }  # fmt: skip


def _version(peer: Peer) -> str:
    version = pinned_version(peer.environment, peer.package) if peer.environment else ""
    return f"({peer.package} {version})" if version else ""


def _case(text: str) -> tuple[Form, int]:
    form, _, size = text.partition(":")
    for known in FORMS:
        if form == known and size.isdigit():
            return known, int(size)
    raise argparse.ArgumentTypeError(f"{text!r} is no case; say {FORMS[0]}:320 or {FORMS[1]}:2048")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=RANDOM, help="an open_clip folder; by default a random tower, made anew")
    parser.add_argument("--clients", type=_counts, default=Plan.clients, help="16,32; the first is used for the other runs too")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of each run")
    parser.add_argument("--precision", default=Plan.precision)
    parser.add_argument("--peer", action="append", choices=[peer.name for peer in PEERS], help="only these beside Vesalius")
    parser.add_argument("--case", action="append", type=_case, metavar="FORM:SIZE")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="real films; phantoms where it is not there")
    where = "where the peers are installed"
    parser.add_argument("--environments", type=lambda one: Path(one).absolute(), default=FOLDER, help=where)
    parser.add_argument("--report", type=Path, default=REPORT, help="the figures as JSON")
    parser.add_argument("--table", type=Path, default=PAGE, help="the page whose section is written anew")
    parser.add_argument("--patience", type=float, default=1.0, metavar="FACTOR", help="more time to start, on a busy machine")
    parser.add_argument("--install", action="store_true", help="make the environments and end")
    parser.add_argument(
        "--lock", action="append", choices=list(NEEDS), help="resolve an environment's requirements anew and end"
    )
    parser.add_argument("options", nargs="*", help="further options of `vesalius serve`, after --")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parsed(arguments)
    for name in chosen.lock or []:
        lock(name)
    if chosen.lock:
        return 0
    if chosen.install:
        for name in NEEDS:
            try:
                print(name, python_of(name, chosen.environments), flush=True)
            except NotInstalledError as error:
                print(name, error, flush=True)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: no server is left running
    found = run(chosen, lambda line: print(line, file=sys.stderr, flush=True))
    print(markdown(found))
    put_section("peers", markdown(found), chosen.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
