"""`python -m darkroom_worker.health [--ready]`: the exec probe of a worker, for pod templates that name it.

The worker answers probes over HTTP (`parent/probes.py`), which costs no process.

It reads from the ledger whether a worker of this host and pool renewed its registration lately. Exit status 0 is yes, 1
is no. A faulty worker is alive, so that Kubernetes does not restart it before an operator has looked. While the ledger
is unavailable the worker counts as alive and as not ready.
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

TIMEOUT_S = 5.0

ACCEPTING = frozenset({WorkerState.READY, WorkerState.BUSY})


def main() -> int:
    """Run the probe and return the exit status."""
    try:
        settings = load(WorkerSettings)
    except SettingError as error:
        sys.stderr.write(f"darkroom_worker: {error}\n")
        return BAD_SETTING
    ready_only = "--ready" in sys.argv[1:]
    try:
        live = asyncio.run(_live_workers(settings))
    except (LedgerUnavailable, TimeoutError):
        sys.stderr.write("the ledger is unavailable\n")
        return 1 if ready_only else 0
    if ready_only:
        live = [worker for worker in live if worker.state in ACCEPTING]
    return 0 if live else 1


async def _live_workers(settings: WorkerSettings) -> list[WorkerRecord]:
    """The workers of this host and pool whose registration is current, by Redis' clock."""
    client = connect_async(settings.redis_url.get_secret_value())
    async with client, asyncio.timeout(TIMEOUT_S):
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
