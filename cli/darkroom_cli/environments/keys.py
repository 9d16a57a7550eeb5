"""`darkroom env NAME keys|info|flush`: the keys of an environment in Redis.

Only keys with the environment's prefix are listed or deleted. They are found by SCAN, which does not block Redis. No
command here needs more rights in Redis than a part has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from darkroom_cli.environments.environment import ActiveEnvironment, check_redis
from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.terminal.output import Output

if TYPE_CHECKING:
    import redis

BATCH = 500
"""Keys that one call finds or deletes; a call takes some milliseconds."""

MEBIBYTE = 1024 * 1024


def keys(active: ActiveEnvironment, output: Output, *, dry_run: bool) -> int:
    """List the environment's keys."""
    if dry_run:
        output.result(f"would list the keys {_pattern(active)} in {active.where}, by SCAN")
        return DONE
    with _connected(active) as client:
        found = 0
        for key in _keys(client, active):
            found += 1
            name = key.decode(errors="backslashreplace")
            output.result(name)
            output.record({"key": name})
    output.info(f"{found} keys of {active.environment.name} in {active.where}")
    return DONE


def info(active: ActiveEnvironment, output: Output, *, dry_run: bool) -> int:
    """Show the number of keys, and the memory of the server."""
    if dry_run:
        output.result(f"would ask for INFO and DBSIZE, and count the keys {_pattern(active)} in {active.where}")
        return DONE
    with _connected(active) as client:
        own = sum(1 for _ in _keys(client, active))
        everything = int(client.dbsize())
        details = {**client.info("server"), **client.info("memory")}
    used, limit = int(details["used_memory"]), int(details["maxmemory"])
    output.result(
        f"{active.where}, Redis {details['redis_version']}\n"
        f"keys of {active.environment.namespace}: {own}\n"
        f"keys in the database: {everything}\n"
        f"memory of the server: {used / MEBIBYTE:.1f} MiB of {_megabytes(limit)}"
    )
    output.record({"keys": own, "dbsize": everything, "used_memory": used, "maxmemory": limit})
    return DONE


def flush(active: ActiveEnvironment, output: Output, *, yes: bool, dry_run: bool) -> int:
    """Delete the environment's keys after confirmation. The list of pools is kept for running parts, and so is the
    epoch: the ledger counts as emptied, not as lost.
    """
    if dry_run:
        output.result(f"would ask, then delete the keys {_pattern(active)} in {active.where}, by SCAN and UNLINK")
        return DONE
    from darkroom.ledger import calls
    from darkroom.ledger.client import Ledger
    from darkroom.ledger.keys import Keys

    epoch = Keys(active.environment.namespace).epoch.encode()
    with _connected(active) as client:
        count = sum(key != epoch for key in _keys(client, active))
        output.info(f"{count} keys of {active.environment.namespace} in {active.where}: jobs, queues, deliveries")
        if not yes and not _confirmed(active.environment.name, output):
            output.error("darkroom: no keys were deleted")
            return FAILED
        pools = _pools(client, active.environment.namespace)
        deleted = 0
        batch: list[bytes] = []
        for key in (each for each in _keys(client, active) if each != epoch):
            batch.append(key)
            if len(batch) == BATCH:
                deleted += client.unlink(*batch)
                batch.clear()
        if batch:
            deleted += client.unlink(*batch)
        ledger = Ledger(client, active.environment.namespace)
        for pool, models in pools.items():
            ledger.run(calls.announce_pool(pool, models=models))
    output.result(f"deleted {deleted} keys of {active.environment.name}; pictures and the history are kept")
    output.record({"deleted": deleted})
    return DONE


@contextmanager
def _connected(active: ActiveEnvironment) -> Iterator[redis.Redis]:
    from darkroom.ledger.connection import connect, translated

    check_redis(active)
    with connect(active.redis_url("operator")) as client, translated():
        yield client


def _pattern(active: ActiveEnvironment) -> str:
    return f"{active.environment.namespace}:*"


def _keys(client: redis.Redis, active: ActiveEnvironment) -> Iterator[bytes]:
    """Each key once; SCAN may return a key twice."""
    seen: set[bytes] = set()
    for key in client.scan_iter(match=_pattern(active), count=BATCH):
        if key not in seen:
            seen.add(key)
            yield key


def _pools(client: redis.Redis, namespace: str) -> dict[str, list[str]]:
    """The announced pools with their models."""
    from darkroom.ledger.keys import Keys

    names = Keys(namespace)
    pools = [name.decode() for name in client.execute_command("SMEMBERS", names.pools)]
    models = {pool: client.execute_command("HGET", names.pool(pool), "models") for pool in pools}
    return {name: text.decode().split(",") for name, text in models.items() if text}


def _confirmed(name: str, output: Output) -> bool:
    output.error(f"Type {name} to confirm (--yes skips this question):")
    return sys.stdin.readline().strip() == name


def _megabytes(limit: int) -> str:
    return f"{limit / MEBIBYTE:.0f} MiB" if limit else "all memory of the machine"
