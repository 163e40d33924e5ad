"""Run by torchrun in test_processes.py: a line learnt in batches of BATCH; process 0 writes its weights to OUT.

two_processes.py OUT BATCH
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.loop import Loop, ParameterGroup
from training.loop_config import LoopConfig

FILMS, EPOCHS = 24, 3
DATA = torch.randn(FILMS, 4, generator=torch.Generator().manual_seed(0))
TRUTH = DATA @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])


class Line:
    """See `loop.Trainee`."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def plan(self, epoch: int) -> Sequence[Sequence[int]]:
        order = torch.randperm(FILMS, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[start : start + self.batch] for start in range(0, FILMS, self.batch)]

    def load(self, draws: Sequence[int]) -> tuple[Tensor, Tensor]:
        return DATA[list(draws)], TRUTH[list(draws)]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, float]]:
        x, y = batch
        return ((model(x) - y) ** 2).mean(), {}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        return {"score": -float(((model(DATA) - TRUTH) ** 2).mean())}


def main(out: Path, batch: int) -> None:
    torch.manual_seed(3)
    model = nn.Linear(4, 1)
    config = LoopConfig(EPOCHS, "score", accumulate=1, warmup=0.2, average=0.5, seed=5, cpu=True)
    group = ParameterGroup("all", list(model.parameters()), 0.05)
    loop = Loop(Line(batch), model, [group], config, out / "loop", is_quiet=True)
    report = loop.run()
    learnt = {name: tensor.detach().clone() for name, tensor in loop.bare.named_parameters()}
    learnt |= {"steps": torch.tensor(report.steps), "processes": torch.tensor(loop.accelerator.num_processes)}
    learnt["best"] = torch.tensor(report.best_value, dtype=torch.float64)
    save_file(learnt, out / f"{loop.accelerator.process_index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
