"""The worker's parent and the queue broker (Redis): its messages, its keys and its events."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from darkroom.checks.doctor import diagnose
from darkroom.checks.examination import examine
from darkroom.checks.ledger_checks import Limits
from darkroom.jobs import ErrorKind, State
from darkroom.ledger import calls, queues, reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect, connect_async
from darkroom.updates import celery_status

from tests.waiting import DEADLINE_S
from tests.worker.running_worker import POOL, Testbed


@pytest.fixture
async def testbed(redis_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Testbed]:
    client = connect_async(redis_url)
    testbed = Testbed(AsyncLedger(client, namespace), redis_url=redis_url, namespace=namespace, folder=tmp_path)
    yield testbed
    testbed.stop()
    await client.aclose()


async def test_a_running_job_has_keys_only_in_the_ledger(testbed: Testbed) -> None:
    """The message of a running job is not stored: the lease is the record of the attempt."""
    await testbed.ready_worker()
    job_id = await testbed.submit(steps=100, seconds=1)
    await testbed.running(job_id)

    with connect(testbed.redis_url) as client:
        kept = [name.decode() for name in client.scan_iter(f"{testbed.namespace}:celery:*")]
    record = await testbed.ended(job_id)

    assert [name for name in kept if "unacked" in name or name.endswith(queues.queue_name(POOL))] == []
    assert (record.state, record.attempt) == (State.COMPLETED, 1)


async def test_a_worker_reconnects_after_its_connections_were_cut(testbed: Testbed) -> None:
    """The client that it keeps for the queue broker is replaced."""
    await testbed.ready_worker()
    before = await testbed.ended(await testbed.submit())

    with connect(testbed.redis_url) as client:
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
    record = await testbed.ended(await testbed.submit())

    assert (record.state, record.attempt, record.worker) == (State.COMPLETED, 1, before.worker)


async def test_all_events_of_a_task_are_sent_before_the_worker_exits(testbed: Testbed) -> None:
    """As Flower receives them. They are sent in batches, the last one before the worker exits."""
    worker = await testbed.ready_worker()
    events: list[tuple[str, str | None]] = []
    with Celery("tests", broker=testbed.redis_url, set_as_current=False) as app:
        app.conf.broker_transport_options = queues.transport_options(testbed.namespace, POOL)
        receiving = asyncio.create_task(asyncio.to_thread(_receive, app, events))
        await testbed.until(lambda: _any(events), "an event of the worker is received")
        await asyncio.to_thread(app.control.enable_events, reply=True, limit=1)
        job_id = await testbed.submit()
        await testbed.ended(job_id)
        worker.stop()
        await receiving

    assert [kind for kind, about in events if about == job_id] == ["task-received", "task-started", "task-succeeded"]


async def test_the_events_of_a_task_match_the_state_of_its_job(testbed: Testbed) -> None:
    """So that Flower shows the status of `GET /tasks/{id}`: Celery alone would report success for each."""
    worker = await testbed.ready_worker(drain_grace_s="0.2")
    events: list[tuple[str, str | None]] = []
    with Celery("tests", broker=testbed.redis_url, set_as_current=False) as app:
        app.conf.broker_transport_options = queues.transport_options(testbed.namespace, POOL)
        receiving = asyncio.create_task(asyncio.to_thread(_receive, app, events))
        await testbed.until(lambda: _any(events), "an event of the worker is received")
        await asyncio.to_thread(app.control.enable_events, reply=True, limit=1)

        refused = await testbed.submit(failure=ErrorKind.INVALID_INPUT)
        await testbed.ended(refused)
        retried = await testbed.submit(failure=ErrorKind.TRANSIENT)
        await testbed.in_state(retried, lambda record: record.counted == 1, "the job waits for its next attempt")
        cancelled = await testbed.submit(steps=600, seconds=60)
        await testbed.running(cancelled)
        await testbed.ledger.run(calls.cancel(cancelled, tenant=None))
        await testbed.ended(cancelled)
        killed = await testbed.submit(steps=600, seconds=60, max_attempts=1)
        await testbed.running(killed)
        os.kill(worker.children()[0], signal.SIGKILL)
        await testbed.ended(killed)
        released = await testbed.submit(steps=600, seconds=60)
        await testbed.running(released)
        worker.stop()
        await receiving

    ends = {job_id: [kind for kind, about in events if about == job_id][2:] for _, job_id in events if job_id}
    assert ends == {
        refused: ["task-failed"],
        retried: ["task-retried"],
        cancelled: ["task-revoked"],
        killed: ["task-failed"],
        released: ["task-retried"],
    }
    assert celery_status(await testbed.job(released)) == "RETRY"


async def test_a_state_of_a_later_version_does_not_end_a_worker_that_sends_events(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    with Celery("tests", broker=testbed.redis_url, set_as_current=False) as app, connect(testbed.redis_url) as redis:
        app.conf.broker_transport_options = queues.transport_options(testbed.namespace, POOL)

        async def sends_events() -> list[Any] | None:
            return await asyncio.to_thread(app.control.enable_events, reply=True, limit=1) or None

        await testbed.until(sends_events, "the worker sends events")
        job_id = await testbed.submit(steps=600, seconds=60)
        await testbed.running(job_id)
        redis.hset(testbed.ledger.keys.job(job_id), "state", "resting")
        await testbed.said(worker, "attempt_ended", job=job_id, ended="lost")

        assert (await testbed.ended(await testbed.submit())).state is State.COMPLETED
        assert worker.stop() == 0


SECRET = "a prompt that no other user may read"

JOBLESS = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"


def message(**changes: Any) -> bytes:
    """A job's message with other values at some paths: `headers__task="other"`. A value of None removes the field."""
    template = queues.build_message(job_id=JOBLESS, pool=POOL, traceparent=None)
    whole = json.loads(f"{template.head}{JOBLESS}:1{template.tail}")
    for path, value in changes.items():
        *parents, name = path.split("__")
        field = whole
        for parent in parents:
            field = field[parent]
        if value is None:
            field.pop(name, None)
        else:
            field[name] = value
    return json.dumps(whole).encode()


def body(call: object) -> str:
    return base64.b64encode(json.dumps(call).encode()).decode()


FOREIGN: Mapping[str, bytes] = {
    "no text": b"\xff\xfe\x00 " + SECRET.encode(),
    "nothing": b"",
    "no JSON": b"{" + SECRET.encode(),
    "a string": b'"x"',
    "a number": b"7",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "too deep": b"[" * 100_000,
    "a value that kombu's reader refuses": b'{"__type__": "datetime", "__value__": 5}',
    "no properties": message(properties=None),
    "properties that are none": message(properties="x"),
    "no headers": message(headers=None),
    "headers that are none": message(headers=["x"]),
    "no delivery tag": message(properties__delivery_tag=None),
    "a delivery tag that is none": message(properties__delivery_tag={"x": 1}),
    "no delivery info": message(properties__delivery_info=None),
    "another task": message(headers__task="tasks.add"),
    "a task that is no name": message(headers__task={"x": 1}),
    "no id": message(headers__id=None),
    "an id that is none": message(headers__id=["x"]),
    "another content type": message(**{"content-type": "application/x-python-serialize"}),
    "no content type": message(**{"content-type": None}),
    "another encoding": message(**{"content-encoding": "binary"}),
    "another encoding of the body": message(properties__body_encoding="rot13"),
    "a compressed body": message(headers__compression="application/x-gzip"),
    "no body": message(body=None),
    "a body that is no Base64": message(body="%%%"),
    "a body that is no JSON": message(body=base64.b64encode(b"\x80junk").decode()),
    "a body that is no call": message(body=body("x")),
    "a body with arguments that no version has": message(body=body([[{}, SECRET], {}, {}])),
    "a body with keywords": message(body=body([[{}], {"x": 1}, {}])),
    "a time limit that is none": message(headers__timelimit="x"),
    "a time that is none": message(headers__eta="x"),
    "an expiry that is none": message(headers__expires="x"),
    "a time that is far": message(headers__eta="2999-01-01T00:00:00+00:00"),
    "a call that follows": message(body=body([[{}], {}, {"callbacks": [{"task": "x"}]}])),
    "a trace that is none": message(headers__traceparent=["x"]),
    "a trace that is a number": message(headers__traceparent=7),
    "stamped headers that are none": message(headers__stamped_headers=7),
    "the first protocol": json.dumps({"task": queues.TASK_NAME, "id": JOBLESS, "args": [], "kwargs": {}}).encode(),
    "8 MB": b'"' + b"x" * 8_000_000 + b'"',
}


def command(call: object, **changes: Any) -> bytes:
    """A message of the control channel as kombu publishes it."""
    properties = {"body_encoding": "base64", "delivery_tag": JOBLESS, "delivery_info": {"exchange": "celery.pidbox"}}
    whole = {"content-type": "application/json", "content-encoding": "utf-8", "headers": {"clock": 1}}
    return json.dumps({**whole, "properties": properties, "body": body(call), **changes}).encode()


NO_COMMANDS: Mapping[str, bytes] = {
    "a string": command("ping"),
    "a number": command(7),
    "a list": command(["ping"]),
    "no method": command({"arguments": {}}),
    "a method that is no name": command({"method": 7}),
    "arguments that are none": command({"method": "ping", "arguments": "x"}),
    "destinations that are none": command({"method": "ping", "destination": 7}),
    "a pattern that is none": command({"method": "ping", "pattern": 7, "matcher": ["x"]}),
    "an address for the reply that is none": command({"method": "ping", "reply_to": "x"}),
    "a clock that is none": command({"method": "ping"}, headers={"clock": "x"}),
    "no delivery tag": command({"method": "ping"}, properties={"body_encoding": "base64", "delivery_info": {}}),
    "no delivery info": command({"method": "ping"}, properties={"body_encoding": "base64", "delivery_tag": JOBLESS}),
}


async def test_foreign_messages_are_dropped_counted_and_reported(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    with connect(testbed.redis_url) as client:
        prefix = f"{testbed.namespace}:celery:"
        client.lpush(prefix + queues.queue_name(POOL), *FOREIGN.values())
        for raw in (*FOREIGN.values(), *NO_COMMANDS.values()):
            client.publish(f"{prefix}/{_database(testbed.redis_url)}.celery.pidbox", raw)
        job_id = await testbed.submit()
        record = await testbed.ended(job_id)

        async def counted() -> bool | None:
            dropped = (await reads.foreign_messages(testbed.ledger, [POOL]))[POOL]
            return dropped.count >= 2 * len(FOREIGN) + len(NO_COMMANDS) or None

        await testbed.until(counted, "all of them are counted")
        assert (record.state, record.attempt) == (State.COMPLETED, 1)
        assert worker.is_running

        async with connect_async(testbed.redis_url) as async_client:
            diagnosis = diagnose(await examine(async_client, testbed.namespace, Limits()), Limits())
        seen = {finding.check: finding.symptom.seen for finding in diagnosis.findings}
        assert f"workers of pool {POOL} dropped" in seen["foreign-messages"]

        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert client.llen(prefix + queues.queue_name(POOL)) == 0, "nothing was put back"
    log = worker.log.read_text()
    assert SECRET not in log
    assert '"level": "error"' not in log
    assert "Traceback" not in log
    assert worker.said("foreign_messages_dropped")


VALUES = (7, True, "x", ["x"], {"x": 1}, None)

CELERYS_OWN = (
    *("retries", "stamps", "stamped_headers", "chord", "chain", "group", "group_index", "parent_id", "callbacks"),
    *("errbacks", "delivery_info", "args", "kwargs", "reply_to", "shadow", "hostname", "replaced_task_nesting"),
)
"""Headers that Celery reads and a job's message does not have."""


def paths() -> list[str]:
    """Every path of a job's message, and those of headers that it may have."""
    whole = json.loads(message())
    found = list(whole)
    for parent in ("headers", "properties"):
        found += [f"{parent}__{name}" for name in whole[parent]]
    found += [f"properties__delivery_info__{name}" for name in whole["properties"]["delivery_info"]]
    return found + [f"headers__{name}" for name in ("traceparent", *CELERYS_OWN)]


async def test_no_value_in_a_message_crashes_the_worker_or_its_child(testbed: Testbed) -> None:
    worker = await testbed.ready_worker()
    child = worker.children()
    with connect(testbed.redis_url) as client:
        name = f"{testbed.namespace}:celery:{queues.queue_name(POOL)}"
        for path in paths():
            for value in VALUES:
                client.lpush(name, message(**{path: value}))
        record = await testbed.ended(await testbed.submit())
        assert (record.state, record.attempt, worker.children()) == (State.COMPLETED, 1, child)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert client.llen(name) == 0


def _database(url: str) -> str:
    return url.rsplit("/", 1)[1]


REFUSED_LATER = {"stamped headers that are none"}


@pytest.mark.parametrize("name", [name for name in FOREIGN if name not in REFUSED_LATER])
def test_a_foreign_message_is_recognised(name: str) -> None:
    assert queues.foreign(FOREIGN[name]) is not None


def test_a_jobs_message_is_not_foreign() -> None:
    assert queues.foreign(message()) is None


async def _any(events: list[tuple[str, str | None]]) -> bool | None:
    return bool(events) or None


def _receive(app: Celery, events: list[tuple[str, str | None]]) -> None:
    """Collect the type and the task of each event until the worker is offline."""

    def note(event: dict[str, Any]) -> None:
        events.append((event["type"], event.get("uuid")))
        receiver.should_stop = event["type"] == "worker-offline"

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        receiver.capture(limit=None, timeout=DEADLINE_S, wakeup=True)
