"""Undelivered events in the ledger: one per source and id, within limits that protect the jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from darkroom.cloudevents.event import Event
from darkroom.ledger import calls, undelivered
from darkroom.ledger.calls import Replayed
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.undelivered import DeliveryFailure, UndeliveredEvents, split_failure

from tests.core.timed_jobs import TENANT, TimedJobs

FAILURE = DeliveryFailure("http://subscriber.test/", 500, "no")


def event(number: int = 1, **more: Any) -> Event:
    members = {"id": f"{number}", "source": "/tests", "type": "test.happened", "data": {"n": number}, **more}
    return Event(**members)


def keep(jobs: TimedJobs, sent: Event, *, failure: DeliveryFailure = FAILURE, tenant: str = TENANT) -> str:
    jobs.run(undelivered.store(sent, failure, tenant=tenant, now=jobs.now))
    return undelivered.id_of(sent, tenant=tenant)


def keep_small(jobs: TimedJobs, number: int, *, most: int, most_bytes: int = 1_000_000) -> int:
    """As `keep`, at a later time each. Returns how many were removed."""
    jobs.now += 1
    return jobs.run(
        calls.store_undelivered(
            f"und_{number:032x}",
            tenant=TENANT,
            attributes='{"specversion":"1.0","id":"1","source":"/","type":"t"}',
            data=None,
            failure='{"destination":null,"code":null,"answer":null}',
            most=most,
            most_bytes=most_bytes,
            now=jobs.now,
        )
    )


async def listed(ledger: AsyncLedger, tenant: str = TENANT) -> list[str]:
    page = await UndeliveredEvents(ledger).page(tenant, limit=100)
    return [each.id for each in page.events]


async def test_an_event_is_stored_whole_with_its_failure(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    sent = event(subject="a", time="2026-11-20T15:00:00Z", extensions={"tenant": "t", "n": 3, "b": True})
    event_id = keep(jobs, sent)
    found = await UndeliveredEvents(ledger).find(event_id, tenant=TENANT)
    assert found is not None
    assert (found.event, found.failure, found.first, found.last) == (sent, FAILURE, jobs.now, jobs.now)
    assert found.replayed is None
    assert await UndeliveredEvents(ledger).find(event_id, tenant="stranger") is None


async def test_members_of_a_later_version_are_ignored(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    event_id = keep(jobs, event())
    failure = {"destination": None, "code": 500, "answer": None, "attempts": 3}
    jobs.redis.hset(jobs.key("undelivered", event_id), "failure", json.dumps(failure))
    found = await UndeliveredEvents(ledger).find(event_id, tenant=TENANT)
    assert found is not None
    assert found.failure == DeliveryFailure(None, 500, None)


async def test_the_list_leaves_the_data_out(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    keep(jobs, event(data={"picture": "x" * 100_000}))
    (found,) = (await UndeliveredEvents(ledger).page(TENANT, limit=1)).events
    assert found.event.data is None
    assert found.size > 100_000


async def test_the_same_event_is_stored_once_with_its_last_failure(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    first = keep(jobs, event(1))
    jobs.now += 1
    other = keep(jobs, event(2))
    began, jobs.now = jobs.now - 1, jobs.now + 1
    assert keep(jobs, event(1, data=None), failure=DeliveryFailure(None, 404, None)) == first
    assert await listed(ledger) == [first, other]
    found = await UndeliveredEvents(ledger).find(first, tenant=TENANT)
    assert found is not None
    assert (found.first, found.last, found.failure.code, found.event.data) == (began, jobs.now, 404, None)


async def test_the_same_event_of_two_tenants_is_two(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    mine, theirs = keep(jobs, event()), keep(jobs, event(), tenant="stranger")
    assert mine != theirs
    assert (await listed(ledger), await listed(ledger, "stranger")) == ([mine], [theirs])


async def test_the_newest_stay(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    assert [keep_small(jobs, number, most=3) for number in range(5)] == [0, 0, 0, 1, 1]
    assert await listed(ledger) == [f"und_{number:032x}" for number in (4, 3, 2)]
    assert not jobs.redis.exists(jobs.key("undelivered", f"und_{0:032x}"))


async def test_no_more_stay_than_the_bytes_hold(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    keep_small(jobs, 0, most=100)
    (size,) = [each.size for each in (await UndeliveredEvents(ledger).page(TENANT, limit=1)).events]
    for number in range(1, 6):
        keep_small(jobs, number, most=100, most_bytes=2 * size + 1)
    assert await listed(ledger) == [f"und_{number:032x}" for number in (5, 4)]
    assert keep_small(jobs, 6, most=100, most_bytes=1) == 2
    assert await listed(ledger) == [f"und_{6:032x}"], "one stays, however large it is"
    jobs.run(calls.delete_undelivered(f"und_{6:032x}", tenant=TENANT, now=jobs.now))
    assert int(jobs.redis.hget(jobs.key("counters"), "undelivered_bytes")) == 0


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of the store that a few events reach: 20 events, in 100 kB."""
    call = calls.store_undelivered
    monkeypatch.setattr(
        calls, "store_undelivered", lambda *args, **named: call(*args, most=20, most_bytes=100_000, **named)
    )


LARGE = {"picture": "x" * 10_000}


@pytest.mark.usefixtures("tight")
class TestOneSource:
    """A source with the most events, or bytes, displaces its own before those of others."""

    @pytest.mark.parametrize(
        ("flood", "left"), [pytest.param(LARGE, 9, id="large"), pytest.param({"n": 1}, 12, id="small and many")]
    )
    async def test_it_leaves_the_events_of_others_in_place(
        self, jobs: TimedJobs, ledger: AsyncLedger, flood: dict[str, Any], left: int
    ) -> None:
        others = [keep(jobs, event(number, source=f"/others/{number % 2}")) for number in range(7)]
        stranger = keep(jobs, event(1, source="/flood"), tenant="stranger")
        sent = []
        for number in range(35):
            jobs.now += 1
            sent.append(keep(jobs, event(number, source="/flood", data=flood)))
        found = await listed(ledger)
        assert {*others} <= {*found}
        assert await listed(ledger, "stranger") == [stranger]
        assert [each for each in found if each in sent] == sent[: -left - 1 : -1], "the newest of the source stay"
        assert int(jobs.redis.hget(jobs.key("counters"), "undelivered_bytes")) <= 100_000
        assert jobs.redis.zcard(jobs.key("undelivered-by-age")) <= 20

    async def test_large_events_of_ever_other_sources_leave_small_ones_in_place(
        self, jobs: TimedJobs, ledger: AsyncLedger
    ) -> None:
        others = [keep(jobs, event(number, source="/others")) for number in range(7)]
        for number in range(35):
            jobs.now += 1
            newest = keep(jobs, event(number, source=f"/flood/{number}", data=LARGE))
        assert {newest, *others} <= {*await listed(ledger)}

    async def test_events_of_many_sources_go_by_age(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        kept = []
        for number in range(30):
            jobs.now += 1
            kept.append(keep(jobs, event(number, source=f"/{number}")))
        assert await listed(ledger) == kept[: -20 - 1 : -1]

    async def test_a_deleted_or_repeated_event_is_counted_once(self, jobs: TimedJobs, ledger: AsyncLedger) -> None:
        kept = [keep(jobs, event(number, data=LARGE)) for number in (1, 2, 2)]
        keep(jobs, event(1))
        found = await UndeliveredEvents(ledger).find(kept[0], tenant=TENANT)
        other = await UndeliveredEvents(ledger).find(kept[1], tenant=TENANT)
        assert found is not None
        assert other is not None
        weights = (jobs.key("undelivered-by-bytes"), jobs.key("undelivered-by-count"))
        assert [jobs.redis.zrange(key, 0, -1, withscores=True)[0][1] for key in weights] == [found.size + other.size, 2]
        for event_id in {*kept}:
            jobs.run(calls.delete_undelivered(event_id, tenant=TENANT, now=jobs.now))
        left = {key.decode() for key in jobs.redis.scan_iter(f"{jobs.namespace}:undelivered*")}
        assert left == set()

    async def test_events_that_an_earlier_version_stored_join_their_sources(
        self, jobs: TimedJobs, ledger: AsyncLedger
    ) -> None:
        old = [keep(jobs, event(number, source=f"/others/{number % 2}")) for number in range(8)]
        for key in jobs.redis.scan_iter(f"{jobs.namespace}:undelivered-*"):
            if not key.endswith((b":undelivered-by-age", f":undelivered-by-tenant:{TENANT}".encode())):
                jobs.redis.delete(key)
        for event_id in old:
            jobs.redis.hdel(jobs.key("undelivered", event_id), "group")
        jobs.redis.delete(jobs.key("undelivered", old[0]))  # by hand
        for number in range(35):
            jobs.now += 1
            keep(jobs, event(number, source="/flood", data=LARGE))
        assert {*old[1:]} <= {*await listed(ledger)}
        assert jobs.redis.zcard(jobs.key("undelivered-by-count")) == 3


async def test_an_event_that_fails_again_after_its_replay_is_undelivered_again(
    jobs: TimedJobs, ledger: AsyncLedger
) -> None:
    event_id = keep(jobs, event())
    seen = jobs.now
    jobs.now += 1
    assert jobs.run(calls.mark_replayed(event_id, last=seen, now=jobs.now)) is Replayed.REPLAYED
    found = await UndeliveredEvents(ledger).find(event_id, tenant=TENANT)
    assert found is not None
    assert found.replayed == jobs.now
    jobs.now += 1
    keep(jobs, event())
    assert jobs.run(calls.mark_replayed(event_id, last=seen, now=jobs.now)) is Replayed.CHANGED
    found = await UndeliveredEvents(ledger).find(event_id, tenant=TENANT)
    assert found is not None
    assert found.replayed is None


async def test_another_tenant_deletes_nothing(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    event_id = keep(jobs, event())
    jobs.run(calls.delete_undelivered(event_id, tenant="stranger", now=jobs.now))
    assert await listed(ledger) == [event_id]
    for _ in range(2):
        assert jobs.run(calls.delete_undelivered(event_id, tenant=TENANT, now=jobs.now)) == "gone"
    assert await listed(ledger) == []


async def test_every_event_is_on_one_page(jobs: TimedJobs, ledger: AsyncLedger) -> None:
    """Several of them within one millisecond."""
    kept = []
    for number in range(9):
        jobs.now += number % 2
        kept.append(keep(jobs, event(number)))
    pages: list[str] = []
    after = None
    while True:
        page = await UndeliveredEvents(ledger).page(TENANT, limit=2, after=after)
        pages += [each.id for each in page.events]
        after = page.after
        if after is None:
            break
    assert sorted(pages) == sorted(kept)
    assert len(pages) == 9


@pytest.mark.parametrize("cursor", ["", "1", "x-und_0", f"1-und_{'g' * 32}", f"1-und_{1:033x}"])
def test_an_invalid_cursor_of_undelivered_events_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match="next"):
        undelivered.parse_cursor(cursor)


@pytest.mark.parametrize(
    ("marks", "failure"),
    [
        pytest.param({}, DeliveryFailure(None, None, None), id="none"),
        pytest.param(
            {"knativeerrordest": "http://a/", "knativeerrorcode": "503", "knativeerrordata": "Unauthorized"},
            DeliveryFailure("http://a/", 503, "Unauthorized"),
            id="as older versions write",
        ),
        pytest.param(
            {"knativeerrorcode": 500, "knativeerrordata": base64.b64encode(b"it broke\n").decode()},
            DeliveryFailure(None, 500, "it broke\n"),
            id="as newer versions write",
        ),
        pytest.param({"knativeerrorcode": "soon"}, DeliveryFailure(None, None, None), id="a code that is none"),
        pytest.param({"knativeerrordata": "é" * 2000}, DeliveryFailure(None, None, "é" * 1024), id="long"),
        pytest.param({"knativeerrordata": "AAAA"}, DeliveryFailure(None, None, "AAAA"), id="no text in Base64"),
        pytest.param({"knativebrokerttl": 255}, DeliveryFailure(None, None, None), id="other marks"),
    ],
)
def test_knatives_extensions_are_removed_from_the_event(marks: Mapping[str, Any], failure: DeliveryFailure) -> None:
    extensions = {"tenant": "t", **marks}
    assert split_failure(event(extensions=extensions)) == (event(extensions={"tenant": "t"}), failure)
