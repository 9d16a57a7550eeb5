"""Memory that the child shares with the parent, for what it reports in the middle of its task.

The child's pipe carries only the results of tasks. The child writes here which model it runs, and how long the run
timeout of the job is paused: while it holds finished pictures because the object store is unavailable, or runs a
self-test. The parent reads the model when the child has died (`parent/pool.py`), and the pause before it kills a child
whose job is overdue (`parent/supervisor.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from billiard.sharedctypes import RawArray

SINCE, BEFORE, MODEL = range(3)
"""The start of the current pause, the length of earlier pauses, and the number of the running model, from 1."""


class ChildMemory:
    """Created by the parent and passed to each child. Times are in seconds of the monotonic clock, which is shared."""

    def __init__(self, models: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = tuple(models)
        self._clock = clock
        self._shared: Any = RawArray("d", 3)

    def begin_attempt(self, model: str) -> None:
        """Called by the child before a job runs."""
        self._shared[SINCE] = self._shared[BEFORE] = 0.0
        self._shared[MODEL] = self._models.index(model) + 1 if model in self._models else 0

    def end_attempt(self) -> None:
        """Called by the child when its attempt is over, and by the parent when the child has exited."""
        self._shared[MODEL] = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the run timeout. Called by the child."""
        self._shared[SINCE] = self._clock()
        try:
            yield
        finally:
            self._shared[BEFORE] += self._clock() - self._shared[SINCE]
            self._shared[SINCE] = 0.0

    @property
    def model(self) -> str | None:
        """The running model, or the one that ran when the child died."""
        number = int(self._shared[MODEL])
        return self._models[number - 1] if number else None

    @property
    def paused_s(self) -> float:
        """The length of all pauses of the attempt, including the current one."""
        since = self._shared[SINCE]
        total: float = self._shared[BEFORE] + (self._clock() - since if since else 0.0)
        return total
