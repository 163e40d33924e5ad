"""What the API's process never holds: torch, and whatever else belongs to the engine or to training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]

_HEAVY = ("torch", "torchvision", "open_clip", "timm", "transformers", "peft", "monai", "gradio", "sklearn", "pydicom")

_PROGRAM = f"""
import asyncio, sys
from live_api import LABELS, data_uri, png_film
import httpx
import serving.client, serving.fake
from serving.api.app import create_app
from serving.messages import Film, RawFilm
import numpy as np

class Gateway(serving.fake.FakeGateway):
    async def decode(self, raw):  # a real server decodes in another process
        return Film(np.zeros((8, 8, 3), np.uint8), "d")

async def main():
    transport = httpx.ASGITransport(create_app(Gateway()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        body = {{"images": data_uri(png_film()), "labels": LABELS}}
        assert (await http.post("/v1/zero_shot", json=body)).status_code == 200

asyncio.run(main())
print([name for name in {_HEAVY!r} if name in sys.modules])
"""


def test_no_heavy_library_is_loaded_while_answering() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=_REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{_REPOSITORY}{os.pathsep}{_REPOSITORY / 'tests' / 'serving'}"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
