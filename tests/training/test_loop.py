"""The loop: a resumed run equals an uninterrupted one to the bit; the best epoch is kept; odd settings are refused."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from foundation.errors import InvalidRequest
from training.loop import LAST, Loop, LoopReport, ParameterGroup
from training.loop_config import LoopConfig

DATA = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
TRUTH = DATA @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])


class Line:
    """A linear map learnt from batches of four, with noise from every global generator, so that their states matter."""

    def __init__(self, scores: Sequence[float] | None = None) -> None:
        self.scores = scores
        self.validations = 0

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[start : start + 4] for start in range(0, 24, 4)]

    def load(self, draws: Sequence[int]) -> tuple[Tensor, Tensor]:
        return DATA[list(draws)], TRUTH[list(draws)]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, float]]:
        x, y = batch
        noise = torch.randn_like(x) + float(np.random.standard_normal()) + random.gauss(0, 1)
        return ((model(x + 0.1 * noise) - y) ** 2).mean(), {}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        error = float(((model(DATA) - TRUTH) ** 2).mean())
        self.validations += 1
        return {"score": -error if self.scores is None else self.scores[self.validations - 1]}


def make_loop(
    out: Path, trainee: Line | None = None, *, rate: float = 0.05, model: nn.Module | None = None, **changes: object
) -> Loop:
    torch.manual_seed(3)
    model = model or nn.Linear(4, 1)
    settings = {"epochs": 3, "monitor": "score", "cpu": True, "seed": 5, "warmup": 0.2} | changes
    group = ParameterGroup("all", list(model.parameters()), rate)
    return Loop(trainee or Line(), model, [group], LoopConfig(**settings), out, is_quiet=True)


def weights(loop: Loop) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in loop.bare.parameters()])


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "fp32"), (2, "fp32"), (4, "bf16")])
def test_resumed_equals_uninterrupted(tmp_path: Path, accumulate: int, precision: str) -> None:
    options = {"accumulate": accumulate, "precision": precision}
    whole = make_loop(tmp_path / "whole", **options)
    expected = whole.run()
    parts: LoopReport | None = None
    for _ in range(20):  # a fresh process each time, two optimiser steps long
        loop = make_loop(tmp_path / "parts", **options)
        set_seed(999)  # the states must come from the file
        parts = loop.run(resume=True, max_steps=2)
        if parts.is_finished:
            break
    assert parts is not None
    assert parts.is_finished
    assert torch.equal(weights(whole), weights(loop))
    assert parts.steps == expected.steps == 3 * -(-6 // accumulate)
    assert parts.history == expected.history
    assert expected.history[-1]["score"] > expected.history[0]["score"]  # it did learn


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    class Quiet(Line):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, float]]:
            return ((model(batch[0]) - batch[1]) ** 2).mean(), {}

    class Wide(Quiet):
        def plan(self, epoch: int) -> Sequence[Sequence[int]]:
            narrow = super().plan(epoch)
            return [[*narrow[start], *narrow[start + 1]] for start in range(0, len(narrow), 2)]

    small, large = make_loop(tmp_path / "a", Quiet(), accumulate=2), make_loop(tmp_path / "b", Wide())
    small.run()
    large.run()
    torch.testing.assert_close(weights(small), weights(large), atol=1e-6, rtol=0)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, Line(scores=[0.1, 0.9, 0.3, 0.2, 0.95]), epochs=5, patience=2)
    seen: list[Tensor] = []
    close = loop._close_epoch
    loop._close_epoch = lambda: (seen.append(weights(loop).clone()), close())[1]  # type: ignore[method-assign, func-returns-value]
    report = loop.run()
    assert (report.best_epoch, report.best_value, len(report.history)) == (1, 0.9, 4)
    assert torch.equal(weights(loop), seen[1])
    assert not torch.equal(weights(loop), seen[3])


def test_an_epoch_whose_score_is_not_known_is_not_the_best_for_ever(tmp_path: Path) -> None:
    nan = float("nan")
    for scores, expected in (([nan, 0.5, nan], 1), ([nan, nan, nan], 0)):
        report = make_loop(tmp_path / str(expected), Line(scores=scores)).run()
        assert report.best_epoch == expected


def test_the_log_has_every_step(tmp_path: Path) -> None:
    make_loop(tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 19))
    assert sum(line["kind"] == "val" for line in lines) == 3
    assert list((tmp_path / "tensorboard").iterdir())


def test_refusals(tmp_path: Path) -> None:
    make_loop(tmp_path).run(max_steps=1)
    assert {path.suffix for path in (tmp_path / LAST).iterdir()} == {".json", ".safetensors"}
    with pytest.raises(InvalidRequest, match="another recipe: epochs, seed differ"):
        make_loop(tmp_path, epochs=4, seed=6).run(resume=True)
    with pytest.raises(InvalidRequest, match=r"another recipe: learning_rates\.0 differ"):
        make_loop(tmp_path, rate=0.04).run(resume=True)
    with pytest.raises(InvalidRequest, match=r"another model: 4 tensors differ, first '0\.bias'"):
        make_loop(tmp_path, model=nn.Sequential(nn.Linear(4, 1))).run(resume=True)
    with pytest.raises(InvalidRequest, match="was not saved"):
        make_loop(tmp_path / "new").load()
    with pytest.raises(InvalidRequest, match="monitor 'other' is not there"):
        make_loop(tmp_path / "other", monitor="other").run()


def test_the_running_mean_is_what_is_kept(tmp_path: Path) -> None:
    """Against the mean written out step by step; the weights that go on learning are not touched by it."""
    trajectory: list[torch.Tensor] = []

    class Watched(Line):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, float]]:
            trajectory.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone())
            return super().loss(model, batch)

    loop = make_loop(tmp_path / "mean", Watched([1.0, 2.0, 3.0]), average=0.5)
    loop.run()
    plain = make_loop(tmp_path / "plain", Line([1.0, 2.0, 3.0]))
    plain.run()
    trajectory.append(weights(plain))  # with the same seed the learning weights end where they end without a mean
    mean = trajectory[0]
    for step, after in enumerate(trajectory[1:]):
        share = min(0.5, (step + 1) / (step + 10))
        mean = share * mean + (1 - share) * after
    torch.testing.assert_close(weights(loop), mean, atol=1e-5, rtol=0)
    assert not torch.allclose(weights(loop), weights(plain), atol=1e-4)


def test_a_resumed_run_goes_on_with_its_mean(tmp_path: Path) -> None:
    whole = make_loop(tmp_path / "whole", average=0.8)
    whole.run()
    make_loop(tmp_path / "parts", average=0.8).run(max_steps=8)
    parts = make_loop(tmp_path / "parts", average=0.8)
    parts.run(resume=True)
    assert torch.equal(weights(whole), weights(parts))
    with pytest.raises(InvalidRequest, match="average must lie"):
        LoopConfig(epochs=1, average=1.0)


def test_a_group_may_have_a_decay_of_its_own(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    groups = [ParameterGroup("w", [model.weight], 0.1, 0.5), ParameterGroup("b", [model.bias], 0.1)]
    loop = Loop(Line(), model, groups, LoopConfig(epochs=1, cpu=True, weight_decay=0.02), tmp_path, is_quiet=True)
    assert [group["weight_decay"] for group in loop.optimizer.param_groups] == [0.5, 0.02]
