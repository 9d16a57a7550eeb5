"""Redis is killed repeatedly while requests of every kind are in progress: each fails only with 503 or 1013."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.errors import LedgerUnavailable
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.functions.api import JOBS, TIMEOUT_S, Api, serving
from tests.redis_server import RedisServer

KILLS = 6
CALLERS = 12
"""Requests of each kind."""

AWAY = LedgerUnavailable.slug


@pytest.fixture
def storm(own_redis: RedisServer, tmp_path: Path) -> Iterator[Api]:
    with serving(own_redis.url, "storm", tmp_path, DARKROOM_SOCKET_LIFE_S="3") as api:
        yield api


async def test_redis_that_is_killed_while_functions_write_is_a_503_or_1013(storm: Api, own_redis: RedisServer) -> None:
    """Refusals have Retry-After, nothing is logged as unexpected, and all requests succeed afterwards."""
    outcomes: Counter[str] = Counter()
    over = asyncio.Event()
    job_id = storm.submit()
    async with httpx.AsyncClient(base_url=storm.functions.url, timeout=TIMEOUT_S, trust_env=False) as http:
        ways = [*_requests(http, job_id), _stream(http, job_id), _socket(storm, job_id)]
        callers = [asyncio.create_task(_again(way, over, outcomes)) for way in ways for _ in range(CALLERS)]
        for kill in range(KILLS):
            await asyncio.sleep(0.2 + random.random() / 2)  # requests are under way
            await asyncio.to_thread(own_redis.stop, signal.SIGKILL)
            if kill < KILLS - 1:
                await asyncio.sleep(random.random())  # calls that wait for their next try may never notice
            else:
                await _seen(outcomes, f"503 {AWAY}")
            await asyncio.to_thread(own_redis.start)
        await _seen(outcomes, "202")
        over.set()
        async with asyncio.timeout(2 * TIMEOUT_S):
            await asyncio.gather(*callers)
    unforeseen = [line for event in ("unexpected", "socket_failed") for line in storm.functions.said(event)]
    assert not unforeseen, Counter(str(line.get("exception", line))[-300:] for line in unforeseen)
    expected = {"200", "202", "204", f"503 {AWAY}", "closed 1012", "closed 1013"}
    expected.add("429 too-many-replays")  # of the tenant's events from their start, when many callers wait for Redis
    assert outcomes.keys() <= expected, outcomes
    assert storm.get(JOBS).status_code == 200


def _requests(http: httpx.AsyncClient, job_id: str) -> list[Callable[[], Coroutine[Any, Any, str]]]:
    async def submit() -> str:
        return _outcome(await http.post("/flux", json={"prompt": "x" * 3_000}))

    async def wait_with_submission() -> str:
        return _outcome(await http.post("/flux", json={}, headers={"Prefer": "wait=1"}))

    async def read() -> str:
        return _outcome(await http.get(JOBS + job_id))

    async def wait() -> str:
        return _outcome(await http.get(JOBS + job_id, params={"wait": 1}))

    async def subscribe() -> str:
        return _outcome(await http.get("/api/v1/dead-letters"))

    return [submit, wait_with_submission, read, wait, subscribe]


def _stream(http: httpx.AsyncClient, job_id: str) -> Callable[[], Coroutine[Any, Any, str]]:
    async def follow() -> str:
        async with http.stream("GET", random.choice((f"{JOBS}{job_id}/events", "/api/v1/events?since=0"))) as response:
            content = await response.aread()
        return _outcome(response) if response.status_code != 200 or content else "empty"

    return follow


def _socket(api: Api, job_id: str) -> Callable[[], Coroutine[Any, Any, str]]:
    async def follow() -> str:
        path = random.choice((f"/ws/jobs/{job_id}", "/ws/events?since=0"))
        async with connect(api.functions.ws_url + path, proxy=None) as ws:
            with suppress(ConnectionClosed):
                async for _ in ws:
                    pass
            return f"closed {ws.close_code}"

    return follow


async def _again(way: Callable[[], Coroutine[Any, Any, str]], over: asyncio.Event, outcomes: Counter[str]) -> None:
    while not over.is_set():
        outcomes[await way()] += 1
        await asyncio.sleep(0.02)


async def _seen(outcomes: Counter[str], outcome: str) -> None:
    """Waits until one more of the requests has ended with `outcome`."""
    before, deadline = outcomes[outcome], time.monotonic() + TIMEOUT_S
    while outcomes[outcome] == before:
        assert time.monotonic() < deadline, f"no request ended with {outcome} within {TIMEOUT_S} s: {outcomes}"
        await asyncio.sleep(0.02)


def _outcome(response: httpx.Response) -> str:
    if response.is_success:
        return str(response.status_code)
    problem = response.json()
    assert problem["status"] == response.status_code
    if response.status_code == 503:
        assert int(response.headers["retry-after"]) >= 1
    return f"{response.status_code} {problem['type'].rsplit('/', 1)[-1]}"
