"""Tenants and keys in SQL, and their copy in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from darkroom.access.credentials import Credential
from darkroom.access.directory import Directory, Published, reconcile
from darkroom.access.limits import Limits
from darkroom.access.principals import Scope
from darkroom.access.records import ApiKey, KeySecret, Tenant
from darkroom.access.store import AccessStore
from darkroom.errors import NameTaken, NotFound, TenantInUse
from darkroom.ledger.client import AsyncLedger
from sqlalchemy import text

from tests.core.timed_jobs import TimedJobs
from tests.databases import Database, opened

NOW = 1_800_000_000_000

TENANT = Tenant(name="studio", weight=3, limits=Limits(running_jobs=4), created=NOW, created_by="root")


@pytest.fixture
async def store(database: Database) -> AsyncIterator[AccessStore]:
    """Empty, with its tables."""
    async with opened(database.url) as history:
        yield AccessStore(history)


@pytest.fixture
def directory(ledger: AsyncLedger) -> Directory:
    return Directory(ledger)


def key_of(tenant: str, credential: Credential | None = None) -> ApiKey:
    credential = credential or Credential.generate()
    return ApiKey(
        id=credential.key_id,
        tenant=tenant,
        name="backend",
        scopes=frozenset({Scope.SUBMIT, Scope.READ}),
        models=("flux",),
        limits=Limits(submissions_per_minute=60),
        created=NOW,
        created_by="root",
        expires=NOW + 1,
        secrets=(KeySecret(digest=credential.digest, created=NOW),),
    )


async def test_what_was_created_is_read_again(store: AccessStore) -> None:
    key = key_of(TENANT.name)
    await store.create_tenant(TENANT)
    await store.create_key(key)

    assert await store.tenant(TENANT.name) == TENANT
    assert await store.all_tenants() == [TENANT]
    assert await store.key(key.id) == key
    assert await store.keys() == await store.keys(tenant=TENANT.name) == [key]
    assert await store.keys(tenant="other") == []


async def test_names_and_ids_are_unique_and_keys_have_a_tenant(store: AccessStore) -> None:
    key = key_of(TENANT.name)
    with pytest.raises(NotFound, match="no tenant studio"):
        await store.create_key(key)
    await store.create_tenant(TENANT)
    await store.create_key(key)

    with pytest.raises(NameTaken, match="tenant studio"):
        await store.create_tenant(TENANT)
    with pytest.raises(NameTaken, match=key.id):
        await store.create_key(key)
    with pytest.raises(TenantInUse):
        await store.delete_tenant(TENANT.name)


async def test_what_is_unknown_cannot_be_changed(store: AccessStore) -> None:
    with pytest.raises(NotFound):
        await store.change_tenant("other", lambda tenant: tenant)
    with pytest.raises(NotFound):
        await store.change_key("0" * 12, lambda key: key)
    with pytest.raises(NotFound):
        await store.delete_tenant("other")
    with pytest.raises(NotFound):
        await store.delete_key("0" * 12)
    assert await store.tenant("other") is None
    assert await store.key("0" * 12) is None


async def test_a_refused_change_has_no_revision(store: AccessStore) -> None:
    before = await store.revision()
    with pytest.raises(NotFound):
        await store.delete_key("0" * 12)

    assert await store.revision() == before


async def test_concurrent_changes_of_a_key_lose_nothing(store: AccessStore) -> None:
    await store.create_tenant(TENANT.model_copy(update={"weight": 1}))

    def heavier(tenant: Tenant) -> Tenant:
        return tenant.model_copy(update={"weight": tenant.weight + 1})

    changes = await asyncio.gather(*(store.change_tenant(TENANT.name, heavier) for _ in range(20)))

    assert sorted(change.record.weight for change in changes) == [number + 2 for number in range(20)]
    assert len({change.revision for change in changes}) == 20


async def test_the_last_use_only_increases(store: AccessStore) -> None:
    key = key_of(TENANT.name)
    await store.create_tenant(TENANT)
    await store.create_key(key)
    await store.note_use({key.id: NOW, "unknown": NOW})
    await store.note_use({key.id: NOW - 60_000})

    found = await store.key(key.id)

    assert found is not None
    assert found.last_used == NOW


async def test_a_rotation_leaves_two_secrets_and_the_older_one_ends() -> None:
    credentials = [Credential.generate("a" * 12) for _ in range(3)]
    key = key_of(TENANT.name, credentials[0])
    for credential in credentials[1:]:
        key = key.rotated(credential.digest, now=NOW, overlap_s=60)

    accepted = [[key.accepts(each.digest, now=now) for each in credentials] for now in (NOW, NOW + 60_000)]

    assert accepted == [[False, True, True], [False, False, True]]
    at_once = key.rotated(Credential.generate("a" * 12).digest, now=NOW, overlap_s=0)
    assert not at_once.accepts(credentials[2].digest, now=NOW)


async def test_the_copy_has_what_was_published(store: AccessStore, directory: Directory) -> None:
    key = key_of(TENANT.name)
    assert await directory.find(key.id) == Published(None, None, is_complete=False)
    await directory.publish_tenant(await store.create_tenant(TENANT))
    await directory.publish_key(await store.create_key(key))
    assert await directory.find(key.id) == Published(key, TENANT, is_complete=False)

    await reconcile(store, directory)

    assert await directory.find(key.id) == Published(key, TENANT, is_complete=True)
    assert await directory.find("0" * 12) == Published(None, None, is_complete=True)


async def test_a_redis_that_lost_its_data_has_the_copy_again(
    store: AccessStore, directory: Directory, jobs: TimedJobs
) -> None:
    key = key_of(TENANT.name)
    await store.create_tenant(TENANT)
    await store.create_key(key)
    assert await reconcile(store, directory) == 2
    assert await reconcile(store, directory) == 0
    jobs.remove_all()

    assert await reconcile(store, directory) == 2
    assert await directory.find(key.id) == Published(key, TENANT, is_complete=True)


async def test_an_older_change_never_replaces_a_newer_one(store: AccessStore, directory: Directory) -> None:
    created = await store.create_tenant(TENANT)
    changed = await store.change_tenant(TENANT.name, lambda tenant: tenant.model_copy(update={"disabled": True}))
    before_deletion = await store.snapshot()
    await directory.publish_tenant(changed)
    await directory.publish_tenant(created)
    assert await directory.tenant(TENANT.name) == changed.record

    await directory.remove_tenant(TENANT.name, revision=await store.delete_tenant(TENANT.name))
    await directory.publish_all(before_deletion)
    assert await directory.tenant(TENANT.name) is None

    await directory.publish_all(await store.snapshot())
    assert await directory.tenant(TENANT.name) is None


async def test_a_database_that_was_restored_from_a_backup_is_the_truth(
    store: AccessStore, directory: Directory, database: Database
) -> None:
    await store.create_tenant(TENANT)
    backup = await store.snapshot()
    await store.change_tenant(TENANT.name, lambda tenant: tenant.model_copy(update={"weight": 9}))
    await store.create_tenant(Tenant(name="later"))
    await reconcile(store, directory)
    async with opened(database.url) as history, history.transaction() as connection:
        await connection.execute(text("DELETE FROM tenants WHERE name = 'later'"))
        await connection.execute(text("UPDATE access_state SET revision = :revision"), {"revision": backup.revision})
    await store.change_tenant(TENANT.name, lambda tenant: TENANT)
    async with opened(database.url) as history, history.transaction() as connection:
        await connection.execute(text("UPDATE access_state SET revision = :revision"), {"revision": backup.revision})

    await reconcile(store, directory)

    assert await directory.tenant(TENANT.name) == TENANT
    assert await directory.tenant("later") is None
    assert await directory.revision() == backup.revision


async def test_fields_and_scopes_of_a_later_version_are_ignored(
    store: AccessStore, directory: Directory, jobs: TimedJobs
) -> None:
    key = key_of(TENANT.name)
    await store.create_tenant(TENANT)
    await store.create_key(key)
    await reconcile(store, directory)
    name = f"{jobs.namespace}:access"
    entry = jobs.redis.hget(name, f"key:{key.id}").decode()
    jobs.redis.hset(name, f"key:{key.id}", entry.replace('"submit"', '"submit","dream"').replace("{", '{"later":1,', 1))

    found = await directory.find(key.id)

    assert found.key == key
