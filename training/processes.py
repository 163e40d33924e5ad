"""Several processes of one fine-tuning (torchrun, accelerate launch): who writes, and who waits.

Each process computes the same but for its share of the batches; files are written by the first alone. With one process,
which is the rule, nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


def are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(cpu: bool) -> None:
    """Meet the other processes; on the CPU where that is asked for, whatever the machine has."""
    if are_several():
        PartialState(cpu=on_cpu(cpu))


def on_cpu(cpu: bool) -> bool:
    """What accelerate has to be told: unless asked for the CPU, it takes several processes without a GPU for strangers."""
    return cpu or (are_several() and not torch.cuda.is_available())


def is_main() -> bool:
    return not are_several() or bool(PartialState().is_main_process)


def wait() -> None:
    """Until every process has come as far as this."""
    if are_several():
        PartialState().wait_for_everyone()


@contextmanager
def main_first() -> Iterator[None]:
    """The first process runs the block, then the others, who find what it left."""
    if not is_main():
        wait()
    try:
        yield
    finally:
        if is_main():
            wait()
