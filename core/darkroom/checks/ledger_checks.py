"""The checks of the ledger: pools, workers, jobs, clocks, the sink and the history."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from darkroom.checks.symptoms import HOUR_S, Severity, Symptom, ago, mib, problem
from darkroom.checks.system import LedgerInfo, OverdueJob
from darkroom.ledger.calls import BACKLOG_BYTES, BACKLOG_LIMIT

BACKLOG_SHARE = 0.8
"""The share of the limit from which a backlog is reported, before submissions are refused."""


@dataclass(frozen=True)
class Limits:
    """The thresholds of the checks. Times are in seconds."""

    stuck_s: float = 30
    """The longest wait of a job beside an idle worker, which a message reaches in milliseconds."""

    lapsed_s: float = 30
    """The longest time until a lapsed lease is reaped; after an outage that takes one lease, 15 s."""

    unapplied_s: float = 60
    """The longest time until a terminal event is applied and archived; one that a sink lost is posted again in 30 s."""

    courier_silent_s: float = 15
    """The longest pause of a courier, which visits each pool once a second, and every 5 s while calls fail."""

    worker_silent_s: float = 15
    """The longest pause between heartbeats of a worker, which are 5 s apart."""

    clock_s: float = 10
    """The allowed difference of a clock from Redis': a call that carries its time may take as long."""

    clock_age_s: float = 600
    """The age from which a measured difference is ignored: the clock may be synchronised by now."""

    scaling_s: float = 120
    """The longest wait of jobs for a first worker: a pod with a GPU starts slowly."""

    foreign_s: float = 24 * HOUR_S
    """How long a dropped foreign message is reported."""

    canary_s: float = 10
    """How long a canary is waited for: a consumer takes milliseconds, one that reconnects some seconds."""

    backlog: int = BACKLOG_LIMIT
    """The limit of submit (DARKROOM_BACKLOG_LIMIT)."""

    backlog_bytes: int = BACKLOG_BYTES
    """The limit of submit (DARKROOM_BACKLOG_BYTES)."""


def pools(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    if not ledger.pools:
        yield problem(
            "no worker pool has been announced: every submission is refused (503, no-pool)",
            "start `darkroom up` or apply a WorkerPool, or correct DARKROOM_REDIS_URL and DARKROOM_NAMESPACE",
        )


def lost_data(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    if ledger.loss is not None:
        yield problem(
            f"Redis restarted with less data than before: it lost {ledger.loss.described}",
            "`darkroom audit --repair` repairs the remaining jobs and acknowledges the loss; jobs that were "
            "accepted in that time and are unknown now must be submitted again. Check that Redis loads its whole "
            "file (append-only-file, redis-users)",
        )


def workers(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    """Pools that have jobs and no worker."""
    for pool in ledger.pools:
        here = [worker for worker in ledger.workers if worker.pool == pool.name]
        oldest = max((each.seconds for each in (pool.waiting, pool.pushed) if each), default=0.0)
        if any(worker.at_work for worker in here) or oldest < limits.scaling_s:
            continue
        states = ", ".join(sorted(worker.state for worker in here)) or "none registered"
        yield problem(
            f"pool {pool.name} has {pool.backlog} jobs, one for {ago(oldest)}, and no ready worker ({states})",
            "read the worker's log: its models may not load; in a cluster, check that its pod has a GPU",
        )


def faulty_workers(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    for worker in ledger.workers:
        if worker.state == "faulty":
            yield problem(
                f"worker {worker.name} of pool {worker.pool} is faulty: its device or a model failed repeatedly",
                "read its log (`fault`, `self_test_failed`), check the machine's GPU and the model's files; the worker "
                "tests itself after a pause, and is ready again once its self-test passes",
            )


def silent_workers(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    for worker in ledger.workers:
        if worker.seen_s > limits.worker_silent_s:
            yield Symptom(
                Severity.WARNING,
                f"worker {worker.name} of pool {worker.pool} sent no heartbeat for {ago(worker.seen_s)}",
                "if it terminated, start another one: its job is requeued automatically. Else check its "
                "connection to Redis",
            )


def deaf_workers(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    for worker in ledger.workers:
        if worker.silent:
            yield problem(
                f"worker {worker.name} of pool {worker.pool} was ready {ago(worker.seen_s)} ago and "
                f"consumes no messages: it claimed none of {worker.canaries} canaries in {limits.canary_s:g} s",
                "restart it; if its queue was cancelled manually, `celery control add_consumer` adds it again",
            )


def stuck_jobs(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    """Jobs that wait beside an idle worker, or whose lease or time is overdue."""
    for pool in ledger.pools:
        idle = sum(worker.idle for worker in ledger.workers if worker.pool == pool.name)
        waits = pool.pushed or pool.waiting
        if idle and waits is not None and waits.seconds > limits.stuck_s:
            yield problem(
                f"job {waits.job} has waited in pool {pool.name} for {ago(waits.seconds)} beside {idle} idle workers",
                "check that the workers consume messages (deaf-workers), and that a courier runs (courier), "
                "which pushes lost messages again",
            )
        if pool.lapsed is not None and pool.lapsed.seconds > limits.lapsed_s:
            yield problem(
                f"job {pool.lapsed.job} of pool {pool.name} is running, and its lease lapsed "
                f"{ago(pool.lapsed.seconds)} ago",
                "start a courier: it requeues jobs whose worker is lost",
            )
        if pool.overdue is not None and pool.overdue.seconds > limits.stuck_s:
            yield problem(
                f"job {pool.overdue.job} of pool {pool.name} was due again {ago(pool.overdue.seconds)} ago",
                "start a courier: it moves due jobs into the backlog",
            )


def foreign_messages(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    """Messages that belong to no job: those that were dropped recently, and those in a pool's list."""
    remedy = (
        "find the program that writes to this Redis under the prefix DARKROOM_NAMESPACE, and give it another database"
    )
    for pool in ledger.pools:
        dropped = pool.foreign
        if dropped.count and dropped.seconds < limits.foreign_s:
            yield Symptom(
                Severity.WARNING,
                f"workers of pool {pool.name} dropped {dropped.count} messages that belong to no job, the last "
                f"{ago(dropped.seconds)} ago ({dropped.reason})",
                remedy,
            )
        if pool.foreign_listed:
            yield Symptom(
                Severity.WARNING,
                f"{pool.foreign_listed} messages in the list of pool {pool.name} belong to no job; a worker will "
                f"drop them",
                remedy,
            )


def backlog(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    remedy = (
        "add workers to the pool, or cancel jobs that are not needed; DARKROOM_BACKLOG_LIMIT of submit is the limit"
    )
    for pool in ledger.pools:
        seen = f"{pool.backlog} of {limits.backlog} jobs wait in pool {pool.name}"
        if pool.backlog >= limits.backlog:
            yield problem(f"{seen}: submissions are refused (429)", remedy)
        elif pool.backlog >= BACKLOG_SHARE * limits.backlog:
            yield Symptom(Severity.WARNING, f"{seen}: soon submissions will be refused", remedy)
    remedy = (
        "add workers, or cancel large jobs; DARKROOM_BACKLOG_BYTES of submit is the limit, which Redis' memory bounds"
    )
    seen = f"unfinished jobs take {mib(ledger.unfinished_bytes)} of {mib(limits.backlog_bytes)}"
    if ledger.unfinished_bytes >= BACKLOG_SHARE * limits.backlog_bytes:
        yield Symptom(Severity.WARNING, f"{seen}: soon submissions will be refused (429)", remedy)


def clocks(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    """Clocks that differ from Redis', which times delays and leases; signatures carry the time of a part's own."""
    for clock in ledger.clocks:
        if abs(clock.ahead_s) > limits.clock_s and clock.age_s <= limits.clock_age_s:
            differs = f"{ago(abs(clock.ahead_s))} {'ahead of' if clock.ahead_s > 0 else 'behind'} Redis'"
            yield problem(
                f"the clock of {clock.part} was {differs}, {ago(clock.age_s)} ago",
                "synchronise the clocks of both machines (NTP): job ids, links to pictures, signatures of webhooks and "
                "deadlines that callers give as a time depend on them",
            )
    back = ledger.set_back
    if back is not None and back.age_s <= limits.clock_age_s:
        yield Symptom(
            Severity.WARNING,
            f"the clock of Redis was set back by {ago(-back.ahead_s)}, {ago(back.age_s)} ago",
            "synchronise it (NTP) by slewing; due times were brought forward, and times of jobs may overlap",
        )


def courier(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    for pool in ledger.pools:
        silent_s = pool.announced_s if pool.courier_seen_s is None else pool.courier_seen_s
        if silent_s > limits.courier_silent_s:
            since = f"for {ago(silent_s)}" if pool.courier_seen_s is not None else "since it was announced"
            yield problem(
                f"no courier has visited pool {pool.name} {since}",
                "start a courier, or read its log: without it no event is published, and no lost job is recovered",
            )


def sink(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    """Terminal events that are not applied: never posted, refused by the sink, or accepted and dropped by it."""
    unposted = [job for job in ledger.unapplied if job.leases == 0]
    refused = [job for job in ledger.unapplied if job.refused and job.refused >= job.leases - 1]
    dropped = [job for job in ledger.unapplied if job not in unposted and job not in refused]
    if refused:
        yield problem(
            f"the sink refuses: {_ends(refused, 'applied')}",
            "check that K_SINK of the courier names a sink that runs and responds with 2xx; its responses are in "
            "the courier's log",
        )
    if dropped:
        yield problem(
            f"the sink accepts events and drops them: {_ends(dropped, 'applied')}, although it accepted them",
            "check that the sink forwards events to `POST /events` of the result function; with a Knative Broker, that "
            "its Trigger is ready and the subscriber responds with 2xx",
        )
    if unposted:
        yield problem(f"no courier posts: {_ends(unposted, 'applied')}", "start a courier, or read its log")


def history(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    """Terminal jobs that are not in the database yet: Redis stores them until then."""
    if ledger.unarchived:
        yield problem(
            f"the history is behind: {_ends(ledger.unarchived, 'archived')}",
            "check that the database of DARKROOM_DATABASE_URL accepts connections and has space, and that a courier "
            "runs, and read its log",
        )


LEDGER_CHECKS: Mapping[str, Callable[[LedgerInfo, Limits], Iterator[Symptom]]] = {
    "pools": pools,
    "lost-data": lost_data,
    "workers": workers,
    "faulty-workers": faulty_workers,
    "silent-workers": silent_workers,
    "deaf-workers": deaf_workers,
    "stuck-jobs": stuck_jobs,
    "foreign-messages": foreign_messages,
    "backlog": backlog,
    "clocks": clocks,
    "courier": courier,
    "sink": sink,
    "history": history,
}
"""The checks of the ledger."""


def _ends(overdue: Sequence[OverdueJob], wanted: str) -> str:
    oldest = max(overdue, key=lambda each: each.seconds)
    many = f"the ends of {len(overdue)} jobs are" if len(overdue) > 1 else "the end of one job is"
    return f"{many} not {wanted}, that of {oldest.job} for {ago(oldest.seconds)}"
