"""Existing clients (`documents.py`) against all functions on one port. The test drives the job in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.documents import Ran, run_javascript_client, run_python_client
from tests.driven_jobs import DrivenJobs
from tests.parts import Functions, environment
from tests.waiting import eventually

RunClient = Callable[[str, str], Ran]


@pytest.fixture
def functions(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[Functions]:
    settings = environment(
        redis_url, namespace, DARKROOM_STORE=f"file://{tmp_path}/artifacts", DARKROOM_SOCKET_GRACE_S="0.5"
    )
    all_of_them = Functions("all", environment=settings, log=tmp_path / "functions.log")
    all_of_them.start()
    yield all_of_them
    all_of_them.stop()


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(redis_url, namespace)
    yield driven
    driven.close()


def run_while(run_client: RunClient, functions: Functions, job_id: str, drive: Callable[[], None]) -> Ran:
    """Run the client; `drive` is called once the server has subscribed it to the job."""
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(run_client, functions.ws_url, job_id)
        eventually(lambda: running.done() or functions.said("socket_follows"), what="the client to follow the job")
        drive()
        return running.result()


def test_the_javascript_client_receives_all_updates_of_a_job(functions: Functions, jobs: DrivenJobs) -> None:
    job_id = jobs.submit()
    hashes: list[str] = []

    def drive() -> None:
        jobs.start(job_id)
        jobs.progress(job_id, step=1, steps=2)
        hashes.extend(picture.sha256 for picture in jobs.complete(job_id))

    ran = run_while(run_javascript_client, functions, job_id, drive)
    lines = ran.output.splitlines()
    assert lines[:4] == [
        f"Connected to job {job_id}",
        "Job started!",
        "Processing... 50%",
        f"Completed! Content ID: {hashes[0]}",
    ]
    assert lines[4].startswith("Image paths: [")
    assert lines[-1] == "Connection closed"
    assert (ran.status, ran.errors) == (0, "")


def test_the_python_client_receives_all_updates_of_a_job(functions: Functions, jobs: DrivenJobs) -> None:
    job_id = jobs.submit()
    hashes: list[str] = []

    def drive() -> None:
        jobs.start(job_id)
        jobs.progress(job_id, step=1, steps=2)
        hashes.extend(picture.sha256 for picture in jobs.complete(job_id))

    ran = run_while(run_python_client, functions, job_id, drive)
    assert ran.output.splitlines() == [
        f"Job {job_id}: pending",
        f"Job {job_id}: started",
        f"Job {job_id}: processing",
        f"Job {job_id}: completed",
        f"Content ID: {hashes[0]}",
    ]
    assert (ran.status, ran.errors) == (0, "")


@pytest.mark.parametrize("run_client", [run_javascript_client, run_python_client])
def test_both_clients_receive_a_failure(functions: Functions, jobs: DrivenJobs, run_client: RunClient) -> None:
    job_id = jobs.submit()

    def drive() -> None:
        jobs.start(job_id)
        jobs.fail(job_id, message="out of ideas")

    ran = run_while(run_client, functions, job_id, drive)
    assert "out of ideas" in ran.output + ran.errors
    assert ran.status == 0


@pytest.mark.parametrize("run_client", [run_javascript_client, run_python_client])
def test_both_clients_can_follow_a_completed_job(functions: Functions, jobs: DrivenJobs, run_client: RunClient) -> None:
    ran = run_client(functions.ws_url, jobs.completed())
    assert "Content ID" in ran.output
    assert (ran.status, ran.errors) == (0, "")


@pytest.mark.parametrize("run_client", [run_javascript_client, run_python_client])
def test_both_clients_end_with_a_job_that_never_starts(
    functions: Functions, jobs: DrivenJobs, run_client: RunClient
) -> None:
    """The clients know no `cancelled` or `expired`: they end because the server closes, or at `failed`."""
    cancelled, expired = jobs.submit(), jobs.submit(start_deadline=1)
    jobs.cancel(cancelled)
    jobs.expire(expired)
    assert run_client(functions.ws_url, cancelled).status == 0
    ran = run_client(functions.ws_url, expired)
    assert "expired: " in ran.output + ran.errors
    assert ran.status == 0
