"""Metrics of jobs, deliveries and the ledger for Prometheus: `/metrics`, beside the probes (`health.py`).

Each job is counted once: by the courier to which the ledger answered `archived`, which it does once per job. The
terminal event may be applied later; until then that courier holds the record. Times are those of the record, by Redis'
clock. The counts of a courier that dies before the next scrape are lost: sums over all couriers, as with `rate` and
`increase`, miss these jobs and never count one twice.

The state of the ledger is read on each scrape. All couriers report the same: aggregate it by the maximum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from darkroom.errors import DarkroomError
from darkroom.history.store import PastJob
from darkroom.jobs import JobEvent, State
from darkroom.ledger import reads
from darkroom.ledger.calls import AttemptResult, Reading
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.records import ForeignMessages, JobRecord, Memory, Outbox
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

READ_LIMIT_S = 3.0
"""The timeout of reading the ledger: that of a scrape is 10 s by default, that of the server 5."""

MAX_TENANTS = 100
"""The most tenants with a label of their own, in order of appearance; each is a time series until the process ends."""

OTHER = "other"
"""The label of all further tenants."""

JOB_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600, 7200)
"""From the run time of a small model to the wait in a long backlog."""

TRY_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
"""Up to the timeout of a receiver."""

_JOB = ["pool", "model"]


@dataclass(frozen=True)
class LedgerReading:
    """The state of the ledger at the time of a scrape."""

    pools: dict[str, Reading]
    foreign: dict[str, ForeignMessages]
    outbox: Outbox
    memory: Memory


class CourierMetrics:
    """The metrics of one courier."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._ledger = ledger
        disable_created_metrics()  # they would double the number of series
        self._registry = CollectorRegistry()
        self._ledger_state = _LedgerCollector()
        self._registry.register(self._ledger_state)
        self._tenants: set[str] = set()

        def seconds(name: str, meaning: str) -> Histogram:
            return Histogram(name, meaning, _JOB, buckets=JOB_SECONDS, registry=self._registry)

        def counter(name: str, meaning: str, labels: list[str]) -> Counter:
            return Counter(name, meaning, labels, registry=self._registry)

        self._to_start = seconds("darkroom_job_submit_to_start_seconds", "Seconds from submission to the first start.")
        self._to_end = seconds("darkroom_job_start_to_end_seconds", "Seconds from the first start to the end.")
        self._to_result = seconds(
            "darkroom_job_submit_to_result_seconds", "Seconds from submission until the terminal event was applied."
        )
        self._gpu = seconds("darkroom_job_gpu_seconds", "Seconds that workers held the job, over all attempts.")
        self._ended = counter("darkroom_jobs_ended", "Finished jobs.", [*_JOB, "state", "error"])
        self._dead = counter("darkroom_dead_letters", "Jobs that became dead letters.", ["pool"])
        self._images = counter("darkroom_images", "Images of completed jobs.", _JOB)
        self._of_tenant = counter(
            "darkroom_tenant_gpu_seconds", "Seconds that workers held the tenant's jobs.", ["tenant"]
        )
        self._wasted = counter(
            "darkroom_wasted_gpu_seconds",
            "Seconds that workers spent on attempts without a result, by reason.",
            ["pool", "reason"],
        )
        self._tries = Histogram(
            "darkroom_delivery_try_seconds",
            "Seconds of attempts to deliver to a webhook, by outcome.",
            ["outcome"],
            buckets=TRY_SECONDS,
            registry=self._registry,
        )
        self._tenants_file = _TenantsFileCollector()
        self._registry.register(self._tenants_file)
        for outcome in AttemptResult:
            self._tries.labels(outcome.value)

    def job_ended(self, job: PastJob, *, is_dead: bool) -> None:
        """Count a job that was archived for the first time."""
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

    def job_applied(self, record: JobRecord, *, applied: int) -> None:
        """Count a job whose terminal event was applied at that time (ms since the epoch)."""
        self._to_result.labels(record.pool, record.model).observe(_seconds(record.created, applied))

    def delivery_attempted(self, outcome: AttemptResult, *, seconds: float) -> None:
        """Count an attempt to deliver to a webhook."""
        self._tries.labels(outcome.value).observe(seconds)

    def tenants_file_read(self, *, is_valid: bool) -> None:
        """Record whether the file of tenants is valid and applied."""
        self._tenants_file.is_valid = is_valid

    async def page(self) -> bytes:
        """The text for Prometheus. If the ledger cannot be read, its values are left out."""
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                self._ledger_state.reading = await self._read()
        except (DarkroomError, TimeoutError):
            self._ledger_state.reading = None
        return generate_latest(self._registry)

    async def _read(self) -> LedgerReading:
        names = await reads.pools(self._ledger)
        observed = await reads.observe(self._ledger, names)
        pools = {pool: reading for pool, reading in observed.items() if isinstance(reading, Reading)}
        for pool in pools:
            self._dead.labels(pool)  # to Prometheus a series that begins with 1 has not increased
        foreign = await reads.foreign_messages(self._ledger, names)
        return LedgerReading(pools, foreign, await reads.outbox(self._ledger), await reads.memory(self._ledger))

    def _tenant(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                return OTHER
            self._tenants.add(tenant)
        return tenant


def attempts(job: PastJob) -> Iterator[tuple[float, str | None]]:
    """For each attempt the seconds that a worker held the job, and the reason if there was no result."""
    started: int | None = None
    for entry in job.log:
        if entry.event is JobEvent.STARTED:
            started = entry.at
        elif started is not None and (entry.event in {JobEvent.RELEASED, JobEvent.RETRIED} or entry.state.is_terminal):
            reason = None if entry.state is State.COMPLETED else entry.data.get("reason") or _error(entry.data)
            yield _seconds(started, entry.at), reason
            started = None


def _error(data: object) -> str:
    """The kind of an entry's error; empty if it has none."""
    error = data.get("error") if isinstance(data, dict) else None
    return str(error.get("kind", "")) if isinstance(error, dict) else ""


def _seconds(since: int, until: int) -> float:
    """The seconds between two times in milliseconds, 0 at least: Redis' clock may be set back."""
    return max(0, until - since) / 1000


class _LedgerCollector(Collector):
    """The state of the ledger at the last scrape."""

    def __init__(self) -> None:
        self.reading: LedgerReading | None = None

    def collect(self) -> Iterator[Metric]:
        reading = self.reading
        yield _gauge(
            "darkroom_ledger_known",
            "1 if the ledger could be read; otherwise its metrics are left out.",
            0 if reading is None else 1,
        )
        age = GaugeMetricFamily(
            "darkroom_pool_queue_age_seconds",
            "Seconds since the submission of the oldest waiting job; 0 if none waits.",
            labels=["pool"],
        )
        for pool, found in reading.pools.items() if reading else ():
            age.add_metric([pool], (found.oldest_ms or 0) / 1000)
        yield age
        foreign = CounterMetricFamily(
            "darkroom_pool_foreign_messages",
            "Messages on the pool's list that belong to no job, which its workers dropped.",
            labels=["pool"],
        )
        for pool, dropped in reading.foreign.items() if reading else ():
            foreign.add_metric([pool], dropped.count)
        yield foreign
        outbox, memory = (reading.outbox, reading.memory) if reading else (None, None)
        yield _gauge(
            "darkroom_outbox_jobs", "Jobs with events that are not applied yet.", outbox.jobs if outbox else None
        )
        yield _gauge(
            "darkroom_outbox_age_seconds",
            "Seconds that the oldest of these events has waited; 0 if there is none.",
            outbox.age_ms / 1000 if outbox else None,
        )
        yield _gauge("darkroom_redis_memory_used_bytes", "Bytes that Redis uses.", memory.used if memory else None)
        yield _gauge(
            "darkroom_redis_memory_limit_bytes",
            "Bytes that Redis may use; 0 if it has no limit.",
            memory.limit if memory else None,
        )


class _TenantsFileCollector(Collector):
    """Whether the file of tenants is valid. Without a file there is no value."""

    def __init__(self) -> None:
        self.is_valid: bool | None = None

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "darkroom_tenants_file_valid",
            "1 if the file of tenants is valid and applied, 0 if it was refused.",
            None if self.is_valid is None else int(self.is_valid),
        )


def _gauge(name: str, meaning: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=[])
    if value is not None:
        family.add_metric([], value)
    return family
