"""`darkroom audit` and `darkroom doctor` as commands: settings, output and exit statuses.

The findings are tested in tests/core/test_audit.py and tests/core/test_doctor.py.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from darkroom.artifacts import ArtifactStore, artifact_key
from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.queues import queue_name
from darkroom_cli.local import redis_server
from darkroom_cli.local.data_folder import DataFolder
from darkroom_cli.local.processes import ProcessIdentity, RecordedProcess
from darkroom_cli.local.run_record import RunRecord

from tests.darkroom_command import darkroom
from tests.driven_jobs import POOL, TENANT, DrivenJobs
from tests.waiting import eventually


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(redis_url, namespace)
    yield driven
    driven.close()


@pytest.fixture
def settings(redis_url: str, namespace: str) -> dict[str, str]:
    """The environment of an operator's shell."""
    return {"DARKROOM_REDIS_URL": redis_url, "DARKROOM_NAMESPACE": namespace}


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def lose(jobs: DrivenJobs) -> str:
    """An orphaned job, which is in no queue."""
    job_id = jobs.submit()
    jobs.redis.zrem(f"{jobs.namespace}:dispatched:{POOL}", job_id)
    return job_id


def test_an_audit_without_findings_counts_the_jobs_and_exits_with_0(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    jobs.start(jobs.submit())
    jobs.submit()
    done = darkroom(["audit"], folder=tmp_path, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "jobs: 2 (1 dispatched, 1 running)",
        "the object store was not read",
        "the history was not read",
        "the audit trail was not read",
        "no findings",
    ]


def test_an_audit_with_a_finding_names_the_job_and_exits_with_1(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    job_id = lose(jobs)
    done = darkroom(["audit"], folder=tmp_path, **settings)
    assert done.returncode == 1
    assert f"nowhere: job {job_id}: its state is pending, and it is in no set of pool {POOL}" in done.stdout
    assert done.stdout.splitlines()[-1] == "findings: 1, repaired: 0"
    assert jobs.state(job_id) is State.PENDING


def test_a_repair_exits_with_0(jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path) -> None:
    lose(jobs)
    done = darkroom(["audit", "--repair"], folder=tmp_path, **settings)
    assert done.returncode == 0, done.stdout
    assert "  repaired: waiting again" in done.stdout
    assert darkroom(["audit"], folder=tmp_path, **settings).stdout.splitlines()[-1] == "no findings"


def test_with_json_an_audit_prints_a_line_per_finding_and_the_counts(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    job_id = lose(jobs)
    jobs.submit()
    done = darkroom(["audit", "--json"], folder=tmp_path, **settings)
    finding, stale, counts = lines_of(done)
    assert (finding["finding"], finding["job"], finding["repaired"]) == ("nowhere", job_id, None)
    assert (stale["stale"], stale["where"]) == (f"{job_id}:1", "list")
    assert counts == {
        "jobs": 2,
        "places": {
            **dict.fromkeys(["waiting", "dispatched", "due", "held", "running"], 0),
            **dict.fromkeys(["completed", "failed", "cancelled", "expired"], 0),
            "waiting": 1,
            "nowhere": 1,
        },
        "unapplied": 0,
        "artifacts": None,
        "history": None,
        "trail": None,
        "findings": {"nowhere": 1},
        "repaired": 0,
        "stale": 1,
        "orphans": 0,
    }


def test_artifacts_are_read_if_the_store_is_set_and_they_are_not_excluded(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    jobs.completed()  # its artifact is not in the store
    store = (tmp_path / "store").as_uri()
    done = darkroom(["audit", "--json"], folder=tmp_path, DARKROOM_STORE=store, **settings)
    assert done.returncode == 1
    assert lines_of(done)[-1]["findings"] == {"artifact_missing": 1}
    done = darkroom(["audit", "--json", "--no-artifacts"], folder=tmp_path, DARKROOM_STORE=store, **settings)
    assert done.returncode == 0
    assert lines_of(done)[-1]["artifacts"] is None


def test_an_orphaned_artifact_is_listed_and_exits_with_0(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    job_id = jobs.submit()
    jobs.start(job_id)
    jobs.run(calls.cancel(job_id, tenant=TENANT))
    jobs.run(calls.finish(job_id, token="token", outcome=State.CANCELLED, data={}))
    key = artifact_key(tenant=TENANT, job_id=job_id, attempt=1, index=0, sha256="0" * 64, extension="png")
    store = (tmp_path / "store").as_uri()
    ArtifactStore(store).put(key, b"a picture")
    done = darkroom(["audit"], folder=tmp_path, DARKROOM_STORE=store, **settings)
    assert done.returncode == 0, done.stdout
    seen = "the job is cancelled, and its attempt 1 did not publish this"
    assert f"orphaned artifact {key}: {seen}" in done.stdout.splitlines()
    assert "orphaned artifacts, which retention removes: 1" in done.stdout.splitlines()
    done = darkroom(["audit", "--json"], folder=tmp_path, DARKROOM_STORE=store, **settings)
    assert lines_of(done)[0] == {"orphan": key, "job": job_id, "seen": seen}


def test_messages_without_a_job_are_listed_and_found_by_the_doctor(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    jobs.redis.lpush(f"{jobs.namespace}:celery:{queue_name(POOL)}", b"\xff")
    done = darkroom(["audit"], folder=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    assert f"stale message without a tag of pool {POOL} (list): it belongs to no job" in done.stdout.splitlines()
    done = darkroom(["doctor", "--json"], folder=tmp_path, **settings)
    assert "foreign-messages" in {line.get("check") for line in lines_of(done)}, done.stdout


@pytest.mark.parametrize("arguments", [["audit"], ["audit", "--repair"], ["doctor"]], ids=" ".join)
def test_without_redis_the_error_is_one_line_and_exits_with_3(arguments: list[str], tmp_path: Path) -> None:
    done = darkroom(arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert "DARKROOM_REDIS_URL" in line
    assert ".darkroom" in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DARKROOM_REDIS_URL", "http://x"), ("DARKROOM_STORE", "/tmp"), ("DARKROOM_NAMESPACE", "A b")],
)
@pytest.mark.parametrize("command", ["audit", "doctor"])
def test_an_invalid_setting_is_one_line_and_exits_with_2(
    settings: dict[str, str], tmp_path: Path, command: str, variable: str, value: str
) -> None:
    done = darkroom([command], folder=tmp_path, **(settings | {variable: value}))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert variable in line


def test_an_unavailable_redis_exits_with_3_for_an_audit_and_is_a_finding_of_the_doctor(tmp_path: Path) -> None:
    url = f"redis://:hidden-word@127.0.0.1:{redis_server.free_port()}/0"
    done = darkroom(["audit"], folder=tmp_path, DARKROOM_REDIS_URL=url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "darkroom: Redis is unavailable\n"
    done = darkroom(["doctor"], folder=tmp_path, DARKROOM_REDIS_URL=url)
    assert done.returncode == 1
    assert done.stdout.startswith("problem: redis-reachable: ")
    assert "  remedy: " in done.stdout
    assert "not checked: redis-version" in done.stdout
    assert "hidden-word" not in done.stdout + done.stderr


def test_a_doctor_without_findings_lists_its_checks(jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path) -> None:
    jobs.run(calls.reap(POOL))
    done = darkroom(["doctor"], folder=tmp_path, **settings)
    assert done.returncode == 0, done.stdout
    (line,) = done.stdout.splitlines()
    assert line.startswith("fine: redis-reachable, redis-version")


def test_with_json_the_doctor_prints_a_line_per_finding_and_the_checks(
    settings: dict[str, str], tmp_path: Path
) -> None:
    done = darkroom(["doctor", "--json"], folder=tmp_path, **settings)
    assert done.returncode == 1
    finding, checks = lines_of(done)
    assert (finding["check"], finding["severity"]) == ("pools", "problem")
    assert finding["remedy"]
    assert (checks["findings"], checks["found"], checks["not_made"]) == (1, ["pools"], [])
    assert "eviction" in checks["fine"]


def test_a_full_backlog_is_judged_by_the_limit_of_submit(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    jobs.run(calls.reap(POOL))
    jobs.submit()
    done = darkroom(["doctor", "--json"], folder=tmp_path, DARKROOM_BACKLOG_LIMIT="1", **settings)
    assert lines_of(done)[-1]["found"] == ["backlog"]


@pytest.fixture
def running_up(tmp_path: Path) -> Iterator[DrivenJobs]:
    """The Redis of a `darkroom up` in `.darkroom`, as it prepares and records it."""
    folder = DataFolder(tmp_path / ".darkroom")
    with folder.locked():
        server = redis_server.prepare(folder.redis, port=redis_server.free_port())
        process = subprocess.Popen(server.command, cwd=server.folder, stdout=subprocess.DEVNULL)
        try:
            eventually(lambda: redis_server.serves(server.url), what="Redis answers")
            identity = ProcessIdentity.of(process.pid)
            assert identity is not None
            recorded = RecordedProcess("redis", identity.pid, identity.started, grace_s=3)
            RunRecord(1, "http://127.0.0.1:8000", (recorded,)).write(folder.record)
            driven = DrivenJobs(server.url, "darkroom")
            yield driven
            driven.close()
        finally:
            process.kill()
            process.wait()


def test_a_running_up_is_found_by_its_data_folder(running_up: DrivenJobs, tmp_path: Path) -> None:
    lose(running_up)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for arguments, folder in ([], tmp_path), (["--data", str(tmp_path / ".darkroom")], elsewhere):
        done = darkroom(["audit", "--json", *arguments], folder=folder)
        assert done.returncode == 1, done.stderr
        counts = lines_of(done)[-1]
        assert (counts["findings"], counts["artifacts"], counts["history"]) == ({"nowhere": 1}, 0, 0)
