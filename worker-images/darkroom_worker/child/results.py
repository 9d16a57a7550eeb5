"""The result of an attempt: the one call of the ledger that finishes it.

`runner.py` decides on a result with these functions and then makes its call until the ledger has answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darkroom.backoff import Backoff
from darkroom.jobs import ErrorKind, State
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd, Call, LeaseStatus, ReleaseReason

RETRY_BACKOFF = Backoff(first_s=1.5, longest_s=45.0, jitter=2 / 3)
"""The delay before a failed job runs again: 2 s, doubling up to a minute, plus or minus a quarter at random, so that
jobs that failed together do not run again together."""


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job that this worker claimed. `input` is the JSON text of the record.

    `attempt` counts every start of the job, `counted` its earlier failed attempts.
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
    """How an attempt finishes. `call` is None if the job belongs to another attempt by now.

    `is_fault`: this process must not run another job. `failure`: the kind of a failure that may be caused by the job or
    by the worker.
    """

    call: Call[AttemptEnd] | None
    is_fault: bool = False
    failure: ErrorKind | None = None


def retry_delay_ms(counted: int, *, chance: float | None = None) -> int:
    """The delay of a job with `counted` failed attempts before this one. `chance`: the random number, from 0 to 1."""
    return round(1000 * RETRY_BACKOFF.after(counted + 1, dice=chance))


def completed(job: ClaimedJob, data: dict[str, Any]) -> AttemptOutcome:
    """The job is completed. `data` is the result, with the artifacts."""
    return AttemptOutcome(calls.finish(job.id, token=job.token, outcome=State.COMPLETED, data=data))


def interrupted(job: ClaimedJob, stopped_by: LeaseStatus | None) -> AttemptOutcome:
    """The run was stopped by the ledger's answer or, with None, by its run timeout."""
    match stopped_by:
        case None:
            return failed(job, ErrorKind.DEADLINE, f"the job ran longer than {job.run_timeout_s:g} s")
        case LeaseStatus.LOST:
            return AttemptOutcome(None)
        case LeaseStatus.CANCEL:
            data = _error(ErrorKind.CANCELLED, "cancelled on request")
            return AttemptOutcome(calls.finish(job.id, token=job.token, outcome=State.CANCELLED, data=data))
        case _:
            raise ValueError(f"no run is stopped by {stopped_by}")


def failed(job: ClaimedJob, kind: ErrorKind, message: str) -> AttemptOutcome:
    """The job fails, and would fail again."""
    return AttemptOutcome(calls.finish(job.id, token=job.token, outcome=State.FAILED, data=_error(kind, message)))


def retried(job: ClaimedJob, kind: ErrorKind, message: str) -> AttemptOutcome:
    """The attempt counts as failed. The job runs again after a delay, or fails if it has no attempt left."""
    error = {"kind": kind, "message": message}
    call = calls.retry(job.id, token=job.token, error=error, delay_ms=retry_delay_ms(job.counted))
    return AttemptOutcome(call, failure=kind)


def released(job: ClaimedJob, detail: str, *, is_fault: bool) -> AttemptOutcome:
    """Another worker runs the job, and the attempt does not count: this worker cannot run it."""
    call = calls.release(job.id, reason=ReleaseReason.WORKER_FAULT, detail=detail, token=job.token)
    return AttemptOutcome(call, is_fault=is_fault)


def _error(kind: ErrorKind, message: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message}}
