"""Waiting for what happens in another process: a condition, a deadline, a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 60.0
"""Generous: what takes milliseconds may take many seconds on a busy machine."""

POLL_S = 0.02


def eventually(condition: Callable[[], T], *, what: str, deadline_s: float = DEADLINE_S) -> T:
    """The result of `condition`, once it is true. Fails after `deadline_s`, naming `what` was waited for."""
    deadline = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {deadline_s} s for this: {what}")
        time.sleep(POLL_S)
    return answer
