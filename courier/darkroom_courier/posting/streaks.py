"""Streaks: consecutive failures of each receiver, so that the log names the first one and counts the others.

A sink that is unavailable, or a webhook that answers 500, fails each post until it recovers. A streak logs a warning
when it begins and one line when it ends; each failure in between is a line of level debug.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from darkroom.logs import logger

MOST = 10_000
"""The most receivers with a streak. For one more, the oldest streak is dropped, and begins again."""

_log = logger(__name__)


class Streaks:
    """Consecutive failures by receiver. `failed` and `recovered` are the names of the log events."""

    def __init__(self, *, failed: str, recovered: str) -> None:
        self._failed = failed
        self._recovered = recovered
        self._counts: OrderedDict[str, int] = OrderedDict()

    def fail(self, receiver: str, **fields: Any) -> None:
        """Log one failure: a warning for the first one of a streak."""
        count = self._counts.pop(receiver, 0) + 1
        self._counts[receiver] = count
        if len(self._counts) > MOST:
            self._counts.popitem(last=False)
        _log.log(
            logging.WARNING if count == 1 else logging.DEBUG, self._failed, receiver=receiver, in_a_row=count, **fields
        )

    def succeed(self, receiver: str) -> None:
        """End the streak of this receiver, if there is one."""
        count = self._counts.pop(receiver, 0)
        if count:
            _log.info(self._recovered, receiver=receiver, failures=count)
