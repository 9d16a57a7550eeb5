"""The signals that stop `darkroom up`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ONE_CTRL_C_S = 0.5
"""A program that runs others may forward a Ctrl-C that the terminal also sent to them: signals this close are one."""


class StopRequested(Exception):
    """A signal asked `up` to stop."""


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP request an orderly shutdown; a Ctrl-C after that requests an immediate one.

    `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: float | None = None
        self._hurry = False

    @contextmanager
    def watched(self) -> Iterator[StopSignals]:
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: `up` must outlive its terminal
            before[number] = signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        now = self._clock()
        if self._first is None:
            self._first = now
        elif number == signal.SIGINT and now - self._first >= ONE_CTRL_C_S:
            self._hurry = True

    def check(self) -> None:
        """Raises StopRequested once a signal has arrived."""
        if self._first is not None:
            raise StopRequested

    def hurry(self) -> bool:
        return self._hurry
