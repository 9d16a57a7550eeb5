"""From submission to scale to zero: real workers in the pods of a real control plane."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from darkroom.jobs import State

from tests.darkroom_command import darkroom
from tests.driven_jobs import DrivenJobs
from tests.operator.conftest import Stage
from tests.operator.kubelet import Kubelet
from tests.operator.real_workers import RealWorkers
from tests.operator.running_operator import RunningOperator
from tests.operator.test_operator import template
from tests.parts import environment
from tests.waiting import eventually
from tests.worker.running_worker import MODEL_FILE, POOL

Object = dict[str, Any]

BURSTS, JOBS_IN_A_BURST = 4, 50
MOST_WORKERS = 3
SCALE_INS = 20

LONG_S = 240.0
"""Workers start one after another on a busy machine."""


@pytest.fixture
def workers(stage: Stage, kubelet: Kubelet, tmp_path: Path) -> Iterator[RealWorkers]:
    models = tmp_path / "models"
    models.mkdir()
    (models / "quick.toml").write_text(MODEL_FILE)
    variables = environment(stage.redis_url, stage.prefix, DARKROOM_MODELS=str(models))
    real = RealWorkers(variables, tmp_path)
    kubelet.workers = real
    yield real
    real.stop()


@pytest.fixture
def jobs(stage: Stage) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(stage.redis_url, stage.prefix)
    yield driven
    driven.close()


def submit(jobs: DrivenJobs, *, seconds: float) -> str:
    """Submit a job of the test's model."""
    parameters: Object = {"prompt": "a test", "steps": 1, "seconds": seconds, "images": 1, "seed": 1}
    return jobs.submit(pool=POOL, model=POOL, input=parameters)


def interruptions(jobs: DrivenJobs, job_id: str) -> list[Object]:
    """The entries of the job log about releases."""
    entries = jobs.redis.xrange(f"{jobs.namespace}:log:{job_id}")
    return [json.loads(fields[b"data"]) for _, fields in entries if fields[b"event"] == b"released"]


def replaced(stage: Stage, old: RunningOperator) -> RunningOperator:
    """Replace the operator as a Deployment does: the new one waits for the Lease while the old one receives SIGTERM."""
    new = stage.operator()
    new.start()
    eventually(lambda: new.status_of("/readyz") == 503, what="the new operator waits")
    assert old.end() == 0, old.said()
    eventually(new.is_leading, what="the new operator leads")
    return new


def test_bursts_of_jobs_scale_from_zero_and_to_zero_without_interruption(
    stage: Stage, jobs: DrivenJobs, workers: RealWorkers, tmp_path: Path
) -> None:
    """The operator is replaced during every other burst. `darkroom replay` reproduces its decisions from the log."""
    leader = stage.operator()
    leader.lead()
    scale_down = {"idleSeconds": 1}
    stage.apply(POOL, maxReplicas=MOST_WORKERS, scaleDown=scale_down, target={"jobsPerReplica": 10}, gpu={"count": 0})
    eventually(lambda: jobs.redis.sismember(f"{stage.prefix}:pools", POOL), what="the pool is announced")
    ids: list[str] = []
    for number in range(BURSTS):
        assert stage.replicas(POOL) in {0, None}
        burst = [submit(jobs, seconds=0.02) for _ in range(JOBS_IN_A_BURST)]
        ids += burst
        if number % 2:
            leader = replaced(stage, leader)
        eventually(
            lambda burst=burst: all(jobs.state(job_id).is_terminal for job_id in burst),  # type: ignore[misc]
            what="the burst is done",
            deadline_s=LONG_S,
        )
        eventually(lambda: not stage.pods(POOL), what="all workers are gone", deadline_s=LONG_S)
    assert {jobs.state(job_id) for job_id in ids} == {State.COMPLETED}
    assert [found for job_id in ids for found in interruptions(jobs, job_id)] == []
    assert workers.started >= BURSTS
    assert stage.condition(POOL, "Degraded")["status"] == "False"

    variables = {"DARKROOM_REDIS_URL": stage.redis_url, "DARKROOM_NAMESPACE": stage.prefix}
    replay = darkroom(["replay", POOL, "--json"], folder=tmp_path, **variables)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    (summary,) = map(json.loads, replay.stdout.splitlines())
    assert summary["different"] == 0
    assert summary["decisions"] >= 2 * BURSTS


def test_only_idle_real_workers_are_removed(stage: Stage, jobs: DrivenJobs, workers: RealWorkers) -> None:
    """A slow job runs while the minimum is lowered repeatedly; jobs arrive while replicas are removed."""
    stage.operator().lead()
    settled: Object = {"scaleDown": {"idleSeconds": 1}, "gpu": {"count": 0}, "template": template("any")}
    stage.apply(POOL, minReplicas=3, **settled)
    eventually(lambda: len(workers.running) == 3, what="the workers are started")
    eventually(lambda: stage.pool(POOL)["status"].get("ready") == 3, what="they are ready", deadline_s=LONG_S)
    slow = submit(jobs, seconds=8)
    eventually(lambda: jobs.state(slow) is State.RUNNING, what="the slow job runs")
    stage.apply(POOL, minReplicas=0, **settled)
    stage.has_replicas(POOL, 1)
    late = [submit(jobs, seconds=0.02) for _ in range(5)]
    for job_id in (slow, *late):
        eventually(lambda job_id=job_id: jobs.state(job_id).is_terminal, what="it ends", deadline_s=LONG_S)  # type: ignore[misc]
    stage.has_replicas(POOL, 0)
    assert [found for job_id in (slow, *late) for found in interruptions(jobs, job_id)] == []


def test_no_job_is_interrupted_while_real_workers_start_and_stop(
    stage: Stage, jobs: DrivenJobs, workers: RealWorkers
) -> None:
    """Jobs arrive in bursts and singly between them, so that a worker is about to be removed whenever one arrives."""
    stage.operator().lead()
    target = {"jobsPerReplica": 1}
    stage.apply(POOL, maxReplicas=MOST_WORKERS, scaleDown={"idleSeconds": 1}, target=target, gpu={"count": 0})
    eventually(lambda: jobs.redis.sismember(f"{stage.prefix}:pools", POOL), what="the pool is announced")
    chance = random.Random(20)
    ids: list[str] = []
    deadline = time.monotonic() + 2 * LONG_S
    while workers.ended < SCALE_INS:
        assert time.monotonic() < deadline, f"{workers.ended} of {workers.started} workers went"
        ids += [submit(jobs, seconds=0.5) for _ in range(2 * MOST_WORKERS)]
        rest = time.monotonic() + chance.uniform(2.0, 6.0)
        while time.monotonic() < rest:
            time.sleep(chance.uniform(0.3, 1.2))
            ids.append(submit(jobs, seconds=0.1))
    for job_id in ids:
        eventually(lambda job_id=job_id: jobs.state(job_id).is_terminal, what="it ends", deadline_s=LONG_S)  # type: ignore[misc]
    assert {jobs.state(job_id) for job_id in ids} == {State.COMPLETED}
    assert [found for job_id in ids for found in interruptions(jobs, job_id)] == []
