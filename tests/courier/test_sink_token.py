"""The token for the sink, in clusters where Knative's OIDC authentication is on."""

from __future__ import annotations

from pathlib import Path

from tests.courier.conftest import Start
from tests.courier.sink import Sink
from tests.driven_jobs import DrivenJobs
from tests.waiting import eventually


def test_each_event_carries_the_current_token_and_without_one_the_event_waits(
    start: Start, sink: Sink, jobs: DrivenJobs, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    courier = start(DARKROOM_SINK_TOKEN_FILE=str(token))
    waiting = jobs.completed()
    refused = eventually(lambda: courier.said("sink_refused"), what="the courier reports that it has no token")
    assert "token" in refused[0]["reason"]
    assert sink.of(waiting) == []

    for text in ("first.token.one", "second.token.two"):
        token.write_text(text + "\n")
        sink.await_post(jobs.completed())
        assert sink.headers[-1]["authorization"] == f"Bearer {text}"
        assert text not in courier.log.read_text()
    sink.await_post(waiting)


def test_without_a_token_file_no_credential_is_sent(start: Start, sink: Sink, jobs: DrivenJobs) -> None:
    start()
    sink.await_post(jobs.completed())
    assert "authorization" not in sink.headers[-1]
