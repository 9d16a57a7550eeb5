"""submit: which requests are accepted and which are refused, over real HTTP, with a real Redis."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.http import from_http
from darkroom import traces
from darkroom.cloudevents.http import MAX_BATCH_EVENTS
from darkroom.ledger import calls, queues
from darkroom.ledger.calls import WorkerState
from kombu import Connection

from tests.darkroom_command import darkroom
from tests.event_vectors import Vector, load
from tests.functions.api import EVENT_TYPE, JOBS, TIMEOUT_S, Api, binary, faults, serving, slug, structured
from tests.parts import ahead, environment
from tests.redis_server import RedisServer
from tests.waiting import eventually

HOOK = "https://client.example/hook"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MEGABYTE = 1024 * 1024
LIMIT = 2 * MEGABYTE
"""The default of `DARKROOM_MAX_BODY_BYTES`."""


def post_event(api: Api, event: object, **more: Any) -> httpx.Response:
    """An event in structured mode."""
    return api.post("/", content=json.dumps(event), headers={"content-type": STRUCTURED}, **more)


def post_batch(api: Api, events: list[object]) -> httpx.Response:
    return api.post("/", content=json.dumps(events), headers={"content-type": BATCH})


# CloudEvents, in three modes


def test_the_response_to_an_event_is_a_receipt_as_an_event(api: Api) -> None:
    response = api.post("/", headers=binary("answer", traceparent=TRACEPARENT), json={"prompt": "a lighthouse"})
    job_id = response.json()["id"]
    assert response.status_code == 202
    assert response.json() == {"id": job_id, "job_id": job_id, "task_id": job_id, "status": "pending"}
    assert response.headers["location"] == JOBS + job_id
    event = from_http(dict(response.headers), response.content)
    assert event["type"] == "dev.darkroom.job.accepted"
    assert event["subject"] == job_id
    assert event["id"] == f"{job_id}:1"
    assert event["time"] == api.job(job_id)["created_at"]
    assert event["traceparent"] == TRACEPARENT
    assert event.data == response.json()


@pytest.mark.parametrize("vector", load(), ids=lambda vector: str(vector.id))
def test_a_vector_is_accepted_or_refused_by_name(api: Api, vector: Vector) -> None:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in vector.headers.items()]
    response = api.post("/", content=vector.body, headers=headers)
    if vector.verdicts is not None:
        verdicts = response.json()["verdicts"]
        assert len(verdicts) == len(vector.verdicts)
        for verdict, field in zip(verdicts, vector.verdicts, strict=True):
            named = [error["field"] for error in verdict.get("problem", {}).get("errors", [])]
            if field is not None:
                assert verdict["status"] == 422
                assert field in named
            elif vector.job:
                assert verdict["status"] == 202
    elif vector.job:
        assert response.status_code == 202, response.text
        assert api.job(response.json()["id"])["state"] == "pending"
    else:
        assert response.status_code == 422
        assert vector.valid or slug(response) == vector.error
        assert vector.field is None or vector.field in faults(response)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": "dev.darkroom.job.completed"}, "type"),
        ({"id": "x" * 2049}, "id"),
        ({"source": "/" + "x" * 2048}, "source"),
        ({"expirytime": "tomorrow"}, "expirytime"),
        ({"expirytime": 7}, "expirytime"),
        ({"data": ["a prompt"]}, "data"),
        ({"data": "a prompt"}, "data"),
        ({"data": {"prompt": 7}}, "data.prompt"),
        ({"data": {"input": {"prompt": 7}}}, "data.input.prompt"),
        ({"data": {"model": "nope"}}, "data.model"),
        ({"data": {"colour": "red"}}, "data.colour"),
        ({"data": {"webhook": "https://127.0.0.1/"}}, "data.webhook"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_valid_event_that_cannot_be_accepted_is_refused_with_422(
    api: Api, change: dict[str, object], field: str
) -> None:
    """Knative would deliver it again for 404, so an unknown model is 422 here too."""
    response = post_event(api, structured("refused") | change)
    assert response.status_code == 422
    assert faults(response) == [field]


def test_a_batch_is_answered_with_a_verdict_for_each_event(api: Api) -> None:
    bad = structured("batch-2", data={"prompt": 7})
    broken = {"specversion": "1.0", "id": "batch-3"}
    response = post_batch(api, [structured("batch-1"), bad, broken, structured("batch-1")])
    first, second, third, fourth = response.json()["verdicts"]
    assert response.status_code == 202
    assert (first["status"], second["status"], third["status"], fourth["status"]) == (202, 422, 422, 200)
    assert fourth["id"] == first["id"]
    assert first["location"] == JOBS + first["id"]
    assert api.job(first["id"])["state"] == "pending"
    assert [error["field"] for error in second["problem"]["errors"]] == ["data.prompt"]
    assert [error["field"] for error in third["problem"]["errors"]] == ["source", "type"]


def test_the_events_of_a_batch_are_accepted_in_their_order(api: Api) -> None:
    """Also when the first event causes a new reading of Redis' memory, as after a pause."""
    time.sleep(1.1)
    response = post_batch(api, [structured("in order")] * 3)
    assert [verdict["status"] for verdict in response.json()["verdicts"]] == [202, 200, 200]


def test_a_batch_without_an_accepted_event_is_refused(api: Api) -> None:
    response = post_batch(api, [structured("none-1", type="x"), 7])
    assert response.status_code == 422
    assert slug(response) == "invalid-event"
    assert [verdict["status"] for verdict in response.json()["verdicts"]] == [422, 422]


def test_a_batch_has_a_limit(api: Api) -> None:
    events: list[object] = [structured(f"many-{number}") for number in range(MAX_BATCH_EVENTS + 1)]
    assert faults(post_batch(api, events)) == ["batch"]
    taken = post_batch(api, events[:-1])
    assert taken.status_code == 202
    assert len({verdict["id"] for verdict in taken.json()["verdicts"]}) == MAX_BATCH_EVENTS


# Repeats


def test_a_repeated_event_is_one_job(api: Api) -> None:
    """In any mode, spacing and order of members: a Broker may change these."""
    data = {"prompt": "a lighthouse", "seed": 7}
    first = api.post("/", headers=binary("repeated"), json=data)
    second = api.post("/", headers=binary("repeated"), content=b'{ "seed": 7,\n"prompt": "a lighthouse" }')
    third = post_event(api, structured("repeated", time="2026-11-20T15:00:00Z", data=data))
    assert [first.status_code, second.status_code, third.status_code] == [202, 200, 200]
    assert first.json() == second.json() == third.json()
    assert "darkroom-repeated" not in first.headers
    assert second.headers["darkroom-repeated"] == third.headers["darkroom-repeated"] == "true"
    assert second.headers["location"] == first.headers["location"]
    facts = [
        {name: value for name, value in response.headers.items() if name.startswith("ce-") and name != "ce-traceparent"}
        for response in (first, second)
    ]
    assert facts[0] == facts[1]


def test_an_event_of_another_source_is_another_job(api: Api) -> None:
    ids = {
        api.post("/", headers=binary("shared", source=source), json={"prompt": "x"}).json()["id"]
        for source in ("/one", "/two")
    }
    assert len(ids) == 2


def test_an_event_that_comes_again_with_other_data_is_refused(api: Api) -> None:
    api.post("/", headers=binary("changed"), json={"prompt": "one"})
    response = api.post("/", headers=binary("changed"), json={"prompt": "two"})
    assert response.status_code == 422
    assert slug(response) == "event-id-reused"
    (verdict,) = post_batch(api, [structured("changed", data={"prompt": "two"})]).json()["verdicts"]
    for problem in (response.json(), verdict["problem"]):
        assert "idempotency" not in f"{problem}".lower(), "the sender sent no such key"


def test_a_repeated_submission_is_answered_with_the_state_of_its_job(api: Api) -> None:
    """Over REST, as an event, in a batch and as a redrive; null if the job was deleted."""
    event, key = structured("repeated state", data={"prompt": "x"}), {"Idempotency-Key": "repeated state"}
    posts: list[Callable[[], httpx.Response]] = [
        lambda: api.post(JOBS, json={"prompt": "x"}, headers=key),
        lambda: api.post("/", headers=binary("repeated binary"), json={"prompt": "x"}),
        lambda: post_event(api, event),
    ]
    ids = [post().json()["id"] for post in posts]
    for job_id in ids:
        api.jobs.start(job_id)
    assert [post().json()["status"] for post in posts] == ["running"] * 3
    waited = api.post(JOBS, json={"prompt": "x"}, headers={**key, "Prefer": "wait=0"})
    assert waited.json()["status"] == "running", "the wait was over before the job"
    for job_id in ids:
        api.jobs.complete(job_id)
    assert [post().json()["status"] for post in posts] == ["completed"] * 3
    (verdict,) = post_batch(api, [event]).json()["verdicts"]
    assert (verdict["status"], verdict["state"]) == (200, "completed")
    api.request("DELETE", JOBS + ids[0])
    assert (posts[0]().status_code, posts[0]().json()["status"]) == (200, None)


def test_an_idempotency_key_makes_repeats_one_job(api: Api) -> None:
    key = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
    first = api.post(JOBS, json={"prompt": "one"}, headers=key)
    second = api.post(JOBS, json={"prompt": "one"}, headers=key)
    assert (first.status_code, second.status_code) == (202, 200)
    assert second.json() == first.json()
    assert second.headers["darkroom-repeated"] == "true"
    for path, body in ((JOBS, {"prompt": "two"}), ("/sd", {"prompt": "one"})):
        other = api.post(path, json=body, headers=key)
        assert other.status_code == 422
        assert slug(other) == "idempotency-key-reused"


def test_an_integer_is_one_however_json_writes_it(api: Api) -> None:
    """JSON Schema 2020-12: a number without a fraction is an integer."""
    as_json = {"content-type": "application/json"}
    body = b'{"steps": 42.0, "seed": 1e3, "priority": 7.0, "width": 1.024e3}'
    job = api.job(api.post(JOBS, content=body, headers=as_json).json()["id"])
    assert (job["input"]["steps"], job["seed"], job["priority"], job["width"]) == (42, 1000, 7, 1024)
    refused = api.post(JOBS, content=b'{"steps": 42.5, "seed": 1e-3, "priority": 7.5}', headers=as_json)
    assert set(faults(refused)) == {"priority", "seed", "steps"}


def test_without_a_key_the_same_request_is_another_job(api: Api) -> None:
    assert api.submit({"prompt": "twice"}) != api.submit({"prompt": "twice"})


@pytest.mark.parametrize("keys", [[""], ["k" * 256], ["a", "b"], ["a\tb"], ["ü"]], ids=repr)
def test_an_invalid_idempotency_key_is_refused(api: Api, keys: list[str]) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1")) for key in keys]
    response = api.post("/flux", headers=headers)
    assert response.status_code == 422
    assert faults(response) == ["Idempotency-Key"]


def test_a_refused_request_does_not_use_up_its_key(api: Api) -> None:
    key = {"Idempotency-Key": "once more"}
    assert api.post(JOBS, json={"prompt": 7}, headers=key).status_code == 422
    assert api.post(JOBS, json={"prompt": "x"}, headers=key).status_code == 202


async def test_a_hundred_at_once_get_a_hundred_jobs(api: Api) -> None:
    async with httpx.AsyncClient(base_url=api.functions.url, timeout=TIMEOUT_S, trust_env=False) as client:
        bodies = [{"prompt": f"number {number}"} for number in range(100)]
        responses = await asyncio.gather(*(client.post(JOBS, json=body) for body in bodies))
    for response in responses:
        api.contract.check(response)
    assert {response.status_code for response in responses} == {202}
    prompts = {response.json()["id"]: body["prompt"] for response, body in zip(responses, bodies, strict=True)}
    assert len(prompts) == 100
    assert all(api.job(job_id)["prompt"] == prompt for job_id, prompt in prompts.items())


async def test_the_same_event_a_hundred_times_at_once_is_one_job(api: Api) -> None:
    async with httpx.AsyncClient(base_url=api.functions.url, timeout=TIMEOUT_S, trust_env=False) as client:
        responses = await asyncio.gather(
            *(client.post("/", json={"prompt": "x"}, headers=binary("at once")) for _ in range(100))
        )
    assert len({response.json()["id"] for response in responses}) == 1
    assert sorted(response.status_code for response in responses) == [200] * 99 + [202]


# REST


def test_a_model_is_selected_by_its_path(api: Api) -> None:
    response = api.post("/sd", json={"input": {"prompt": "a lighthouse", "size": "512x768", "seed": 7}})
    job = api.job(response.json()["task_id"])
    assert response.status_code == 202
    assert (job["model"], job["width"], job["height"], job["seed"]) == ("sd", 512, 768, 7)


def test_a_model_without_a_body_uses_its_defaults(api: Api) -> None:
    response = api.post("/flux")
    job = api.job(response.json()["id"])
    assert response.status_code == 202
    assert (job["model"], job["width"], job["height"]) == ("flux", 1024, 1024)
    assert job["prompt"]


def test_every_field_of_an_earlier_api_is_accepted_under_input(api: Api) -> None:
    """The fields that existing clients send for this model."""
    sent = {"prompt": "x", "seed": 1, "enable_base64_output": True, "cache_threshold": 0.0, "size": "832x1216"}
    job = api.job(api.post("/flux", json={"input": sent}).json()["id"])
    assert {name: job["input"].get(name) for name in sent if name != "size"} == {
        name: value for name, value in sent.items() if name != "size"
    }
    assert (job["width"], job["height"]) == (832, 1216)


def test_parameters_mean_the_same_flat_and_under_input(api: Api) -> None:
    parameters = {"prompt": "x", "steps": 2, "seed": 3}
    flat = api.job(api.submit({**parameters, "user_id": "me"}))
    nested = api.job(api.submit({"input": parameters, "user_id": "me"}))
    assert flat["input"] == nested["input"]
    assert flat["user_id"] == nested["user_id"] == "me"


def test_null_is_as_good_as_absent(api: Api) -> None:
    names = (
        "model",
        "input",
        "user_id",
        "job_type",
        "priority",
        "run_timeout",
        "start_deadline",
        "webhook",
        "webhook_events_filter",
    )
    job = api.job(api.submit(dict.fromkeys(names) | {"prompt": "x"}))
    assert (job["model"], job["job_type"], job["user_id"], job["priority"]) == ("flux", "image", None, 5)


def test_the_job_stores_what_was_requested(api: Api) -> None:
    job = api.job(
        api.submit({"model": "sd", "job_type": "image", "user_id": "anna", "priority": 2, "run_timeout": 12.5})
    )
    assert (job["model"], job["job_type"], job["user_id"]) == ("sd", "image", "anna")
    assert (job["priority"], job["run_timeout"]) == (2, 12.5)
    assert api.job(api.submit())["run_timeout"] == 600


def test_the_job_stores_its_webhook_and_the_events(api: Api) -> None:
    for sent, kept in (
        ({}, (None, None)),
        ({"webhook": HOOK}, (HOOK, ["completed", "failed", "cancelled", "expired"])),
        ({"webhook": HOOK, "webhook_events_filter": ["failed", "started"]}, (HOOK, ["started", "failed"])),
    ):
        job = api.job(api.submit(sent))
        assert (job["webhook"], job["webhook_events_filter"]) == kept
        event = api.post("/", headers=binary(f"webhook {len(sent)}"), json=sent)
        job = api.job(event.json()["id"])
        assert (job["webhook"], job["webhook_events_filter"]) == kept


def test_another_webhook_is_another_request(api: Api) -> None:
    key = {"Idempotency-Key": "with a webhook"}
    assert api.post(JOBS, json={"webhook": HOOK}, headers=key).status_code == 202
    assert api.post(JOBS, json={"webhook": HOOK}, headers=key).status_code == 200
    other = api.post(JOBS, json={"webhook": HOOK + "/other"}, headers=key)
    assert (other.status_code, slug(other)) == (422, "idempotency-key-reused")


def test_a_missing_seed_is_drawn_and_reported(api: Api) -> None:
    drawn = {api.job(api.submit())["seed"] for _ in range(5)}
    assert len(drawn) == 5
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in drawn)
    assert api.job(api.submit({"seed": 2**53 - 1}))["seed"] == 2**53 - 1


def test_a_more_urgent_job_comes_before_those_that_wait(api: Api) -> None:
    """The pool of this model has no other jobs."""
    later, sooner = (api.submit({"model": "sd", "priority": priority}) for priority in (9, 0))
    assert api.job(sooner)["place"] < api.job(later)["place"]


def test_a_start_deadline_is_a_time_or_seconds(api: Api) -> None:
    before = int(time.time())
    at = api.job(api.submit({"start_deadline": "2999-12-31T23:59:59+01:00"}))
    within = api.job(api.submit({"start_deadline": 3600}))
    assert at["start_deadline"] == "2999-12-31T22:59:59.000Z"
    assert within["start_deadline"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before + 3600))
    assert within["start_deadline"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3601))


def test_seconds_of_a_start_deadline_are_counted_by_redis_and_doctor_finds_the_functions_clock(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """A function whose clock is an hour behind."""
    own = environment(redis_url, namespace)
    path = ahead(tmp_path, seconds=-3600)
    with serving(redis_url, namespace, tmp_path, PYTHONPATH=path) as api:
        job_id = api.submit({"start_deadline": 30})
        assert api.jobs.run(calls.expire()) == []
        assert api.job(job_id)["state"] == "pending"
        done = darkroom(["doctor", "--json"], folder=tmp_path, **own)
        findings = [json.loads(line) for line in done.stdout.splitlines()]
        (clock,) = [finding for finding in findings if finding.get("check") == "clocks"]
        assert "the clock of a function that accepts jobs was 60 min behind Redis'" in clock["seen"]
        done = darkroom(["doctor", "--json"], folder=tmp_path, **own | {"PYTHONPATH": path})
        findings = [json.loads(line) for line in done.stdout.splitlines()]
        assert any("the clock of this machine was 60 min behind Redis'" in each.get("seen", "") for each in findings)


def test_an_events_expirytime_is_a_start_deadline_and_the_earlier_one_counts(api: Api) -> None:
    early, late = "2999-01-01T00:00:00Z", "2999-06-01T00:00:00Z"
    for number, (expiry, deadline) in enumerate([(early, late), (late, early), (early, None)]):
        response = post_event(api, structured(f"expiry-{number}", expirytime=expiry, data={"start_deadline": deadline}))
        assert api.job(response.json()["id"])["start_deadline"] == "2999-01-01T00:00:00.000Z"


def test_a_deadline_that_has_passed_expires_the_job_rather_than_a_repeat_of_its_event(api: Api) -> None:
    """A sender whose first response was lost must receive the job's id, and no refusal because it is too late."""
    event = structured("too late", data={"start_deadline": "2020-01-01T00:00:00Z"})
    first, second = post_event(api, event), post_event(api, event)
    assert (first.status_code, second.status_code) == (202, 200)
    api.jobs.expire(first.json()["id"])
    assert api.job(first.json()["id"])["state"] == "expired"


# The trace


def test_a_trace_goes_from_the_request_to_the_job(api: Api) -> None:
    over_rest = api.submit(headers={"traceparent": TRACEPARENT})
    in_event = post_event(api, structured("traced", traceparent=TRACEPARENT)).json()["id"]
    assert api.job(over_rest)["traceparent"] == api.job(in_event)["traceparent"] == TRACEPARENT


@pytest.mark.parametrize("given", [None, "", "00-0-0-00", TRACEPARENT.upper(), "ff" + TRACEPARENT[2:]])
def test_without_a_well_formed_trace_one_begins(api: Api, given: str | None) -> None:
    headers = {} if given is None else {"traceparent": given}
    begun = {api.job(api.submit(headers=headers))["traceparent"] for _ in range(2)}
    assert len(begun) == 2
    assert all(traces.traceparent_of(traceparent) for traceparent in begun)


# What reaches the worker


def test_the_message_is_a_celery_task_of_the_jobs_id_with_the_requesting_event(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    with serving(redis_url, namespace, tmp_path) as api:
        api.jobs.run(calls.register_worker("w", pool="flux", state=WorkerState.READY, pod="", models=["flux"]))
        headers = binary("for the worker", source="/studio", traceparent=TRACEPARENT, subject="order-42")
        response = api.client.post("/", headers=headers, json={"prompt": "x", "user_id": "anna"})
        job_id = response.json()["id"]
        options = queues.transport_options(namespace, "flux")
        with Connection(redis_url, transport_options=options) as broker, broker.SimpleQueue("pool.flux") as queue:
            message = queue.get(block=True, timeout=TIMEOUT_S)
            arguments, _, _ = message.payload
            message.ack()
    event = message.headers["cloudEvent"]
    assert arguments == [], "the data is in the record"
    assert message.headers["task"] == queues.TASK_NAME
    assert message.headers["id"] == message.properties["correlation_id"] == job_id
    assert message.headers["traceparent"] == TRACEPARENT
    assert (event["specversion"], event["type"]) == ("1.0", EVENT_TYPE)
    assert (event["id"], event["source"], event["subject"]) == ("for the worker", "/studio", job_id)


# Refusals


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"colour": "red"}, ["colour"]),
        ({"prompt": 7}, ["prompt"]),
        ({"prompt": ""}, ["prompt"]),
        ({"prompt": "x" * 4001}, ["prompt"]),
        ({"prompt": "x" * MEGABYTE}, ["prompt"]),
        ({"prompt": "bell \x07"}, ["prompt"]),
        ({"width": 2049, "height": 63, "steps": 0}, ["width", "height", "steps"]),
        ({"width": 833}, ["width"]),
        ({"width": "832"}, ["width"]),
        ({"width": 832.5}, ["width"]),
        ({"width": True}, ["width"]),
        ({"width": 2048, "height": 2048}, ["width"]),
        ({"size": "832 x 1216"}, ["size"]),
        ({"guidance": 1e300}, ["guidance"]),
        ({"seed": -1}, ["seed"]),
        ({"seed": 10**30}, ["seed"]),
        ({"negative_prompt": "fog"}, ["negative_prompt"]),
        ({"scheduler": "none such"}, ["scheduler"]),
        ({"job_type": "video"}, ["job_type"]),
        ({"user_id": 7}, ["user_id"]),
        ({"user_id": ""}, ["user_id"]),
        ({"user_id": "x" * 201}, ["user_id"]),
        ({"user_id": "a\nb"}, ["user_id"]),
        ({"priority": 10}, ["priority"]),
        ({"priority": -1}, ["priority"]),
        ({"priority": 5.5}, ["priority"]),
        ({"priority": True}, ["priority"]),
        ({"run_timeout": 0}, ["run_timeout"]),
        ({"run_timeout": 601}, ["run_timeout"]),
        ({"run_timeout": "60"}, ["run_timeout"]),
        ({"start_deadline": 0}, ["start_deadline"]),
        ({"start_deadline": 1e9}, ["start_deadline"]),
        ({"start_deadline": "soon"}, ["start_deadline"]),
        ({"start_deadline": "2026-11-20T15:00:00"}, ["start_deadline"]),
        ({"start_deadline": False}, ["start_deadline"]),
        ({"webhook": 7}, ["webhook"]),
        ({"webhook": ""}, ["webhook"]),
        ({"webhook": "client.example/hook"}, ["webhook"]),
        ({"webhook": "http://client.example/hook"}, ["webhook"]),
        ({"webhook": "https://client.example:22/hook"}, ["webhook"]),
        ({"webhook": "https://me:secret@client.example/"}, ["webhook"]),
        ({"webhook": "https://169.254.169.254/latest/meta-data"}, ["webhook"]),
        ({"webhook": "https://client.example/" + "x" * 2048}, ["webhook"]),
        ({"webhook": HOOK, "webhook_events_filter": []}, ["webhook_events_filter"]),
        ({"webhook": HOOK, "webhook_events_filter": "completed"}, ["webhook_events_filter"]),
        ({"webhook": HOOK, "webhook_events_filter": ["progressed"]}, ["webhook_events_filter"]),
        ({"webhook": HOOK, "webhook_events_filter": [["failed"]]}, ["webhook_events_filter"]),
        ({"webhook": HOOK, "webhook_events_filter": ["failed", "failed"]}, ["webhook_events_filter"]),
        ({"webhook_events_filter": ["completed"]}, ["webhook_events_filter"]),
        ({"webhook_events_filter": "completed"}, ["webhook_events_filter"]),
        ({"input": "a prompt"}, ["input"]),
        ({"input": {"prompt": 7, "user_id": "x"}}, ["input.user_id", "input.prompt"]),
        ({"input": {}, "prompt": "x", "steps": 2}, ["prompt", "steps"]),
        ({"model": 7}, ["model"]),
        ({"model": ["flux"]}, ["model"]),
        ({"id": "mine", "tenant": "mine", "task_id": "mine"}, ["id", "tenant", "task_id"]),
        ({"priority": 10, "colour": "red", "width": 1}, ["priority", "colour", "width"]),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_field_that_cannot_be_taken_is_refused_by_name(api: Api, body: dict[str, object], fields: list[str]) -> None:
    response = api.post(JOBS, json=body)
    assert response.status_code == 422
    assert slug(response) == "invalid-input"
    assert sorted(faults(response)) == sorted(fields)
    assert fields[0].rsplit(".", 1)[-1] in response.json()["detail"] or len(fields) > 3


def test_a_refusal_is_short_whatever_was_sent(api: Api) -> None:
    response = api.post(JOBS, json={f"{number}-{'x' * 500}": None for number in range(1000)})
    assert response.status_code == 422
    assert len(response.content) < 20_000


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"null",
        b"[]",
        b'"a prompt"',
        b"{'prompt': 'x'}",
        b'{"prompt": "x"',
        b'{"prompt": "x"} {}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"guidance": NaN}',
        b'{"guidance": 1e999}',
        b'{"seed": 1, "seed": 2}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_cannot_be_read_is_refused(api: Api, body: bytes) -> None:
    response = api.post(JOBS, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert slug(response) == "malformed-request"
    assert faults(response) == ["body"]


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/jsonx",
        "json",
        "",
        STRUCTURED,
        BATCH,
    ],
)
def test_a_body_of_another_type_is_refused(api: Api, content_type: str | None) -> None:
    for path in (JOBS, "/flux"):
        headers = {} if content_type is None else {"content-type": content_type}
        response = api.post(path, content=b'{"prompt": "x"}', headers=headers)
        assert response.status_code == 415
        assert faults(response) == ["content-type"]


@pytest.mark.parametrize("content_type", ["application/json;charset=UTF-8", "Application/JSON", "application/x+json"])
def test_a_json_type_may_be_written_in_other_ways(api: Api, content_type: str) -> None:
    assert api.post(JOBS, content=b"{}", headers={"content-type": content_type}).status_code == 202


def test_an_unknown_model_is_answered_with_the_names_there_are(api: Api) -> None:
    for response in (api.post("/nope"), api.post(JOBS, json={"model": "nope"})):
        assert response.status_code == 404
        assert slug(response) == "unknown-model"
        assert faults(response) == ["model"]
        assert "flux, sd" in response.json()["detail"]


def test_a_model_field_must_not_contradict_the_path(api: Api) -> None:
    assert faults(api.post("/flux", json={"model": "sd"})) == ["model"]
    assert api.post("/flux", json={"model": "flux"}).status_code == 202


def in_chunks(size: int) -> Iterator[bytes]:
    """A body without a declared length."""
    yield b'{"prompt": "'
    for _ in range(size // 65_536):
        yield b"x" * 65_536
    yield b'"}'


@pytest.mark.parametrize("path", ["/", "/flux", JOBS])
@pytest.mark.parametrize(
    "content", [lambda: b"x" * (LIMIT + 1), lambda: in_chunks(LIMIT + MEGABYTE)], ids=["declared", "chunked"]
)
def test_a_body_above_the_limit_is_refused_and_the_next_one_is_read(
    api: Api, path: str, content: Callable[[], bytes | Iterator[bytes]]
) -> None:
    response = api.post(path, content=content(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert str(LIMIT) in response.json()["detail"]
    assert api.post("/flux").status_code == 202


def test_a_body_of_exactly_the_limit_is_read(api: Api) -> None:
    body = b'{"prompt": "x"}'.ljust(LIMIT)
    assert api.post(JOBS, content=body, headers={"content-type": "application/json"}).status_code == 202


def test_data_of_a_batch_may_be_binary(api: Api) -> None:
    encoded = base64.b64encode(b'{"prompt": "x", "seed": 5}').decode()
    response = post_batch(api, [structured("base64", data_base64=encoded)])
    assert api.job(response.json()["verdicts"][0]["id"])["seed"] == 5


def test_a_model_whose_pool_was_never_announced_is_503(redis_url: str, namespace: str, tmp_path: Path) -> None:
    with serving(redis_url, namespace, tmp_path, announce=False) as api:
        for response in (api.post("/flux"), post_event(api, structured("no pool"))):
            assert response.status_code == 503
            assert slug(response) == "no-pool"
        batch = post_batch(api, [structured("no pool"), structured("bad", type="x")])
        assert batch.status_code == 503
        assert [verdict["status"] for verdict in batch.json()["verdicts"]] == [503, 422]


def test_a_full_backlog_is_429_until_there_is_room(redis_url: str, namespace: str, tmp_path: Path) -> None:
    with serving(redis_url, namespace, tmp_path, DARKROOM_BACKLOG_LIMIT="2") as api:
        first, _ = api.submit(), api.submit()
        refused = api.post("/flux")
        assert refused.status_code == 429
        assert slug(refused) == "backlog-full"
        assert post_event(api, structured("full")).status_code == 429
        assert api.post("/sd").status_code == 202
        api.post(f"{JOBS}{first}/cancel")
        assert api.post("/flux").status_code == 202


def test_jobs_that_take_too_many_bytes_are_429_until_there_is_room(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    with serving(redis_url, namespace, tmp_path, DARKROOM_BACKLOG_BYTES=str(MEGABYTE)) as api:
        large = {"prompt": "\U0001f5fc" * 4_000}
        accepted = []
        while (answer := api.post("/flux", json=large)).status_code == 202:
            accepted.append(answer.json()["id"])
        assert 40 < len(accepted) < 60
        assert (answer.status_code, slug(answer)) == (429, "backlog-full")
        api.post(f"{JOBS}{accepted[0]}/cancel")
        assert api.post("/sd", json=large).status_code == 202


def test_while_memory_is_nearly_used_up_nothing_is_accepted(
    own_redis: RedisServer, namespace: str, tmp_path: Path
) -> None:
    with serving(own_redis.url, namespace, tmp_path) as api:
        job_id = api.submit()
        used = api.jobs.redis.info("memory")["used_memory"]
        api.jobs.redis.config_set("maxmemory", used + MEGABYTE)
        (refused,) = eventually(
            lambda: [response for response in (api.post("/flux"),) if response.status_code != 202],
            what="a new reading of the memory",
        )
        assert refused.status_code == 503
        assert slug(refused) == "memory-high"
        assert api.post(f"{JOBS}{job_id}/cancel").json()["receipt"] == "dequeued"
        api.jobs.redis.config_set("maxmemory", 0)
        eventually(lambda: api.post("/flux").status_code == 202, what="a job that is taken again")


def test_while_redis_is_unavailable_everything_is_503_and_the_process_stays_ready(
    own_redis: RedisServer, namespace: str, tmp_path: Path
) -> None:
    with serving(own_redis.url, namespace, tmp_path) as api:
        job_id = api.submit()
        own_redis.stop()
        for response in (
            api.post("/flux"),
            api.post(JOBS, json={}),
            post_event(api, structured("away")),
            post_batch(api, [structured("away"), structured("away, too")]),
            api.get(f"/tasks/{job_id}"),
            api.get(JOBS + job_id),
            api.get(JOBS),
            api.post(f"{JOBS}{job_id}/cancel"),
        ):
            assert response.status_code == 503
            assert slug(response) == "ledger-unavailable"
        assert api.client.get("/healthz").status_code == 200
        assert api.client.get("/readyz").status_code == 200
        own_redis.start()
        assert api.post("/flux").status_code == 202
        assert api.job(job_id)["state"] == "pending"


def test_a_redis_that_hangs_is_unavailable(own_redis: RedisServer, namespace: str, tmp_path: Path) -> None:
    with serving(own_redis.url, namespace, tmp_path) as api:
        api.submit()
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            assert api.post("/flux").status_code == 503
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        eventually(lambda: api.post("/flux").status_code == 202, what="a job that is taken again")


# Paths and methods


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/", "POST"),
        ("PUT", "/", "POST"),
        ("OPTIONS", "/", "POST"),
        ("GET", "/flux", "POST"),
        ("DELETE", "/sd", "POST"),
        ("PUT", JOBS, "POST, GET, HEAD"),
        ("DELETE", JOBS.rstrip("/"), "POST, GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("TRACE", "/", "POST"),
    ],
)
def test_a_refused_method_gets_the_allowed_ones(api: Api, method: str, path: str, allow: str) -> None:
    response = api.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/nope", "/nope/", "/flux/more", "/robots.txt", "/favicon.ico", "/api/v1/nope", "//"])
def test_an_unknown_path_is_404(api: Api, path: str) -> None:
    response = api.client.get(f"{api.functions.url}{path}")
    api.contract.check(response)
    assert response.status_code == 404
