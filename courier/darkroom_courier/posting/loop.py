"""The posting loop: leases what is due, posts each item in a task of its own, and waits when there is nothing to post.

Relay (`relay.py`), notices (`notices.py`) and webhooks (`webhooks.py`) are such loops. Each defines what it leases and
how it posts one item; the limit of concurrent posts, the repeated call after a failure of Redis, the waiting and the
shutdown are the same for all three and stand here.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar
from uuid import uuid4

from darkroom.errors import DarkroomError
from darkroom.logs import logger

Item = TypeVar("Item")

_log = logger(__name__)


@dataclass(frozen=True)
class Leased(Generic[Item]):
    """What one call leased: the items by id, and whether more may be due at once."""

    items: Mapping[str, Item]
    may_be_more: bool


class PostingLoop(ABC, Generic[Item]):
    """Leases and posts, with at most `concurrency` posts in flight.

    `idle_s` is the longest pause between two calls that lease. The courier calls `step` over and over; `wake` ends a
    pause early.
    """

    failure_event: ClassVar[str]
    """The log event of a post that raised."""

    repeats_in_flight: ClassVar[bool] = False
    """Whether an item that is leased again while its post is in flight is posted again after it, or skipped."""

    def __init__(self, *, concurrency: int, idle_s: float) -> None:
        self._concurrency = concurrency
        self._idle_s = idle_s
        self._posts: dict[str, asyncio.Task[None]] = {}
        self._repeats: dict[str, Item] = {}
        self._woken = asyncio.Event()
        self._call = uuid4().hex

    @abstractmethod
    async def _lease(self, *, call: str, limit: int) -> Leased[Item]:
        """Lease up to `limit` items. A repeated `call` gets the same ones. Raises LedgerUnavailable."""

    @abstractmethod
    async def _post(self, item: Item) -> None:
        """Post one item and record the result. What it raises is logged; the lease makes the item due again."""

    @abstractmethod
    def _log_fields(self, item: Item) -> Mapping[str, Any]:
        """What the log names the item by."""

    def wake(self) -> None:
        """Something may be due."""
        self._woken.set()

    async def step(self) -> bool:
        """Start posting what is due; wait for a wake or the pause where nothing is, or all posts are in use.

        Raises LedgerUnavailable. The next step then repeats the same call, so that nothing which was leased waits for
        the end of its lease. The result is always True: the step has waited by itself.
        """
        self._woken.clear()
        may_be_more = False
        if self._free:
            leased = await self._lease(call=self._call, limit=self._free)
            self._call = uuid4().hex
            for key, item in leased.items.items():
                self._start(key, item)
            may_be_more = leased.may_be_more
        if not (may_be_more and self._free):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._idle_s):
                    await self._woken.wait()
        return True

    async def finish(self, *, timeout_s: float) -> None:
        """Wait for the posts in flight. What takes longer is cancelled; another courier posts it again."""
        if not self._posts:
            return
        _, late = await asyncio.wait(self._posts.values(), timeout=timeout_s)
        for post in late:
            post.cancel()
        if late:
            _log.warning("posts_given_up", posts=len(late))
            await asyncio.wait(late)

    @property
    def _free(self) -> int:
        return self._concurrency - len(self._posts)

    def _start(self, key: str, item: Item) -> None:
        if key not in self._posts:
            self._posts[key] = asyncio.create_task(self._run(key, item), name=f"post {key}")
        elif self.repeats_in_flight:
            self._repeats[key] = item

    async def _run(self, key: str, item: Item) -> None:
        following: Item | None = item
        try:
            while following is not None:
                await self._posted(following)
                following = self._repeats.pop(key, None)
        finally:
            if not self._free:
                self._woken.set()
            del self._posts[key]

    async def _posted(self, item: Item) -> None:
        try:
            await self._post(item)
        except DarkroomError as error:
            _log.warning(self.failure_event, **self._log_fields(item), error=error.detail)
        except Exception:  # one item's fault must not stop the others; its lease makes it due again
            _log.exception(self.failure_event, **self._log_fields(item))
