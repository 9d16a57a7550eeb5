"""Cursors, subscriptions, event streams and the stream of a tenant, as clients use them (cut: `test_resume.py`)."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket as sockets
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.ledger import calls
from darkroom_functions.streams import sse
from darkroom_functions.streams.messages import ControlMessage
from httpx_sse import EventSource, aconnect_sse
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import RedisServers
from tests.databases import migrated
from tests.driven_jobs import DrivenJobs
from tests.functions.stream_clients import (
    DEADLINE_S,
    Message,
    all_messages,
    events,
    fill_tenant_stream,
    following,
    got,
    next_event,
    next_message,
    replaying,
    socket,
    stream,
)
from tests.parts import Functions, environment
from tests.redis_server import RedisKind, RedisServer
from tests.waiting import eventually

GRACE_S = 1
"""How long sockets stay open after their last job ended: enough for what a test sends then."""
IDLE_S = 5
"""Long enough for a busy machine to send the next message."""
UNKNOWN_ID = "01980000-0000-7000-8000-000000000000"

Own = Callable[..., tuple[Functions, DrivenJobs]]


@pytest.fixture(scope="module")
def shared(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Functions, DrivenJobs]]:
    """One process of result for all tests of this file that leave it intact, and its jobs."""
    url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    settings = environment(url, namespace, DARKROOM_SOCKET_GRACE_S=str(GRACE_S), DARKROOM_SOCKET_IDLE_S=str(IDLE_S))
    migrated(settings["DARKROOM_DATABASE_URL"])
    function = Functions("result", environment=settings, log=tmp_path_factory.mktemp("result") / "result.log")
    function.start()
    jobs = DrivenJobs(url, namespace)
    yield function, jobs
    jobs.close()
    assert function.stop() == 0


@pytest.fixture
def result(shared: tuple[Functions, DrivenJobs]) -> Functions:
    return shared[0]


@pytest.fixture
def jobs(shared: tuple[Functions, DrivenJobs]) -> DrivenJobs:
    return shared[1]


@pytest.fixture
def own(tmp_path: Path, own_redis: RedisServer) -> Iterator[Own]:
    """Gives a process of result with a Redis of its own, for a test that ends it or sets it up otherwise."""
    stops: list[Callable[[], object]] = []
    migrated(environment(own_redis.url, "own")["DARKROOM_DATABASE_URL"])

    def start(**settings: str) -> tuple[Functions, DrivenJobs]:
        jobs = DrivenJobs(own_redis.url, "own")
        variables = environment(own_redis.url, "own", **settings)
        function = Functions("result", environment=variables, log=tmp_path / "result.log")
        stops.extend([jobs.close, function.stop])
        function.start()
        return function, jobs

    yield start
    for stop in reversed(stops):
        stop()


def ran(jobs: DrivenJobs, *, steps: int = 3) -> str:
    """A job with an entry for its acceptance, its start, each step, and its end."""
    job_id = running(jobs, steps=steps)
    jobs.complete(job_id)
    return job_id


def running(jobs: DrivenJobs, *, steps: int = 3) -> str:
    job_id = jobs.submit()
    jobs.start(job_id)
    for step in range(1, steps + 1):
        jobs.progress(job_id, step=step, steps=1000)
    return job_id


def seqs(messages: list[Message]) -> list[int]:
    return [message["seq"] for message in messages]


class TestCursors:
    """`since=` of a single job's socket, and of several jobs'."""

    @pytest.mark.parametrize(("since", "expected"), [("0", [1, 2, 3, 4, 5, 6]), ("2", [3, 4, 5, 6]), ("5", [6])])
    async def test_all_entries_above_the_cursor_are_sent(
        self, result: Functions, jobs: DrivenJobs, since: str, expected: list[int]
    ) -> None:
        job_id = ran(jobs)
        for cursor in (since, f"{job_id}:{since}"):
            async with following(result, job_id, since=cursor) as ws:
                messages, code = await all_messages(ws)
            assert (seqs(messages), code) == (expected, 1000)
            assert messages[-1]["event_id"] == f"{job_id}:end"

    async def test_a_log_of_many_pages_is_sent_whole_and_then_followed(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        job_id = running(jobs, steps=450)
        async with following(result, job_id, since="0") as ws:
            assert [(await next_message(ws))["seq"] for _ in range(452)] == list(range(1, 453))
            jobs.progress(job_id, step=900, steps=1000)
            jobs.complete(job_id)
            messages, _ = await all_messages(ws)
        assert seqs(messages) == [453, 454]

    async def test_at_the_head_nothing_is_sent_until_the_next_entry(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = running(jobs)
        async with following(result, job_id, since="5") as ws:
            await ws.send('{"type": "ping"}')
            assert await next_message(ws) == {"type": "pong"}
            jobs.complete(job_id)
            assert (await next_message(ws))["seq"] == 6

    async def test_a_client_that_has_the_end_receives_nothing(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = ran(jobs)
        for cursor in ("end", f"{job_id}:end"):
            async with following(result, job_id, since=cursor) as ws:
                assert await all_messages(ws) == ([], 1000)

    async def test_a_number_never_stands_for_the_end(self, result: Functions, jobs: DrivenJobs) -> None:
        """After a Redis that lost its last second the client may have that number from another entry."""
        job_id = ran(jobs)
        async with following(result, job_id, since="6") as ws:
            messages, code = await all_messages(ws)
        assert ([message["event_id"] for message in messages], code) == ([f"{job_id}:end"], 1000)

    @pytest.mark.parametrize("since", ["99", "end"])
    async def test_a_cursor_that_is_not_in_the_log_is_answered_with_a_gap_and_the_present_state(
        self, result: Functions, jobs: DrivenJobs, since: str
    ) -> None:
        job_id = running(jobs)
        async with following(result, job_id, since=since) as ws:
            assert await next_message(ws) == {"type": "gap", "job_id": job_id, "reason": "cursor-unknown"}
            assert (await next_message(ws))["seq"] == 5
            jobs.complete(job_id)
            assert (await next_message(ws))["seq"] == 6

    async def test_a_log_that_is_no_longer_kept_is_a_gap_unless_only_the_end_is_missing(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        job_id = ran(jobs)
        jobs.redis.delete(f"{jobs.namespace}:log:{job_id}")
        for since, expected in (("2", ["gap", 6]), ("0", ["gap", 6]), ("5", [6]), ("end", [])):
            async with following(result, job_id, since=since) as ws:
                messages, code = await all_messages(ws)
            assert [message.get("type", message.get("seq")) for message in messages] == expected
            assert code == 1000
            if expected[:1] == ["gap"]:
                assert messages[0]["reason"] == "log-gone"

    async def test_each_of_several_jobs_has_a_cursor_or_none(self, result: Functions, jobs: DrivenJobs) -> None:
        one, other, third = ran(jobs), ran(jobs), ran(jobs)
        async with following(result, one, other, third, since=f"{one}:4,{third}:end") as ws:
            messages, code = await all_messages(ws)
        assert code == 1000
        assert {(message["job_id"], message["seq"]) for message in messages} == {(one, 5), (one, 6), (other, 6)}

    @pytest.mark.parametrize(
        "since", ["", "x", "-1", "1.5", "+1", "٣", "9" * 16, f"{UNKNOWN_ID}:1", "1,2", "end:", "1&since=2"]
    )
    async def test_an_invalid_cursor_is_rejected(self, result: Functions, jobs: DrivenJobs, since: str) -> None:
        job_id = jobs.submit()
        for job_ids in ([job_id], [job_id, jobs.submit()]):
            async with following(result, *job_ids, since=since) as ws:
                (error,), code = await all_messages(ws)
            assert (error["type"], error["code"], code) == ("error", "invalid-input", 4400)
            assert error["detail"].startswith("since ")
        answer = await got(result, f"/api/v1/generation-jobs/{job_id}/events", headers={"last-event-id": "x"})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "since"


class TestSubscriptions:
    """Jobs that are subscribed to and unsubscribed from on an open socket."""

    async def test_an_open_socket_subscribes_and_unsubscribes(self, result: Functions, jobs: DrivenJobs) -> None:
        first, second, third = jobs.submit(), running(jobs), ran(jobs)
        async with following(result, first) as ws:
            await next_message(ws)
            frame = {"type": "subscribe", "job_ids": [second, third], "since": {second: 3, third: f"{third}:5"}}
            await ws.send(json.dumps(frame))
            assert await next_message(ws) == {"type": "subscribed", "job_ids": [second, third]}
            resumed = [await next_message(ws) for _ in range(3)]
            assert [(message["job_id"], message["seq"]) for message in resumed] == [
                (second, 4),
                (second, 5),
                (third, 6),
            ]
            await ws.send(json.dumps({"type": "unsubscribe", "job_ids": [second]}))
            assert await next_message(ws) == {"type": "unsubscribed", "job_ids": [second]}
            jobs.progress(second, step=9, steps=1000)
            jobs.cancel(first)
            assert (await next_message(ws))["job_id"] == first
            await ws.send(json.dumps({"type": "subscribe", "job_ids": [second], "since": {second: 5}}))
            assert await next_message(ws) == {"type": "subscribed", "job_ids": [second]}
            assert (await next_message(ws))["seq"] == 6
            jobs.complete(second)
            assert (await next_message(ws))["seq"] == 7

    async def test_subscribing_to_a_followed_job_changes_nothing(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            await next_message(ws)
            await ws.send(json.dumps({"type": "subscribe", "job_ids": [job_id], "since": {job_id: 0}}))
            assert await next_message(ws) == {"type": "subscribed", "job_ids": [job_id]}
            jobs.cancel(job_id)
            assert (await next_message(ws))["seq"] == 2

    async def test_a_socket_whose_client_subscribes_stays_open_without_jobs_until_it_is_idle(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        first = jobs.completed()
        async with following(result, first) as ws:
            await next_message(ws)
            await ws.send(json.dumps({"type": "unsubscribe", "job_ids": [first]}))
            await next_message(ws)
            await asyncio.sleep(1.5 * GRACE_S)
            second = jobs.completed()
            await ws.send(json.dumps({"type": "subscribe", "job_ids": [second]}))
            assert [message.get("job_id") for message in (await next_message(ws), await next_message(ws))] == [
                None,
                second,
            ]
            (error,), code = await all_messages(ws)
        assert (error["code"], code) == ("idle", 4409)

    async def test_subscribing_to_an_unknown_job_changes_nothing(self, result: Functions, jobs: DrivenJobs) -> None:
        first, second, anothers = jobs.submit(), jobs.submit(), jobs.submit(tenant="another-tenant")
        async with following(result, first) as ws:
            await next_message(ws)
            for missing in (UNKNOWN_ID, anothers):
                await ws.send(json.dumps({"type": "subscribe", "job_ids": [second, missing]}))
                error = await next_message(ws)
                assert (error["type"], error["code"]) == ("error", "not-found")
                assert missing in error["detail"]
                assert second not in error["detail"]
            jobs.cancel(second)
            jobs.cancel(first)
            messages, code = await all_messages(ws)
        assert ([message["job_id"] for message in messages], code) == ([first], 1000)

    async def test_a_socket_follows_at_most_a_hundred_jobs_at_a_time(self, result: Functions, jobs: DrivenJobs) -> None:
        job_ids = [jobs.submit() for _ in range(101)]
        async with following(result, job_ids[0]) as ws:
            await next_message(ws)
            await ws.send(json.dumps({"type": "subscribe", "job_ids": job_ids[1:]}))
            assert (await next_message(ws))["code"] == "invalid-input"
            await ws.send(json.dumps({"type": "unsubscribe", "job_ids": job_ids[:1]}))
            await next_message(ws)
            await ws.send(json.dumps({"type": "subscribe", "job_ids": job_ids[1:]}))
            assert (await next_message(ws))["type"] == "subscribed"
            assert [(await next_message(ws))["job_id"] for _ in range(100)] == job_ids[1:]

    @pytest.mark.parametrize(
        "frame",
        [
            pytest.param({"type": "subscribe"}, id="no job_ids"),
            pytest.param({"type": "subscribe", "job_ids": []}, id="none"),
            pytest.param({"type": "subscribe", "job_ids": UNKNOWN_ID}, id="no list"),
            pytest.param({"type": "subscribe", "job_ids": [1]}, id="a number"),
            pytest.param({"type": "subscribe", "job_ids": ["x"]}, id="no id"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID] * 101}, id="too many"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID], "user": 1}, id="another member"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID], "since": 7}, id="since is no object"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID], "since": {"x": 7}}, id="since of another"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID], "since": {UNKNOWN_ID: True}}, id="a bool"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID], "since": {UNKNOWN_ID: -1}}, id="below 0"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID], "since": {UNKNOWN_ID: 10**15}}, id="huge"),
            pytest.param({"type": "subscribe", "job_ids": [UNKNOWN_ID], "since": {UNKNOWN_ID: 1.5}}, id="a fraction"),
            pytest.param({"type": "unsubscribe", "job_ids": [UNKNOWN_ID], "since": {}}, id="since in unsubscribe"),
        ],
    )
    async def test_an_invalid_frame_is_answered_with_an_error(
        self, result: Functions, jobs: DrivenJobs, frame: dict[str, Any]
    ) -> None:
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            await next_message(ws)
            await ws.send(json.dumps(frame))
            error = await next_message(ws)
            assert (error["type"], error["code"]) == ("error", "bad-frame")
            jobs.cancel(job_id)
            assert (await all_messages(ws))[1] == 1000


class TestEventStreams:
    """`GET …/generation-jobs/{id}/events`."""

    async def test_a_stream_sends_what_a_socket_does_and_ends_with_the_job(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        job_id = running(jobs)
        async with (
            following(result, job_id) as ws,
            stream(result, f"/api/v1/generation-jobs/{job_id}/events") as response,
        ):
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream"
            assert response.headers["cache-control"] == "no-store, no-transform"
            assert response.headers["x-accel-buffering"] == "no"
            async with aclosing(events(response)) as messages_here:
                first = await next_event(messages_here)
                assert (first.kind, first.id, first.message) == ("message", "5", await next_message(ws))
                jobs.complete(job_id)
                last = await next_event(messages_here)
                assert (last.id, last.message) == ("end", await next_message(ws))
                with pytest.raises(StopAsyncIteration):
                    await next_event(messages_here)

    async def test_a_stream_resumes_behind_the_last_event_and_is_204_behind_the_end(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        path = f"/api/v1/generation-jobs/{ran(jobs)}/events"
        for more in ({"headers": {"last-event-id": "4"}, "params": {"since": "1"}}, {"params": {"since": "4"}}):
            async with stream(result, path, **more) as response:
                assert [event.id async for event in events(response)] == ["5", "end"]
        async with stream(result, path, headers={"last-event-id": "end"}) as response:
            assert response.status_code == 204

    async def test_httpx_sse_reads_the_messages_of_a_stream_and_nothing_else(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        """httpx-sse yields an event for each empty line behind a `retry:` or an `id:`, also where there is no data."""
        job_id = running(jobs)
        async with (
            httpx.AsyncClient(base_url=result.url, timeout=DEADLINE_S, trust_env=False) as http,
            aconnect_sse(http, "GET", f"/api/v1/generation-jobs/{job_id}/events") as source,
        ):
            messages_here = source.aiter_sse()
            first = await anext(messages_here)
            assert (first.event, first.id, first.json()["seq"], first.retry) == ("message", "5", 5, 1000)
            jobs.fail(job_id, message="no\u2028such\u0085engine")
            (last,) = [event async for event in messages_here]
            assert (last.id, last.json()["status"], last.retry) == ("end", "failed", None)
            assert last.data.isascii(), "some clients end lines at U+2028 and U+0085, too"

    def test_a_heartbeat_is_not_an_event_for_httpx_sse(self) -> None:
        one = ControlMessage("pong", "{}", cursor="1")
        sent = sse.RETRY + sse.encoded(one) + sse.HEARTBEAT + sse.encoded(one) + sse.HEARTBEAT
        read = httpx.Response(200, headers=sse.HEADERS, content=sent)
        assert [event.data for event in EventSource(read).iter_sse()] == ["{}", "{}"]

    async def test_a_gap_has_an_event_type_of_its_own(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = ran(jobs)
        async with stream(result, f"/api/v1/generation-jobs/{job_id}/events?since=77") as response:
            gap, last = [event async for event in events(response)]
        assert (gap.kind, gap.id, gap.message["reason"]) == ("gap", None, "cursor-unknown")
        assert last.id == "end"

    async def test_an_unknown_job_is_404(self, result: Functions, jobs: DrivenJobs) -> None:
        for job_id in (UNKNOWN_ID, "123", jobs.submit(tenant="another-tenant")):
            answer = await got(result, f"/api/v1/generation-jobs/{job_id}/events")
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")

    async def test_other_methods_are_rejected_and_head_is_answered_at_once(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        path = f"/api/v1/generation-jobs/{jobs.submit()}/events"
        refused = await got(result, path, method="POST")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        head = await got(result, path, method="HEAD")
        assert (head.status_code, head.headers["content-type"], head.content) == (200, "text/event-stream", b"")

    async def test_a_client_that_does_not_read_is_disconnected(self, own: Own) -> None:
        result, jobs = own(DARKROOM_SOCKET_BUFFER="64")
        job_id = jobs.submit()
        jobs.start(job_id)
        async with stream(result, f"/api/v1/generation-jobs/{job_id}/events"):

            def run() -> None:
                step = 0
                while step % 500 or not result.said("stream_cut"):
                    step += 1
                    jobs.progress(job_id, step=step, steps=10_000_000)

            async with asyncio.timeout(2 * DEADLINE_S):
                await asyncio.to_thread(run)
        (cut,) = result.said("stream_cut")
        assert cut["problem"] == "too-slow"


class TestEndOfConnections:
    async def test_a_client_that_keeps_subscribing_without_reading_is_disconnected(self, own: Own) -> None:
        result, jobs = own(DARKROOM_SOCKET_BUFFER="16")
        job_ids = [jobs.completed() for _ in range(100)]
        frame = json.dumps({"type": "subscribe", "job_ids": job_ids})
        narrow = sockets.socket()
        narrow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", result.port))
        narrow.setblocking(False)
        ws = await connect(f"{result.ws_url}/ws/jobs/{job_ids[0]}", proxy=None, sock=narrow)

        async def keep_subscribing() -> None:
            with suppress(ConnectionClosed):
                while True:
                    await ws.send(frame)
                    await asyncio.sleep(0)

        subscribing = asyncio.create_task(keep_subscribing())
        (refused,) = await asyncio.to_thread(eventually, lambda: result.said("socket_refused"), what="its end")
        assert refused["problem"] == "too-slow"
        subscribing.cancel()
        ws.transport.abort()

    async def test_a_connection_is_closed_after_its_lifetime(self, own: Own) -> None:
        result, jobs = own(DARKROOM_SOCKET_LIFE_S="1")
        job_id = running(jobs)
        async with following(result, job_id) as ws:
            messages, code = await all_messages(ws)
        assert (seqs(messages), code) == ([5], 1012)
        async with stream(result, f"/api/v1/generation-jobs/{job_id}/events?since=4") as response:
            assert [event.id async for event in events(response)] == ["5"]
        async with socket(result, "/ws/events?since=0") as ws:
            messages, code = await all_messages(ws)
        assert (seqs(messages), code) == ([1, 2], 1012)

    async def test_stopping_the_process_ends_event_streams_at_once(self, own: Own) -> None:
        """Well before the timeout for requests in progress, which they would use up."""
        result, jobs = own()
        job_id = jobs.submit()
        paths = (f"/api/v1/generation-jobs/{job_id}/events", "/api/v1/events")
        async with (
            stream(result, paths[0]) as one,
            stream(result, paths[1]) as other,
            aclosing(events(one)) as of_one,
            aclosing(events(other)) as of_other,
        ):
            await next_event(of_one)
            await next_event(of_other)
            result.signal(signal.SIGTERM)
            for messages in (of_one, of_other):
                with pytest.raises(StopAsyncIteration):
                    await next_event(messages)
        assert result.wait() == 0
        assert not [line for line in result.log.read_text().splitlines() if '"level": "error"' in line]


class TestTenantStream:
    """`/ws/events` and `GET /api/v1/events`. The jobs of the shared process are all of one tenant: tests begin now."""

    async def test_entries_of_all_jobs_are_sent_without_progress(self, result: Functions, jobs: DrivenJobs) -> None:
        async with (
            socket(result, "/ws/events") as ws,
            stream(result, "/api/v1/events") as response,
            aclosing(events(response)) as messages_here,
        ):
            assert (await next_message(ws))["type"] == "begin"
            assert (await next_event(messages_here)).kind == "begin"
            one, other = running(jobs), jobs.submit()
            jobs.submit(tenant="another-tenant")
            pictures = jobs.complete(one)
            jobs.cancel(other)
            messages = [await next_message(ws) for _ in range(5)]
            assert [(message["job_id"], message["seq"], message["status"]) for message in messages] == [
                (one, 1, "pending"),
                (one, 2, "started"),
                (other, 1, "pending"),
                (one, 6, "completed"),
                (other, 2, "cancelled"),
            ]
            assert messages[3]["content_id"] == pictures[0].sha256
            assert messages[3]["event_id"] == f"{one}:end"
            for message in messages:
                event = await next_event(messages_here)
                assert event.id == message["cursor"]
                assert event.message.keys() == message.keys()
                assert event.message["event_id"] == message["event_id"]

    async def test_it_resumes_behind_its_cursor(self, result: Functions, jobs: DrivenJobs) -> None:
        async with socket(result, "/ws/events") as ws:
            begin = (await next_message(ws))["cursor"]
        job_id = ran(jobs)
        async with socket(result, f"/ws/events?since={begin}") as ws:
            messages = [await next_message(ws) for _ in range(3)]
            assert [(message["job_id"], message["seq"]) for message in messages] == [(job_id, n) for n in (1, 2, 6)]
            later = jobs.submit()
            assert (await next_message(ws))["job_id"] == later
        headers = {"last-event-id": messages[1]["cursor"]}
        async with (
            stream(result, "/api/v1/events", headers=headers) as response,
            aclosing(events(response)) as messages_here,
        ):
            assert [(await next_event(messages_here)).message["job_id"] for _ in range(2)] == [job_id, later]

    async def test_a_cursor_that_is_not_kept_is_answered_with_a_gap_and_all_entries(self, own: Own) -> None:
        result, jobs = own()
        job_id = jobs.submit()
        jobs.cancel(job_id)
        for since, reason in (("1-0", "log-gone"), ("99999999999999-0", "cursor-unknown")):
            async with socket(result, f"/ws/events?since={since}") as ws:
                assert await next_message(ws) == {"type": "gap", "reason": reason}
                assert [(await next_message(ws))["seq"] for _ in range(2)] == [1, 2]
                await ws.send('{"type": "subscribe", "job_ids": []}')
                assert (await next_message(ws))["code"] == "bad-frame"

    async def test_the_entries_of_a_deleted_job_have_no_results(self, own: Own) -> None:
        result, jobs = own()
        deleted, kept = jobs.completed(), jobs.completed()
        jobs.run(calls.delete_job(deleted, tenant="default"))
        async with socket(result, "/ws/events?since=0") as ws:
            messages = [await next_message(ws) for _ in range(6)]
        ends = {message["job_id"]: message for message in messages if message["state"] == "completed"}
        assert "output_paths" in ends[kept]
        assert ends[deleted].keys() == {"job_id", "status", "timestamp", "seq", "event_id", "state", "cursor"}

    async def test_many_pages_are_sent_whole(self, own: Own) -> None:
        result, jobs = own(DARKROOM_SOCKET_BUFFER="16")
        job_ids = [jobs.submit() for _ in range(350)]
        async with socket(result, "/ws/events?since=0") as ws:
            assert [(await next_message(ws))["job_id"] for _ in job_ids] == job_ids

    async def test_replays_beyond_the_limit_are_rejected_and_other_requests_are_answered(self, own: Own) -> None:
        """Many clients request the whole stream at the same time, repeatedly."""
        result, jobs = own()
        job_id = jobs.submit()
        fill_tenant_stream(jobs)
        async with asyncio.timeout(DEADLINE_S), replaying(result):
            while True:
                async with stream(result, "/api/v1/events", params={"since": "0"}) as response:
                    if response.status_code != 200:
                        problem = json.loads(await response.aread())
                        break
            assert (response.status_code, problem["type"].rpartition("/")[2]) == (429, "too-many-replays")
            assert int(response.headers["retry-after"]) >= 1
            first: Message = {}
            while first.get("type") != "error":
                async with socket(result, "/ws/events?since=0") as ws:
                    first = await next_message(ws)
                    if first.get("type") == "error":
                        _, code = await all_messages(ws)
            assert (first["code"], code) == ("too-many-replays", 1013)

            assert (await got(result, "/healthz")).status_code == 200
            async with following(result, job_id) as ws:
                assert (await next_message(ws))["job_id"] == job_id
            async with socket(result, "/ws/events") as ws:
                last = (await next_message(ws))["cursor"]
            jobs.cancel(job_id)
            async with socket(result, f"/ws/events?since={last}") as ws:
                assert (await next_message(ws))["status"] == "cancelled", "a client that missed little is not rejected"

    async def test_concurrent_replays_are_whole(self, own: Own) -> None:
        result, jobs = own()
        job_ids = [jobs.submit() for _ in range(250)]
        async with socket(result, "/ws/events?since=0") as one, socket(result, "/ws/events?since=0") as other:
            late = jobs.submit()
            for ws in (one, other):
                assert [(await next_message(ws))["job_id"] for _ in range(251)] == [*job_ids, late]

    @pytest.mark.parametrize("since", ["x", "1", "end", "-", "1-", "1-0-0", "1" * 16 + "-0"])
    async def test_an_invalid_cursor_is_rejected(self, result: Functions, since: str) -> None:
        async with socket(result, f"/ws/events?since={since}") as ws:
            (error,), code = await all_messages(ws)
        assert (error["code"], code) == ("invalid-input", 4400)
        assert (await got(result, "/api/v1/events", params={"since": since})).status_code == 422

    async def test_the_channel_is_open_once_for_all_clients(self, own: Own) -> None:
        result, jobs = own()
        async with socket(result, "/ws/events") as one, socket(result, "/ws/events") as other:
            await next_message(one)
            await next_message(other)
            assert jobs.redis.pubsub_numsub("own:news:default")[0][1] == 1

    async def test_a_lost_connection_to_redis_loses_no_entry(self, own: Own) -> None:
        result, jobs = own()
        async with socket(result, "/ws/events") as ws:
            await next_message(ws)
            jobs.redis.client_kill_filter(_type="pubsub")
            job_id = jobs.submit()
            assert (await next_message(ws))["job_id"] == job_id
