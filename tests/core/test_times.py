"""Times: RFC 3339 text and milliseconds, and the conversion between them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from darkroom import times
from hypothesis import given
from hypothesis import strategies as st

LAST_MS = 253_402_300_799_999
"""The end of the year 9999."""


def test_times_are_written_in_utc_with_milliseconds() -> None:
    assert times.iso(1_795_186_800_123) == "2026-11-20T15:00:00.123Z"
    assert times.iso(0) == "1970-01-01T00:00:00.000Z"
    assert times.iso(LAST_MS) == "9999-12-31T23:59:59.999Z"


@given(st.integers(0, LAST_MS))
def test_what_is_written_is_read_back(ms: int) -> None:
    assert times.to_ms(times.iso(ms)) == ms


@given(st.integers(0, LAST_MS), st.integers(0, LAST_MS))
def test_texts_sort_as_their_times_do(one: int, other: int) -> None:
    assert (times.iso(one) < times.iso(other)) == (one < other)


@given(st.datetimes(), st.integers(-1439, 1439))
def test_any_zone_is_read(naive: datetime, offset_minutes: int) -> None:
    time = naive.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    parsed = times.parse(time.isoformat())
    assert (parsed.replace(tzinfo=None), parsed.utcoffset()) == (naive, time.utcoffset())


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00-00:00", 0),
        ("1970-01-01T00:00:00.0019999Z", 1),
        ("1969-12-31T23:59:59.9995Z", -1),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("2016-12-31T15:59:60.250-08:00", 1_483_228_800_250),
        ("1990-06-30T23:59:60Z", 646_790_400_000),
    ],
)
def test_milliseconds_are_rounded_down_and_a_leap_second_is_the_instant_after_it(text: str, ms: int) -> None:
    assert times.to_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-20",
        "2026-11-20T15:00:00",
        "2026-11-20 15:00:00Z",
        "2026-11-20T15:00Z",
        "2026-11-20T15:00:00Z\n",
        " 2026-11-20T15:00:00Z",
        "2026-11-20T15:00:00+0100",
        "2026-11-20T15:00:00+24:00",
        "2026-11-20T15:00:00+01:60",
        "2026-11-20T15:00:00.Z",
        "2026-02-29T15:00:00Z",
        "2026-00-01T15:00:00Z",
        "2026-11-20T24:00:00Z",
        "2026-11-20T15:60:00Z",
        "2026-11-20T15:00:61Z",
        "2026-11-20T15:00:60Z",
        "2026-11-20T23:59:60Z",
        "2026-11-30T23:59:60+01:00",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:60Z",
        "0001-01-01T00:59:60+02:00",
        "٢٠٢٦-11-20T15:00:00Z",
    ],
)
def test_what_is_not_rfc_3339_or_no_time_that_exists_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be "):
        times.parse(text)


def test_a_parsed_time_knows_its_zone() -> None:
    assert times.parse("2026-11-20T15:00:00.123456789Z") == datetime(2026, 11, 20, 15, 0, 0, 123456, UTC)
