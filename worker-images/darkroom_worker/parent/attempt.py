"""An attempt as the worker's parent sees it: Celery's request for one message, with the attempt's token.

The token is made here and travels to the child with the message's headers; the child claims the job under it
(`run.py`). From the moment the child has the message until it is done with it, the watch (`registration.py`) keeps the
lease. When the child dies instead, the parent ends the attempt in its place, at once, where Celery would let a timeout
pass.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from celery.exceptions import TimeLimitExceeded
from celery.worker import state as celery_state
from celery.worker.request import Request
from darkroom import traces
from darkroom.jobs import ErrorKind, State
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, Call, ReleaseReason
from darkroom.ledger.records import JobRecord
from darkroom.updates import celery_status
from structlog.contextvars import bound_contextvars

TOKEN_BYTES = 16


class KillReason(StrEnum):
    """Why the watch ends a child that runs a job."""

    OVERDUE = "overdue"
    INTERRUPTED = "interrupted"
    DRAINED = "drained"


class Attempt(Request):  # type: ignore[misc]  # Celery has no types
    """One delivery of a job's message to this worker. Its `sentence` is passed before the child is ended."""

    on_success: Callable[..., None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token = secrets.token_hex(TOKEN_BYTES)
        self.request_dict["token"] = self.token
        self.sentence: KillReason | None = None
        # Celery makes a class of its own for each task, with an `on_success` that no method of ours would come before.
        self._celerys_on_success = self.on_success
        self.on_success = self._on_success

    @property
    def about(self) -> dict[str, str]:
        """What a log line about the attempt says of it."""
        return {"job": self.id, **traces.in_logs(self.request_dict.get("traceparent"))}

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The child has the message."""
        super().on_accepted(pid, time_accepted)
        self.app.watch.attempt_began(self)

    def acknowledge(self) -> None:
        """The attempt is over: every way to its end comes past here, since messages are acknowledged late."""
        super().acknowledge()
        self.app.watch.attempt_ended(self)

    def _on_success(self, outcome: tuple[bool, Any, float], **kwargs: Any) -> None:
        """The child is done with the message, unless it let an exception through; it answers in quotes (`repr`).

        Celery takes whatever a task returns for a success, so that it is called for a completed job alone.
        """
        has_raised, answer, _ = outcome
        if has_raised or answer.strip("'") == AttemptEnd.COMPLETED:
            self._celerys_on_success(outcome, **kwargs)
        else:
            celery_state.task_ready(self)
            self.acknowledge()
            self.app.watch.book(self, None)
        if not has_raised:
            with bound_contextvars(**self.about):
                self.app.gate.on_answer(answer.strip("'"))

    # The signature is Celery's, whose pool calls it.
    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """The child died, or let an exception through: either way it no longer ends the attempt itself.

        Where it had done so before, the ledger knows the token and changes nothing.
        """
        # What was raised in this process comes wrapped, what is told of the child does not.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        ending = self._ending(error)
        try:
            # Celery would log an error with a stack trace of this process, for what is handled here and logged once.
            super().on_failure(exc_info, send_failed_event=False, return_ok=True)
        finally:
            self.app.watch.book(self, ending)

    @property
    def is_watched(self) -> bool:
        """Whether Flower or the like asked for events."""
        return bool(self._eventer and self._eventer.enabled)

    def report(self, record: JobRecord | None) -> None:
        """Emit Celery's event for what became of the job, so that Flower shows the word of `GET /tasks/{id}`.

        For the event loop's thread. A job that runs again is left to the worker that runs it.
        """
        match "REVOKED" if record is None else celery_status(record):
            case "SUCCESS":
                self.send_event("task-succeeded", result=repr(str(AttemptEnd.COMPLETED)), runtime=None)
            case "FAILURE":
                self.send_event("task-failed", exception=_failure(record), traceback="")
            case "REVOKED":
                is_expired = record is not None and record.state is State.EXPIRED
                self.send_event("task-revoked", terminated=not is_expired, signum=None, expired=is_expired)
            case "RETRY" | "PENDING":
                self.send_event("task-retried", exception="the job waits for another attempt", traceback="")
            case "STARTED":
                pass
            case status:
                raise ValueError(f"no event for the status {status!r}")

    def _ending(self, error: BaseException) -> Call[AttemptEnd]:
        if self.sentence is KillReason.OVERDUE or isinstance(error, TimeLimitExceeded):
            data = {"error": {"kind": ErrorKind.DEADLINE, "message": "it ran longer than it may"}}
            return calls.finish(self.id, token=self.token, outcome=State.FAILED, data=data)
        if self.sentence is KillReason.DRAINED:
            return calls.release(self.id, reason=ReleaseReason.DRAIN, detail="the worker was stopped", token=self.token)
        return calls.release(
            self.id, reason=ReleaseReason.WORKER_LOST, detail="the worker's process ended in mid-run", token=self.token
        )


def _failure(record: JobRecord | None) -> str:
    """Kind and message of the job's error."""
    error = (record.end_data or {}).get("error") if record is not None else None
    return f"{error.get('kind')}: {error.get('message')}" if isinstance(error, Mapping) else "failed"
