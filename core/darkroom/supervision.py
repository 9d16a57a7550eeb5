"""Supervision: vital tasks. When one of them ends, the process ends as well, and is restarted from outside.

`darkroom up` and Kubernetes restart processes, but do not see that a task inside has stopped. So its end is logged and
raises SIGTERM in the process, whose exit status is then `exit_status()`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from darkroom.logs import logger

FAILED = 70
"""The exit status of a process that ends because a task or a thread ended: EX_SOFTWARE of sysexits.h."""

_ended: list[str] = []
_log = logger(__name__)


def vital(work: Coroutine[Any, Any, None], *, name: str, may_end: Callable[[], bool]) -> asyncio.Task[None]:
    """Run a task whose end, for whatever reason, ends the process. `may_end` is true once the process stops anyway."""
    task = asyncio.create_task(work, name=name)

    def note(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if not may_end():
            _log.critical("task_ended", task=name, exc_info=error)
            _ended.append(name)
            signal.raise_signal(signal.SIGTERM)

    task.add_done_callback(note)
    return task


async def run_vital(work: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Run vital tasks, by name, until cancelled or until one of them ends; then the others are cancelled.

    A `TaskGroup` would continue without a task that was cancelled.
    """
    ending = asyncio.Event()
    tasks = [vital(each, name=name, may_end=ending.is_set) for name, each in work.items()]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.set()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def exit_status() -> int:
    """0, or FAILED where a vital task has ended."""
    return FAILED if _ended else 0
