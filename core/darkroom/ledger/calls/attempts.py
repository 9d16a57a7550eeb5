"""Calls of an attempt: claimed, renewed, and finished by a worker, or released for a worker that is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from darkroom.jobs import RECORD_VERSION, State
from darkroom.ledger.calls.call import Call, compact_json, ids, make_call, word

LEASE_MS = 15_000
"""The lease of a running attempt, which its worker renews three times in that time."""

REAP_GAP_MS = 5_000
"""After a longer gap between two reaps, workers could not renew: nothing is reaped for the length of one lease."""

SWEEP_AGE_MS = 5_000
"""A message that was pushed longer ago and is not in the queue was received and never claimed."""


class LeaseStatus(StrEnum):
    """The status of an attempt, which its worker gets when it renews or reports progress."""

    OK = "ok"
    CANCEL = "cancel"
    LOST = "lost"


class AttemptEnd(StrEnum):
    """The job's state after its worker ended the attempt. `LOST`: the token was stale and nothing changed."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PENDING = "pending"
    LOST = "lost"


class ReleaseReason(StrEnum):
    """Why a running job was released. Only `WORKER_LOST` counts as an attempt."""

    DRAIN = "drain"
    WORKER_FAULT = "worker_fault"
    WORKER_LOST = "worker_lost"


@dataclass(frozen=True)
class Claim:
    """The reply to a worker for a message: an attempt to run, or the reason why the message is dropped.

    `attempt` counts every start of the job, `counted` those that count against its limit; `run_timeout` is in seconds.
    `input` is the JSON text of the model's parameters, as the record has it.
    """

    attempt: int | None
    dropped: str | None
    run_timeout: float = 0.0
    counted: int = 0
    tenant: str = ""
    model: str = ""
    input: str = "{}"


def claim(job_id: str, *, token: str, worker: str, lease_ms: int = LEASE_MS, now: int | None = None) -> Call[Claim]:
    """pending → running, under the new token of the attempt."""

    def decode(reply: list[bytes]) -> Claim:
        if reply[0] == b"drop":
            return Claim(None, reply[1].decode())
        return Claim(
            attempt=int(reply[1]),
            dropped=None,
            run_timeout=float(reply[3]),
            counted=int(reply[4]),
            tenant=reply[5].decode(),
            model=reply[6].decode(),
            input=reply[7].decode(),
        )

    return make_call(
        "claim", decode, job=job_id, token=token, worker=worker, lease_ms=lease_ms, v=RECORD_VERSION, now=now
    )


def renew(job_id: str, *, token: str, lease_ms: int = LEASE_MS, now: int | None = None) -> Call[LeaseStatus]:
    """Extend the lease of the attempt, from now."""
    return make_call("renew", word(LeaseStatus), job=job_id, token=token, lease_ms=lease_ms, now=now)


def progress(
    job_id: str, *, token: str, op: int, step: int, steps: int, publish: bool, now: int | None = None
) -> Call[LeaseStatus]:
    """Step `step` of `steps` is done. `op` counts the calls of this attempt from 1; `publish` writes a log entry."""
    return make_call(
        "progress",
        word(LeaseStatus),
        job=job_id,
        token=token,
        op=op,
        step=step,
        steps=steps,
        publish=int(publish),
        now=now,
    )


def finish(
    job_id: str, *, token: str, outcome: State, data: Mapping[str, Any], now: int | None = None
) -> Call[AttemptEnd]:
    """running → completed, failed or cancelled. `data` goes into the terminal log entry: the result, or `error`.

    The number of its artifacts is charged to the budgets of images.
    """
    return make_call(
        "finish",
        word(AttemptEnd),
        job=job_id,
        token=token,
        outcome=outcome,
        data=compact_json(data),
        images=len(data.get("artifacts", ())),
        now=now,
    )


def retry(
    job_id: str, *, token: str, error: Mapping[str, Any], delay_ms: int, now: int | None = None
) -> Call[AttemptEnd]:
    """running → pending in `delay_ms`; the attempt counts. `error` is `{"kind", "message"}`."""
    return make_call(
        "retry", word(AttemptEnd), job=job_id, token=token, error=compact_json(error), delay_ms=delay_ms, now=now
    )


def release(
    job_id: str,
    *,
    reason: ReleaseReason,
    detail: str,
    token: str | None = None,
    worker: str | None = None,
    now: int | None = None,
) -> Call[AttemptEnd]:
    """running → pending, at the head. Authorized by the attempt's token or, for a worker that is gone, by its name."""
    return make_call(
        "release", word(AttemptEnd), job=job_id, token=token, worker=worker, reason=reason, detail=detail, now=now
    )


def reap(
    pool: str, *, lease_ms: int = LEASE_MS, gap_ms: int = REAP_GAP_MS, limit: int = 100, now: int | None = None
) -> Call[list[str]]:
    """Requeue running jobs whose lease lapsed. Returns their ids."""
    return make_call("reap", ids, pool=pool, lease_ms=lease_ms, gap_ms=gap_ms, limit=limit, now=now)


def sweep(pool: str, *, age_ms: int = SWEEP_AGE_MS, now: int | None = None) -> Call[list[str]]:
    """Push messages again that were received and never claimed. Returns the ids of their jobs."""
    return make_call("sweep", ids, pool=pool, age_ms=age_ms, now=now)


def adjust_clock(*, clock_ms: int, now: int | None = None) -> Call[int]:
    """Once per tick: bring times forward if Redis' clock was set back. Returns by how much (ms).

    `clock_ms` is the time by the caller's own clock, for `darkroom doctor`.
    """
    return make_call("adjust_clock", int, clock=clock_ms, now=now)
