"""Times: RFC 3339 text in events, responses and logs, whole milliseconds since 1970 in the ledger.

The ledger uses Redis' clock in milliseconds (`ledger/lua/prelude.lua`). This module has all conversions.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND_DIGITS = 6

# RFC 3339, section 5.6: `date-time`. T and Z may be lower case; a space in place of T is not allowed.
_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)


def iso(ms: int) -> str:
    """Milliseconds since 1970 as text, always UTC and always with three digits: `2026-11-20T15:00:00.123Z`.

    Texts of this form sort as their times do. Raises OverflowError beyond the years 1 to 9999.
    """
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def parse(text: str) -> datetime:
    """The time of `text`, with its zone; raises ValueError unless it is an RFC 3339 `date-time`.

    Digits below the microsecond are dropped. A leap second, which `datetime` cannot represent, is read as the instant
    after it; only the last second of a UTC month can be one (RFC 3339, section 5.7). The year 0, which it cannot
    represent either, is refused.
    """
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError("must be an RFC 3339 date and time with a zone, as 2026-11-20T15:00:00.123Z")
    year, month, day, hour, minute, second, fraction, sign, zone_hours, zone_minutes = match.groups()
    zone: timezone = UTC
    if sign is not None:
        east = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
        zone = timezone(east if sign == "+" else -east)
    micros = int(fraction[:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0")) if fraction else 0
    leap = second == "60"
    try:
        time = datetime(
            int(year), int(month), int(day), int(hour), int(minute), 59 if leap else int(second), micros, zone
        )
        return _after_leap_second(time) if leap else time
    except (ValueError, OverflowError) as error:
        raise ValueError(f"must be a time that exists: {error}") from None


def to_ms(text: str) -> int:
    """The inverse of `iso`, for any RFC 3339 text: milliseconds since 1970, rounded down. Raises ValueError."""
    return (parse(text) - _EPOCH) // _MILLISECOND


def _after_leap_second(time: datetime) -> datetime:
    following = time + _SECOND
    utc = following.astimezone(UTC)
    if (utc.day, utc.hour, utc.minute, utc.second) != (1, 0, 0, 0):
        raise ValueError("a leap second ends a month, at 23:59:60 UTC")
    return following
