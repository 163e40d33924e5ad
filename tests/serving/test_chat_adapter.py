"""Chat adapters in the server: the engine against plain LoRA, neighbours undisturbed, places kept, prompts as in training."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import noise_film, write_checkpoint, write_findings

from adapters.bank import AdapterBank
from adapters.fake import make_fake_chat_adapter
from adapters.files import write_adapter
from adapters.lora import load_weights, remove_lora
from adapters.store import AdapterStore
from foundation.checkpoint import open_checkpoint
from foundation.controls import blank, shuffled
from foundation.decoder import Decoder
from foundation.errors import Overloaded
from foundation.prompt import Turn
from serving.chat_residency import ChatResidency
from serving.chat_work import ChatWork
from serving.config import EngineConfig, ServerConfig
from serving.engine import Engine
from serving.evidence import reliance
from serving.messages import Batch, ChatTurn, Outcome, Request, Sampling
from serving.worker import Worker
from serving.works import Seen
from training.finetuning.chat.stated import FilmReader, open_findings

QUESTION = "is there an effusion?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    backbone = open_checkpoint(write_checkpoint(place / "checkpoint")).backbone
    write_findings(place / "adapters", backbone, "cxr-findings", seed=5)
    decoder = Decoder.load(place / "checkpoint")
    for seed in (1, 2, 3):
        adapter = make_fake_chat_adapter(backbone.fingerprint, decoder, f"chat-{seed}", seed)
        write_adapter(place / "adapters" / f"chat-{seed}", adapter)
    return place


def engine_of(place: Path, **options: Any) -> Engine:
    return Engine.open(EngineConfig(checkpoint=str(place / "checkpoint"), adapters_dir=str(place / "adapters"), **options))


def chat(number: int, adapter: str | None, film: int = 1) -> Request:
    turns = (ChatTurn("user", QUESTION),)
    return Request(number, "chat", adapter, noise_film(film), turns=turns, sampling=Sampling(max_tokens=8))


def finish(engine: Engine) -> list[Outcome]:
    outcomes = []
    while engine.generating:
        outcomes += engine.generate()
    return outcomes


def written(outcomes: list[Outcome], number: int) -> str:
    return "".join(o.value["delta"] for o in outcomes if o.request_id == number and o.value and "delta" in o.value)


def test_chats_through_adapters_and_the_base_side_by_side_equal_plain_lora(place: Path) -> None:
    engine = engine_of(place)
    names: dict[int, str | None] = {1: "chat-1", 2: None, 3: "chat-2", 4: "chat-1"}
    assert engine.run(Batch(tuple(chat(number, name, film=number % 2) for number, name in names.items()))) == []
    outcomes = finish(engine)
    decoder, store = Decoder.load(place / "checkpoint"), AdapterStore(place / "adapters")
    backbone = open_checkpoint(place / "checkpoint").backbone
    reader = FilmReader(backbone, open_findings("cxr-findings", backbone, store))
    texts = {}
    for number, name in names.items():
        film = noise_film(number % 2).pixels
        pictures = reader.see_films([film, blank(film), shuffled(film)])
        seen = pictures[0]
        if name is not None:
            seed = int(name[-1])
            load_weights(decoder.model, make_fake_chat_adapter("", decoder, name, seed).lora)
        alone = decoder.generate([Turn("user", QUESTION)], seen.findings, seen.tokens, Sampling(max_tokens=8))
        prompts = [decoder.prompt_ids([Turn("user", QUESTION)], one.findings, len(one.tokens)) for one in pictures]
        said = list(alone.token_ids)
        scores = [float(decoder.score(ids, said, one.tokens[None])) for ids, one in zip(prompts, pictures, strict=True)]
        remove_lora(decoder.model)
        last = next(o.value for o in outcomes if o.request_id == number and o.is_final)
        texts[number] = written(outcomes, number)
        assert last is not None
        assert texts[number] == alone.text
        assert last["usage"] == {"prompt_tokens": alone.prompt_tokens, "completion_tokens": alone.completion_tokens}
        digest = store.get(name or "cxr-findings").digest
        assert last["provenance"]["adapter"] == digest
        assert last["evidence"]["reliance"] == pytest.approx(reliance(scores[0], scores[1:]), abs=1e-4)
    assert len({texts[2], texts[3], texts[4]}) == 3, "answers that are all alike would pass everything above"


@pytest.mark.parametrize("findings", ["cxr-findings", "none-such"])
def test_training_builds_the_prompt_that_serving_builds(place: Path, findings: str) -> None:
    """Read by a findings adapter, and zero-shot where there is none; for the film, its blank and its shuffle."""
    engine = engine_of(place, findings_adapter=findings)
    request = chat(1, "chat-1", film=3)
    with torch.inference_mode():
        work = ChatWork.of(request, engine._tools, set())
        views = (*work.views, *work.without_views)
        features = engine.looks.at([(request, view) for view in views])
        texts = engine.texts.read([(request, text) for text in work.texts])
        read = torch.stack([texts[text] for text in work.texts])
        served = work.open(Seen(features[: len(work.views)], read))
        pictures = work.pictures(Seen(features, read))
    assert served.picture is not None
    assert served.picture.findings == pictures[0].findings
    backbone = open_checkpoint(place / "checkpoint").backbone
    reader = FilmReader(backbone, open_findings(findings, backbone, AdapterStore(place / "adapters")))
    pixels = noise_film(3).pixels
    trained = reader.see_films([pixels, blank(pixels), shuffled(pixels)])
    decoder = Decoder.load(place / "checkpoint")
    prompts = []
    for picture, film in zip(pictures, trained, strict=True):
        theirs = decoder.prompt_ids(served.turns, picture.findings, len(picture.tokens))
        ours = decoder.prompt_ids((Turn("user", QUESTION),), film.findings, len(film.tokens))
        assert ours == theirs
        torch.testing.assert_close(film.tokens, picture.tokens, atol=1e-5, rtol=1e-5)
        prompts.append(tuple(ours))
    assert len(set(prompts)) > 1, "prompts that never differ could not disagree either"


def test_a_place_in_use_is_kept_and_the_longest_unused_leaves(place: Path) -> None:
    backbone, decoder = open_checkpoint(place / "checkpoint").backbone, Decoder.load(place / "checkpoint")
    two = 2 * AdapterBank.over(decoder.model).bytes_of(make_fake_chat_adapter("", decoder, "any").lora)
    residency = ChatResidency(backbone, decoder, AdapterStore(place / "adapters"), capacity_bytes=two)
    first, second = residency.take("chat-1"), residency.take("chat-2")
    assert residency.take("chat-1") is first
    third = residency.take("chat-3", in_use={first.digest})
    assert third.slot == second.slot
    assert residency.take("chat-1") is first
    with pytest.raises(Overloaded, match="places for chat adapters"):
        residency.take("chat-2", in_use={first.digest, third.digest})


def test_a_chat_under_way_keeps_its_place(place: Path) -> None:
    engine = engine_of(place, chats=1)
    bank = engine._tools.chats.bank
    bank.capacity_bytes = bank.bytes_of(make_fake_chat_adapter("", Decoder.load(place / "checkpoint"), "any").lora)
    assert engine.run(Batch((chat(1, "chat-1"),))) == []
    (refused,) = engine.run(Batch((chat(2, "chat-2"),)))
    assert refused.error_code == "overloaded"
    text = written(finish(engine), 1)
    assert engine.run(Batch((chat(3, "chat-2"),))) == []
    assert written(finish(engine), 3) != text


def test_a_chat_adapter_is_for_chat_alone(place: Path) -> None:
    engine = engine_of(place)
    (outcome,) = engine.run(Batch((Request(1, "classify", "chat-1", noise_film(1)),)))
    assert "adapts the decoder" in outcome.error_message
    (outcome,) = engine.run(Batch((chat(2, "cxr-findings"),)))
    assert "does not chat" in outcome.error_message


def test_the_models_list_shows_chat_adapters_of_this_decoder_alone(place: Path) -> None:
    facts = vars(engine_of(place).facts)

    async def listed(**changes: Any) -> dict[str, tuple[str, ...]]:
        config = ServerConfig(engine=EngineConfig(adapters_dir=str(place / "adapters")))
        link = SimpleNamespace(config=config.engine, facts={**facts, **changes})
        worker = Worker(config, link)  # type: ignore[arg-type]
        return {info.name: tuple(info.capabilities) for info in worker.models() if info.kind == "adapter"}

    assert asyncio.run(listed()) == {f"chat-{n}": ("chat",) for n in (1, 2, 3)} | {"cxr-findings": ("classify",)}
    assert asyncio.run(listed(decoder="another")) == {"cxr-findings": ("classify",)}
