"""Submissions without a ledger: a FastAPI route that calls `task.delay` on the Redis broker.

The route is `async`, so `delay` blocks the loop; in the thread pool, where a plain `def` runs, it is slower still.
"""

from __future__ import annotations

from typing import Any

from darkroom.settings import LedgerSettings, load
from fastapi import FastAPI

from baselines import serving, task


def make_api(broker_url: str) -> FastAPI:
    """The API; the messages go to the queue of `task.py`."""
    celery = task.make_app(broker_url, keeps_results=False)
    run = celery.tasks[task.run.name]
    api = FastAPI()

    @api.post("/flux", status_code=202)
    async def submit(body: dict[str, Any]) -> dict[str, str]:
        return {"task_id": run.delay(body).id, "status": "pending"}

    @api.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return api


if __name__ == "__main__":
    serving.run(make_api(load(LedgerSettings).redis_url.get_secret_value()))
