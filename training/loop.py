"""The one training loop, on accelerate: it knows optimisers, precision, saving and stopping, but not what is trained.

    Trainee                 plan(epoch) -> micro-batches of draws;  load(draws) -> batch
      |                     loss(model, batch) -> loss, numbers;    validate(model) -> numbers
      v
    Loop.run()              OUT/last/        everything needed to go on, to the same numbers (`resume.py`)
                            OUT/best.safetensors   the trainable tensors of the best epoch
                            OUT/log.jsonl, OUT/tensorboard/          (`run_log.py`)

A plan is a pure function of the epoch and every draw carries its own seed, so the position in the plan is the
whole state of the data: a run resumed in the middle of an epoch sees what the uninterrupted run saw. Several processes
(accelerate launch) take every n-th micro-batch.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from foundation.device import autocast_bf16
from foundation.errors import InvalidRequest
from training import resume as state
from training.loop_config import LoopConfig
from training.processes import on_cpu
from training.random_state import random_tensors, restore_random
from training.run_log import RunLog
from training.trainable import load_trainable, trainable_tensors

LAST = "last"
BEST = "best.safetensors"


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate, and a weight decay where it is not the run's."""

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float | None = None


class Trainee(Protocol):
    """What is trained, seen from the loop."""

    def plan(self, epoch: int) -> Sequence[Sequence[Any]]: ...

    def load(self, draws: Sequence[Any]) -> Any: ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, float]]: ...

    def validate(self, model: nn.Module) -> Mapping[str, float]: ...


@dataclass
class Progressed:
    """Where the run stands; saved and restored as it is."""

    epoch: int = 0
    position: int = 0  # optimiser steps done in this epoch
    step: int = 0  # optimiser steps done in all
    best_epoch: int = -1
    best_value: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class LoopReport:
    """How the run ended. `history` holds one entry per validated epoch."""

    best_epoch: int
    best_value: float
    steps: int
    seconds: float
    is_finished: bool
    history: tuple[Mapping[str, float], ...]


class Loop:
    def __init__(
        self,
        trainee: Trainee,
        model: nn.Module,
        groups: Sequence[ParameterGroup],
        config: LoopConfig,
        out: Path,
        *,
        is_quiet: bool = False,
    ) -> None:
        self.trainee, self.config, self.out = trainee, config, out
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(cpu=on_cpu(config.cpu))
        optimizer = torch.optim.AdamW(
            [
                {"params": list(g.parameters), "lr": g.learning_rate, "peak": g.learning_rate}
                | ({} if g.weight_decay is None else {"weight_decay": g.weight_decay})
                for g in groups
            ],
            weight_decay=config.weight_decay,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.bare: nn.Module = self.accelerator.unwrap_model(self.model)
        self._mean = trainable_tensors(self.bare) if config.average else {}
        self.at = Progressed()
        self.steps_per_epoch = self._steps_in(self._plan(0))
        self.is_quiet = is_quiet or not self.accelerator.is_main_process
        self._writer = RunLog(out) if self.accelerator.is_main_process else None

    def run(self, *, resume: bool = False, max_steps: int | None = None) -> LoopReport:
        """Train to the end, or for `max_steps` more optimiser steps; leaves the best weights in the model when done."""
        if resume and state.read_place(self.out / LAST) is not None:
            self.load()
        else:
            set_seed(self.config.seed)
        stop_at = None if max_steps is None else self.at.step + max_steps
        with self._progress() as (bar, task):
            while self.at.epoch < self.config.epochs and not self._is_out_of_patience():
                for numbers in self._train_epoch(stop_at):
                    bar.update(task, completed=self.at.step, description=_describe(self.at.epoch, numbers))
                if stop_at is not None and self.at.step >= stop_at:
                    self.save()
                    return self._report(is_finished=False)
                self._close_epoch()
        if (self.out / BEST).is_file():
            load_trainable(self.bare, load_file(self.out / BEST))
        if self._writer is not None:
            self._writer.close()
        return self._report(is_finished=True)

    def save(self) -> None:
        """Write everything the run needs to go on, all or nothing."""
        if not self.accelerator.is_main_process:
            return
        state.save_state(
            self.out / LAST,
            self._recipe(),
            {"at": asdict(self.at), "python": random.getstate()},
            {
                "model": trainable_tensors(self.bare),
                "optimizer": state.optimizer_tensors(self.optimizer, dict(self.bare.named_parameters())),
                "random": random_tensors(),
            }
            | ({"mean": self._mean} if self._mean else {}),
        )

    def load(self) -> None:
        """Go on from the folder `last`; refused where the configuration or the model is another."""
        folder = self.out / LAST
        place = state.read_place(folder)
        if place is None:
            raise InvalidRequest(f"The run in {self.out.name!r} was not saved; start it without resuming.", param="resume")
        state.check_recipe(folder, place["recipe"], self._recipe())
        model = state.read_part(folder, "model")
        state.check_names(folder, model, trainable_tensors(self.bare))
        load_trainable(self.bare, model)
        parameters = dict(self.bare.named_parameters())
        state.load_optimizer(self.optimizer, parameters, state.read_part(folder, "optimizer"))
        if self._mean:
            self._mean = state.read_part(folder, "mean")
        self.at = Progressed(**place["at"])
        restore_random(state.read_part(folder, "random"), place["python"])

    def _recipe(self) -> dict[str, Any]:
        """What a resumed run must share with the one that was stopped."""
        rates = {str(number): group["peak"] for number, group in enumerate(self.optimizer.param_groups)}
        return {**asdict(self.config), "learning_rates": rates}

    def _train_epoch(self, stop_at: int | None) -> Iterator[Mapping[str, float]]:
        """The rest of the current epoch, one optimiser step at a time."""
        started = time.monotonic()
        self.model.train()
        size = self.config.accumulate
        batches = iter(self._batches(self._plan(self.at.epoch)[self.at.position * size :]))
        while chunk := [batch for _, batch in zip(range(size), batches, strict=False)]:
            numbers = self._step(chunk)
            self.at.position += 1
            self.at.step += 1
            self.at.seconds += time.monotonic() - started
            started = time.monotonic()
            if self._writer is not None:
                self._writer.write("train", self.at.step, numbers)
            if self.config.save_every_steps and self.at.step % self.config.save_every_steps == 0:
                self.save()
            yield numbers
            if stop_at is not None and self.at.step >= stop_at:
                return

    def _step(self, chunk: Sequence[Any]) -> dict[str, float]:
        rate = self.config.rate_at(self.at.step, self.config.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        totals: dict[str, float] = {}
        for index, batch in enumerate(chunk):
            is_last = index == len(chunk) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                with self._autocast():
                    loss, numbers = self.trainee.loss(self.model, _to_device(batch, self.accelerator.device))
                self.accelerator.backward(loss / len(chunk))
            for name, value in {"loss": float(loss.detach()), **numbers}.items():
                totals[name] = totals.get(name, 0.0) + value / len(chunk)
        if not math.isfinite(totals["loss"]):
            raise InvalidRequest(f"The loss became {totals['loss']} at step {self.at.step}; lower the learning rates.")
        norm = self.accelerator.clip_grad_norm_(self.bare.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._mean:
            share = min(self.config.average, (self.at.step + 1) / (self.at.step + 10))  # the first steps soon forgotten
            for name, tensor in trainable_tensors(self.bare).items():
                mean = self._mean[name]
                self._mean[name] = mean.lerp(tensor, 1 - share) if mean.is_floating_point() else tensor
        return {**totals, "gradient_norm": float(norm or 0.0), "rate": rate}

    def _close_epoch(self) -> None:
        started = time.monotonic()
        own = trainable_tensors(self.bare) if self._mean else {}
        load_trainable(self.bare, self._mean)
        self.model.eval()
        with torch.inference_mode():
            numbers = dict(self.trainee.validate(self.bare))
        if self.config.monitor not in numbers:
            raise InvalidRequest(f"Validation gives {', '.join(numbers)}; monitor {self.config.monitor!r} is not there.")
        value, best = numbers[self.config.monitor], self.at.best_value
        is_known = not math.isnan(value)
        if best is None or (is_known and math.isnan(best)) or (value > best if self.config.is_higher_better else value < best):
            self.at.best_value, self.at.best_epoch = value, self.at.epoch
            if self.accelerator.is_main_process:
                save_file(trainable_tensors(self.bare), self.out / BEST)
        load_trainable(self.bare, own)
        self.at.history.append({"epoch": float(self.at.epoch), **numbers})
        if self._writer is not None:
            self._writer.write("val", self.at.step, numbers)
        self.at.epoch, self.at.position = self.at.epoch + 1, 0
        self.at.seconds += time.monotonic() - started
        self.save()
        self.accelerator.wait_for_everyone()  # no process reads what the main one has not written yet

    def _is_out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.at.epoch > 0 and self.at.epoch - 1 - self.at.best_epoch >= patience

    def _plan(self, epoch: int) -> Sequence[Sequence[Any]]:
        plan, world = self.trainee.plan(epoch), self.accelerator.num_processes
        whole = len(plan) // world * world
        if not whole:
            raise InvalidRequest(f"An epoch has {len(plan)} batches for {world} processes; lower the batch size.")
        return plan[self.accelerator.process_index : whole : world]

    def _steps_in(self, plan: Sequence[Any]) -> int:
        return math.ceil(len(plan) / self.config.accumulate)

    def _batches(self, plan: Sequence[Sequence[Any]]) -> DataLoader[Any]:
        # NOTE: batch_size=None makes each element of the plan one call of `load`. Without a generator of its own the
        # DataLoader would draw from the global one, and a resumed run would see other random numbers.
        return DataLoader(
            _Draws(self.trainee),
            batch_size=None,
            sampler=list(plan),
            num_workers=self.config.workers,
            generator=torch.Generator().manual_seed(self.config.seed),
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast_bf16(self.accelerator.device, wanted=self.config.precision == "bf16")

    @contextlib.contextmanager
    def _progress(self) -> Iterator[tuple[Progress, Any]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(file=sys.stderr), disable=self.is_quiet) as bar:
            total = self.config.epochs * self.steps_per_epoch
            yield bar, bar.add_task("training", total=total, completed=self.at.step)

    def _report(self, *, is_finished: bool) -> LoopReport:
        at = self.at
        value = float("nan") if at.best_value is None else at.best_value
        return LoopReport(at.best_epoch, value, at.step, at.seconds, is_finished, tuple(at.history))


class _Draws(Dataset[Any]):
    """Lets a DataLoader call the trainee's `load` with one element of the plan."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee

    def __getitem__(self, draws: Any) -> Any:
        return self.trainee.load(draws)


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch


def _describe(epoch: int, numbers: Mapping[str, float]) -> str:
    return f"epoch {epoch + 1}  loss {numbers['loss']:.4f}"
