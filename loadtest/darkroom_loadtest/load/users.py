"""The kinds of locust users; only locust's processes import this.

Each user submits at a constant rate and waits in the background, so that a slow system receives the same load (an open
loop). Each accepted job is followed until it finishes: the time from before the request to the terminal message is a
request of the type `end-to-end`. A refusal with `Retry-After` is not a failure; the report shows it with its reason.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gevent
from locust import FastHttpUser, task
from locust.env import Environment

from darkroom_loadtest.load import hostile, keys
from darkroom_loadtest.load.journal import Journal
from darkroom_loadtest.load.profiles import LoadPlan
from darkroom_loadtest.load.prompts import PROMPTS
from darkroom_loadtest.load.watchers import WatchedJob, Watchers

BATCH = 5
"""Events of a batch; a batch user submits that many times less often."""

REPEATED = 10
"""One in this many events is sent twice with the same id and source, which is one job."""

REFUSALS = frozenset({429, 503})
ACCEPTED = 202
DONE = 200

RECEIPTS = frozenset({"dequeued", "interrupting", "too_late"})
"""The valid receipts of a cancel."""

EXPECTED_STATES = frozenset({"completed", "cancelled"})


class Session:
    """The state that the users of one process share."""

    def __init__(self, plan: LoadPlan, environment: Environment) -> None:
        self.plan = plan
        self.environment = environment
        self.journal = Journal()
        self.watchers = Watchers(plan.host, self.journal, self._on_end)
        self.prompts = itertools.cycle(PROMPTS)
        self.keys = keys.read(os.environ)
        self.keys_in_turn = keys.in_turn(self.keys)
        self.in_flight = 0
        """Requests without a response yet."""

    @property
    def outstanding(self) -> int:
        """Jobs without a terminal message, and requests without a response."""
        return len(self.watchers.outstanding) + self.in_flight

    def report(self, name: str, ms: float, *, failure: str | None = None) -> None:
        self.environment.events.request.fire(
            request_type="end-to-end",
            name=name,
            response_time=ms,
            response_length=0,
            exception=RuntimeError(failure) if failure else None,
            context={},
        )

    def _on_end(self, watched: WatchedJob, state: str, ms: float) -> None:
        self.report(watched.way, ms, failure=None if state in EXPECTED_STATES else f"finished as {state}")


@dataclass(frozen=True)
class SubmitResponse:
    """A response; `ms` is the latency from `asked`. `document` is empty if the body is not a JSON object."""

    status: int
    document: Mapping[str, Any]
    asked: float
    ms: float


class LoadUser(FastHttpUser):
    """The base of all users. `session` is set before locust creates users."""

    abstract = True
    session: ClassVar[Session]
    concurrency = 1000
    connection_timeout = 30.0
    network_timeout = 60.0
    jobs_at_once: ClassVar[int] = 1
    own_socket: ClassVar[bool] = False
    way: ClassVar[str] = ""
    key: str | None = None

    def on_start(self) -> None:
        """Spread the first requests of users that start together, over at most a quarter of the run."""
        self.key = next(self.session.keys_in_turn)
        plan = self.session.plan
        gevent.sleep(random.uniform(0, min(plan.pace_s, plan.duration_s / 4)))

    def wait_time(self) -> float:
        """The time until the next request is due, at a constant rate."""
        pace_s = self.session.plan.pace_s * self.jobs_at_once
        now = time.monotonic()
        self._due = max(now, getattr(self, "_due", now) + pace_s)
        return self._due - now

    @task
    def turn(self) -> None:
        gevent.spawn(self._counted)

    def _counted(self) -> None:
        self.session.in_flight += 1
        try:
            self.act()
        except Exception as error:  # the user continues; the run fails
            self.session.journal.note("error", what=f"{self.way}: {type(error).__name__} {error}"[:300])
            raise
        finally:
            self.session.in_flight -= 1

    def act(self) -> None:
        """One request. Subclasses implement it; locust's metaclass does not allow an abstract base class."""
        raise NotImplementedError

    def input(self) -> dict[str, Any]:
        return {"prompt": next(self.session.prompts), **self.session.plan.parameters}

    def ask(
        self, path: str, body: bytes, headers: Mapping[str, str], *, name: str, jobs: int = 1, offered: bool = True
    ) -> SubmitResponse | None:
        """POST a submission; None if it was refused or failed, which is recorded."""
        journal = self.session.journal
        if offered:
            for _ in range(jobs):
                journal.note("offered", way=self.way)
        asked = time.perf_counter()
        sent = {**headers, **keys.headers(self.key)}
        with self.client.post(path, data=_raw(body), headers=sent, name=name, catch_response=True) as response:
            ms = (time.perf_counter() - asked) * 1000
            status = response.status_code
            found = _document(response.text)
            retry_after = (response.headers or {}).get("retry-after")
            if status in (ACCEPTED, DONE):
                response.success()
                return SubmitResponse(status, found, asked, ms)
            if status in REFUSALS and found.get("type"):
                response.success()
                for _ in range(jobs):
                    self.refused(status, found, retry_after, ms)
                return None
            what = f"{self.way}: response {status} {found.get('detail') or response.error or ''}"[:300]
            response.failure(what)
            journal.note("error", what=what)
        return None

    def refused(self, status: int, problem: Mapping[str, Any], retry_after: str | None, ms: float) -> None:
        reason = str(problem.get("type", "")).rpartition("/")[2]
        self.session.journal.note("refused", way=self.way, status=status, reason=reason, retry_after=retry_after, ms=ms)

    def accepted(self, job: str, answer: SubmitResponse) -> None:
        """Record the acceptance, and follow the job until it finishes."""
        self.session.journal.note("accepted", job=job, way=self.way, ms=answer.ms)
        watched = WatchedJob(job, self.way, answer.asked, self.key)
        self.session.watchers.follow(watched, own_socket=self.own_socket)

    def submit_rest(self) -> str | None:
        """Submit a job by REST; returns its id."""
        body = json.dumps(self.input()).encode()
        answer = self.ask(
            f"/{self.session.plan.model}", body, {"content-type": "application/json"}, name=f"submit: {self.way}"
        )
        if answer is None:
            return None
        job = str(answer.document["job_id"])
        self.accepted(job, answer)
        return job

    def event(self) -> dict[str, Any]:
        """A CloudEvent in structured mode."""
        return {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": "/loadtest",
            "type": "dev.darkroom.job.requested",
            "datacontenttype": "application/json",
            "data": {"model": self.session.plan.model, **self.input()},
        }


class BinaryUser(LoadUser):
    """CloudEvents in binary mode; one in REPEATED is sent again, as a Broker may do."""

    way = "binary"

    def act(self) -> None:
        event = self.event()
        body = json.dumps(event.pop("data")).encode()
        media_type = event.pop("datacontenttype")
        headers = {"content-type": media_type, **{f"ce-{name}": value for name, value in event.items()}}
        answer = self.ask("/", body, headers, name="submit: binary")
        if answer is None:
            return
        job = str(answer.document["job_id"])
        self.accepted(job, answer)
        if random.randrange(REPEATED) == 0:
            again = self.ask("/", body, headers, name="submit: binary, again", offered=False)
            if again is not None and again.document["job_id"] != job:
                self.session.journal.note("doubled", job=job, other=again.document["job_id"])


class StructuredUser(LoadUser):
    """CloudEvents in structured mode."""

    way = "structured"

    def act(self) -> None:
        body = json.dumps(self.event()).encode()
        answer = self.ask("/", body, {"content-type": "application/cloudevents+json"}, name="submit: structured")
        if answer is not None:
            self.accepted(str(answer.document["job_id"]), answer)


class BatchUser(LoadUser):
    """Batches of CloudEvents; each event has its own result."""

    way = "batch"
    jobs_at_once = BATCH

    def act(self) -> None:
        body = json.dumps([self.event() for _ in range(BATCH)]).encode()
        headers = {"content-type": "application/cloudevents-batch+json"}
        answer = self.ask("/", body, headers, name="submit: batch", jobs=BATCH)
        for verdict in answer.document["verdicts"] if answer else ():
            if "job_id" in verdict:
                self.accepted(str(verdict["job_id"]), answer)  # type: ignore[arg-type]
            else:
                # The result of an event in a batch has no headers: its status defines whether it can be retried.
                self.refused(verdict["status"], verdict["problem"], "in a batch", answer.ms)  # type: ignore[union-attr]


class RestUser(LoadUser):
    """REST; the job is followed over a shared socket."""

    way = "rest"

    def act(self) -> None:
        self.submit_rest()


class SharedSocketUser(RestUser):
    """The same as `rest`, under a separate name for mixes: many jobs on one socket, which subscribes to new jobs."""

    way = "shared-socket"


class SocketUser(RestUser):
    """REST, and a socket for each job, as the documented clients do."""

    way = "socket"
    own_socket = True


class WaitingUser(LoadUser):
    """`Prefer: wait`: the response is the finished job, or the receipt after the timeout."""

    way = "waiting"

    def act(self) -> None:
        plan = self.session.plan
        headers = {"content-type": "application/json", "prefer": f"wait={plan.wait_s}"}
        answer = self.ask(f"/{plan.model}", json.dumps(self.input()).encode(), headers, name="submit and wait")
        if answer is None:
            return
        job = str(answer.document["job_id"])
        if answer.status == ACCEPTED:
            self.accepted(job, answer)
            return
        state = str(answer.document["state"])
        journal = self.session.journal
        # No 202 was sent, so the latency of the submission is unknown.
        journal.note("accepted", job=job, way=self.way, ms=None)
        journal.note("ended", job=job, state=state, event=f"{job}:end", ms=answer.ms, way="wait")
        self.session.report(self.way, answer.ms, failure=None if state in EXPECTED_STATES else f"finished as {state}")


class CancellingUser(LoadUser):
    """Cancels its jobs after different times, so that some are pending, some running and some finished."""

    way = "cancelling"

    def act(self) -> None:
        job = self.submit_rest()
        if job is None:
            return
        gevent.sleep(random.choice((0.0, 0.05, 0.5)))
        path = f"/api/v1/generation-jobs/{job}/cancel"
        own = keys.headers(self.key)
        with self.client.post(path, headers=own, name="cancel", catch_response=True) as response:
            receipt = _document(response.text).get("receipt")
            if response.status_code == DONE and receipt in RECEIPTS:
                response.success()
                self.session.journal.note("cancelled", job=job, receipt=receipt)
            else:
                what = f"a cancel's response was {response.status_code}"
                response.failure(what)
                self.session.journal.note("error", what=what)


class HostileUser(LoadUser):
    """Sends every case of hostile input."""

    way = "hostile"

    def act(self) -> None:
        for case in hostile.cases(self.session.plan.model, with_keys=self.key is not None):
            self._send(case)

    def _send(self, case: hostile.Case) -> None:
        asked = time.perf_counter()
        with self.client.request(
            case.method,
            case.path,
            data=_raw(case.body()),
            headers={**keys.headers(self.key), **case.headers},
            name=f"hostile: {case.name}",
            catch_response=True,
        ) as response:
            ms = (time.perf_counter() - asked) * 1000
            content_type = (response.headers or {}).get("content-type") or ""
            refused = hostile.is_refused(response.status_code, content_type)
            if refused:
                response.success()
            else:
                response.failure(f"not refused: {response.status_code} {content_type}")
            self.session.journal.note("hostile", case=case.name, refused=refused, status=response.status_code, ms=ms)


KINDS: Mapping[str, type[LoadUser]] = {
    kind.way: kind
    for kind in (
        *(BinaryUser, StructuredUser, BatchUser, RestUser, WaitingUser),
        *(SocketUser, SharedSocketUser, CancellingUser, HostileUser),
    )
}
"""User classes by their name in profiles."""


def _raw(body: bytes) -> Any:
    """A body that may be bytes, which the client accepts although its types do not include them."""
    return body or None


def _document(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
