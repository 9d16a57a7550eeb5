"""`python -m darkroom_worker.health [--ready]`: the exec probe of a worker, for pod templates that name it.

The worker answers probes over HTTP (`probes.py`), which costs no process.

It asks the ledger whether a worker of this host and pool gave a sign of life lately. Exit status 0 is yes, 1 is no. A
worker that is out as faulty is alive, so that it is not restarted before anybody has looked. A ledger that does not
answer says nothing about the worker: then it counts as alive, and not as ready.
"""

from __future__ import annotations

import asyncio
import platform
import sys

from darkroom.errors import LedgerUnavailable, SettingError
from darkroom.ledger import reads
from darkroom.ledger.calls import WORKER_TTL_MS, WorkerState
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import WorkerRecord
from darkroom.settings import load

from darkroom_worker.settings import BAD_SETTING, WorkerSettings

PATIENCE_S = 5.0

TAKING = frozenset({WorkerState.READY, WorkerState.BUSY})


def main() -> int:
    """Answers the exit status."""
    try:
        settings = load(WorkerSettings)
    except SettingError as error:
        sys.stderr.write(f"darkroom_worker: {error}\n")
        return BAD_SETTING
    asks_ready = "--ready" in sys.argv[1:]
    try:
        fresh = asyncio.run(_fresh(settings))
    except (LedgerUnavailable, TimeoutError):
        sys.stderr.write("the ledger does not answer\n")
        return 1 if asks_ready else 0
    if asks_ready:
        fresh = [worker for worker in fresh if worker.state in TAKING]
    return 0 if fresh else 1


async def _fresh(settings: WorkerSettings) -> list[WorkerRecord]:
    """The workers of this host and pool that gave a sign of life lately, by Redis' clock."""
    client = connect_async(settings.redis_url.get_secret_value())
    async with client, asyncio.timeout(PATIENCE_S):
        workers = await reads.workers(AsyncLedger(client, settings.namespace))
        seconds, _ = await client.time()
    return [
        worker
        for worker in workers
        if (worker.pod, worker.pool) == (platform.node(), settings.pool)
        and worker.seen > 1000 * seconds - WORKER_TTL_MS
    ]


if __name__ == "__main__":
    sys.exit(main())
