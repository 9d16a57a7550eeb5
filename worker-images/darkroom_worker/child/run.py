"""A job in the worker's child: claim, engine, progress, artifacts, end.

The parent gives the message to Celery's task (`celery_app.py`), which comes here. The child has the engines of all
models of its pool, loaded before it tells the parent that it is up, and one connection each to the ledger and the
object store. An attempt's end is decided first, as one call of the ledger, and then made until the ledger has answered:
every call may be repeated. The pictures are stored before; only `finish` makes them anybody's.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from darkroom import errors, logs, traces
from darkroom.artifacts import ArtifactStore, StoreRefused, artifact_key, sha256_of
from darkroom.backoff import Backoff
from darkroom.catalogue import models
from darkroom.catalogue.models import Model
from darkroom.errors import TemporaryError
from darkroom.jobs import Artifact, ErrorKind, State, is_tenant
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, Call, LeaseStatus, ReleaseReason
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import ConnectionOptions
from structlog.contextvars import bound_contextvars

from darkroom_worker.child.memory import ChildMemory
from darkroom_worker.child.proof import FailedJobs, passes_self_test
from darkroom_worker.child.storing import ArtifactUploader
from darkroom_worker.engines.registry import Engine, EngineError, EngineResult, Interrupted, OutOfMemory, make_engine
from darkroom_worker.parent.pool import EXIT_FAULT

if TYPE_CHECKING:
    from darkroom_worker.celery_app import WorkerApp

T = TypeVar("T")

LOG_PROGRESS_EVERY_S = 0.25
"""Progress is written to the log of a job at most four times a second: people see no more."""

PROGRESS_TIMEOUTS = ConnectionOptions(timeout_s=1.0, retries=0)
"""A progress call holds the engine up: it waits for one short time-out, and is not repeated."""

SILENCE_S = 2.0
"""After Redis did not answer, steps go on for so long without asking: each call would hold the engine up."""

LEDGER_BACKOFF = Backoff(first_s=0.1, longest_s=5.0)
"""Between two attempts to make a call of the ledger. Their number has no limit: an outage of Redis does not count as an
attempt of the job. The lease lapses meanwhile, but no process reaps while Redis is unavailable.
"""

RETRY_BACKOFF = Backoff(first_s=1.5, longest_s=45.0, jitter=2 / 3)
"""Before a failed job is attempted again: 2 s, doubling up to a minute, and a quarter more or less."""

UNKNOWN_MODEL_PAUSE_S = 5.0
"""Before a job is given back whose model this worker does not know, as in a rollout: time for another to be there."""

REQUEUED = frozenset({"draining", "newer"})
REQUEUED_PAUSE_S = 1.0
"""After a job was put back, because the operator marked this worker or because the job's record is of a later version
than it knows: time for another to take it. This worker would take it again at once.
"""

PNG = "image/png"


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job that was claimed here. `input` is JSON text.

    `attempt` counts its starts, `counted` the attempts that were charged to it before.
    """

    id: str
    token: str
    tenant: str
    model: str
    input: str
    attempt: int
    counted: int
    run_timeout_s: float


@dataclass(frozen=True)
class AttemptOutcome:
    """What becomes of an attempt; without a call, it is another's. `fault`: this process must not run another job.

    `failure`: why it failed, where that may be the worker's doing as well as the job's.
    """

    call: Call[AttemptEnd] | None
    fault: bool = False
    failure: ErrorKind | None = None


def retry_delay_ms(counted: int, *, chance: float) -> int:
    """The delay of a job that failed after `counted` attempts were charged to it before; `chance` is from 0 to 1."""
    return round(1000 * RETRY_BACKOFF.after(counted + 1, dice=chance))


def open_runner(app: WorkerApp) -> Runner:
    """Load every model of the pool. A model that does not load ends the process, as a fault of the worker.

    So does a failed proof run, in a child that replaces another one: the job that ended that one was charged for it,
    and only now there is evidence about the device.
    """
    log = logs.logger(__name__)
    try:
        metadata = app.settings.picture_metadata == "full"
        engines = {model.name: (model, _loaded(model, metadata=metadata)) for model in app.models}
        store = ArtifactStore(app.settings.store)
        runner = Runner(
            engines,
            app.ledger(),
            store,
            app.worker_name,
            of_steps=app.ledger(PROGRESS_TIMEOUTS),
            memory=app.memory,
        )
        is_proven = app.suspects is None or passes_self_test(engines, suspects=app.suspects, give_up=end_process)
    except Exception:  # Celery would log it and take the child for ready
        log.exception("not_loaded")
        end_process()
    if not is_proven:
        log.error("not_proven", suspects=sorted(app.suspects or ()))
        end_process()
    return runner


def _loaded(model: Model, *, metadata: bool) -> Engine:
    log = logs.logger(__name__)
    began = time.monotonic()
    log.info("loading", model=model.name, engine=model.engine, source=model.source)
    engine = make_engine(model, metadata=metadata)
    engine.load()
    log.info("loaded", model=model.name, seconds=round(time.monotonic() - began, 3))
    return engine


def end_process() -> NoReturn:
    """End this process at once, so that the parent starts another: a broken device may hang in any tidier end."""
    os._exit(EXIT_FAULT)


class ProgressReporter:
    """What an engine calls after each denoising step: tells the ledger, and stops the run when it should not go on.

    `stopped_by` then gives the reason: the job was cancelled, it is another's, or (None) its time is up. The time that
    the calls take, `waited_s` in all, is not run time.
    """

    def __init__(self, ledger: Ledger, job: ClaimedJob, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._job, self._clock = ledger, job, clock
        self._overdue_at = clock() + job.run_timeout_s
        self._op = 0
        self._told_at = -math.inf
        self._silent_until = -math.inf
        self.waited_s = 0.0
        self.stopped_by: LeaseStatus | None = None

    def __call__(self, step: int, steps: int) -> None:
        now = self._clock()
        if now > self._overdue_at + self.waited_s:
            raise Interrupted("its time is up")
        last = step >= steps
        if now < self._silent_until and not last:
            return
        tell = last or now - self._told_at >= LOG_PROGRESS_EVERY_S
        self._op += 1
        call = calls.progress(self._job.id, token=self._job.token, op=self._op, step=step, steps=steps, publish=tell)
        try:
            standing = self._ledger.run(call)
        except TemporaryError:
            self._silent_until = self._clock() + SILENCE_S
            return
        finally:
            self.waited_s += self._clock() - now
        if tell:
            self._told_at = now
        self._go_on(standing)

    def check(self) -> None:
        """Between steps: raise Interrupted where the job was cancelled, or is another worker's."""
        try:
            standing = self._ledger.run(calls.renew(self._job.id, token=self._job.token))
        except TemporaryError:
            return
        self._go_on(standing)

    def _go_on(self, standing: LeaseStatus) -> None:
        if standing is not LeaseStatus.OK:
            self.stopped_by = standing
            raise Interrupted(f"the ledger says: {standing}")


class Runner:
    """The child's side of the worker: engines by the name of their model, the ledger, the object store.

    `of_steps` is the ledger for progress calls, with a patience of its own. `memory` is
    shared with the parent.
    """

    def __init__(
        self,
        engines: Mapping[str, tuple[Model, Engine]],
        ledger: Ledger,
        store: ArtifactStore,
        worker: str,
        *,
        of_steps: Ledger,
        memory: ChildMemory,
    ) -> None:
        self._engines, self._ledger, self._worker = engines, ledger, worker
        self._storing = ArtifactUploader(store, worker)
        self._of_steps = of_steps
        self._memory = memory
        self._failed_jobs = FailedJobs()
        self._log = logs.logger(__name__)

    def run_job(self, job_id: str, *, token: str, traceparent: str | None) -> str:
        """One message from its arrival to its end. Answers what became of the attempt, in a word or two: for Flower to
        show, and for the parent (`QueueGate.on_answer`).
        """
        with bound_contextvars(job=job_id, **traces.in_logs(traceparent)):
            claim = self._insist(calls.claim(job_id, token=token, worker=self._worker))
            if claim.attempt is None:
                self._log.info("dropped", reason=claim.dropped)
                if claim.dropped in REQUEUED:
                    time.sleep(REQUEUED_PAUSE_S)
                return f"dropped: {claim.dropped}"
            job = ClaimedJob(
                id=job_id,
                token=token,
                tenant=claim.tenant,
                model=claim.model,
                input=claim.input,
                attempt=claim.attempt,
                counted=claim.counted,
                run_timeout_s=claim.run_timeout,
            )
            began = time.monotonic()
            self._memory.begin_attempt(job.model)
            ending = self._attempt(job)
            ended = self._insist(ending.call) if ending.call else AttemptEnd.LOST
            seconds = round(time.monotonic() - began, 3)
            self._log.info("attempt_ended", attempt=job.attempt, ended=ended, seconds=seconds)
            if ending.fault:
                end_process()
            self._memory.end_attempt()
            if ended is AttemptEnd.COMPLETED:
                self._failed_jobs.completed()
            return f"{ended}: {ending.failure}" if ending.failure else f"{ended}"

    def close(self) -> None:
        """Give the devices' memory back."""
        for _, engine in self._engines.values():
            engine.close()

    def _attempt(self, job: ClaimedJob) -> AttemptOutcome:
        """Run the job and decide how the attempt ends. Nothing but that end is left to do then."""
        steps = ProgressReporter(self._of_steps, job)
        began = time.monotonic()
        try:
            model, engine, parameters = self._prepare(job)
            run = self._run(engine, parameters, job_id=job.id, on_step=steps)
            run_ms = round(1000 * (time.monotonic() - began - steps.waited_s))
            return self._completed(job, model=model, run=run, run_ms=run_ms, check=steps.check)
        except Interrupted:
            return _interrupted(job, steps.stopped_by)
        except errors.UnknownModel as error:
            self._log.warning("unknown_model", detail=error.detail)
            time.sleep(UNKNOWN_MODEL_PAUSE_S)
            return AttemptOutcome(_fault(job, error.detail))
        except errors.InvalidInput as error:
            return AttemptOutcome(_failed(job, ErrorKind.INVALID_INPUT, error.detail))
        except StoreRefused as error:
            self._log.exception("store_refused")
            return AttemptOutcome(_failed(job, ErrorKind.INVALID_INPUT, error.detail))
        except EngineError as error:
            self._log.exception("engine_failed", kind=error.kind)
            if error.kind is ErrorKind.WORKER_FAULT:
                return AttemptOutcome(_fault(job, error.detail), fault=True)
            return self._charged(job, error.kind, error.detail)
        except Exception as error:
            self._log.exception("run_failed")
            return self._charged(job, ErrorKind.TRANSIENT, f"the run failed ({type(error).__name__})")

    def _charged(self, job: ClaimedJob, kind: ErrorKind, message: str) -> AttemptOutcome:
        """The end of a failed attempt: the job is charged for it, unless the device fails in a proof run too."""
        if self._failed_jobs.failed(job.id):
            with self._memory.paused():
                if not passes_self_test(self._engines, give_up=end_process):
                    return AttemptOutcome(_fault(job, f"{message}; a proof run failed too"), fault=True)
            self._failed_jobs.completed()
        return AttemptOutcome(_retry(job, kind, message), failure=kind)

    def _run(
        self, engine: Engine, parameters: Mapping[str, Any], *, job_id: str, on_step: ProgressReporter
    ) -> EngineResult:
        """Run the engine and, where the device's memory does not suffice, at once a second time in its leaner way."""
        try:
            return engine.run(parameters, job_id=job_id, on_step=on_step)
        except OutOfMemory as error:
            self._log.warning("out_of_memory", detail=error.detail, again="lean")
        return engine.run(parameters, job_id=job_id, on_step=on_step, lean=True)

    def _prepare(self, job: ClaimedJob) -> tuple[Model, Engine, dict[str, object]]:
        """The job's model, its engine and its parameters. Raises InvalidInput, UnknownModel."""
        if not is_tenant(job.tenant):
            raise errors.InvalidInput(f"{job.tenant!r} cannot name a tenant: no picture of it could be stored")
        if job.model not in self._engines:
            raise errors.UnknownModel(f"worker {self._worker} does not serve model {job.model!r}")
        model, engine = self._engines[job.model]
        return model, engine, models.validate(model, json.loads(job.input))

    def _completed(
        self, job: ClaimedJob, *, model: Model, run: EngineResult, run_ms: int, check: Callable[[], None]
    ) -> AttemptOutcome:
        """Store the pictures, then have them published. Raises StoreRefused, and what `check` raises."""
        artifacts = []
        for index, picture in enumerate(run.pictures):
            sha256 = sha256_of(picture.png)
            key = artifact_key(
                tenant=job.tenant, job_id=job.id, attempt=job.attempt, index=index, sha256=sha256, extension="png"
            )
            with self._memory.paused():
                self._storing.put(key, picture.png, check=check)
            size = len(picture.png)
            artifacts.append(Artifact(key, sha256, PNG, size=size, width=picture.width, height=picture.height))
        data: dict[str, Any] = {
            "artifacts": [artifact.encode() for artifact in artifacts],
            "record": run.record,
            "model_served": model.served,
            "attempt": job.attempt,
            "worker": self._worker,
            "run_ms": run_ms,
        }
        return AttemptOutcome(calls.finish(job.id, token=job.token, outcome=State.COMPLETED, data=data))

    def _insist(self, call: Call[T]) -> T:
        """Make the call until Redis answers. A drain ends the process that waits here."""
        pauses = LEDGER_BACKOFF.pauses()
        while True:
            try:
                return self._ledger.run(call)
            except TemporaryError as error:
                self._log.warning("ledger_away", script=call.script, detail=error.detail)
            time.sleep(next(pauses))


def _interrupted(job: ClaimedJob, stopped_by: LeaseStatus | None) -> AttemptOutcome:
    if stopped_by is None:
        return AttemptOutcome(_failed(job, ErrorKind.DEADLINE, f"it ran longer than {job.run_timeout_s:g} s"))
    if stopped_by is LeaseStatus.LOST:
        return AttemptOutcome(None)
    data = _error(ErrorKind.CANCELLED, "cancelled on request")
    return AttemptOutcome(calls.finish(job.id, token=job.token, outcome=State.CANCELLED, data=data))


def _failed(job: ClaimedJob, kind: ErrorKind, message: str) -> Call[AttemptEnd]:
    return calls.finish(job.id, token=job.token, outcome=State.FAILED, data=_error(kind, message))


def _retry(job: ClaimedJob, kind: ErrorKind, message: str) -> Call[AttemptEnd]:
    delay_ms = retry_delay_ms(job.counted, chance=random.random())  # noqa: S311 - no secret
    error = {"kind": kind, "message": message}
    return calls.retry(job.id, token=job.token, error=error, delay_ms=delay_ms)


def _fault(job: ClaimedJob, detail: str) -> Call[AttemptEnd]:
    return calls.release(job.id, reason=ReleaseReason.WORKER_FAULT, detail=detail, token=job.token)


def _error(kind: ErrorKind, message: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message}}
