"""Verification of API keys, from the copy in Redis and a cache in each process.

An entry of the cache is valid for `CACHE_S`, and shorter where the change of a key is published meanwhile: the channel
may lose a message, so both are needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import redis.asyncio

from darkroom.access.credentials import Credential
from darkroom.access.directory import REVISION, Directory, Published, key_entry, tenant_entry
from darkroom.access.principals import CredentialKind, Principal
from darkroom.access.records import ApiKey, Tenant
from darkroom.errors import AccessUnavailable, CredentialRefused, LedgerUnavailable
from darkroom.ledger.calls import record_key_use
from darkroom.ledger.channels import Channels
from darkroom.ledger.client import AsyncLedger

CACHE_S = 5.0
"""How long a process may use what it has read about a key, in seconds."""

USES_EVERY_S = 20.0
"""The interval at which uses of keys are recorded."""

MINUTE_MS = 60_000

MAX_CACHED = 10_000
"""The most keys that a process remembers, unknown ones included; the oldest are forgotten first."""

Find = Callable[[], Awaitable[Published]]


@dataclass
class _Cached:
    published: Published
    read_at: float
    principals: dict[str, Principal] = field(default_factory=dict)
    """That of the key for each of its secrets, built at its first use and not for each request."""


class KeyVerifier:
    """Verifies keys in one process. `run` must run in the background."""

    def __init__(
        self, ledger: AsyncLedger, client: redis.asyncio.Redis, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._directory = Directory(ledger)
        self._channel = ledger.keys.access_channel
        self._channels = Channels(client, on_message=self._forget, on_subscribed=lambda _: self._cached.clear())
        self._clock = clock
        self._cached: dict[str, _Cached] = {}
        self._reading: dict[str, asyncio.Task[_Cached]] = {}
        self._used: dict[str, int] = {}
        self._changes = 0

    async def run(self) -> None:
        """Receive changes of keys until cancelled."""
        tasks = [asyncio.ensure_future(self._open()), asyncio.ensure_future(self._record_uses())]
        try:
            await self._channels.run()
        finally:
            for task in tasks:
                task.cancel()

    async def verify(self, credential: Credential) -> Principal:
        """The principal of a key.

        Raises CredentialRefused, AccessUnavailable where no keys have been published, and LedgerUnavailable.
        """
        return await self.of_secret(credential.key_id, credential.digest)

    async def of_secret(self, key_id: str, secret: str) -> Principal:
        """The principal of the key that has a secret of this SHA-256. Raises what `verify` raises."""
        current = await self._current(key_entry(key_id), partial(self._directory.find, key_id))
        now = time.time_ns() // 1_000_000
        key, tenant = checked(current.published, secret, now=now)
        self._used[key.id] = now - now % MINUTE_MS
        if secret not in current.principals:
            current.principals[secret] = principal_of(key, tenant, secret=secret)
        return current.principals[secret]

    async def tenant(self, name: str) -> Tenant:
        """A tenant whose credentials are accepted. Raises what `verify` raises."""
        current = await self._current(tenant_entry(name), partial(self._directory.find_tenant, name))
        return accepted(current.published, name)

    async def holder(self, key_id: str) -> Principal:
        """The principal of a key without its secret, for a request that was verified with it earlier. Raises as
        `verify` does.
        """
        published = await self.published(key_id)
        now = time.time_ns() // 1_000_000
        if published.key is None and published.is_complete:
            raise CredentialRefused("the key does not exist any more")
        key, tenant = usable(published, now=now)
        return principal_of(key, tenant, secret="")

    async def published(self, key_id: str) -> Published:
        """A key and its tenant, at most CACHE_S old. Concurrent calls share one read."""
        return (await self._current(key_entry(key_id), partial(self._directory.find, key_id))).published

    async def _current(self, entry: str, find: Find) -> _Cached:
        """What the cache has under the name of an entry, or `find` returns."""
        cached = self._cached.get(entry)
        if cached is not None and self._clock() - cached.read_at < CACHE_S:
            return cached
        task = self._reading.get(entry)
        if task is None:
            task = self._reading[entry] = asyncio.ensure_future(self._read(entry, find))
            task.add_done_callback(lambda task: self._has_read(entry, task))
        return await asyncio.shield(task)

    def uses(self) -> Mapping[str, int]:
        """When each key was used since the last call, to the minute, in milliseconds since the epoch."""
        used, self._used = self._used, {}
        return used

    async def _open(self) -> None:
        with suppress(LedgerUnavailable):  # Redis is away: the channel is subscribed when it is back
            await self._channels.open([self._channel])

    async def _record_uses(self) -> None:
        while True:
            await asyncio.sleep(USES_EVERY_S)
            if used := self.uses():
                try:
                    await self._ledger.run(record_key_use(used))
                except LedgerUnavailable:
                    self._used = {**used, **self._used}

    async def _read(self, entry: str, find: Find) -> _Cached:
        began, changes = self._clock(), self._changes
        read = _Cached(await find(), began)
        if changes != self._changes:
            return read  # it may be older than the change
        self._cached.pop(entry, None)
        self._cached[entry] = read
        while len(self._cached) > MAX_CACHED:
            del self._cached[next(iter(self._cached))]
        return read

    def _has_read(self, entry: str, task: asyncio.Task[_Cached]) -> None:
        if self._reading.get(entry) is task:
            del self._reading[entry]

    def _forget(self, _channel: str, payload: bytes) -> None:
        name = payload.decode()
        self._changes += 1
        self._reading.clear()  # they may have read what was there before
        if name == REVISION:
            self._cached.clear()
            return
        for entry, cached in list(self._cached.items()):
            key = cached.published.key
            if name == entry or (key is not None and name == tenant_entry(key.tenant)):
                del self._cached[entry]


def checked(published: Published, secret: str, *, now: int) -> tuple[ApiKey, Tenant]:
    """The key that has a secret of this SHA-256, and its tenant. Raises CredentialRefused and AccessUnavailable.

    A caller without the secret learns nothing about the key.
    """
    key = published.key
    if key is None and not published.is_complete:
        raise AccessUnavailable("the keys are not available yet")
    if key is None or not key.accepts(secret, now=now):
        raise CredentialRefused("the key is not valid")
    return usable(published, now=now)


def usable(published: Published, *, now: int) -> tuple[ApiKey, Tenant]:
    """The key and its tenant, if both are in use. Raises CredentialRefused and AccessUnavailable."""
    key = published.key
    if key is None:
        raise AccessUnavailable("the keys are not available yet")
    if key.is_expired(now):
        raise CredentialRefused(f"the key {key.id} has expired")
    if key.disabled:
        raise CredentialRefused(f"the key {key.id} is disabled")
    return key, accepted(published, key.tenant)


def accepted(published: Published, name: str) -> Tenant:
    """The tenant of a credential that has been verified. Raises CredentialRefused and AccessUnavailable."""
    tenant = published.tenant
    if tenant is None and not published.is_complete:
        raise AccessUnavailable("the tenants are not available yet")
    if tenant is None:
        raise CredentialRefused(f"the tenant {name} does not exist")
    if tenant.disabled:
        raise CredentialRefused(f"the tenant {name} is disabled")
    return tenant


def principal_of(key: ApiKey, tenant: Tenant, *, secret: str) -> Principal:
    """On whose behalf requests with the key run."""
    return Principal(
        tenant=key.tenant,
        actor=key.id,
        kind=CredentialKind.KEY,
        scopes=key.scopes,
        models=key.models,
        limits=key.limits,
        tenant_limits=tenant.limits,
        weight=tenant.weight,
        expires=None if key.expires is None else key.expires / 1000,
        secret=secret,
    )
