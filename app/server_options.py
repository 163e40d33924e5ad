"""Options of the commands that serve: which model, where the server keeps its keys and log, TLS, and who answers chat."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from foundation.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.chat_backend import ChatBackend
    from serving.config import TlsConfig


PRECISIONS = ("float32", "bfloat16", "auto")


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", default="bundled", help="bundled, a folder, or hf-hub:ID")
    command.add_argument("--adapters", help="your own adapters' folder")


def add_engine(command: argparse.ArgumentParser) -> None:
    """How the engine computes."""
    command.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="auto: bfloat16 where a measurement at start finds it faster"
    )
    command.add_argument("--devices", default="auto", help="auto, or one engine on each of these: cuda:0,cuda:1 (or cpu,cpu)")


def add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers", type=int, default=1, metavar="N", help="front processes before the engine, each with decoders of its own"
    )


def device_list(chosen: argparse.Namespace) -> tuple[str, ...]:
    """The devices that were named; none for the engine's own choice."""
    text = getattr(chosen, "devices", "auto")
    return () if text == "auto" else tuple(name.strip() for name in text.split(","))


def engine_options(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fields of EngineConfig that were chosen."""
    named = {name: getattr(chosen, name) for name in ("precision",) if hasattr(chosen, name)}
    devices = device_list(chosen)
    return {**named, "device": devices[0]} if len(devices) == 1 else named


def add_tls(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tls-certificate", metavar="FILE", help="serve https with this certificate chain (PEM)")
    command.add_argument("--tls-key", metavar="FILE", help="the certificate's private key (PEM, without a password)")


def tls_config(chosen: argparse.Namespace) -> TlsConfig | None:
    """What was chosen; None where the command has no such options or none was given."""
    from serving.config import TlsConfig

    certificate, key = getattr(chosen, "tls_certificate", None), getattr(chosen, "tls_key", None)
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidRequest("Give --tls-certificate and --tls-key together.", param="tls_certificate")
    return TlsConfig(certificate, key)


def add_chat_backend(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--chat-backend", metavar="openai:URL", help="have chat answered by an engine that speaks OpenAI's protocol"
    )
    command.add_argument("--chat-allow", metavar="URL", action="append", default=[], help="an address films may be sent to")
    command.add_argument("--chat-model", metavar="NAME", default="", help="what that engine calls its model")


def chat_backend(chosen: argparse.Namespace) -> ChatBackend | None:
    """Who answers chat; None for the model's own decoder."""
    from serving.chat_backend import ChatBackend

    text = getattr(chosen, "chat_backend", None)
    return ChatBackend.of(text, chosen.chat_allow, chosen.chat_model, os.environ) if text else None
