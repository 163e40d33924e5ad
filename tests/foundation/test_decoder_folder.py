"""A decoder's folder: what is missing, left over, broken or executable is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.decoder import Decoder
from foundation.errors import CheckpointNotFound, CheckpointRefused
from foundation.tiny_decoder import make_tiny_decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_decoder(folder, image_width=8)
    return folder


def copied(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = copied(folder, tmp_path)
    weights = load_file(broken / "decoder/model.safetensors")
    save_file({**weights, "surplus": torch.zeros(1)}, broken / "decoder/model.safetensors")
    with pytest.raises(CheckpointRefused, match="surplus"):
        Decoder.load(broken)
    missing = {name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}
    save_file(missing, broken / "decoder/model.safetensors")
    with pytest.raises(CheckpointRefused, match=r"model\.norm\.weight"):
        Decoder.load(broken)
    (broken / "decoder/model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointRefused, match="not a whole safetensors"):
        Decoder.load(broken)
    (broken / "projector.safetensors").unlink()
    save_file(weights, broken / "decoder/model.safetensors")
    with pytest.raises(CheckpointNotFound, match="projector"):
        Decoder.load(broken)


@pytest.mark.parametrize("change", [{"auto_map": {"AutoModel": "evil.Model"}}, {"model_type": "gpt2"}])
def test_a_config_that_runs_code_or_is_no_llama_is_refused(folder: Path, tmp_path: Path, change: dict[str, object]) -> None:
    broken = copied(folder, tmp_path)
    config = json.loads((broken / "decoder/config.json").read_text())
    (broken / "decoder/config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointRefused, match=r"run code|only Llama"):
        Decoder.load(broken)
