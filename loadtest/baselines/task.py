"""A bare Celery task on the Redis broker, under the settings of darkroom's worker that bear on speed.

`python -m baselines.task` is a worker of it. `bench_worker` drains it, `bench_latency` calls it and waits for its
result, and `seed_submit` puts calls of it into the queue.
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
"""What acknowledges when, how much is taken in advance, and the execution pool: as `darkroom_worker.celery_app` has it.
The pool itself, there a kind of prefork with a watch on its child, is plain prefork here."""


@shared_task(name="baseline.run")  # type: ignore[untyped-decorator]  # Celery has no types
def run(_event: object) -> str:
    """Nothing to do: what remains is the way there and back."""
    return "done"


def make_app(broker_url: str, *, keeps_results: bool) -> Celery:
    """The Celery app. `keeps_results`: on the Redis backend, for who waits for them."""
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
    """A worker, until a signal comes."""
    url = load(LedgerSettings).redis_url.get_secret_value()
    app = make_app(url, keeps_results="--results" in sys.argv)
    app.worker_main(["worker", "--loglevel=WARNING", "--without-gossip", "--without-mingle"])


if __name__ == "__main__":
    main()
