"""Job events that the sink delivers: `result` applies them.

The courier posts each job's terminal CloudEvent, and that of a start where a webhook asks for it, until it is *applied*
(`lua/outbox/mark_applied.lua`), which stores the deliveries to webhooks. It posts to a Knative Broker, whose Trigger
delivers to `POST /`, or on one machine to `POST /events`. An event may arrive many times and is applied once: the
idempotency key is the job with the number of the entry in its log. A repeat is a success, and so is an event that a
retry cannot help; only a temporary failure is answered so that the event is delivered again.

An event without the courier's proof is refused with 403, which a Broker does not retry, and nothing is stored: a forged
end would have webhooks delivered. If the event was genuine, as during a rotation of keys, the courier posts it again.
"""

from __future__ import annotations

from darkroom import logs, traces
from darkroom.cloudevents.event import REQUESTED, SEQUENCE_DIGITS, Event, invalid, type_of
from darkroom.cloudevents.proofs import Proofs
from darkroom.errors import FieldError, NewerRecord
from darkroom.jobs import TERMINAL, JobEvent, is_job_id
from darkroom.ledger import calls
from darkroom.ledger.client import AsyncLedger
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http import routes
from darkroom_functions.http.access import Open
from darkroom_functions.http.bodies import read_event
from darkroom_functions.http.probes import ledger_timeout
from darkroom_functions.http.routes import ApiRoute

APPLIED_TYPES = frozenset({type_of(JobEvent.STARTED), *(type_of(JobEvent(state)) for state in TERMINAL)})
"""The events that webhooks receive."""

OWN_TYPES = "dev.darkroom."
"""The prefix of all event types of darkroom. Those that are not applied are for other subscribers."""

_log = logs.logger(__name__)


async def apply_event(request: Request) -> Response:
    """`POST /` and `POST /events`: one CloudEvent in binary or structured mode.

    The response is 204 without content: a Trigger's subscriber may answer nothing, or an event.
    """
    event = await read_event(request, limit=request.app.state.settings.max_body_bytes)
    proofs: Proofs = request.app.state.proofs
    proofs.check(event)
    if event.type == REQUESTED and request.scope["route"].template == routes.SINK:
        raise invalid([FieldError("type", "must not be that of a job request: there is no Broker that forwards it")])
    await _apply(event, request.app.state.ledger)
    return Response(status_code=204)


async def _apply(event: Event, ledger: AsyncLedger) -> None:
    """Raises InvalidEvent for an event of no job; LedgerUnavailable and NewerRecord, which have it delivered again."""
    if event.type.startswith(OWN_TYPES) and event.type not in APPLIED_TYPES:
        _log.info("event_ignored", event_id=event.id, type=event.type, job=event.subject)
        return
    job_id, seq = _entry_of(event)
    async with ledger_timeout():
        applied = await ledger.run(calls.mark_applied(job_id, seq=seq))
    if applied is calls.Applied.NEWER:
        raise NewerRecord(f"the record of job {job_id} is of a later version than this function knows", retry_after=5)
    log = _log.warning if applied is calls.Applied.UNKNOWN else _log.info
    trace = traces.in_logs(event.traceparent)
    log("event_taken", job=job_id, event_id=event.id, type=event.type, seq=seq, outcome=applied.value, **trace)


def _entry_of(event: Event) -> tuple[str, int]:
    """The job of the event, and the number of the event's entry in the job's log. Raises InvalidEvent."""
    sequence = str(event.extensions.get("sequence", ""))
    faults: list[FieldError] = []
    if event.type not in APPLIED_TYPES:
        faults.append(FieldError("type", f"must be one of {', '.join(sorted(APPLIED_TYPES))}"))
    if not is_job_id(event.subject or ""):
        faults.append(FieldError("subject", "must be the id of a job"))
    if not (sequence.isascii() and sequence.isdigit() and len(sequence) <= SEQUENCE_DIGITS):
        faults.append(
            FieldError("sequence", f"must be the number of an entry in the job's log, in {SEQUENCE_DIGITS} digits")
        )
    if faults:
        raise invalid(faults)
    return event.subject or "", int(sequence)


ROUTES = [ApiRoute("POST", path, apply_event, scope=Open.INTERNAL, takes_events=True) for path in ("/", routes.SINK)]
