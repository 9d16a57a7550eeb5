"""jobs: what became of a job, its pictures, its cancel and its deletion; dead letters, models, the description.

It reads the ledger and, of what is older, the history (`darkroom.history.lookup`), and the object store. Two things
change a job: `POST …/cancel` records a cancel, or ends a job that still waits, and `DELETE` removes a job that has
ended. Dead letters are a matter of their own (`letters.py`). Everything is scoped by the caller's tenant; a picture's
link carries its own permission.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import format_datetime
from http import HTTPStatus

import functions_framework.aio
import orjson
from darkroom import logs
from darkroom.artifacts import ArtifactStore, Stored
from darkroom.catalogue import models
from darkroom.catalogue.models import Catalogue
from darkroom.errors import NotFound, PreconditionFailed, RangeNotSatisfiable
from darkroom.history.deletion import Deletion
from darkroom.history.lookup import Lookup
from darkroom.history.store import History, Tombstone
from darkroom.jobs import JobEvent, State
from darkroom.ledger.calls import Cancelled, Receipt, cancel
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry
from darkroom.links import Links
from darkroom.settings import load
from darkroom.updates import celery_status
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from darkroom_functions.http import openapi, routes
from darkroom_functions.http.probes import patience
from darkroom_functions.http.responses import JSON_TYPE, answer
from darkroom_functions.http.routes import checked_id
from darkroom_functions.http.semantics import REVALIDATED, Selected, select
from darkroom_functions.resources import dead_letters, deliveries, listing, subscriptions, views
from darkroom_functions.resources.dead_letters import Letters
from darkroom_functions.resources.deliveries import Deliveries
from darkroom_functions.resources.subscriptions import Subscriptions
from darkroom_functions.settings import JobsSettings, catalogue_of
from darkroom_functions.streams.wait import JobWaits
from darkroom_functions.tenants import tenant_of

MEDIA_TYPES = {"png": "image/png"}
"""What artifacts are, by the extension of their keys."""

CONDITIONS = frozenset({"range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"})
"""The headers of a request whose answer depends on what is stored."""

_ARTIFACT = re.compile(r"(?P<tenant>[^/]+)/(?P<job>[^/]+)/\d+/\d+-(?P<sha256>[0-9a-f]{64})\.(?P<extension>[a-z]+)")

_log = logs.logger(__name__)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Everything that outlives one request."""
    settings = load(JobsSettings)
    catalogue = catalogue_of(settings)
    history = History(settings.database_url)
    client = connect_async(settings.redis_url.get_secret_value())
    app.state.ledger = AsyncLedger(client, settings.namespace)
    schemas = {model.name: models.schema(model) for model in catalogue}
    store = ArtifactStore(settings.store)
    lookup = Lookup(app.state.ledger, history)
    app.state.library = Library(
        ledger=app.state.ledger,
        lookup=lookup,
        dead_letters=Letters(app.state.ledger, lookup, catalogue, settings),
        subscriptions=Subscriptions(app.state.ledger, catalogue, settings),
        deliveries=Deliveries(app.state.ledger, lookup),
        deletion=Deletion(app.state.ledger, history, store),
        waiting=JobWaits(app.state.ledger, client, most_s=settings.max_wait_s, closing=app.state.closing),
        catalogue=catalogue,
        store=store,
        links=Links.of(settings),
        models=orjson.dumps(views.model_list(catalogue, schemas)),
        description=orjson.dumps(
            openapi.document(catalogue, public_url=settings.public_url, max_body_bytes=settings.max_body_bytes)
        ),
    )
    try:
        async with app.state.library.waiting.running():
            yield
    finally:
        await client.aclose()
        await history.aclose()


@functions_framework.aio.http
async def jobs(request: Request) -> Response:
    """Everything that `paths.OPERATIONS` gives to this function."""
    library: Library = request.app.state.library
    found = routes.find(request.method, request.scope["path"], models=library.catalogue.models)
    match found.operation.name:
        case name if name in dead_letters.OPERATIONS:
            return await library.dead_letters.answer(request, found)
        case name if name in subscriptions.OPERATIONS:
            return await library.subscriptions.answer(request, found)
        case name if name in deliveries.OPERATIONS:
            return await library.deliveries.answer(request, found)
        case "readTask":
            return await library.read_task(request, found.parts["id"])
        case "readJob":
            return await library.read_job(request, found.parts["id"])
        case "listJobs":
            return await library.list_jobs(request)
        case "deleteJob":
            return await library.delete_job(request, found.parts["id"])
        case "cancelJob":
            return await library.cancel_job(request, found.parts["id"])
        case "readArtifact":
            return await library.read_artifact(request, found.parts[routes.KEY])
        case "listModels":
            return Response(library.models, media_type=JSON_TYPE)
        case "describe":
            return Response(library.description, media_type=JSON_TYPE)
    raise NotFound(f"{request.method} {request.scope['path']} is answered by the function {found.operation.function}")


@dataclass(frozen=True)
class Library:
    """What can be read; `models` and `description` are answers that do not change while the process lives."""

    ledger: AsyncLedger
    lookup: Lookup
    dead_letters: Letters
    subscriptions: Subscriptions
    deliveries: Deliveries
    deletion: Deletion
    waiting: JobWaits
    catalogue: Catalogue
    store: ArtifactStore
    links: Links
    models: bytes
    description: bytes

    async def read_task(self, request: Request, job_id: str) -> Response:
        async with patience():
            record = await self.lookup.job(checked_id(job_id), tenant=tenant_of(request))
        return answer(views.task(record.id, celery_status(record)))

    async def read_job(self, request: Request, job_id: str) -> Response:
        """At once, or after the wait that was asked for: the job as it is then."""
        tenant, wait = tenant_of(request), self.waiting.asked(request)
        await self.waiting.for_end(checked_id(job_id), tenant=tenant, wait=wait, request=request)
        async with patience():
            record, log = await self.lookup.story(job_id, tenant=tenant)
        view = views.story(record, log, catalogue=self.catalogue, links=self.links, now_s=time.time())
        return answer(view, headers=wait.headers)

    async def list_jobs(self, request: Request) -> Response:
        asked = listing.read(request.query_params.multi_items())
        async with patience():
            listed = await self.lookup.page(
                tenant_of(request),
                limit=asked.limit,
                after=asked.after,
                state=asked.state,
                model=asked.model,
                user_id=asked.user_id,
            )
            records = listed.page.jobs
            heads = await self.ledger.heads([record.id for record in records])
        now_s = time.time()
        found = [
            views.job(record, head=head, catalogue=self.catalogue, links=self.links, now_s=now_s)
            for record, head in zip(records, heads, strict=True)
        ]
        return answer({"jobs": found, "next": listed.page.after, "complete": listed.is_complete})

    async def cancel_job(self, request: Request, job_id: str) -> Response:
        """Repeatable: the answer to a repeat has the receipt of the first, also when only the history has the job."""
        tenant = tenant_of(request)
        async with patience():
            done = await self.ledger.run(cancel(checked_id(job_id), tenant=tenant))
            if done.receipt is None or done.state is None:
                record, log = await self.lookup.story(job_id, tenant=tenant)
                done = Cancelled(_receipt(record.state, log), record.state)
        _log.info("cancel", job=job_id, tenant=tenant, receipt=done.receipt, state=done.state)
        return answer({"job_id": job_id, "receipt": done.receipt, "status": done.state})

    async def delete_job(self, request: Request, job_id: str) -> Response:
        """Repeatable: a repeat finishes what the first left undone, and is answered alike."""
        tenant, now = tenant_of(request), time.time_ns() // 1_000_000
        async with patience():
            found = await self.lookup.find(checked_id(job_id), tenant=tenant)
        if found is None:
            raise NotFound(f"there is no job {job_id}")
        if isinstance(found, Tombstone):
            await self.deletion.finish([found], now=now)
            _log.info("deleted", job=job_id, tenant=tenant)
        else:
            await self.deletion.delete(found, now=now)
            _log.info("deleted", tenant=tenant, **found.about)
        return Response(status_code=204)

    async def read_artifact(self, request: Request, key: str) -> Response:
        """The link is checked before anything is looked up, so that nobody learns what there is without one."""
        self.links.check(key, request.query_params, now_s=time.time())
        match = _ARTIFACT.fullmatch(key)
        if match is None or match["extension"] not in MEDIA_TYPES:
            raise NotFound("there is no such artifact")
        try:
            return await self._stored(request, key, tag=match["sha256"], media_type=MEDIA_TYPES[match["extension"]])
        except NotFound:
            async with patience():
                await self.lookup.job(checked_id(match["job"]), tenant=match["tenant"])  # raises Gone if deleted
            raise

    async def _stored(self, request: Request, key: str, *, tag: str, media_type: str) -> Response:
        """The artifact, the part of it or the refusal that the request's conditions select. Raises NotFound."""
        is_head = request.method == "HEAD"
        if not is_head and CONDITIONS.isdisjoint(request.headers):
            stored, content = await self.store.open(key)
            return StreamingResponse(content, headers=_headers_of(stored, tag, stored.size), media_type=media_type)
        stored = await self.store.find(key)
        asked = select(request.headers, tag=tag, modified=stored.written, size=stored.size)
        if is_head and asked.status in (206, 416):  # a range is of a GET alone
            asked = Selected(HTTPStatus.OK, 0, stored.size)
        match asked.status:
            case HTTPStatus.PRECONDITION_FAILED:
                raise PreconditionFailed("the artifact is another than If-Match or If-Unmodified-Since names")
            case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise RangeNotSatisfiable(f"the artifact has {stored.size} bytes", size=stored.size)
            case HTTPStatus.NOT_MODIFIED:
                return Response(status_code=asked.status, headers=_headers_of(stored, tag))
        headers = _headers_of(stored, tag, asked.end - asked.start)
        if is_head:
            return Response(headers=headers, media_type=media_type)
        if asked.status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {asked.start}-{asked.end - 1}/{stored.size}"
        _, content = await self.store.open(key, part=(asked.start, asked.end) if asked.end else None)
        return StreamingResponse(content, status_code=asked.status, headers=headers, media_type=media_type)


def _receipt(state: State, log: Sequence[LogEntry]) -> Receipt:
    """What the cancel of a job did that has ended."""
    if state is not State.CANCELLED:
        return Receipt.TOO_LATE
    was_running = any(entry.event is JobEvent.CANCELLING for entry in log)
    return Receipt.INTERRUPTING if was_running else Receipt.DEQUEUED


def _headers_of(stored: Stored, tag: str, length: int | None = None) -> dict[str, str]:
    """What an answer says of a picture, and of its own length."""
    headers = {
        "ETag": f'"{tag}"',
        "Last-Modified": format_datetime(stored.written, usegmt=True),
        "Accept-Ranges": "bytes",
        "Cache-Control": REVALIDATED,
    }
    return headers if length is None else headers | {"Content-Length": str(length)}
