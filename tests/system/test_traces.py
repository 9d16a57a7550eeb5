"""One trace id from the submission to the webhook, in the logs of all parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from darkroom.catalogue.models import Catalogue
from darkroom.ledger import calls

from tests.courier.receiver import Receiver
from tests.driven_jobs import DrivenJobs
from tests.parts import Functions, Part, environment
from tests.waiting import eventually

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def lines_about(part: Part, job_id: str) -> list[dict[str, Any]]:
    """Its complete log lines about the job so far."""
    whole, _, _ = part.log.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if job_id in line]


def test_each_line_about_a_job_names_its_trace(redis_url: str, namespace: str, tmp_path: Path) -> None:
    """A worker's lines have tests of their own (tests/worker): here the test is the worker."""
    settings = environment(redis_url, namespace, DARKROOM_WEBHOOK_ALLOW="127.0.0.1")
    functions = Functions("all", environment=settings, log=tmp_path / "functions.log")
    functions.start()
    courier = Part(
        "darkroom_courier", environment={**settings, "K_SINK": f"{functions.url}/events"}, log=tmp_path / "courier.log"
    )
    courier.start()
    jobs = DrivenJobs(redis_url, namespace)
    pool = Catalogue.load().get("sd").pool
    jobs.run(calls.announce_pool(pool, models=["sd"]))
    try:
        with Receiver().running() as receiver:
            answer = httpx.post(
                f"{functions.url}/sd",
                json={"prompt": "a lighthouse", "webhook": receiver.url},
                headers={"traceparent": TRACEPARENT},
                trust_env=False,
                timeout=60,
            )
            assert answer.status_code == 202, answer.text
            job_id = answer.json()["id"]
            jobs.start(job_id)
            jobs.complete(job_id)
            (post,) = eventually(lambda: receiver.posts, what="the webhook receives the event")
            assert post.headers["traceparent"] == TRACEPARENT
            assert json.loads(post.body)["traceparent"] == TRACEPARENT
            eventually(
                lambda: courier.said("archived") and courier.said("delivered") and courier.said("relayed"),
                what="the courier has done all that it does with a job",
            )
        eventually(lambda: functions.said("event_taken"), what="result has taken the end in")
    finally:
        courier.stop()
        functions.stop()
        jobs.close()
    of_functions, of_courier = lines_about(functions, job_id), lines_about(courier, job_id)
    assert {"accepted", "event_taken"} <= {line["event"] for line in of_functions}
    assert {"relayed", "archived", "delivered"} <= {line["event"] for line in of_courier}
    for line in (*of_functions, *of_courier):
        assert TRACE_ID in (line.get("trace_id"), *line.get("trace_ids", ())), line
    assert {line["pool"] for line in of_courier if "pool" in line} == {pool}
