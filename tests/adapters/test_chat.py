"""The chat task: bank = plain = peft = merged on a tiny decoder, slot 0 is the base; what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from adapters.bank import AdapterBank
from adapters.card import BaseRecord
from adapters.fake import make_fake_chat_adapter
from adapters.files import Adapter, read_adapter, write_adapter
from adapters.lora import load_weights, remove_lora
from adapters.tasks.chat import CANNOT_TELL, ChatResult, open_chat_adapter
from foundation.decoder import Decoder
from foundation.errors import AdapterRefused
from foundation.prompt import detokenise
from foundation.tiny_decoder import make_tiny_decoder

TOWERS = SimpleNamespace(image_tower=torch.nn.Linear(1, 1), fingerprint="towers")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decoder")
    make_tiny_decoder(place, image_width=8)
    return place


@pytest.fixture
def decoder(place: Path) -> Decoder:
    return Decoder.load(place)


def made(decoder: Decoder, seed: int) -> Adapter:
    return make_fake_chat_adapter("towers", decoder, f"chat-{seed}", seed)


def logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=rows, use_cache=False).logits


def test_bank_plain_peft_and_merged_say_the_same(place: Path, decoder: Decoder, tmp_path: Path) -> None:
    rows = torch.randint(12, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    base = logits(decoder.model, rows)
    bank = AdapterBank.over(decoder.model)
    slots = [bank.install(made(decoder, seed).lora) for seed in (5, 6)]
    with bank.rows([slots[1], 0, slots[0]]):
        mixed = logits(decoder.model, rows)
    assert torch.equal(mixed[1], logits(decoder.model, rows)[1])
    torch.testing.assert_close(mixed[1], base[1], atol=1e-5, rtol=0)
    with bank.rows([0, 0, 0]):
        assert torch.equal(logits(decoder.model, rows), base)
    bank.close()
    for row, seed in ((2, 5), (0, 6)):
        layers = load_weights(decoder.model, made(decoder, seed).lora)
        plain = logits(decoder.model, rows)[row]
        for layer in layers.values():
            layer.merge()
        merged = logits(decoder.model, rows)[row]
        remove_lora(decoder.model)
        write_adapter(tmp_path / f"a{seed}", made(decoder, seed))
        theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(place / "decoder"), tmp_path / f"a{seed}").eval()
        for other in (plain, merged, logits(theirs, rows)[row]):
            torch.testing.assert_close(mixed[row], other, atol=2e-4, rtol=1e-4)
        assert (mixed[row] - base[row]).abs().max() > 0.1, "an adapter that changes nothing would pass everything above"


def test_every_layer_of_the_blocks_is_adapted_and_nothing_else(decoder: Decoder) -> None:
    assert len(decoder.lora_targets()) == 7 * 2
    assert all(name.startswith("model.layers.") for name in decoder.lora_targets())


def test_the_folder_opens_for_its_base_and_for_no_other(decoder: Decoder, tmp_path: Path) -> None:
    write_adapter(tmp_path / "good", made(decoder, 5))
    opened = open_chat_adapter(tmp_path / "good", TOWERS, decoder)
    assert opened.card.base == BaseRecord("fake", "towers", decoder.fingerprint)
    other = make_tiny_decoder(tmp_path / "other", image_width=8, seed=1)
    assert other.fingerprint != decoder.fingerprint
    with pytest.raises(AdapterRefused, match="made for another decoder"):
        open_chat_adapter(tmp_path / "good", TOWERS, other)
    with pytest.raises(AdapterRefused, match="was made for the base"):
        open_chat_adapter(tmp_path / "good", SimpleNamespace(image_tower=None, fingerprint="others"), decoder)
    with pytest.raises(AdapterRefused, match="adapts the decoder"):
        read_adapter(tmp_path / "good", TOWERS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "classification"}, "for classification, not for chat"),
        ({"head": {}}, "card's head needs"),
        ({"base": BaseRecord("fake", "towers")}, "does not chat"),
    ],
)
def test_other_tasks_cards_are_refused(decoder: Decoder, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    adapter = made(decoder, 5)
    write_adapter(tmp_path / "odd", replace(adapter, card=replace(adapter.card, **change)))
    with pytest.raises(AdapterRefused, match=words):
        open_chat_adapter(tmp_path / "odd", TOWERS, decoder)


def test_a_head_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    write_adapter(tmp_path / "odd", replace(made(decoder, 5), head={"weight": torch.ones(1)}))
    with pytest.raises(AdapterRefused, match="holds a head"):
        open_chat_adapter(tmp_path / "odd", TOWERS, decoder)


def test_the_fingerprint_covers_every_file_that_speaks(decoder: Decoder, tmp_path: Path) -> None:
    make_tiny_decoder(tmp_path, image_width=8)
    assert Decoder.load(tmp_path).fingerprint == decoder.fingerprint
    for name in ("decoder/config.json", "decoder/tokenizer.json"):
        file = tmp_path / name
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before)))
        assert Decoder.load(tmp_path).fingerprint != decoder.fingerprint, name
        file.write_text(before)


def test_a_card_without_a_decoder_fits_any_and_one_with_fits_its_own() -> None:
    assert BaseRecord("b", "t").fits("t", "d")
    assert BaseRecord("b", "t", "d").fits("t", "d")
    assert not BaseRecord("b", "t", "d").fits("t", "e")
    assert not BaseRecord("b", "t", "d").fits("t", "")
    assert not BaseRecord("b", "u", "d").fits("t", "d")


def test_an_answer_is_read_by_its_words() -> None:
    assert ChatResult("Yes. There is an effusion.").says == "yes"
    assert ChatResult("no").says == "no"
    assert ChatResult("That cannot be told from this picture.").says == "cannot tell"
    assert ChatResult(detokenise(CANNOT_TELL.split())).says == "cannot tell"
    assert ChatResult("Nodules on the left.").says == "something else"
    assert ChatResult(" Right-sided,  upper lobe. ").words == "right sided upper lobe"
