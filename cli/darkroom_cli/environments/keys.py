"""`darkroom env NAME keys|info|flush`: what an environment has in Redis.

Only keys of the environment's prefix are named or deleted, whatever else is in the database. They are found by SCAN,
which holds nobody up; nothing here needs more rights in Redis than a part has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from darkroom_cli.environments.environment import Entered, check_redis
from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.terminal.output import Output

if TYPE_CHECKING:
    import redis

BATCH = 500
"""Keys that one call finds or deletes: some milliseconds."""

MEBIBYTE = 1024 * 1024


def keys(entered: Entered, output: Output, *, dry_run: bool) -> int:
    """List the environment's keys."""
    if dry_run:
        output.result(f"would list the keys {_pattern(entered)} in {entered.where}, by SCAN")
        return DONE
    with _connected(entered) as client:
        found = 0
        for key in _keys(client, entered):
            found += 1
            name = key.decode(errors="backslashreplace")
            output.result(name)
            output.record({"key": name})
    output.say(f"{found} keys of {entered.environment.name} in {entered.where}")
    return DONE


def info(entered: Entered, output: Output, *, dry_run: bool) -> int:
    """Say how much is in Redis, of this environment and in all."""
    if dry_run:
        output.result(f"would ask for INFO and DBSIZE, and count the keys {_pattern(entered)} in {entered.where}")
        return DONE
    with _connected(entered) as client:
        own = sum(1 for _ in _keys(client, entered))
        everything = int(client.dbsize())
        said = {**client.info("server"), **client.info("memory")}
    used, limit = int(said["used_memory"]), int(said["maxmemory"])
    output.result(
        f"{entered.where}, Redis {said['redis_version']}\n"
        f"keys of {entered.environment.namespace}: {own}\n"
        f"keys in the database: {everything}\n"
        f"memory of the server: {used / MEBIBYTE:.1f} MiB of {_megabytes(limit)}"
    )
    output.record({"keys": own, "dbsize": everything, "used_memory": used, "maxmemory": limit})
    return DONE


def flush(entered: Entered, output: Output, *, yes: bool, dry_run: bool) -> int:
    """Delete the environment's keys, after asking. Which pools there are is kept, so that what runs goes on, and the
    epoch: the keys are deleted on purpose, and not lost.
    """
    if dry_run:
        output.result(f"would ask, then delete the keys {_pattern(entered)} in {entered.where}, by SCAN and UNLINK")
        return DONE
    from darkroom.ledger import calls
    from darkroom.ledger.client import Ledger
    from darkroom.ledger.keys import Keys

    epoch = Keys(entered.environment.namespace).epoch.encode()
    with _connected(entered) as client:
        count = sum(key != epoch for key in _keys(client, entered))
        output.say(f"{count} keys of {entered.environment.namespace} in {entered.where}: jobs, queues, deliveries")
        if not yes and not _agreed(entered.environment.name, output):
            output.complain("darkroom: nothing was deleted")
            return FAILED
        pools = _pools(client, entered.environment.namespace)
        deleted = 0
        batch: list[bytes] = []
        for key in (each for each in _keys(client, entered) if each != epoch):
            batch.append(key)
            if len(batch) == BATCH:
                deleted += client.unlink(*batch)
                batch.clear()
        if batch:
            deleted += client.unlink(*batch)
        ledger = Ledger(client, entered.environment.namespace)
        for pool, models in pools.items():
            ledger.run(calls.announce_pool(pool, models=models))
    output.result(f"deleted {deleted} keys of {entered.environment.name}; pictures and the history stay")
    output.record({"deleted": deleted})
    return DONE


@contextmanager
def _connected(entered: Entered) -> Iterator[redis.Redis]:
    from darkroom.ledger.connection import connect, translated

    check_redis(entered)
    with connect(entered.redis_url("operator")) as client, translated():
        yield client


def _pattern(entered: Entered) -> str:
    return f"{entered.environment.namespace}:*"


def _keys(client: redis.Redis, entered: Entered) -> Iterator[bytes]:
    """Each key once, though SCAN may find it twice."""
    seen: set[bytes] = set()
    for key in client.scan_iter(match=_pattern(entered), count=BATCH):
        if key not in seen:
            seen.add(key)
            yield key


def _pools(client: redis.Redis, namespace: str) -> dict[str, list[str]]:
    """The pools that are announced, with their models."""
    from darkroom.ledger.keys import Keys

    names = Keys(namespace)
    pools = [name.decode() for name in client.execute_command("SMEMBERS", names.pools)]
    models = {pool: client.execute_command("HGET", names.pool(pool), "models") for pool in pools}
    return {name: text.decode().split(",") for name, text in models.items() if text}


def _agreed(name: str, output: Output) -> bool:
    output.complain(f"Type {name} to delete them (--yes does not ask):")
    return sys.stdin.readline().strip() == name


def _megabytes(limit: int) -> str:
    return f"{limit / MEBIBYTE:.0f} MiB" if limit else "all that the machine has"
