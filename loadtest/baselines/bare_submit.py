"""An upper bound of one Python process: bare Starlette, and one pipelined write to Redis per request.

No validation, no events, no idempotency; the record and the message are two commands in one round trip.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from darkroom.ledger.connection import connect_async
from darkroom.settings import LedgerSettings, load
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from baselines import serving


def make_app(redis_url: str) -> Starlette:
    """The application, with the ledger's connection pool."""
    client: Any = connect_async(redis_url)

    async def submit(request: Request) -> JSONResponse:
        body = await request.json()
        job_id = str(uuid.uuid4())
        pipeline = client.pipeline(transaction=False)
        pipeline.hset(f"bare:job:{job_id}", mapping={"state": "pending", "input": json.dumps(body["input"])})
        pipeline.lpush("bare:queue", job_id)
        await pipeline.execute()
        return JSONResponse({"task_id": job_id, "status": "pending"}, status_code=202)

    async def ready(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ready"})

    return Starlette(routes=[Route("/flux", submit, methods=["POST"]), Route("/readyz", ready)])


if __name__ == "__main__":
    serving.run(make_app(load(LedgerSettings).redis_url.get_secret_value()))
