"""Calls of the audit and of `darkroom doctor`: repairs, the epoch, and the canary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.ledger import queues
from darkroom.ledger.calls.call import Call, ids, make_call
from darkroom.ledger.epochs import Epoch, LedgerEpoch

CANARY_TTL_MS = 60_000
"""Time to live of a canary that its sender did not withdraw; a worker that receives it later drops it."""


def advance_epoch(outside: Epoch, *, acknowledge: bool = False, now: int | None = None) -> Call[LedgerEpoch]:
    """Advance the ledger to one beat more than `outside`, the epoch in SQL, unless it has more. With fewer it lost
    data, and a new epoch begins. `acknowledge`: an operator has seen the loss.
    """
    known = {"epoch": outside.number, "beats": outside.beats, "at": outside.at}
    return make_call("advance_epoch", LedgerEpoch.decode, **known, acknowledge="1" if acknowledge else None, now=now)


def repair(
    job_id: str,
    *,
    pool: str | None = None,
    worker: str | None = None,
    letter_of: str | None = None,
    delivery: str | None = None,
    target: str | None = None,
    now: int | None = None,
) -> Call[list[str]]:
    """Move the job to where its record says that it belongs. Returns what was done: nothing where all is right.

    `pool` is one whose sets, `worker` one whose entry, and `letter_of` the tenant whose dead letters list the job
    although its record contradicts that. `delivery`: repair one of its deliveries instead, in the list of `target`.
    """
    return make_call(
        "repair",
        ids,
        job=job_id,
        pool=pool,
        worker=worker,
        letter_of=letter_of,
        delivery=delivery,
        target=target,
        now=now,
    )


@dataclass(frozen=True)
class CountDifference:
    """Counts of an owner's limits that differ from its jobs. `owner` is a tenant, or `<tenant>:<credential>`."""

    owner: str
    jobs: int
    bytes: int
    jobs_found: int
    bytes_found: int


def recount_limits(
    pools: Sequence[str], *, owners: Sequence[str], repair: bool = False, now: int | None = None
) -> Call[list[CountDifference]]:
    """Compare the counts of pending jobs and unfinished bytes with the jobs of all `pools`, and correct them if
    `repair`. `owners` are those that have counts.
    """

    def decode(reply: list[bytes]) -> list[CountDifference]:
        found = [line.decode().split(" ") for line in reply]
        return [CountDifference(owner, *map(int, numbers)) for owner, *numbers in found]

    return make_call(
        "recount_limits",
        decode,
        pools=" ".join(pools),
        owners=" ".join(owners),
        repair=1 if repair else None,
        now=now,
    )


def canary(canary_id: str, *, pool: str, withdraw: bool = False, now: int | None = None) -> Call[str | None]:
    """Send a canary through the pool's queue, once. Returns the worker that has received it, or None.

    `canary_id` begins with `queues.CANARY`, unlike a job's id. `withdraw` removes the canary.
    """
    message = queues.build_message(job_id=canary_id, pool=pool, traceparent=None)
    return make_call(
        "canary",
        lambda reply: reply.decode() or None,
        canary=canary_id,
        pool=pool,
        message_head=message.head,
        message_tail=message.tail,
        ttl_ms=CANARY_TTL_MS,
        withdraw=1 if withdraw else None,
        now=now,
    )
