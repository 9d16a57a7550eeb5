"""submit: takes requests for jobs, as CloudEvents or over REST, and answers at once with a slip.

A request is read and checked (`submission.py`), then accepted by the ledger in one atomic step: with the 202, the job
is recorded and queued. Submissions that arrive together share a round trip. What cannot be taken is refused with every
field at fault named, and nothing of it is stored.

A CloudEvent's answer is itself one, since a Knative Trigger's subscriber may answer nothing else; a batch, which no
Trigger sends, is answered with a verdict for each event.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import functions_framework.aio
from darkroom import event_attributes, events, logs, strict_json, traces
from darkroom.errors import (
    DarkroomError,
    FieldError,
    InvalidEvent,
    InvalidInput,
    MalformedRequest,
    NotFound,
    TemporaryError,
    UnsupportedMediaType,
)
from darkroom.event_http import BATCH_TYPE, STRUCTURED_TYPE, Mode, parse_http
from darkroom.events import Event
from darkroom.group_commit import GroupCommit
from darkroom.jobs import new_job_id
from darkroom.ledger import AsyncLedger, connect_async
from darkroom.models import Catalogue
from darkroom.settings import load
from darkroom.transitions import Accepted, Submission, accept
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions import paths, submission
from darkroom_functions.answers import answer, problem, problem_members, problem_of
from darkroom_functions.bodies import read_body
from darkroom_functions.health import LEDGER_PATIENCE_S, patience
from darkroom_functions.settings import SubmitSettings, catalogue_of
from darkroom_functions.submission import REPEATED, SEED_BITS, Fresh, RestRequest
from darkroom_functions.tenants import tenant_of

MEMORY_READING_S = 1.0
"""How old a reading of Redis' memory may be: it grows by megabytes a second at most, and 20 % are kept free."""

MAX_IDEMPOTENCY_KEY = 255
"""Characters of the header `Idempotency-Key`."""

_log = logs.logger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request."""
    settings = load(SubmitSettings)
    catalogue = catalogue_of(settings)
    client = connect_async(settings.redis_url.get_secret_value())
    app.state.ledger = AsyncLedger(client, settings.namespace)
    app.state.intake = Intake(app.state.ledger, catalogue, settings)
    try:
        yield
    finally:
        await client.aclose()


@functions_framework.aio.http
async def submit(request: Request) -> Response:
    """`POST /`, `POST /{model}`, `POST /api/v1/generation-jobs/`."""
    intake: Intake = request.app.state.intake
    found = paths.find(request.method, request.scope["path"], models=intake.catalogue.models)
    match found.operation.name:
        case "submitEvents":
            return await _events(request, intake)
        case "submitToModel":
            return await _rest(request, intake, model=found.parts["model"])
        case "submitJob":
            return await _rest(request, intake, model=None)
    raise NotFound(f"{request.method} {request.scope['path']} is answered by the function {found.operation.function}")


@dataclass
class Intake:
    """Where checked submissions go into the ledger."""

    ledger: AsyncLedger
    catalogue: Catalogue
    settings: SubmitSettings

    def __post_init__(self) -> None:
        self._commits: GroupCommit[Accepted | DarkroomError] = GroupCommit(self.ledger, patience_s=LEDGER_PATIENCE_S)
        self._memory_high = False
        self._memory_due = 0.0

    async def take(self, job: Submission, *, memory_high: bool) -> Accepted:
        """Accept one job, after all that were handed in before. Raises what the ledger refuses it for."""
        call = accept(job, backlog_limit=self.settings.backlog_limit, memory_high=memory_high)
        accepted = await self._commits.run(call)
        if isinstance(accepted, DarkroomError):
            raise accepted
        _log.info(
            "accepted",
            job=accepted.job_id,
            tenant=job.tenant,
            model=job.model,
            repeated=accepted.repeated,
            traceparent=job.traceparent,
        )
        return accepted

    async def is_memory_high(self) -> bool:
        """The last reading; the first request after MEMORY_READING_S takes a new one, and no other waits for it."""
        now = time.monotonic()
        if now >= self._memory_due:
            self._memory_due = now + MEMORY_READING_S
            try:
                async with patience():
                    self._memory_high = (await self.ledger.memory()).high
            except BaseException:
                self._memory_due = 0.0  # without a reading the next request must take one
                raise
        return self._memory_high


async def _events(request: Request, intake: Intake) -> Response:
    try:
        body = await read_body(request, limit=intake.settings.max_body_bytes)
        parsed = parse_http(request.headers, body)
        tenant = tenant_of(request)
        if parsed.mode is Mode.BATCH:
            return await _batch(parsed.events, tenant, intake)
        (event,) = parsed.events
        job = _job_of(event, tenant, intake)
        accepted = await intake.take(job, memory_high=await intake.is_memory_high())
    except DarkroomError as error:
        return problem(error, of_event=True)
    fact = events.accepted_event(
        job_id=accepted.job_id,
        tenant=tenant,
        event_id=f"{accepted.job_id}:1",
        time_ms=accepted.created_ms,
        source=intake.settings.public_url,
        traceparent=job.traceparent,
    )
    headers, content = fact.encode_binary()
    return Response(content, status_code=_status(accepted), headers=headers | _headers(accepted))


async def _batch(parsed: Sequence[Event | InvalidEvent], tenant: str, intake: Intake) -> Response:
    """A verdict for each event, in their order.

    Where none was accepted, the first refusal that may pass is the answer's, so that the sender tries again. Where none
    may, it is 422.
    """
    memory_high = await intake.is_memory_high()
    outcomes = await asyncio.gather(*(_judged(event, tenant, intake, memory_high=memory_high) for event in parsed))
    verdicts = [_verdict(outcome) for outcome in outcomes]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, DarkroomError)]
    if len(refusals) < len(outcomes) or not outcomes:
        return answer({"verdicts": verdicts}, status=202 if outcomes else 200)
    temporary = next((refusal for refusal in refusals if isinstance(refusal, TemporaryError)), None)
    whole = temporary or InvalidEvent(f"none of the {len(outcomes)} events can be taken")
    retry = {"Retry-After": str(temporary.retry_after)} if temporary else None
    return problem_of({**problem_members(whole, of_event=True), "verdicts": verdicts}, headers=retry)


async def _judged(
    event: Event | InvalidEvent, tenant: str, intake: Intake, *, memory_high: bool
) -> Accepted | DarkroomError:
    """What became of one event of a batch. Nothing is awaited before the ledger is, so events keep their order."""
    try:
        return await intake.take(_job_of(event, tenant, intake), memory_high=memory_high)
    except DarkroomError as error:
        return error


def _job_of(event: Event | InvalidEvent, tenant: str, intake: Intake) -> Submission:
    if isinstance(event, InvalidEvent):
        raise event
    return submission.of_event(event, catalogue=intake.catalogue, tenant=tenant, fresh=_fresh())


def _verdict(outcome: Accepted | DarkroomError) -> dict[str, object]:
    if isinstance(outcome, DarkroomError):
        members = problem_members(outcome, of_event=True)
        return {"status": members["status"], "problem": members}
    return {
        **events.accepted_answer(outcome.job_id),
        "status": _status(outcome),
        "location": _headers(outcome)["Location"],
    }


async def _rest(request: Request, intake: Intake, *, model: str | None) -> Response:
    body = await read_body(request, limit=intake.settings.max_body_bytes)
    rest = RestRequest(
        data=_data(request, body, may_be_empty=model is not None),
        model=model,
        idempotency_key=_idempotency_key(request),
        traceparent=traces.traceparent_of(request.headers.get("traceparent")),
    )
    job = submission.of_rest(
        rest,
        catalogue=intake.catalogue,
        tenant=tenant_of(request),
        fresh=_fresh(),
        source=intake.settings.public_url,
    )
    accepted = await intake.take(job, memory_high=await intake.is_memory_high())
    return answer(events.accepted_answer(accepted.job_id), status=_status(accepted), headers=_headers(accepted))


def _data(request: Request, body: bytes, *, may_be_empty: bool) -> dict[str, object]:
    """The object that a REST body is. Raises UnsupportedMediaType, MalformedRequest."""
    if not body and may_be_empty:
        return {}
    content_type = request.headers.get("content-type")
    media_type = None if content_type is None else event_attributes.media_type(content_type)
    if body and (media_type is None or not media_type.is_json):
        detail = "must be application/json, in UTF-8"
        raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
    if media_type is not None and media_type.essence in (STRUCTURED_TYPE, BATCH_TYPE):
        detail = "is that of a CloudEvent: send it to POST /"
        raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
    try:
        data = strict_json.parse(body)
    except strict_json.JsonError as error:
        raise MalformedRequest(f"the body {error}", fields=[FieldError("body", str(error))]) from None
    if not isinstance(data, dict):
        detail = "must be a JSON object"
        raise MalformedRequest(f"the body {detail}", fields=[FieldError("body", detail)])
    return data


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or not 0 < len(key) <= MAX_IDEMPOTENCY_KEY or not (key.isascii() and key.isprintable()):
        detail = f"must come once, with 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        raise InvalidInput(f"Idempotency-Key {detail}", fields=[FieldError("Idempotency-Key", detail)])
    return key


def _status(accepted: Accepted) -> int:
    return 200 if accepted.repeated else 202


def _headers(accepted: Accepted) -> dict[str, str]:
    headers = {"Location": paths.JOBS + accepted.job_id}
    return headers | {REPEATED: "true"} if accepted.repeated else headers


def _fresh() -> Fresh:
    now_ms = time.time_ns() // 1_000_000
    return Fresh(
        now_ms=now_ms,
        job_id=new_job_id(now_ms),
        seed=secrets.randbits(SEED_BITS),
        traceparent=traces.new_traceparent(secrets.token_bytes(traces.RANDOM_BYTES)),
    )
