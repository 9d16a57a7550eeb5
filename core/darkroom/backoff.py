"""Back-off: how long a caller waits after failures in a row before it tries again.

All parts compute their pauses here: the courier's loops, its posts to the sink and to webhooks, the worker's calls of
Redis and of the object store, the clients of Redis' pub/sub, the restarts of `darkroom up`, and the command line's
connections. Retries inside redis-py are redis-py's own (`ledger/connection.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DOUBLINGS = 64
"""More would overflow a float, and every back-off has reached its longest pause long before."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Pauses that double from `first_s` to `longest_s`, in seconds.

    Up to `jitter` of each pause is added to it at random, so that callers which failed together do not all return at
    the same moment. `dice` is the random number, from 0 to 1; without it one is drawn.
    """

    first_s: float
    longest_s: float
    jitter: float = 0.0

    def after(self, failures: int, *, dice: float | None = None) -> float:
        """The pause after so many failures in a row, 1 or more."""
        return self.within(self.first_s * 2.0 ** min(failures - 1, MAX_DOUBLINGS), dice=dice)

    def within(self, pause_s: float, *, dice: float | None = None) -> float:
        """This pause, held between the first and the longest one.

        Given the time since the first attempt it doubles the pause each time and stores no count.
        """
        return jittered(min(max(pause_s, self.first_s), self.longest_s), share=self.jitter, dice=dice)

    def pauses(self) -> Iterator[float]:
        """The pauses of one series of failures. A success begins a new series."""
        failures = 0
        while True:
            failures += 1
            yield self.after(failures)


def jittered(pause_s: float, *, share: float, dice: float | None = None) -> float:
    """The pause, and up to this share of it in addition."""
    drawn = random.random() if dice is None else dice  # noqa: S311 - no secret
    return pause_s * (1 + share * drawn)
