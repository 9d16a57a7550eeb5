"""Tenants and keys in a courier: the root key, and the copy in a Redis that lost its data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from darkroom.access.credentials import Credential
from darkroom.access.directory import Directory
from darkroom.access.principals import Scope
from darkroom.access.records import ApiKey
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect, connect_async

from tests.courier.conftest import Start
from tests.parts import Part
from tests.waiting import eventually


def key_of(courier: Part, credential: Credential) -> ApiKey | None:
    """The key as functions verify credentials with it."""

    async def read() -> ApiKey | None:
        client = connect_async(courier.environment["DARKROOM_REDIS_URL"])
        try:
            ledger = AsyncLedger(client, courier.environment["DARKROOM_NAMESPACE"])
            return (await Directory(ledger).find(credential.key_id)).key
        finally:
            await client.aclose()

    return asyncio.run(read())


def is_published(courier: Part, credential: Credential) -> Callable[[], bool]:
    return lambda: key_of(courier, credential) is not None


def test_a_redis_that_lost_its_data_has_all_keys_again(start: Start) -> None:
    root = Credential.generate()
    courier = start(DARKROOM_ROOT_KEY=root.text)
    eventually(is_published(courier, root), what="the root key in Redis")
    before = key_of(courier, root)
    with connect(courier.environment["DARKROOM_REDIS_URL"]) as client:
        client.delete(f"{courier.environment['DARKROOM_NAMESPACE']}:access")
    eventually(is_published(courier, root), what="the root key in Redis again")
    assert before is not None
    assert key_of(courier, root) == before
    assert before.scopes == frozenset(Scope)


def test_another_root_key_replaces_the_one_before_it(start: Start) -> None:
    first, second = Credential.generate(), Credential.generate()
    courier = start(DARKROOM_ROOT_KEY=first.text)
    eventually(is_published(courier, first), what="the first root key")
    courier.stop()
    courier = start(DARKROOM_ROOT_KEY=second.text)
    eventually(is_published(courier, second), what="the second root key")
    eventually(lambda: key_of(courier, first) is None, what="the removal of the first one")
