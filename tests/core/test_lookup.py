"""Lists across ledger and history: no job is missing, and none is listed twice."""

from __future__ import annotations

from darkroom.history.lookup import merged
from darkroom.ledger.records import Page
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_history import record

IDS = [f"01980000-0000-7000-8000-{number:012x}" for number in range(40)]
RECENT = {job_id: record(id=job_id, worker="as the ledger has it") for job_id in IDS}
PAST = {job_id: record(id=job_id, worker="as the history has it") for job_id in IDS}


def page(known: dict[str, str], source: str, *, limit: int, after: str | None, early: int) -> Page:
    """A page of the ledger or the history: up to `limit` jobs below `after`, fewer if it reads `early` jobs only."""
    records = {"recent": RECENT, "past": PAST}[source]
    ids = sorted((job_id for job_id in known if source in known[job_id]), reverse=True)
    below = [job_id for job_id in ids if after is None or job_id < after]
    shown = below[: min(limit, early)]
    return Page(tuple(records[job_id] for job_id in shown), shown[-1] if shown and len(shown) < len(below) else None)


@given(
    known=st.dictionaries(st.sampled_from(IDS), st.sampled_from(["recent", "past", "recent and past"])),
    limit=st.integers(1, 8),
    early=st.lists(st.integers(1, 10), min_size=40, max_size=40),
)
def test_pages_of_both_have_every_job_once_newest_first(known: dict[str, str], limit: int, early: list[int]) -> None:
    """For any distribution of the jobs, and however early the ledger stops to search for matching ones."""
    found: list[str] = []
    after: str | None = None
    for looked_at in early:
        recent = page(known, "recent", limit=limit, after=after, early=looked_at)
        past = page(known, "past", limit=limit, after=after, early=limit)
        both = merged(recent, past, limit=limit)
        assert len(both.jobs) <= limit
        for job in both.jobs:
            assert job is (RECENT if "recent" in known[job.id] else PAST)[job.id]
        found += [job.id for job in both.jobs]
        after = both.after
        if after is None:
            break
    else:
        raise AssertionError("every page brings at least one job")
    assert found == sorted(known, reverse=True)
