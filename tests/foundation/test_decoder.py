"""The decoder: streaming equals a slow truth, the folder opens elsewhere, and impossible questions are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foundation.decoder import Decoder
from foundation.errors import InvalidRequest
from foundation.prompt import FindingState, Turn
from foundation.sampling import Sampling
from foundation.text_writer import Completion
from foundation.tiny_decoder import make_tiny_decoder

ASKED = [Turn("user", "Is there an effusion?")]
STATED = [FindingState("effusion", 0.83, True, "right")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_decoder(folder, image_width=8)
    return folder


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder.load(folder)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def slow_greedy(decoder: Decoder, ids: list[int], picture: torch.Tensor | None, count: int) -> list[int]:
    """Every token from a whole forward pass without a cache."""
    said: list[int] = []
    silent = list(decoder.tokenizer.silent_ids)
    while len(said) < count and decoder.end_id not in said:
        embedded = decoder.embed(ids + said, picture)
        logits = decoder.model(inputs_embeds=embedded, use_cache=False).logits[0, -1]
        logits[silent] = float("-inf")
        said.append(int(logits.argmax()))
    return said


def test_cached_generation_equals_the_slow_one(decoder: Decoder, picture: torch.Tensor) -> None:
    ids = decoder.prompt_ids(ASKED, STATED, 4)
    completion = decoder.generate(ASKED, STATED, picture, Sampling(max_tokens=12))
    with torch.inference_mode():
        assert list(completion.token_ids) == slow_greedy(decoder, ids, picture, 12)
    assert completion.prompt_tokens == len(ids)
    assert completion.completion_tokens == len(completion.token_ids)
    assert completion.finish_reason == ("stop" if completion.token_ids[-1] == decoder.end_id else "length")


def test_pieces_join_to_the_whole_text(decoder: Decoder, picture: torch.Tensor) -> None:
    items = list(decoder.stream(ASKED, STATED, picture, Sampling(max_tokens=12)))
    completion = items[-1]
    assert isinstance(completion, Completion)
    assert "".join(item for item in items if isinstance(item, str)) == completion.text
    assert completion.text


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(decoder: Decoder, picture: torch.Tensor) -> None:
    whole = decoder.generate(ASKED, STATED, picture, Sampling(max_tokens=12)).text
    stop = whole[4:7]
    stopped = decoder.generate(ASKED, STATED, picture, Sampling(max_tokens=12, stop=(stop,)))
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_the_picture_and_the_findings_both_reach_the_answer(decoder: Decoder, picture: torch.Tensor) -> None:
    ids = decoder.prompt_ids(ASKED, STATED, 4)
    other = decoder.prompt_ids(ASKED, [FindingState("effusion", 0.02, False)], 4)
    with torch.inference_mode():
        first = decoder.model(inputs_embeds=decoder.embed(ids, picture)).logits[0, -1]
        blank = decoder.model(inputs_embeds=decoder.embed(ids, picture * 0)).logits[0, -1]
        absent = decoder.model(inputs_embeds=decoder.embed(other, picture)).logits[0, -1]
    assert (first - blank).abs().max() > 1e-3
    assert (first - absent).abs().max() > 1e-3


def test_scores_are_those_of_each_picture_alone(decoder: Decoder, picture: torch.Tensor) -> None:
    ids = decoder.prompt_ids(ASKED, STATED, 4)
    answer = [*decoder.tokenizer.encode_plain("yes there is"), decoder.end_id]
    pictures = torch.stack([picture, torch.zeros_like(picture), picture.flip(0)])
    together = decoder.score(ids, answer, pictures)
    alone = torch.cat([decoder.score(ids, answer, one[None]) for one in pictures])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert len({round(float(value), 4) for value in together}) == 3
    with torch.inference_mode():
        logits = decoder.model(inputs_embeds=decoder.embed(ids + answer, picture)).logits[0].log_softmax(-1)
    expected = sum(float(logits[len(ids) - 1 + place, token]) for place, token in enumerate(answer)) / len(answer)
    assert float(together[0]) == pytest.approx(expected, abs=1e-4)


def test_old_turns_make_room_and_an_endless_question_is_refused(decoder: Decoder) -> None:
    long = [Turn("user", "is there a mass ? " * 30), Turn("assistant", "no . " * 60)] * 4
    ids = decoder.prompt_ids([*long, *ASKED], STATED, 4, reserve=64)
    assert len(ids) + 64 <= decoder.context
    assert decoder.tokenizer.tokens(ids)[-1] == "<assistant>"
    with pytest.raises(InvalidRequest, match="too long"):
        decoder.prompt_ids([Turn("user", "mass " * 2000)], STATED, 4)


def test_the_wrong_number_of_patch_tokens_is_an_error(decoder: Decoder, picture: torch.Tensor) -> None:
    with pytest.raises(InvalidRequest, match="room for 3"):
        decoder.embed(decoder.prompt_ids(ASKED, STATED, 3), picture)


def test_plain_transformers_opens_the_language_model(folder: Path, decoder: Decoder) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, told = AutoModelForCausalLM.from_pretrained(str(folder / "decoder"), output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids = decoder.prompt_ids(ASKED, None, 0)
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "decoder"))
    assert tokenizer(decoder.tokenizer.text(ids))["input_ids"] == ids
    with torch.inference_mode():
        theirs = model(torch.tensor([ids])).logits
        torch.testing.assert_close(theirs, decoder.model(torch.tensor([ids])).logits, atol=1e-5, rtol=0)


def test_saved_in_half_precision_it_says_the_same(folder: Path, tmp_path: Path, decoder: Decoder) -> None:
    decoder.save(tmp_path)
    assert load_file(tmp_path / "decoder/model.safetensors")["model.norm.weight"].dtype == torch.float16
    again = Decoder.load(tmp_path)
    for name, tensor in decoder.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=2e-3, rtol=1e-3)
