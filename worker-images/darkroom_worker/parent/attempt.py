"""An attempt in the worker's parent: Celery's request for one message, with the attempt's token.

The token is created here and sent to the child in the message's headers; the child claims the job with it
(`child/runner.py`). While the child has the message, the supervisor (`supervisor.py`) renews the lease. If the child
dies, the parent finishes the attempt at once, where Celery would wait for a timeout.
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
from darkroom.jobs import ErrorKind, State, UnknownValue
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, Call, ReleaseReason
from darkroom.ledger.records import JobRecord
from darkroom.updates import celery_status
from structlog.contextvars import bound_contextvars

TOKEN_BYTES = 16


class KillReason(StrEnum):
    """Why the supervisor kills a child that runs a job."""

    OVERDUE = "overdue"
    INTERRUPTED = "interrupted"
    DRAINED = "drained"


class Attempt(Request):  # type: ignore[misc]  # Celery has no types
    """One delivery of a job's message to this worker. `kill_reason` is set before the child is killed."""

    on_success: Callable[..., None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token = secrets.token_hex(TOKEN_BYTES)
        self.request_dict["token"] = self.token
        self.kill_reason: KillReason | None = None
        # Celery creates a class for each task, whose `on_success` would take precedence over a method of this class.
        self._celery_on_success = self.on_success
        self.on_success = self._on_success

    @property
    def about(self) -> dict[str, str]:
        """The fields of each log entry about the attempt."""
        return {"job": self.id, **traces.in_logs(self.request_dict.get("traceparent"))}

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The child has the message."""
        super().on_accepted(pid, time_accepted)
        self.app.supervisor.attempt_started(self)

    def acknowledge(self) -> None:
        """The attempt is over: every outcome passes here, since messages are acknowledged late."""
        super().acknowledge()
        self.app.supervisor.attempt_finished(self)

    def _on_success(self, outcome: tuple[bool, Any, float], **kwargs: Any) -> None:
        """The child has processed the message, or its task raised. `outcome` has the return value as its `repr`.

        Celery treats every return value as a success, so its own handler is called for a completed job only.
        """
        has_raised, returned, _ = outcome
        if has_raised or returned.strip("'") == AttemptEnd.COMPLETED:
            self._celery_on_success(outcome, **kwargs)
        else:
            celery_state.task_ready(self)
            self.acknowledge()
            self.app.supervisor.report(self, None)
        if not has_raised:
            with bound_contextvars(**self.about):
                self.app.gate.on_attempt_finished(returned.strip("'"))

    # The signature is Celery's.
    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """The child died, or its task raised: it does not finish the attempt itself.

        If it had finished the attempt before, the ledger recognises the token and changes nothing.
        """
        # An exception of this process is wrapped, one of the child is not.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        transition = self._transition(error)
        try:
            # Celery would log an error with a stack trace of this process; the supervisor logs it once.
            super().on_failure(exc_info, send_failed_event=False, return_ok=True)
        finally:
            self.app.supervisor.report(self, transition)

    @property
    def is_watched(self) -> bool:
        """Whether Flower or another consumer of events enabled them."""
        return bool(self._eventer and self._eventer.enabled)

    def send_final_event(self, record: JobRecord | None) -> None:
        """Send Celery's event for the job's state, so that Flower shows the status of `GET /tasks/{id}`.

        To be called in the event loop's thread, which an exception would end. For a job that runs again, its next
        worker sends the event. Celery has none for a state that a later version wrote.
        """
        if record is not None and isinstance(record.state, UnknownValue):
            return
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

    def _transition(self, error: BaseException) -> Call[AttemptEnd]:
        if self.kill_reason is KillReason.OVERDUE or isinstance(error, TimeLimitExceeded):
            data = {"error": {"kind": ErrorKind.DEADLINE, "message": "the job ran longer than its run timeout"}}
            return calls.finish(self.id, token=self.token, outcome=State.FAILED, data=data)
        if self.kill_reason is KillReason.DRAINED:
            return calls.release(self.id, reason=ReleaseReason.DRAIN, detail="the worker was stopped", token=self.token)
        return calls.release(
            self.id,
            reason=ReleaseReason.WORKER_LOST,
            detail="the worker's process died while the job ran",
            token=self.token,
        )


def _failure(record: JobRecord | None) -> str:
    """Kind and message of the job's error."""
    error = (record.end_data or {}).get("error") if record is not None else None
    return f"{error.get('kind')}: {error.get('message')}" if isinstance(error, Mapping) else "failed"
