"""The posting loop: how it leases, posts, waits and finishes, with a source in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from darkroom.errors import LedgerUnavailable
from darkroom_courier.posting.loop import Leased, PostingLoop
from structlog.testing import capture_logs


class Source(PostingLoop[str]):
    """Leases what a test puts into `due`, and posts each item until the test sets its event in `responses`."""

    failure_event = "post_raised"

    def __init__(self, *, concurrency: int = 2, idle_s: float = 60) -> None:
        super().__init__(concurrency=concurrency, idle_s=idle_s)
        self.due: list[str] = []
        self.calls: list[str] = []
        self.posted: list[str] = []
        self.responses: dict[str, asyncio.Event] = {}
        self.is_away = False

    async def _lease(self, *, call: str, limit: int) -> Leased[str]:
        self.calls.append(call)
        if self.is_away:
            raise LedgerUnavailable("away")
        leased, self.due = self.due[:limit], self.due[limit:]
        return Leased({each: each for each in leased}, may_be_more=len(leased) == limit)

    async def _post(self, item: str) -> None:
        self.posted.append(item)
        if item == "broken":
            raise ValueError(item)
        await self.responses.setdefault(item, asyncio.Event()).wait()

    def _log_fields(self, item: str) -> Mapping[str, Any]:
        return {"item": item}


class RepeatingSource(Source):
    """Posts an item again that is leased while its post is in flight."""

    repeats_in_flight = True


async def settle() -> None:
    """Let the tasks run until all of them wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_is_leased_than_may_be_posted_at_one_time() -> None:
    source = Source(concurrency=2)
    source.due = ["a", "b", "c"]
    step = asyncio.create_task(source.step())
    await settle()
    assert source.posted == ["a", "b"]
    assert not step.done()
    source.responses["a"].set()
    await step
    await asyncio.wait_for(asyncio.gather(source.step(), settle_and(source)), timeout=5)
    assert source.posted == ["a", "b", "c"]
    await source.finish(timeout_s=0)


async def settle_and(source: Source) -> None:
    await settle()
    source.wake()


async def test_a_wake_ends_the_pause() -> None:
    source = Source()
    step = asyncio.create_task(source.step())
    await settle()
    assert not step.done()
    source.wake()
    await asyncio.wait_for(step, timeout=5)


async def test_a_step_after_a_failure_repeats_the_same_call() -> None:
    source = Source(idle_s=0.01)
    source.is_away = True
    with pytest.raises(LedgerUnavailable):
        await source.step()
    source.is_away = False
    await source.step()
    await source.step()
    first, second, third = source.calls
    assert first == second != third


@pytest.mark.parametrize(("kind", "posts"), [(Source, 1), (RepeatingSource, 2)], ids=["skipped", "repeated"])
async def test_an_item_that_is_leased_again_in_flight(kind: type[Source], posts: int) -> None:
    source = kind(idle_s=0.01)
    source.due = ["a"]
    await source.step()
    source.due = ["a"]
    await source.step()
    assert source.posted == ["a"]
    source.responses["a"].set()
    await settle()
    assert source.posted == ["a"] * posts


async def test_a_post_that_raises_is_logged_and_stops_no_other() -> None:
    source = Source(idle_s=0.01)
    source.due = ["broken", "a"]
    with capture_logs() as logged:
        await source.step()
        await settle()
    assert source.posted == ["broken", "a"]
    assert [(line["event"], line["item"]) for line in logged] == [("post_raised", "broken")]
    await source.finish(timeout_s=0)


async def test_posts_that_do_not_finish_in_time_are_cancelled() -> None:
    source = Source(idle_s=0.01)
    source.due = ["a", "b"]
    await source.step()
    await settle()
    source.responses["a"].set()
    with capture_logs() as logged:
        await source.finish(timeout_s=0.05)
    assert [(line["event"], line["posts"]) for line in logged] == [("posts_given_up", 1)]
