"""Usage: what tenants and keys have used, by model and day.

Nothing is counted a second time: jobs, images and GPU time are sums over the rows of the history, tombstones included
(`history/schema.py`), and refused submissions sums over the audit trail. A job belongs to the day, in UTC, on which it
reached its terminal state; it counts once the courier has archived it, some seconds later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, case, cast, func, select

from darkroom.access.principals import CredentialKind
from darkroom.database.client import Database
from darkroom.errors import InvalidInput
from darkroom.history.schema import jobs
from darkroom.trail.schema import FIRST_REFUSAL, SUBMISSIONS, audit_trail

DAY_MS = 24 * 3600 * 1000

MAX_DAYS = 366
"""The longest period of a report: its sums are computed from the rows of each job."""

MAX_ROWS = 10_000
"""The most rows of a report, which is sent as a whole: about 2 MB."""

_EPOCH = date(1970, 1, 1)


class Dimension(StrEnum):
    """What a report may be grouped by."""

    TENANT = "tenant"
    KEY = "key"
    MODEL = "model"
    DAY = "day"


@dataclass(frozen=True)
class UsageQuery:
    """Days from `first` to `last`, both included; None for all tenants, keys or models."""

    first: date
    last: date
    tenant: str | None = None
    key: str | None = None
    model: str | None = None
    group_by: tuple[Dimension, ...] = tuple(Dimension)

    def __post_init__(self) -> None:
        """Raises InvalidInput for days that are in the wrong order, or too many."""
        if self.last < self.first:
            raise InvalidInput(f"from {self.first} is after to {self.last}")
        if (self.last - self.first).days >= MAX_DAYS:
            raise InvalidInput(f"from {self.first} to {self.last} are more than {MAX_DAYS} days")


@dataclass
class UsageRow:
    """The usage of one group. `group` has a value for each dimension that the report is grouped by; that of a key is
    empty for jobs without one. `gpu_ms` is the duration of all attempts in milliseconds, those included that were
    repeated. `refusals` are refused submissions by the slug of the problem.
    """

    group: Mapping[Dimension, str]
    jobs: int = 0
    images: int = 0
    gpu_ms: int = 0
    refusals: Counter[str] = field(default_factory=Counter)


class UsageReports:
    """Reads usage. Every method may raise HistoryUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(self, query: UsageQuery) -> list[UsageRow]:
        """The groups with any usage, in the order of their values. Raises InvalidInput for more than MAX_ROWS."""
        if any("\0" in (value or "") for value in (query.tenant, query.key, query.model)):
            return []  # no name contains it, and PostgreSQL refuses it in a query
        async with self._database.transaction() as connection:
            finished = (await connection.execute(_finished(query))).all()
            refused = (await connection.execute(_refused(query))).all()
        rows: dict[tuple[Any, ...], UsageRow] = {}
        width = len(query.group_by)
        for *group, count, images, gpu_ms in finished:
            row = rows.setdefault(tuple(group), UsageRow(_named(query.group_by, group)))
            row.jobs, row.images, row.gpu_ms = count, int(images), int(gpu_ms)
        for found in refused:
            group = list(found[:width])
            row = rows.setdefault(tuple(group), UsageRow(_named(query.group_by, group)))
            row.refusals[found[width]] += int(found[width + 1])
        if len(rows) > MAX_ROWS:
            raise InvalidInput(f"the report has more than {MAX_ROWS} rows: group it by less, or name fewer days")
        return [rows[group] for group in sorted(rows)]


def today(now_s: float) -> date:
    """The day of a time in seconds since the epoch, in UTC."""
    return datetime.fromtimestamp(now_s, UTC).date()


def _finished(query: UsageQuery) -> Any:
    of: Mapping[Dimension, ColumnElement[Any]] = {
        Dimension.TENANT: jobs.c.tenant,
        Dimension.KEY: func.coalesce(jobs.c.key_id, ""),
        Dimension.MODEL: func.coalesce(jobs.c.model, ""),
        Dimension.DAY: jobs.c.ended // DAY_MS,
    }
    sums = (
        func.count(),
        func.coalesce(func.sum(jobs.c.artifacts), 0),
        func.coalesce(func.sum(cast(jobs.c.gpu_ms, BigInteger)), 0),
    )
    return _grouped(query, of, jobs.c.ended, sums)


def _refused(query: UsageQuery) -> Any:
    """The object of a refused submission is its model."""
    of: Mapping[Dimension, ColumnElement[Any]] = {
        Dimension.TENANT: audit_trail.c.tenant,
        Dimension.KEY: case((audit_trail.c.kind == CredentialKind.NONE.value, ""), else_=audit_trail.c.actor),
        Dimension.MODEL: audit_trail.c.object,
        Dimension.DAY: audit_trail.c.at // DAY_MS,
    }
    counted = _grouped(query, of, audit_trail.c.at, (audit_trail.c.outcome, func.sum(audit_trail.c["count"])))
    return counted.where(audit_trail.c.status >= FIRST_REFUSAL, audit_trail.c.operation.in_(SUBMISSIONS)).group_by(
        audit_trail.c.outcome
    )


def _grouped(
    query: UsageQuery,
    of: Mapping[Dimension, ColumnElement[Any]],
    time: ColumnElement[int],
    values: Sequence[ColumnElement[Any]],
) -> Any:
    # Grouped by names: PostgreSQL takes an expression with a parameter for another one when it is repeated.
    groups = [of[dimension].label(f"group_{dimension.value}") for dimension in query.group_by]
    wanted = {Dimension.TENANT: query.tenant, Dimension.KEY: query.key, Dimension.MODEL: query.model}
    first, after = ((day - _EPOCH).days * DAY_MS for day in (query.first, query.last + timedelta(days=1)))
    conditions = [of[dimension] == value for dimension, value in wanted.items() if value is not None]
    statement = select(*groups, *values).where(time >= first, time < after, *conditions)
    return statement.group_by(*(group.name for group in groups)).limit(MAX_ROWS + 1)


def _named(group_by: Sequence[Dimension], group: Sequence[Any]) -> dict[Dimension, str]:
    return {
        dimension: (_EPOCH + timedelta(days=value)).isoformat() if dimension is Dimension.DAY else value
        for dimension, value in zip(group_by, group, strict=True)
    }
