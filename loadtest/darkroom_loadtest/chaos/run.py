"""`make chaos`: no job is lost or doubled while all parts fail.

A chaos run (`storm.py`) on the real parts, an observer (`observer.py`) that records accepted jobs and their messages,
and a verdict (`verdict.py`) with figures and goals; the exit status is 1 if a goal is missed. Without one protection
(`--without`) the run must fail. The same kills on stock Celery are a baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Sequence

from darkroom.artifacts import ArtifactStore
from darkroom.checks.auditor import Auditor
from darkroom.errors import NotFound
from darkroom.jobs import JobEvent
from darkroom.ledger import calls, reads
from darkroom.ledger.calls import WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import JobRecord
from darkroom.updates import artifacts_of

from darkroom_loadtest.chaos import verdict
from darkroom_loadtest.chaos.fleet import WorkerFleet
from darkroom_loadtest.chaos.observer import Observer
from darkroom_loadtest.chaos.plan import FULL, SHORT, ChaosPlan, directed
from darkroom_loadtest.chaos.protections import Protection
from darkroom_loadtest.chaos.stock_storm import StockOutcome, run_stock_storm
from darkroom_loadtest.chaos.storm import POLL_S, Storm
from darkroom_loadtest.chaos.verdict import (
    RECOVERY_ALLOWANCE_S,
    Evidence,
    faults_in_words,
    judge,
    missed,
    recoveries_in_words,
)
from darkroom_loadtest.measurement.figures import Figure, report
from darkroom_loadtest.measurement.rig import NAMESPACE, READY_TIMEOUT_S, BenchmarkFailed, Rig, run_benchmark

BENCH = "chaos"

SLICE = 200
"""Records that are read per round trip."""

AT_WORK = frozenset({WorkerState.READY, WorkerState.BUSY})

SHOWN = 10
"""Maximum number of jobs that are listed per kind of fault."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="run for a minute, with a lease of 4 s and without stock Celery"
    )
    parser.add_argument(
        "--without", choices=[each.value for each in Protection], help="remove this protection; the run must fail"
    )
    options = parser.parse_args(arguments)
    without = Protection(options.without) if options.without else None
    plan = (directed(without) if without else SHORT) if options.short else FULL
    return run_benchmark(lambda rig: asyncio.run(measure(rig, plan, without=without, short=options.short)))


async def measure(rig: Rig, plan: ChaosPlan, *, without: Protection | None, short: bool) -> None:
    """Run the plan, judge it and write the report. Raises BenchmarkFailed if a goal is missed."""
    began = time.monotonic()
    storm = Storm(rig, plan, without=without)
    try:
        await storm.run()
        evidence = await collect(rig, storm)
        notes = _notes(storm, evidence)
    finally:
        await storm.observer.aclose()
        storm.end()
    found = judge(evidence, lease_s=plan.lease_s)
    figures = verdict.figures(
        found,
        least_jobs=plan.jobs,
        recovery_goal_s=None if short else plan.lease_s + RECOVERY_ALLOWANCE_S,
    )
    notes += _findings(found, evidence)
    if not short and without is None:
        stock = run_stock_storm(rig, jobs=plan.jobs, faults=plan.faults)
        figures += _stock_figures(stock)
        notes.append(stock.in_words)
    notes.append(f"{time.monotonic() - began:.0f} s in all")
    report(BENCH if without is None else f"{BENCH}-without-{without}", figures, redis=rig.redis_version, notes=notes)
    if goals := missed(figures):
        raise BenchmarkFailed(f"missed: {', '.join(goals)}")


async def collect(rig: Rig, storm: Storm) -> Evidence:
    """The observer's record, and the ledger's data of its jobs."""
    observer = storm.observer
    accepted = frozenset(observer.accepted)
    faults = storm.fleet.faults
    store = ArtifactStore((rig.folder / "store").as_uri())
    async with connect_async(rig.redis_url) as client:
        ledger = AsyncLedger(client, NAMESPACE)
        records: dict[str, JobRecord] = {}
        ids = sorted(accepted)
        for start in range(0, len(ids), SLICE):
            jobs = await ledger.jobs(ids[start : start + SLICE], tenant=None)
            records |= {job.id: job for job in jobs if job is not None}
        hit = sorted({fault.job for fault in faults})
        logs = dict(zip(hit, await reads.logs(ledger, hit), strict=True))
        workers_out = await _workers_out(ledger, storm.fleet)
        audit = await Auditor(client, NAMESPACE, store=store, history=None).audit(repair=False)
    return Evidence(
        accepted=accepted,
        applied=frozenset(observer.applied),
        received=frozenset(observer.received),
        ends={job: frozenset(ends) for job, ends in observer.ends.items()},
        counted={job: record.counted for job, record in records.items()},
        moves_ms={
            job: [entry.at for entry in log if entry.event is JobEvent.STARTED or entry.state.is_terminal]
            for job, log in logs.items()
        },
        changed=await _changed(observer, records, store),
        faults=faults,
        outages_ms=storm.outages_ms,
        workers_out=workers_out,
        waiting=frozenset(job for job, record in records.items() if not record.state.is_terminal),
        disordered=frozenset(observer.disordered),
        harmful=frozenset(storm.harmful),
        audit_findings=[f"{fault.kind}: job {fault.job}: {fault.seen}" for fault in audit.findings],
    )


async def _workers_out(ledger: AsyncLedger, fleet: WorkerFleet) -> int:
    """The number of workers that accept no job, after the last ones had time to load."""
    pids = {str(member.process.pid) for member in fleet.members}
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        seen_ms = time.time_ns() // 1_000_000 - calls.WORKER_TTL_MS
        at_work = {each.name for each in await reads.workers(ledger) if each.state in AT_WORK and each.seen > seen_ms}
        out = pids - {name.split("-")[-2] for name in at_work}  # a worker's name ends with its pid and a random suffix
        if not out or time.monotonic() > deadline:
            return len(out)
        await asyncio.sleep(POLL_S)


async def _changed(observer: Observer, records: dict[str, JobRecord], store: ArtifactStore) -> frozenset[str]:
    """The completed jobs whose artifact in the store differs from the published one."""
    changed = set()
    for job_id, record in records.items():
        promised = {end.content_id for end in observer.ends.get(job_id, ()) if end.content_id is not None}
        for artifact in artifacts_of(record.end_data or {}):
            try:
                _, chunks = await store.open(artifact.key)
                content = b"".join([chunk async for chunk in chunks])
            except NotFound:
                content = b""
            if promised - {hashlib.sha256(content).hexdigest()}:
                changed.add(job_id)
    return frozenset(changed)


def _notes(storm: Storm, evidence: Evidence) -> list[str]:
    observer = storm.observer
    states = Counter(end.state for ends in evidence.ends.values() for end in ends)
    counters = {name.decode(): int(value) for name, value in storm.counters.items()}
    return [
        f"terminal messages: {', '.join(f'{count} {state}' for state, count in states.items())}",
        f"injected faults: {faults_in_words(evidence.faults)}",
        f"other killed processes: {', '.join(storm.killed) or 'none'}",
        f"{observer.refused_submissions} submissions and {observer.failed_posts} posts had to be retried",
        f"the ledger's counters: {counters}",
    ]


def _findings(found: verdict.Verdict, evidence: Evidence) -> list[str]:
    notes = [f"seconds to recover, by point: {recoveries_in_words(found.recoveries)}"]
    if found.excused:
        notes.append(f"{found.excused} kills just before an outage are not in the recovery times")
    for what, jobs in (
        ("lost", found.lost),
        ("twice", found.twice),
        ("waiting", found.waiting),
        ("disordered", found.disordered),
        ("wrong end", found.wrong),
    ):
        notes += [f"{what}: {job}: {sorted(map(str, evidence.ends.get(job, ())))}" for job in jobs[:SHOWN]]
    return notes + [f"audit: {finding}" for finding in evidence.audit_findings[:SHOWN]]


def _stock_figures(stock: StockOutcome) -> list[Figure]:
    return [
        Figure(name="chaos_stock_lost", unit="jobs", runs=[stock.lost]),
        Figure(name="chaos_stock_stranded", unit="jobs", runs=[stock.stranded]),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
