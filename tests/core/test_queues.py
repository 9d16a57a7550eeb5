"""The message of a job: equal to one of Celery itself, with the job's id and trace."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from darkroom.ledger import calls, queues
from darkroom.ledger.calls import ReleaseReason
from kombu import Exchange, Queue

from tests.core.timed_jobs import TimedJobs
from tests.waiting import DEADLINE_S, eventually

JOB_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def built(**changes: Any) -> dict[str, Any]:
    """A decoded message of the list."""
    call: dict[str, Any] = {"job_id": JOB_ID, "pool": "flux", "traceparent": TRACEPARENT, **changes}
    template = queues.build_message(**call)
    message: dict[str, Any] = json.loads(f"{template.head}{JOB_ID}:1{template.tail}")
    return message


def body_of(message: Mapping[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def flat(message: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Each field by its path, with the body decoded, since the spacing of JSON may differ."""
    fields: dict[str, Any] = {}
    for name, value in message.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{within}{name}.")
        else:
            fields[within + name] = body_of(message) if name == "body" else value
    return fields


def run() -> None:
    """Does nothing: only messages of this task are built."""


def test_a_message_is_field_by_field_what_celery_writes(redis_url: str, namespace: str) -> None:
    app = Celery(broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = queues.transport_options(namespace, "flux")
    name = queues.queue_name("flux")
    app.task(run, name=queues.TASK_NAME).apply_async(
        task_id=JOB_ID,
        queue=Queue(name, Exchange(""), routing_key=name),
        ignore_result=True,
        argsrepr="[]",
        headers={"traceparent": TRACEPARENT},
    )
    app.close()
    client: Any = redis.Redis.from_url(redis_url)
    theirs = flat(json.loads(client.lindex(f"{namespace}:celery:{name}", 0)))
    client.close()
    ours = flat(built())
    del theirs["properties.argsrepr"]  # an option that `apply_async` also writes where nothing reads it
    assumed = {name for name in theirs if name.startswith("headers.") and theirs[name] in (None, 0, [None, None])}
    assert ours.keys() == theirs.keys() - assumed, "what a worker assumes is left out"
    theirs["body"][2] = {}
    own = {"headers.origin", "properties.reply_to", "properties.delivery_tag"}
    assert {field for field in ours if ours[field] != theirs[field]} == own


FUTURE_TRACEPARENT = "cc" + TRACEPARENT[2:] + '-"\\darkroom-traceparent darkroom-job darkroom-delivery-tag'
"""Well-formed: a later version may add text after the flags."""


@pytest.mark.parametrize("traceparent", [TRACEPARENT, FUTURE_TRACEPARENT, None])
def test_a_message_carries_the_jobs_own_id_and_trace(traceparent: str | None) -> None:
    message = built(traceparent=traceparent)
    assert message["headers"]["id"] == message["headers"]["root_id"] == JOB_ID
    assert message["properties"]["correlation_id"] == JOB_ID
    assert message["properties"]["delivery_tag"] == f"{JOB_ID}:1"
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "pool.flux"}
    assert message["headers"].get("traceparent") == traceparent
    assert body_of(message)[:2] == [[], {}]


def test_messages_of_two_pools_are_kept_apart() -> None:
    assert built(pool="sd")["properties"]["delivery_info"]["routing_key"] == "pool.sd"
    assert built(pool="flux")["properties"]["delivery_info"]["routing_key"] == "pool.flux"


# -- what a caller may write -------------------------------------------------------------------------------------------


def test_nothing_in_a_trace_passes_for_the_delivery_tag(jobs: TimedJobs) -> None:
    jobs.worker()
    trace = f'{FUTURE_TRACEPARENT}"delivery_tag":"another-job:1"'
    submitted = [jobs.submit(traceparent=trace) for _ in range(4)]
    jobs.start(submitted[0])
    assert json.loads(jobs.redis.lindex(jobs.list_key, -1))["headers"]["traceparent"] == trace
    jobs.now += calls.SWEEP_AGE_MS
    assert jobs.sweep() == [], "it knows each message of the list"
    jobs.release(submitted[0], ReleaseReason.DRAIN)
    assert jobs.listed() == submitted[:3], "it knows the one that it took back"
    assert jobs.members("waiting") == {submitted[3]}


# -- a worker that knows nothing of darkroom ---------------------------------------------------------------------------

STOCK_WORKER = """
import os, time
from celery import Celery
from darkroom.ledger import queues
from redis import Redis

url, namespace = os.environ["URL"], os.environ["NAMESPACE"]
app = Celery(broker=url)
app.conf.broker_transport_options = queues.transport_options(namespace, "local")
app.conf.broker_connection_retry_on_startup = True

@app.task(name="darkroom.run", bind=True)
def run(self):
    redis = Redis.from_url(url)
    redis.rpush(f"{namespace}:ran", self.request.id, self.request.get("traceparent", ""))
    while not redis.exists(f"{namespace}:enough"):
        time.sleep(0.02)
"""


@pytest.fixture
def stock_worker(redis_url: str, namespace: str, tmp_path: Path, repository: Path) -> Iterator[Path]:
    """A plain `celery worker`, and its log."""
    (tmp_path / "stock.py").write_text(STOCK_WORKER)
    log = tmp_path / "log"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{repository / 'core'}{os.pathsep}{tmp_path}",
        "URL": redis_url,
        "NAMESPACE": namespace,
    }
    command = [sys.executable, "-m", "celery", "-A", "stock", "worker", "-Q", "pool.local", "-c", "1", "-E"]
    with log.open("wb") as out:
        worker = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    yield log
    worker.terminate()
    try:
        worker.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def test_a_stock_worker_runs_a_job_and_celerys_tools_see_its_id(
    redis_url: str, namespace: str, stock_worker: Path
) -> None:
    jobs = TimedJobs(redis_url, namespace)
    app = Celery(broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = queues.transport_options(namespace, "local")
    seen: dict[str, list[Any]] = {}
    job = jobs.submission(traceparent=TRACEPARENT)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"*": lambda event: seen.setdefault(event["type"], []).append(event.get("uuid"))}
        )
        events = receiver.itercapture(limit=None, timeout=DEADLINE_S, wakeup=False)
        next(events)
        (pong,) = eventually(
            lambda: app.control.ping(timeout=0.5, limit=1), what=f"a worker, whose log is {stock_worker}"
        )
        jobs.run(calls.accept(job, backlog_limit=10))
        ran = jobs.key("ran")
        eventually(lambda: jobs.redis.llen(ran) == 2, what=f"a run of the job; the worker's log is {stock_worker}")
        assert [item.decode() for item in jobs.redis.lrange(ran, 0, -1)] == [job.job_id, TRACEPARENT]
        (active,) = app.control.inspect(list(pong), timeout=DEADLINE_S).active().values()
        assert [(task["id"], task["name"]) for task in active] == [(job.job_id, queues.TASK_NAME)]
        jobs.redis.set(jobs.key("enough"), 1)
        while "task-succeeded" not in seen:
            next(events)
    for kind in ("task-received", "task-started", "task-succeeded"):
        assert seen[kind] == [job.job_id]
    app.close()
    jobs.close()
