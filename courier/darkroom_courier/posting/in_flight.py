"""In flight: the posts of one loop that are under way, so many at a time, each under a name of its own.

A loop (`relay.py`, `deliveries.py`) takes no more from the ledger than there are places, starts a post for each, and
rests until there is a place again, or work: `wake` says that there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from darkroom.logs import logger

_log = logger(__name__)


class InFlight:
    """At most `places` posts at one time."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._posts: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()

    @property
    def free(self) -> int:
        return self._places - len(self._posts)

    def __contains__(self, name: str) -> bool:
        return name in self._posts

    def wake(self) -> None:
        """There is work, or may be."""
        self._woken.set()

    def begin_round(self) -> None:
        """From here on a wake is for the next round."""
        self._woken.clear()

    async def rest(self, seconds: float) -> None:
        """Wait for a wake since the round began, but no longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    def start(self, name: str, post: Coroutine[Any, Any, None]) -> None:
        """Begin a post, which raises nothing."""
        self._posts[name] = asyncio.create_task(self._run(name, post), name=f"post {name}")

    async def _run(self, name: str, post: Coroutine[Any, Any, None]) -> None:
        try:
            await post
        finally:
            if not self.free:
                self._woken.set()
            del self._posts[name]

    async def finish(self, *, patience_s: float) -> None:
        """Let the posts come to their end. What takes longer is given up; another courier posts it again."""
        if not self._posts:
            return
        _, late = await asyncio.wait(self._posts.values(), timeout=patience_s)
        for post in late:
            post.cancel()
        if late:
            _log.warning("posts_given_up", posts=len(late))
            await asyncio.wait(late)
