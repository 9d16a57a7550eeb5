"""Changes of tenants and keys: in SQL first, then in the copy that processes verify with.

A change counts once it is committed. Where Redis is unavailable then, the courier publishes it later (`directory.py`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from darkroom.access.credentials import Credential
from darkroom.access.directory import Directory
from darkroom.access.limits import UNLIMITED, Limits
from darkroom.access.principals import DEFAULT_TENANT, Scope
from darkroom.access.records import ApiKey, KeySecret, Tenant
from darkroom.access.store import AccessStore
from darkroom.errors import LedgerUnavailable, ManagedByDeclaration, NameTaken, NotFound
from darkroom.logs import logger

R = TypeVar("R", Tenant, ApiKey)

Record = Callable[..., Awaitable[None]]
"""Adds an operation to the audit trail."""

_log = logger(__name__)


class Administration:
    """Creates and changes tenants and keys. Every method may raise HistoryUnavailable.

    `actor` is the key, or the part of darkroom, that makes the change. What a declaration manages is changed with its
    name as `manager` alone; other changes raise ManagedByDeclaration.
    """

    def __init__(self, store: AccessStore, directory: Directory, *, record: Record | None = None) -> None:
        """`record` is called after each change, with the keywords `actor`, `tenant`, `operation` and `object`, by parts
        that act for themselves. The operations of the API are recorded where they arrive.
        """
        self.store = store
        self._directory = directory
        self._record = record

    async def create_tenant(self, tenant: Tenant, *, actor: str) -> Tenant:
        """Raises NameTaken."""
        created = await self.store.create_tenant(tenant.model_copy(update={"created": _now(), "created_by": actor}))
        _log.info("tenant_created", tenant=tenant.name, actor=actor)
        await self._recorded("createTenant", tenant=tenant.name, object=tenant.name, actor=actor)
        await _publish(self._directory.publish_tenant(created))
        return created.record

    async def change_tenant(
        self, name: str, change: Callable[[Tenant], Tenant], *, actor: str, manager: str | None = None
    ) -> Tenant:
        """Raises NotFound and ManagedByDeclaration."""
        changed = await self.store.change_tenant(name, lambda tenant: _dated(change)(_changeable(tenant, manager)))
        _log.info("tenant_changed", tenant=name, actor=actor)
        await self._recorded("changeTenant", tenant=name, object=name, actor=actor)
        await _publish(self._directory.publish_tenant(changed))
        return changed.record

    async def delete_tenant(self, name: str, *, actor: str) -> None:
        """Raises NotFound, TenantInUse and ManagedByDeclaration."""
        revision = await self.store.delete_tenant(name, check=lambda tenant: _changeable(tenant, None))
        _log.info("tenant_deleted", tenant=name, actor=actor)
        await self._recorded("deleteTenant", tenant=name, object=name, actor=actor)
        await _publish(self._directory.remove_tenant(name, revision=revision))

    async def create_key(
        self,
        *,
        tenant: str,
        name: str,
        scopes: frozenset[Scope],
        models: tuple[str, ...] = (),
        limits: Limits = UNLIMITED,
        expires: int | None = None,
        actor: str,
    ) -> tuple[ApiKey, Credential]:
        """A new key, and its secret, which nothing else has. Raises NotFound for an unknown tenant."""
        credential, now = Credential.generate(), _now()
        created = await self.store.create_key(
            ApiKey(
                id=credential.key_id,
                tenant=tenant,
                name=name,
                scopes=scopes,
                models=models,
                limits=limits,
                created=now,
                created_by=actor,
                expires=expires,
                secrets=(KeySecret(digest=credential.digest, created=now),),
            )
        )
        _log.info("key_created", key=credential.key_id, tenant=tenant, actor=actor)
        await self._recorded("createKey", tenant=tenant, object=credential.key_id, actor=actor)
        await _publish(self._directory.publish_key(created))
        return created.record, credential

    async def put_key(self, key: ApiKey, *, actor: str) -> None:
        """Create or replace a key that a declaration defines. Raises NotFound for an unknown tenant."""
        put = await self.store.put_key(key)
        _log.info("key_declared", key=key.id, tenant=key.tenant, actor=actor)
        await self._recorded("putKey", tenant=key.tenant, object=key.id, actor=actor)
        await _publish(self._directory.publish_key(put))

    async def change_key(
        self, key_id: str, change: Callable[[ApiKey], ApiKey], *, actor: str, manager: str | None = None
    ) -> ApiKey:
        """Raises NotFound and ManagedByDeclaration."""
        changed = await self.store.change_key(key_id, lambda key: _dated(change)(_changeable(key, manager)))
        _log.info("key_changed", key=key_id, actor=actor)
        await self._recorded("changeKey", tenant=changed.record.tenant, object=key_id, actor=actor)
        await _publish(self._directory.publish_key(changed))
        return changed.record

    async def rotate_key(self, key_id: str, *, overlap_s: int, actor: str) -> tuple[ApiKey, Credential]:
        """The key and its new secret. The previous one stays valid for `overlap_s`.

        Raises NotFound and ManagedByDeclaration.
        """
        credential, now = Credential.generate(key_id), _now()
        changed = await self.store.change_key(
            key_id, lambda key: _changeable(key, None).rotated(credential.digest, now=now, overlap_s=overlap_s)
        )
        _log.info("key_rotated", key=key_id, actor=actor)
        await self._recorded("rotateKey", tenant=changed.record.tenant, object=key_id, actor=actor)
        await _publish(self._directory.publish_key(changed))
        return changed.record, credential

    async def delete_key(self, key_id: str, *, actor: str, manager: str | None = None) -> None:
        """Raises NotFound and ManagedByDeclaration."""
        revision = await self.store.delete_key(key_id, check=lambda key: _changeable(key, manager))
        _log.info("key_deleted", key=key_id, actor=actor)
        await self._recorded("deleteKey", tenant="", object=key_id, actor=actor)
        await _publish(self._directory.remove_key(key_id, revision=revision))

    async def _recorded(self, operation: str, *, tenant: str, object: str, actor: str) -> None:
        if self._record is not None:
            await self._record(operation=operation, tenant=tenant, object=object, actor=actor)


ROOT = "root-key"
"""What manages the root key, and creates its tenant."""


async def ensure_root(administration: Administration, credential: Credential) -> None:
    """Make this credential the root key: all scopes, of the default tenant. The root key before it is deleted."""
    store = administration.store
    if await store.tenant(DEFAULT_TENANT) is None:
        with suppress(NameTaken):  # another courier was faster
            await administration.create_tenant(Tenant(name=DEFAULT_TENANT), actor=ROOT)
    known = await store.key(credential.key_id)
    if known is None or known.secrets[0].digest != credential.digest:
        await administration.put_key(
            ApiKey(
                id=credential.key_id,
                tenant=DEFAULT_TENANT,
                name="root",
                scopes=frozenset(Scope),
                created=_now(),
                created_by=ROOT,
                secrets=(KeySecret(digest=credential.digest, created=_now()),),
                managed_by=ROOT,
            ),
            actor=ROOT,
        )
    for key in await store.keys(tenant=DEFAULT_TENANT):
        if key.managed_by == ROOT and key.id != credential.key_id:
            with suppress(NotFound):
                await administration.delete_key(key.id, actor=ROOT, manager=ROOT)


def _changeable(record: R, manager: str | None) -> R:
    """The record. Raises ManagedByDeclaration where another declaration than `manager` defines it."""
    if record.managed_by not in {None, manager}:
        raise ManagedByDeclaration(f"{_named(record)} is defined by {record.managed_by}: change it there")
    return record


def _named(record: Tenant | ApiKey) -> str:
    return f"the tenant {record.name}" if isinstance(record, Tenant) else f"the key {record.id}"


def _dated(change: Callable[[R], R]) -> Callable[[R], R]:
    """The change, with the time at which it disables the record."""

    def dated(record: R) -> R:
        changed = change(record)
        if not changed.disabled or record.disabled:
            return changed
        return changed.model_copy(update={"disabled_at": _now()})

    return dated


async def _publish(publication: Awaitable[None]) -> None:
    try:
        await publication
    except LedgerUnavailable as error:
        _log.warning("access_unpublished", error=error.detail)


def _now() -> int:
    return time.time_ns() // 1_000_000
