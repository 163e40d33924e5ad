"""The servers that are compared: how each is started, from which environment, and what it is asked. Starts nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.load.films import Form
from benchmarks.load.server import HOUSE

SERVERS = Path(__file__).parent / "servers"
OURS = "vesalius"
BATCH = 16


@dataclass(frozen=True)
class Start:
    """What a server is started with. python: of its environment. folder: its own, empty. options: Vesalius's alone."""

    python: Path
    checkpoint: Path
    port: int
    precision: str
    folder: Path
    options: tuple[str, ...] = ()


Command = Callable[[Start], list[str]]
Variables = Callable[[Start], Mapping[str, str]]


def _no_variables(_: Start) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Peer:
    """environment: NAME of NAME.txt beside this file, "" for our own. needs: what that file was resolved from.

    route: where films are posted; shape: in which body. limit_s: how long it may take to its first answer.
    """

    name: str
    command: Command
    environment: str = ""
    package: str = ""
    note: str = ""
    variables: Variables = _no_variables
    route: str = "/v1/embeddings"
    shape: Literal["ours", "infinity"] = "ours"
    forms: tuple[Form, ...] = ("base64", "multipart")
    limit_s: float = 120.0


_TOWER = (
    "torch==2.15.0", "torchvision==0.29.2", "open-clip-torch==3.3.0", "timm==1.0.31", "transformers==5.23.0",
    "pillow==12.3.0", "numpy==2.4.6", "python-multipart==0.0.34",
)  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """The packages that an environment is resolved from."""

    packages: tuple[str, ...]
    tower: tuple[str, ...] = _TOWER

    @property
    def lines(self) -> str:
        return "\n".join((*self.tower, *self.packages))


_HTTP = ("fastapi==0.165.0", "uvicorn==0.54.0")
NEEDS: Mapping[str, Needs] = {
    "naive": Needs(_HTTP),
    "litserve": Needs(("litserve==0.2.19", "intel-openmp==2026.2.0", *_HTTP)),
    "ray": Needs(("ray[serve]==2.60.0", *_HTTP)),
    "bentoml": Needs(("bentoml==1.4.40",)),
    # It asks for transformers below 5 and numpy below 2, and opens no open_clip folder.
    "infinity": Needs(
        ("infinity-emb[torch,vision,server]==0.0.78", "aiohttp"),
        tower=("torch==2.15.0", "torchvision==0.29.2", "pillow==12.3.0"),
    ),
}


def _vesalius(start: Start) -> list[str]:
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(start.port), "--checkpoint", str(start.checkpoint)]
    return [*command, "--precision", start.precision, *start.options]


def _script(name: str, batch: int = BATCH) -> Command:
    def command(start: Start) -> list[str]:
        options = ["--checkpoint", str(start.checkpoint), "--port", str(start.port), "--precision", start.precision]
        return [str(start.python), str(SERVERS / name), *options, "--batch", str(batch)]

    return command


def _bentoml(start: Start) -> list[str]:
    served = ["serve_bentoml:Embeddings", "--host", "127.0.0.1", "--port", str(start.port)]
    return [str(start.python), "-m", "bentoml", "serve", "--working-dir", str(SERVERS), *served]


def _bentoml_variables(start: Start) -> Mapping[str, str]:
    return {
        "PEER_CHECKPOINT": str(start.checkpoint),
        "PEER_PRECISION": start.precision,
        "PEER_BATCH": str(BATCH),
        "BENTOML_HOME": str(start.folder),
        "BENTOML_DO_NOT_TRACK": "True",
    }


def _iomp(start: Start) -> Mapping[str, str]:
    return {"LD_PRELOAD": str(start.python.parent.parent / "lib" / "libiomp5.so")}


PEERS: tuple[Peer, ...] = (
    Peer(OURS, _vesalius, note="`vesalius serve`", variables=lambda start: {"VESALIUS_HOME": str(start.folder)}),
    Peer("naive", _script("serve_naive.py"), "naive", "fastapi", "FastAPI, one forward a request in a thread of the pool"),
    Peer("litserve", _script("serve_litserve.py"), "litserve", "litserve", "batches of 16, 5 ms window"),
    Peer("litserve-iomp", _script("serve_litserve.py"), "litserve", "litserve", "the same, libiomp5 preloaded", _iomp),
    Peer("ray", _script("serve_ray.py", batch=1), "ray", "ray", "Ray Serve, one replica, no batching", limit_s=300.0),
    Peer("ray-batched", _script("serve_ray.py"), "ray", "ray", "the same, `@serve.batch` of 16, 5 ms window", limit_s=300.0),
    Peer("bentoml", _bentoml, "bentoml", "bentoml", "adaptive batches of 16", _bentoml_variables, forms=("base64",)),
    Peer(
        "infinity", _script("serve_infinity.py"), "infinity", "infinity-emb", "the tower as a `CLIPModel`, cast to bfloat16",
        route="/embeddings", shape="infinity", forms=("base64",),
    ),
)  # fmt: skip


def python_path() -> str:
    """What peers may import of this repository: opening a checkpoint, preprocessing, and the files beside each other."""
    return f"{HOUSE}:{SERVERS}"
