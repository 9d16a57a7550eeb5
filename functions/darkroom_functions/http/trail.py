"""The audit trail's part in a request: every operation that changes something, or shows a secret, is recorded.

`routes.py` wraps the handler of each such route in `audited`, so that no handler can leave it out. The entry is written
to the ledger before the handler runs, and its outcome after it: an operation is not done without a record, and one
whose process ends in between is in the trail with an unknown outcome. Submissions are recorded by the script that
accepts the job (`of_submission`), in the same step. Their refusals change nothing and may be many: equal ones are
counted, and recorded together every FLUSH_S; usage reports count them from there.

A request without a valid credential has no actor and is in the log alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import uuid4

from darkroom import traces
from darkroom.access.principals import Principal
from darkroom.errors import AuditFull, DarkroomError, LedgerUnavailable, ScopeMissing
from darkroom.ledger.calls import Submission
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.logs import logger
from darkroom.supervision import vital
from darkroom.trail.entries import OK, Entry, entry_of
from darkroom.trail.recording import Recorder
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http.access import PRINCIPAL, Needed, Open, access_of, authorize, principal_of
from darkroom_functions.settings import AccessSettings

FLUSH_S = 5.0
"""The interval at which refused submissions are recorded. A process that is killed loses those since the last time."""

MAX_COUNTED = 10_000
"""The most kinds of refused submissions between two flushes; beyond, those of any model are counted together."""

INTERNAL_ERROR = (DarkroomError.slug, DarkroomError.status)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

MODEL = "darkroom.model"
"""Where the ASGI scope has a function that returns the model of a submission, for which its refusal is counted."""

DAY_MS = 24 * 3600 * 1000

Handler = Callable[[Request], Awaitable[Response]]

_log = logger(__name__)


class Audit(StrEnum):
    """How a route is recorded. `OPERATION`: here. `SUBMISSION`: by the ledger; refusals are counted. `NOTHING`: it
    changes nothing and shows no secret, or is a door of darkroom's own parts.
    """

    OPERATION = "operation"
    SUBMISSION = "submission"
    NOTHING = "nothing"


def default_of(method: str, scope: Needed) -> Audit:
    """What a route is recorded as unless it declares more: every unsafe method is an operation."""
    if method in SAFE_METHODS or scope is Open.INTERNAL:
        return Audit.NOTHING
    return Audit.OPERATION


@dataclass
class _Refusals:
    """Equal refusals since the last flush."""

    entry: Entry
    count: int = 0


class Trail:
    """The trail of one process. `run` must run in the background."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self.recorder = Recorder(ledger)
        self._refusals: dict[tuple[object, ...], _Refusals] = {}

    async def run(self) -> None:
        """Record refused submissions until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Record the refused submissions. What cannot be recorded now is kept for the next time."""
        pending, self._refusals = self._refusals, {}
        entries = [replace(each.entry, count=each.count) for each in pending.values()]
        try:
            if entries:
                await self.recorder.append(*entries)
        except (LedgerUnavailable, AuditFull) as error:
            _log.warning("refusals_unrecorded", refusals=sum(entry.count for entry in entries), error=error.detail)
            for key, each in self._refusals.items():
                if key in pending:
                    pending[key].count += each.count
                else:
                    pending[key] = each
            self._refusals = pending

    def count(self, principal: Principal, operation: str, error: DarkroomError, *, model: str) -> None:
        """Count a refused submission."""
        now = _now()
        if len(self._refusals) >= MAX_COUNTED:
            model = ""
        key = (principal.tenant, principal.actor, principal.kind, operation, model, error.slug, now // DAY_MS)
        refusals = self._refusals.get(key)
        if refusals is None:
            entry = entry_of(
                principal,
                uid=uuid4().hex,
                at=now,
                operation=operation,
                object=model,
                outcome=error.slug,
                status=error.status,
            )
            refusals = self._refusals[key] = _Refusals(entry)
        refusals.count += 1


def count_refusal(request: Request, error: DarkroomError, *, model: str) -> None:
    """Count a refused submission of a known caller; `model` is the one that it names, empty where there is none."""
    if PRINCIPAL not in request.scope:
        return
    _trail(request).count(principal_of(request), _operation(request), error, model=model)


def of_submission(request: Request, job: Submission) -> str:
    """The entry of a submission, for the script that accepts the job."""
    entry = entry_of(
        principal_of(request),
        uid=job.job_id,
        at=_now(),
        operation=_operation(request),
        object=job.job_id,
        outcome=OK,
        status=202,
        trace=_trace_id(job.traceparent),
    )
    return entry.encode()


@asynccontextmanager
async def running(settings: AccessSettings) -> AsyncIterator[Trail]:
    """The trail of a process, with a connection of its own to Redis."""
    client = connect_async(settings.redis_url.get_secret_value())
    trail, ending = Trail(AsyncLedger(client, settings.namespace)), asyncio.Event()
    flushing = vital(trail.run(), name="record refusals", may_end=ending.is_set)
    try:
        yield trail
    finally:
        ending.set()
        flushing.cancel()
        await asyncio.wait([flushing])
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await trail.flush()
        await client.aclose()


def audited(
    handler: Handler,
    scope: Needed,
    audit: Audit,
    *,
    takes_ticket: bool = False,
    takes_stamps: Callable[[Headers], bool] | None = None,
) -> Handler:
    """The handler, called for callers with the scope only, and recorded.

    Of a request that may have a stamped event, the handler itself finds the caller (`submission/stamps.py`).
    """

    async def checked(request: Request) -> Response:
        await authorize(request, scope, takes_ticket=takes_ticket)
        return await handler(request)

    async def counted(request: Request) -> Response:
        may_be_unknown = bool(takes_stamps and takes_stamps(request.headers))
        await _authorize(request, scope, takes_ticket=takes_ticket, may_be_unknown=may_be_unknown)
        try:
            return await handler(request)
        except DarkroomError as error:
            name_model = request.scope.get(MODEL)
            count_refusal(request, error, model="" if name_model is None else name_model())
            raise

    async def recorded(request: Request) -> Response:
        await _authorize(request, scope, takes_ticket=takes_ticket)
        if PRINCIPAL not in request.scope:  # a public route, as that which ends a session
            with suppress(DarkroomError):
                request.scope[PRINCIPAL] = await access_of(request).authenticate(request)
        if PRINCIPAL not in request.scope:
            return await handler(request)  # without an owner it changes nothing
        recorder, entry = _trail(request).recorder, _entry(request, principal_of(request))
        await recorder.open(entry)
        try:
            response = await handler(request)
        except DarkroomError as error:
            await recorder.close(entry, outcome=error.slug, status=error.status)
            raise
        except Exception:
            outcome, status = INTERNAL_ERROR
            await recorder.close(entry, outcome=outcome, status=status)
            raise
        created = response.headers.get("location", "").rpartition("/")[2]
        await recorder.close(entry, outcome=OK, status=response.status_code, object=created)
        return response

    match audit:
        case Audit.NOTHING:
            return checked
        case Audit.SUBMISSION:
            return counted
        case Audit.OPERATION:
            return recorded
    raise AssertionError(audit)


async def _authorize(request: Request, scope: Needed, *, takes_ticket: bool, may_be_unknown: bool = False) -> None:
    """As `authorize`. A refusal for lack of the scope is recorded."""
    try:
        await authorize(request, scope, takes_ticket=takes_ticket, may_be_unknown=may_be_unknown)
    except ScopeMissing as error:
        entry = _entry(request, principal_of(request))
        await _trail(request).recorder.append(replace(entry, outcome=error.slug, status=error.status))
        raise


def _entry(request: Request, principal: Principal) -> Entry:
    return entry_of(
        principal,
        uid=uuid4().hex,
        at=_now(),
        operation=_operation(request),
        object="/".join(str(value) for value in request.path_params.values()),
        trace=_trace_id(traces.traceparent_of(request.headers.get("traceparent"))),
    )


def _trail(request: Request) -> Trail:
    trail: Trail = request.app.state.trail
    return trail


def _operation(request: Request) -> str:
    route = request.scope["route"]
    return str(route.operation or route.label)


def _trace_id(traceparent: str | None) -> str:
    return traces.in_logs(traceparent).get("trace_id", "")


def _now() -> int:
    return time.time_ns() // 1_000_000
