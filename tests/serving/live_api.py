"""Helpers for tests of the API: films made in code, and the app behind a real socket on this machine."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from PIL import Image


def png_film(seed: int = 0, size: int = 48) -> bytes:
    """A grey film of noise; every seed another one."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    return _encode(pixels)


def color_picture() -> bytes:
    """What a photograph is to a model of films."""
    pixels = np.zeros((48, 48, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    return _encode(pixels)


def _encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


DICOM_FILM = b"\0" * 128 + b"DICM" + b"fake"
NIFTI_FILM = b"\x5c\x01\x00\x00" + b"fake"


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of `app`, served by uvicorn from a thread for the length of the block."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return once `condition` holds; fail when it does not within `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "what was waited for did not happen"
        time.sleep(0.005)
