"""The auditor: reads the whole ledger in slices and reports its faults (`darkroom audit`).

It makes two passes. Jobs change while it reads, so a fault of the first pass is a suspect, and is reported if the
second pass, two seconds later, finds it again. Each job is read by one short script (`lua/checks/inspect_job.lua`), at
one moment and without blocking Redis. `audit.py` has the rules. With `repair`, each finding is passed to
`lua/checks/repair.lua`, one job at a time, which decides by the record again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import redis.asyncio

from darkroom.artifacts import ArtifactStore
from darkroom.checks import audit, snapshots
from darkroom.checks.audit import REPAIRABLE, Fault, FaultKind, StaleMessage
from darkroom.checks.snapshots import OTHER_SETS, PLACES, POOL_SETS, JobSnapshot, QueuedMessage
from darkroom.errors import DarkroomError, NotFound
from darkroom.jobs import Artifact
from darkroom.ledger import calls, epochs, reads
from darkroom.ledger.calls import Call
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.epochs import Epoch
from darkroom.ledger.reads import SLICE
from darkroom.trail.entries import Head
from darkroom.trail.store import TrailStore, Verification

if TYPE_CHECKING:
    from darkroom.checks.orphans import Orphan
    from darkroom.history.store import History

T = TypeVar("T")

SECOND_PASS_S = 2.0
"""Pause between the passes: longer than any change of a job that the first pass may have seen half done."""

READS_AT_ONCE = 8
"""Artifacts that are read from the store concurrently."""

Check = Callable[[Sequence[str]], Awaitable[list[Fault]]]
"""A check of jobs or workers, by id: made of all in the first pass, and of the suspects in the second."""


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit: the number of jobs in each place, the faults, and the messages that no job needs.

    `unapplied` is the number of terminal jobs whose end is not applied. `artifacts` were read and hashed, and `past`
    is the number of archived jobs that were compared with the history; None where that was not requested. `orphans` are
    artifacts that no job publishes; they are no faults, as retention removes them. `trail` is the verification of the
    audit trail; None where the history was not read.
    """

    places: Mapping[str, int]
    unapplied: int
    artifacts: int | None
    past: int | None
    findings: Sequence[Fault]
    stale: Sequence[StaleMessage]
    orphans: Sequence[Orphan] = ()
    trail: Verification | None = None

    @property
    def jobs(self) -> int:
        return sum(self.places.values())

    @property
    def unrepaired(self) -> list[Fault]:
        return [fault for fault in self.findings if fault.repaired is None]


def faults_of_trail(trail: Verification | None) -> list[Fault]:
    """The first broken entry, and the ends that were missing before."""
    if trail is None:
        return []
    found = [
        Fault(FaultKind.TRAIL_TRUNCATED, "", f"entry {each.seq}: the end {each.entry.object} was missing")
        for each in trail.truncations
    ]
    if trail.broken is not None:
        found.append(Fault(FaultKind.TRAIL_BROKEN, "", f"entry {trail.broken.seq}: {trail.broken.reason}"))
    return found


@dataclass
class _Suspects:
    """The faults of the first pass: by their check, the subjects to check again."""

    faults: dict[Check, dict[str, list[Fault]]] = field(default_factory=dict)
    messages: dict[str, list[StaleMessage]] = field(default_factory=dict)

    def add(self, check: Check, found: Sequence[Fault]) -> None:
        for fault in found:
            subject = fault.worker or fault.delivery or fault.job
            self.faults.setdefault(check, {}).setdefault(subject, []).append(fault)


class Auditor:
    """One audit of one ledger. Without a `store` no artifact is read, without a `history` no archived job."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        namespace: str,
        *,
        store: ArtifactStore | None,
        history: History | None,
        second_pass_s: float = SECOND_PASS_S,
    ) -> None:
        self._ledger = AsyncLedger(client, namespace)
        self._keys = self._ledger.keys
        self._store = store
        self._second_pass_s = second_pass_s
        self._history = history
        self._artifacts_read = self._past_read = 0

    async def audit(self, *, repair: bool) -> AuditReport:
        """Make both passes, and repair the findings if requested.

        Raises LedgerUnavailable, StoreUnavailable and HistoryUnavailable.
        """
        suspects = _Suspects()
        places, unapplied = await self._check_jobs(suspects)
        artifacts = self._artifacts_read if self._store else None
        past = self._past_read if self._history else None
        await self._check_sets(suspects)
        findings: list[Fault] = []
        stale: list[StaleMessage] = []
        orphans = await self._orphans()
        if suspects.faults or suspects.messages or orphans:
            await asyncio.sleep(self._second_pass_s)
            findings, stale = await self._check_again(suspects)
            orphans = await self._orphans_among([orphan.key for orphan in orphans])
        findings = [*await self._of_epoch(), *findings]
        if repair:
            findings = await self._repair(findings)
        if not any(fault.kind is FaultKind.NOWHERE and fault.repaired is None for fault in findings):
            findings += await self._of_counts(repair=repair)
        trail = await self.verify_trail()
        findings += faults_of_trail(trail)
        return AuditReport(places, unapplied, artifacts, past, tuple(findings), tuple(stale), tuple(orphans), trail)

    async def verify_trail(self) -> Verification | None:
        """Compute the chain of the audit trail again, and compare its end with the one that Redis has.

        Raises LedgerUnavailable and HistoryUnavailable.
        """
        if self._history is None:
            return None
        # Read before SQL, which has every end that Redis has.
        published = await reads.audit_head(self._ledger)
        trail = TrailStore(self._history, self._ledger.namespace)
        if not await trail.exists():
            return None
        return await trail.verify(published=None if published is None else Head(*published))

    # -- the two passes -----------------------------------------------------------------------------------------------

    async def _check_jobs(self, suspects: _Suspects) -> tuple[dict[str, int], int]:
        """Check all records. Returns the number of jobs in each place, and of unapplied terminal events."""
        places: Counter[str] = Counter(dict.fromkeys(PLACES, 0))
        unapplied = 0
        seen: set[str] = set()
        async for ids in reads.job_ids(self._ledger):
            looks = await self._looks([job_id for job_id in ids if job_id not in seen])  # SCAN may return a key twice
            seen.update(ids)
            for look in looks:
                if look.state is not None:
                    places[look.place or "nowhere"] += 1
                    unapplied += look.state.is_terminal and not look.applied
            suspects.add(self._of_jobs, [fault for look in looks for fault in audit.faults(look)])
            suspects.add(self._of_artifacts, await self._faults_of_artifacts(looks))
            suspects.add(self._of_history, await self._faults_of_history(looks))
        return dict(places), unapplied

    async def _check_sets(self, suspects: _Suspects) -> None:
        """All sets, indexes and messages."""
        pools = await self._pools()
        of_pools = [(name, pool, getattr(self._keys, name)(pool)) for pool in pools for name in POOL_SETS]
        for name, pool, key in [*of_pools, *((name, None, getattr(self._keys, name)) for name in OTHER_SETS)]:
            await self._check(partial(self._of_members, name, pool), reads.members(self._ledger, key), suspects)
        of_each: list[tuple[Callable[[str], str], Callable[..., Awaitable[list[Fault]]]]] = [
            (self._keys.tenant, self._of_index),
            (self._keys.dead_letters, self._of_letters),
            (self._keys.deliveries, self._of_targets),
        ]
        for key_of, question in of_each:
            async for owners in reads.names(self._ledger, key_of(""), kind="zset"):
                for owner in owners:
                    await self._check(partial(question, owner), reads.members(self._ledger, key_of(owner)), suspects)
        await self._check(
            self._of_deliveries, reads.names(self._ledger, self._keys.delivery(""), kind="hash"), suspects
        )
        await self._check(self._of_workers, reads.fields(self._ledger, self._keys.busy), suspects)
        for pool in pools:
            await self._check(
                partial(self._of_lists, pool), reads.members(self._ledger, self._keys.dispatched(pool)), suspects
            )
            if found := await self._stale(pool):
                suspects.messages[pool] = found

    async def _check(self, check: Check, slices: AsyncIterator[list[str]], suspects: _Suspects) -> None:
        async for subjects in slices:
            suspects.add(check, await check(subjects))

    async def _check_again(self, suspects: _Suspects) -> tuple[list[Fault], list[StaleMessage]]:
        """The suspects whose faults persist."""
        findings: dict[tuple[str | None, ...], Fault] = {}
        for check, by_subject in suspects.faults.items():
            before = {fault.key for found in by_subject.values() for fault in found}
            subjects = list(by_subject)
            for start in range(0, len(subjects), SLICE):
                for fault in await check(subjects[start : start + SLICE]):
                    if fault.key in before:
                        findings.setdefault(fault.key, fault)
        stale: list[StaleMessage] = []
        for pool, found in suspects.messages.items():
            now = await self._stale(pool)
            stale += [each for each in found if each in now]
        return list(findings.values()), stale

    # -- Redis as a whole ----------------------------------------------------------------------------------------------

    async def _of_epoch(self) -> list[Fault]:
        """The fault of a Redis that restarted with less data. SQL is read first: a courier writes it last."""
        outside = await self._outside()
        loss = epochs.lost(await reads.epoch(self._ledger), outside)
        return [] if loss is None else [Fault(FaultKind.WENT_BACK, "", f"Redis lost {loss.described}")]

    async def _of_counts(self, *, repair: bool) -> list[Fault]:
        """The counts of limits that differ from the jobs in the sets of all pools, which are read at one moment."""
        owners: set[str] = set()
        async for found in reads.names(self._ledger, self._keys.limits(""), kind="hash"):
            owners.update(found)
        recount = calls.recount_limits(await self._pools(), owners=sorted(owners), repair=repair)
        faults = [audit.counts_fault(each) for each in await self._ledger.run(recount)]
        return [fault.after("the jobs were counted again") for fault in faults] if repair else faults

    async def _outside(self) -> Epoch | None:
        return None if self._history is None else await self._history.epoch(self._ledger.namespace)

    # -- the checks ---------------------------------------------------------------------------------------------------

    async def _of_jobs(self, ids: Sequence[str]) -> list[Fault]:
        return [fault for look in await self._looks(ids) for fault in audit.faults(look)]

    async def _of_members(self, name: str, pool: str | None, ids: Sequence[str]) -> list[Fault]:
        """Check members of a set. One that was removed meanwhile is no fault."""
        found = [audit.member_fault(name, pool, look) for look in await self._looks(ids, pool=pool)]
        return [fault for fault in found if fault is not None]

    async def _of_index(self, tenant: str, ids: Sequence[str]) -> list[Fault]:
        """The jobs in a tenant's index whose record vanished before their end was applied."""
        return [audit.vanished(each, tenant) for each in await reads.vanished_jobs(self._ledger, ids, tenant=tenant)]

    async def _of_letters(self, tenant: str, ids: Sequence[str]) -> list[Fault]:
        """Check the members of a tenant's dead letters."""
        found = [audit.dead_letter_fault(tenant, look) for look in await self._looks(ids, letter_of=tenant)]
        return [fault for fault in found if fault is not None]

    async def _of_deliveries(self, ids: Sequence[str]) -> list[Fault]:
        looks = await self._answers([snapshots.inspect_delivery(each) for each in ids])
        found = [audit.delivery_fault(look) for look in looks]
        return [fault for fault in found if fault is not None]

    async def _of_targets(self, target: str, ids: Sequence[str]) -> list[Fault]:
        """Check the deliveries that are due to a target."""
        looks = await self._answers([snapshots.inspect_delivery(each, target=target) for each in ids])
        found = [audit.due_delivery_fault(target, look) for look in looks]
        return [fault for fault in found if fault is not None]

    async def _of_workers(self, workers: Sequence[str]) -> list[Fault]:
        """The workers' entries that name a job which does not run there."""
        named = await reads.busy_jobs(self._ledger, workers)
        looks = await self._looks([job_id for _, job_id in named])
        found = [audit.worker_entry_fault(worker, look) for (worker, _), look in zip(named, looks, strict=True)]
        return [fault for fault in found if fault is not None]

    async def _of_lists(self, pool: str, ids: Sequence[str]) -> list[Fault]:
        """The dispatched jobs of a pool whose message is lost."""
        looks = await self._looks(ids)
        listed = {message.job for message in await self._list(pool)}
        found = [audit.lost_message(look, listed) for look in looks if look.pool == pool]
        return [fault for fault in found if fault is not None]

    async def _of_artifacts(self, ids: Sequence[str]) -> list[Fault]:
        return await self._faults_of_artifacts(await self._looks(ids))

    async def _faults_of_artifacts(self, looks: Sequence[JobSnapshot]) -> list[Fault]:
        """Read every artifact that a completed job published, and compare its hash."""
        if self._store is None:
            return []
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def check(store: ArtifactStore, job_id: str, artifact: Artifact) -> Fault | None:
            async with gate:
                return await _artifact_fault(store, job_id, artifact)

        checks = [check(self._store, look.id, Artifact.decode(raw)) for look in looks for raw in audit.published(look)]
        self._artifacts_read += len(checks)
        return [fault for fault in await asyncio.gather(*checks) if fault is not None]

    async def _of_history(self, ids: Sequence[str]) -> list[Fault]:
        return await self._faults_of_history(await self._looks(ids))

    async def _faults_of_history(self, looks: Sequence[JobSnapshot]) -> list[Fault]:
        """Read every archived job from the history, and compare it. A job whose deletion has begun is skipped."""
        if self._history is None:
            return []
        from darkroom.history.store import PastJob

        archived = [look.id for look in looks if look.archived]
        self._past_read += len(archived)
        found: list[Fault | None] = []
        for record in await self._ledger.jobs(archived, tenant=None):
            if record is None:
                continue
            past = await self._history.job(record.id, tenant=record.tenant)
            if past is None or isinstance(past, PastJob):
                found.append(audit.history_fault(record, past.record if past else None))
        return [fault for fault in found if fault is not None]

    async def _orphans(self) -> list[Orphan]:
        """The artifacts in the store that no job publishes."""
        if self._store is None:
            return []
        return [
            orphan
            async for page in self._store.pages()
            for orphan in await self._orphans_among([stored.key for stored in page])
        ]

    async def _orphans_among(self, keys: Sequence[str]) -> list[Orphan]:
        from darkroom.checks.orphans import orphans

        return await orphans(keys, ledger=self._ledger, history=self._history)

    async def _stale(self, pool: str) -> list[StaleMessage]:
        """The pool's messages that no job needs."""
        messages = await self._list(pool)
        async for tags in reads.fields(self._ledger, self._keys.unacked(pool)):
            messages += [QueuedMessage(pool, "unacked", tag) for tag in tags]
        ids = list({message.job for message in messages})
        looks: dict[str, JobSnapshot] = {}
        for start in range(0, len(ids), SLICE):
            looks |= {look.id: look for look in await self._looks(ids[start : start + SLICE])}
        return audit.stale_messages(messages, looks)

    # -- repair --------------------------------------------------------------------------------------------------------

    async def _repair(self, findings: Sequence[Fault]) -> list[Fault]:
        """Repair each finding that can be repaired, and note the repair in it."""
        after: list[Fault] = []
        for fault in findings:
            if fault.kind is FaultKind.MESSAGE_LOST:
                (look,) = await self._looks([fault.job])
                await self._ledger.run(calls.sweep(look.pool))
                still = await self._of_lists(look.pool, [fault.job])
                after.append(fault if still else fault.after("the pool was swept"))
            elif fault.kind is FaultKind.WENT_BACK:
                beat = calls.advance_epoch(await self._outside() or epochs.NEVER, acknowledge=True)
                noted = await self._ledger.run(beat)
                after.append(fault.after(f"acknowledged, in epoch {noted.epoch.number}; lost jobs are not restored"))
            elif fault.kind in REPAIRABLE:
                repair = calls.repair(
                    fault.job,
                    pool=fault.pool,
                    worker=fault.worker,
                    letter_of=fault.letter_of,
                    delivery=fault.delivery,
                    target=fault.target,
                )
                done = await self._ledger.run(repair)
                after.append(fault.after(", ".join(done)) if done else fault)
            else:
                after.append(fault)
        return after

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _looks(
        self, ids: Sequence[str], *, pool: str | None = None, letter_of: str | None = None
    ) -> list[JobSnapshot]:
        """A snapshot of each job, at a moment of its own."""
        return await self._answers([snapshots.inspect(job_id, pool=pool, letter_of=letter_of) for job_id in ids])

    async def _answers(self, batch: Sequence[Call[T]]) -> list[T]:
        answers: list[T] = []
        for answer in await self._ledger.run_each(batch):
            if isinstance(answer, DarkroomError):
                raise answer
            answers.append(answer)
        return answers

    async def _pools(self) -> list[str]:
        """The announced pools, and others that have sets."""
        pools = set(await reads.pools(self._ledger))
        for name in POOL_SETS:
            async for found in reads.names(self._ledger, getattr(self._keys, name)(""), kind="zset"):
                pools.update(found)
        return sorted(pools)

    async def _list(self, pool: str) -> list[QueuedMessage]:
        """The messages in the pool's Celery queue."""
        return [
            QueuedMessage(pool, "list", snapshots.tag_of(message))
            for message in await reads.queued_messages(self._ledger, pool)
        ]


async def _artifact_fault(store: ArtifactStore, job_id: str, artifact: Artifact) -> Fault | None:
    digest = hashlib.sha256()
    try:
        _, chunks = await store.open(artifact.key)
        async for chunk in chunks:
            digest.update(chunk)
    except NotFound:
        return Fault(FaultKind.ARTIFACT_MISSING, job_id, f"the store has no {artifact.key}", artifact=artifact.key)
    if digest.hexdigest() == artifact.sha256:
        return None
    seen = f"the bytes of {artifact.key} in the store differ from those that were published"
    return Fault(FaultKind.ARTIFACT_DIFFERS, job_id, seen, artifact=artifact.key)
