"""What Prometheus is told of the way of jobs: `/metrics`, beside the probes (`health.py`).

All of it comes from one place, so that nothing is counted twice: a job is counted by the courier whom the ledger
answered `archived`, which it says of each job once, to whichever courier comes first. That the end was told may be
known only later; until then the courier that counted the job keeps its id. Times are the record's own, Redis' clock. A
courier that dies between that answer and the next scrape takes what it had counted along: sums over all couriers,
which `rate` and `increase` are made for, miss these jobs and never have one twice.

What stands in the ledger is read when somebody asks. Each courier tells the same of it: take the maximum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from darkroom.errors import DarkroomError
from darkroom.history.store import PastJob
from darkroom.jobs import JobEvent, State
from darkroom.ledger.calls import AttemptResult, Reading
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import ForeignMessages, JobRecord, Memory, Outbox
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

READ_LIMIT_S = 3.0
"""How long the ledger may take to be read: a scrape waits for 10 s by default, our server for 5."""

MAX_TENANTS = 100
"""Tenants with a figure of their own, the first that come; each is a time series for as long as the process lives."""

OTHER = "other"
"""All tenants beyond those."""

JOB_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600, 7200)
"""From what a small model takes to what a long backlog does."""

TRY_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
"""Up to the longest that a receiver may take."""

_JOB = ["pool", "model"]


@dataclass(frozen=True)
class LedgerReading:
    """What the ledger had when somebody asked."""

    pools: dict[str, Reading]
    foreign: dict[str, ForeignMessages]
    outbox: Outbox
    memory: Memory


class CourierMetrics:
    """The figures of one courier. Whoever sees something happen says so here."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._ledger = ledger
        disable_created_metrics()  # a second series for each: when it began
        self._registry = CollectorRegistry()
        self._standing = _Standing()
        self._registry.register(self._standing)
        self._tenants: set[str] = set()

        def seconds(name: str, meaning: str) -> Histogram:
            return Histogram(name, meaning, _JOB, buckets=JOB_SECONDS, registry=self._registry)

        def counter(name: str, meaning: str, labels: list[str]) -> Counter:
            return Counter(name, meaning, labels, registry=self._registry)

        self._to_start = seconds("darkroom_job_submit_to_start_seconds", "From submission to the first start.")
        self._to_end = seconds("darkroom_job_start_to_end_seconds", "From the first start to the end.")
        self._to_result = seconds(
            "darkroom_job_submit_to_result_seconds", "From submission until the result function had applied the end."
        )
        self._gpu = seconds("darkroom_job_gpu_seconds", "For how long a worker had the job, all attempts together.")
        self._ended = counter("darkroom_jobs_ended", "Jobs that ended.", [*_JOB, "state", "error"])
        self._dead = counter("darkroom_dead_letters", "Jobs that became dead letters.", ["pool"])
        self._images = counter("darkroom_images", "Images of completed jobs.", _JOB)
        self._of_tenant = counter(
            "darkroom_tenant_gpu_seconds", "For how long workers had the tenant's jobs.", ["tenant"]
        )
        self._wasted = counter(
            "darkroom_wasted_gpu_seconds", "Of that, in attempts that made no result, by why.", ["pool", "reason"]
        )
        self._tries = Histogram(
            "darkroom_delivery_try_seconds",
            "Tries to deliver to a webhook, by what followed.",
            ["outcome"],
            buckets=TRY_SECONDS,
            registry=self._registry,
        )
        for outcome in AttemptResult:
            self._tries.labels(outcome.value)

    def job_ended(self, job: PastJob, *, is_dead: bool) -> None:
        """A job was archived, for the first time."""
        record = job.record
        labels = (record.pool, record.model)
        end = job.log[-1]
        self._ended.labels(*labels, record.state.value, _error(end.data)).inc()
        if is_dead:
            self._dead.labels(record.pool).inc()
        self._images.labels(*labels).inc(len(end.data.get("artifacts", ())))
        if record.started is None:
            return
        self._to_start.labels(*labels).observe(_seconds(record.created, record.started))
        self._to_end.labels(*labels).observe(_seconds(record.started, end.at))
        total = 0.0
        for seconds, reason in attempts(job):
            total += seconds
            if reason is not None:
                self._wasted.labels(record.pool, reason).inc(seconds)
        self._gpu.labels(*labels).observe(total)
        self._of_tenant.labels(self._tenant(record.tenant)).inc(total)

    def job_told(self, record: JobRecord, *, applied: int) -> None:
        """Its end was applied, at that time (ms)."""
        self._to_result.labels(record.pool, record.model).observe(_seconds(record.created, applied))

    def delivery_attempted(self, outcome: AttemptResult, *, seconds: float) -> None:
        """A try of a delivery was settled."""
        self._tries.labels(outcome.value).observe(seconds)

    async def page(self) -> bytes:
        """The text for Prometheus. Where the ledger cannot be read, what is of it is left out."""
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                self._standing.reading = await self._read()
        except (DarkroomError, TimeoutError):
            self._standing.reading = None
        return generate_latest(self._registry)

    async def _read(self) -> LedgerReading:
        names = await self._ledger.pools()
        observed = await self._ledger.observe(names)
        pools = {pool: reading for pool, reading in observed.items() if isinstance(reading, Reading)}
        for pool in pools:
            self._dead.labels(pool)  # a series that begins with 1 has not risen, by Prometheus' count
        foreign = await self._ledger.foreign_messages(names)
        return LedgerReading(pools, foreign, await self._ledger.outbox(), await self._ledger.memory())

    def _tenant(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                return OTHER
            self._tenants.add(tenant)
        return tenant


def attempts(job: PastJob) -> Iterator[tuple[float, str | None]]:
    """Of each attempt for how many seconds a worker had the job, and why it made no result; None: it made it."""
    started: int | None = None
    for entry in job.log:
        if entry.event is JobEvent.STARTED:
            started = entry.at
        elif started is not None and (entry.event in {JobEvent.RELEASED, JobEvent.RETRIED} or entry.state.is_terminal):
            reason = None if entry.state is State.COMPLETED else entry.data.get("reason") or _error(entry.data)
            yield _seconds(started, entry.at), reason
            started = None


def _error(data: object) -> str:
    """The kind of an entry's error; nothing where it has none."""
    error = data.get("error") if isinstance(data, dict) else None
    return str(error.get("kind", "")) if isinstance(error, dict) else ""


def _seconds(since: int, until: int) -> float:
    """Between two times in milliseconds. Redis' clock may be set back."""
    return max(0, until - since) / 1000


class _Standing(Collector):
    """What the ledger holds, by the last reading."""

    def __init__(self) -> None:
        self.reading: LedgerReading | None = None

    def collect(self) -> Iterator[Metric]:
        reading = self.reading
        yield _gauge(
            "darkroom_ledger_known",
            "1 where the ledger could be read; else what follows here of it is left out.",
            0 if reading is None else 1,
        )
        age = GaugeMetricFamily(
            "darkroom_pool_queue_age_seconds",
            "How long ago the oldest job that waits was submitted; 0 where none waits.",
            labels=["pool"],
        )
        for pool, found in reading.pools.items() if reading else ():
            age.add_metric([pool], (found.oldest_ms or 0) / 1000)
        yield age
        foreign = CounterMetricFamily(
            "darkroom_pool_foreign_messages",
            "Messages on the pool's list that are no job's, which its workers dropped.",
            labels=["pool"],
        )
        for pool, dropped in reading.foreign.items() if reading else ():
            foreign.add_metric([pool], dropped.count)
        yield foreign
        outbox, memory = (reading.outbox, reading.memory) if reading else (None, None)
        yield _gauge(
            "darkroom_outbox_jobs", "Jobs of which something is still to be told.", outbox.jobs if outbox else None
        )
        yield _gauge(
            "darkroom_outbox_age_seconds",
            "How long the oldest of these has waited to be told; 0 where there is none.",
            outbox.age_ms / 1000 if outbox else None,
        )
        yield _gauge("darkroom_redis_memory_used_bytes", "Memory that Redis uses.", memory.used if memory else None)
        yield _gauge(
            "darkroom_redis_memory_limit_bytes",
            "What it may use at most; 0 where it has no limit.",
            memory.limit if memory else None,
        )


def _gauge(name: str, meaning: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=[])
    if value is not None:
        family.add_metric([], value)
    return family
