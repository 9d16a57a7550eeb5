"""result as a process, on a real Redis, with events over HTTP and clients on real sockets.

A test drives the jobs through the ledger itself, in place of submit, a worker and the courier.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from darkroom.cloudevents import event as events
from darkroom.cloudevents import http
from darkroom.cloudevents.proofs import PROOF, Proofs
from darkroom.jobs import JobEvent, State
from darkroom.ledger.scripts import texts
from darkroom.webhooks.subscriptions import Webhook, WebhookEvent
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests import served_metrics
from tests.conftest import RedisServers
from tests.databases import migrated
from tests.driven_jobs import TENANT, DrivenJobs
from tests.event_vectors import encode_batch
from tests.functions.api import slug
from tests.functions.stream_clients import DEADLINE_S, all_messages, following, next_message
from tests.parts import PROOF_KEY, PROOFS, PUBLIC_URL, Functions, environment
from tests.redis_server import RedisKind, RedisServer
from tests.waiting import eventually

GRACE_S = 0.3
"""How long the sockets of these tests stay open after their last job ended: enough for a pong."""

UNKNOWN_ID = "01980000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def shared(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Functions, str, str]]:
    """One process of result for all tests of this file that leave it intact, its Redis and its namespace."""
    url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    log = tmp_path_factory.mktemp("result") / "result.log"
    settings = environment(url, namespace, DARKROOM_SOCKET_GRACE_S=str(GRACE_S))
    migrated(settings["DARKROOM_DATABASE_URL"])
    function = Functions("result", environment=settings, log=log)
    function.start()
    yield function, url, namespace
    assert function.stop() == 0


@pytest.fixture
def result(shared: tuple[Functions, str, str]) -> Functions:
    return shared[0]


@pytest.fixture
def jobs(shared: tuple[Functions, str, str]) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(shared[1], shared[2])
    yield driven
    driven.close()


@pytest.fixture
def own(tmp_path: Path, own_redis: RedisServer) -> Iterator[Callable[..., tuple[Functions, DrivenJobs, RedisServer]]]:
    """Gives a process of result with a Redis of its own, for a test that stops one of them or sets it up otherwise."""
    stops: list[Callable[[], object]] = []
    migrated(environment(own_redis.url, "own")["DARKROOM_DATABASE_URL"])

    def start(**settings: str) -> tuple[Functions, DrivenJobs, RedisServer]:
        jobs = DrivenJobs(own_redis.url, "own")
        stops.append(jobs.close)
        variables = environment(own_redis.url, "own", DARKROOM_SOCKET_GRACE_S=str(GRACE_S), **settings)
        function = Functions("result", environment=variables, log=tmp_path / "result.log")
        stops.append(function.stop)
        function.start()
        return function, jobs, own_redis

    yield start
    for stop in reversed(stops):
        stop()


def terminal_event(job_id: str, seq: int, *, kind: JobEvent = JobEvent.COMPLETED, **changes: Any) -> events.Event:
    """The event that the courier posts for a terminal job."""
    event = events.job_event(
        job_id=job_id,
        kind=kind,
        event_id=f"{job_id}:end",
        seq=seq,
        time_ms=1_800_000_000_000,
        source=PUBLIC_URL,
        data={"job_id": job_id, "status": "completed"},
        tenant=TENANT,
    )
    members = event.encode_structured()
    for name, value in changes.items():
        members.pop(name, None)
        if value is not None:
            members[name] = value
    return events.Event.decode_structured(members)


def post(
    function: Functions,
    event: events.Event,
    *,
    path: str = "/",
    structured: bool = False,
    proofs: Proofs | None = PROOFS,
) -> httpx.Response:
    """Post the event as the sink does, with the courier's proof."""
    event = event if proofs is None else proofs.prove(event)
    headers, body = http.encode_structured(event) if structured else event.encode_binary()
    return httpx.post(function.url + path, headers=headers, content=body, trust_env=False, timeout=DEADLINE_S)


def _altered(event: events.Event) -> events.Event:
    members = PROOFS.prove(event).encode_structured()
    return events.Event.decode_structured(members | {"data": {"job_id": event.subject, "status": "failed"}})


FORGERIES: dict[str, Callable[[events.Event], events.Event]] = {
    "without a proof": lambda event: event,
    "with an invented proof": lambda event: replace(event, extensions={**event.extensions, PROOF: "A" * 43}),
    "of another key": Proofs((SecretStr("x" * 32),)).prove,
    "altered": _altered,
}


def counted(function: Functions, path: str, *, status: int) -> float:
    """How many responses of the route had this status."""
    labels = {"function": "result", "route": f"POST {path}", "status": str(status)}
    return served_metrics.ask(function.port).value("darkroom_http_request_seconds_count", **labels)


class TestEvents:
    """CloudEvents over HTTP."""

    @pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
    @pytest.mark.parametrize("path", ["/", "/events"])
    def test_a_terminal_event_is_applied_once_and_a_repeat_is_a_success(
        self, result: Functions, jobs: DrivenJobs, path: str, structured: bool
    ) -> None:
        job_id = jobs.completed()
        event = terminal_event(job_id, jobs.end_seq(job_id))
        for _ in range(2):
            answer = post(result, event, path=path, structured=structured)
            assert (answer.status_code, answer.content) == (204, b"")
        assert job_id not in jobs.outbox()
        outcomes = [line["outcome"] for line in result.said("event_taken") if line["job"] == job_id]
        assert outcomes == ["applied", "repeated"]

    @pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
    def test_every_terminal_state_is_applied(self, result: Functions, jobs: DrivenJobs, state: State) -> None:
        job_id = jobs.submit(start_deadline=1 if state is State.EXPIRED else None)
        match state:
            case State.FAILED:
                jobs.start(job_id)
                jobs.fail(job_id, message="out of ideas")
            case State.CANCELLED:
                jobs.cancel(job_id)
            case State.EXPIRED:
                jobs.expire(job_id)
        assert post(result, terminal_event(job_id, jobs.end_seq(job_id), kind=JobEvent(state))).status_code == 204
        assert jobs.is_applied(job_id)

    def test_an_event_of_an_unknown_job_is_logged_and_not_retried(self, result: Functions) -> None:
        answer = post(result, terminal_event(UNKNOWN_ID, 3))
        assert (answer.status_code, answer.content) == (204, b"")
        assert [line["level"] for line in result.said("event_taken") if line["job"] == UNKNOWN_ID] == ["warning"]

    def test_a_sequence_that_is_not_terminal_changes_nothing(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.completed()
        assert post(result, terminal_event(job_id, 1)).status_code == 204
        assert job_id in jobs.outbox()
        assert not jobs.is_applied(job_id)

    def test_a_start_is_applied_where_a_webhook_asked_for_it(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit(webhook=Webhook("https://receiver.test/hook", frozenset({WebhookEvent.STARTED})))
        jobs.start(job_id)
        assert job_id in jobs.outbox()
        event = terminal_event(job_id, 2, kind=JobEvent.STARTED, id=f"{job_id}:2")
        for _ in range(2):
            assert post(result, event).status_code == 204
        assert job_id not in jobs.outbox()
        assert jobs.redis.zcard(f"{jobs.namespace}:deliveries-of:{job_id}") == 1

    @pytest.mark.parametrize(
        "kind", ["job.requested", "job.accepted", "job.progressed", "job.anything", "subscription.disabled"]
    )
    def test_other_events_of_darkroom_are_ignored(self, result: Functions, jobs: DrivenJobs, kind: str) -> None:
        job_id = jobs.completed()
        event = terminal_event(job_id, jobs.end_seq(job_id), type=f"dev.darkroom.{kind}")
        assert post(result, event).status_code == 204
        assert not jobs.is_applied(job_id)

    def test_without_a_broker_a_job_request_is_refused_and_not_lost(self, result: Functions) -> None:
        answer = post(result, terminal_event(UNKNOWN_ID, 1, type=events.REQUESTED), path="/events")
        assert (answer.status_code, slug(answer)) == (422, "invalid-event")

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            pytest.param({"subject": None}, "subject", id="no subject"),
            pytest.param({"subject": "123"}, "subject", id="a subject that is no job id"),
            pytest.param({"sequence": None}, "sequence", id="no sequence"),
            pytest.param({"sequence": "one"}, "sequence", id="a sequence that is no number"),
            pytest.param({"sequence": "-1"}, "sequence", id="a negative sequence"),
            pytest.param({"sequence": "1" * 21}, "sequence", id="a sequence that is too long"),
            pytest.param({"type": "com.example.made"}, "type", id="a foreign event"),
        ],
    )
    def test_an_event_that_names_no_entry_is_rejected_permanently(
        self, result: Functions, changes: dict[str, Any], field: str
    ) -> None:
        answer = post(result, terminal_event(UNKNOWN_ID, 1, **changes))
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert [error["field"] for error in answer.json()["errors"]] == [field]

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            pytest.param({}, b"", id="nothing"),
            pytest.param({"content-type": "application/json"}, b"{}", id="no attributes"),
            pytest.param({"content-type": "application/cloudevents+json"}, b"{", id="half an object"),
            pytest.param({"content-type": "application/cloudevents+json"}, b"\xff", id="no UTF-8"),
            pytest.param({"content-type": "application/cloudevents+xml"}, b"<a/>", id="XML"),
            pytest.param({"content-type": "application/cloudevents-batch+json"}, b"[]", id="an empty batch"),
            pytest.param({"ce-id": "1", "ce-type": "t", "ce-source": "/s"}, b"", id="no specversion"),
        ],
    )
    def test_an_invalid_event_is_rejected_permanently(
        self, result: Functions, headers: dict[str, str], body: bytes
    ) -> None:
        answer = httpx.post(result.url, headers=headers, content=body, trust_env=False)
        assert answer.status_code == 422
        assert answer.json()["status"] == 422

    @pytest.mark.parametrize("path", ["/", "/events"])
    @pytest.mark.parametrize("forgery", FORGERIES)
    def test_a_forged_event_is_refused_and_nothing_changes(
        self, result: Functions, jobs: DrivenJobs, path: str, forgery: str
    ) -> None:
        job_id = jobs.completed()
        event = FORGERIES[forgery](terminal_event(job_id, jobs.end_seq(job_id)))
        key = f"{jobs.namespace}:job:{job_id}"
        before, refused = jobs.redis.hgetall(key), counted(result, path, status=403)
        for structured in (False, True):
            answer = post(result, event, path=path, structured=structured, proofs=None)
            assert (answer.status_code, slug(answer)) == (403, "proof-refused")
        assert jobs.redis.hgetall(key) == before
        assert job_id in jobs.outbox(), "the courier posts the genuine one again"
        assert counted(result, path, status=403) == refused + 2

    def test_both_keys_prove_while_they_are_rotated(self, own: Callable[..., Any]) -> None:
        newer, older = "n" * 32, "o" * 32
        result, jobs, _ = own(DARKROOM_PROOF_KEYS=f"{newer},{older}")
        for key, status in ((older, 204), (newer, 204), (PROOF_KEY, 403)):
            job_id = jobs.completed()
            event = terminal_event(job_id, jobs.end_seq(job_id))
            assert post(result, event, proofs=Proofs((SecretStr(key),))).status_code == status
            assert (job_id in jobs.outbox()) == (status == 403)

    def test_a_batch_is_rejected(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.completed()
        headers, body = encode_batch([PROOFS.prove(terminal_event(job_id, jobs.end_seq(job_id)))])
        assert httpx.post(result.url, headers=headers, content=body, trust_env=False).status_code == 422
        assert not jobs.is_applied(job_id)

    def test_a_body_above_the_limit_is_413(self, result: Functions) -> None:
        answer = post(result, terminal_event(UNKNOWN_ID, 1, data={"text": "x" * 3_000_000}))
        assert answer.status_code == 413

    def test_other_methods_and_paths_are_rejected(self, result: Functions) -> None:
        refused = httpx.get(f"{result.url}/events", trust_env=False)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert httpx.post(f"{result.url}/elsewhere", trust_env=False).status_code == 404

    def test_while_redis_is_unavailable_the_event_is_retried(
        self, own: Callable[..., tuple[Functions, DrivenJobs, RedisServer]]
    ) -> None:
        result, jobs, redis = own()
        job_id = jobs.completed()
        event = terminal_event(job_id, jobs.end_seq(job_id))
        redis.stop()
        answer = post(result, event)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx.get(f"{result.url}/readyz", trust_env=False).status_code == 200
        redis.start()
        eventually(lambda: post(result, event).status_code == 204, what="the event to be accepted")
        assert jobs.is_applied(job_id)


class TestSockets:
    """The messages of sockets."""

    async def test_a_job_is_followed_from_pending_to_completed(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            first = await next_message(ws)
            assert first.keys() == {"job_id", "status", "timestamp", "seq", "event_id", "state"}
            assert (first["job_id"], first["status"], first["state"], first["seq"]) == (job_id, "pending", "pending", 1)
            assert first["event_id"] == f"{job_id}:1"
            assert first["timestamp"].endswith("Z")

            jobs.start(job_id)
            assert (await next_message(ws))["status"] == "started"

            jobs.progress(job_id, step=2, steps=4)
            update = await next_message(ws)
            assert (update["status"], update["progress"], update["state"]) == ("processing", 50, "running")

            pictures = jobs.complete(job_id, pictures=2)
            messages, code = await all_messages(ws)
            assert code == 1000
            (last,) = messages
            assert (last["status"], last["state"], last["progress"]) == ("completed", "completed", 100)
            assert (last["seq"], last["event_id"]) == (4, f"{job_id}:end")
            assert last["content_id"] == pictures[0].sha256
            assert [path.partition("?")[0] for path in last["output_paths"]] == [
                f"{PUBLIC_URL}/artifacts/{picture.key}" for picture in pictures
            ]

    async def test_a_failure_has_its_error(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        jobs.start(job_id)
        async with following(result, job_id) as ws:
            assert (await next_message(ws))["status"] == "started"
            jobs.fail(job_id, message="out of ideas")
            last = await next_message(ws)
            assert (last["status"], last["error"]) == ("failed", "out of ideas")

    async def test_an_expired_job_has_the_status_failed(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit(start_deadline=1)
        async with following(result, job_id) as ws:
            assert (await next_message(ws))["status"] == "pending"
            jobs.expire(job_id)
            last = await next_message(ws)
            assert (last["status"], last["state"]) == ("failed", "expired")
            assert last["error"].startswith("expired:")

    async def test_a_cancelled_job_is_reported(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            assert (await next_message(ws))["status"] == "pending"
            jobs.cancel(job_id)
            assert (await next_message(ws))["status"] == "cancelled"

    async def test_a_late_subscriber_gets_the_terminal_event(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.completed()
        async with following(result, job_id) as ws:
            messages, code = await all_messages(ws)
        assert [message["status"] for message in messages] == ["completed"]
        assert code == 1000

    async def test_the_snapshot_of_a_running_job_is_its_newest_entry_alone(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        job_id = jobs.submit()
        jobs.start(job_id)
        jobs.progress(job_id, step=1, steps=4)
        jobs.progress(job_id, step=3, steps=4)
        async with following(result, job_id) as ws:
            assert (await next_message(ws))["progress"] == 75
            jobs.complete(job_id)
            assert (await next_message(ws))["status"] == "completed"

    async def test_the_end_is_sent_after_the_log_was_dropped(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.completed()
        jobs.redis.delete(f"{jobs.namespace}:log:{job_id}")
        async with following(result, job_id) as ws:
            assert (await next_message(ws))["event_id"] == f"{job_id}:end"

    async def test_several_jobs_share_a_socket(self, result: Functions, jobs: DrivenJobs) -> None:
        """One message for the state of each, in the order asked for; it closes when the last has ended."""
        waiting, done, running = jobs.submit(), jobs.completed(), jobs.submit()
        jobs.start(running)
        async with following(result, waiting, done, running, waiting) as ws:
            snapshot = [await next_message(ws) for _ in range(3)]
            assert [(message["job_id"], message["status"]) for message in snapshot] == [
                (waiting, "pending"),
                (done, "completed"),
                (running, "started"),
            ]
            jobs.complete(running)
            assert (await next_message(ws))["job_id"] == running
            await ws.send('{"type": "ping"}')
            assert await next_message(ws) == {"type": "pong"}
            jobs.cancel(waiting)
            messages, code = await all_messages(ws)
        assert [(message["job_id"], message["status"]) for message in messages] == [(waiting, "cancelled")]
        assert code == 1000

    async def test_only_clients_that_follow_a_job_receive_its_updates(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        one, other = jobs.submit(), jobs.submit()
        async with following(result, one) as of_one, following(result, other) as of_other:
            await next_message(of_one)
            await next_message(of_other)
            jobs.start(one)
            jobs.cancel(other)
            assert [message["job_id"] for message in (await all_messages(of_other))[0]] == [other]
            assert (await next_message(of_one))["job_id"] == one

    async def test_no_client_misses_an_entry_or_receives_one_twice(self, result: Functions, jobs: DrivenJobs) -> None:
        """Forty sockets open while the job runs: from its snapshot on, each receives every entry up to the end."""
        job_id = jobs.submit()
        jobs.start(job_id)
        steps = 400

        def run() -> None:
            for step in range(1, steps + 1):
                jobs.progress(job_id, step=step, steps=steps)
            jobs.complete(job_id)

        async def watch(delay_s: float) -> list[int]:
            await asyncio.sleep(delay_s)
            async with following(result, job_id) as ws:
                messages, code = await all_messages(ws)
            assert code == 1000
            return [message["seq"] for message in messages]

        running = asyncio.create_task(asyncio.to_thread(run))
        numbers = await asyncio.gather(*(watch(index * 0.005) for index in range(40)))
        await running
        assert jobs.end_seq(job_id) == steps + 3
        for seqs in numbers:
            assert seqs == list(range(seqs[0], steps + 4))

    async def test_a_ping_is_answered_until_the_grace_is_over(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.completed()
        async with following(result, job_id) as ws:
            assert (await next_message(ws))["status"] == "completed"
            await ws.send('{"type":"ping"}')
            assert await next_message(ws) == {"type": "pong"}
            assert await all_messages(ws) == ([], 1000)

    async def test_a_channel_is_open_once_for_all_clients_until_the_last_leaves(
        self, result: Functions, jobs: DrivenJobs
    ) -> None:
        job_id = jobs.submit()
        channel = f"{jobs.namespace}:live:{job_id}"

        def listeners() -> int:
            return int(jobs.redis.pubsub_numsub(channel)[0][1])

        assert listeners() == 0
        async with following(result, job_id) as one, following(result, job_id) as other:
            await next_message(one)
            await next_message(other)
            assert listeners() == 1
        eventually(lambda: listeners() == 0, what="the channel to be closed")


class TestBadInput:
    """Invalid messages and requests, by mistake or on purpose."""

    @pytest.mark.parametrize(
        "frame",
        [
            pytest.param("junk", id="no JSON"),
            pytest.param("", id="nothing"),
            pytest.param("[" * 5000, id="deep"),
            pytest.param("[1]", id="no object"),
            pytest.param('"ping"', id="a string"),
            pytest.param("{}", id="no type"),
            pytest.param('{"type": "subscribe", "job_id": "1"}', id="another type"),
            pytest.param('{"type": ["ping"]}', id="a type that is a list"),
            pytest.param(b'{"type": "ping"}', id="binary"),
            pytest.param(b"\xff\x00", id="binary junk"),
        ],
    )
    async def test_an_invalid_message_is_answered_with_an_error_and_the_socket_stays_open(
        self, result: Functions, jobs: DrivenJobs, frame: str | bytes
    ) -> None:
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            await next_message(ws)
            await ws.send(frame)
            error = await next_message(ws)
            assert (error["type"], error["code"]) == ("error", "bad-frame")
            assert error["detail"]
            jobs.cancel(job_id)
            assert (await next_message(ws))["status"] == "cancelled"

    async def test_too_many_invalid_messages_close_the_socket(self, result: Functions, jobs: DrivenJobs) -> None:
        async with following(result, jobs.submit()) as ws:
            await next_message(ws)
            for _ in range(17):
                await ws.send("junk")
            messages, code = await all_messages(ws)
        assert [message["code"] for message in messages] == ["bad-frame"] * 16 + ["bad-frames"]
        assert code == 1008

    async def test_a_message_of_a_megabyte_closes_the_socket(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        async with following(result, job_id) as ws, following(result, job_id) as other:
            await next_message(ws)
            await next_message(other)
            with suppress(ConnectionClosed):  # it may be closed before all of it is sent
                await ws.send("x" * 1_000_000)
            assert await all_messages(ws) == ([], 1009)
            jobs.cancel(job_id)
            assert (await next_message(other))["status"] == "cancelled"

    @pytest.mark.parametrize(
        "query",
        [
            pytest.param("", id="none"),
            pytest.param("?job_ids=", id="empty"),
            pytest.param("?job_ids=123,456,789", id="numbers"),
            pytest.param(f"?job_ids={UNKNOWN_ID},", id="a comma too many"),
            pytest.param(f"?job_ids={UNKNOWN_ID.upper().replace('0', 'A')}", id="upper case"),
            pytest.param("?job_ids=" + ",".join([UNKNOWN_ID] * 101), id="too many"),
            pytest.param("?job_ids=%00%0a%ff", id="control characters"),
            pytest.param("?jobs=1", id="another name"),
        ],
    )
    async def test_bad_job_ids_are_named_and_the_socket_closes(self, result: Functions, query: str) -> None:
        async with connect(f"{result.ws_url}/ws/jobs{query}", proxy=None) as ws:
            (error,), code = await all_messages(ws)
        assert (error["type"], error["code"], code) == ("error", "invalid-input", 4400)
        assert "job_ids" in error["detail"]

    @pytest.mark.parametrize("job_id", [UNKNOWN_ID, "123", "a" * 5000, "%00", "a%20b"])
    async def test_an_unknown_job_closes_the_socket(self, result: Functions, job_id: str) -> None:
        async with following(result, job_id) as ws:
            (error,), code = await all_messages(ws)
        assert (error["type"], error["code"], code) == ("error", "not-found", 4404)

    async def test_the_job_of_another_tenant_is_unknown(self, result: Functions, jobs: DrivenJobs) -> None:
        """The error is that of an unknown job, alone or among known ones, and no channel is opened for it."""
        own, foreign = jobs.submit(), jobs.submit(tenant="another-tenant")
        for job_ids in [(foreign,), (own, foreign)]:
            async with following(result, *job_ids) as ws:
                (error,), code = await all_messages(ws)
            assert (error["code"], error["detail"], code) == ("not-found", f"there is no job {foreign}", 4404)
        assert jobs.redis.pubsub_numsub(f"{jobs.namespace}:live:{foreign}")[0][1] == 0

    async def test_another_path_is_not_a_socket(self, result: Functions) -> None:
        with pytest.raises(websockets.exceptions.InvalidStatus):
            await connect(f"{result.ws_url}/ws/elsewhere", proxy=None)


class TestFailures:
    """Slow clients, lost connections, an unavailable Redis, a process that stops."""

    async def test_a_lost_connection_to_redis_loses_no_message(
        self, own: Callable[..., tuple[Functions, DrivenJobs, RedisServer]]
    ) -> None:
        """Entries that were published during the outage are read from the log."""
        result, jobs, _ = own()
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            await next_message(ws)
            assert jobs.redis.client_kill_filter(_type="pubsub") == 1
            jobs.start(job_id)
            jobs.progress(job_id, step=1, steps=2)
            jobs.complete(job_id)
            messages, code = await all_messages(ws)
        assert [message["seq"] for message in messages] == [2, 3, 4]
        assert code == 1000

    async def test_a_last_message_that_was_lost_is_found(self, result: Functions, jobs: DrivenJobs) -> None:
        """The end is in the log but was never published: the next comparison finds it."""
        job_id = jobs.submit()
        jobs.start(job_id)
        async with following(result, job_id) as ws:
            await next_message(ws)
            silent = texts()["finish"].replace(b"redis.call('PUBLISH', live_channel", b"tostring(live_channel")
            assert silent != texts()["finish"]
            finish = {"job": job_id, "token": "token", "outcome": "completed", "data": "{}"}
            jobs.redis.eval(silent, 1, jobs.namespace, *(text for pair in finish.items() for text in pair))
            messages, _ = await all_messages(ws)
        assert [message["event_id"] for message in messages] == [f"{job_id}:end"]

    async def test_a_gap_in_what_was_published_is_read_from_the_log(self, result: Functions, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        jobs.start(job_id)
        async with following(result, job_id) as ws:
            await next_message(ws)
            silent = texts()["progress"].replace(b"redis.call('PUBLISH', live_channel", b"tostring(live_channel")
            assert silent != texts()["progress"]
            step = {"job": job_id, "token": "token", "op": 1, "step": 1, "steps": 2, "publish": 1}
            jobs.redis.eval(silent, 1, jobs.namespace, *(text for pair in step.items() for text in pair))
            jobs.complete(job_id)
            messages, _ = await all_messages(ws)
        assert [(message["seq"], message["status"]) for message in messages] == [(3, "processing"), (4, "completed")]

    async def test_an_unavailable_redis_rejects_new_sockets_and_open_ones_resume(
        self, own: Callable[..., tuple[Functions, DrivenJobs, RedisServer]]
    ) -> None:
        result, jobs, redis = own()
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            await next_message(ws)
            redis.stop()
            async with following(result, job_id) as late:
                (error,), code = await all_messages(late)
            assert (error["type"], error["code"], code) == ("error", "ledger-unavailable", 1013)
            await ws.send('{"type": "ping"}')
            assert await next_message(ws) == {"type": "pong"}
            redis.start()
            jobs.start(job_id)
            jobs.complete(job_id)
            messages, code = await all_messages(ws)
        assert [message["status"] for message in messages] == ["started", "completed"]
        assert code == 1000

    async def test_a_job_that_redis_lost_closes_the_socket(
        self, own: Callable[..., tuple[Functions, DrivenJobs, RedisServer]]
    ) -> None:
        """After a Redis that lost its last second, no client may wait for a job that it does not have."""
        result, jobs, _ = own()
        job_id = jobs.submit()
        async with following(result, job_id) as ws:
            await next_message(ws)
            jobs.redis.flushdb()
            jobs.redis.client_kill_filter(_type="pubsub")
            (error,), code = await all_messages(ws)
        assert (error["code"], code) == ("not-found", 4404)

    async def test_a_slow_client_is_disconnected_and_delays_no_other(
        self, own: Callable[..., tuple[Functions, DrivenJobs, RedisServer]]
    ) -> None:
        result, jobs, _ = own(DARKROOM_SOCKET_BUFFER="64")
        job_id = jobs.submit()
        jobs.start(job_id)
        with _stuck_client(result, job_id) as stuck:
            async with following(result, job_id) as ws:
                await next_message(ws)

                def run() -> None:
                    step = 0
                    while step % 500 or not result.said("socket_refused"):
                        step += 1
                        jobs.progress(job_id, step=step, steps=1_000_000)
                    jobs.complete(job_id)

                running = asyncio.create_task(asyncio.to_thread(run))
                messages, code = await all_messages(ws)
                await running
            assert code == 1000
            seqs = [message["seq"] for message in messages]
            assert seqs == list(range(seqs[0], jobs.end_seq(job_id) + 1))
            (refused,) = result.said("socket_refused")
            assert refused["problem"] == "too-slow"
            assert stuck.recv(1)

    async def test_stopping_the_process_closes_all_sockets(
        self, own: Callable[..., tuple[Functions, DrivenJobs, RedisServer]]
    ) -> None:
        result, jobs, _ = own()
        async with following(result, jobs.submit()) as ws:
            await next_message(ws)
            result.signal(signal.SIGTERM)
            assert await all_messages(ws) == ([], 1012)
        assert result.wait() == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DARKROOM_SOCKET_BUFFER", "0"),
        ("DARKROOM_SOCKET_GRACE_S", "soon"),
        ("DARKROOM_LINK_TTL_S", "1"),
        ("DARKROOM_PUBLIC_URL", "darkroom"),
    ],
)
def test_a_bad_setting_ends_the_process_with_one_line(tmp_path: Path, variable: str, value: str) -> None:
    settings = environment("redis://127.0.0.1:1/0", "any", **{variable: value})
    function = Functions("result", environment=settings, log=tmp_path / "log")
    super(Functions, function).start()
    assert function.wait() == 2
    (line,) = function.log.read_text().splitlines()
    assert f"{variable}='{value}'" in line


async def test_a_socket_may_follow_a_hundred_jobs(result: Functions, jobs: DrivenJobs) -> None:
    job_ids = [jobs.submit() for _ in range(100)]
    async with following(result, *job_ids) as ws:
        assert [(await next_message(ws))["job_id"] for _ in job_ids] == job_ids
        for job_id in job_ids:
            jobs.cancel(job_id)
        messages, code = await all_messages(ws)
    assert [message["job_id"] for message in messages] == job_ids
    assert code == 1000


def _stuck_client(function: Functions, job_id: str) -> socket.socket:
    """A client that opens a socket, reads the handshake, and nothing after that."""
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.connect(("127.0.0.1", function.port))
    stuck.sendall(
        f"GET /ws/jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b"101" in stuck.recv(64)
    return stuck
