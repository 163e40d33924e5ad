"""The decoder's number format: as asked, or the faster one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foundation.decoder import Decoder
from foundation.tiny_decoder import make_tiny_decoder
from serving import precision
from serving.precision import settle_decoder


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    return make_tiny_decoder(tmp_path, 24)


def dtypes(decoder: Decoder) -> set[torch.dtype]:
    return {parameter.dtype for parameter in decoder.parameters()}


def test_float32_stays(decoder: Decoder) -> None:
    assert settle_decoder(decoder, "float32") == "float32"
    assert dtypes(decoder) == {torch.float32}


def test_bfloat16_converts_all_weights_and_not_the_angles(decoder: Decoder) -> None:
    angles = decoder.model.model.rotary_emb.inv_freq.clone()
    assert settle_decoder(decoder, "bfloat16") == "bfloat16"
    assert dtypes(decoder) == {torch.bfloat16}
    assert torch.equal(decoder.model.model.rotary_emb.inv_freq, angles)
    assert decoder.model.lm_head.weight is decoder.model.get_input_embeddings().weight


@pytest.mark.parametrize(("seconds", "kept"), [((1.0, 0.5), "bfloat16"), ((1.0, 0.95), "float32")])
def test_auto_keeps_the_faster(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], kept: str
) -> None:
    before = [parameter.detach().clone() for parameter in decoder.parameters()]
    measured = iter(seconds)
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(precision, "_prompt_s", lambda decoder: next(measured))
    assert settle_decoder(decoder, "auto") == kept
    assert dtypes(decoder) == {torch.float32 if kept == "float32" else torch.bfloat16}
    if kept == "float32":
        assert all(torch.equal(one, two) for one, two in zip(before, decoder.parameters(), strict=True))


def test_auto_measures_the_decoder_itself(decoder: Decoder) -> None:
    assert settle_decoder(decoder, "auto") in ("float32", "bfloat16")


def test_auto_is_not_measured_without_bfloat16_products(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that lacks them would take minutes over the measurement of a large tower."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: False)
    monkeypatch.setattr(precision, "_prompt_s", lambda decoder: pytest.fail("measured"))
    assert settle_decoder(decoder, "auto") == "float32"
    assert dtypes(decoder) == {torch.float32}


@pytest.mark.parametrize(("has_products", "warnings"), [(True, 0), (False, 1)])
def test_whoever_insists_on_slow_bfloat16_is_warned(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_products: bool, warnings: int
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: has_products)
    assert settle_decoder(decoder, "bfloat16") == "bfloat16"
    assert sum("bfloat16" in record.message for record in caplog.records) == warnings
