"""Limits of a tenant and of its keys over HTTP: who is charged for a job, and every refusal with its header fields."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any

import http_sf
import httpx
import pytest
from darkroom.access.limits import Limits
from darkroom.cloudevents.http import BATCH_TYPE, STRUCTURED_TYPE
from darkroom.ledger import calls

from tests.conftest import RedisServers
from tests.functions.accounts import REFUSALS, Accounts
from tests.functions.api import JOBS, Api, binary, serving, structured
from tests.redis_server import RedisKind


@pytest.fixture(scope="module")
def accounts(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accounts]:
    redis_url, namespace = redis_servers(RedisKind.EMBEDDED).url, f"t-{secrets.token_hex(8)}"
    with serving(redis_url, namespace, tmp_path_factory.mktemp("functions"), DARKROOM_AUTH="keys") as api:
        yield Accounts(redis_url, api)


# -- who is charged ----------------------------------------------------------------------------------------------------


def doors(api: Api, header: dict[str, str], *, model: str = "sd") -> dict[str, httpx.Response]:
    """A submission to the model at each door."""
    data = {"model": model}
    event = structured(secrets.token_hex(8), data=data)
    return {
        "rest": api.post(JOBS, json=data, headers=header),
        "model": api.post(f"/{model}", headers=header),
        "binary": api.post("/", json=data, headers=binary(secrets.token_hex(8)) | header),
        "structured": api.post("/", content=json.dumps(event), headers={"Content-Type": STRUCTURED_TYPE} | header),
        "batch": api.post(
            "/",
            content=json.dumps([structured(secrets.token_hex(8), data=data)]),
            headers={"Content-Type": BATCH_TYPE} | header,
        ),
    }


def test_every_door_charges_the_key_that_submits(accounts: Accounts) -> None:
    header = accounts.create()
    for door, response in doors(accounts.api, header).items():
        answer = response.json()
        job_id = answer["verdicts"][0]["id"] if door == "batch" else answer["id"]
        record = accounts.api.jobs.record(job_id)
        assert record.key_id == accounts.key_of(header), door
        assert record.images == 1, door


def test_a_redrive_is_charged_to_the_key_that_redrives(accounts: Accounts) -> None:
    header = accounts.create()
    job_id = accounts.api.submit(headers=header)
    jobs = accounts.api.jobs
    for number in range(calls.MAX_ATTEMPTS):
        jobs.start(job_id, token=str(number))
        jobs.run(calls.retry(job_id, token=str(number), error={"kind": "transient", "message": "no"}, delay_ms=0))
    other = accounts.add(accounts.api.jobs.record(job_id).tenant)
    response = accounts.api.post(f"/api/v1/dead-letters/{job_id}/redrive", headers=other)
    assert response.status_code == 202, response.text
    assert accounts.api.jobs.record(response.json()["id"]).key_id == accounts.key_of(other)


def test_a_key_submits_to_its_models_alone(accounts: Accounts) -> None:
    header = accounts.create(models=("flux",))
    for door, response in doors(accounts.api, header).items():
        problem = response.json()["verdicts"][0]["problem"] if door == "batch" else response.json()
        assert problem["type"].endswith("/model-not-permitted"), door
        assert problem["status"] == 403, door
    assert {response.status_code for response in doors(accounts.api, header, model="flux").values()} == {202}


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["tenant", "key"])
@pytest.mark.parametrize("problem", REFUSALS)
def test_each_limit_has_a_problem_of_its_own_at_every_door(accounts: Accounts, problem: str, owner: str) -> None:
    limits = REFUSALS[problem]
    header = accounts.create(tenant_limits=limits) if owner == "tenant" else accounts.create(limits=limits)
    first = accounts.api.post("/sd", headers=header)
    assert first.status_code == 202, first.text
    (policy,) = of_field(first, "ratelimit-policy")
    assert policy.startswith(f"{owner}-")
    assert of_field(first, "ratelimit").keys() == {policy}
    before = accounts.stored()
    for door, response in doors(accounts.api, header).items():
        assert response.status_code == 429, door
        refusal = response.json()
        assert refusal["type"].endswith(f"/{problem}"), door
        if door == "batch":
            assert refusal["verdicts"][0]["problem"]["violated-policies"] == [policy]
        else:
            assert refusal["violated-policies"] == [policy], door
        remaining = of_field(response, "ratelimit")[policy]
        assert int(response.headers["retry-after"]) >= remaining.get("t", 1), door
    assert accounts.stored() == before, "a refusal stores nothing"


def of_field(response: httpx.Response, name: str) -> dict[str, dict[str, Any]]:
    """The items of a field, and their parameters."""
    items: Any = http_sf.parse(response.headers[name].encode(), tltype="list")
    return dict(items)


def test_a_repeat_is_not_refused_and_shows_what_remains(accounts: Accounts) -> None:
    header = accounts.create(tenant_limits=Limits(submissions_per_minute=1, burst=1))
    repeated = {"Idempotency-Key": secrets.token_hex(8), **header}
    first, again = (accounts.api.post("/sd", headers=repeated) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert of_field(again, "ratelimit")["tenant-submissions-per-minute"]["r"] == 0


def test_a_batch_shows_what_remains_after_all_its_events(accounts: Accounts) -> None:
    header = accounts.create(tenant_limits=Limits(waiting_jobs=3))
    events = [structured(secrets.token_hex(8), data={"model": "sd"}) for _ in range(4)]
    response = accounts.api.post("/", content=json.dumps(events), headers={"Content-Type": BATCH_TYPE} | header)
    assert response.status_code == 202
    assert [verdict["status"] for verdict in response.json()["verdicts"]] == [202, 202, 202, 429]
    assert of_field(response, "ratelimit") == {"tenant-waiting-jobs": {"r": 0}}


def test_a_redrive_counts_on_the_limits_of_the_key(accounts: Accounts) -> None:
    header = accounts.create()
    job_id = accounts.api.submit(headers=header)
    jobs = accounts.api.jobs
    tenant = jobs.record(job_id).tenant
    for number in range(calls.MAX_ATTEMPTS):
        jobs.start(job_id, token=str(number))
        jobs.run(calls.retry(job_id, token=str(number), error={"kind": "transient", "message": "no"}, delay_ms=0))
    other = accounts.add(tenant, limits=Limits(images_per_day=0))
    refused = accounts.api.post(f"/api/v1/dead-letters/{job_id}/redrive", headers=other)
    assert refused.json()["violated-policies"] == ["key-images-per-day"]
    assert accounts.api.post(f"/api/v1/dead-letters/{job_id}/redrive", headers=header).status_code == 202


async def test_100_parallel_requests_overrun_a_budget_by_no_job(accounts: Accounts) -> None:
    header = await asyncio.to_thread(accounts.create, tenant_limits=Limits(images_per_day=10))
    async with httpx.AsyncClient(base_url=accounts.api.functions.url, trust_env=False, timeout=60) as client:
        responses = await asyncio.gather(*(client.post("/sd", headers=header) for _ in range(100)))
    assert sorted(response.status_code for response in responses) == [202] * 10 + [429] * 90


def test_without_limits_there_is_no_field(accounts: Accounts) -> None:
    response = accounts.api.post("/sd", headers=accounts.create())
    assert response.status_code == 202
    assert not {"ratelimit", "ratelimit-policy"} & response.headers.keys()
