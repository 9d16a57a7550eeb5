"""Reports of usage and the audit trail over real HTTP, with a courier that stores both."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import secrets
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RedisServers
from tests.courier.sink import Sink
from tests.darkroom_command import darkroom
from tests.databases import opened
from tests.functions.api import JOBS, faults, serving, slug
from tests.functions.test_access import OTHER, OWNER, Access, issue_keys
from tests.parts import Part
from tests.redis_server import RedisKind
from tests.waiting import eventually

USAGE, AUDIT = "/api/v1/usage", "/api/v1/audit"
JSON = "application/json"


@pytest.fixture(scope="module")
def access(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """With finished jobs of two tenants and three keys, and refused ones, all of which the courier has stored."""
    redis_url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    folder = tmp_path_factory.mktemp("functions")
    with Sink().running() as sink, serving(redis_url, namespace, folder, DARKROOM_AUTH="keys") as api:
        access = Access(api, asyncio.run(issue_keys(redis_url, api)))
        settings = {**api.functions.environment, "K_SINK": sink.url, "DARKROOM_POLL_INTERVAL_S": "0.05"}
        courier = Part("darkroom_courier", environment=settings, log=folder / "courier.log")
        courier.start()
        for name, pictures in (("submit", 1), ("submit", 3), ("all", 2), ("other", 1)):
            access.job_id = api.submit(headers=access.header(name))
            api.jobs.start(access.job_id)
            api.jobs.complete(access.job_id, pictures=pictures)
        cancelled = api.submit({"model": "sd"}, headers=access.header("submit"))
        api.post(f"{JOBS}{cancelled}/cancel", headers=access.header("cancel"))
        for _ in range(3):
            api.post(JOBS, json={"model": "sd", "width": -1}, headers=access.header("submit"))
        api.post(JOBS, json={}, headers=access.header("read"))
        keys = (f"{namespace}:{name}" for name in ("history", "audit", "audit-open"))
        history, audit, audit_open = keys
        eventually(lambda: _refused(access) == {"invalid-input": 3, "scope-missing": 1}, what="the refusals")
        eventually(
            lambda: (
                not (api.jobs.redis.zcard(history) or api.jobs.redis.zcard(audit) or api.jobs.redis.hlen(audit_open))
            ),
            what="the courier to store all",
        )
        yield access
        courier.stop()


def _refused(access: Access) -> dict[str, int]:
    rows = _report(access, "all", tenant=OWNER, group_by="tenant")["rows"]
    return dict(rows[0]["refusals"]) if rows else {}


def _report(access: Access, key: str, **query: str) -> Any:
    response = access.api.get(USAGE, params=query, headers=access.header(key))
    assert response.status_code == 200, response.text
    return response.json()


def test_a_tenant_sees_its_own_usage(access: Access) -> None:
    for query in ({}, {"tenant": OTHER}):
        (row,) = _report(access, "other", group_by="tenant", **query)["rows"]
        assert (row["tenant"], row["jobs"], row["images"], row["refusals"]) == (OTHER, 1, 1, {})
    assert {row["tenant"] for row in _report(access, "read")["rows"]} == {OWNER}


@pytest.mark.parametrize("tenant", [OWNER, "unknown"])
def test_another_tenants_usage_needs_the_scope_admin(tenant: str, access: Access) -> None:
    """Whether the tenant exists is not disclosed."""
    response = access.api.get(USAGE, params={"tenant": tenant}, headers=access.header("other"))
    assert (response.status_code, slug(response)) == (403, "scope-missing")
    assert 'scope="admin"' in response.headers["www-authenticate"]


def test_an_administrator_sees_all_tenants(access: Access) -> None:
    assert {row["tenant"] for row in _report(access, "all")["rows"]} == {OWNER, OTHER}
    assert {row["tenant"] for row in _report(access, "all", tenant=OTHER)["rows"]} == {OTHER}


def test_jobs_are_counted_by_key_and_model_on_the_day_on_which_they_finished(access: Access) -> None:
    report = _report(access, "read")
    today = datetime.now(UTC).date().isoformat()
    by = {(row["key"], row["model"]): row for row in report["rows"]}
    submit, everything, reader = (access.keys[name].split("_")[1] for name in ("submit", "all", "read"))
    assert {(group, row["jobs"], row["images"]) for group, row in by.items()} == {
        ((submit, "flux"), 2, 4),
        ((submit, "sd"), 1, 0),
        ((everything, "flux"), 1, 2),
        ((reader, ""), 0, 0),
    }
    assert by[submit, "sd"]["refusals"] == {"invalid-input": 3}
    assert by[reader, ""]["refusals"] == {"scope-missing": 1}
    assert {row["day"] for row in report["rows"]} <= {today, report["to"], report["from"]}
    assert report["group_by"] == ["tenant", "key", "model", "day"]
    assert _report(access, "read", to="2026-01-31")["rows"] == []


def test_the_sums_are_those_of_the_history_to_the_millisecond(access: Access) -> None:
    async def recorded() -> list[Any]:
        async with opened(access.api.functions.environment["DARKROOM_DATABASE_URL"]) as history:
            return [*(await history.page(OWNER, limit=100)).jobs, *(await history.page(OTHER, limit=100)).jobs]

    jobs = asyncio.run(recorded())
    assert len(jobs) == 5
    for group_by in ("tenant", "key,day", "model", "tenant,key,model,day"):
        rows = _report(access, "all", group_by=group_by)["rows"]
        assert sum(row["gpu_ms"] for row in rows) == sum(job.gpu_ms for job in jobs)
        assert sum(row["jobs"] for row in rows) == len(jobs)


@pytest.mark.parametrize(
    ("query", "accept"),
    [({"format": "csv"}, "*/*"), ({}, "text/csv"), ({}, "text/csv;q=0.9, text/plain"), ({"format": "csv"}, JSON)],
)
def test_a_report_is_csv_on_request(query: dict[str, str], accept: str, access: Access) -> None:
    response = access.api.get(USAGE, params=query, headers=access.header("read") | {"Accept": accept})

    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert "Accept" in response.headers["vary"]
    rows = list(csv.DictReader(io.StringIO(response.text)))
    as_json = _report(access, "read")["rows"]
    assert [(row["key"], int(row["jobs"]), int(row["images"]), int(row["gpu_ms"])) for row in rows] == [
        (row["key"], row["jobs"], row["images"], row["gpu_ms"]) for row in as_json
    ]
    assert [int(row["refusals"]) for row in rows] == [sum(row["refusals"].values()) for row in as_json]
    assert sum(int(row["invalid-input"]) for row in rows) == 3


@pytest.mark.parametrize("accept", [JSON, "*/*", f"text/csv, {JSON}"])
def test_a_report_is_json_otherwise(accept: str, access: Access) -> None:
    response = access.api.get(USAGE, headers=access.header("read") | {"Accept": accept})
    assert response.headers["content-type"] == JSON


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"form": "csv"}, "form"),
        ({"format": "xml"}, "format"),
        ({"from": "2026-02-30"}, "from"),
        ({"to": "yesterday"}, "to"),
        ({"group_by": "day,day"}, "group_by"),
        ({"group_by": "user"}, "group_by"),
        ({"tenant": "Studio"}, "tenant"),
        ({"key": "\0"}, "key"),
        ({"model": "FLUX"}, "model"),
    ],
)
def test_a_bad_parameter_is_named(query: dict[str, str], field: str, access: Access) -> None:
    response = access.api.get(USAGE, params=query, headers=access.header("read"))
    assert (response.status_code, faults(response)) == (422, [field])


def test_days_in_the_wrong_order_are_refused(access: Access) -> None:
    for first, last in (("2026-11-30", "2026-11-29"), ("2020-01-01", "2026-11-29")):
        response = access.api.get(USAGE, params={"from": first, "to": last}, headers=access.header("read"))
        assert (response.status_code, slug(response)) == (422, "invalid-input")


# The audit trail


def test_the_trail_is_listed_page_by_page(access: Access) -> None:
    whole = access.api.get(AUDIT, params={"limit": 100}, headers=access.header("admin")).json()
    assert whole["next"] is None
    entries = whole["entries"]
    assert [entry["seq"] for entry in entries] == list(range(len(entries), 0, -1))
    paged: list[dict[str, Any]] = []
    query = {"limit": "2"}
    while True:
        page = access.api.get(AUDIT, params=query, headers=access.header("admin")).json()
        paged += page["entries"]
        if page["next"] is None:
            break
        query["after"] = page["next"]
    assert paged == entries
    assert [entry["operation"] for entry in entries].count("submitJob") == 7  # five jobs, two kinds of refusals
    (refused,) = (entry for entry in entries if entry["outcome"] == "invalid-input")
    assert (refused["count"], refused["status"], refused["object"]) == (3, 422, "sd")


def test_the_trail_is_filtered(access: Access) -> None:
    actor = access.keys["cancel"].split("_")[1]
    for query in ({"actor": actor}, {"operation": "cancelJob"}, {"tenant": OWNER, "operation": "cancelJob"}):
        (entry,) = access.api.get(AUDIT, params=query, headers=access.header("admin")).json()["entries"]
        assert (entry["operation"], entry["actor"], entry["tenant"], entry["outcome"]) == (
            "cancelJob",
            actor,
            OWNER,
            "ok",
        )
    found = access.api.get(AUDIT, params={"object": access.job_id}, headers=access.header("admin")).json()["entries"]
    assert [entry["operation"] for entry in found] == ["submitJob"]
    response = access.api.get(AUDIT, params={"after": "x", "who": "me"}, headers=access.header("admin"))
    assert (response.status_code, faults(response)) == (422, ["after", "who"])


# The command


def _command(access: Access, key: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return darkroom(
        ["usage", *arguments, "--url", access.api.functions.url], folder=folder, DARKROOM_KEY=access.keys[key]
    )


def test_the_command_prints_a_table_with_the_sums(access: Access, tmp_path: Path) -> None:
    done = _command(access, "all", "--by", "tenant,model", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    rows = _report(access, "all", group_by="tenant,model")["rows"]
    gpu_ms = sum(row["gpu_ms"] for row in rows)
    header, *lines, total = [line.split() for line in done.stdout.splitlines()]
    assert header == ["tenant", "model", "jobs", "images", "gpu_s", "refusals"]
    assert [line[:4] for line in lines] == [
        [row["tenant"], row["model"] or "-", str(row["jobs"]), str(row["images"])] for row in rows
    ]
    assert total == ["total", "5", "7", f"{gpu_ms / 1000:.3f}", "4"]


def test_the_command_prints_json_and_csv(access: Access, tmp_path: Path) -> None:
    as_json = _command(access, "read", "--json", folder=tmp_path)
    assert [json.loads(line) for line in as_json.stdout.splitlines()] == _report(access, "read")["rows"]
    as_csv = _command(access, "read", "--csv", "--by", "key", "--tenant", OWNER, folder=tmp_path)
    assert as_csv.stdout.splitlines()[0].startswith("key,jobs,images,gpu_ms,refusals,")


def test_the_command_reports_that_there_is_none_and_what_is_refused(access: Access, tmp_path: Path) -> None:
    done = _command(access, "read", "--from", "2026-01-01", "--to", "2026-01-02", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no usage from 2026-01-01 to 2026-01-02" in done.stderr
    done = _command(access, "read", "--by", "user", folder=tmp_path)
    assert (done.returncode, "group_by must be some of" in done.stderr) == (2, True)
