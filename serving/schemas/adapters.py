"""Loading and unloading adapters in the running server, in our own shape and in vLLM's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.schemas.parsing import Answer, Body


class LoadBody(Body):
    """digest: what the store must hold under the name, as `vesalius adapters list` shows it; left out, whatever it holds."""

    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class LoadAnswer(Answer):
    """deviation: how far the fast path was from the plain definition on the test film, as a share of the largest feature."""

    object: Literal["adapter"] = "adapter"
    name: str
    digest: str
    task: str
    deviation: float


class UnloadAnswer(Answer):
    object: Literal["adapter.unloaded"] = "adapter.unloaded"
    name: str
    was_resident: bool


class VllmLoadBody(Body):
    """vLLM's body. `lora_path` is the name of an adapter in the store, never a path, and is served under that name.

    `load_inplace` has no effect: what is loaded is replaced where the store holds something newer.
    """

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class VllmUnloadBody(Body):
    """vLLM's body; `lora_int_id` is accepted and has no effect."""

    lora_name: str
    lora_int_id: int | None = None
