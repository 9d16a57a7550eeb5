"""`darkroom replay` as a command: recomputed decisions, and the simulation of another policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from darkroom.errors import InvalidInput
from darkroom.ledger import calls
from darkroom.ledger.calls import Reading
from darkroom.scaling.decision import PoolObservation, ScalingHistory, decide
from darkroom.scaling.decision_log import DecisionEntry
from darkroom.scaling.policy import ScaleDown, ScalingPolicy
from darkroom_cli.commands.replay import read_policy, recorded_load, replica_seconds

from tests.darkroom_command import darkroom
from tests.driven_jobs import DrivenJobs

POOL = "pictures"
START_MS = 1_800_000_000_000
STEP_MS = 10_000
SPEC = ScalingPolicy(max_replicas=8, jobs_per_replica=1, scale_down=ScaleDown(idle_seconds=30))


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(redis_url, namespace)
    yield driven
    driven.close()


@pytest.fixture
def settings(redis_url: str, namespace: str) -> dict[str, str]:
    """The environment of an operator's shell."""
    return {"DARKROOM_REDIS_URL": redis_url, "DARKROOM_NAMESPACE": namespace}


def an_afternoon() -> list[DecisionEntry]:
    """A batch of twelve jobs in an empty pool, until the pool is empty again."""
    entries: list[DecisionEntry] = []
    history, replicas = ScalingHistory(), 0
    for step in range(60):
        left = 12 if step < 8 else max(12 - 2 * (step - 8), 0) if step > 1 else 0
        left = 0 if step < 2 else left
        busy = min(left, replicas) if step >= 8 else 0
        reading = Reading(
            waiting=left - busy,
            running=busy,
            busy=busy,
            idle=replicas - busy if step >= 8 else 0,
            starting=0 if step >= 8 else replicas,
            arrivals=0 if step < 2 else 12,
            service_ms=None if step < 9 else 20_000.5,
        )
        observation = PoolObservation(reading=reading, replicas=replicas, cold_start_seconds=60.0)
        at = START_MS + step * STEP_MS
        decision, after = decide(observation, SPEC, history, at)
        entries.append(
            DecisionEntry(at=at, policy=SPEC, observation=observation, history=history, decision=decision, after=after)
        )
        history, replicas = after, decision.replicas
    return entries


def write_down(jobs: DrivenJobs, entries: list[DecisionEntry]) -> None:
    for entry in entries:
        jobs.run(calls.append_decision(POOL, at=entry.at, entry=entry.encode()))


def test_decisions_are_reproduced_exactly(jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path) -> None:
    write_down(jobs, an_afternoon())
    done = darkroom(["replay", POOL], folder=tmp_path, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("decisions: 60, from 2027-01-15T08:00:00")
    assert done.stdout.endswith("different now: 0\n")


def test_a_different_decision_is_printed_and_exits_with_1(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    entries = an_afternoon()
    entries[2] = replace(entries[2], decision=replace(entries[2].decision, replicas=7))
    write_down(jobs, entries)
    done = darkroom(["replay", POOL, "--json"], folder=tmp_path, **settings)
    assert done.returncode == 1
    difference, summary = (json.loads(line) for line in done.stdout.splitlines())
    assert (difference["recorded"]["replicas"], difference["now"]["replicas"]) == (7, 8)
    assert (summary["decisions"], summary["different"]) == (60, 1)


def test_another_policy_is_simulated_with_the_same_jobs(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    write_down(jobs, an_afternoon())
    pool = tmp_path / "pool.yaml"
    pool.write_text("kind: WorkerPool\nspec:\n  maxReplicas: 2\n  target: {jobsPerReplica: 6}\n")
    done = darkroom(["replay", POOL, "--policy", str(pool), "--json"], folder=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    records: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    was, other = (record for record in records if "simulated" in record)
    assert was["jobs"] == other["jobs"] == 12
    assert other["policy"]["maxReplicas"] == 2
    assert other["wait_p95_s"] > was["wait_p95_s"] >= 60
    assert other["replica_seconds"] < was["replica_seconds"]
    assert was["kills"] == other["kills"] == 0
    assert done.stderr == ""
    done = darkroom(["replay", POOL, "--policy", str(pool)], folder=tmp_path, **settings)
    assert "the policy of the file" in done.stdout


def test_a_pool_without_decisions_exits_with_2(settings: dict[str, str], tmp_path: Path) -> None:
    done = darkroom(["replay", "unknown"], folder=tmp_path, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are no decisions" in done.stderr


def test_a_log_of_another_version_exits_with_2(jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path) -> None:
    jobs.run(calls.append_decision(POOL, at=START_MS, entry='{"at": 1}'))
    done = darkroom(["replay", POOL], folder=tmp_path, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert "written by another version" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("maxReplicas: 0", "maxReplicas"),
        ("spec: {paused: perhaps}", "paused"),
        ("{maxReplicas: 2, target: {jobsPerReplika: 4}}", "did you mean jobsPerReplica"),
        ("[1, 2]", "neither"),
        ("a: [", "policy"),
    ],
)
def test_an_invalid_policy_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=said):
        read_policy(file)


def test_a_policy_can_be_json_and_the_spec_alone(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(SPEC.spec()))
    assert read_policy(file) == SPEC


def test_a_missing_policy_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        read_policy(tmp_path / "nowhere.yaml")


# -- the load of a log -------------------------------------------------------------------------------------------------


def test_jobs_that_arrived_between_two_entries_are_spread_evenly() -> None:
    found = recorded_load(an_afternoon())
    assert len(found.jobs) == 12
    assert all(STEP_MS < job.arrival <= 2 * STEP_MS for job in found.jobs)
    assert [job.arrival for job in found.jobs] == sorted(job.arrival for job in found.jobs)
    assert {job.service for job in found.jobs} == {20_000}
    assert (found.cold_start_ms, found.until) == (60_000, 59 * STEP_MS)


def test_jobs_of_the_first_entry_are_included(jobs: DrivenJobs) -> None:
    assert len(recorded_load(an_afternoon()[8:]).jobs) == 12


def test_an_emptied_redis_removes_no_jobs() -> None:
    entries = an_afternoon()
    last = entries[-1]
    reading = replace(last.observation.reading or Reading(), arrivals=3)
    entries[-1] = replace(last, observation=replace(last.observation, reading=reading))
    assert len(recorded_load(entries).jobs) == 15


def test_entries_without_a_reading_are_skipped() -> None:
    entries = an_afternoon()
    entries[2] = replace(entries[2], observation=replace(entries[2].observation, reading=None))
    assert len(recorded_load(entries).jobs) == 12


def test_a_log_without_a_completed_job_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no duration of a job"):
        recorded_load(an_afternoon()[:5])


def test_the_replicas_of_a_log_are_counted_as_decided() -> None:
    entries = an_afternoon()[:4]
    assert [entry.decision.replicas for entry in entries] == [0, 0, 8, 8]
    assert replica_seconds(entries) == pytest.approx(8 * STEP_MS / 1000)
