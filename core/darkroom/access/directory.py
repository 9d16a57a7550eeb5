"""The copy of tenants and keys in Redis, from which every process verifies credentials.

SQL has the truth (`store.py`). A change is published as soon as it is committed. The courier publishes everything when
it starts and when the copy is not at SQL's revision, so that a Redis that lost its data has it again. Each entry has
the revision of its change: an older one never replaces a newer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from darkroom.access.records import ApiKey, Tenant
from darkroom.access.store import AccessStore, Revised, Snapshot
from darkroom.ledger import reads
from darkroom.ledger.calls import publish_access
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger

M = TypeVar("M", bound=BaseModel)

REVISION = "revision"
"""The entry with the revision of the last complete publication. Without it nothing is known about any credential."""

_log = logger(__name__)


@dataclass(frozen=True)
class Published:
    """A key and its tenant as Redis has them; None for what it does not have.

    `is_complete`: whether all keys have been published, so that a missing one does not exist.
    """

    key: ApiKey | None
    tenant: Tenant | None
    is_complete: bool


class Directory:
    """The copy in one ledger. Every method may raise LedgerUnavailable."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._ledger = ledger

    async def publish_tenant(self, change: Revised[Tenant]) -> None:
        await self._put({tenant_entry(change.record.name): _entry(change)})

    async def publish_key(self, change: Revised[ApiKey]) -> None:
        await self._put({key_entry(change.record.id): _entry(change)})

    async def remove_tenant(self, name: str, *, revision: int) -> None:
        await self._put({tenant_entry(name): f"{revision} "})

    async def remove_key(self, key_id: str, *, revision: int) -> None:
        await self._put({key_entry(key_id): f"{revision} "})

    async def publish_all(self, snapshot: Snapshot, *, restored: bool = False) -> int:
        """Publish a snapshot and remove what it does not have. Returns how many entries changed.

        `restored`: later entries are removed too, since SQL was restored from a backup.
        """
        entries = {tenant_entry(each.record.name): _entry(each) for each in snapshot.tenants}
        entries.update((key_entry(each.record.id), _entry(each)) for each in snapshot.keys)
        return await self._ledger.run(publish_access(entries, revision=snapshot.revision, restored=restored))

    async def revision(self) -> int | None:
        """The revision of the last complete publication; None where there was none."""
        (found,) = await reads.access_entries(self._ledger, [REVISION])
        return None if found is None else int(found)

    async def find(self, key_id: str) -> Published:
        """A key with its tenant."""
        revision, found = await reads.access_entries(self._ledger, [REVISION, key_entry(key_id)])
        key = _decode(ApiKey, found)
        tenant = None if key is None else await self.tenant(key.tenant)
        return Published(key, tenant, is_complete=revision is not None)

    async def find_tenant(self, name: str) -> Published:
        """A tenant without a key."""
        revision, found = await reads.access_entries(self._ledger, [REVISION, tenant_entry(name)])
        return Published(None, _decode(Tenant, found), is_complete=revision is not None)

    async def tenant(self, name: str) -> Tenant | None:
        return (await self.find_tenant(name)).tenant

    async def _put(self, entries: Mapping[str, str]) -> None:
        await self._ledger.run(publish_access(entries))


async def reconcile(store: AccessStore, directory: Directory) -> int:
    """Publish everything where the copy is not at SQL's revision. Returns how many entries changed."""
    published = await directory.revision()
    # Read after it: what was published came from SQL, so a lower revision there means that SQL lost changes.
    if published == (current := await store.revision()):
        return 0
    restored = published is not None and published > current
    snapshot = await store.snapshot()
    changed = await directory.publish_all(snapshot, restored=restored)
    _log.info(
        "access_published",
        revision=snapshot.revision,
        tenants=len(snapshot.tenants),
        keys=len(snapshot.keys),
        changed=changed,
        restored=restored,
    )
    return changed


def tenant_entry(name: str) -> str:
    """The name of a tenant's entry."""
    return f"tenant:{name}"


def key_entry(key_id: str) -> str:
    """The name of a key's entry."""
    return f"key:{key_id}"


def _entry(change: Revised[Tenant] | Revised[ApiKey]) -> str:
    return f"{change.revision} {change.record.model_dump_json(exclude_defaults=True, exclude={'last_used'})}"


def _decode(kind: type[M], entry: bytes | None) -> M | None:
    """The record of an entry. One that this version cannot read counts as missing, so that it permits nothing."""
    content = b"" if entry is None else entry.partition(b" ")[2]
    if not content:
        return None
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        _log.error("access_unreadable", kind=kind.__name__, fields=[fault["loc"] for fault in error.errors()])
        return None
