"""Jobs: reads, lists, cancels and deletions.

Reads come from the ledger and, for older jobs, from the history (`darkroom.history.lookup`). Every read is scoped by
the caller's tenant.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from darkroom import logs
from darkroom.access.principals import Scope
from darkroom.artifacts import StoreUnavailable
from darkroom.errors import Gone, HistoryUnavailable, InvalidInput, LedgerUnavailable, NotEnded, NotFound
from darkroom.history.store import Tombstone
from darkroom.jobs import JobEvent, State, UnknownValue
from darkroom.ledger import reads
from darkroom.ledger.calls import Receipt, cancel
from darkroom.ledger.records import LogEntry
from darkroom.updates import celery_status
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.access import Open, tenant_of
from darkroom_functions.http.openapi import in_path, in_query, json_response
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.responses import JSON_TYPE, answer
from darkroom_functions.http.routes import ApiResponse, ApiRoute, checked_id
from darkroom_functions.resources import listing, views
from darkroom_functions.resources.schemas import CancelledBody, JobBody, JobsBody, ModelsBody, TaskBody
from darkroom_functions.resources.services import JobsServices
from darkroom_functions.resources.submissions import GRANTED, PREFER
from darkroom_functions.streams import wait

_log = logs.logger(__name__)


async def read_task(request: Request) -> Response:
    """`GET /tasks/{id}`."""
    services: JobsServices = request.app.state.services
    job_id = checked_id(request.path_params["id"])
    async with ledger_timeout():
        record = await services.lookup.job(job_id, tenant=tenant_of(request))
    return answer(views.task(record.id, celery_status(record)))


async def read_job(request: Request) -> Response:
    """`GET /api/v1/generation-jobs/{id}`: the job now, or after the wait that was requested."""
    services: JobsServices = request.app.state.services
    tenant, asked = tenant_of(request), services.waiting.asked(request)
    job_id = checked_id(request.path_params["id"])
    await services.waiting.for_end(job_id, tenant=tenant, wait=asked, request=request)
    async with ledger_timeout():
        record, log = await services.lookup.job_with_log(job_id, tenant=tenant)
    view = views.job_with_attempts(record, log, catalogue=services.catalogue, links=services.links, now_s=time.time())
    return answer(view, headers=asked.headers)


async def list_jobs(request: Request) -> Response:
    """`GET /api/v1/generation-jobs/`."""
    services: JobsServices = request.app.state.services
    query = listing.read(request.query_params.multi_items())
    async with ledger_timeout():
        listed = await services.lookup.page(
            tenant_of(request),
            limit=query.limit,
            after=query.after,
            state=query.state,
            model=query.model,
            user_id=query.user_id,
        )
        records = listed.page.jobs
        heads = await reads.log_heads(services.ledger, [record.id for record in records])
    now_s = time.time()
    found: list[Any] = [
        views.job(record, head=head, catalogue=services.catalogue, links=services.links, now_s=now_s)
        for record, head in zip(records, heads, strict=True)
    ]
    return answer(JobsBody(jobs=found, next=listed.page.after, complete=listed.is_complete))


async def cancel_job(request: Request) -> Response:
    """`POST …/{id}/cancel`. A repeat returns the receipt of the first, also when only the history has the job."""
    services: JobsServices = request.app.state.services
    tenant, job_id = tenant_of(request), checked_id(request.path_params["id"])
    async with ledger_timeout():
        done = await services.ledger.run(cancel(job_id, tenant=tenant))
        receipt, state = done.receipt, done.state
        if receipt is None or state is None:
            record, log = await services.lookup.job_with_log(job_id, tenant=tenant)
            receipt, state = _receipt(record.state, log), record.state
    _log.info("cancel", job=job_id, tenant=tenant, receipt=receipt, state=state)
    return answer(CancelledBody(job_id=job_id, receipt=receipt, status=state))


async def delete_job(request: Request) -> Response:
    """`DELETE …/{id}`. A repeat finishes an incomplete deletion, and gets the same response."""
    services: JobsServices = request.app.state.services
    tenant, now = tenant_of(request), time.time_ns() // 1_000_000
    job_id = checked_id(request.path_params["id"])
    async with ledger_timeout():
        found = await services.lookup.find(job_id, tenant=tenant)
    if found is None:
        raise NotFound(f"there is no job {job_id}")
    if isinstance(found, Tombstone):
        await services.deletion.finish([found], now=now)
        _log.info("deleted", job=job_id, tenant=tenant)
    else:
        await services.deletion.delete(found, now=now)
        _log.info("deleted", tenant=tenant, **found.about)
    return Response(status_code=204)


async def list_models(request: Request) -> Response:
    """`GET /api/v1/models`."""
    return Response(request.app.state.services.models, media_type=JSON_TYPE)


def _receipt(state: State | UnknownValue, log: Sequence[LogEntry]) -> Receipt:
    """The effect of a cancel on a job that is terminal."""
    if state is not State.CANCELLED:
        return Receipt.TOO_LATE
    was_running = any(entry.event is JobEvent.CANCELLING for entry in log)
    return Receipt.INTERRUPTING if was_running else Receipt.DEQUEUED


BY_ID = in_path("id", listing.JOB_ID, "The id of the job.")

UNAVAILABLE = (LedgerUnavailable, HistoryUnavailable)
"""The errors of everything that reads jobs."""

NO_JOB = (NotFound, Gone)

ROUTES = [
    ApiRoute(
        "GET",
        "/tasks/{id}",
        read_task,
        scope=Scope.READ,
        operation="readTask",
        summary="Read the state of a job in Celery's terms, without its result",
        parameters=[BY_ID],
        responses={"200": json_response(TaskBody, "The state of the job.")},
        refusals=(*NO_JOB, *UNAVAILABLE),
    ),
    ApiRoute(
        "GET",
        routes.JOBS,
        list_jobs,
        scope=Scope.READ,
        operation="listJobs",
        summary="List the jobs, newest first",
        parameters=listing.described(listing.PARAMETERS),
        responses={"200": json_response(JobsBody, "A page of jobs.")},
        refusals=(InvalidInput, *UNAVAILABLE),
    ),
    ApiRoute(
        "GET",
        routes.JOBS + "{id}",
        read_job,
        scope=Scope.READ,
        operation="readJob",
        summary="Read a job, at once or when it is terminal",
        parameters=[
            BY_ID,
            in_query(
                wait.PARAMETER,
                {"type": "integer", "minimum": 0},
                "Seconds to wait, as in `Prefer: wait`, over which it takes precedence.",
            ),
            PREFER,
        ],
        responses={"200": json_response(JobBody, "The job after the wait.", GRANTED)},
        refusals=(*NO_JOB, InvalidInput, *UNAVAILABLE),
    ),
    ApiRoute(
        "DELETE",
        routes.JOBS + "{id}",
        delete_job,
        scope=Scope.MANAGE,
        operation="deleteJob",
        summary="Delete a terminal job with its artifacts; a repeat finishes an incomplete deletion",
        parameters=[BY_ID],
        responses={"204": ApiResponse("The job is deleted. Its last state and its times remain (410).")},
        refusals=(NotFound, NotEnded, *UNAVAILABLE, StoreUnavailable),
    ),
    ApiRoute(
        "POST",
        routes.JOBS + "{id}/cancel",
        cancel_job,
        scope=Scope.CANCEL,
        operation="cancelJob",
        summary="Cancel a job; may be repeated",
        parameters=[BY_ID],
        responses={"200": json_response(CancelledBody, "The job is cancelled, or the cancel came too late.")},
        refusals=(*NO_JOB, *UNAVAILABLE),
    ),
    ApiRoute(
        "GET",
        "/api/v1/models",
        list_models,
        scope=Open.PUBLIC,
        operation="listModels",
        summary="List the models and their parameters",
        responses={"200": json_response(ModelsBody, "The models and their parameters.")},
    ),
]
