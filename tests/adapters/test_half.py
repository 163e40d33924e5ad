"""Half precision on disk: nothing is lost by storing what was rounded, and peft opens it."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from safetensors.torch import load_file

from adapters.card import HEAD, WEIGHTS, verify_folder
from adapters.fake import FakeBackbone
from adapters.files import read_adapter
from adapters.half import FEWEST, compact, round_to_half, stored
from adapters.lora import load_weights


def test_large_tensors_are_rounded_in_place_and_small_ones_left() -> None:
    large, small, counts = torch.rand(2, FEWEST), torch.rand(FEWEST - 1), torch.arange(2 * FEWEST)
    before = large.clone(), small.clone(), counts.clone()
    round_to_half([large, small, counts])
    assert torch.equal(large, before[0].half().float())
    assert not torch.equal(large, before[0])
    assert torch.equal(small, before[1])
    assert torch.equal(counts, before[2])


def test_what_would_overflow_stays_as_it_is() -> None:
    wide = torch.full((FEWEST,), 1e6)
    round_to_half([wide])
    assert wide[0] == 1e6
    assert stored(wide).dtype == torch.float32


def test_only_what_loses_nothing_is_stored_in_half() -> None:
    exact, odd = torch.tensor([0.5, -2.25]), torch.tensor([0.1, 1.0])
    assert stored(exact).dtype == torch.float16
    assert torch.equal(stored(exact).float(), exact)
    assert stored(odd).dtype == torch.float32
    assert stored(torch.arange(3)).dtype == torch.int64


def test_a_compacted_folder_is_smaller_whole_and_nearly_the_same(folder: Path, backbone: FakeBackbone) -> None:
    before, size = {name: load_file(folder / name) for name in (WEIGHTS, HEAD)}, (folder / WEIGHTS).stat().st_size
    digest = read_adapter(folder, backbone).digest
    card = compact(folder)
    assert verify_folder(folder) == card
    assert read_adapter(folder, backbone).digest != digest
    assert [one.name for one in folder.parent.iterdir() if one.name.startswith(".")] == []
    assert (folder / WEIGHTS).stat().st_size < size
    for name, tensors in before.items():
        after = load_file(folder / name)
        assert set(after) == set(tensors)
        for key, tensor in tensors.items():
            torch.testing.assert_close(after[key].float(), tensor.float(), atol=1e-6, rtol=1e-3)


def test_peft_and_we_compute_the_same_from_a_compacted_folder(folder: Path, backbone: FakeBackbone) -> None:
    compact(folder)
    assert torch.float16 in {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()}
    theirs = FakeBackbone()
    pixels = torch.randn(2, 3, backbone.contract.size, backbone.contract.size, generator=torch.Generator().manual_seed(0))
    load_weights(backbone.image_tower, read_adapter(folder, backbone).lora)
    peft.PeftModel.from_pretrained(theirs.image_tower, str(folder)).eval()
    torch.testing.assert_close(
        backbone.encode_image(pixels).embedding, theirs.encode_image(pixels).embedding, atol=1e-5, rtol=0
    )
