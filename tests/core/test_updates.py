"""The message of each entry of a job's log, in the terms that clients use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from darkroom.jobs import Artifact, JobEvent, State
from darkroom.ledger.calls import AttemptEnd
from darkroom.ledger.records import LogEntry
from darkroom.links import Links
from darkroom.updates import CELERY_STATUS, STATUS, artifacts_of, celery_status, message, outcome
from pydantic import SecretStr

from tests.core.timed_jobs import TimedJobs

JOB_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
AT_MS = 1_795_186_800_123
LINKS = Links("https://darkroom.test", SecretStr("0123456789abcdef0123456789abcdef"), ttl_s=600)
NOW_S = 1_795_186_900.0
PICTURES = [
    Artifact(f"default/{JOB_ID}/1/{index}-{sha}.png", sha, "image/png", size=9, width=8, height=8)
    for index, sha in enumerate(("aaa", "bbb"))
]
COMPLETED: Mapping[str, Any] = {"artifacts": [picture.encode() for picture in PICTURES], "record": {"seed": 1}}
ERROR: Mapping[str, Any] = {"error": {"kind": "deadline", "message": "not started before its start deadline"}}


def update(event: JobEvent, state: State, data: Mapping[str, Any], *, seq: int = 7) -> dict[str, Any]:
    return message(LogEntry(JOB_ID, seq, event, state, AT_MS, data), LINKS, now_s=NOW_S)


def shape(event: JobEvent, state: State, data: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what every message has, but for its status."""
    whole = update(event, state, data)
    return {name: whole[name] for name in whole if name not in {"job_id", "timestamp", "seq", "event_id", "state"}}


def test_every_message_has_its_job_time_and_sequence() -> None:
    assert update(JobEvent.STARTED, State.RUNNING, {"attempt": 1, "worker": "one"}) == {
        "job_id": JOB_ID,
        "status": "started",
        "timestamp": "2026-11-20T15:00:00.123Z",
        "seq": 7,
        "event_id": f"{JOB_ID}:7",
        "state": "running",
    }


def test_a_terminal_event_has_the_same_id_at_every_sequence() -> None:
    ids = {update(JobEvent.COMPLETED, State.COMPLETED, COMPLETED, seq=seq)["event_id"] for seq in (3, 9)}
    assert ids == {f"{JOB_ID}:end"}


@pytest.mark.parametrize(
    ("event", "state", "data", "expected"),
    [
        (JobEvent.ACCEPTED, State.PENDING, {"model": "sd"}, {"status": "pending"}),
        (JobEvent.RELEASED, State.PENDING, {"reason": "drain"}, {"status": "pending"}),
        (JobEvent.RETRIED, State.PENDING, ERROR, {"status": "pending"}),
        (JobEvent.STARTED, State.RUNNING, {"attempt": 1}, {"status": "started"}),
        (JobEvent.PROGRESSED, State.RUNNING, {"progress": 25, "step": 1}, {"status": "processing", "progress": 25}),
        (JobEvent.CANCELLING, State.RUNNING, {}, {"status": "processing"}),
        (JobEvent.FAILED, State.FAILED, ERROR, {"status": "failed", "error": ERROR["error"]["message"]}),
        (JobEvent.CANCELLED, State.CANCELLED, ERROR, {"status": "cancelled", "error": ERROR["error"]["message"]}),
        (
            JobEvent.EXPIRED,
            State.EXPIRED,
            ERROR,
            {"status": "failed", "error": f"expired: {ERROR['error']['message']}"},
        ),
    ],
    ids=lambda value: value.value if isinstance(value, JobEvent) else "",
)
def test_each_event_has_its_members(
    event: JobEvent, state: State, data: Mapping[str, Any], expected: dict[str, Any]
) -> None:
    assert shape(event, state, data) == expected


def test_a_completed_job_has_valid_links() -> None:
    whole = shape(JobEvent.COMPLETED, State.COMPLETED, COMPLETED)
    assert (whole["status"], whole["progress"], whole["content_id"]) == ("completed", 100, "aaa")
    assert whole["output_paths"] == [LINKS.to(picture.key, now_s=NOW_S) for picture in PICTURES]


def test_a_completed_job_without_pictures_has_no_content() -> None:
    whole = shape(JobEvent.COMPLETED, State.COMPLETED, {"artifacts": []})
    assert (whole["output_paths"], whole["content_id"]) == ([], None)


def test_every_event_has_a_status_and_every_state_one_of_celery() -> None:
    assert STATUS.keys() == set(JobEvent)
    assert CELERY_STATUS.keys() == set(State)
    assert set(STATUS.values()) == {"pending", "started", "processing", "completed", "failed", "cancelled"}


def test_an_unfinished_job_has_no_outcome() -> None:
    assert outcome(State.RUNNING, None, LINKS, now_s=NOW_S) == {}
    assert outcome(State.PENDING, ERROR, LINKS, now_s=NOW_S) == {}


def test_the_artifacts_of_a_terminal_entry_are_decoded() -> None:
    assert artifacts_of(COMPLETED) == PICTURES
    assert artifacts_of(ERROR) == []


def test_celerys_state_follows_the_job(redis_url: str, namespace: str) -> None:
    jobs = TimedJobs(redis_url, namespace)
    words = []
    job_id = jobs.submit()
    words.append(celery_status(jobs.record(job_id)))
    jobs.start(job_id)
    words.append(celery_status(jobs.record(job_id)))
    assert jobs.retry(job_id, delay_ms=0) is AttemptEnd.PENDING
    words.append(celery_status(jobs.record(job_id)))
    jobs.claim(job_id, token="second")
    words.append(celery_status(jobs.record(job_id)))
    jobs.finish(job_id, token="second")
    words.append(celery_status(jobs.record(job_id)))
    assert words == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
    jobs.close()


@pytest.mark.parametrize(
    ("state", "word"),
    [(State.FAILED, "FAILURE"), (State.CANCELLED, "REVOKED"), (State.EXPIRED, "REVOKED")],
)
def test_celerys_state_of_a_terminal_job(state: State, word: str) -> None:
    assert CELERY_STATUS[state] == word
