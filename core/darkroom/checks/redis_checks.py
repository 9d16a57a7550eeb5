"""The checks of Redis itself: its version, persistence, users, memory and the duration of scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from darkroom.checks.symptoms import Severity, Symptom, mib, problem
from darkroom.checks.system import RedisInfo

OLDEST_REDIS = (6, 2)
"""The oldest version that has all commands of the ledger."""

LOADS_AS_DEFAULT_USER = (7, 0)
"""From this version on Redis loads its append-only file with the rights of the user `default`."""

MEMORY_SHARE = 0.8
"""Above this submissions are refused (`Memory.high`)."""

SLOW_SCRIPT_MS = 5.0
"""Redis serves no other client while a script runs; the ledger's take a fifth of a millisecond."""

SLOW_MIN_CALLS = 100
"""The fewest calls of which a percentile is significant: of fewer, one pause of the machine decides."""


def redis_version(server: RedisInfo) -> Iterator[Symptom]:
    if server.version[:2] < OLDEST_REDIS:
        seen, oldest = ".".join(map(str, server.version)), ".".join(map(str, OLDEST_REDIS))
        yield problem(f"Redis is version {seen}", f"use Redis {oldest} or newer: scripts need its commands")


def cluster_mode(server: RedisInfo) -> Iterator[Symptom]:
    if server.clustered:
        yield problem(
            "Redis runs in cluster mode",
            "use a single Redis, with or without replicas: scripts access keys of many slots",
        )


def append_only_file(server: RedisInfo) -> Iterator[Symptom]:
    if not server.append_only:
        yield problem(
            "the append-only file is off: accepted jobs are lost when Redis restarts",
            "set `appendonly yes` in redis.conf, and by CONFIG SET on the running server",
        )
    elif server.append_error is not None:
        yield problem(
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
        yield problem(
            f"maxmemory-policy is {server.eviction}: Redis deletes jobs when its memory is used up",
            "set `maxmemory-policy noeviction` in redis.conf, and by CONFIG SET on the running server",
        )


def memory(server: RedisInfo) -> Iterator[Symptom]:
    share = server.memory_used / server.memory_limit if server.memory_limit else 0.0
    if share > MEMORY_SHARE:
        yield problem(
            f"Redis uses {share:.0%} of {server.memory_limited_by} ({mib(server.memory_used)} of "
            f"{mib(server.memory_limit)}); above {MEMORY_SHARE:.0%} submissions are refused (503)",
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
