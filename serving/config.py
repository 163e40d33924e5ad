"""What a server is started with. Frozen; every value is checked where it is made, by name.

ServerConfig   where it listens and who may speak to it
  EngineConfig   the model, the adapters, the device
  DecodeConfig   the decode processes          (decode_pool.py)
  ServerLimits   what one request may take     (limits.py)
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from foundation.errors import InvalidRequest
from serving.chat_backend import ChatBackend
from serving.decode_pool import DecodeConfig
from serving.limits import MIB, ServerLimits
from serving.scheduler import Budget

Precision = Literal["float32", "bfloat16", "auto"]
PRECISIONS = ("float32", "bfloat16", "auto")
FINDINGS_ADAPTER = "cxr-findings"
MOST_LANES = 8
MOST_WORKERS = 64


@dataclass(frozen=True)
class EngineConfig:
    """checkpoint: "bundled", a folder or "hf-hub:ORG/NAME". adapters_dir: the user's adapters beside the bundled ones.

    model_name: what callers call the base; derived from the checkpoint where empty. cached_film_bytes: of
    features kept of recent films; cached_prefix_bytes: of what the decoder made of them. tokens_per_turn: the most a chat
    writes before other work has its turn; prefill_tokens: the most of all chats' prompts that are read in one.
    precision: of the image tower and the decoder; "auto" measures both at start and keeps the faster. threads: of the torch
    operations, 0 for as many as there are cores. findings_adapter: whose
    probabilities a chat answer rests on; without it they are zero-shot. unloaded: adapters that are not to be asked.
    lanes: batches computed beside each other, on one core each; 0 for as many as there are cores (a GPU has none).
    lane_rows: the most films in one such batch; how many there are is chosen by the pace of those that ran (pace.py).
    adapter_bytes: of the adapters on the device, those of towers and decoder each; adapter_memory_bytes: of those kept ready
    in the host's memory. adapters: how many different ones a batch may hold.
    """

    checkpoint: str = "bundled"
    adapters_dir: str | None = None
    model_name: str = ""
    device: str = "auto"
    precision: Precision = "float32"
    threads: int = 0
    findings_adapter: str = FINDINGS_ADAPTER
    rows: int = 32
    adapters: int = 8
    chats: int = 16
    tokens_per_turn: int = 4
    prefill_tokens: int = 256
    cached_texts: int = 8192
    cached_film_bytes: int = 256 * MIB
    unloaded: tuple[str, ...] = ()
    cached_prefix_bytes: int = 64 * MIB
    lanes: int = 0
    lane_rows: int = 8
    adapter_bytes: int = 256 * MIB
    adapter_memory_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidRequest(f"precision is {self.precision!r}; use one of {', '.join(PRECISIONS)}.", param="precision")
        for name in ("tokens_per_turn", "prefill_tokens", "cached_texts", "lane_rows"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1.", param=name)
        if self.adapter_bytes < 1:
            raise InvalidRequest("adapter_bytes must be at least 1; adapters need memory to run.", param="adapter_bytes")
        for name in ("cached_film_bytes", "cached_prefix_bytes", "adapter_memory_bytes"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"{name} must not be negative; 0 keeps nothing.", param=name)
        for name in ("threads", "lanes"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"{name} must not be negative; 0 means as many as there are cores.", param=name)
        _ = self.budget

    @property
    def budget(self) -> Budget:
        return Budget(rows=self.rows, adapters=self.adapters, chats=self.chats)

    @property
    def cores(self) -> int:
        """How many cores operations may use: `threads`, or all this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    def lanes_on(self, device: str) -> int:
        """How many batches are computed beside each other; 0 where one alone has the device."""
        if device != "cpu":
            return 0
        return self.lanes or min(self.cores, MOST_LANES)

    @property
    def base_name(self) -> str:
        """What callers call the base model; never a path."""
        if self.model_name:
            return self.model_name
        return "vesalius" if self.checkpoint == "bundled" else Path(self.checkpoint.rstrip("/")).name


@dataclass(frozen=True)
class TlsConfig:
    """Files in PEM: the server's certificate (with its chain) and its private key, without a password."""

    certificate: str
    key: str

    def __post_init__(self) -> None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.certificate, self.key, password=_no_password
            )
        except OSError:
            raise InvalidRequest(
                f"'{self.certificate}' and '{self.key}' are not a certificate and its private key (PEM, without a password).",
                param="tls_certificate",
            ) from None


def _no_password() -> str:
    raise OSError  # instead of a question on the terminal


@dataclass(frozen=True)
class ServerConfig:
    """port 0 takes a free one. start_limit_s: how long the engine may take to open its model.

    home: where keys and the audit log lie, None for the default (serving/home.py). api_key: the operator's own.
    page_key: what the page speaks with, good for asking only; it does not make a server ask others for a key.
    restart_patience_s: how long a request waits for an engine that is being replaced. chat_backend: who answers chat
    instead of the model's own decoder. devices: an engine on each of them, where there is more than one.
    workers: front processes before the engines (fronts.py).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    page_key: str | None = field(default=None, repr=False)
    home: str | None = None
    tls: TlsConfig | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    limits: ServerLimits = field(default_factory=ServerLimits)
    chat_backend: ChatBackend | None = None
    start_limit_s: float = 300.0
    hang_limit_s: float = 120.0
    canary_interval_s: float = 30.0
    drain_s: float = 10.0
    restart_patience_s: float = 30.0
    devices: tuple[str, ...] = ()
    workers: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise InvalidRequest(f"workers is {self.workers}; give 1 to {MOST_WORKERS}.", param="workers")
        unknown = [name for name in self.devices if not re.fullmatch(r"cpu|cuda(:\d+)?", name)]
        if unknown:
            raise InvalidRequest(f"devices: {unknown[0]!r} is not one; use cpu, cuda or cuda:NUMBER.", param="devices")
        if not 0 <= self.port <= 65535:
            raise InvalidRequest(f"port is {self.port}; give 0 to 65535.", param="port")

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """What `asdict` made of one, after the wire, from which sequences come back as lists."""
        parts = {"tls": TlsConfig, "engine": EngineConfig, "decode": DecodeConfig, "limits": ServerLimits}
        made = {name: kind(**_tuples(plain[name])) for name, kind in parts.items() if plain[name] is not None}
        chat = plain["chat_backend"]
        return cls(**{**_tuples(plain), **made, "chat_backend": ChatBackend(**chat) if chat is not None else None})


def _tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
