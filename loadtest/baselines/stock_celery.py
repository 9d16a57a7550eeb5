"""Stock Celery on Redis with the usual settings for such jobs: the defaults with `acks_late`, one job at a time.

`python -m baselines.stock_celery` is a worker with fault injection at the same points as darkroom's
(`darkroom_loadtest.chaos.faults`); `stock_storm` submits jobs. A finished job is a line in the file of STOCK_DONE.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.worker.request import Request
from darkroom.settings import LedgerSettings, load
from darkroom_loadtest.chaos.faults import FaultPoint, pass_point
from kombu.transport.redis import QoS

QUEUE = "stock"
TASK = "stock.run"
DONE_VARIABLE = "STOCK_DONE"


def make_app(broker_url: str) -> Celery:
    """The app, for workers and clients."""
    app = Celery("stock", broker=broker_url, set_as_current=False)
    app.conf.update(task_acks_late=True, task_default_queue=QUEUE, worker_concurrency=1)
    app.task(_run, name=TASK, bind=True)
    return app


def _run(self: Any, seconds: float) -> None:
    """Run the job and record its end."""
    job_id = self.request.id
    pass_point(FaultPoint.DELIVERED, job_id)
    time.sleep(seconds)
    pass_point(FaultPoint.DEVELOPED, job_id)
    pass_point(FaultPoint.STORED, job_id)
    with Path(os.environ[DONE_VARIABLE]).open("a") as done:
        done.write(f"{job_id}\n")
    pass_point(FaultPoint.FINISHED, job_id)


def _mark() -> None:
    append, acknowledge = QoS.append, Request.acknowledge

    def marked_append(self: Any, message: Any, delivery_tag: str) -> None:
        if message.headers.get("task") == TASK:
            pass_point(FaultPoint.POPPED, message.headers["id"])
        append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def marked_acknowledge(self: Any) -> None:
        pass_point(FaultPoint.ACKNOWLEDGING, self.id)
        acknowledge(self)

    QoS.append = marked_append  # type: ignore[method-assign]
    Request.acknowledge = marked_acknowledge


def main() -> None:
    """Run a worker until a signal arrives."""
    _mark()
    app = make_app(load(LedgerSettings).redis_url.get_secret_value())
    app.worker_main(["worker", "--loglevel=WARNING", "--without-gossip", "--without-mingle"])


if __name__ == "__main__":
    main()
