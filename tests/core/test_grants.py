"""Tickets and sessions: what they permit, how often, and how long, against a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from darkroom.access import grants as module
from darkroom.access.credentials import Credential, digest_of
from darkroom.access.directory import Directory
from darkroom.access.grants import Grants, Issued
from darkroom.access.principals import CredentialKind, Principal, Scope
from darkroom.access.records import ApiKey, KeySecret, Tenant
from darkroom.access.store import Revised, Snapshot
from darkroom.access.verification import KeyVerifier
from darkroom.errors import CredentialRefused, TooManyTickets
from darkroom.ledger import calls
from darkroom.ledger.calls import GrantKind
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.core.timed_jobs import TimedJobs

TENANT = Tenant(name="studio", weight=2)
RIGHT = Credential.generate()
ALL = frozenset({Scope.SUBMIT, Scope.READ, Scope.MANAGE})
KEY = ApiKey(
    id=RIGHT.key_id,
    tenant=TENANT.name,
    name="page",
    scopes=ALL,
    models=("flux",),
    secrets=(KeySecret(digest=RIGHT.digest, created=0),),
)
SUBJECT = Principal("studio", "user-7", CredentialKind.TOKEN, ALL, expires=time.time() + 600)
"""The principal of a token."""


class Published:
    """Tenants and keys in Redis, which a test may change."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._directory = Directory(ledger)
        self._revision = 0

    async def __call__(self, *, key: ApiKey | None = KEY, tenant: Tenant | None = TENANT) -> None:
        self._revision += 1
        await self._directory.publish_all(
            Snapshot(
                self._revision,
                tuple(Revised(each, self._revision) for each in (tenant,) if each is not None),
                tuple(Revised(each, self._revision) for each in (key,) if each is not None),
            )
        )


@pytest.fixture
def published(ledger: AsyncLedger) -> Published:
    return Published(ledger)


@pytest.fixture
async def verifier(ledger: AsyncLedger, any_redis_url: str, published: Published) -> AsyncIterator[KeyVerifier]:
    """Without a cache that outlives a read."""
    await published()
    clock = iter(range(0, 10**9, 1000))
    client = connect_async(any_redis_url)
    yield KeyVerifier(ledger, client, clock=lambda: float(next(clock)))
    await client.aclose()


@pytest.fixture
def grants(ledger: AsyncLedger, verifier: KeyVerifier) -> Grants:
    return Grants(ledger, verifier)


@pytest.fixture
async def owner(verifier: KeyVerifier) -> Principal:
    return await verifier.verify(RIGHT)


async def test_a_ticket_reads_on_behalf_of_its_key_once(grants: Grants, owner: Principal) -> None:
    ticket = await grants.issue_ticket(owner)

    principal = await grants.redeem_ticket(ticket.text)

    assert principal == replace(owner, kind=CredentialKind.TICKET, scopes=frozenset({Scope.READ}))
    assert (principal.models, principal.weight) == (("flux",), 2)
    assert ticket.expires == pytest.approx(time.time() + module.TICKET_S, abs=5)
    with pytest.raises(CredentialRefused, match="it was used, or it has expired"):
        await grants.redeem_ticket(ticket.text)


async def test_of_many_redemptions_of_a_ticket_one_succeeds(grants: Grants, owner: Principal) -> None:
    ticket = await grants.issue_ticket(owner)
    results = await asyncio.gather(*(grants.redeem_ticket(ticket.text) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(result, Principal) for result in results) == 1


async def test_a_ticket_of_a_token_expires_with_it(grants: Grants) -> None:
    soon = replace(SUBJECT, expires=time.time() + 10)
    ticket = await grants.issue_ticket(soon)

    principal = await grants.redeem_ticket(ticket.text)

    assert ticket.expires == soon.expires
    assert (principal.actor, principal.tenant, principal.expires) == ("user-7", "studio", soon.expires)
    assert (principal.weight, principal.scopes) == (2.0, frozenset({Scope.READ}))


@pytest.mark.parametrize("text", ["", "dt_", "dt_unknown", "ds_unknown", "\x00"], ids=repr)
async def test_another_text_is_no_ticket_and_no_session(grants: Grants, text: str) -> None:
    for use in (grants.redeem_ticket, grants.use_session):
        with pytest.raises(CredentialRefused):
            await use(text)


async def test_a_session_has_the_scopes_of_its_key_and_ends(grants: Grants, owner: Principal) -> None:
    session = await grants.open_session(owner)

    for _ in range(2):
        principal = await grants.use_session(session.text)
        assert (principal.kind, principal.scopes, principal.actor) == (CredentialKind.SESSION, ALL, RIGHT.key_id)
        assert principal.expires == pytest.approx(session.expires, abs=1)
    ticket = await grants.issue_ticket(principal)
    await grants.redeem_ticket(ticket.text)
    await grants.end_session(session.text)

    for use in (grants.use_session(session.text), grants.current(principal)):
        with pytest.raises(CredentialRefused, match="the session has ended"):
            await use


OUT_OF_USE: dict[str, dict[str, Any]] = {
    "key deleted": {"key": None},
    "key disabled": {"key": KEY.model_copy(update={"disabled": True})},
    "key expired": {"key": KEY.model_copy(update={"expires": 1})},
    "key disabled meanwhile": {"key": KEY.model_copy(update={"disabled_at": 2**43})},
    "secret rotated out": {"key": KEY.rotated(Credential.generate().digest, now=0, overlap_s=0)},
    "tenant disabled": {"tenant": TENANT.model_copy(update={"disabled": True})},
    "tenant disabled meanwhile": {"tenant": TENANT.model_copy(update={"disabled_at": 2**43})},
    "tenant deleted": {"tenant": None},
}


@pytest.mark.parametrize("reason", OUT_OF_USE)
async def test_neither_outlives_its_key_or_tenant(
    grants: Grants, owner: Principal, published: Published, reason: str
) -> None:
    ticket, session = await grants.issue_ticket(owner), await grants.open_session(owner)
    await published(**OUT_OF_USE[reason])

    for use in (grants.redeem_ticket(ticket.text), grants.use_session(session.text)):
        with pytest.raises(CredentialRefused):
            await use
    if "meanwhile" not in reason:
        with pytest.raises(CredentialRefused):
            await grants.current(owner)


@pytest.mark.parametrize("reason", [reason for reason in OUT_OF_USE if "tenant" in reason])
async def test_those_of_a_token_do_not_outlive_its_tenant(grants: Grants, published: Published, reason: str) -> None:
    ticket, session = await grants.issue_ticket(SUBJECT), await grants.open_session(SUBJECT)
    await published(**OUT_OF_USE[reason])

    for use in (grants.redeem_ticket(ticket.text), grants.use_session(session.text)):
        with pytest.raises(CredentialRefused):
            await use


async def test_a_rotation_with_an_overlap_ends_nothing(grants: Grants, owner: Principal, published: Published) -> None:
    session = await grants.open_session(owner)
    now = time.time_ns() // 1_000_000
    await published(key=KEY.rotated(Credential.generate().digest, now=now, overlap_s=60))
    assert (await grants.use_session(session.text)).actor == RIGHT.key_id


async def test_a_scope_that_the_key_loses_is_lost(grants: Grants, owner: Principal, published: Published) -> None:
    session = await grants.open_session(owner)
    await published(key=KEY.model_copy(update={"scopes": frozenset({Scope.READ, Scope.ADMIN})}))

    assert (await grants.use_session(session.text)).scopes == {Scope.READ}
    assert (await grants.current(owner)).scopes == {Scope.READ}


async def test_the_tickets_of_a_key_are_limited(
    grants: Grants, owner: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TICKETS", 3)
    tickets = [await grants.issue_ticket(owner) for _ in range(3)]

    with pytest.raises(TooManyTickets) as refused:
        await grants.issue_ticket(owner)
    assert 1 <= refused.value.retry_after <= module.TICKET_S
    await grants.issue_ticket(SUBJECT)  # another credential
    await grants.redeem_ticket(tickets[0].text)
    await grants.issue_ticket(owner)


async def test_one_more_session_ends_the_one_that_was_idle_the_longest(
    grants: Grants, owner: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)
    sessions = []
    for _ in range(4):
        sessions.append(await grants.open_session(owner))
        await asyncio.sleep(0.002)  # so that the times at which they expire differ

    assert [await is_open(grants, session) for session in sessions] == [False, True, True, True]


async def is_open(grants: Grants, session: Issued) -> bool:
    try:
        await grants.use_session(session.text)
    except CredentialRefused:
        return False
    return True


async def test_only_digests_are_stored(grants: Grants, owner: Principal, jobs: TimedJobs) -> None:
    issued = [await grants.issue_ticket(owner), await grants.open_session(owner)]
    stored = b"".join(
        key + (jobs.redis.dump(key) or b"") for key in jobs.redis.scan_iter(f"{jobs.namespace}:*", count=1000)
    )
    for each in issued:
        assert digest_of(each.text).encode() in stored
        assert each.text.encode() not in stored
        assert each.text not in repr(each)
    assert RIGHT.text.encode() not in stored


def test_a_session_ends_when_it_is_idle_and_after_its_lifetime(jobs: TimedJobs) -> None:
    """By the clock of the test. A session is written once per step, not at each use."""
    start = jobs.now
    idle, life, step = 60_000, 150_000, 10_000
    issued = calls.issue_grant(
        GrantKind.SESSION, "d", owner="o", content="{}", ttl_ms=idle, life_ms=life, most=9, now=start
    )
    assert jobs.run(issued) is None

    def use(at: int) -> bool:
        return jobs.run(calls.use_session("d", idle_ms=idle, step_ms=step, now=start + at)) is not None

    assert use(5_000)
    assert int(jobs.redis.hget(f"{jobs.namespace}:grant:session:d", "expires")) == start + idle
    assert [use(at) for at in (59_999, 119_000, 149_999, 150_000)] == [True, True, True, False]
    assert jobs.run(calls.use_session("d", now=start + 149_999)) == (b"{}", start + life)


def test_what_is_stored_expires_by_itself(jobs: TimedJobs) -> None:
    for kind in GrantKind:
        jobs.run(calls.issue_grant(kind, "d", owner="o", content="{}", ttl_ms=60_000, life_ms=90_000, most=9))
        assert 0 < jobs.redis.pttl(f"{jobs.namespace}:grant:{kind}:d") <= 60_000
        assert 60_000 < jobs.redis.pttl(f"{jobs.namespace}:grants-of:{kind}:o") <= 90_000
