"""The whole server over a tiny checkpoint: what it serves equals the model called directly; no torch in front."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live_api import png_film
from tiny import write_checkpoint, write_findings

from foundation.checkpoint import open_checkpoint
from foundation.errors import CheckpointNotFound, InvalidRequest
from serving.client import Client
from serving.config import EngineConfig, ServerConfig
from serving.decode_process import decode
from serving.engine import Engine
from serving.messages import Batch, RawFilm, Request
from serving.server import background


def test_served_equals_direct(tmp_path: Path) -> None:
    backbone = open_checkpoint(write_checkpoint(tmp_path / "tiny")).backbone
    write_findings(tmp_path / "adapters", backbone)
    config = EngineConfig(checkpoint=str(tmp_path / "tiny"), adapters_dir=str(tmp_path / "adapters"), threads=1)
    engine = Engine.open(config)
    films = [png_film(seed) for seed in range(3)]
    labels, templates = ["effusion", "mass"], ["there is {}"]
    with background(ServerConfig(port=0, engine=config)) as url, Client(url) as client:
        assert [model.id for model in client.models()][:1] == ["tiny"]
        served = client.zero_shot([*films, b"not a film"], labels, templates=templates)
        pieces = list(client.ask("is there an effusion?", film=films[0]))
    assert served.data[3].error is not None
    options = {"labels": labels, "templates": templates, "negatives": None, "scoring": "softmax"}
    for film, item in zip(films, served.data, strict=False):
        decoded = decode(RawFilm(film), engine.backbone.contract)
        (outcome,) = engine.run(Batch((Request(1, "zero_shot", film=decoded, options=options),)))
        assert outcome.value is not None
        assert np.allclose([score.score for score in item.scores], outcome.value["scores"], atol=1e-4)
    extras = pieces[-1].extras
    assert extras is not None
    assert extras.evidence is not None
    assert len(extras.evidence.findings) == 3
    assert "".join(piece.text for piece in pieces)


def test_a_checkpoint_that_is_not_there_is_said_before_listening(tmp_path: Path) -> None:
    config = ServerConfig(port=0, engine=EngineConfig(checkpoint=str(tmp_path / "nothing")))
    with pytest.raises(CheckpointNotFound), background(config):
        pass


def test_an_open_address_without_a_key_is_refused() -> None:
    with pytest.raises(InvalidRequest), background(ServerConfig(host="0.0.0.0", port=0)):
        pass


def test_the_front_process_imports_no_torch() -> None:
    code = "import sys, serving.server; print([m for m in ('torch', 'open_clip', 'pydicom', 'monai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
