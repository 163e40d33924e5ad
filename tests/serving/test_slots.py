"""Spans over the slot cache against transformers' own Llama, one sequence at a time."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foundation.decoder import Decoder
from foundation.tiny_decoder import make_tiny_decoder
from serving.slots import SlotDecoder, Span

ROWS = 5


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_tiny_decoder(tmp_path_factory.mktemp("tiny"), 24)


@pytest.fixture(scope="module")
def original(decoder: Decoder) -> Any:
    """transformers' model, before its weights are laid out anew."""
    return copy.deepcopy(decoder.model)


@torch.inference_mode()
def whole(model: Any, ids: list[int]) -> Tensor:
    """After the last norm, of all places: (T, W)."""
    hidden: Tensor = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("seed", range(6))
@torch.inference_mode()
def test_any_mix_of_spans_equals_each_sequence_alone(decoder: Decoder, original: Any, seed: int) -> None:
    """Rows grow by one token or by several, of which none, some or all are wanted."""
    draw = random.Random(seed)
    slots = SlotDecoder(decoder.model, ROWS)
    ids = {row: [draw.randrange(100) for _ in range(40)] for row in range(ROWS)}
    expected = {row: whole(original, ids[row]) for row in ids}
    done = dict.fromkeys(ids, 0)
    seen = set[tuple[bool, bool]]()
    while any(count < 40 for count in done.values()):
        spans = []
        for row in draw.sample(sorted(ids), draw.randint(1, ROWS)):
            length = min(40 - done[row], draw.choice((1, 1, 2, 3, 7)))
            if length:
                spans.append(Span(row, done[row], length, wants=1 if length == 1 else draw.randint(0, length)))
        spans.sort(key=lambda span: span.length > 1)
        if not spans:
            continue
        hidden = slots.run(spans, torch.cat([slots.embed(ids[span.row][span.start : span.end]) for span in spans]))
        wanted = torch.cat([expected[span.row][span.end - span.wants : span.end] for span in spans])
        torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-4)
        for span in spans:
            done[span.row] = span.end
            seen.add((span.length > 1, span.wants == 0))
    assert {(True, False), (False, False)} <= seen


@torch.inference_mode()
def test_the_last_layer_runs_over_wanted_tokens_only(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = SlotDecoder(decoder.model, ROWS)
    rows: list[int] = []
    last = slots._layers[-1]
    speaks = last.speaks
    monkeypatch.setattr(last, "speaks", lambda x, *more: rows.append(len(x)) or speaks(x, *more))
    for wants in (1, 3, 0):
        slots.run([Span(0, 0, 9, wants=wants)], slots.embed(range(9)))
    assert rows == [1, 3]


@torch.inference_mode()
def test_the_model_itself_stays_the_same_and_is_held_once(decoder: Decoder, original: Any) -> None:
    slots = SlotDecoder(decoder.model, ROWS)
    ids = list(range(30))
    torch.testing.assert_close(whole(decoder.model, ids), whole(original, ids), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(decoder.model.parameters(), original.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    held = slots._layers[0]._read[0].untyped_storage().data_ptr()
    assert decoder.model.model.layers[0].self_attn.v_proj.weight.untyped_storage().data_ptr() == held


@torch.inference_mode()
def test_half_precision_is_close(tmp_path: Path, original: Any) -> None:
    decoder = make_tiny_decoder(tmp_path, 24)
    decoder.compute_in(torch.bfloat16)
    slots = SlotDecoder(decoder.model, ROWS)
    assert slots.cache.layers[0].dtype == torch.bfloat16
    hidden = slots.run([Span(2, 0, 12, wants=12)], slots.embed(range(12)))
    expected = whole(original, list(range(12)))
    assert torch.cosine_similarity(hidden.float(), expected).min() > 0.99
