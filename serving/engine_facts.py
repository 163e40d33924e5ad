"""EngineFacts: what an opened model is, as the front process needs to know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    decoder: str = ""  # its fingerprint, which chat adapters name
    can_embed: bool = True  # False where there is nothing but chat
