"""Events without a right proof, as those of the former version: each is refused, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.proofs import PROOF

from tests.courier.conftest import Start
from tests.courier.sink import Answer, Sink
from tests.databases import migrated
from tests.driven_jobs import DrivenJobs
from tests.parts import PROOF_KEY, Functions, environment
from tests.waiting import eventually

SOON = {"DARKROOM_RELAY_LEASE_S": "0.5", "DARKROOM_POLL_INTERVAL_S": "0.1"}

OTHER_KEY = "another key for proofs of 32 characters or more"


@pytest.fixture
def result(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[Functions]:
    settings = environment(redis_url, namespace)
    migrated(settings["DARKROOM_DATABASE_URL"])
    function = Functions("result", environment=settings, log=tmp_path / "result.log")
    function.start()
    yield function
    function.stop()


class Transport:
    """The way from the sink to `result`; `answers`: with which status `result` answered each delivery."""

    def __init__(self, result: Functions, *, broker: bool) -> None:
        self.answers: list[int] = []
        self.strips_proofs = True
        self._result = result
        self._broker = broker

    def __call__(self, event: Event) -> Answer:
        if self.strips_proofs:
            kept = {name: value for name, value in event.extensions.items() if name != PROOF}
            event = replace(event, extensions=kept)
        headers, body = event.encode_binary()
        answer = httpx.post(self._result.url, headers=headers, content=body, trust_env=False)
        self.answers.append(answer.status_code)
        return Answer(202) if self._broker else Answer(answer.status_code)


@pytest.mark.parametrize("broker", [False, True], ids=["directly", "through a Broker"])
def test_an_event_of_the_former_version_is_posted_again_with_a_proof(
    start: Start, sink: Sink, jobs: DrivenJobs, result: Functions, broker: bool
) -> None:
    sink.behave = transport = Transport(result, broker=broker)
    start(**SOON)
    job_id = jobs.completed()
    eventually(lambda: 403 in transport.answers, what="the event without a proof to be refused")
    assert not jobs.is_applied(job_id)
    assert job_id in jobs.outbox()

    transport.strips_proofs = False  # the courier of this version
    eventually(lambda: jobs.is_applied(job_id), what="the event to be applied")
    assert set(transport.answers) == {403, 204}


def test_during_a_rotation_the_parts_may_be_restarted_in_any_order(
    start: Start, sink: Sink, jobs: DrivenJobs, result: Functions
) -> None:
    """The courier proves with the new key already, which `result` does not know yet."""
    sink.behave = transport = Transport(result, broker=True)
    transport.strips_proofs = False
    courier = start(**SOON, DARKROOM_PROOF_KEYS=f"{OTHER_KEY},{PROOF_KEY}")
    job_id = jobs.completed()
    eventually(lambda: 403 in transport.answers, what="the event to be refused")
    assert job_id in jobs.outbox()

    assert result.stop() == 0
    result.environment["DARKROOM_PROOF_KEYS"] = f"{OTHER_KEY},{PROOF_KEY}"
    result.start()
    eventually(lambda: jobs.is_applied(job_id), what="the event to be applied")
    assert courier.is_running


def test_refused_events_are_posted_ever_more_rarely(
    start: Start, sink: Sink, jobs: DrivenJobs, result: Functions
) -> None:
    """A refusal has a pause that doubles: no loop without one."""
    sink.behave = Transport(result, broker=False)
    courier = start()
    jobs.completed()
    (first, *_) = eventually(lambda: courier.said("sink_refused"), what="a refusal")
    assert first["reason"] == "status 403"
    assert first["again_in_s"] >= 0.5
