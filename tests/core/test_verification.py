"""The verification of keys: who passes, what is said to others, and how soon a change counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from darkroom.access.credentials import Credential
from darkroom.access.directory import Directory
from darkroom.access.principals import CredentialKind, Scope
from darkroom.access.records import ApiKey, KeySecret, Tenant
from darkroom.access.store import Revised, Snapshot
from darkroom.access.verification import CACHE_S, MAX_CACHED, KeyVerifier
from darkroom.errors import AccessUnavailable, CredentialRefused, LedgerUnavailable
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.core.timed_jobs import TimedJobs
from tests.redis_server import RedisServer
from tests.waiting import eventually

NOW = time.time_ns() // 1_000_000
TENANT = Tenant(name="studio", weight=3)
RIGHT = Credential.generate()


class Clock:
    """Seconds, as the test sets them."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def key_of(credential: Credential = RIGHT, **more: Any) -> ApiKey:
    key = ApiKey(
        id=credential.key_id,
        tenant=TENANT.name,
        name="backend",
        scopes=frozenset({Scope.SUBMIT}),
        secrets=(KeySecret(digest=credential.digest, created=0),),
    )
    return key.model_copy(update=more)


async def published(ledger: AsyncLedger, *keys: ApiKey, tenant: Tenant | None = TENANT, revision: int = 1) -> None:
    await Directory(ledger).publish_all(
        Snapshot(
            revision,
            tuple(Revised(each, revision) for each in (tenant,) if each is not None),
            tuple(Revised(key, revision) for key in keys),
        )
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def verifier(ledger: AsyncLedger, any_redis_url: str, clock: Clock) -> AsyncIterator[KeyVerifier]:
    """Without its subscription."""
    client = connect_async(any_redis_url)
    yield KeyVerifier(ledger, client, clock=clock)
    await client.aclose()


async def test_a_right_key_is_its_tenants_principal(ledger: AsyncLedger, verifier: KeyVerifier) -> None:
    await published(ledger, key_of(models=("flux",)))

    principal = await verifier.verify(RIGHT)

    assert (principal.tenant, principal.actor, principal.kind) == ("studio", RIGHT.key_id, CredentialKind.KEY)
    assert principal.may(Scope.SUBMIT)
    assert not principal.may(Scope.READ)
    assert principal.may_use("flux")
    assert not principal.may_use("sd")
    assert principal.weight == 3
    assert list(verifier.uses()) == [RIGHT.key_id]
    assert verifier.uses() == {}


@pytest.mark.parametrize(
    ("key", "tenant", "said"),
    [
        pytest.param({"expires": NOW - 1}, TENANT, "has expired", id="expired"),
        pytest.param({"disabled": True}, TENANT, "is disabled", id="disabled"),
        pytest.param({}, TENANT.model_copy(update={"disabled": True}), "studio is disabled", id="tenant disabled"),
        pytest.param({}, None, "studio does not exist", id="tenant deleted"),
    ],
)
async def test_a_key_out_of_use_is_refused_with_the_reason_to_its_owner_alone(
    key: dict[str, Any], tenant: Tenant | None, said: str, ledger: AsyncLedger, verifier: KeyVerifier
) -> None:
    await published(ledger, key_of(**key), tenant=tenant)

    with pytest.raises(CredentialRefused, match=said):
        await verifier.verify(RIGHT)
    with pytest.raises(CredentialRefused, match=r"^the key is not valid$"):
        await verifier.verify(Credential.generate(RIGHT.key_id))
    assert verifier.uses() == {}


async def test_an_unknown_key_and_a_wrong_secret_look_alike(ledger: AsyncLedger, verifier: KeyVerifier) -> None:
    await published(ledger, key_of())
    for credential in (Credential.generate(), Credential.generate(RIGHT.key_id)):
        with pytest.raises(CredentialRefused) as refused:
            await verifier.verify(credential)
        assert refused.value.detail == "the key is not valid"


async def test_nothing_is_refused_for_good_before_keys_are_published(verifier: KeyVerifier) -> None:
    with pytest.raises(AccessUnavailable):
        await verifier.verify(RIGHT)


async def test_a_change_counts_after_the_life_of_the_cache_at_the_latest(
    ledger: AsyncLedger, verifier: KeyVerifier, clock: Clock
) -> None:
    await published(ledger, key_of())
    await verifier.verify(RIGHT)
    await published(ledger, key_of(disabled=True), revision=2)

    clock.now += CACHE_S - 0.01
    await verifier.verify(RIGHT)
    clock.now += 0.02
    with pytest.raises(CredentialRefused):
        await verifier.verify(RIGHT)


async def test_a_change_that_is_published_counts_at_once(
    ledger: AsyncLedger, verifier: KeyVerifier, jobs: TimedJobs
) -> None:
    running = asyncio.create_task(verifier.run())
    channel = ledger.keys.access_channel
    await until(lambda: jobs.redis.pubsub_numsub(channel)[0][1] == 1, what="the subscription")

    states = []
    for revision, (key, tenant) in enumerate(
        [
            (key_of(), TENANT),
            (key_of(disabled=True), TENANT),
            (key_of(), TENANT),
            (key_of(), TENANT.model_copy(update={"disabled": True})),
        ]
    ):
        seen = verifier._changes
        await published(ledger, key, tenant=tenant, revision=revision)
        await asyncio.to_thread(eventually, partial(has_heard, verifier, seen), what="the message")
        states.append(await is_accepted(verifier))

    assert states == [True, False, True, False]
    running.cancel()


async def until(condition: Callable[[], bool], *, what: str) -> None:
    await asyncio.to_thread(eventually, condition, what=what)


def has_heard(verifier: KeyVerifier, before: int) -> bool:
    return verifier._changes > before


async def is_accepted(verifier: KeyVerifier) -> bool:
    try:
        await verifier.verify(RIGHT)
    except CredentialRefused:
        return False
    return True


async def test_unknown_keys_are_remembered_within_bounds(ledger: AsyncLedger, verifier: KeyVerifier) -> None:
    await published(ledger, key_of())
    for number in range(MAX_CACHED + 10):
        await verifier.published(f"{number:012d}")

    assert len(verifier._cached) == MAX_CACHED


async def test_callers_of_one_key_share_a_read(ledger: AsyncLedger, verifier: KeyVerifier, jobs: TimedJobs) -> None:
    await published(ledger, key_of())
    before = jobs.redis.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"]
    await asyncio.gather(*(verifier.verify(RIGHT) for _ in range(50)))

    assert jobs.redis.info("commandstats")["cmdstat_hmget"]["calls"] - before == 2


async def test_a_redis_that_is_away_is_said_and_what_is_remembered_counts(
    own_redis: RedisServer, namespace: str, clock: Clock
) -> None:
    client = connect_async(own_redis.url)
    ledger = AsyncLedger(client, namespace)
    verifier = KeyVerifier(ledger, client, clock=clock)
    await published(ledger, key_of())
    await verifier.verify(RIGHT)
    own_redis.stop()

    await verifier.verify(RIGHT)
    clock.now += CACHE_S
    with pytest.raises(LedgerUnavailable):
        await verifier.verify(RIGHT)
    await client.aclose()
