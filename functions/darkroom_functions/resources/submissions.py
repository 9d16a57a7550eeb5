"""Submissions: jobs requested as CloudEvents or over REST.

A request is read and checked (`submission/reading.py`), then accepted by the ledger in one atomic step
(`submission/intake.py`): with the 202, the job is recorded and queued. A refusal names every invalid field, and nothing
is stored.

A REST client may prefer to wait (`Prefer: wait=30`, RFC 7240): the response is 200 with the job once it is terminal, or
202 with the receipt when the time is over (`streams/wait.py`). The job continues without its client.

The response to a CloudEvent is a CloudEvent, since a Knative Trigger's subscriber may answer nothing else. A batch,
which no Trigger sends, is answered with a verdict on each event. CloudEvents do not wait: the response goes into a
Broker, which receives the terminal event from the courier.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from darkroom import logs, traces
from darkroom.access.principals import Principal, Scope
from darkroom.cloudevents import event as events
from darkroom.cloudevents.event import REQUESTED, SPEC_VERSION, Event
from darkroom.cloudevents.http import BATCH_TYPE, MAX_BATCH_EVENTS, STRUCTURED_TYPE, Mode, Parsed, parse_http
from darkroom.errors import (
    BacklogFull,
    BodyTooLarge,
    CredentialRefused,
    DarkroomError,
    EventReused,
    FieldError,
    GpuBudgetExceeded,
    ImageBudgetExceeded,
    InvalidEvent,
    InvalidInput,
    KeyReused,
    LedgerUnavailable,
    MalformedRequest,
    MemoryHigh,
    ModelNotPermitted,
    NoPool,
    SinkUnavailable,
    SubmissionRateExceeded,
    TemporaryError,
    UnknownModel,
    UnsupportedMediaType,
    WaitingBytesExceeded,
    WaitingJobsExceeded,
)
from darkroom.jobs import new_job_id
from darkroom.ledger import reads
from darkroom.ledger.calls import Accepted
from darkroom.ledger.records import JobRecord
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes, trail
from darkroom_functions.http.access import PRINCIPAL, access_of, is_known, principal_of, tenant_of
from darkroom_functions.http.bodies import json_object, read_body, read_event
from darkroom_functions.http.openapi import LIMIT_HEADERS, header, in_header, in_path, json_body, json_response, ref
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.rate_limits import rate_limit_fields
from darkroom_functions.http.responses import JSON_TYPE, answer, problem_members, problem_of
from darkroom_functions.http.routes import ApiResponse, ApiRoute, Schema
from darkroom_functions.http.trail import Audit
from darkroom_functions.resources import views
from darkroom_functions.resources.redaction import redacted
from darkroom_functions.resources.schemas import AcceptedBody, JobBody, VerdictsBody
from darkroom_functions.resources.services import SubmitServices
from darkroom_functions.streams.wait import APPLIED, Wait
from darkroom_functions.submission import reading, schemas, stamps
from darkroom_functions.submission.reading import REPEATED, SEED_BITS, RestRequest, SubmissionContext

_IDEMPOTENCY_KEY = re.compile(reading.IDEMPOTENCY_KEY_PATTERN)

_log = logs.logger(__name__)


async def submit_events(request: Request) -> Response:
    """`POST /`. A request without a credential is taken if its event has a stamp (`submission/stamps.py`)."""
    services: SubmitServices = request.app.state.services
    body = await read_body(request, limit=services.settings.max_body_bytes)
    if is_known(request):
        principal, parsed = principal_of(request), parse_http(request.headers, body)
    else:
        principal, parsed = await _stamped(request, body, services)
        request.scope[PRINCIPAL] = principal
    if parsed.mode is Mode.BATCH:
        return await _submit_batch(parsed.events, principal, services, request)
    (event,) = parsed.events
    if isinstance(event, InvalidEvent):
        raise event
    request.scope[trail.MODEL] = partial(reading.model_named, event.data, services.catalogue)
    job = reading.of_event(
        event,
        catalogue=services.catalogue,
        allow=services.settings.webhook_allow,
        principal=principal,
        context=new_context(),
    )
    memory_high = await services.intake.is_memory_high()
    accepted = await services.intake.take(job, memory_high=memory_high, audit=trail.of_submission(request, job))
    reply = events.accepted_event(
        job_id=accepted.job_id,
        tenant=principal.tenant,
        event_id=f"{accepted.job_id}:1",
        time_ms=accepted.created_ms,
        source=services.settings.public_url,
        state=accepted.state,
        traceparent=job.traceparent,
    )
    headers, content = services.proofs.prove(reply).encode_binary()
    status, receipt = receipt_of(accepted)
    return Response(content, status_code=status, headers=headers | receipt)


async def _stamped(request: Request, body: bytes, services: SubmitServices) -> tuple[Principal, Parsed]:
    """The caller that a single stamped event names, and the event.

    Raises what `stamps.caller_of` raises; a caller without a credential gets no other refusal.
    """
    try:
        parsed = parse_http(request.headers, body)
        (event,) = parsed.events
    except (DarkroomError, ValueError):
        event = None
    if not isinstance(event, Event) or parsed.mode is Mode.BATCH:
        raise CredentialRefused("the request has no credential", error=None)
    return await stamps.caller_of(event, services.proofs, access_of(request)), parsed


async def publish_request(request: Request) -> Response:
    """`POST /api/v1/job-requests`: stamp the event and post it to the Broker, which delivers it to `POST /`.

    An event that would be refused there is refused here. Raises SinkUnavailable if the Broker does not accept it.
    """
    services: SubmitServices = request.app.state.services
    event = await read_event(request, limit=services.settings.max_body_bytes)
    caller = principal_of(request)
    reading.of_event(
        event,
        catalogue=services.catalogue,
        allow=services.settings.webhook_allow,
        principal=caller,
        context=new_context(),
    )
    status, text = await services.broker.post(stamps.stamped(event, caller, services.proofs))
    if not 200 <= status < 300:  # noqa: PLR2004 - as HTTP has it
        _log.warning("publish_refused", event_id=event.id, tenant=caller.tenant, status=status, answer=redacted(text))
        raise SinkUnavailable(f"the sink answered {status}", retry_after=5)
    _log.info("published", event_id=event.id, source=event.source, tenant=caller.tenant, actor=caller.actor)
    return Response(status_code=202)


async def submit_job(request: Request) -> Response:
    """`POST /api/v1/generation-jobs/` and `POST /{model}`."""
    services: SubmitServices = request.app.state.services
    model = request.path_params.get("model")
    body = await read_body(request, limit=services.settings.max_body_bytes)
    rest = RestRequest(
        data=json_object(request, body, may_be_empty=model is not None),
        model=model,
        idempotency_key=_idempotency_key(request),
        traceparent=traces.traceparent_of(request.headers.get("traceparent")),
    )
    request.scope[trail.MODEL] = partial(reading.model_named, rest.data, services.catalogue, model)
    job = reading.of_rest(
        rest,
        catalogue=services.catalogue,
        allow=services.settings.webhook_allow,
        principal=principal_of(request),
        context=new_context(),
        source=services.settings.public_url,
    )
    memory_high = await services.intake.is_memory_high()
    accepted = await services.intake.take(job, memory_high=memory_high, audit=trail.of_submission(request, job))
    wait = services.waiting.preferred(request)
    status, headers = receipt_of(accepted)
    if not wait.is_preferred:
        return answer(events.accepted_answer(accepted.job_id, accepted.state), status=status, headers=headers)
    headers |= wait.headers
    record = await _job_after(accepted.job_id, request, wait, services)
    if record is not None and not record.is_whole and not accepted.repeated:
        # The input has left Redis, and this function reads no history.
        record = replace(record, input=job.input, is_whole=True)
    view = await _terminal_view(record, services)
    if view is not None:
        return answer(view, headers=headers)
    state = accepted.state if record is None else record.state
    return answer(events.accepted_answer(accepted.job_id, state), status=202, headers=headers)


async def _submit_batch(
    parsed: Sequence[Event | InvalidEvent], principal: Principal, services: SubmitServices, request: Request
) -> Response:
    """A verdict on each event, in their order.

    Where no event was accepted, the response is the first refusal that is temporary, so that the sender tries again.
    Where all are permanent, it is 422.
    """
    memory_high = await services.intake.is_memory_high()
    outcomes = await asyncio.gather(
        *(_accepted(event, principal, services, request, memory_high=memory_high) for event in parsed)
    )
    verdicts = [_verdict(outcome) for outcome in outcomes]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, DarkroomError)]
    # The ledger accepts them in their order: the last reply has what remains after all of them.
    quotas = next((outcome.quotas for outcome in reversed(outcomes) if outcome.quotas), ())
    headers = rate_limit_fields(quotas)
    if len(refusals) < len(outcomes) or not outcomes:
        return answer({"verdicts": verdicts}, status=202 if outcomes else 200, headers=headers)
    temporary = next((refusal for refusal in refusals if isinstance(refusal, TemporaryError)), None)
    whole = temporary or InvalidEvent(f"none of the {len(outcomes)} events was accepted")
    if temporary:
        headers["Retry-After"] = str(temporary.retry_after)
    return problem_of({**problem_members(whole, of_event=True), "verdicts": verdicts}, headers=headers)


async def _accepted(
    event: Event | InvalidEvent,
    principal: Principal,
    services: SubmitServices,
    request: Request,
    *,
    memory_high: bool,
) -> Accepted | DarkroomError:
    """The outcome of one event of a batch. The ledger is the first thing awaited, so events keep their order."""
    try:
        if isinstance(event, InvalidEvent):
            raise event
        job = reading.of_event(
            event,
            catalogue=services.catalogue,
            allow=services.settings.webhook_allow,
            principal=principal,
            context=new_context(),
        )
        return await services.intake.take(job, memory_high=memory_high, audit=trail.of_submission(request, job))
    except DarkroomError as error:
        data = None if isinstance(event, InvalidEvent) else event.data
        trail.count_refusal(request, error, model=reading.model_named(data, services.catalogue))
        return error


def new_context() -> SubmissionContext:
    """What is drawn for each request."""
    return SubmissionContext(
        job_id=new_job_id(time.time_ns() // 1_000_000),
        seed=secrets.randbits(SEED_BITS),
        traceparent=traces.new_traceparent(secrets.token_bytes(traces.RANDOM_BYTES)),
    )


def receipt_of(accepted: Accepted) -> tuple[int, dict[str, str]]:
    """The status and the headers of the response to an accepted job."""
    headers = {"Location": routes.JOBS + accepted.job_id, **rate_limit_fields(accepted.quotas)}
    return (200, headers | {REPEATED: "true"}) if accepted.repeated else (202, headers)


def _verdict(outcome: Accepted | DarkroomError) -> dict[str, object]:
    if isinstance(outcome, DarkroomError):
        members = problem_members(outcome, of_event=True)
        return {"status": members["status"], "problem": members}
    content = events.accepted_answer(outcome.job_id, outcome.state)
    status, headers = receipt_of(outcome)
    return {**content, "state": content["status"], "status": status, "location": headers["Location"]}


async def _job_after(job_id: str, request: Request, wait: Wait, services: SubmitServices) -> JobRecord | None:
    """The job after the wait; None where it cannot be read.

    The job was accepted: a refusal because Redis is unavailable would have the client submit it again.
    """
    tenant = tenant_of(request)
    try:
        await services.waiting.for_end(job_id, tenant=tenant, wait=wait, request=request)
        async with ledger_timeout():
            return await services.ledger.job(job_id, tenant=tenant)
    except LedgerUnavailable as error:
        _log.warning("not_waited", job=job_id, error=error.detail)
        return None


async def _terminal_view(record: JobRecord | None, services: SubmitServices) -> dict[str, Any] | None:
    """The view of a terminal job; None for any other, while Redis is unavailable, and where only the history has the
    input.
    """
    if record is None or not record.state.is_terminal or not record.is_whole:
        return None
    try:
        async with ledger_timeout():
            log = await reads.log(services.ledger, record.id)
    except LedgerUnavailable as error:
        _log.warning("not_viewed", job=record.id, error=error.detail)
        return None
    return views.job_with_attempts(record, log, catalogue=services.catalogue, links=services.links, now_s=time.time())


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or len(key) > reading.MAX_IDEMPOTENCY_KEY or not _IDEMPOTENCY_KEY.fullmatch(key):
        detail = f"must be sent once, with 1 to {reading.MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidInput(f"Idempotency-Key {detail}", fields=[FieldError("Idempotency-Key", detail)])
    return key


REFUSED_JOB = (
    MalformedRequest,
    UnknownModel,
    ModelNotPermitted,
    BodyTooLarge,
    UnsupportedMediaType,
    InvalidInput,
    BacklogFull,
    SubmissionRateExceeded,
    WaitingJobsExceeded,
    WaitingBytesExceeded,
    ImageBudgetExceeded,
    GpuBudgetExceeded,
    NoPool,
    MemoryHigh,
    LedgerUnavailable,
)
"""The errors of every submission; those of a redrive are the same."""

RECEIPT_HEADERS: dict[str, Schema] = {
    "Location": header({"type": "string"}, "The path of the job. Absent for a batch."),
    REPEATED: header({"const": "true"}, "With 200: the job was accepted by an earlier request."),
    **LIMIT_HEADERS,
}
ACCEPTED = {
    "202": json_response(AcceptedBody, "The job is recorded and queued.", RECEIPT_HEADERS),
    "200": json_response(AcceptedBody, "The job was accepted by an earlier request.", RECEIPT_HEADERS),
}
TRACEPARENT = in_header("traceparent", {"type": "string"}, "The W3C Trace Context of the job.")
PREFER = in_header(
    "Prefer",
    {"type": "string"},
    "`wait=30`: respond when the job is terminal, or after that many seconds (RFC 7240).",
)
GRANTED: dict[str, Schema] = {
    APPLIED: header(
        {"type": "string", "pattern": "^wait=[0-9]+$"},
        "The longest wait that was granted, in seconds, where one was preferred.",
    )
}

_EVENT_HEADERS = [
    in_header(f"ce-{name}", {"type": "string"}, f"In binary mode: {meaning}")
    for name, meaning in (
        ("specversion", f"`{SPEC_VERSION}`."),
        ("id", "with the source, the identity of the event. A repeated event is the same job."),
        ("source", "a URI-reference."),
        ("type", f"`{REQUESTED}`."),
        (reading.EXPIRY, "the time by which the job must have started, or it expires."),
        ("traceparent", "the W3C Trace Context of the job."),
    )
]

_REST_HEADERS = [
    in_header(
        "Idempotency-Key", schemas.IDEMPOTENCY_KEY, "For a day, the same key with the same body is the same job."
    ),
    TRACEPARENT,
    PREFER,
]
_REST_RESPONSES = {
    "202": json_response(
        AcceptedBody,
        "The job is recorded and queued. Where a wait was preferred, the job is not terminal yet.",
        RECEIPT_HEADERS | GRANTED,
    ),
    "200": json_response(
        AcceptedBody | JobBody,
        "The job was accepted by an earlier request. Where a wait was preferred: the terminal job.",
        RECEIPT_HEADERS | GRANTED,
    ),
}

ROUTES = [
    ApiRoute(
        "POST",
        "/",
        submit_events,
        scope=Scope.SUBMIT,
        audit=Audit.SUBMISSION,
        operation="submitEvents",
        summary="Submit a job as a CloudEvent, or several as a batch (for REST clients: no Trigger sends one)",
        parameters=_EVENT_HEADERS,
        request={
            "description": "Any content type but the two of CloudEvents is the data of an event in binary mode.",
            "content": {
                STRUCTURED_TYPE: schemas.EVENT,
                BATCH_TYPE: {"type": "array", "items": {}, "maxItems": MAX_BATCH_EVENTS},
                JSON_TYPE: ref("JobRequest"),
            },
        },
        responses={
            "202": ApiResponse(
                "The event was accepted, and the response is an event; or at least one event of a batch was.",
                {JSON_TYPE: AcceptedBody | VerdictsBody},
                RECEIPT_HEADERS,
            ),
            "200": ApiResponse(
                "The event was accepted before; or the batch is empty.",
                {JSON_TYPE: AcceptedBody | VerdictsBody},
                RECEIPT_HEADERS,
            ),
        },
        refusals=(InvalidEvent, EventReused, *REFUSED_JOB),
        takes_events=True,
        takes_stamps=stamps.may_be_stamped,
    ),
    ApiRoute(
        "POST",
        routes.JOB_REQUESTS,
        publish_request,
        scope=Scope.SUBMIT,
        audit=Audit.SUBMISSION,  # its job is recorded when it is accepted
        operation="publishRequest",
        summary="Send a job request through the Broker, as one CloudEvent in binary or structured mode",
        parameters=_EVENT_HEADERS,
        request={
            "description": "Any content type but that of CloudEvents is the data of an event in binary mode.",
            "content": {STRUCTURED_TYPE: schemas.EVENT, JSON_TYPE: ref("JobRequest")},
        },
        responses={"202": ApiResponse("The Broker has accepted the event, with the caller's tenant and a proof.")},
        refusals=(MalformedRequest, InvalidEvent, InvalidInput, UnknownModel, BodyTooLarge, SinkUnavailable),
        takes_events=True,
    ),
    ApiRoute(
        "POST",
        routes.JOBS,
        submit_job,
        scope=Scope.SUBMIT,
        audit=Audit.SUBMISSION,
        operation="submitJob",
        summary="Submit a job",
        parameters=_REST_HEADERS,
        request=json_body(ref("JobRequest"), required=True),
        responses=_REST_RESPONSES,
        refusals=(*REFUSED_JOB, KeyReused),
    ),
    ApiRoute(
        "POST",
        routes.TO_MODEL,
        submit_job,
        scope=Scope.SUBMIT,
        audit=Audit.SUBMISSION,
        operation="submitToModel",
        summary="Submit a job to a model; without a body, with all defaults",
        parameters=[in_path("model", ref("ModelName"), "The name of the model."), *_REST_HEADERS],
        request=json_body(ref("ModelRequest")),
        responses=_REST_RESPONSES,
        refusals=(*REFUSED_JOB, KeyReused),
    ),
]
