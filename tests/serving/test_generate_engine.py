"""Anyone's transformers folder behind the chat route: its own `generate` is the truth; and what is refused of a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_folder import SIDE, write_chat_folder
from PIL import Image

from foundation.chat_folder import ChatFolder, is_chat_folder, open_chat_folder, scrubbed
from foundation.errors import CheckpointNotFound, CheckpointRefused
from serving.config import EngineConfig
from serving.engine_process import open_engine
from serving.generate_engine import GenerateEngine, without_controls
from serving.messages import Batch, ChatTurn, Film, Outcome, Request, Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_folder(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> ChatFolder:
    return open_chat_folder(folder)


@pytest.fixture
def engine(opened: ChatFolder) -> GenerateEngine:
    return GenerateEngine(opened, EngineConfig(checkpoint=str(opened.folder)))


def film(seed: int) -> Film:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Film(pixels, digest=f"{seed:064x}")


def chat(number: int, *, seed: int = 1, text: str = "is there an effusion ?", **sampling: Any) -> Request:
    options = Sampling(**{"max_tokens": 12, **sampling})
    return Request(number, "chat", film=film(seed), turns=(ChatTurn("user", text),), sampling=options)


def finish(engine: GenerateEngine) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while engine.generating:
        outcomes += engine.generate()
    return outcomes


def text_of(outcomes: list[Outcome], number: int) -> str:
    return "".join(one.value.get("delta", "") for one in outcomes if one.request_id == number and one.value)


def by_hand(opened: ChatFolder, request: Request) -> tuple[str, int, int]:
    """Text, prompt tokens, new tokens: transformers called as its own documentation does."""
    assert request.film is not None
    prompt = f"[BOS] <image> <user> {request.turns[0].text} <assistant>"
    inputs = opened.processor(images=Image.fromarray(request.film.pixels), text=prompt, return_tensors="pt")
    with torch.no_grad():
        made = opened.model.generate(**inputs, do_sample=False, max_new_tokens=request.sampling.max_tokens)
    count = inputs["input_ids"].shape[1]
    ids = made[0, count:]
    return opened.processor.tokenizer.decode(ids, skip_special_tokens=True), count, len(ids)


def test_answers_equal_transformers_own(engine: GenerateEngine, opened: ChatFolder) -> None:
    requests = [chat(1), chat(2, seed=2, text="where ?"), chat(3, seed=3, max_tokens=3)]
    assert engine.run(Batch(tuple(requests))) == []
    outcomes = finish(engine)
    texts = set()
    for request in requests:
        text, prompt_tokens, new_tokens = by_hand(opened, request)
        (last,) = [one.value for one in outcomes if one.request_id == request.id and one.is_final]
        assert last is not None
        assert text_of(outcomes, request.id) == text
        assert last["usage"] == {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens}
        assert last["finish_reason"] == "length"
        assert last["evidence"] is None
        assert last["provenance"]["model"] == opened.fingerprint
        texts.add(text)
    assert len(texts) == len(requests)  # films and questions matter


def test_seeds_and_stop_strings(engine: GenerateEngine) -> None:
    requests = [
        Request(number, "chat", film=film(1), turns=(ChatTurn("user", "where ?"),), sampling=sampling)
        for number, sampling in enumerate(
            (Sampling(12, 1.5, 0.9, 5), Sampling(12, 1.5, 0.9, 5), Sampling(12, 1.5, 0.9, 6), Sampling(12)), start=1
        )
    ]
    engine.run(Batch(tuple(requests)))
    outcomes = finish(engine)
    assert text_of(outcomes, 1) == text_of(outcomes, 2) != text_of(outcomes, 3)
    greedy = text_of(outcomes, 4)
    stop = greedy[len(greedy) // 2 :][:3]
    engine.run(
        Batch((Request(5, "chat", film=film(1), turns=(ChatTurn("user", "where ?"),), sampling=Sampling(12, stop=(stop,))),))
    )
    outcomes = finish(engine)
    assert text_of(outcomes, 5) == greedy[: greedy.index(stop)]
    assert outcomes[-1].value is not None
    assert outcomes[-1].value["finish_reason"] == "stop"


def test_a_cancelled_answer_ends_and_the_next_is_written(engine: GenerateEngine, opened: ChatFolder) -> None:
    engine.run(Batch((chat(1, max_tokens=200), chat(2), chat(3))))
    engine.generate()
    assert engine.cancel(1)
    assert engine.cancel(3)
    assert not engine.cancel(1)
    outcomes = finish(engine)
    assert {one.request_id for one in outcomes} == {2}
    assert text_of(outcomes, 2) == by_hand(opened, chat(2))[0]


def test_what_it_can_not_do_is_refused_by_name(engine: GenerateEngine) -> None:
    outcomes = engine.run(Batch((Request(1, "embed_image", film=film(1)), chat(2, logprobs=True))))
    assert [one.error_code for one in outcomes] == ["invalid_request", "invalid_request"]
    assert "only chat" in outcomes[0].error_message
    assert "logprobs" in outcomes[1].error_message
    assert engine.generating == 0


def test_a_persons_words_are_never_control_tokens(engine: GenerateEngine) -> None:
    assert without_controls("say <image> [EOS]", {"<image>", "[EOS]"}) == "say < image> [ EOS]"
    engine.run(Batch((chat(1, text="<image> <image> ?"), chat(2))))
    assert not any(one.is_error for one in finish(engine))


def test_the_process_opens_whichever_engine_the_folder_is_for(folder: Path) -> None:
    engine = open_engine(EngineConfig(checkpoint=str(folder)))
    assert isinstance(engine, GenerateEngine)
    engine.check()
    assert engine.facts.can_chat
    assert not engine.facts.can_embed
    assert engine.facts.contract["size"] == SIDE
    assert not is_chat_folder(folder.parent)


def _pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _code(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("print('run')")


def _foreign_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}')


def _unknown_type(folder: Path) -> None:
    _edit(folder, lambda config: config.update(model_type="evil", auto_map={"AutoConfig": "evil.Config"}))


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])


def _another_shape(folder: Path) -> None:
    _edit(folder, lambda config: config["text_config"].update(num_hidden_layers=3))


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("spoil", [_pickled, _code, _foreign_adapter, _unknown_type, _no_weights, _another_shape, _no_template])
def test_a_bad_folder_is_refused(folder: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    shutil.copytree(folder, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(CheckpointRefused):
        open_chat_folder(tmp_path / "spoilt")


def test_an_empty_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound):
        open_chat_folder(tmp_path)


def test_keys_that_run_code_never_reach_transformers(folder: Path, tmp_path: Path, opened: ChatFolder) -> None:
    bad = {"_attn_implementation_internal": "someone/kernel", "auto_map": {"AutoConfig": "evil.Config"}}
    shutil.copytree(folder, tmp_path / "crafted")
    _edit(tmp_path / "crafted", lambda config: (config.update(bad), config["text_config"].update(bad)))
    config = open_chat_folder(tmp_path / "crafted").model.config
    assert config._attn_implementation == opened.model.config._attn_implementation != "someone/kernel"
    assert "auto_map" not in config.to_dict()
    assert scrubbed({"a": [bad, 1]}) == {"a": [{}, 1]}
