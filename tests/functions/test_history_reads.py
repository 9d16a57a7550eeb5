"""Jobs that Redis has deleted, over real HTTP: reads that continue in the history, deletion, and tombstones."""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.artifacts import ArtifactStore, artifact_key
from darkroom.jobs import Artifact, State
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, ReleaseReason

from tests.ageing import archive, forget
from tests.conftest import Databases, RedisServers
from tests.databases import Database, DatabaseKind, migrated
from tests.driven_jobs import TENANT, WORKER
from tests.functions.api import JOBS, Api, serving, slug
from tests.parts import PUBLIC_URL, Part, environment
from tests.redis_server import RedisKind
from tests.waiting import eventually

NOBODYS_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
ENDS = [state for state in State if state.is_terminal]


class Aged:
    """The API, whose jobs a test can age."""

    def __init__(self, api: Api, redis_url: str, database: Database) -> None:
        self.api = api
        self.jobs = api.jobs
        self.redis_url = redis_url
        self.database_url = database.url

    def archive(self, *job_ids: str) -> None:
        archive(self.jobs, self.redis_url, self.database_url, job_ids)

    def age(self, *job_ids: str) -> None:
        """Archive the jobs, and let them expire in Redis."""
        self.archive(*job_ids)
        forget(self.jobs, job_ids)


@contextmanager
def running(redis_url: str, namespace: str, folder: Path, database: Database, **more: Any) -> Iterator[Aged]:
    with serving(redis_url, namespace, folder, DARKROOM_DATABASE_URL=database.url, **more) as api:
        yield Aged(api, redis_url, database)


@pytest.fixture(scope="module", params=list(DatabaseKind))
def aged(
    request: pytest.FixtureRequest,
    redis_servers: RedisServers,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Aged]:
    """One process for all tests of this file that leave it intact, with a database of each kind in turn."""
    redis_url, folder = redis_servers(RedisKind.EMBEDDED).url, tmp_path_factory.mktemp("functions")
    with running(redis_url, f"t-{secrets.token_hex(8)}", folder, databases(request.param)) as aged:
        yield aged


def complete(api: Api, job_id: str, content: bytes) -> None:
    """Complete the running job with a picture, as a worker does."""
    sha256 = hashlib.sha256(content).hexdigest()
    key = artifact_key(tenant=TENANT, job_id=job_id, attempt=1, index=0, sha256=sha256, extension="png")
    ArtifactStore(api.store.as_uri()).put(key, content)
    data = {
        "artifacts": [Artifact(key, sha256, "image/png", size=len(content), width=832, height=1216).encode()],
        "record": {"seed": 7},
        "model_served": "flux-untrained",
        "attempt": 1,
        "worker": WORKER,
        "run_ms": 12,
    }
    call = calls.finish(job_id, token="token", outcome=State.COMPLETED, data=data)
    assert api.jobs.run(call) is AttemptEnd.COMPLETED


def ended(api: Api, state: State, **body: object) -> str:
    """A job in this terminal state; one that ran did so twice."""
    job_id = api.submit(body | ({"start_deadline": "2020-01-01T00:00:00Z"} if state is State.EXPIRED else {}))
    if state is State.EXPIRED:
        api.jobs.expire(job_id)
    elif state is State.CANCELLED:
        api.jobs.cancel(job_id)
    else:
        api.jobs.start(job_id, token="first")
        api.jobs.run(calls.release(job_id, reason=ReleaseReason.DRAIN, detail="shutting down", token="first"))
        api.jobs.start(job_id)
        if state is State.COMPLETED:
            complete(api, job_id, b"a picture")
        else:
            api.jobs.fail(job_id, message="out of paper")
    return job_id


def without_links(view: dict[str, Any]) -> dict[str, Any]:
    """The view without links, which contain the time when they were made."""
    return {
        **view,
        "output_paths": len(view["output_paths"]),
        "artifacts": [{**artifact, "url": None} for artifact in view["artifacts"]],
    }


# One job


@pytest.mark.parametrize("state", ENDS)
def test_a_job_is_shown_as_before_when_only_the_history_has_it(aged: Aged, state: State) -> None:
    job_id = ended(aged.api, state, user_id="anna", priority=3, webhook="https://client.example/")
    before, task = aged.api.job(job_id), aged.api.get(f"/tasks/{job_id}").json()
    assert before["state"] == state
    aged.age(job_id)
    assert without_links(aged.api.job(job_id)) == without_links(before)
    assert aged.api.get(f"/tasks/{job_id}").json() == task


LARGE = {"input": {"prompt": "\U0001f5fc" * 4_000}}
"""A prompt that is larger than what Redis stores of an archived job."""


def test_a_large_input_is_shown_as_before_when_only_the_history_has_it(aged: Aged) -> None:
    """Alone, in a list, as a dead letter, and after a redrive."""
    job_id = aged.api.submit(LARGE)
    for attempt in ("1", "2", "3"):
        aged.jobs.start(job_id, token=attempt)
        aged.jobs.run(calls.release(job_id, reason=ReleaseReason.WORKER_LOST, detail="gone", token=attempt))
    letters = "/api/v1/dead-letters"
    paths = (f"{JOBS}{job_id}", f"{JOBS}?limit=1", f"{letters}?limit=1", f"{letters}/{job_id}")
    before = [aged.api.get(path).json() for path in paths]
    aged.archive(job_id)
    assert aged.jobs.redis.hget(f"{aged.jobs.namespace}:job:{job_id}", "input") == b"{}"
    assert [aged.api.get(path).json() for path in paths] == before
    redriven = aged.api.post(f"{letters}/{job_id}/redrive").json()["id"]
    assert aged.api.job(redriven)["input"] == before[0]["input"]


def test_a_picture_of_an_old_job_can_still_be_fetched(aged: Aged) -> None:
    job_id = ended(aged.api, State.COMPLETED)
    aged.age(job_id)
    (link,) = aged.api.job(job_id)["output_paths"]
    assert aged.api.get(link.removeprefix(PUBLIC_URL)).content == b"a picture"


def test_attempts_are_shown_when_redis_has_the_record_and_no_log(aged: Aged) -> None:
    job_id = ended(aged.api, State.FAILED)
    before = aged.api.job(job_id)
    aged.archive(job_id)
    aged.jobs.redis.delete(f"{aged.jobs.namespace}:log:{job_id}")
    assert aged.api.job(job_id) == before
    assert [attempt["outcome"] for attempt in before["attempts"]] == ["released", "failed"]


def test_a_late_cancel_has_the_receipt_of_the_first(aged: Aged) -> None:
    completed, dequeued, interrupted = ended(aged.api, State.COMPLETED), aged.api.submit(), aged.api.submit()
    aged.jobs.start(interrupted)

    def cancel() -> list[dict[str, Any]]:
        return [aged.api.post(f"{JOBS}{job_id}/cancel").json() for job_id in (completed, dequeued, interrupted)]

    assert [answer["receipt"] for answer in cancel()] == ["too_late", "dequeued", "interrupting"]
    aged.jobs.run(calls.finish(interrupted, token="token", outcome=State.COMPLETED, data={}))
    before = cancel()
    assert [answer["status"] for answer in before] == ["completed", "cancelled", "cancelled"]
    aged.age(completed, dequeued, interrupted)
    assert cancel() == before


def test_an_old_job_of_another_tenant_is_not_there(aged: Aged) -> None:
    foreign = aged.jobs.completed(tenant="another", fields={"user_id": "of both tenants"})
    aged.age(foreign)
    for method, path in (
        ("GET", f"/tasks/{foreign}"),
        ("GET", JOBS + foreign),
        ("POST", f"{JOBS}{foreign}/cancel"),
        ("DELETE", JOBS + foreign),
    ):
        assert aged.api.request(method, path).status_code == 404
    listed = aged.api.get(JOBS, params={"user_id": "of both tenants"}).json()
    assert listed == {"jobs": [], "next": None, "complete": True}


# The list


def everything(api: Api, *, limit: int, **query: str) -> list[dict[str, Any]]:
    """All pages of a list, in order; each is complete."""
    jobs: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = api.get(JOBS, params={"limit": str(limit), **query, **after}).json()
        assert page["complete"] is True
        assert len(page["jobs"]) <= limit
        jobs += page["jobs"]
        if page["next"] is None:
            return jobs
        after = {"after": page["next"]}


def test_the_list_continues_in_the_history_without_a_gap_or_a_repeat(
    redis_url: str, namespace: str, tmp_path: Path, database: Database
) -> None:
    """500 jobs: mostly the older ones are only in the history, also some newer ones, and not some of the oldest."""
    with running(redis_url, namespace, tmp_path, database) as aged:
        check_list_of_500(aged, dice=random.Random(1))


def check_list_of_500(aged: Aged, *, dice: random.Random) -> None:
    submitted: list[str] = []
    states: dict[str, str] = {}
    for number in range(500):
        job_id = aged.jobs.submit(fields={"user_id": dice.choice(["anna", "ben"])})
        submitted.append(job_id)
        if dice.random() < 0.9:
            aged.jobs.start(job_id)
            if dice.random() < 0.7:
                aged.jobs.complete(job_id)
            else:
                aged.jobs.fail(job_id, message="out of paper")
        states[job_id] = aged.jobs.state(job_id).value
        if number % 10 == 0:
            time.sleep(0.001)
    done = [job_id for job_id in submitted if State(states[job_id]).is_terminal]
    archived = [job_id for job_id in done if job_id in submitted[:350] or dice.random() < 0.5]
    aged.archive(*archived)
    forget(aged.jobs, [job_id for job_id in archived if job_id in submitted[:250] or dice.random() < 0.3])
    newest_first = sorted(submitted, reverse=True)
    for limit in (7, 100):
        assert [job["id"] for job in everything(aged.api, limit=limit)] == newest_first
    for state in ("completed", "failed", "pending"):
        found = everything(aged.api, limit=50, state=state)
        assert [job["id"] for job in found] == [job_id for job_id in newest_first if states[job_id] == state]
    anna = everything(aged.api, limit=33, user_id="anna", model="sd")
    assert [job["id"] for job in anna] == [
        job["id"] for job in everything(aged.api, limit=100) if job["user_id"] == "anna"
    ]
    assert {job["id"] for job in anna} < set(submitted)


# While the database is away


def test_while_the_history_is_unavailable_jobs_in_redis_are_returned_and_others_are_503(
    redis_url: str, namespace: str, tmp_path: Path, database: Database
) -> None:
    """An unknown answer is no absence: 503 and never 404."""
    with ExitStack() as stack:
        with database.absent():
            aged = stack.enter_context(running(redis_url, namespace, tmp_path, database, migrate_history=False))
            api = aged.api
            recent, living = ended(api, State.FAILED), api.submit()
            assert api.job(recent)["state"] == "failed"
            aged.jobs.redis.delete(f"{namespace}:log:{recent}")
            assert api.job(recent)["attempts"] is None
            for method, path in (
                ("GET", f"/tasks/{NOBODYS_ID}"),
                ("GET", JOBS + NOBODYS_ID),
                ("POST", f"{JOBS}{NOBODYS_ID}/cancel"),
                ("DELETE", JOBS + NOBODYS_ID),
                ("DELETE", JOBS + recent),
            ):
                assert_unknown(api.request(method, path))
            assert api.job(recent)["state"] == "failed", "nothing was done"
            page = api.get(JOBS, params={"limit": "5"}).json()
            assert [job["id"] for job in page["jobs"]] == sorted([recent, living], reverse=True)
            assert (page["complete"], page["next"]) == (False, page["jobs"][-1]["id"])
            assert_unknown(api.get(JOBS, params={"after": page["next"]}))
            assert api.get(JOBS, params={"state": "pending"}).json()["complete"] is True, "none of them is history"
        migrated(database.url)
        assert api.get(JOBS + NOBODYS_ID).status_code == 404
        page = api.get(JOBS).json()
        assert (page["complete"], page["next"]) == (True, None)


def assert_unknown(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert slug(response) == "history-unavailable"
    assert int(response.headers["retry-after"]) >= 1


# Deletion


def pictures(api: Api, job_id: str) -> list[str]:
    """The pictures of the job in the store, and their folder."""
    return [path.name for path in api.store.rglob("*") if job_id in path.parts]


@pytest.mark.parametrize("where", ["redis", "both", "history"])
@pytest.mark.parametrize("state", ENDS)
def test_a_deleted_job_is_410_wherever_it_was(aged: Aged, state: State, where: str) -> None:
    api = aged.api
    user = f"deletes what is {state} in {where}"
    job_id, kept = ended(api, state, user_id=user), api.submit({"user_id": user})
    view = api.job(job_id)
    if where != "redis":
        aged.archive(job_id)
    if where == "history":
        forget(aged.jobs, [job_id])
    for _ in range(2):
        answer = api.request("DELETE", JOBS + job_id)
        assert (answer.status_code, answer.content) == (204, b"")
    for method, path in (
        ("GET", f"/tasks/{job_id}"),
        ("GET", JOBS + job_id),
        ("POST", f"{JOBS}{job_id}/cancel"),
    ):
        gone = api.request(method, path)
        assert gone.status_code == 410
        assert slug(gone) == "gone"
        assert (gone.json()["state"], gone.json()["ended_at"]) == (state, view["ended_at"])
        assert gone.json()["deleted_at"] >= view["ended_at"]
    assert [job["id"] for job in api.get(JOBS, params={"user_id": user}).json()["jobs"]] == [kept]
    assert pictures(api, job_id) == []
    for link in view["output_paths"]:
        assert api.get(link.removeprefix(PUBLIC_URL)).status_code == 410
    left = [key.decode() for key in aged.jobs.redis.scan_iter(f"{aged.jobs.namespace}:*{job_id}*")]
    assert left == []
    assert job_id not in aged.jobs.outbox()
    assert aged.jobs.redis.zscore(f"{aged.jobs.namespace}:history", job_id) is None


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING])
def test_a_job_that_has_not_ended_is_not_deleted(aged: Aged, state: State) -> None:
    job_id = aged.api.submit()
    if state is State.RUNNING:
        aged.jobs.start(job_id)
    refused = aged.api.request("DELETE", JOBS + job_id)
    assert refused.status_code == 409
    assert slug(refused) == "not-ended"
    assert "cancel it first" in refused.json()["detail"]
    assert aged.api.job(job_id)["state"] == state


@pytest.mark.parametrize("job_id", ["123", NOBODYS_ID, "%00"])
def test_an_unknown_job_is_404_and_not_410(aged: Aged, job_id: str) -> None:
    refused = aged.api.request("DELETE", JOBS + job_id)
    assert refused.status_code == 404
    assert slug(refused) == "not-found"


def test_an_interrupted_deletion_is_completed_by_repeating_it(aged: Aged) -> None:
    """The store was unavailable: the job is deleted for readers, and its pictures still exist."""
    api = aged.api
    job_id = ended(api, State.COMPLETED)
    obstacle = api.store / TENANT / job_id / "in the way"
    obstacle.symlink_to(obstacle)
    failed = api.request("DELETE", JOBS + job_id)
    assert failed.status_code == 503
    assert slug(failed) == "store-unavailable"
    assert str(api.store) not in failed.text
    assert api.get(JOBS + job_id).status_code == 410
    assert len(pictures(api, job_id)) > 1
    obstacle.unlink()
    assert api.request("DELETE", JOBS + job_id).status_code == 204
    assert pictures(api, job_id) == []


def test_a_request_of_a_deleted_job_is_no_new_job(aged: Aged) -> None:
    """The same request under the same key returns the job, also once it is deleted."""
    headers = {"Idempotency-Key": "once"}
    job_id = aged.api.submit({}, headers=headers)
    aged.jobs.cancel(job_id)
    assert aged.api.request("DELETE", JOBS + job_id).status_code == 204
    again = aged.api.post(JOBS, json={}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, job_id)
    assert aged.api.get(JOBS + job_id).status_code == 410


# With a courier


def test_a_job_is_readable_after_its_whole_lifecycle(aged: Aged, tmp_path: Path) -> None:
    """A job that is submitted, run, published, applied, archived and expired in Redis by the parts themselves."""
    api, namespace = aged.api, aged.jobs.namespace
    variables = environment(
        aged.redis_url,
        namespace,
        K_SINK=f"{api.functions.url}/events",
        DARKROOM_DATABASE_URL=aged.database_url,
        DARKROOM_POLL_INTERVAL_S="0.05",
    )
    courier = Part("darkroom_courier", environment=variables, log=tmp_path / "courier.log")
    courier.start()
    try:
        job_id = ended(api, State.COMPLETED)
        key = f"{namespace}:job:{job_id}"
        eventually(lambda: aged.jobs.redis.ttl(key) > 0, what="the time to live")
        before = api.job(job_id)
        forget(aged.jobs, [job_id])
        assert without_links(api.job(job_id)) == without_links(before)
    finally:
        assert courier.stop() == 0
