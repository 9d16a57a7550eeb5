"""The dead letters of a tenant over HTTP: listed, shown, redriven and purged. `jobs.py` hands their requests on.

A redrive is a submission like any other: the letter's job is checked against its model as that is now, and accepted by
the ledger in the step in which the letter leaves the list. So it is done once, however often it is asked for.
"""

from __future__ import annotations

from darkroom import logs, traces
from darkroom.catalogue.models import Catalogue
from darkroom.cloudevents import event
from darkroom.errors import DarkroomError, NotFound
from darkroom.history.lookup import Lookup
from darkroom.jobs import State
from darkroom.ledger.calls import Purged, purge_dead_letter
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.dead_letters import DeadLetters
from starlette.requests import Request
from starlette.responses import Response

from darkroom_functions.http.bodies import json_object, read_body
from darkroom_functions.http.probes import patience
from darkroom_functions.http.responses import answer
from darkroom_functions.http.routes import Found, checked_id
from darkroom_functions.resources import listing, views
from darkroom_functions.settings import JobsSettings
from darkroom_functions.submission import reading
from darkroom_functions.submission.intake import Intake, fresh, slip_headers, slip_status
from darkroom_functions.tenants import tenant_of

OPERATIONS = frozenset(
    {"listDeadLetters", "purgeDeadLetters", "readDeadLetter", "purgeDeadLetter", "redriveDeadLetter"}
)
"""Those of `paths.OPERATIONS` that are carried out here."""

PURGED_AT_ONCE = 100
"""Dead letters that one round trip purges: a few ms of Redis' time."""

_log = logs.logger(__name__)


class Letters:
    """What can be done with them."""

    def __init__(self, ledger: AsyncLedger, lookup: Lookup, catalogue: Catalogue, settings: JobsSettings) -> None:
        self._ledger = ledger
        self._lookup = lookup
        self._catalogue = catalogue
        self._settings = settings
        self._dead_letters = DeadLetters(ledger, lookup)
        self._intake = Intake(ledger, settings)

    async def answer(self, request: Request, found: Found) -> Response:
        """One of `OPERATIONS`."""
        match found.operation.name:
            case "listDeadLetters":
                return await self._list(request)
            case "purgeDeadLetters":
                return await self._purge_all(request)
            case "readDeadLetter":
                return await self._read(request, found.parts["id"])
            case "purgeDeadLetter":
                return await self._purge(request, found.parts["id"])
        return await self._redrive(request, found.parts["id"])

    async def _list(self, request: Request) -> Response:
        asked = listing.read_letters(request.query_params.multi_items())
        async with patience():
            page = await self._dead_letters.page(tenant_of(request), limit=asked.limit, after=asked.after)
        return answer({"dead_letters": [views.dead_letter(letter) for letter in page.letters], "next": page.after})

    async def _read(self, request: Request, job_id: str) -> Response:
        async with patience():
            letter = await self._dead_letters.find(checked_id(job_id), tenant=tenant_of(request))
        if letter is None:
            raise _no_letter(job_id)
        return answer(views.dead_letter(letter))

    async def _redrive(self, request: Request, job_id: str) -> Response:
        """Repeatable, whatever the repeat would edit: the first redrive's job is the answer."""
        tenant = tenant_of(request)
        body = await read_body(request, limit=self._settings.max_body_bytes)
        edits = reading.read_edits(json_object(request, body, may_be_empty=True))
        async with patience():
            record = await self._ledger.job(checked_id(job_id), tenant=tenant)
            found = [] if record is None else await self._lookup.completed([record])
        if not found or found[0].state is not State.FAILED:
            raise _no_letter(job_id)
        job = reading.of_redrive(
            found[0],
            edits,
            catalogue=self._catalogue,
            fresh=fresh(),
            source=self._settings.public_url,
            traceparent=traces.traceparent_of(request.headers.get("traceparent")),
        )
        accepted = await self._intake.take(job, memory_high=await self._intake.is_memory_high())
        content = event.accepted_answer(accepted.job_id, accepted.state)
        return answer(content, status=slip_status(accepted), headers=slip_headers(accepted))

    async def _purge(self, request: Request, job_id: str) -> Response:
        """Repeatable, and the same for one that was redriven: it is a dead letter no more."""
        tenant = tenant_of(request)
        async with patience():
            done = await self._ledger.run(purge_dead_letter(checked_id(job_id), tenant=tenant))
        if done is Purged.UNKNOWN:
            raise _no_letter(job_id)
        _log.info("purged", job=job_id, tenant=tenant, repeated=done is Purged.REPEATED)
        return Response(status_code=204)

    async def _purge_all(self, request: Request) -> Response:
        """All that there are when it begins; answers how many."""
        tenant = tenant_of(request)
        count, after = 0, None
        while True:
            async with patience():
                places = await self._ledger.dead_letters(tenant, limit=PURGED_AT_ONCE, after=after)
                done = await self._ledger.run_each([purge_dead_letter(place.id, tenant=tenant) for place in places])
            for each in done:
                if isinstance(each, DarkroomError):
                    raise each
            count += len(places)
            if len(places) < PURGED_AT_ONCE:
                break
            after = places[-1]
        _log.info("purged_all", tenant=tenant, letters=count)
        return answer({"purged": count})


def _no_letter(job_id: str) -> NotFound:
    return NotFound(f"there is no dead letter {job_id}")
