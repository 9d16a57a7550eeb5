"""Tenants and keys in SQL, where they are created and changed.

Every change returns the revision that it was given, with which the caller publishes it (`directory.py`). The row of
`access_state` is locked first, so that changes have one order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Row, Table, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from darkroom.access.records import ApiKey, Tenant
from darkroom.access.schema import STATE_ID, access_state, api_keys, tenants
from darkroom.database.client import Database
from darkroom.errors import NameTaken, NotFound, TenantInUse

R = TypeVar("R")

OF_KEY_ROW = {"id", "tenant", "last_used"}
"""The fields of a key that are columns."""


@dataclass(frozen=True)
class Revised(Generic[R]):
    """A record after a change, and the revision of that change."""

    record: R
    revision: int


@dataclass(frozen=True)
class Snapshot:
    """All tenants and keys, by name and id. `revision` is that of the last change that they are sure to contain."""

    revision: int
    tenants: tuple[Revised[Tenant], ...]
    keys: tuple[Revised[ApiKey], ...]


class AccessStore:
    """The tenants and keys of one database. Every method may raise HistoryUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- tenants -------------------------------------------------------------------------------------------------------

    async def create_tenant(self, tenant: Tenant) -> Revised[Tenant]:
        """Add a tenant. Raises NameTaken."""
        async with self._database.transaction() as connection:
            revision = await _next_revision(connection)
            if await _find(connection, tenants, tenants.c.name == tenant.name) is not None:
                raise NameTaken(f"the tenant {tenant.name} exists")
            await self._put(connection, tenants, _tenant_row(tenant, revision))
        return Revised(tenant, revision)

    async def change_tenant(self, name: str, change: Callable[[Tenant], Tenant]) -> Revised[Tenant]:
        """Replace a tenant by what `change` returns for it. Raises NotFound."""
        async with self._database.transaction() as connection:
            revision = await _next_revision(connection)
            row = await _find(connection, tenants, tenants.c.name == name)
            if row is None:
                raise NotFound(f"there is no tenant {name}")
            changed = change(_tenant(row))
            await self._put(connection, tenants, _tenant_row(changed, revision))
        return Revised(changed, revision)

    async def delete_tenant(self, name: str, *, check: Callable[[Tenant], object] | None = None) -> int:
        """Remove a tenant without keys. Returns the revision. Raises NotFound, TenantInUse, and what `check` raises."""
        async with self._database.transaction() as connection:
            revision = await _next_revision(connection)
            row = await _find(connection, tenants, tenants.c.name == name)
            if row is None:
                raise NotFound(f"there is no tenant {name}")
            if check is not None:
                check(_tenant(row))
            if await _find(connection, api_keys, api_keys.c.tenant == name) is not None:
                raise TenantInUse(f"the tenant {name} has keys: delete them first")
            await connection.execute(delete(tenants).where(tenants.c.name == name))
        return revision

    async def tenant(self, name: str) -> Tenant | None:
        async with self._database.transaction() as connection:
            row = await _find(connection, tenants, tenants.c.name == name)
        return None if row is None else _tenant(row)

    async def all_tenants(self) -> list[Tenant]:
        """All tenants, by name."""
        return [each.record for each in (await self.snapshot()).tenants]

    # -- keys ----------------------------------------------------------------------------------------------------------

    async def create_key(self, key: ApiKey) -> Revised[ApiKey]:
        """Add a key of a tenant. Raises NotFound for an unknown tenant, NameTaken where another key has the id."""
        async with self._database.transaction() as connection:
            revision = await _next_revision(connection)
            if await _find(connection, tenants, tenants.c.name == key.tenant) is None:
                raise NotFound(f"there is no tenant {key.tenant}")
            if await _find(connection, api_keys, api_keys.c.id == key.id) is not None:
                raise NameTaken(f"a key has the id {key.id}")
            await self._put(connection, api_keys, _key_row(key, revision))
        return Revised(key, revision)

    async def put_key(self, key: ApiKey) -> Revised[ApiKey]:
        """Add a key or replace the one with its id. Raises NotFound for an unknown tenant."""
        async with self._database.transaction() as connection:
            revision = await _next_revision(connection)
            if await _find(connection, tenants, tenants.c.name == key.tenant) is None:
                raise NotFound(f"there is no tenant {key.tenant}")
            await self._put(connection, api_keys, _key_row(key, revision))
        return Revised(key, revision)

    async def change_key(self, key_id: str, change: Callable[[ApiKey], ApiKey]) -> Revised[ApiKey]:
        """Replace a key by what `change` returns for it. Raises NotFound."""
        async with self._database.transaction() as connection:
            revision = await _next_revision(connection)
            row = await _find(connection, api_keys, api_keys.c.id == key_id)
            if row is None:
                raise NotFound(f"there is no key {key_id}")
            changed = change(_key(row))
            await self._put(connection, api_keys, _key_row(changed, revision))
        return Revised(changed, revision)

    async def delete_key(self, key_id: str, *, check: Callable[[ApiKey], object] | None = None) -> int:
        """Remove a key. Returns the revision. Raises NotFound, and what `check` raises."""
        async with self._database.transaction() as connection:
            revision = await _next_revision(connection)
            row = await _find(connection, api_keys, api_keys.c.id == key_id)
            if row is None:
                raise NotFound(f"there is no key {key_id}")
            if check is not None:
                check(_key(row))
            await connection.execute(delete(api_keys).where(api_keys.c.id == key_id))
        return revision

    async def key(self, key_id: str) -> ApiKey | None:
        async with self._database.transaction() as connection:
            row = await _find(connection, api_keys, api_keys.c.id == key_id)
        return None if row is None else _key(row)

    async def keys(self, *, tenant: str | None = None) -> list[ApiKey]:
        """The keys of a tenant, or all, by tenant and id."""
        question = select(api_keys).order_by(api_keys.c.tenant, api_keys.c.id)
        if tenant is not None:
            question = question.where(api_keys.c.tenant == tenant)
        async with self._database.transaction() as connection:
            return [_key(row) for row in await connection.execute(question)]

    async def note_use(self, uses: Mapping[str, int]) -> None:
        """Store when keys were last used, in milliseconds since the epoch. An earlier time has no effect."""
        async with self._database.transaction() as connection:
            for key_id, at in sorted(uses.items()):  # in one order, or two writers may lock up
                is_later = or_(api_keys.c.last_used.is_(None), api_keys.c.last_used < at)
                await connection.execute(update(api_keys).where(api_keys.c.id == key_id, is_later).values(last_used=at))

    # -- all of them ---------------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """All tenants and keys."""
        async with self._database.transaction() as connection:
            # The revision is read first: a change that is committed meanwhile is then merely published once more.
            revision = (await connection.execute(select(access_state.c.revision))).scalar_one()
            found_tenants = await connection.execute(select(tenants).order_by(tenants.c.name))
            found_keys = await connection.execute(select(api_keys).order_by(api_keys.c.id))
            return Snapshot(
                revision,
                tuple(Revised(_tenant(row), row.revision) for row in found_tenants),
                tuple(Revised(_key(row), row.revision) for row in found_keys),
            )

    async def revision(self) -> int:
        """The revision of the last change."""
        async with self._database.transaction() as connection:
            found: int = (await connection.execute(select(access_state.c.revision))).scalar_one()
        return found

    async def _put(self, connection: AsyncConnection, table: Table, row: Mapping[str, Any]) -> None:
        """Insert the row, or replace the one with its primary key."""
        insert = self._database.insert(table).values(row)
        primary = [column.name for column in table.primary_key]
        others = {name: insert.excluded[name] for name in row if name not in primary}
        await connection.execute(insert.on_conflict_do_update(index_elements=primary, set_=others))


async def _next_revision(connection: AsyncConnection) -> int:
    """Lock the row of the revision and increment it."""
    statement = (
        update(access_state)
        .where(access_state.c.id == STATE_ID)
        .values(revision=access_state.c.revision + 1)
        .returning(access_state.c.revision)
    )
    revision: int = (await connection.execute(statement)).scalar_one()
    return revision


async def _find(connection: AsyncConnection, table: Table, condition: Any) -> Row[Any] | None:
    return (await connection.execute(select(table).where(condition).limit(1))).one_or_none()


def _tenant_row(tenant: Tenant, revision: int) -> dict[str, Any]:
    return {"name": tenant.name, "definition": _definition(tenant, {"name"}), "revision": revision}


def _key_row(key: ApiKey, revision: int) -> dict[str, Any]:
    return {"id": key.id, "tenant": key.tenant, "definition": _definition(key, OF_KEY_ROW), "revision": revision}


def _definition(record: Tenant | ApiKey, columns: Iterable[str]) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude=set(columns), exclude_defaults=True)


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(name=row.name, **row.definition)


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(id=row.id, tenant=row.tenant, last_used=row.last_used, **row.definition)
