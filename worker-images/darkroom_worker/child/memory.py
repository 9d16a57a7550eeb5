"""What the child reports in the middle of its task, in memory that it shares with the parent.

A message could not do: the child's pipe is for the ends of tasks. The child writes which model it runs, and the time
of the attempt that is no run time: while it holds finished pictures because the object store is away, or makes a proof
run, the run timeout of the job stands still. The parent reads the model when the child has died (`readiness.py`), and
the time before it ends a child whose job is overdue (`registration.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from billiard.sharedctypes import RawArray

SINCE, BEFORE, MODEL = range(3)
"""Since when the clock stands still, the length of earlier pauses, and the number of the model that runs, from 1."""


class ChildMemory:
    """Made by the parent, given to each child. Times are in seconds of the monotonic clock, which processes share."""

    def __init__(self, models: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = tuple(models)
        self._clock = clock
        self._shared: Any = RawArray("d", 3)

    def begin_attempt(self, model: str) -> None:
        """Called by the child before a job runs."""
        self._shared[SINCE] = self._shared[BEFORE] = 0.0
        self._shared[MODEL] = self._models.index(model) + 1 if model in self._models else 0

    def end_attempt(self) -> None:
        """Called by the child when its attempt is over, and by the parent when the child is."""
        self._shared[MODEL] = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Called by the child around what is no run time."""
        self._shared[SINCE] = self._clock()
        try:
            yield
        finally:
            self._shared[BEFORE] += self._clock() - self._shared[SINCE]
            self._shared[SINCE] = 0.0

    @property
    def model(self) -> str | None:
        """The model that runs, or ran when the child died."""
        number = int(self._shared[MODEL])
        return self._models[number - 1] if number else None

    @property
    def paused_s(self) -> float:
        """The length of all pauses of the attempt, one that still lasts included."""
        since = self._shared[SINCE]
        total: float = self._shared[BEFORE] + (self._clock() - since if since else 0.0)
        return total
