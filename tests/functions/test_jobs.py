"""jobs: the view of a job in each of its states, the list, cancels and artifacts, over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.artifacts import ArtifactStore, artifact_key
from darkroom.jobs import Artifact, ErrorKind, State
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, ReleaseReason
from darkroom.links import Links
from pydantic import SecretStr

from tests.driven_jobs import TENANT, WORKER
from tests.functions.api import JOBS, TIMEOUT_S, Api, faults, serving, slug
from tests.parts import LINK_KEY, PUBLIC_URL

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4096
"""A megabyte, so that it is read in several parts."""
NOBODYS_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"


def publish(api: Api, job_id: str, *contents: bytes, attempt: int = 1) -> list[Artifact]:
    """Finish the running job with these pictures, as a worker does."""
    store = ArtifactStore(f"file://{api.store}")
    artifacts = []
    for index, content in enumerate(contents):
        sha256 = hashlib.sha256(content).hexdigest()
        key = artifact_key(tenant=TENANT, job_id=job_id, attempt=attempt, index=index, sha256=sha256, extension="png")
        store.put(key, content)
        artifacts.append(Artifact(key, sha256, "image/png", size=len(content), width=832, height=1216))
    data = {
        "artifacts": [artifact.encode() for artifact in artifacts],
        "record": {"seed": 7, "torch": "2.13.0"},
        "model_served": "flux-untrained",
        "attempt": attempt,
        "worker": WORKER,
        "run_ms": 12,
    }
    call = calls.finish(job_id, token="token", outcome=State.COMPLETED, data=data)
    assert api.jobs.run(call) is AttemptEnd.COMPLETED
    return artifacts


def finished(api: Api, *contents: bytes, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The view of a job that was submitted, started and completed."""
    job_id = api.submit(headers=headers)
    api.jobs.start(job_id)
    publish(api, job_id, *contents)
    view: dict[str, Any] = api.get(JOBS + job_id, headers=headers).json()
    return view


def fetch(api: Api, link: str, *, method: str = "GET", **more: Any) -> httpx.Response:
    """The response to a link, whose public address is replaced by that of this process."""
    assert link.startswith(f"{PUBLIC_URL}/artifacts/")
    return api.request(method, link.removeprefix(PUBLIC_URL), **more)


# Requests as existing clients send them


def typed(api: Api, line: str, **ids: str) -> Any:
    """Run a command line of an existing client with this address and these ids; returns its JSON output."""
    for address in ("http://localhost:8000", "http://localhost:8001"):
        line = line.replace(address, api.functions.url)
    for name, value in ids.items():
        line = line.replace(name, value)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return json.loads(done.stdout)


def test_a_client_that_knows_celery_submits_and_reads_a_task(api: Api) -> None:
    submitted = typed(api, "curl -X POST http://localhost:8000/flux")
    assert submitted["status"] == "pending"
    line = "curl -X GET http://localhost:8000/tasks/task-uuid"
    printed = typed(api, line, **{"task-uuid": submitted["task_id"]})
    assert printed == {"task_id": submitted["task_id"], "status": "PENDING"}


def test_a_client_that_knows_generation_jobs_creates_reads_and_cancels_one(api: Api) -> None:
    create = """
# Create a generation job (returns immediately with job_id)
curl -X POST http://localhost:8001/api/v1/generation-jobs/ \\
  -H "Content-Type: application/json" \\
  -d '{
    "user_id": "your-user-id",
    "job_type": "image",
    "prompt": "a beautiful sunset over mountains",
    "width": 832,
    "height": 1216
  }'
"""
    check = """
# Check job status
curl http://localhost:8001/api/v1/generation-jobs/{job_id}
"""
    cancel = """
# Cancel a job
curl -X POST http://localhost:8001/api/v1/generation-jobs/{job_id}/cancel
"""
    job_id = typed(api, create)["job_id"]
    job = typed(api, check, **{"{job_id}": job_id})
    assert (job["status"], job["user_id"], job["job_type"]) == ("pending", "your-user-id", "image")
    assert (job["prompt"], job["width"], job["height"]) == ("a beautiful sunset over mountains", 832, 1216)
    assert job["celery_task_id"] == job_id
    cancelled = typed(api, cancel, **{"{job_id}": job_id})
    assert cancelled == {"job_id": job_id, "receipt": "dequeued", "status": "cancelled"}


# A job in each of its states


def test_a_waiting_job_shows_its_place(api: Api) -> None:
    first, second = api.job(api.submit({"model": "sd"})), api.job(api.submit({"model": "sd"}))
    assert second["place"] == first["place"] + 1
    assert first["state"] == first["status"] == "pending"
    assert (first["progress"], first["attempt"], first["attempts"]) == (0, 0, [])
    assert first["started_at"] is first["ended_at"] is first["error"] is first["record"] is None
    assert first["updated_at"] == first["created_at"]


def test_a_running_job_shows_its_progress_and_its_attempt(api: Api) -> None:
    job_id = api.submit()
    api.jobs.start(job_id)
    api.jobs.progress(job_id, step=3, steps=8)
    job = api.job(job_id)
    (attempt,) = job["attempts"]
    assert (job["state"], job["progress"], job["step"], job["steps"]) == ("running", 37, 3, 8)
    assert (job["worker"], job["place"], job["attempt"]) == (WORKER, None, 1)
    assert (attempt["number"], attempt["worker"], attempt["outcome"]) == (1, WORKER, "running")
    assert attempt["started_at"] == job["started_at"]
    assert attempt["ended_at"] is None
    assert job["updated_at"] >= job["started_at"] >= job["created_at"]


def test_a_completed_job_shows_its_pictures_and_their_parameters(api: Api) -> None:
    job = finished(api, PICTURE, b"another")
    first, second = job["artifacts"]
    assert (job["state"], job["progress"]) == ("completed", 100)
    assert (job["model"], job["model_served"]) == ("flux", "flux-untrained")
    assert job["record"] == {"seed": 7, "torch": "2.13.0"}
    assert job["output_paths"] == [first["url"], second["url"]]
    assert job["content_id"] == first["sha256"] == hashlib.sha256(PICTURE).hexdigest()
    assert (first["size"], first["media_type"]) == (len(PICTURE), "image/png")
    assert (second["width"], second["height"]) == (832, 1216)
    assert job["ended_at"] == job["updated_at"] == job["attempts"][0]["ended_at"]
    assert job["attempts"][0]["outcome"] == "completed"
    assert job["error"] is None


def test_a_failed_job_shows_its_error(api: Api) -> None:
    job_id = api.submit()
    api.jobs.start(job_id)
    api.jobs.fail(job_id, message="out of paper")
    job = api.job(job_id)
    assert job["state"] == "failed"
    assert job["error"] == {"kind": "transient", "message": "out of paper"}
    assert job["output_paths"] == job["artifacts"] == []
    attempt = job["attempts"][0]
    assert (attempt["outcome"], attempt["reason"], attempt["message"]) == ("failed", "transient", "out of paper")


def test_every_attempt_is_shown_with_its_outcome(api: Api) -> None:
    job_id = api.submit()
    api.jobs.start(job_id, token="one")
    error = {"kind": ErrorKind.OUT_OF_MEMORY, "message": "too large"}
    api.jobs.run(calls.retry(job_id, token="one", error=error, delay_ms=1))
    waiting = api.job(job_id)
    assert waiting["state"] == "pending"
    assert waiting["not_before"] is not None
    assert api.get(f"/tasks/{job_id}").json()["status"] == "RETRY"
    while api.job(job_id)["place"] is None:
        api.jobs.run(calls.promote("flux"))
    api.jobs.start(job_id, token="two")
    api.jobs.run(calls.release(job_id, reason=ReleaseReason.DRAIN, detail="shutting down", token="two"))
    api.jobs.start(job_id)
    publish(api, job_id, b"third time lucky", attempt=3)
    job = api.job(job_id)
    assert [attempt["number"] for attempt in job["attempts"]] == [1, 2, 3]
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["retried", "released", "completed"]
    assert [attempt["reason"] for attempt in job["attempts"]] == ["out_of_memory", "drain", None]
    assert (job["attempt"], job["attempts_counted"], job["max_attempts"]) == (3, 1, 3)


def test_the_attempts_of_a_job_without_a_log_are_null(api: Api) -> None:
    job_id = finished(api, PICTURE)["id"]
    api.jobs.redis.delete(f"{api.jobs.namespace}:log:{job_id}")
    job = api.job(job_id)
    assert (job["state"], job["attempt"], job["attempts"]) == ("completed", 1, None)
    assert job["updated_at"] == job["ended_at"]


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("pending", "PENDING"),
        ("running", "STARTED"),
        ("completed", "SUCCESS"),
        ("failed", "FAILURE"),
        ("cancelled", "REVOKED"),
        ("expired", "REVOKED"),
    ],
)
def test_a_task_has_celerys_status_and_no_result(api: Api, state: str, word: str) -> None:
    job_id = in_state(api, State(state))
    assert api.job(job_id)["state"] == state
    assert api.get(f"/tasks/{job_id}").json() == {"task_id": job_id, "status": word}


def in_state(api: Api, state: State, **body: object) -> str:
    """A job in this state."""
    job_id = api.submit(body | ({"start_deadline": "2020-01-01T00:00:00Z"} if state is State.EXPIRED else {}))
    if state is State.EXPIRED:
        api.jobs.expire(job_id)
    if state is State.CANCELLED:
        api.jobs.cancel(job_id)
    if state in (State.RUNNING, State.COMPLETED, State.FAILED):
        api.jobs.start(job_id)
    if state is State.COMPLETED:
        publish(api, job_id, b"a picture")
    if state is State.FAILED:
        api.jobs.fail(job_id, message="out of paper")
    return job_id


@pytest.mark.parametrize("path", ["/tasks/{}", JOBS + "{}", JOBS + "{}/cancel"])
@pytest.mark.parametrize("job_id", ["123", NOBODYS_ID, NOBODYS_ID.upper(), "task-uuid", "%00", "ü", "x" * 5000])
def test_an_unknown_id_is_404(api: Api, path: str, job_id: str) -> None:
    response = api.request("POST" if path.endswith("cancel") else "GET", path.format(job_id))
    assert response.status_code == 404
    assert slug(response) == "not-found"
    assert len(response.content) < 1000


def test_a_job_of_another_tenant_is_not_there(api: Api) -> None:
    foreign = api.jobs.submit(tenant="another")
    for response in (
        api.get(f"/tasks/{foreign}"),
        api.get(JOBS + foreign),
        api.post(f"{JOBS}{foreign}/cancel"),
    ):
        assert response.status_code == 404
    assert foreign not in [job["id"] for job in everything(api)]
    assert api.jobs.state(foreign) is State.PENDING


@pytest.mark.parametrize("path", ["/api/v1/models", "/openapi.json", JOBS])
def test_a_get_may_be_a_head(api: Api, path: str) -> None:
    head, get = api.request("HEAD", path), api.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


# Cancel


def test_a_waiting_job_is_cancelled_at_once_without_a_worker(api: Api) -> None:
    job_id = api.submit()
    for _ in range(2):
        answer = api.post(f"{JOBS}{job_id}/cancel")
        assert answer.status_code == 200
        assert answer.json() == {"job_id": job_id, "receipt": "dequeued", "status": "cancelled"}
    job = api.job(job_id)
    assert (job["state"], job["place"], job["attempts"]) == ("cancelled", None, [])
    assert job["cancel_requested_at"] == job["ended_at"]
    assert job["error"]["kind"] == "cancelled"


def test_a_running_job_is_interrupted(api: Api) -> None:
    job_id = api.submit()
    api.jobs.start(job_id)
    for _ in range(2):
        answer = api.post(f"{JOBS}{job_id}/cancel").json()
        assert answer == {"job_id": job_id, "receipt": "interrupting", "status": "running"}
    job = api.job(job_id)
    assert job["state"] == "running"
    assert job["cancel_requested_at"] is not None
    ended = api.jobs.run(
        calls.finish(job_id, token="token", outcome=State.CANCELLED, data={"error": {"kind": "x", "message": ""}})
    )
    assert ended is AttemptEnd.CANCELLED
    assert api.post(f"{JOBS}{job_id}/cancel").json()["receipt"] == "interrupting"
    assert api.job(job_id)["attempts"][0]["outcome"] == "cancelled"


def test_for_an_ended_job_a_cancel_is_too_late(api: Api) -> None:
    job = finished(api, PICTURE)
    answer = api.post(f"{JOBS}{job['id']}/cancel")
    assert answer.status_code == 200
    assert answer.json() == {"job_id": job["id"], "receipt": "too_late", "status": "completed"}
    assert api.job(job["id"])["cancel_requested_at"] is None


# The list


def everything(api: Api, **query: str) -> list[dict[str, Any]]:
    """All pages of a list, in order."""
    jobs: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = api.get(JOBS, params={"limit": "3", **query, **after}).json()
        jobs += page["jobs"]
        if page["next"] is None:
            return jobs
        after = {"after": page["next"]}


def test_the_list_has_every_job_once_page_by_page_newest_first(api: Api) -> None:
    user = "of the pages"
    submitted = []
    for _ in range(8):
        submitted.append(api.submit({"user_id": user}))
        time.sleep(0.002)  # ids of one millisecond are in no order
    assert [job["id"] for job in everything(api, user_id=user)] == submitted[::-1]
    page = api.get(JOBS, params={"user_id": user, "limit": "100"}).json()
    assert [job["id"] for job in page["jobs"]] == submitted[::-1]
    assert page["next"] is None
    assert api.get(JOBS.rstrip("/"), params={"user_id": user, "limit": "1"}).json()["next"] == submitted[-1]


def test_a_job_that_comes_between_two_pages_moves_nothing(api: Api) -> None:
    user = "who comes between"
    submitted = []
    for _ in range(4):
        submitted.append(api.submit({"user_id": user}))
        time.sleep(0.002)
    first = api.get(JOBS, params={"user_id": user, "limit": "2"}).json()
    api.submit({"user_id": user})
    second = api.get(JOBS, params={"user_id": user, "limit": "2", "after": first["next"]}).json()
    assert [job["id"] for job in (*first["jobs"], *second["jobs"])] == submitted[::-1]


def test_the_list_shows_a_job_as_its_own_view_does(api: Api) -> None:
    user = "of the views"
    in_state(api, State.COMPLETED, user_id=user)
    in_state(api, State.FAILED, user_id=user)
    for listed in everything(api, user_id=user):
        shown = api.job(listed["id"])
        assert {"attempts", "output_paths", "artifacts"} | {name for name in listed if listed[name] == shown[name]} == {
            *listed,
            "attempts",
        }


@pytest.mark.parametrize("state", State)
def test_the_list_can_be_of_one_state(api: Api, state: State) -> None:
    user = f"of the {state} one"
    wanted = in_state(api, state, user_id=user)
    for other in State:
        if other is not state:
            in_state(api, other, user_id=user)
    for name in ("state", "status"):
        assert [job["id"] for job in everything(api, **{name: state, "user_id": user})] == [wanted]
    assert [job["id"] for job in everything(api, state=state, status=state, user_id=user)] == [wanted]


def test_the_list_can_be_of_one_model(api: Api) -> None:
    user = "of both models"
    flux, sd = (api.submit({"user_id": user, "model": model}) for model in ("flux", "sd"))
    assert [job["id"] for job in everything(api, user_id=user, model="flux")] == [flux]
    assert [job["id"] for job in everything(api, user_id=user, model="sd")] == [sd]
    assert everything(api, user_id=user, model="nope") == []


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", ["limit"]),
        ("limit=101", ["limit"]),
        ("limit=ten", ["limit"]),
        ("limit=-1", ["limit"]),
        ("limit=1e1", ["limit"]),
        ("limit=%C2%B2", ["limit"]),
        ("limit=" + "9" * 5000, ["limit"]),
        ("limit=", ["limit"]),
        ("limit=1&limit=2", ["limit"]),
        ("after=123", ["after"]),
        ("state=started", ["state"]),
        ("status=SUCCESS", ["status"]),
        ("state=failed&status=pending", ["status"]),
        ("colour=red&page=2", ["colour", "page"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_query_that_cannot_be_taken_is_refused_by_name(api: Api, query: str, fields: list[str]) -> None:
    response = api.get(f"{JOBS}?{query}")
    assert response.status_code == 422
    assert faults(response) == fields


# Artifacts


def test_a_picture_can_be_fetched_by_its_link(api: Api) -> None:
    job = finished(api, PICTURE)
    response = fetch(api, job["output_paths"][0])
    assert response.status_code == 200
    assert response.content == PICTURE
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-length"] == str(len(PICTURE))
    assert response.headers["etag"] == f'"{job["content_id"]}"'
    assert response.headers["cache-control"] == "private, no-cache"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_pictures_head_is_without_the_picture(api: Api) -> None:
    response = fetch(api, finished(api, PICTURE)["output_paths"][0], method="HEAD")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len(PICTURE))
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("wanted", "status"), [("{tag}", 304), ("W/{tag}", 304), ('"x", {tag}', 304), ("*", 304), ('"x"', 200), ("", 200)]
)
def test_a_picture_that_the_caller_has_is_not_sent(api: Api, wanted: str, status: int) -> None:
    job = finished(api, PICTURE)
    tag = f'"{job["content_id"]}"'
    response = fetch(api, job["output_paths"][0], headers={"if-none-match": wanted.format(tag=tag)})
    assert response.status_code == status
    assert response.headers["etag"] == tag
    assert len(response.content) == (0 if status == 304 else len(PICTURE))


async def test_pictures_are_sent_whole_to_many_at_once(api: Api) -> None:
    link = finished(api, PICTURE)["output_paths"][0].removeprefix(PUBLIC_URL)
    async with httpx.AsyncClient(base_url=api.functions.url, timeout=TIMEOUT_S, trust_env=False) as client:
        responses = await asyncio.gather(*(client.get(link) for _ in range(20)))
    assert {response.content == PICTURE for response in responses} == {True}


def test_a_link_is_good_for_its_picture_and_its_time_only(api: Api) -> None:
    job = finished(api, PICTURE, b"another")
    first, second = job["output_paths"]
    key = first.removeprefix(f"{PUBLIC_URL}/artifacts/").split("?")[0]
    past = Links(PUBLIC_URL, SecretStr(LINK_KEY), ttl_s=60).to(key, now_s=time.time() - 61)
    forged = Links(PUBLIC_URL, SecretStr("another key of 32 characters, or more"), ttl_s=60).to(key, now_s=time.time())
    for link in (
        first.split("?")[0] + "?" + second.split("?")[1],
        first[:-1] + ("0" if first[-1] != "0" else "1"),
        first.replace("expires=", "expires=9"),
        first.replace("expires=", "expires=x"),
        first.replace("default/", "another/"),
        past,
        forged,
    ):
        response = fetch(api, link)
        assert response.status_code == 403
        assert slug(response) == "link-refused"
        assert fetch(api, link, headers={"if-none-match": "*"}).status_code == 403
    assert fetch(api, first.split("?")[0]).content == PICTURE  # without a signature the caller counts: here anyone


@pytest.mark.parametrize("key", ["default/nope.png", "../../etc/passwd", "a/b/1/0-" + "0" * 64 + ".exe"])
def test_a_valid_link_to_no_artifact_is_404(api: Api, key: str) -> None:
    link = Links(PUBLIC_URL, SecretStr(LINK_KEY), ttl_s=60).to(key, now_s=time.time())
    response = api.client.get(link.removeprefix(PUBLIC_URL).replace("../", "%2e%2e/"))
    api.contract.check(response)
    assert response.status_code == 404


def test_a_picture_that_is_gone_is_404(api: Api) -> None:
    job = finished(api, b"soon gone")
    for file in api.store.rglob(f"*{job['content_id']}*"):
        file.unlink()
    assert fetch(api, job["output_paths"][0]).status_code == 404


def test_an_unavailable_store_is_503(redis_url: str, namespace: str, tmp_path: Path) -> None:
    with serving(redis_url, namespace, tmp_path) as api:
        job = finished(api, PICTURE)
        (file,) = api.store.rglob(f"*{job['content_id']}*")
        file.unlink()
        file.symlink_to(file)
        response = fetch(api, job["output_paths"][0])
        assert response.status_code == 503
        assert slug(response) == "store-unavailable"


# Unexpected errors


def test_an_internal_error_is_a_plain_500_and_logged_with_its_trace(api: Api) -> None:
    job_id = api.submit()
    api.jobs.redis.hset(f"{api.jobs.namespace}:job:{job_id}", "input", "{broken")
    response = api.get(JOBS + job_id)
    assert response.status_code == 500
    assert response.json() == {
        "type": "https://darkroom.dev/problems/internal",
        "title": "Internal error",
        "status": 500,
        "detail": "The request failed with an internal error. It has been logged.",
    }
    logged = api.functions.said("unexpected")
    assert [line["path"] for line in logged if job_id in line["path"]] == [JOBS + job_id]
    assert "JSONDecodeError" in logged[-1]["exception"]
    api.jobs.redis.hset(f"{api.jobs.namespace}:job:{job_id}", "input", "{}")


def test_the_models_are_listed_with_their_parameters(api: Api) -> None:
    flux, sd = api.get("/api/v1/models").json()["models"]
    assert (flux["name"], flux["default"], sd["name"], sd["default"]) == ("flux", True, "sd", False)
    assert flux["parameters"]["properties"]["width"]["maximum"] == 2048
    assert flux["served"] == "flux"
