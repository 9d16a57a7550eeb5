"""The synchronous facade: a submission that is answered with its job's end, or with the picture.

The real functions and a real Redis are behind it; the worker is the test. A wait that is to end by its job is asked for
with far more seconds than its test may take.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.jobs import Artifact, State
from darkroom.ledger import calls
from darkroom_functions.http.responses import PROBLEM_TYPE
from darkroom_functions.streams.wait import APPLIED, preferred
from darkroom_functions.submission.reading import REPEATED

from tests.functions.api import JOBS, binary, slug
from tests.gateway.conftest import Front, in_front_of
from tests.gateway.running import Gateway
from tests.waiting import eventually

LONG_S = 120
"""The longest wait of a request at `front`."""

HELD = 500

HELD_WHOLE = 40
"""Requests with bodies as large as they may be: 80 MiB."""

SUBMISSIONS = ("/sync/flux", "/flux", JOBS)

PICTURE = b"\x89PNG the picture"


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


class SubmissionClient:
    """Submissions that wait, and the outcomes of their jobs."""

    def __init__(self, front: Front, pool: ThreadPoolExecutor) -> None:
        self.front = front
        self.jobs = front.api.jobs
        self.client = front.client
        self._pool = pool

    def post(self, path: str, **more: Any) -> tuple[Future[httpx.Response], str]:
        """A submission in progress, and its job, once a request waits for it."""
        known = self.waited_for()
        answer = self._pool.submit(self.client.post, path, **more)
        (job_id,) = eventually(lambda: self.waited_for() - known, what="a submission to wait for its job")
        return answer, job_id

    def waited_for(self) -> set[str]:
        return {line["job"] for line in self.front.api.functions.said("waits")}

    def complete(self, job_id: str) -> Artifact:
        """Complete the job with a picture, as a worker does."""
        self.jobs.start(job_id)
        artifacts = self.jobs.complete(job_id)
        path = self.front.api.store / artifacts[0].key
        path.parent.mkdir(parents=True)
        path.write_bytes(PICTURE)
        return artifacts[0]

    def completed(self, key: str) -> None:
        """A terminal job with this idempotency key: a repeat gets its response at once."""
        job_id = self.client.post("/flux", headers={"Idempotency-Key": key}).json()["id"]
        self.complete(job_id)


@pytest.fixture
def submissions(front: Front, pool: ThreadPoolExecutor) -> SubmissionClient:
    return SubmissionClient(front, pool)


@pytest.mark.parametrize("path", SUBMISSIONS)
def test_the_response_is_the_finished_job(path: str, submissions: SubmissionClient) -> None:
    headers = {} if path.startswith("/sync") else {"Prefer": f"wait={LONG_S}"}
    answer, job_id = submissions.post(path, json={"prompt": "a lighthouse"}, headers=headers)
    submissions.complete(job_id)
    response = answer.result()
    assert response.status_code == 200
    assert response.headers["location"] == JOBS + job_id
    assert response.headers.get(APPLIED) == (f"wait={LONG_S}" if headers else None)
    assert response.json().keys() == submissions.client.get(JOBS + job_id).json().keys()
    view = response.json()
    assert (view["id"], view["state"], view["input"]["prompt"]) == (job_id, "completed", "a lighthouse")
    assert submissions.front.gateway.request_logged(response.headers["x-request-id"])["job"] == job_id


def test_a_client_that_accepts_a_picture_gets_it(submissions: SubmissionClient) -> None:
    answer, job_id = submissions.post(
        "/sync/flux", headers={"Accept": "image/png", "If-None-Match": "*", "Range": "bytes=0-1"}
    )
    submissions.complete(job_id)
    response = answer.result()
    assert (response.status_code, response.content) == (200, PICTURE)
    assert response.headers["content-type"] == "image/png"
    assert response.headers.get_list("location") == [JOBS + job_id]
    assert REPEATED not in response.headers
    assert response.headers.get_list("cache-control") == ["no-store"]
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize(
    ("accept", "is_picture"),
    [
        ("image/*", True),
        ("image/png, application/json;q=0.9", True),
        ("text/html, image/png;q=0.8, */*;q=0.1", True),
        ("*/*", False),
        ("application/json", False),
        ("application/json, image/png;q=0.5", False),
        ("image/png;q=0", False),
        ("image/webp", False),
    ],
)
def test_json_is_returned_unless_a_picture_is_preferred(
    accept: str, is_picture: bool, submissions: SubmissionClient
) -> None:
    key = f"accept {accept}"
    submissions.completed(key)
    headers = {"Idempotency-Key": key, "Accept": accept, "Prefer": f"wait={LONG_S}"}
    response = submissions.client.post("/flux", headers=headers)
    assert response.status_code == 200
    assert response.headers.get_list(APPLIED) == [f"wait={LONG_S}"]
    assert response.headers["content-type"] == ("image/png" if is_picture else "application/json")


ENDS: dict[str, dict[str, Any]] = {"failed": {}, "cancelled": {}, "expired": {"start_deadline": 5}}
"""The fields that lead to each outcome. A deadline that has passed on arrival would be refused."""

ACCEPTS = ("application/json", "image/png")


def is_expired(submissions: SubmissionClient, job_id: str) -> bool:
    submissions.jobs.run(calls.expire())
    return submissions.jobs.state(job_id) is State.EXPIRED


@pytest.mark.parametrize(("end", "status"), [("failed", 500), ("cancelled", 409), ("expired", 504)])
def test_a_job_that_is_not_completed_is_refused_with_its_reason(
    end: str, status: int, submissions: SubmissionClient
) -> None:
    held = [submissions.post("/sync/flux", json=ENDS[end], headers={"Accept": accept}) for accept in ACCEPTS]
    for _, job_id in held:
        if end == "failed":
            submissions.jobs.start(job_id)
            submissions.jobs.fail(job_id, message="no memory left")
        elif end == "cancelled":
            submissions.jobs.cancel(job_id)
        else:
            eventually(lambda job_id=job_id: is_expired(submissions, job_id), what="its deadline to pass")  # type: ignore[misc]
    in_json, in_place_of_picture = (answer.result() for answer, _ in held)
    assert (in_json.status_code, in_json.json()["state"]) == (200, end)
    assert in_place_of_picture.headers["content-type"] == PROBLEM_TYPE
    problem = in_place_of_picture.json()
    assert (in_place_of_picture.status_code, problem["status"], problem["state"]) == (status, status, end)
    assert in_place_of_picture.headers["location"] == JOBS + problem["job_id"]
    assert slug(in_place_of_picture) == f"job-{end}"
    if end == "failed":
        assert problem["detail"] == problem["error"]["message"] == "no memory left"


@pytest.mark.parametrize("path", SUBMISSIONS)
def test_after_the_wait_the_response_is_202_with_the_id(path: str, submissions: SubmissionClient) -> None:
    response = submissions.client.post(path, json={"prompt": "x"}, headers={"Prefer": "wait=1", "Accept": "image/png"})
    assert response.status_code == 202
    assert response.headers[APPLIED] == "wait=1"
    assert response.headers["location"] == JOBS + response.json()["id"]
    assert response.json()["status"] == "pending"
    assert submissions.client.get(response.headers["location"]).json()["state"] == "pending"


def test_a_wait_spans_several_long_polls(submissions: SubmissionClient) -> None:
    """A long-poll takes two seconds here, and 55 by default."""
    answer, job_id = submissions.post("/sync/flux")

    def polls() -> list[dict[str, Any]]:
        return [line for line in submissions.front.api.functions.said("waits") if line["job"] == job_id]

    eventually(lambda: len(polls()) >= 3, what="a third look at the job")
    assert {line["seconds"] for line in polls()} == {2}
    submissions.complete(job_id)
    assert answer.result().json()["state"] == "completed"


@pytest.mark.parametrize(
    "prefer",
    [
        ["wait=10"],
        ["wait = 10"],
        ['wait="10"'],
        ["Wait=10; foo=bar"],
        ["respond-async, wait=10"],
        ['foo="a, wait=1", wait=10'],
        ['foo="a\\", wait=1", wait=10'],
        [", ,wait=10,"],
        ["respond-async", "wait=10"],
        ["wait=0"],
        ["wait=10, wait=20"],
        ["wait=10", "wait=20"],
        ["wait=9000"],
        ["wait=" + "9" * 5000],
        ["wait=007"],
        ["respond-async"],
        [""],
        ["wait"],
        ["wait="],
        ["wait;x=1"],
        ["wait=soon"],
        ["wait=-1"],
        ["wait=1.5"],
        ['wait="10'],
        ["wait=10 20"],
        ["wait=soon, wait=10"],
        ["waiting=10"],
        ['foo="wait=10"'],
    ],
    ids=lambda prefer: "+".join(prefer)[:30],
)
def test_a_preference_is_read_as_submit_reads_it(prefer: list[str], submissions: SubmissionClient, ended: str) -> None:
    headers = [("Idempotency-Key", ended), *(("Prefer", text) for text in prefer)]
    response = submissions.client.post("/flux", headers=headers)
    wait = preferred(prefer, most_s=LONG_S)
    assert response.status_code == 200
    assert response.headers.get(APPLIED) == wait.headers.get(APPLIED)
    assert response.headers[REPEATED] == "true"
    assert response.json()["status"] == "completed"
    assert ("output_paths" in response.json()) == wait.is_preferred, "the job, and not the receipt alone"


@pytest.fixture(scope="module")
def ended(front: Front, pool: ThreadPoolExecutor) -> str:
    """The idempotency key of a finished job."""
    SubmissionClient(front, pool).completed("ended")
    return "ended"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/unknown", {}),
        ("/flux", {"width": 7, "nonsense": 1}),
        ("/flux", {"prompt": "x" * 100_000}),
        ("/flux", {"prompt": 7}),
    ],
)
def test_a_refusal_of_submit_is_returned_unchanged(
    path: str, body: dict[str, Any], submissions: SubmissionClient
) -> None:
    """Also of a long body, which nginx stores in a file."""
    direct = submissions.front.api.client.post(path, json=body)
    held = submissions.client.post(f"/sync{path}", json=body)
    assert direct.status_code >= 400
    assert (held.status_code, held.json()) == (direct.status_code, direct.json())
    assert held.headers["content-type"] == direct.headers["content-type"] == PROBLEM_TYPE


def test_a_body_that_is_long_or_chunked_arrives_complete(submissions: SubmissionClient) -> None:
    text = ('{"prompt": "' + "a lighthouse " * 150 + '"}' + " " * 100_000).encode()
    for content in (text, iter([text[:5000], text[5000:]])):
        headers = {"Content-Type": "application/json"}
        answer, job_id = submissions.post("/sync/flux", content=content, headers=headers)
        submissions.complete(job_id)
        assert answer.result().json()["input"]["prompt"].strip() == ("a lighthouse " * 150).strip()


def test_the_path_is_one_model_and_the_method_post(submissions: SubmissionClient) -> None:
    refused = submissions.client.get("/sync/flux")
    assert (refused.status_code, refused.headers["allow"], slug(refused)) == (405, "POST", "method-not-allowed")
    for path in ("/sync/", "/sync/flux/more", "/sync/api/v1/generation-jobs/"):
        assert submissions.client.post(path).status_code == 404, path


def test_an_event_does_not_wait(submissions: SubmissionClient) -> None:
    headers = {**binary("sync-1"), "Prefer": f"wait={LONG_S}"}
    response = submissions.client.post("/", headers=headers, json={"model": "flux"})
    assert response.status_code == 202
    assert response.headers["ce-type"]


def test_a_wait_continues_after_a_restart_of_the_function(submissions: SubmissionClient) -> None:
    answer, job_id = submissions.post("/sync/flux")
    submissions.front.api.functions.stop()
    submissions.front.api.functions.start()
    submissions.complete(job_id)
    assert answer.result().json()["state"] == "completed"


def leave(submissions: SubmissionClient, gateway: Gateway) -> str:
    """A client that submits to /sync/flux and disconnects when its request waits. Returns its job."""
    known = submissions.waited_for()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as client:
        client.sendall(b"POST /sync/flux HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        (job_id,) = eventually(lambda: submissions.waited_for() - known, what="the submission to wait for its job")
    return job_id


def test_the_job_of_a_client_that_disconnects_continues(submissions: SubmissionClient) -> None:
    job_id = leave(submissions, submissions.front.gateway)

    def gone() -> bool:
        lines = submissions.front.api.functions.said("waited")
        return any((line["job"], line["over"]) == (job_id, "gone") for line in lines)

    eventually(gone, what="the function to wait no more")
    (line,) = eventually(
        lambda: [line for line in submissions.front.gateway.lines("request") if line["job"] == job_id],
        what="the request in the access log",
    )
    assert line["status"] == 499
    assert submissions.jobs.state(job_id) is State.PENDING


def test_the_job_of_a_client_that_disconnects_is_cancelled_if_that_is_set(
    submissions: SubmissionClient, tmp_path: Path
) -> None:
    with in_front_of(submissions.front.api, tmp_path / "gateway", DARKROOM_GATEWAY_CANCEL="true") as gateway:
        job_id = leave(submissions, gateway)
        eventually(lambda: submissions.jobs.state(job_id) is State.CANCELLED, what="the job to be cancelled")


def test_waiting_requests_are_answered_when_the_gateway_shuts_down(
    submissions: SubmissionClient, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """A request whose job completes in time gets the result; another gets 202 when its long-poll ends."""
    with in_front_of(submissions.front.api, tmp_path / "gateway", DARKROOM_MAX_WAIT_S="5") as gateway:

        def ask() -> tuple[Future[httpx.Response], str]:
            known = submissions.waited_for()
            answer = pool.submit(httpx.post, f"{gateway.url}/sync/flux", timeout=60, trust_env=False)
            (job_id,) = eventually(lambda: submissions.waited_for() - known, what="a submission to wait for its job")
            return answer, job_id

        slow, slow_id = ask()
        fast, fast_id = ask()
        gateway.signal(signal.SIGTERM)
        submissions.complete(fast_id)
        assert fast.result().status_code in (200, 202)
        assert slow.result().status_code == 202
        assert slow.result().headers["location"] == JOBS + slow_id
        assert gateway.wait() == 0


async def test_one_worker_holds_five_hundred_requests_and_answers_each_with_its_job(
    front: Front, tmp_path: Path
) -> None:
    limits = {"DARKROOM_GATEWAY_CONNECTIONS": "601", "DARKROOM_GATEWAY_CONNECTIONS_PER_ADDRESS": "600"}
    with in_front_of(front.api, tmp_path / "gateway", **limits) as gateway:
        known = waits(front)
        held = [asyncio.create_task(submitted(gateway.port, f"lighthouse {number}")) for number in range(HELD)]
        while waits(front) < known + HELD:
            assert not any(task.done() for task in held), "none is answered before its job has ended"
            await asyncio.sleep(0.2)
        waiting = {line["job"] for line in front.api.functions.said("waits")[known:]}
        assert len(waiting) == HELD
        for job_id in waiting:
            front.api.jobs.start(job_id)
            front.api.jobs.complete(job_id)
        views = await asyncio.gather(*held)
        assert {view["state"] for view in views} == {"completed"}
        assert {view["id"] for view in views} == waiting
        assert [view["input"]["prompt"] for view in views] == [f"lighthouse {number}" for number in range(HELD)]


async def test_the_bodies_of_waiting_requests_are_dropped(front: Front, tmp_path: Path) -> None:
    """From memory and from the disk, once their jobs are submitted."""
    padding = b" " * (2 * 1024 * 1024 - 10_000)
    with in_front_of(front.api, tmp_path / "gateway") as gateway:
        worker = nginx_worker(tmp_path / "gateway")
        before, known = resident_bytes(worker), waits(front)
        held = [
            asyncio.create_task(submitted(gateway.port, f"dropped {number}", padding=padding))
            for number in range(HELD_WHOLE)
        ]
        async with asyncio.timeout(LONG_S):
            while waits(front) < known + HELD_WHOLE:
                await asyncio.sleep(0.2)
        assert resident_bytes(worker) - before < HELD_WHOLE * len(padding) / 4
        assert not [each for each in (tmp_path / "gateway").rglob("body/*") if each.is_file()]
        assert not [each for each in (worker / "fd").iterdir() if "/body/" in str(each.readlink())]
        for line in front.api.functions.said("waits")[known:]:
            front.api.jobs.start(line["job"])
            front.api.jobs.complete(line["job"])
        assert {view["state"] for view in await asyncio.gather(*held)} == {"completed"}


def nginx_worker(folder: Path) -> Path:
    """The kernel's figures of the process that serves: the child of the one in nginx' pid file."""
    master = int((folder / "gateway" / "nginx.pid").read_text())
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return Path("/proc") / worker


def resident_bytes(process: Path) -> int:
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def waits(front: Front) -> int:
    """The number of waits that began."""
    return front.api.functions.log.read_text().count('"event": "waits"')


async def submitted(port: int, prompt: str, *, padding: bytes = b"") -> dict[str, Any]:
    """The job that /sync/flux returns."""
    body = json.dumps({"prompt": prompt}).encode() + padding
    head = f"POST /sync/flux HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert said.startswith(b"HTTP/1.1 200 "), said
    view: dict[str, Any] = json.loads(said.partition(b"\r\n\r\n")[2])
    return view
