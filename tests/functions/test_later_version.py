"""What a later version of darkroom wrote is shown as it is, wherever it is read.

An upgrade has two versions at work on one Redis and one database. The test writes states, events and members that this
version does not know, and reads them over every door.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from darkroom.history.store import PastJob
from darkroom.jobs import JobEvent, State, UnknownValue
from darkroom.ledger import calls
from darkroom.ledger.calls import Reading
from darkroom.ledger.client import Ledger
from darkroom.ledger.records import LogEntry
from darkroom.scaling.decision import PoolObservation, ScalingHistory, decide
from darkroom.scaling.decision_log import DecisionEntry
from darkroom.scaling.policy import ScalingPolicy
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS, Webhook, new_subscription_id, target_of

from tests.courier.receiver import Receiver
from tests.courier.sink import Sink
from tests.darkroom_command import darkroom
from tests.databases import opened
from tests.driven_jobs import POOL, TENANT, DrivenJobs
from tests.functions.api import JOBS, Api
from tests.functions.stream_clients import all_messages, events, following, next_event, next_message, stream
from tests.parts import Part, environment
from tests.waiting import eventually

EVENT, STATE = UnknownValue("paused"), UnknownValue("resting")
DATA = {"until": "tomorrow"}


@pytest.fixture
def settings(api: Api, redis_url: str) -> dict[str, str]:
    """The environment of a part or command beside the functions."""
    return environment(redis_url, api.jobs.namespace, DARKROOM_URL=api.functions.url)


@pytest.fixture
def resting(api: Api) -> str:
    """A job whose newest entry is an event, and whose state is a state, of a later version."""
    job_id = api.jobs.submit()
    write(api.jobs, job_id)
    return job_id


def write(jobs: DrivenJobs, job_id: str, *, is_end: bool = False) -> int:
    """What `log` of `lua/prelude.lua` would write for the event, and `finish` for the terminal one. Returns the number
    of the entry.
    """
    prefix, now, event = jobs.namespace, time.time_ns() // 1_000_000, STATE if is_end else EVENT
    seq = int(jobs.redis.hincrby(f"{prefix}:job:{job_id}", "seq", 1))
    jobs.redis.hset(f"{prefix}:job:{job_id}", mapping={"state": STATE, "paused_until": "tomorrow"})
    if is_end:
        jobs.redis.hset(f"{prefix}:job:{job_id}", mapping={"ended": now, "end_seq": seq, "end_data": json.dumps(DATA)})
    entry = {"event": event, "state": STATE, "at": now, "data": json.dumps(DATA)}
    jobs.redis.xadd(f"{prefix}:log:{job_id}", entry, id=f"{seq}-0")
    jobs.redis.publish(f"{prefix}:live:{job_id}", f"{seq}\n{event}\n{STATE}\n{now}\n{json.dumps(DATA)}")
    jobs.redis.xadd(f"{prefix}:news:{TENANT}", {"entry": f"{job_id} {seq} {event} {STATE} {now}"})
    jobs.redis.publish(f"{prefix}:news:{TENANT}", "")
    return seq


def read(api: Api, path: str) -> Any:
    """The body of a response, which the API's description allows."""
    response = api.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_view_shows_an_unknown_state_and_event(api: Api, resting: str) -> None:
    job = read(api, JOBS + resting)
    assert (job["state"], job["status"], job["attempts"]) == (STATE, STATE, [])


def test_a_list_shows_jobs_of_an_unknown_state(api: Api, resting: str) -> None:
    assert {job["id"]: job["state"] for job in read(api, JOBS)["jobs"]}[resting] == STATE


def test_celery_s_view_shows_an_unknown_state_in_capitals(api: Api, resting: str) -> None:
    assert read(api, f"/tasks/{resting}") == {"task_id": resting, "status": "RESTING"}


def test_an_attempt_goes_on_after_an_unknown_event(api: Api) -> None:
    job_id = api.jobs.submit()
    api.jobs.start(job_id)
    write(api.jobs, job_id)
    (attempt,) = read(api, JOBS + job_id)["attempts"]
    assert attempt["outcome"] == "running"


async def test_a_socket_carries_an_unknown_event(api: Api) -> None:
    job_id = api.jobs.submit()
    async with following(api.functions, job_id) as ws:
        assert (await next_message(ws))["status"] == "pending"
        write(api.jobs, job_id)
        message = await next_message(ws)
    assert (message["status"], message["state"]) == (EVENT, STATE)


async def test_a_socket_replays_an_unknown_event(api: Api, resting: str) -> None:
    async with following(api.functions, resting, since="0") as ws:
        messages = [await next_message(ws), await next_message(ws)]
    assert [message["status"] for message in messages] == ["pending", EVENT]


@pytest.mark.parametrize(("since", "statuses"), [(None, [STATE]), ("0", ["pending", STATE]), ("1", [STATE])])
async def test_a_socket_closes_after_an_unknown_terminal_state(
    api: Api, since: str | None, statuses: list[str]
) -> None:
    job_id = api.jobs.submit()
    write(api.jobs, job_id, is_end=True)
    async with following(api.functions, job_id, since=since) as ws:
        messages, code = await all_messages(ws)
    assert ([message["status"] for message in messages], code) == (statuses, 1000)


async def test_a_socket_closes_when_its_job_reaches_an_unknown_terminal_state(api: Api) -> None:
    job_id = api.jobs.submit()
    async with following(api.functions, job_id) as ws:
        assert (await next_message(ws))["status"] == "pending"
        write(api.jobs, job_id, is_end=True)
        messages, code = await all_messages(ws)
    assert ([message["status"] for message in messages], code) == ([STATE], 1000)


def test_a_wait_ends_with_an_unknown_terminal_state(api: Api) -> None:
    job_id = api.jobs.submit()
    write(api.jobs, job_id, is_end=True)
    began = time.monotonic()
    assert api.get(JOBS + job_id, params={"wait": 50}).json()["state"] == STATE
    assert time.monotonic() - began < 30


@pytest.fixture
async def tenant_stream(api: Api) -> AsyncIterator[Any]:
    async with stream(api.functions, "/api/v1/events") as response:
        yield response


async def test_an_event_stream_carries_an_unknown_event(api: Api, resting: str) -> None:
    async with stream(api.functions, f"{JOBS}{resting}/events?since=0") as response:
        messages = events(response)
        found = [(await next_event(messages)).message["status"] for _ in range(2)]
    assert found == ["pending", EVENT]


async def test_a_tenant_s_stream_carries_an_unknown_event(api: Api, tenant_stream: Any) -> None:
    job_id = api.jobs.submit()
    write(api.jobs, job_id)
    async with asyncio.timeout(60):
        async for event in events(tenant_stream):
            if event.message.get("job_id") == job_id and event.message["status"] == EVENT:
                break
    assert event.message["state"] == STATE


async def test_the_history_shows_an_unknown_event_and_an_unknown_terminal_state(
    api: Api, settings: dict[str, str]
) -> None:
    job_id = api.jobs.completed()
    api.jobs.redis.hset(f"{api.jobs.namespace}:job:{job_id}", "state", STATE)
    async with opened(settings["DARKROOM_DATABASE_URL"]) as history:
        await history.write([past_of(api.jobs, job_id)])
    for key in api.jobs.redis.scan_iter(f"{api.jobs.namespace}:*{job_id}*"):
        api.jobs.redis.delete(key)
    job = read(api, JOBS + job_id)
    assert (job["state"], job["attempts"][0]["outcome"]) == (STATE, "running")
    assert {job["id"]: job["state"] for job in read(api, JOBS)["jobs"]}[job_id] == STATE


def past_of(jobs: DrivenJobs, job_id: str) -> PastJob:
    record = Ledger(jobs.redis, jobs.namespace).job(job_id)
    assert record is not None
    unknown = LogEntry(job_id, 3, EVENT, STATE, record.created, DATA)
    started = LogEntry(job_id, 2, JobEvent.STARTED, State.RUNNING, record.created, {"attempt": 1, "worker": "one"})
    return PastJob.of(record, [started, unknown])


def test_artifacts_keep_members_of_a_later_version(api: Api) -> None:
    job_id = api.jobs.submit()
    api.jobs.start(job_id)
    artifact: dict[str, Any] = {"key": f"default/{job_id}/1/0-{'a' * 64}.png", "sha256": "a" * 64}
    artifact |= {"media_type": "image/png", "size": 9, "width": 8, "height": 8, "alt": "a lighthouse"}
    data = {"artifacts": [artifact], "record": {"seed": 1}}
    api.jobs.run(calls.finish(job_id, token="token", outcome=State.COMPLETED, data=data))
    (shown,) = read(api, JOBS + job_id)["artifacts"]
    assert shown["alt"] == "a lighthouse"


def test_an_error_keeps_members_of_a_later_version(api: Api) -> None:
    job_id = api.jobs.submit()
    api.jobs.start(job_id)
    error = {"kind": "transient", "message": "no luck", "advice": "try again"}
    api.jobs.run(calls.finish(job_id, token="token", outcome=State.FAILED, data={"error": error}))
    assert read(api, JOBS + job_id)["error"] == error


@pytest.fixture
def muted(api: Api) -> Iterator[str]:
    """A subscription of a later version: its state, and one of its events."""
    subscription_id = new_subscription_id(int(time.time() * 1000))
    url = "https://receiver.test/hook"
    api.jobs.run(calls.subscribe(subscription_id, tenant=TENANT, url=url, events=DEFAULT_EVENTS, create=True))
    key = f"{api.jobs.namespace}:subscription:{subscription_id}"
    api.jobs.redis.hset(key, mapping={"state": "muted", "events": f"{EVENT} completed", "colour": "blue"})
    yield subscription_id
    api.jobs.run(calls.unsubscribe(subscription_id, tenant=TENANT))


def test_a_subscription_shows_unknown_events_and_an_unknown_state(api: Api, muted: str) -> None:
    shown = read(api, f"/api/v1/subscriptions/{muted}")
    assert (shown["state"], shown["events"]) == ("muted", ["completed", EVENT])
    assert muted in [each["id"] for each in read(api, "/api/v1/subscriptions")["subscriptions"]]


def test_a_webhook_receives_an_unknown_event(api: Api, settings: dict[str, str], tmp_path: Path) -> None:
    with Receiver().running() as receiver, Sink().running() as sink:
        job_id = api.jobs.submit(webhook=Webhook(receiver.url))
        seq = write(api.jobs, job_id)
        deliver(api.jobs, job_id, seq, receiver.url)
        assert read(api, f"{JOBS}{job_id}/deliveries")["deliveries"][0]["event"] == EVENT
        own = {"K_SINK": sink.url, "DARKROOM_WEBHOOK_ALLOW": "127.0.0.1"}
        courier = Part("darkroom_courier", environment={**settings, **own}, log=tmp_path / "courier.log")
        courier.start()
        try:
            eventually(lambda: bool(receiver.posts), what="the post of an unknown event")
        finally:
            courier.stop()
        (post,) = receiver.posts
    assert (post.event["type"], post.id) == (f"dev.darkroom.job.{EVENT}", f"{job_id}:{seq}")


def deliver(jobs: DrivenJobs, job_id: str, seq: int, url: str) -> None:
    """A delivery that a later version of the result function stored for the event."""
    prefix, delivery_id, target = jobs.namespace, f"{job_id}.{seq}.job", target_of(TENANT, url)
    now = time.time_ns() // 1_000_000
    record = {"job": job_id, "seq": seq, "event": EVENT, "recipient": "job", "tenant": TENANT, "url": url}
    record |= {"created": now, "tried": 0, "base": 0, "state": "open", "target": target}
    jobs.redis.hset(f"{prefix}:delivery:{delivery_id}", mapping=record)
    jobs.redis.zadd(f"{prefix}:deliveries-of:{job_id}", {delivery_id: 1})
    jobs.redis.zadd(f"{prefix}:deliveries:{target}", {delivery_id: now})
    jobs.redis.zadd(f"{prefix}:targets", {target: now})


def test_the_audit_counts_jobs_of_an_unknown_state(
    api: Api, resting: str, settings: dict[str, str], tmp_path: Path
) -> None:
    for name in ("waiting", "dispatched"):
        api.jobs.redis.zrem(f"{api.jobs.namespace}:{name}:{POOL}", resting)
    done = darkroom(["audit", "--json"], folder=tmp_path, **settings)
    assert done.stderr == ""
    assert f'"{STATE}"' in done.stdout
    assert resting not in done.stdout


@pytest.mark.parametrize("command", ["status", "cancel"])
def test_commands_show_an_unknown_state(command: str, resting: str, settings: dict[str, str], tmp_path: Path) -> None:
    done = darkroom([command, resting], folder=tmp_path, **settings)
    assert done.returncode in {0, 1}
    assert "Traceback" not in done.stderr


def test_a_replay_shows_an_unknown_reason_and_ignores_unknown_members(
    api: Api, settings: dict[str, str], tmp_path: Path
) -> None:
    policy, observation = ScalingPolicy(), PoolObservation(reading=Reading(), replicas=0)
    decision, after = decide(observation, policy, ScalingHistory(), 1)
    entry = DecisionEntry(
        at=1, policy=policy, observation=observation, history=ScalingHistory(), decision=decision, after=after
    )
    members = json.loads(entry.encode())
    members["decision"]["reason"] = "OutOfBudget"
    members["policy"]["paused"] = "atNight"
    for part in (members, *(members[name] for name in ("policy", "observation", "history", "decision", "after"))):
        part["budget"] = 7
    members["observation"]["reading"]["budget"] = 7
    api.jobs.run(calls.append_decision(POOL, at=1, entry=json.dumps(members)))
    done = darkroom(["replay", POOL], folder=tmp_path, **settings)
    assert "OutOfBudget" in done.stdout
    assert done.stderr == ""
