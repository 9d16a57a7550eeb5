"""Upkeep: the ledger's timers, for every announced pool, in one round trip per interval.

Running jobs whose lease expired are released (reap), messages that were delivered and never claimed are pushed again
(sweep), due retries join the backlog (promote), jobs that have waited for long move up a priority class (age), and jobs
past their start deadline expire (expire). Each is one script that decides by itself; any number of couriers may call it
concurrently.
"""

from __future__ import annotations

import time
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import Call
from darkroom.ledger.client import AsyncLedger
from darkroom.logs import logger

from darkroom_courier.settings import CourierSettings

MOST_AT_ONCE = 100
"""The most jobs that one call of a script moves, so that no script takes long. If there are more, the next round begins
at once."""

_log = logger(__name__)


class Upkeep:
    """One `step` runs all timers once."""

    def __init__(self, ledger: AsyncLedger, settings: CourierSettings) -> None:
        self._ledger = ledger
        self._settings = settings

    async def step(self) -> bool:
        """Run the timers. True: more may be due. Raises LedgerUnavailable."""
        due: list[tuple[str, str, Call[list[str]]]] = [("expired", "", calls.expire(limit=MOST_AT_ONCE))]
        for pool in await reads.pools(self._ledger):
            due.append(("reaped", pool, self._reap(pool)))
            due.append(("swept", pool, self._sweep(pool)))
            due.append(("promoted", pool, calls.promote(pool, limit=MOST_AT_ONCE)))
            due.append(("aged", pool, self._age(pool)))
        more = False
        # The clock comes first: if it was set back, due times are adjusted before the others read them.
        clock: Call[Any] = calls.adjust_clock(clock_ms=time.time_ns() // 1_000_000)
        retention: Call[Any] = calls.set_retention(
            record_ttl_ms=int(self._settings.ledger_retention_s * 1000), ended_bytes=self._settings.ledger_ended_bytes
        )
        set_back_ms, _, *answers = await self._ledger.run_each([clock, retention, *(call for _, _, call in due)])
        if isinstance(set_back_ms, DarkroomError):
            _log.warning("upkeep_failed", step="clock", error=set_back_ms.detail)
        elif set_back_ms:
            _log.warning("redis_clock_set_back", ms=set_back_ms)
        for (done, pool, _), answer in zip(due, answers, strict=True):
            where = {"pool": pool} if pool else {}  # start deadlines are not per pool
            if isinstance(answer, DarkroomError):
                _log.warning("upkeep_failed", step=done, error=answer.detail, **where)
            elif answer:
                _log.info(done, jobs=answer, **where)
                more = more or len(answer) >= MOST_AT_ONCE
        return more

    def _reap(self, pool: str) -> Call[list[str]]:
        return calls.reap(
            pool,
            lease_ms=round(self._settings.attempt_lease_s * 1000),
            gap_ms=round(self._settings.reap_gap_s * 1000),
            limit=MOST_AT_ONCE,
        )

    def _age(self, pool: str) -> Call[list[str]]:
        return calls.age(pool, bound_ms=round(self._settings.ageing_s * 1000), limit=MOST_AT_ONCE)

    def _sweep(self, pool: str) -> Call[list[str]]:
        return calls.sweep(pool, age_ms=round(self._settings.sweep_age_s * 1000))
