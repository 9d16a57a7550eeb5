"""The processing of a job in the worker's child: claim, engine, progress, artifacts, finish.

The parent passes the message to Celery's task (`celery_app.py`), which calls `Runner.run_job`. The child has the
engines of all models of its pool, loaded before it reports that it is up, and one connection each to the ledger and to
the object store. The result of an attempt is decided first (`results.py`), as one call of the ledger, and that call is
repeated until the ledger has answered: every call is idempotent. The artifacts are stored before; only `finish`
publishes them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from darkroom import errors, logs, traces
from darkroom.artifacts import ArtifactStore, StoreRefused, artifact_key, sha256_of
from darkroom.backoff import Backoff
from darkroom.catalogue import models
from darkroom.catalogue.models import Model
from darkroom.errors import TemporaryError
from darkroom.jobs import Artifact, ErrorKind, is_tenant
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, Call
from darkroom.ledger.client import Ledger
from structlog.contextvars import bound_contextvars

from darkroom_worker.child import results
from darkroom_worker.child.memory import ChildMemory
from darkroom_worker.child.progress import PROGRESS_TIMEOUTS, ProgressReporter
from darkroom_worker.child.results import AttemptOutcome, ClaimedJob
from darkroom_worker.child.self_test import FailedJobs, passes_self_test
from darkroom_worker.child.upload import ArtifactUploader
from darkroom_worker.engines.registry import Engine, EngineError, EngineResult, Interrupted, OutOfMemory, make_engine
from darkroom_worker.parent.pool import EXIT_FAULT

if TYPE_CHECKING:
    from darkroom_worker.celery_app import WorkerApp

T = TypeVar("T")

LEDGER_BACKOFF = Backoff(first_s=0.1, longest_s=5.0)
"""The pauses between two tries of a call. Their number has no limit: an outage of Redis is no failed attempt of a job.
The lease expires meanwhile, but no process reaps while Redis is unavailable.
"""

UNKNOWN_MODEL_PAUSE_S = 5.0
"""The pause before a job is released whose model this worker does not know, as during a rollout: another worker claims
it.
"""

REQUEUED = frozenset({"draining", "newer"})
REQUEUED_PAUSE_S = 1.0
"""The pause after a job was requeued, because the operator drains this worker or because a later version wrote the
job's record: another worker claims it. This worker would receive it again at once.
"""

PNG = "image/png"


def open_runner(app: WorkerApp) -> Runner:
    """Load every model of the pool. A model that does not load ends the process, as a fault of the worker.

    So does a failed self-test, in a child that replaces another one: the exit of that one counted as a failed attempt
    of its job, and the self-test is the evidence about the device.
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
            progress_ledger=app.ledger(PROGRESS_TIMEOUTS),
            memory=app.memory,
        )
        works = app.suspects is None or passes_self_test(engines, suspects=app.suspects, on_timeout=end_process)
    except Exception:  # Celery would log it and treat the child as ready
        log.exception("not_loaded")
        end_process()
    if not works:
        log.error("no_model_works", suspects=sorted(app.suspects or ()))
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
    """Exit at once, so that the parent starts another child: an orderly exit may hang on a broken device."""
    os._exit(EXIT_FAULT)


class Runner:
    """The jobs of one child: its engines by model name, the ledger and the object store.

    `progress_ledger` is the ledger for progress calls, with timeouts of its own. `memory` is shared with the parent.
    """

    def __init__(
        self,
        engines: Mapping[str, tuple[Model, Engine]],
        ledger: Ledger,
        store: ArtifactStore,
        worker: str,
        *,
        progress_ledger: Ledger,
        memory: ChildMemory,
    ) -> None:
        self._engines, self._ledger, self._worker = engines, ledger, worker
        self._uploader = ArtifactUploader(store, worker)
        self._progress_ledger = progress_ledger
        self._memory = memory
        self._failed_jobs = FailedJobs()
        self._log = logs.logger(__name__)

    def run_job(self, job_id: str, *, token: str, traceparent: str | None) -> str:
        """Process one message. Returns how the attempt finished and, after a colon, why it failed: for Flower and for
        the parent (`QueueGate.on_attempt_finished`).
        """
        with bound_contextvars(job=job_id, **traces.in_logs(traceparent)):
            claim = self._run_until_answered(calls.claim(job_id, token=token, worker=self._worker))
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
            result = self._attempt(job)
            end = self._run_until_answered(result.call) if result.call else AttemptEnd.LOST
            seconds = round(time.monotonic() - began, 3)
            self._log.info("attempt_ended", attempt=job.attempt, ended=end, seconds=seconds)
            if result.is_fault:
                end_process()
            self._memory.end_attempt()
            if end is AttemptEnd.COMPLETED:
                self._failed_jobs.completed()
            return f"{end}: {result.failure}" if result.failure else f"{end}"

    def close(self) -> None:
        """Free the memory of the devices."""
        for _, engine in self._engines.values():
            engine.close()

    def _attempt(self, job: ClaimedJob) -> AttemptOutcome:
        """Run the job and decide how the attempt finishes. Only the call of the result is left to do then."""
        progress = ProgressReporter(self._progress_ledger, job)
        began = time.monotonic()
        try:
            model, engine, parameters = self._prepare(job)
            run = self._run(engine, parameters, job_id=job.id, on_step=progress)
            run_ms = round(1000 * (time.monotonic() - began - progress.waited_s))
            return self._completed(job, model=model, run=run, run_ms=run_ms, check=progress.check)
        except Interrupted:
            return results.interrupted(job, progress.stopped_by)
        except errors.UnknownModel as error:
            self._log.warning("unknown_model", detail=error.detail)
            time.sleep(UNKNOWN_MODEL_PAUSE_S)
            return results.released(job, error.detail, is_fault=False)
        except errors.InvalidInput as error:
            return results.failed(job, ErrorKind.INVALID_INPUT, error.detail)
        except StoreRefused as error:
            self._log.exception("store_refused")
            return results.failed(job, ErrorKind.INVALID_INPUT, error.detail)
        except EngineError as error:
            self._log.exception("engine_failed", kind=error.kind)
            if error.kind is ErrorKind.WORKER_FAULT:
                return results.released(job, error.detail, is_fault=True)
            return self._failed_attempt(job, error.kind, error.detail)
        except Exception as error:
            self._log.exception("run_failed")
            return self._failed_attempt(job, ErrorKind.TRANSIENT, f"the run failed ({type(error).__name__})")

    def _failed_attempt(self, job: ClaimedJob, kind: ErrorKind, message: str) -> AttemptOutcome:
        """The attempt counts as failed, unless a self-test is due and the device fails that too."""
        if self._failed_jobs.failed(job.id):
            with self._memory.paused():
                if not passes_self_test(self._engines, on_timeout=end_process):
                    return results.released(job, f"{message}; a self-test failed too", is_fault=True)
            self._failed_jobs.completed()
        return results.retried(job, kind, message)

    def _run(
        self, engine: Engine, parameters: Mapping[str, Any], *, job_id: str, on_step: ProgressReporter
    ) -> EngineResult:
        """Run the engine. If the memory of the device does not suffice, run it at once again in its leaner way."""
        try:
            return engine.run(parameters, job_id=job_id, on_step=on_step)
        except OutOfMemory as error:
            self._log.warning("out_of_memory", detail=error.detail, again="lean")
        return engine.run(parameters, job_id=job_id, on_step=on_step, lean=True)

    def _prepare(self, job: ClaimedJob) -> tuple[Model, Engine, dict[str, object]]:
        """The job's model, its engine and its parameters. Raises InvalidInput, UnknownModel."""
        if not is_tenant(job.tenant):
            raise errors.InvalidInput(f"{job.tenant!r} is no valid tenant: its artifacts could not be stored")
        if job.model not in self._engines:
            raise errors.UnknownModel(f"worker {self._worker} does not serve model {job.model!r}")
        model, engine = self._engines[job.model]
        return model, engine, models.validate(model, json.loads(job.input))

    def _completed(
        self, job: ClaimedJob, *, model: Model, run: EngineResult, run_ms: int, check: Callable[[], None]
    ) -> AttemptOutcome:
        """Store the artifacts, which the returned result publishes. Raises StoreRefused, and what `check` raises."""
        artifacts = []
        for index, picture in enumerate(run.pictures):
            sha256 = sha256_of(picture.png)
            key = artifact_key(
                tenant=job.tenant, job_id=job.id, attempt=job.attempt, index=index, sha256=sha256, extension="png"
            )
            with self._memory.paused():
                self._uploader.put(key, picture.png, check=check)
            size = len(picture.png)
            artifacts.append(Artifact(key, sha256, PNG, size=size, width=picture.width, height=picture.height))
        return results.completed(
            job,
            {
                "artifacts": [artifact.encode() for artifact in artifacts],
                "record": run.record,
                "model_served": model.served,
                "attempt": job.attempt,
                "worker": self._worker,
                "run_ms": run_ms,
            },
        )

    def _run_until_answered(self, call: Call[T]) -> T:
        """Repeat the call until Redis answers. A drain ends a process that waits here."""
        pauses = LEDGER_BACKOFF.pauses()
        while True:
            try:
                return self._ledger.run(call)
            except TemporaryError as error:
                self._log.warning("ledger_away", script=call.script, detail=error.detail)
            time.sleep(next(pauses))
