"""Waiting for a terminal state over HTTP: reads with `?wait=` or `Prefer: wait`, submissions with `Prefer: wait`.

A wait that is to end with the job, or at once, asks for far more seconds than its test may take.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom_functions.streams.wait import Wait, preferred

from tests.ageing import archive, forget
from tests.conftest import RedisServers
from tests.databases import SqliteDatabase
from tests.functions.api import JOBS, TIMEOUT_S, Api, binary, faults, serving, slug
from tests.parts import Functions
from tests.redis_server import RedisKind, RedisServer
from tests.waiting import eventually

LONG = 500
"""Seconds that a request may wait here. No test takes so long: its client times out before."""

UNKNOWN_ID = "01980000-0000-7000-8000-000000000000"

PREFER_LONG = {"Prefer": f"wait={LONG}"}


@pytest.fixture(scope="module")
def history_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return SqliteDatabase(tmp_path_factory.mktemp("sqlite") / "history").url


@pytest.fixture(scope="module")
def api(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory, history_url: str) -> Iterator[Api]:
    """One process for all tests of this file that leave it intact."""
    redis_url, folder = redis_servers(RedisKind.EMBEDDED).url, tmp_path_factory.mktemp("waiting")
    with serving(
        redis_url,
        f"t-{secrets.token_hex(8)}",
        folder,
        DARKROOM_MAX_WAIT_S=str(LONG),
        DARKROOM_DATABASE_URL=history_url,
    ) as api:
        yield api


@contextmanager
def concurrently(ask: Callable[[], httpx.Response]) -> Iterator[Future[httpx.Response]]:
    """The answer to a request that is made while the block runs."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(ask)


def lines_of(functions: Functions, event: str, job_id: str) -> list[dict[str, Any]]:
    return [line for line in functions.said(event) if line["job"] == job_id]


def is_waited_for(functions: Functions, job_id: str, *, times: int = 1) -> None:
    """Return once so many requests wait for the job."""
    eventually(lambda: len(lines_of(functions, "waits", job_id)) >= times, what=f"{times} to wait for {job_id}")


def waited_for(functions: Functions) -> set[str]:
    """The jobs that requests have waited for so far."""
    return {line["job"] for line in functions.said("waits")}


def one_more(functions: Functions, known: set[str]) -> str:
    """The job that a submission waits for, once it does; `known` are those of earlier waits."""
    (job_id,) = eventually(lambda: waited_for(functions) - known, what="a submission to wait for its job")
    return job_id


class TestPreference:
    """RFC 7240: the wait that `Prefer` headers ask for."""

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            (["wait=10"], 10),
            (["WAIT=10"], 10),
            (["wait = 10"], 10),
            (['wait="10"'], 10),
            (["wait=10; foo=bar"], 10),
            (["respond-async, wait=10"], 10),
            (['foo="a, wait=1", wait=10'], 10),
            ([", ,wait=10,"], 10),
            (["respond-async", "wait=10"], 10),
            (["wait=0"], 0),
            (["wait=10, wait=20"], 10),
            (["wait=10", "wait=20"], 10),
            (["wait=90"], 60),
            (["wait=" + "9" * 5000], 60),
            (["wait=007"], 7),
        ],
        ids=lambda value: repr(value)[:40],
    )
    def test_the_first_wait_counts_and_is_granted_up_to_the_limit(self, headers: list[str], seconds: int) -> None:
        wait = preferred(headers, most_s=60)
        assert wait == Wait(seconds, is_preferred=True)
        assert wait.headers == {"Preference-Applied": f"wait={seconds}"}

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [""],
            ["respond-async"],
            ["wait"],
            ["wait="],
            ["wait=soon"],
            ["wait=-1"],
            ["wait=1.5"],
            ["wait=٣"],
            ['wait="10'],
            ["wait=10 20"],
            ["wait=soon, wait=10"],
            ["waiting=10"],
            ['foo="wait=10"'],
        ],
        ids=repr,
    )
    def test_an_invalid_preference_is_ignored(self, headers: list[str]) -> None:
        wait = preferred(headers, most_s=60)
        assert wait == Wait(0)
        assert wait.headers == {}


class TestReads:
    """`GET /api/v1/generation-jobs/{id}`."""

    @pytest.mark.parametrize(
        "asked", [{"params": {"wait": LONG}}, {"headers": PREFER_LONG}], ids=["query", "preference"]
    )
    @pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
    def test_a_read_is_answered_as_soon_as_the_job_is_terminal(self, api: Api, asked: Any, end: str) -> None:
        job_id = api.jobs.submit()
        with concurrently(lambda: api.get(JOBS + job_id, **asked)) as answer:
            is_waited_for(api.functions, job_id)
            assert not answer.done()
            if end == "cancelled":
                api.jobs.cancel(job_id)
            else:
                api.jobs.start(job_id)
                api.jobs.progress(job_id, step=1, steps=2)
                assert not answer.done()
                if end == "completed":
                    api.jobs.complete(job_id)
                else:
                    api.jobs.fail(job_id, message="out of ideas")
            response = answer.result(TIMEOUT_S)
        assert (response.status_code, response.json()["state"]) == (200, end)
        assert response.headers.get("Preference-Applied") == (f"wait={LONG}" if "headers" in asked else None)
        assert lines_of(api.functions, "waited", job_id)[-1]["over"] == "ended"

    def test_a_read_whose_time_is_over_is_answered_with_the_present_state(self, api: Api) -> None:
        job_id = api.jobs.submit()
        response = api.get(JOBS + job_id, headers={"Prefer": "wait=1"})
        assert (response.status_code, response.json()["state"]) == (200, "pending")
        assert response.headers["Preference-Applied"] == "wait=1"
        assert lines_of(api.functions, "waited", job_id)[-1]["over"] == "time"

    def test_a_terminal_job_is_answered_at_once(self, api: Api) -> None:
        response = api.get(JOBS + api.jobs.completed(), params={"wait": LONG})
        assert response.json()["state"] == "completed"

    def test_a_job_that_only_the_history_has_is_answered_at_once(
        self, api: Api, redis_url: str, history_url: str
    ) -> None:
        job_id = api.jobs.completed()
        archive(api.jobs, redis_url, history_url, [job_id])
        forget(api.jobs, [job_id])
        assert api.get(JOBS + job_id, params={"wait": LONG}).json()["state"] == "completed"
        assert lines_of(api.functions, "waited", job_id)[-1]["over"] == "unknown"

    def test_an_unknown_job_is_404_at_once(self, api: Api) -> None:
        assert api.get(JOBS + UNKNOWN_ID, params={"wait": LONG}).status_code == 404
        assert api.get(JOBS + "123", params={"wait": LONG}).status_code == 404

    def test_a_deleted_job_is_410_at_once(self, api: Api) -> None:
        job_id = api.jobs.completed()
        assert api.request("DELETE", JOBS + job_id).status_code == 204
        assert api.get(JOBS + job_id, params={"wait": LONG}).status_code == 410

    def test_a_head_waits_as_well(self, api: Api) -> None:
        job_id = api.jobs.submit()
        with concurrently(lambda: api.request("HEAD", JOBS + job_id, params={"wait": LONG})) as answer:
            is_waited_for(api.functions, job_id)
            api.jobs.cancel(job_id)
            assert answer.result(TIMEOUT_S).status_code == 200

    @pytest.mark.parametrize("query", ["wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "wait=1&wait=2", "wait=٣"])
    def test_an_invalid_wait_is_rejected_by_name(self, api: Api, query: str) -> None:
        response = api.get(f"{JOBS}{api.jobs.submit()}?{query}")
        assert (response.status_code, slug(response), faults(response)) == (422, "invalid-input", ["wait"])

    def test_an_invalid_preference_does_not_wait(self, api: Api) -> None:
        response = api.get(JOBS + api.jobs.submit(), headers={"Prefer": "wait=soon"})
        assert response.status_code == 200
        assert "Preference-Applied" not in response.headers

    def test_the_query_takes_precedence_over_the_preference(self, api: Api) -> None:
        response = api.get(JOBS + api.jobs.submit(), params={"wait": 0}, headers=PREFER_LONG)
        assert response.json()["state"] == "pending"
        assert "Preference-Applied" not in response.headers

    def test_many_waits_for_one_job_share_a_subscription(self, api: Api) -> None:
        job_id, many = api.jobs.submit(), 40
        with ThreadPoolExecutor(many) as executor:
            answers = [executor.submit(api.get, JOBS + job_id, params={"wait": LONG}) for _ in range(many)]
            is_waited_for(api.functions, job_id, times=many)
            assert subscribers(api, job_id) == 1
            api.jobs.start(job_id)
            api.jobs.complete(job_id)
            assert {answer.result(TIMEOUT_S).json()["state"] for answer in answers} == {"completed"}
        eventually(lambda: subscribers(api, job_id) == 0, what="no subscriber to be left")


class TestSubmissions:
    """`Prefer: wait` in REST submissions."""

    @pytest.mark.parametrize("path", [JOBS, "/sd"])
    @pytest.mark.parametrize("end", ["completed", "failed"])
    def test_a_submission_is_answered_with_the_job_when_that_is_terminal(self, api: Api, path: str, end: str) -> None:
        known = waited_for(api.functions)
        with concurrently(lambda: api.post(path, json={"prompt": "a lighthouse"}, headers=PREFER_LONG)) as answer:
            job_id = one_more(api.functions, known)
            api.jobs.start(job_id)
            if end == "completed":
                api.jobs.complete(job_id)
            else:
                api.jobs.fail(job_id, message="out of ideas")
            response = answer.result(TIMEOUT_S)
        assert response.status_code == 200
        assert response.headers["Location"] == JOBS + job_id
        assert response.headers["Preference-Applied"] == f"wait={LONG}"
        view = response.json()
        assert (view["id"], view["state"]) == (job_id, end)
        assert without_links(view) == without_links(api.job(job_id))

    def test_when_the_time_is_over_the_answer_is_202_with_the_receipt(self, api: Api) -> None:
        response = api.post("/sd", headers={"Prefer": "respond-async, wait=1"})
        assert response.status_code == 202
        job_id = response.json()["id"]
        assert response.json() == {"id": job_id, "job_id": job_id, "task_id": job_id, "status": "pending"}
        assert response.headers["Location"] == JOBS + job_id
        assert response.headers["Preference-Applied"] == "wait=1"

    def test_a_repeat_waits_for_the_existing_job(self, api: Api) -> None:
        """Its status depends on whether the job is terminal; a header marks the repeat."""
        key = {"Idempotency-Key": "waited for"}
        job_id = api.post("/sd", headers=key).json()["id"]
        repeat = api.post("/sd", headers=key | {"Prefer": "wait=0"})
        assert (repeat.status_code, repeat.json()["id"]) == (202, job_id)
        api.jobs.start(job_id)
        api.jobs.complete(job_id)
        repeat = api.post("/sd", headers=key | PREFER_LONG)
        assert (repeat.status_code, repeat.json()["state"]) == (200, "completed")
        assert repeat.headers["Darkroom-Repeated"] == "true"

    def test_a_refusal_does_not_wait(self, api: Api) -> None:
        assert api.post("/sd", json={"colour": "red"}, headers=PREFER_LONG).status_code == 422

    def test_a_cloudevent_does_not_wait(self, api: Api) -> None:
        """Its answer is an event for a Broker, or empty."""
        response = api.post("/", headers=binary("not waited for") | PREFER_LONG, json={})
        assert response.status_code == 202
        assert response.headers["ce-type"] == "dev.darkroom.job.accepted"
        assert "Preference-Applied" not in response.headers


def test_the_documented_requests_wait(api: Api, repository: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", (repository / "docs/clients/README.md").read_text(), re.DOTALL)
    submit, read = (line.replace("http://localhost:8000", api.functions.url) for line in block.splitlines())

    def run(line: str) -> Any:
        done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=TIMEOUT_S)
        return json.loads(done.stdout)

    known = waited_for(api.functions)
    with ThreadPoolExecutor(2) as executor:
        submitted = executor.submit(run, submit)
        job_id = one_more(api.functions, known)
        reading = executor.submit(run, read.replace("ID", job_id))
        api.jobs.start(job_id)
        api.jobs.complete(job_id)
        for asked in (submitted, reading):
            assert asked.result(TIMEOUT_S)["state"] == "completed"


class TestEndOfWaits:
    """Clients that disconnect, and a process that stops."""

    def test_a_read_whose_client_disconnects_stops_waiting_and_the_job_continues(self, api: Api) -> None:
        job_id = api.jobs.submit()
        disconnect(api, f"GET {JOBS}{job_id}?wait={LONG} HTTP/1.1", job_id)
        assert lines_of(api.functions, "waited", job_id)[-1]["over"] == "gone"
        assert api.job(job_id)["state"] == "pending"

    def test_a_submission_whose_client_disconnects_stops_waiting(self, api: Api) -> None:
        known = waited_for(api.functions)
        with socket.create_connection(("127.0.0.1", api.functions.port)) as connection:
            request = f"POST /sd HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nPrefer: wait={LONG}\r\n\r\n"
            connection.sendall(request.encode())
            job_id = one_more(api.functions, known)
        is_waited_for_no_more(api, job_id)
        assert lines_of(api.functions, "waited", job_id)[-1]["over"] == "gone"
        assert api.job(job_id)["state"] == "pending"

    def test_waits_are_answered_when_the_process_stops_and_do_not_delay_it(
        self, redis_url: str, namespace: str, tmp_path: Path
    ) -> None:
        with serving(redis_url, namespace, tmp_path, DARKROOM_MAX_WAIT_S=str(LONG)) as api:
            job_id = api.jobs.submit()
            with concurrently(lambda: api.get(JOBS + job_id, params={"wait": LONG})) as answer:
                is_waited_for(api.functions, job_id)
                assert api.functions.stop() == 0
                assert answer.result(TIMEOUT_S).json()["state"] == "pending"
            assert lines_of(api.functions, "waited", job_id)[-1]["over"] == "closing"


class TestOutages:
    """Redis becomes unavailable, and mostly available again."""

    @pytest.fixture
    def own(self, own_redis: RedisServer, namespace: str, tmp_path: Path) -> Iterator[Api]:
        with serving(own_redis.url, namespace, tmp_path, DARKROOM_MAX_WAIT_S=str(LONG)) as api:
            yield api

    def test_a_wait_survives_an_outage(self, own: Api, own_redis: RedisServer) -> None:
        job_id = own.jobs.submit()
        with concurrently(lambda: own.get(JOBS + job_id, params={"wait": LONG})) as answer:
            is_waited_for(own.functions, job_id)
            own_redis.stop()
            eventually(lambda: own.functions.said("channels_lost"), what="the outage to be noticed")
            assert not answer.done()
            own_redis.start()
            own.jobs.start(job_id)
            own.jobs.complete(job_id)
            assert answer.result(TIMEOUT_S).json()["state"] == "completed"

    def test_a_wait_that_ends_in_an_outage_is_answered_as_a_read_would_be(
        self, own: Api, own_redis: RedisServer
    ) -> None:
        job_id = own.jobs.submit()
        with concurrently(lambda: own.get(JOBS + job_id, params={"wait": 5})) as answer:
            is_waited_for(own.functions, job_id)
            own_redis.stop()
            response = answer.result(TIMEOUT_S)
        assert (response.status_code, slug(response)) == (503, "ledger-unavailable")

    def test_a_wait_that_begins_in_an_outage_is_rejected_at_once(self, own: Api, own_redis: RedisServer) -> None:
        job_id = own.jobs.submit()
        own_redis.stop()
        read = own.get(JOBS + job_id, params={"wait": LONG})
        submitted = own.post("/sd", headers=PREFER_LONG)
        for response in (read, submitted):
            assert (response.status_code, slug(response)) == (503, "ledger-unavailable")

    def test_a_submission_that_was_accepted_is_never_rejected_for_a_later_outage(
        self, own: Api, own_redis: RedisServer
    ) -> None:
        """Else its client would submit it again."""
        known = waited_for(own.functions)
        with concurrently(lambda: own.post("/sd", headers={"Prefer": "wait=5"})) as answer:
            job_id = one_more(own.functions, known)
            own_redis.stop()
            response = answer.result(TIMEOUT_S)
        assert (response.status_code, response.json()["id"]) == (202, job_id)
        own_redis.start()
        assert own.job(job_id)["state"] == "pending"


def subscribers(api: Api, job_id: str) -> int:
    """Connections to Redis that are subscribed to the job."""
    ((_, count),) = api.jobs.redis.pubsub_numsub(f"{api.jobs.namespace}:live:{job_id}")
    return int(count)


def disconnect(api: Api, request_line: str, job_id: str) -> None:
    """Send a request that waits for the job, and disconnect; return when the server has noticed."""
    with socket.create_connection(("127.0.0.1", api.functions.port)) as connection:
        connection.sendall(f"{request_line}\r\nHost: localhost\r\n\r\n".encode())
        is_waited_for(api.functions, job_id)
    is_waited_for_no_more(api, job_id)


def is_waited_for_no_more(api: Api, job_id: str) -> None:
    eventually(lambda: lines_of(api.functions, "waited", job_id), what="the wait to be over")
    eventually(lambda: subscribers(api, job_id) == 0, what="no subscriber to be left")


def without_links(view: Mapping[str, Any]) -> dict[str, Any]:
    """Links contain the time when they were made."""
    artifacts = [{name: value for name, value in each.items() if name != "url"} for each in view["artifacts"]]
    return {**view, "artifacts": artifacts, "output_paths": len(view["output_paths"])}
