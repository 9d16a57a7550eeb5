"""submit: takes requests for jobs, as CloudEvents or over REST, and answers at once with a slip.

A request is read and checked (`submission.py`), then accepted by the ledger in one atomic step (`intake.py`): with the
202, the job is recorded and queued. What cannot be taken is refused with every field at fault named, and nothing of it
is stored.

Over REST a caller may prefer to wait (`Prefer: wait=30`, RFC 7240): the answer is 200 with the job once that has ended,
however it ended, or 202 with the slip when the time is over (`wait.py`). The job goes on without its caller.

A CloudEvent's answer is itself one, since a Knative Trigger's subscriber may answer nothing else; a batch, which no
Trigger sends, is answered with a verdict for each event. Nobody waits with a CloudEvent: its answer goes into a Broker,
which hears of the job's end from the courier.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import functions_framework.aio
from darkroom import logs, traces
from darkroom.catalogue.models import Catalogue
from darkroom.cloudevents import event as events
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import Mode, parse_http
from darkroom.errors import (
    DarkroomError,
    FieldError,
    InvalidEvent,
    InvalidInput,
    LedgerUnavailable,
    NotFound,
    TemporaryError,
)
from darkroom.ledger.calls import Accepted, Submission
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import JobRecord
from darkroom.links import Links
from darkroom.settings import load
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.bodies import json_object, read_body
from darkroom_functions.http.probes import patience
from darkroom_functions.http.responses import answer, problem, problem_members, problem_of
from darkroom_functions.resources import views
from darkroom_functions.settings import SubmitSettings, catalogue_of
from darkroom_functions.streams.wait import JobWaits, Wait
from darkroom_functions.submission import reading
from darkroom_functions.submission.intake import Intake, fresh, slip_headers, slip_status
from darkroom_functions.submission.reading import RestRequest
from darkroom_functions.tenants import tenant_of

_IDEMPOTENCY_KEY = re.compile(reading.IDEMPOTENCY_KEY_PATTERN)

_log = logs.logger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request."""
    settings = load(SubmitSettings)
    catalogue = catalogue_of(settings)
    client = connect_async(settings.redis_url.get_secret_value())
    app.state.ledger = AsyncLedger(client, settings.namespace)
    waiting = JobWaits(app.state.ledger, client, most_s=settings.max_wait_s, closing=app.state.closing)
    app.state.desk = Desk(app.state.ledger, Intake(app.state.ledger, settings), waiting, catalogue, settings)
    try:
        async with waiting.running():
            yield
    finally:
        await client.aclose()


@functions_framework.aio.http
async def submit(request: Request) -> Response:
    """`POST /`, `POST /{model}`, `POST /api/v1/generation-jobs/`."""
    desk: Desk = request.app.state.desk
    found = routes.find(request.method, request.scope["path"], models=desk.catalogue.models)
    match found.operation.name:
        case "submitEvents":
            return await _events(request, desk)
        case "submitToModel":
            return await _rest(request, desk, model=found.parts["model"])
        case "submitJob":
            return await _rest(request, desk, model=None)
    raise NotFound(f"{request.method} {request.scope['path']} is answered by the function {found.operation.function}")


@dataclass(frozen=True)
class Desk:
    """What a request is held against, and where it goes from here."""

    ledger: AsyncLedger
    intake: Intake
    waiting: JobWaits
    catalogue: Catalogue
    settings: SubmitSettings


async def _events(request: Request, desk: Desk) -> Response:
    try:
        body = await read_body(request, limit=desk.settings.max_body_bytes)
        parsed = parse_http(request.headers, body)
        tenant = tenant_of(request)
        if parsed.mode is Mode.BATCH:
            return await _batch(parsed.events, tenant, desk)
        (event,) = parsed.events
        job = _job_of(event, tenant, desk)
        accepted = await desk.intake.take(job, memory_high=await desk.intake.is_memory_high())
    except DarkroomError as error:
        return problem(error, of_event=True)
    fact = events.accepted_event(
        job_id=accepted.job_id,
        tenant=tenant,
        event_id=f"{accepted.job_id}:1",
        time_ms=accepted.created_ms,
        source=desk.settings.public_url,
        state=accepted.state,
        traceparent=job.traceparent,
    )
    headers, content = fact.encode_binary()
    return Response(content, status_code=slip_status(accepted), headers=headers | slip_headers(accepted))


async def _batch(parsed: Sequence[Event | InvalidEvent], tenant: str, desk: Desk) -> Response:
    """A verdict for each event, in their order.

    Where none was accepted, the first refusal that may pass is the answer's, so that the sender tries again. Where none
    may, it is 422.
    """
    memory_high = await desk.intake.is_memory_high()
    outcomes = await asyncio.gather(*(_judged(event, tenant, desk, memory_high=memory_high) for event in parsed))
    verdicts = [_verdict(outcome) for outcome in outcomes]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, DarkroomError)]
    if len(refusals) < len(outcomes) or not outcomes:
        return answer({"verdicts": verdicts}, status=202 if outcomes else 200)
    temporary = next((refusal for refusal in refusals if isinstance(refusal, TemporaryError)), None)
    whole = temporary or InvalidEvent(f"none of the {len(outcomes)} events can be taken")
    retry = {"Retry-After": str(temporary.retry_after)} if temporary else None
    return problem_of({**problem_members(whole, of_event=True), "verdicts": verdicts}, headers=retry)


async def _judged(
    event: Event | InvalidEvent, tenant: str, desk: Desk, *, memory_high: bool
) -> Accepted | DarkroomError:
    """What became of one event of a batch. Nothing is awaited before the ledger is, so events keep their order."""
    try:
        return await desk.intake.take(_job_of(event, tenant, desk), memory_high=memory_high)
    except DarkroomError as error:
        return error


def _job_of(event: Event | InvalidEvent, tenant: str, desk: Desk) -> Submission:
    if isinstance(event, InvalidEvent):
        raise event
    return reading.of_event(
        event, catalogue=desk.catalogue, allow=desk.settings.webhook_allow, tenant=tenant, fresh=fresh()
    )


def _verdict(outcome: Accepted | DarkroomError) -> dict[str, object]:
    if isinstance(outcome, DarkroomError):
        members = problem_members(outcome, of_event=True)
        return {"status": members["status"], "problem": members}
    about = events.accepted_answer(outcome.job_id, outcome.state)
    return {
        **about,
        "state": about["status"],
        "status": slip_status(outcome),
        "location": slip_headers(outcome)["Location"],
    }


async def _rest(request: Request, desk: Desk, *, model: str | None) -> Response:
    body = await read_body(request, limit=desk.settings.max_body_bytes)
    rest = RestRequest(
        data=json_object(request, body, may_be_empty=model is not None),
        model=model,
        idempotency_key=_idempotency_key(request),
        traceparent=traces.traceparent_of(request.headers.get("traceparent")),
    )
    job = reading.of_rest(
        rest,
        catalogue=desk.catalogue,
        allow=desk.settings.webhook_allow,
        tenant=tenant_of(request),
        fresh=fresh(),
        source=desk.settings.public_url,
    )
    accepted = await desk.intake.take(job, memory_high=await desk.intake.is_memory_high())
    wait = desk.waiting.preferred(request)
    headers = slip_headers(accepted) | wait.headers
    if not wait.is_preferred:
        content = events.accepted_answer(accepted.job_id, accepted.state)
        return answer(content, status=slip_status(accepted), headers=headers)
    record = await _job_after(accepted.job_id, request, wait, desk)
    if record is not None and not record.is_whole and not accepted.repeated:
        record = replace(
            record, input=job.input, is_whole=True
        )  # it has left Redis, and this function reads no history
    view = await _view_of_end(record, desk)
    if view is not None:
        return answer(view, headers=headers)
    state = accepted.state if record is None else record.state
    return answer(events.accepted_answer(accepted.job_id, state), status=202, headers=headers)


async def _job_after(job_id: str, request: Request, wait: Wait, desk: Desk) -> JobRecord | None:
    """The job when the wait is over; None where that is not known now.

    It was accepted: a refusal because the ledger is unavailable would have the caller submit it again.
    """
    tenant = tenant_of(request)
    try:
        await desk.waiting.for_end(job_id, tenant=tenant, wait=wait, request=request)
        async with patience():
            return await desk.ledger.job(job_id, tenant=tenant)
    except LedgerUnavailable as error:
        _log.warning("not_waited", job=job_id, error=error.detail)
        return None


async def _view_of_end(record: JobRecord | None, desk: Desk) -> dict[str, Any] | None:
    """The view of a job that has ended; None for any other, while the ledger is unavailable, and where the history
    alone has the input.
    """
    if record is None or not record.state.is_terminal or not record.is_whole:
        return None
    try:
        async with patience():
            log = await desk.ledger.log(record.id)
    except LedgerUnavailable as error:
        _log.warning("not_viewed", job=record.id, error=error.detail)
        return None
    links = Links.of(desk.settings)
    return views.story(record, log, catalogue=desk.catalogue, links=links, now_s=time.time())


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or len(key) > reading.MAX_IDEMPOTENCY_KEY or not _IDEMPOTENCY_KEY.fullmatch(key):
        detail = f"must come once, with 1 to {reading.MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidInput(f"Idempotency-Key {detail}", fields=[FieldError("Idempotency-Key", detail)])
    return key
