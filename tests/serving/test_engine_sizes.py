"""An adapter that reads films at further sizes and mirrored, in mixed batches of the engine, equals the model called alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.card import AdapterCard, BaseRecord
from adapters.fake import make_fake_adapter
from adapters.files import Adapter, write_adapter
from adapters.tasks.classification import ClassificationHead
from foundation.checkpoint import open_checkpoint
from foundation.phantom import make_phantom
from serving.config import EngineConfig
from serving.engine import Engine
from serving.messages import Batch, ChatTurn, Film, Request, Sampling
from training.finetuning.chat.stated import FilmReader
from training.measuring.classified import classified
from training.measuring.scoring import Running

SIZES = (160, 96)
LABELS = ("effusion", "mass", "nodule")
CHECKPOINT = open_checkpoint("bundled")


def film(seed: int) -> Film:
    shown = make_phantom(seed, CHECKPOINT.backbone.contract.size).film
    return Film(np.repeat(shown[..., None], 3, axis=2), digest=f"{seed:064x}")


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    backbone = CHECKPOINT.backbone
    size = backbone.contract.size
    with torch.inference_mode():
        widths = [level.shape[1] for level in backbone.encode_image(torch.zeros(1, 3, size, size)).levels]
    torch.manual_seed(3)
    head = ClassificationHead(len(LABELS), backbone.embed_dim, backbone.width, widths, ("mean",), sizes=SIZES, is_mirrored=True)
    assert head.levels is not None
    torch.nn.init.normal_(head.levels.linear.weight, std=0.3)
    fake = make_fake_adapter(backbone, "sized", LABELS, first_block=3)
    card = AdapterCard("sized", "classification", LABELS, BaseRecord("base", backbone.fingerprint), 1, head=head.options)
    return replace(fake, card=card, head=head.state_dict())


@pytest.fixture(scope="module")
def engine(adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    store: Path = tmp_path_factory.mktemp("store")
    write_adapter(store / "sized", adapter)
    return Engine.open(EngineConfig(adapters_dir=str(store), findings_adapter="sized", precision="float32"))


def test_mixed_batches_equal_the_adapter_alone(engine: Engine, adapter: Adapter) -> None:
    films = [film(seed) for seed in (1, 2, 3)]
    expected = [
        one.probabilities for one in classified(CHECKPOINT.backbone, adapter, [each.pixels for each in films], Running())
    ]
    spread = np.ptp(np.stack(expected), axis=0).max()
    assert spread > 0.02  # the films are told apart, so that equality says something
    for order in ((0, 1, 2), (2, 0, 1)):  # the second time from the cache
        requests = [Request(n, "classify", adapter="sized", film=films[n], options={}) for n in order]
        requests.append(Request(9, "embed_image", film=films[0]))
        outcomes = {one.request_id: one for one in engine.run(Batch(tuple(requests)))}
        for n in order:
            value = outcomes[n].value
            assert value is not None, outcomes[n].error_message
            if value["assessed"]:
                np.testing.assert_allclose(value["probabilities"], expected[n], atol=1e-4)
        assert any(outcomes[n].value["assessed"] for n in order)  # type: ignore[index]


def test_a_chat_states_the_findings_that_training_states(engine: Engine, adapter: Adapter) -> None:
    shown = film(1)
    reader = FilmReader(open_checkpoint("bundled").backbone, adapter)
    try:
        (told,) = reader.see_films([shown.pixels])
    finally:
        reader.close()
    asked = Request(1, "chat", film=shown, turns=(ChatTurn("user", "Is there an effusion?"),), sampling=Sampling(max_tokens=2))
    last = list(engine.answer(asked))[-1].value
    assert last is not None
    served = {one["label"]: one["probability"] for one in last["evidence"]["findings"]}
    assert served == pytest.approx({one.name: one.probability for one in told.findings}, abs=1e-4)
