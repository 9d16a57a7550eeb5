"""Stock Celery on Redis as its users run it for such jobs: the defaults with `acks_late`, one job at a time.

`python -m baselines.stock_celery` is a worker of it that can be struck at the same points as darkroom's
(`darkroom_loadtest.chaos.wounds`); `stock_storm` gives it jobs. A job that has ended is a line in the file that
STOCK_DONE names.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.worker.request import Request
from darkroom.settings import LedgerSettings, load
from darkroom_loadtest.chaos.wounds import Point, pass_point
from kombu.transport.redis import QoS

QUEUE = "stock"
TASK = "stock.run"
DONE_VARIABLE = "STOCK_DONE"


def make_app(broker_url: str) -> Celery:
    """The app, for workers and for who gives them jobs."""
    app = Celery("stock", broker=broker_url, set_as_current=False)
    app.conf.update(task_acks_late=True, task_default_queue=QUEUE, worker_concurrency=1)
    app.task(_run, name=TASK, bind=True)
    return app


def _run(self: Any, seconds: float) -> None:
    """Develop, store, say that it is done."""
    job_id = self.request.id
    pass_point(Point.DELIVERED, job_id)
    time.sleep(seconds)
    pass_point(Point.DEVELOPED, job_id)
    pass_point(Point.STORED, job_id)
    with Path(os.environ[DONE_VARIABLE]).open("a") as done:
        done.write(f"{job_id}\n")
    pass_point(Point.FINISHED, job_id)


def _mark() -> None:
    append, acknowledge = QoS.append, Request.acknowledge

    def marked_append(self: Any, message: Any, delivery_tag: str) -> None:
        if message.headers.get("task") == TASK:
            pass_point(Point.POPPED, message.headers["id"])
        append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def marked_acknowledge(self: Any) -> None:
        pass_point(Point.ACKNOWLEDGING, self.id)
        acknowledge(self)

    QoS.append = marked_append  # type: ignore[method-assign]
    Request.acknowledge = marked_acknowledge


def main() -> None:
    """A worker, until a signal comes."""
    _mark()
    app = make_app(load(LedgerSettings).redis_url.get_secret_value())
    app.worker_main(["worker", "--loglevel=WARNING", "--without-gossip", "--without-mingle"])


if __name__ == "__main__":
    main()
