"""What the doctor finds in what was observed: one function per check, and the table of them.

`examination.py` observes; nothing here reads anything, so a check is a rule with its threshold. Each finding says what
was seen and what to do about it (`darkroom doctor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from darkroom.ledger.calls import BACKLOG_BYTES, BACKLOG_LIMIT
from darkroom.ledger.epochs import DataLoss

OLDEST_REDIS = (6, 2)
"""The ledger keeps to the commands of this version."""

LOADS_AS_DEFAULT_USER = (7, 0)
"""From this version on Redis refuses what the user `default` may not run when it loads its append-only file."""

MEMORY_SHARE = 0.8
"""Above this submissions are refused (`Memory.high`)."""

BACKLOG_SHARE = 0.8
"""A backlog is nearly full from here: time to act before submissions are refused."""

MINUTE_S, HOUR_S = 60, 3600

SLOW_SCRIPT_MS = 5.0
"""While a script runs nobody else is served; ours take a fifth of a millisecond, and none should take this long."""

SLOW_MIN_CALLS = 100
"""Of fewer calls a percentile says nothing: one hiccup of the machine would be all of it."""


class Severity(StrEnum):
    """`PROBLEM`: jobs are lost, refused or stuck, or will be. `WARNING`: look at it before it becomes one."""

    PROBLEM = "problem"
    WARNING = "warning"


@dataclass(frozen=True)
class Symptom:
    """What a check saw, and what to do about it."""

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
    """The findings, the checks that were made, and those that could not be made."""

    findings: Sequence[Finding]
    made: Sequence[str]
    not_made: Sequence[str]


@dataclass(frozen=True)
class Limits:
    """From when on something is a finding. Times are in seconds."""

    stuck_s: float = 30
    """A job that waits this long beside an idle worker is stuck; a message reaches one in milliseconds."""

    lapsed_s: float = 30
    """A lease that lapsed this long ago should have been reaped: after an outage that takes up to one lease, 15 s."""

    untold_s: float = 60
    """An end should be applied and archived by then: what a sink lost is posted again after 30 s."""

    courier_silent_s: float = 15
    """A courier looks after each pool once a second; it pauses for 5 s at most while something fails."""

    worker_silent_s: float = 15
    """A worker says every 5 s what it is."""

    clock_s: float = 10
    """A clock may differ from Redis' by this: a call that carries its time may take as long."""

    clock_age_s: float = 600
    """A difference that was seen longer ago is no finding: the clock may be right by now."""

    scaling_s: float = 120
    """Jobs may wait this long for a first worker: a pod with a GPU takes its time."""

    foreign_s: float = 24 * HOUR_S
    """For so long a foreign message that was dropped is reported."""

    canary_s: float = 10
    """A worker that consumes answers a canary in milliseconds; one that was just disconnected needs some seconds."""

    backlog: int = BACKLOG_LIMIT
    """Submit's own limit (DARKROOM_BACKLOG_LIMIT)."""

    backlog_bytes: int = BACKLOG_BYTES
    """Submit's own limit (DARKROOM_BACKLOG_BYTES)."""


@dataclass(frozen=True)
class Cost:
    """What a command that runs scripts took so far: times in milliseconds; `p99` is None before Redis 7."""

    command: str
    calls: int
    mean_ms: float
    p99_ms: float | None


@dataclass(frozen=True)
class Server:
    """What Redis says of itself (INFO). Memory is in bytes; `memory_limit` is the machine's where Redis has none."""

    version: tuple[int, ...]
    clustered: bool
    append_only: bool
    append_error: str | None
    eviction: str
    default_user_is_limited: bool
    memory_used: int
    memory_limit: int
    memory_limited_by: str
    costs: Sequence[Cost]


@dataclass(frozen=True)
class Waiting:
    """The oldest job of one of a pool's sets: since when it waits there, or what is overdue, in seconds."""

    job: str
    seconds: float


@dataclass(frozen=True)
class Pool:
    """A pool at one moment. `courier_seen_s`: how long ago a courier looked after it, or None if never."""

    name: str
    announced_s: float
    courier_seen_s: float | None
    backlog: int
    pushed: Waiting | None
    waiting: Waiting | None
    overdue: Waiting | None
    lapsed: Waiting | None
    foreign: Dropped
    foreign_listed: int


@dataclass(frozen=True)
class Dropped:
    """The foreign messages that a pool's workers dropped, ever; how long ago (s) and why the last of them."""

    count: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class Worker:
    """A registered worker. `silent`: it was idle all the time, and took none of `canaries` canaries."""

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
class Overdue:
    """An ended job that is still to be told, or to be archived: how long ago it ended, how often it was taken for that,
    and which of these the other side refused last (0: none).
    """

    job: str
    seconds: float
    takes: int
    refused: int


@dataclass(frozen=True)
class Clock:
    """How many seconds a part's clock was ahead of Redis' (behind: below 0), `age_s` seconds ago."""

    part: str
    ahead_s: float
    age_s: float


@dataclass(frozen=True)
class House:
    """What the ledger holds, as far as it matters here."""

    pools: Sequence[Pool]
    workers: Sequence[Worker]
    untold: Sequence[Overdue]
    unarchived: Sequence[Overdue]
    loss: DataLoss | None
    unfinished_bytes: int = 0
    clocks: Sequence[Clock] = ()
    set_back: Clock | None = None
    """By how much Redis' own clock was set back, and when."""


@dataclass(frozen=True)
class Observation:
    """All that was observed. Where `server` or `house` is None it could not be; `trouble` says why."""

    server: Server | None
    house: House | None
    trouble: str | None


def diagnose(observation: Observation, limits: Limits) -> Diagnosis:
    """What is wrong, in the order of the checks."""
    findings: list[Finding] = []
    made = ["redis-reachable"]
    if observation.trouble is not None:
        remedy = (
            "see that Redis runs, that DARKROOM_REDIS_URL names it, and that its user may run INFO and our commands"
        )
        findings.append(Finding("redis-reachable", _problem(observation.trouble, remedy)))
    if observation.server is not None:
        made += SERVER_CHECKS
        for name, of_server in SERVER_CHECKS.items():
            findings += [Finding(name, symptom) for symptom in of_server(observation.server)]
    if observation.house is not None:
        made += HOUSE_CHECKS
        for name, of_house in HOUSE_CHECKS.items():
            findings += [Finding(name, symptom) for symptom in of_house(observation.house, limits)]
    return Diagnosis(findings, made, [name for name in (*SERVER_CHECKS, *HOUSE_CHECKS) if name not in made])


# -- Redis -------------------------------------------------------------------------------------------------------------


def redis_version(server: Server) -> Iterator[Symptom]:
    if server.version[:2] < OLDEST_REDIS:
        seen, oldest = ".".join(map(str, server.version)), ".".join(map(str, OLDEST_REDIS))
        yield _problem(f"Redis is version {seen}", f"use Redis {oldest} or newer: scripts need its commands")


def cluster_mode(server: Server) -> Iterator[Symptom]:
    if server.clustered:
        yield _problem(
            "Redis runs in cluster mode",
            "use one Redis, with replicas if you like: a script touches keys of many slots",
        )


def append_only_file(server: Server) -> Iterator[Symptom]:
    if not server.append_only:
        yield _problem(
            "the append-only file is off: a restart of Redis forgets jobs that were accepted",
            "appendonly yes in redis.conf, and by CONFIG SET on the running server",
        )
    elif server.append_error is not None:
        yield _problem(
            f"the append-only file cannot be written: {server.append_error}",
            "look for a full or failing disk under Redis' data folder",
        )


def redis_users(server: Server) -> Iterator[Symptom]:
    """As https://github.com/redis/redis/issues/14541 describes it."""
    if server.default_user_is_limited:
        yield Symptom(
            Severity.WARNING if server.version[:2] < LOADS_AS_DEFAULT_USER else Severity.PROBLEM,
            "Redis' user `default` may not run every command: Redis 7.0 and later load the append-only file as this "
            "user, and lose all transactions and scripts in it when they restart",
            "`user default off resetpass ~* &* +@all` in the file of users, before Redis is restarted "
            "(docs/operations.md, Upgrade)",
        )


def eviction(server: Server) -> Iterator[Symptom]:
    if server.eviction != "noeviction":
        yield _problem(
            f"maxmemory-policy is {server.eviction}: Redis throws jobs away when its memory is used up",
            "maxmemory-policy noeviction in redis.conf, and by CONFIG SET on the running server",
        )


def memory(server: Server) -> Iterator[Symptom]:
    share = server.memory_used / server.memory_limit if server.memory_limit else 0.0
    if share > MEMORY_SHARE:
        yield _problem(
            f"Redis uses {share:.0%} of {server.memory_limited_by} ({_mib(server.memory_used)} of "
            f"{_mib(server.memory_limit)}); above {MEMORY_SHARE:.0%} submissions are refused (503)",
            "give Redis more memory (maxmemory), or find who else uses it; ended jobs leave it after 24 h",
        )


def slow_scripts(server: Server) -> Iterator[Symptom]:
    """The 99th percentile where Redis tells it (7.0), else the mean: of all scripts since the server's start."""
    for cost in server.costs:
        measured, name = (cost.mean_ms, "mean") if cost.p99_ms is None else (cost.p99_ms, "99th percentile")
        if cost.calls >= SLOW_MIN_CALLS and measured > SLOW_SCRIPT_MS:
            yield Symptom(
                Severity.WARNING,
                f"scripts ({cost.command}) take {measured:.1f} ms ({name} of {cost.calls} calls since Redis started); "
                f"more than {SLOW_SCRIPT_MS:g} ms is slow",
                "SLOWLOG GET names the script; give Redis a core of its own, look for other users of it, then CONFIG "
                "RESETSTAT counts anew",
            )


# -- the darkroom ------------------------------------------------------------------------------------------------------


def pools(house: House, _limits: Limits) -> Iterator[Symptom]:
    if not house.pools:
        yield _problem(
            "no worker pool was ever announced: every submission is refused (503, no-pool)",
            "start `darkroom up` or apply a WorkerPool; or look elsewhere: DARKROOM_REDIS_URL, DARKROOM_NAMESPACE",
        )


def lost_data(house: House, _limits: Limits) -> Iterator[Symptom]:
    if house.loss is not None:
        yield _problem(
            f"Redis came back with less than it had: it lost {house.loss.described}",
            "`darkroom audit --repair` repairs what is left and acknowledges the loss; jobs that were accepted in that "
            "time and are unknown now must be submitted again. See that Redis keeps its file (append-only-file, "
            "redis-users)",
        )


def workers(house: House, limits: Limits) -> Iterator[Symptom]:
    """Pools with work and nobody to do it."""
    for pool in house.pools:
        here = [worker for worker in house.workers if worker.pool == pool.name]
        oldest = max((each.seconds for each in (pool.waiting, pool.pushed) if each), default=0.0)
        if any(worker.at_work for worker in here) or oldest < limits.scaling_s:
            continue
        states = ", ".join(sorted(worker.state for worker in here)) or "there is none"
        yield _problem(
            f"pool {pool.name} has {pool.backlog} jobs, one since {_ago(oldest)}, and no worker at work ({states})",
            "look at the worker's own log: its models may not load; in a cluster also whether its pod was given a GPU",
        )


def faulty_workers(house: House, _limits: Limits) -> Iterator[Symptom]:
    for worker in house.workers:
        if worker.state == "faulty":
            yield _problem(
                f"worker {worker.name} of pool {worker.pool} took itself out: its device or a model failed repeatedly",
                "read its log (`fault`, `proof_failed`), check the machine's GPU and the model's files; the worker is "
                "probed after a pause, and is back once its proof run succeeds",
            )


def silent_workers(house: House, limits: Limits) -> Iterator[Symptom]:
    for worker in house.workers:
        if worker.seen_s > limits.worker_silent_s:
            yield Symptom(
                Severity.WARNING,
                f"worker {worker.name} of pool {worker.pool} gave no sign of life for {_ago(worker.seen_s)}",
                "if it died, start another: what it ran is given back by itself. Else see that it reaches Redis",
            )


def deaf_workers(house: House, limits: Limits) -> Iterator[Symptom]:
    for worker in house.workers:
        if worker.silent:
            yield _problem(
                f"worker {worker.name} of pool {worker.pool} said {_ago(worker.seen_s)} ago that it is ready and "
                f"takes nothing: none of {worker.canaries} canaries in {limits.canary_s:g} s",
                "restart it; if its queue was cancelled by hand, `celery control add_consumer` brings it back",
            )


def stuck_jobs(house: House, limits: Limits) -> Iterator[Symptom]:
    """Jobs that wait beside an idle worker, or that the clock has passed by."""
    for pool in house.pools:
        idle = sum(worker.idle for worker in house.workers if worker.pool == pool.name)
        waits = pool.pushed or pool.waiting
        if idle and waits is not None and waits.seconds > limits.stuck_s:
            yield _problem(
                f"job {waits.job} waits in pool {pool.name} for {_ago(waits.seconds)} beside {idle} idle workers",
                "see whether the workers take messages (deaf-workers), and a courier runs (courier) that pushes again "
                "what was lost",
            )
        if pool.lapsed is not None and pool.lapsed.seconds > limits.lapsed_s:
            yield _problem(
                f"job {pool.lapsed.job} of pool {pool.name} counts as running, and its lease lapsed "
                f"{_ago(pool.lapsed.seconds)} ago",
                "start a courier: it gives back what lost its worker",
            )
        if pool.overdue is not None and pool.overdue.seconds > limits.stuck_s:
            yield _problem(
                f"job {pool.overdue.job} of pool {pool.name} was due again {_ago(pool.overdue.seconds)} ago",
                "start a courier: it moves due jobs into the backlog",
            )


def foreign_messages(house: House, limits: Limits) -> Iterator[Symptom]:
    """Messages that are no job's: those that were dropped lately, and those that still stand in a pool's list."""
    remedy = "find what else writes to this Redis under the prefix DARKROOM_NAMESPACE, and give it another database"
    for pool in house.pools:
        dropped = pool.foreign
        if dropped.count and dropped.seconds < limits.foreign_s:
            yield Symptom(
                Severity.WARNING,
                f"workers of pool {pool.name} dropped {dropped.count} messages that are no job's, the last "
                f"{_ago(dropped.seconds)} ago ({dropped.reason})",
                remedy,
            )
        if pool.foreign_listed:
            yield Symptom(
                Severity.WARNING,
                f"{pool.foreign_listed} messages in the list of pool {pool.name} are no job's; a worker will drop them",
                remedy,
            )


def backlog(house: House, limits: Limits) -> Iterator[Symptom]:
    remedy = "add workers to the pool, or cancel what nobody waits for; DARKROOM_BACKLOG_LIMIT of submit is the limit"
    for pool in house.pools:
        seen = f"{pool.backlog} of {limits.backlog} jobs wait in pool {pool.name}"
        if pool.backlog >= limits.backlog:
            yield _problem(f"{seen}: submissions are refused (429)", remedy)
        elif pool.backlog >= BACKLOG_SHARE * limits.backlog:
            yield Symptom(Severity.WARNING, f"{seen}: soon submissions will be refused", remedy)
    remedy = (
        "add workers, or cancel large jobs; DARKROOM_BACKLOG_BYTES of submit is the limit, and Redis' memory bounds it"
    )
    seen = f"unfinished jobs take {_mib(house.unfinished_bytes)} of {_mib(limits.backlog_bytes)}"
    if house.unfinished_bytes >= BACKLOG_SHARE * limits.backlog_bytes:
        yield Symptom(Severity.WARNING, f"{seen}: soon submissions will be refused (429)", remedy)


def clocks(house: House, limits: Limits) -> Iterator[Symptom]:
    """Delays and leases are counted by Redis' clock alone; what a part signs bears the time of its own."""
    for clock in house.clocks:
        if abs(clock.ahead_s) > limits.clock_s and clock.age_s <= limits.clock_age_s:
            differs = f"{_ago(abs(clock.ahead_s))} {'ahead of' if clock.ahead_s > 0 else 'behind'} Redis'"
            yield _problem(
                f"the clock of {clock.part} was {differs}, {_ago(clock.age_s)} ago",
                "synchronise the clocks of both machines (NTP): job ids, links to pictures, signatures of webhooks and "
                "deadlines that callers give as a time depend on them",
            )
    back = house.set_back
    if back is not None and back.age_s <= limits.clock_age_s:
        yield Symptom(
            Severity.WARNING,
            f"the clock of Redis was set back by {_ago(-back.ahead_s)}, {_ago(back.age_s)} ago",
            "keep it synchronised (NTP) by slewing; what was due was brought forward, and times of jobs may overlap",
        )


def courier(house: House, limits: Limits) -> Iterator[Symptom]:
    for pool in house.pools:
        silent_s = pool.announced_s if pool.courier_seen_s is None else pool.courier_seen_s
        if silent_s > limits.courier_silent_s:
            since = f"for {_ago(silent_s)}" if pool.courier_seen_s is not None else "since it was announced"
            yield _problem(
                f"no courier has looked after pool {pool.name} {since}",
                "start a courier, or read its log: without it no end is told, and no lost job recovered",
            )


def sink(house: House, _limits: Limits) -> Iterator[Symptom]:
    """Ends that nobody applied, by what became of them: never posted, refused by the sink, or taken and forgotten."""
    unposted = [untold for untold in house.untold if untold.takes == 0]
    refused = [untold for untold in house.untold if untold.refused and untold.refused >= untold.takes - 1]
    forgotten = [untold for untold in house.untold if untold not in unposted and untold not in refused]
    if refused:
        yield _problem(
            f"the sink refuses: {_ends(refused, 'applied')}",
            "see that K_SINK of the courier names a sink that runs and answers 2xx; the courier's log has its answers",
        )
    if forgotten:
        yield _problem(
            f"the sink accepts and forgets: {_ends(forgotten, 'applied')}, though it took them",
            "see that what the sink takes reaches `POST /events` of the result function; with a Knative Broker, that "
            "its Trigger is ready and the subscriber answers 2xx",
        )
    if unposted:
        yield _problem(
            f"nobody posts: {_ends(unposted, 'applied')}, and no courier took them", "start a courier, or read its log"
        )


def history(house: House, _limits: Limits) -> Iterator[Symptom]:
    """Ended jobs that are in no database yet: until then Redis keeps them."""
    if house.unarchived:
        yield _problem(
            f"the history is behind: {_ends(house.unarchived, 'archived')}",
            "see that the database of DARKROOM_DATABASE_URL takes connections and has room, and that a courier runs; "
            "its log says more",
        )


SERVER_CHECKS: Mapping[str, Callable[[Server], Iterator[Symptom]]] = {
    "redis-version": redis_version,
    "cluster-mode": cluster_mode,
    "append-only-file": append_only_file,
    "redis-users": redis_users,
    "eviction": eviction,
    "memory": memory,
    "slow-scripts": slow_scripts,
}
"""Made of what Redis says of itself."""

HOUSE_CHECKS: Mapping[str, Callable[[House, Limits], Iterator[Symptom]]] = {
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
"""Made of what the ledger holds."""


def _problem(seen: str, remedy: str) -> Symptom:
    return Symptom(Severity.PROBLEM, seen, remedy)


def _ends(overdue: Sequence[Overdue], wanted: str) -> str:
    oldest = max(overdue, key=lambda each: each.seconds)
    many = f"the ends of {len(overdue)} jobs are" if len(overdue) > 1 else "the end of one job is"
    return f"{many} not {wanted}, that of {oldest.job} for {_ago(oldest.seconds)}"


def _ago(seconds: float) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.0f} h"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
