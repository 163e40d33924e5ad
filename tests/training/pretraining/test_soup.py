"""A soup is the mean of its checkpoints, opens as one, and takes nothing along that knew other towers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foundation.checkpoint import open_checkpoint, read_tensors
from foundation.errors import InvalidRequest
from foundation.folder_check import WEIGHTS_FILE
from foundation.gate import GATE_FILE
from foundation.tiny import make_tiny_checkpoint
from training.pretraining.soup import make_soup, mean_tensors


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("soup")
    return [make_tiny_checkpoint(home / str(seed), "resnet", seed=seed) for seed in (0, 1)]


def test_every_weight_is_the_mean_and_the_folder_opens(folders: list[Path], tmp_path: Path) -> None:
    (folders[0] / GATE_FILE).write_bytes(b"of other towers")
    try:
        soup = make_soup([*folders, folders[1]], tmp_path / "out")
    finally:
        (folders[0] / GATE_FILE).unlink()
    first, second, found = (read_tensors(folder / WEIGHTS_FILE) for folder in (*folders, soup))
    assert found.keys() == first.keys()
    for name, tensor in found.items():
        assert tensor.dtype == first[name].dtype
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor.float(), (first[name].float() + 2 * second[name].float()) / 3, atol=1e-3, rtol=1e-3
            )
    assert any((found[name] != first[name]).any() for name in found if name.startswith("visual."))
    assert not (soup / GATE_FILE).exists()
    opened = open_checkpoint(str(soup))
    assert opened.passport.fingerprint != open_checkpoint(str(folders[0])).passport.fingerprint


def test_the_soup_of_equals_is_what_they_are(folders: list[Path], tmp_path: Path) -> None:
    soup = make_soup([folders[0], folders[0]], tmp_path / "out")
    before, after = (open_checkpoint(str(folder)).backbone for folder in (folders[0], soup))
    films = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(before.encode_image(films).embedding, after.encode_image(films).embedding)


def test_what_is_no_soup_is_refused_and_nothing_is_written(folders: list[Path], tmp_path: Path) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", "open_clip")
    with pytest.raises(InvalidRequest, match="at least two"):
        make_soup(folders[:1], tmp_path / "out")
    with pytest.raises(InvalidRequest, match="different models"):
        make_soup([folders[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidRequest, match="holds something"):
        make_soup(folders, other)
    with pytest.raises(InvalidRequest, match="'b' is not alike"):
        mean_tensors([{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(1)}])
