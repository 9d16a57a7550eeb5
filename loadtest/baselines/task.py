"""An empty Celery task on the Redis broker, with the settings of darkroom's worker that affect speed.

`python -m baselines.task` is its worker. `bench/worker.py` measures its throughput, `bench/latency.py` calls it and
waits for the result, and `seed_submit` queues calls.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from celery import Celery, shared_task
from darkroom.settings import LedgerSettings, load

QUEUE = "baseline"

WORKER_SETTINGS: Mapping[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": False,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "worker_concurrency": 1,
    "worker_pool_start_method": "spawn",
}
"""Acknowledgement, prefetch and execution pool as in `darkroom_worker.celery_app`, but with plain prefork."""


@shared_task(name="baseline.run")  # type: ignore[untyped-decorator]  # Celery has no types
def run(_event: object) -> str:
    """Do nothing, to measure the round trip."""
    return "done"


def make_app(broker_url: str, *, keeps_results: bool) -> Celery:
    """The Celery app. `keeps_results`: store results in the Redis backend."""
    app = Celery("baseline", broker=broker_url, backend=broker_url if keeps_results else None, set_as_current=True)
    app.conf.update(
        WORKER_SETTINGS,
        imports=[__spec__.name],
        task_default_queue=QUEUE,
        task_ignore_result=not keeps_results,
        accept_content=["json"],
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    return app


def main() -> None:
    """Run a worker until a signal arrives."""
    url = load(LedgerSettings).redis_url.get_secret_value()
    app = make_app(url, keeps_results="--results" in sys.argv)
    app.worker_main(["worker", "--loglevel=WARNING", "--without-gossip", "--without-mingle"])


if __name__ == "__main__":
    main()
