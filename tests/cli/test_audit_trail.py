"""`darkroom audit` and the audit trail, on a real ledger and database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from darkroom.ledger import calls
from darkroom.trail.entries import Entry, Head
from darkroom.trail.store import TrailStore
from sqlalchemy import text

from tests.darkroom_command import darkroom
from tests.databases import opened
from tests.driven_jobs import DrivenJobs


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(redis_url, namespace)
    yield driven
    driven.close()


@pytest.fixture
def settings(redis_url: str, namespace: str, tmp_path: Path) -> dict[str, str]:
    """The environment of an operator's shell."""
    return {
        "DARKROOM_REDIS_URL": redis_url,
        "DARKROOM_NAMESPACE": namespace,
        "DARKROOM_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'history.sqlite'}",
    }


def fill(jobs: DrivenJobs, settings: dict[str, str], *statements: str) -> None:
    """Three entries in SQL, their end in Redis; then the statements of an owner of the database."""

    async def filled() -> Head:
        async with opened(settings["DARKROOM_DATABASE_URL"]) as database:
            head = await TrailStore(database, jobs.namespace).append(
                [
                    Entry(f"u{number}", number, "studio", "key", "key", "cancelJob", f"job-{number}", "ok", 200)
                    for number in range(3)
                ],
                now=0,
            )
            async with database.engine.begin() as connection:
                for statement in statements:
                    await connection.execute(text(statement))
            return head

    head = asyncio.run(filled())
    jobs.run(calls.drop_audit([], seq=head.seq, digest=head.digest))


DAMAGES = {
    "changed": (
        ("DROP TRIGGER audit_trail_no_update", "UPDATE audit_trail SET actor = 'another' WHERE seq = 2"),
        "trail_broken: entry 2: its hash is not that of its content and the entry before it",
    ),
    "truncated": (
        ("DROP TRIGGER audit_trail_no_delete", "DELETE FROM audit_trail WHERE seq = 3", "DELETE FROM audit_heads"),
        "trail_broken: entry 2: audit_heads has no row",
    ),
}


def test_an_intact_trail_is_exported_with_its_end(jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path) -> None:
    fill(jobs, settings)
    done = darkroom(["audit", "--trail", "--json"], folder=tmp_path, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    *entries, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(entry["seq"], entry["operation"], entry["object"]) for entry in entries] == [
        (number + 1, "cancelJob", f"job-{number}") for number in range(3)
    ]
    assert end == {"trail": 3, "head": {"seq": 3, "digest": entries[-1]["digest"]}}


@pytest.mark.parametrize(("statements", "finding"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("command", [["audit"], ["audit", "--trail"]], ids=" ".join)
def test_the_first_broken_entry_is_named(
    command: list[str],
    statements: tuple[str, ...],
    finding: str,
    jobs: DrivenJobs,
    settings: dict[str, str],
    tmp_path: Path,
) -> None:
    fill(jobs, settings, *statements)
    done = darkroom(command, folder=tmp_path, **settings)
    assert done.returncode == 1
    assert finding in done.stdout.splitlines()


def test_an_audit_verifies_the_trail(jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path) -> None:
    fill(jobs, settings)
    done = darkroom(["audit"], folder=tmp_path, **settings)
    assert done.returncode == 0
    assert "entries of the audit trail: 3, to number 3" in done.stdout


def test_a_repair_is_in_the_trail(jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path) -> None:
    job_id = jobs.submit()
    jobs.redis.zrem(f"{jobs.namespace}:dispatched:local", job_id)
    assert darkroom(["audit", "--repair"], folder=tmp_path, **settings).returncode == 0
    (entry,) = (Entry.decode(each) for each in jobs.run(calls.collect_audit(limit=10)).entries)
    assert (entry.kind, entry.operation, entry.object) == ("internal", "repair", job_id)
    assert entry.actor.startswith("cli:")


def test_a_trail_without_a_database_is_a_bad_setting(
    jobs: DrivenJobs, settings: dict[str, str], tmp_path: Path
) -> None:
    del settings["DARKROOM_DATABASE_URL"]
    done = darkroom(["audit", "--trail"], folder=tmp_path, **settings)
    assert (done.returncode, "DARKROOM_DATABASE_URL" in done.stderr) == (2, True)
