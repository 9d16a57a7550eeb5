"""The checks of the doctor: one pure function per check, and their table.

`examination.py` reads the system; a check is a rule with a threshold, applied to the result. Each finding states a
symptom and its remedy (`darkroom doctor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from darkroom.ledger.calls import BACKLOG_BYTES, BACKLOG_LIMIT
from darkroom.ledger.epochs import DataLoss

OLDEST_REDIS = (6, 2)
"""The oldest version that has all commands of the ledger."""

LOADS_AS_DEFAULT_USER = (7, 0)
"""From this version on Redis loads its append-only file with the rights of the user `default`."""

MEMORY_SHARE = 0.8
"""Above this submissions are refused (`Memory.high`)."""

BACKLOG_SHARE = 0.8
"""The share of the limit from which a backlog is reported, before submissions are refused."""

MINUTE_S, HOUR_S = 60, 3600

SLOW_SCRIPT_MS = 5.0
"""Redis serves no other client while a script runs; the ledger's take a fifth of a millisecond."""

SLOW_MIN_CALLS = 100
"""The fewest calls of which a percentile is significant: of fewer, one pause of the machine decides."""


class Severity(StrEnum):
    """`PROBLEM`: jobs are lost, refused or stuck, or will be. `WARNING`: it may become a problem."""

    PROBLEM = "problem"
    WARNING = "warning"


@dataclass(frozen=True)
class Symptom:
    """The observation of a check, and its remedy."""

    severity: Severity
    seen: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """A symptom under the name of its check."""

    check: str
    symptom: Symptom


@dataclass(frozen=True)
class Diagnosis:
    """The findings, the completed checks, and those that could not be made."""

    findings: Sequence[Finding]
    made: Sequence[str]
    not_made: Sequence[str]


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


@dataclass(frozen=True)
class ScriptCost:
    """The cost of a command that runs scripts, in milliseconds; `p99_ms` is None before Redis 7."""

    command: str
    calls: int
    mean_ms: float
    p99_ms: float | None


@dataclass(frozen=True)
class RedisInfo:
    """Redis' own report (INFO). Memory is in bytes; `memory_limit` is the machine's where Redis has none."""

    version: tuple[int, ...]
    clustered: bool
    append_only: bool
    append_error: str | None
    eviction: str
    default_user_is_limited: bool
    memory_used: int
    memory_limit: int
    memory_limited_by: str
    costs: Sequence[ScriptCost]


@dataclass(frozen=True)
class OldestJob:
    """The oldest job of one of a pool's sets, and how long it has waited there or is overdue, in seconds."""

    job: str
    seconds: float


@dataclass(frozen=True)
class PoolInfo:
    """A pool at one moment. `courier_seen_s`: seconds since a courier visited it, None if none ever did."""

    name: str
    announced_s: float
    courier_seen_s: float | None
    backlog: int
    pushed: OldestJob | None
    waiting: OldestJob | None
    overdue: OldestJob | None
    lapsed: OldestJob | None
    foreign: ForeignDrops
    foreign_listed: int


@dataclass(frozen=True)
class ForeignDrops:
    """Number of foreign messages that a pool's workers dropped; seconds since the last, and its reason."""

    count: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class WorkerInfo:
    """A registered worker. `silent`: it was idle all the time, and claimed none of `canaries` canaries."""

    name: str
    pool: str
    state: str
    seen_s: float
    idle: bool
    silent: bool
    canaries: int

    @property
    def at_work(self) -> bool:
        return self.state in {"ready", "busy"}


@dataclass(frozen=True)
class OverdueJob:
    """A terminal job whose event is not applied, or that is not archived: seconds since it finished, the number of its
    leases for that, and the number of the last one that the receiver refused (0: none).
    """

    job: str
    seconds: float
    takes: int
    refused: int


@dataclass(frozen=True)
class ClockOffset:
    """Seconds by which a part's clock was ahead of Redis' (negative: behind), `age_s` seconds ago."""

    part: str
    ahead_s: float
    age_s: float


@dataclass(frozen=True)
class LedgerInfo:
    """The part of the ledger that the checks need."""

    pools: Sequence[PoolInfo]
    workers: Sequence[WorkerInfo]
    unapplied: Sequence[OverdueJob]
    unarchived: Sequence[OverdueJob]
    loss: DataLoss | None
    unfinished_bytes: int = 0
    clocks: Sequence[ClockOffset] = ()
    set_back: ClockOffset | None = None
    """The last time that Redis' own clock was set back, and by how much."""


@dataclass(frozen=True)
class SystemInfo:
    """Everything that was read. `redis` or `ledger` is None where it could not be read; `error` has the reason."""

    redis: RedisInfo | None
    ledger: LedgerInfo | None
    error: str | None


def diagnose(system: SystemInfo, limits: Limits) -> Diagnosis:
    """Make all checks that are possible. The findings are in the order of the checks."""
    findings: list[Finding] = []
    made = ["redis-reachable"]
    if system.error is not None:
        remedy = (
            "check that Redis runs, that DARKROOM_REDIS_URL names it, and that its user may run INFO and darkroom's "
            "commands"
        )
        findings.append(Finding("redis-reachable", _problem(system.error, remedy)))
    if system.redis is not None:
        made += REDIS_CHECKS
        for name, of_redis in REDIS_CHECKS.items():
            findings += [Finding(name, symptom) for symptom in of_redis(system.redis)]
    if system.ledger is not None:
        made += LEDGER_CHECKS
        for name, of_ledger in LEDGER_CHECKS.items():
            findings += [Finding(name, symptom) for symptom in of_ledger(system.ledger, limits)]
    return Diagnosis(findings, made, [name for name in (*REDIS_CHECKS, *LEDGER_CHECKS) if name not in made])


# -- Redis -------------------------------------------------------------------------------------------------------------


def redis_version(server: RedisInfo) -> Iterator[Symptom]:
    if server.version[:2] < OLDEST_REDIS:
        seen, oldest = ".".join(map(str, server.version)), ".".join(map(str, OLDEST_REDIS))
        yield _problem(f"Redis is version {seen}", f"use Redis {oldest} or newer: scripts need its commands")


def cluster_mode(server: RedisInfo) -> Iterator[Symptom]:
    if server.clustered:
        yield _problem(
            "Redis runs in cluster mode",
            "use a single Redis, with or without replicas: scripts access keys of many slots",
        )


def append_only_file(server: RedisInfo) -> Iterator[Symptom]:
    if not server.append_only:
        yield _problem(
            "the append-only file is off: accepted jobs are lost when Redis restarts",
            "set `appendonly yes` in redis.conf, and by CONFIG SET on the running server",
        )
    elif server.append_error is not None:
        yield _problem(
            f"the append-only file cannot be written: {server.append_error}",
            "check Redis' data folder for a full or failing disk",
        )


def redis_users(server: RedisInfo) -> Iterator[Symptom]:
    """A limited user `default`: https://github.com/redis/redis/issues/14541."""
    if server.default_user_is_limited:
        yield Symptom(
            Severity.WARNING if server.version[:2] < LOADS_AS_DEFAULT_USER else Severity.PROBLEM,
            "Redis' user `default` may not run every command: Redis 7.0 and later load the append-only file as this "
            "user, and drop all transactions and scripts in it when they restart",
            "set `user default off resetpass ~* &* +@all` in the file of users, before Redis is restarted "
            "(docs/operations.md, Upgrade)",
        )


def eviction(server: RedisInfo) -> Iterator[Symptom]:
    if server.eviction != "noeviction":
        yield _problem(
            f"maxmemory-policy is {server.eviction}: Redis deletes jobs when its memory is used up",
            "set `maxmemory-policy noeviction` in redis.conf, and by CONFIG SET on the running server",
        )


def memory(server: RedisInfo) -> Iterator[Symptom]:
    share = server.memory_used / server.memory_limit if server.memory_limit else 0.0
    if share > MEMORY_SHARE:
        yield _problem(
            f"Redis uses {share:.0%} of {server.memory_limited_by} ({_mib(server.memory_used)} of "
            f"{_mib(server.memory_limit)}); above {MEMORY_SHARE:.0%} submissions are refused (503)",
            "give Redis more memory (maxmemory), or find its other users; finished jobs leave it after 24 h",
        )


def slow_scripts(server: RedisInfo) -> Iterator[Symptom]:
    """The 99th percentile where Redis reports it (7.0), else the mean: of all scripts since the server started."""
    for cost in server.costs:
        measured, name = (cost.mean_ms, "mean") if cost.p99_ms is None else (cost.p99_ms, "99th percentile")
        if cost.calls >= SLOW_MIN_CALLS and measured > SLOW_SCRIPT_MS:
            yield Symptom(
                Severity.WARNING,
                f"scripts ({cost.command}) take {measured:.1f} ms ({name} of {cost.calls} calls since Redis started); "
                f"more than {SLOW_SCRIPT_MS:g} ms is slow",
                "SLOWLOG GET names the script; give Redis a core of its own and look for its other users. CONFIG "
                "RESETSTAT resets the figures",
            )


# -- the ledger --------------------------------------------------------------------------------------------------------


def pools(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    if not ledger.pools:
        yield _problem(
            "no worker pool has been announced: every submission is refused (503, no-pool)",
            "start `darkroom up` or apply a WorkerPool, or correct DARKROOM_REDIS_URL and DARKROOM_NAMESPACE",
        )


def lost_data(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    if ledger.loss is not None:
        yield _problem(
            f"Redis restarted with less data than before: it lost {ledger.loss.described}",
            "`darkroom audit --repair` repairs the remaining jobs and acknowledges the loss; jobs that were "
            "accepted in "
            "that time and are unknown now must be submitted again. Check that Redis loads its whole file "
            "(append-only-file, redis-users)",
        )


def workers(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    """Pools that have jobs and no worker."""
    for pool in ledger.pools:
        here = [worker for worker in ledger.workers if worker.pool == pool.name]
        oldest = max((each.seconds for each in (pool.waiting, pool.pushed) if each), default=0.0)
        if any(worker.at_work for worker in here) or oldest < limits.scaling_s:
            continue
        states = ", ".join(sorted(worker.state for worker in here)) or "none registered"
        yield _problem(
            f"pool {pool.name} has {pool.backlog} jobs, one for {_ago(oldest)}, and no ready worker ({states})",
            "read the worker's log: its models may not load; in a cluster, check that its pod has a GPU",
        )


def faulty_workers(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    for worker in ledger.workers:
        if worker.state == "faulty":
            yield _problem(
                f"worker {worker.name} of pool {worker.pool} is faulty: its device or a model failed repeatedly",
                "read its log (`fault`, `proof_failed`), check the machine's GPU and the model's files; the worker is "
                "probed after a pause, and is ready again once its proof run succeeds",
            )


def silent_workers(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    for worker in ledger.workers:
        if worker.seen_s > limits.worker_silent_s:
            yield Symptom(
                Severity.WARNING,
                f"worker {worker.name} of pool {worker.pool} sent no heartbeat for {_ago(worker.seen_s)}",
                "if it terminated, start another one: its job is requeued automatically. Else check its "
                "connection to Redis",
            )


def deaf_workers(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    for worker in ledger.workers:
        if worker.silent:
            yield _problem(
                f"worker {worker.name} of pool {worker.pool} was ready {_ago(worker.seen_s)} ago and "
                f"consumes no messages: it claimed none of {worker.canaries} canaries in {limits.canary_s:g} s",
                "restart it; if its queue was cancelled manually, `celery control add_consumer` adds it again",
            )


def stuck_jobs(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    """Jobs that wait beside an idle worker, or whose lease or time is overdue."""
    for pool in ledger.pools:
        idle = sum(worker.idle for worker in ledger.workers if worker.pool == pool.name)
        waits = pool.pushed or pool.waiting
        if idle and waits is not None and waits.seconds > limits.stuck_s:
            yield _problem(
                f"job {waits.job} has waited in pool {pool.name} for {_ago(waits.seconds)} beside {idle} idle workers",
                "check that the workers consume messages (deaf-workers), and that a courier runs (courier), "
                "which pushes "
                "lost messages again",
            )
        if pool.lapsed is not None and pool.lapsed.seconds > limits.lapsed_s:
            yield _problem(
                f"job {pool.lapsed.job} of pool {pool.name} is running, and its lease lapsed "
                f"{_ago(pool.lapsed.seconds)} ago",
                "start a courier: it requeues jobs whose worker is lost",
            )
        if pool.overdue is not None and pool.overdue.seconds > limits.stuck_s:
            yield _problem(
                f"job {pool.overdue.job} of pool {pool.name} was due again {_ago(pool.overdue.seconds)} ago",
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
                f"{_ago(dropped.seconds)} ago ({dropped.reason})",
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
            yield _problem(f"{seen}: submissions are refused (429)", remedy)
        elif pool.backlog >= BACKLOG_SHARE * limits.backlog:
            yield Symptom(Severity.WARNING, f"{seen}: soon submissions will be refused", remedy)
    remedy = (
        "add workers, or cancel large jobs; DARKROOM_BACKLOG_BYTES of submit is the limit, which Redis' memory bounds"
    )
    seen = f"unfinished jobs take {_mib(ledger.unfinished_bytes)} of {_mib(limits.backlog_bytes)}"
    if ledger.unfinished_bytes >= BACKLOG_SHARE * limits.backlog_bytes:
        yield Symptom(Severity.WARNING, f"{seen}: soon submissions will be refused (429)", remedy)


def clocks(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    """Clocks that differ from Redis', which times delays and leases; signatures carry the time of a part's own."""
    for clock in ledger.clocks:
        if abs(clock.ahead_s) > limits.clock_s and clock.age_s <= limits.clock_age_s:
            differs = f"{_ago(abs(clock.ahead_s))} {'ahead of' if clock.ahead_s > 0 else 'behind'} Redis'"
            yield _problem(
                f"the clock of {clock.part} was {differs}, {_ago(clock.age_s)} ago",
                "synchronise the clocks of both machines (NTP): job ids, links to pictures, signatures of webhooks and "
                "deadlines that callers give as a time depend on them",
            )
    back = ledger.set_back
    if back is not None and back.age_s <= limits.clock_age_s:
        yield Symptom(
            Severity.WARNING,
            f"the clock of Redis was set back by {_ago(-back.ahead_s)}, {_ago(back.age_s)} ago",
            "synchronise it (NTP) by slewing; due times were brought forward, and times of jobs may overlap",
        )


def courier(ledger: LedgerInfo, limits: Limits) -> Iterator[Symptom]:
    for pool in ledger.pools:
        silent_s = pool.announced_s if pool.courier_seen_s is None else pool.courier_seen_s
        if silent_s > limits.courier_silent_s:
            since = f"for {_ago(silent_s)}" if pool.courier_seen_s is not None else "since it was announced"
            yield _problem(
                f"no courier has visited pool {pool.name} {since}",
                "start a courier, or read its log: without it no event is published, and no lost job is recovered",
            )


def sink(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    """Terminal events that are not applied: never posted, refused by the sink, or accepted and dropped by it."""
    unposted = [job for job in ledger.unapplied if job.takes == 0]
    refused = [job for job in ledger.unapplied if job.refused and job.refused >= job.takes - 1]
    dropped = [job for job in ledger.unapplied if job not in unposted and job not in refused]
    if refused:
        yield _problem(
            f"the sink refuses: {_ends(refused, 'applied')}",
            "check that K_SINK of the courier names a sink that runs and responds with 2xx; its responses are in "
            "the courier's log",
        )
    if dropped:
        yield _problem(
            f"the sink accepts events and drops them: {_ends(dropped, 'applied')}, although it accepted them",
            "check that the sink forwards events to `POST /events` of the result function; with a Knative Broker, that "
            "its Trigger is ready and the subscriber responds with 2xx",
        )
    if unposted:
        yield _problem(f"no courier posts: {_ends(unposted, 'applied')}", "start a courier, or read its log")


def history(ledger: LedgerInfo, _limits: Limits) -> Iterator[Symptom]:
    """Terminal jobs that are not in the database yet: Redis stores them until then."""
    if ledger.unarchived:
        yield _problem(
            f"the history is behind: {_ends(ledger.unarchived, 'archived')}",
            "check that the database of DARKROOM_DATABASE_URL accepts connections and has space, and that a courier "
            "runs, and read its log",
        )


REDIS_CHECKS: Mapping[str, Callable[[RedisInfo], Iterator[Symptom]]] = {
    "redis-version": redis_version,
    "cluster-mode": cluster_mode,
    "append-only-file": append_only_file,
    "redis-users": redis_users,
    "eviction": eviction,
    "memory": memory,
    "slow-scripts": slow_scripts,
}
"""The checks of Redis' own report."""

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


def _problem(seen: str, remedy: str) -> Symptom:
    return Symptom(Severity.PROBLEM, seen, remedy)


def _ends(overdue: Sequence[OverdueJob], wanted: str) -> str:
    oldest = max(overdue, key=lambda each: each.seconds)
    many = f"the ends of {len(overdue)} jobs are" if len(overdue) > 1 else "the end of one job is"
    return f"{many} not {wanted}, that of {oldest.job} for {_ago(oldest.seconds)}"


def _ago(seconds: float) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.0f} h"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
