"""Adapter folders: ours opens in peft, peft's opens here, and everything odd is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.card import CARD, CONFIG, HEAD, WEIGHTS, AdapterCard, sha256_of
from adapters.fake import KINDS, FakeBackbone
from adapters.files import Adapter, read_adapter, read_lora, write_adapter
from adapters.lora import load_weights
from foundation.errors import AdapterNotFound, AdapterRefused

MakeAdapter = Callable[[FakeBackbone], Adapter]


def pixels(kind: str) -> torch.Tensor:
    size = 32 if kind == "vit" else 64
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def change_card(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / CARD).read_text())
    raw.update(changes)
    (folder / CARD).write_text(json.dumps(raw))


def rewrite(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change tensors of a file and record its new hash, as a careless but honest tool would."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    rehash(folder, name)


def rehash(folder: Path, name: str) -> None:
    files = json.loads((folder / CARD).read_text())["files"]
    change_card(folder, files={**files, name: sha256_of(folder / name)})


def test_round_trip_keeps_everything(folder: Path, backbone: FakeBackbone) -> None:
    adapter = read_adapter(folder, backbone)
    again = folder.parent / "again"
    write_adapter(again, adapter)
    for name in (CONFIG, WEIGHTS, HEAD, CARD):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    assert read_adapter(again, backbone).digest == adapter.digest
    assert adapter.card == AdapterCard.from_json(adapter.card.to_json())


@pytest.mark.parametrize("kind", KINDS)
def test_ours_opens_in_peft_with_equal_outputs(tmp_path: Path, kind: str, make_adapter: MakeAdapter) -> None:
    ours, theirs = FakeBackbone(kind), FakeBackbone(kind)
    write_adapter(tmp_path / "made", make_adapter(ours))
    base = ours.encode_image(pixels(kind)).embedding
    load_weights(ours.image_tower, read_adapter(tmp_path / "made", ours).lora)
    peft.PeftModel.from_pretrained(theirs.image_tower, str(tmp_path / "made")).eval()
    adapted = ours.encode_image(pixels(kind)).embedding
    assert (adapted - base).abs().max() > 1e-2
    torch.testing.assert_close(adapted, theirs.encode_image(pixels(kind)).embedding, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [["qkv", "fc1"], r"blocks\.1\.(attn\.proj|mlp\.fc[12])"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_folder_saved_by_peft_opens_here(tmp_path: Path, kind: str, targets: object, use_rslora: bool) -> None:
    ours, theirs = FakeBackbone(kind), FakeBackbone(kind)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, use_rslora=use_rslora)
    model = peft.get_peft_model(theirs.image_tower, config).eval()
    model.save_pretrained(str(tmp_path))
    base = ours.encode_image(pixels(kind)).embedding
    load_weights(ours.image_tower, read_lora(tmp_path, ours.image_tower))
    expected = theirs.encode_image(pixels(kind)).embedding
    assert (base - expected).abs().max() > 1e-3
    torch.testing.assert_close(ours.encode_image(pixels(kind)).embedding, expected, atol=1e-5, rtol=0)


def test_wrong_base_is_refused(folder: Path) -> None:
    with pytest.raises(AdapterRefused, match="made for the base 'fake'"):
        read_adapter(folder, FakeBackbone(seed=1))


def test_changed_bytes_are_refused(folder: Path, backbone: FakeBackbone) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(AdapterRefused, match=f"{WEIGHTS} is not the file"):
        read_adapter(folder, backbone)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("notes.txt", "do not belong there: notes.txt"),
        ("adapter_model.bin", "holds adapter_model.bin; only safetensors"),
    ],
)
def test_unknown_and_pickled_files_are_refused(folder: Path, backbone: FakeBackbone, name: str, sentence: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(AdapterRefused, match=sentence):
        read_adapter(folder, backbone)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, HEAD])
def test_missing_files_are_refused(folder: Path, backbone: FakeBackbone, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(AdapterRefused, match=f"lacks {name}"):
        read_adapter(folder, backbone)


def test_missing_card_is_not_found(folder: Path, backbone: FakeBackbone) -> None:
    (folder / CARD).unlink()
    with pytest.raises(AdapterNotFound):
        read_adapter(folder, backbone)


FIRST = "base_model.model.blocks.0.attn.qkv.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(FIRST.format("A")), "only one of the two factors"),
        (lambda t: (t.pop(FIRST.format("A")), t.pop(FIRST.format("B"))), "disagree about 1 layers"),
        (lambda t: t.update({FIRST.format("A"): torch.ones(4, 31)}), "have shapes"),
        (lambda t: t.update({FIRST.format("A"): torch.ones(2, 32)}), "have shapes"),
        (lambda t: t.update({"base_model.model.head.bias": torch.ones(4)}), "no LoRA factor"),
        (lambda t: t.update({"base_model.model.no.such.lora_A.weight": torch.ones(4, 4)}), "only one"),
        (lambda t: [t[key].zero_() for key in t if "lora_B" in key], "changes nothing"),
        (lambda t: t[FIRST.format("A")].fill_(float("nan")), "not finite"),
    ],
)
def test_tensors_that_do_not_bind_are_refused(
    folder: Path, backbone: FakeBackbone, change: Callable[[dict[str, torch.Tensor]], None], sentence: str
) -> None:
    rewrite(folder, WEIGHTS, change)
    with pytest.raises(AdapterRefused, match=sentence):
        read_adapter(folder, backbone)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "not read here: use_dora"),
        ({"modules_to_save": ["head"]}, "not read here: modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"peft_type": "IA3"}, "does not describe a LoRA"),
        ({"r": 0}, "rank r of at least 1"),
        ({"some_future_option": 1}, "not read here: some_future_option"),
    ],
)
def test_options_that_change_the_arithmetic_are_refused(
    folder: Path, backbone: FakeBackbone, changes: dict[str, object], sentence: str
) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    rehash(folder, CONFIG)
    with pytest.raises(AdapterRefused, match=sentence):
        read_adapter(folder, backbone)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mood": "good"}, "unknown fields: mood"),
        ({"format": 99}, "not of format 1"),
        ({"labels": ["effusion", "effusion"]}, "each once"),
        ({"thresholds": [0.5]}, "thresholds has 1 values for 2"),
        ({"base": {"name": "x"}}, "base lacks a required field"),
    ],
)
def test_odd_cards_are_refused(folder: Path, backbone: FakeBackbone, changes: dict[str, object], sentence: str) -> None:
    change_card(folder, **changes)
    with pytest.raises(AdapterRefused, match=sentence):
        read_adapter(folder, backbone)


def test_a_folder_in_use_is_not_written_over(folder: Path, backbone: FakeBackbone) -> None:
    with pytest.raises(AdapterRefused, match="not empty"):
        write_adapter(folder, read_adapter(folder, backbone))
