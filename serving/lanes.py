"""Lanes: threads that each run one batch's forward beside the others', one core each, while the loop's thread goes on.

    loop    prepare 1   prepare 2   ............   finish 1, prepare 3   finish 2 ...
    lane    [-------- forward 1 --------]          [------ forward 3 ------]
    lane                [-------- forward 2 --------]

On a processor a batch over all cores waits at every operation for its slowest core; batches of one core each wait for
nothing, whatever else runs on the machine. NOTE: a lane never runs an operation on more than one thread, because a second
team of threads in one process slows the first.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

JobT = TypeVar("JobT")


class Lanes(Generic[JobT]):
    """compute: what runs in a lane; raises nothing. done: told, in the lane's thread, that a job is over."""

    def __init__(self, count: int, compute: Callable[[JobT], None], done: Callable[[JobT], None]) -> None:
        self.count = count
        self._compute, self._done = compute, done
        self._jobs: queue.SimpleQueue[JobT] = queue.SimpleQueue()
        self._busy = 0
        self._changed = threading.Condition()
        for number in range(count):
            threading.Thread(target=self._work, daemon=True, name=f"lane-{number}").start()

    @property
    def free(self) -> int:
        """How many more jobs would run at once."""
        return self.count - self._busy

    @property
    def busy(self) -> int:
        return self._busy

    def submit(self, job: JobT) -> None:
        """By the loop's thread alone."""
        with self._changed:
            self._busy += 1
        self._jobs.put(job)

    def wait_idle(self) -> None:
        """Until no job runs: what follows has the model to itself, since only the caller's thread could submit another."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0)

    def _work(self) -> None:
        use_threads(1)
        while True:
            job = self._jobs.get()
            self._compute(job)
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
            self._done(job)


def use_threads(count: int) -> None:
    """How many threads torch's operations use in this thread from here on."""
    import torch

    torch.get_num_threads()  # NOTE: sets a new thread up; without it the first operation would undo the next line
    torch.set_num_threads(count)
