"""Helpers for tests of the API: films made in code, and the app behind a real socket on this machine."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from serving.limits import ServerLimits

LIMITS = ServerLimits(
    max_body_bytes=200_000,
    max_bytes_in_flight=1_000_000,
    max_images=4,
    max_labels=6,
    max_prompts=20,
    max_text_chars=99,
    max_tokens=64,
)
LABELS = ["effusion", "nodule"]


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


def nifti_volume(slices: int = 20) -> bytes:
    """A small grey volume, no two slices alike."""
    import nibabel

    voxels = np.random.default_rng(0).integers(0, 1000, (16, 16, slices)).astype(np.int16)
    return nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()


def dicom_ct_slice() -> bytes:
    """A real CT slice that pydicom carries for its own tests."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm", download=False)
    return Path(str(path)).read_bytes()


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


def files(*films: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", ("anything", film)) for film in films]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, checked for OpenAI's shape."""
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert content["error"]["message"].endswith((".", "KEY'."))
    return content["error"]


def without_times(content: Any) -> Any:
    """An answer less what differs from call to call."""
    if isinstance(content, dict):
        return {key: without_times(item) for key, item in content.items() if key not in ("timings", "id", "created")}
    return [without_times(item) for item in content] if isinstance(content, list) else content
