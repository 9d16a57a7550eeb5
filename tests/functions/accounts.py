"""Tenants and keys with limits, for tests of a process of functions that requires keys."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from darkroom.access.limits import UNLIMITED, Limits
from darkroom.access.principals import Scope
from darkroom.access.records import Tenant

from tests.functions.administration import administering
from tests.functions.api import Api

REFUSALS = {
    "submission-rate-exceeded": Limits(submissions_per_minute=1, burst=1),
    "waiting-jobs-exceeded": Limits(waiting_jobs=1),
    "waiting-bytes-exceeded": Limits(waiting_bytes=6_000),
    "image-budget-exceeded": Limits(images_per_month=1),
    "gpu-budget-exceeded": Limits(gpu_seconds_per_day=1),
}
"""Limits that one job uses up, by the problem of the next one."""


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

    def stored(self) -> dict[bytes, bytes | None]:
        """Everything that Redis has of jobs and limits."""
        redis, namespace = self.api.jobs.redis, self.api.jobs.namespace
        found = (key for kind in ("job", "limits", "tenant") for key in redis.scan_iter(f"{namespace}:{kind}:*", 1000))
        return {key: redis.dump(key) for key in found}

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
