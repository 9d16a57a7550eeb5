"""A race of coroutines: a socket, a stream or a wait is over for the first of several reasons."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*ways: Coroutine[Any, Any, object], timeout_s: float | None = None) -> int | None:
    """Run all until one has finished, cancel the others, and raise what that one raised.

    Returns its index, or None where the time was over before.
    """
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure
    return next((index for index, task in enumerate(tasks) if task in done), None)
