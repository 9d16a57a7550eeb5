"""Limits of a tenant and of its keys over HTTP: who is charged for a job, and every refusal with its header fields."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from darkroom.access.limits import UNLIMITED, Limits
from darkroom.access.principals import Scope
from darkroom.access.records import Tenant
from darkroom.cloudevents.http import BATCH_TYPE, STRUCTURED_TYPE
from darkroom.ledger import calls

from tests.conftest import RedisServers
from tests.functions.administration import administering
from tests.functions.api import JOBS, Api, binary, serving, structured
from tests.redis_server import RedisKind


@dataclass
class Accounts:
    """A process of functions that requires keys, and keys that the tests create."""

    redis_url: str
    api: Api
    ids: dict[str, str] = field(default_factory=dict)

    def create(
        self, *, tenant_limits: Limits = UNLIMITED, limits: Limits = UNLIMITED, models: tuple[str, ...] = ()
    ) -> dict[str, str]:
        """The header of a new key of a new tenant."""
        tenant = f"t{secrets.token_hex(6)}"
        asyncio.run(self._create_tenant(tenant, tenant_limits))
        return self.add(tenant, limits=limits, models=models)

    def add(self, tenant: str, *, limits: Limits = UNLIMITED, models: tuple[str, ...] = ()) -> dict[str, str]:
        """The header of another key of the tenant."""
        return asyncio.run(self._create_key(tenant, limits, models))

    def key_of(self, header: dict[str, str]) -> str:
        return self.ids[header["Authorization"]]

    async def _create_tenant(self, tenant: str, limits: Limits) -> None:
        async with administering(self.redis_url, self.api) as administration:
            await administration.create_tenant(Tenant(name=tenant, limits=limits), actor="tests")

    async def _create_key(self, tenant: str, limits: Limits, models: tuple[str, ...]) -> dict[str, str]:
        async with administering(self.redis_url, self.api) as administration:
            key, credential = await administration.create_key(
                tenant=tenant, name="a key", scopes=frozenset(Scope), models=models, limits=limits, actor="tests"
            )
        header = {"Authorization": f"Bearer {credential.text}"}
        self.ids[header["Authorization"]] = key.id
        return header


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
