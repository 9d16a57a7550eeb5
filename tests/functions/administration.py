"""Tenants and keys of a process of functions under test, made as its administrators make them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from darkroom.access.administration import Administration
from darkroom.access.directory import Directory, reconcile
from darkroom.access.store import AccessStore
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.databases import opened
from tests.functions.api import Api


@asynccontextmanager
async def administering(redis_url: str, api: Api) -> AsyncIterator[Administration]:
    """Changes, which are all published at the end."""
    client = connect_async(redis_url)
    async with opened(api.functions.environment["DARKROOM_DATABASE_URL"]) as history:
        store, directory = AccessStore(history), Directory(AsyncLedger(client, api.jobs.namespace))
        yield Administration(store, directory)
        await reconcile(store, directory)
    await client.aclose()
