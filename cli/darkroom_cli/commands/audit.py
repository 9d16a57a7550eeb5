"""`darkroom audit`: check that every job is in one place, that its artifacts are those that were published, and that
the audit trail is whole.
"""

from __future__ import annotations

import asyncio
import getpass
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from darkroom.artifacts import ArtifactStore
from darkroom.checks.audit import Fault, StaleMessage
from darkroom.checks.auditor import Auditor, AuditReport, faults_of_trail
from darkroom.errors import SettingError
from darkroom.history.store import History
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.times import iso
from darkroom.trail.entries import Chained
from darkroom.trail.recording import Recorder
from darkroom.trail.store import TrailStore, Verification

from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.local import installation
from darkroom_cli.local.installation import Installation
from darkroom_cli.terminal.output import Output


@dataclass(frozen=True)
class AuditOptions:
    """The command's arguments."""

    data: Path | None
    repair: bool
    artifacts: bool
    trail: bool = False


def audit(options: AuditOptions, output: Output) -> int:
    """Run the audit and print the report. Findings that were not repaired are a failure."""
    found = installation.find(options.data)
    if options.trail:
        return asyncio.run(_print_trail(found, output))
    report = asyncio.run(_audit(found, options))
    _print(report, output)
    return FAILED if report.unrepaired else DONE


async def _audit(where: Installation, options: AuditOptions) -> AuditReport:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect_async(where.redis_url))
        history = History(where.history) if where.history else None
        if history is not None:
            stack.push_async_callback(history.aclose)
        store = ArtifactStore(where.store) if where.store and options.artifacts else None
        report = await Auditor(client, where.namespace, store=store, history=history).audit(repair=options.repair)
        recorder = Recorder(AsyncLedger(client, where.namespace))
        for fault in report.findings:
            if fault.repaired is not None:
                await recorder.internal(
                    actor=f"cli:{getpass.getuser()}",
                    tenant="",
                    operation="repair",
                    object=fault.job or fault.kind.value,
                )
        return report


async def _print_trail(where: Installation, output: Output) -> int:
    """Print all entries of the audit trail, oldest first, and verify it."""
    if where.history is None:
        raise SettingError("DARKROOM_DATABASE_URL is not set: the audit trail is in that database")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect_async(where.redis_url))
        history = History(where.history)
        stack.push_async_callback(history.aclose)
        found = await Auditor(client, where.namespace, store=None, history=history).verify_trail()
        if found is not None:
            async for chained in TrailStore(history, where.namespace).read():
                _print_entry(chained, output)
    faults = faults_of_trail(found)
    for fault in faults:
        output.record(_fault(fault))
        output.result(f"{fault.kind}: {fault.seen}")
    output.record(_of_trail(found))
    output.result(_trail_in_words(found))
    return FAILED if faults else DONE


def _print_entry(chained: Chained, output: Output) -> None:
    entry = chained.entry
    output.record(
        {**asdict(entry), "at": iso(entry.at), "at_ms": entry.at, "seq": chained.seq, "digest": chained.digest}
    )
    times = f" × {entry.count}" if entry.count > 1 else ""
    who = f"{entry.tenant or '-'} {entry.actor}"
    output.result(f"{chained.seq}  {iso(entry.at)}  {who}  {entry.operation} {entry.object}  {entry.outcome}{times}")


def _of_trail(trail: Verification | None) -> dict[str, Any]:
    if trail is None:
        return {"trail": None}
    return {"trail": trail.entries, "head": {"seq": trail.head.seq, "digest": trail.head.digest}}


def _trail_in_words(trail: Verification | None) -> str:
    if trail is None:
        return "the audit trail was not read"
    end = f", to number {trail.head.seq} with the hash {trail.head.digest}" if trail.entries else ""
    return f"entries of the audit trail: {trail.entries}{end}"


def _print(report: AuditReport, output: Output) -> None:
    for fault in report.findings:
        output.record(_fault(fault))
        output.result(f"{fault.kind}: {f'job {fault.job}: ' if fault.job else ''}{fault.seen}")
        if fault.repaired is not None:
            output.result(f"  repaired: {fault.repaired}")
    for stale in report.stale:
        output.record(_stale(stale))
        message = stale.message
        tag = message.tag or "without a tag"
        output.result(f"stale message {tag} of pool {message.pool} ({message.where}): {stale.reason}")
    for orphan in report.orphans:
        output.record({"orphan": orphan.key, "job": orphan.job, "seen": orphan.reason})
        output.result(f"orphaned artifact {orphan.key}: {orphan.reason}")
    output.record(_summary(report))
    output.result(_in_words(report))


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "finding": fault.kind,
        "job": fault.job or None,
        "seen": fault.seen,
        "pool": fault.pool,
        "worker": fault.worker,
        "artifact": fault.artifact,
        "repaired": fault.repaired,
    }


def _stale(stale: StaleMessage) -> dict[str, Any]:
    message = stale.message
    return {
        "stale": message.tag,
        "job": message.job,
        "pool": message.pool,
        "where": message.where,
        "seen": stale.reason,
    }


def _summary(report: AuditReport) -> dict[str, Any]:
    return {
        "jobs": report.jobs,
        "places": dict(report.places),
        "unapplied": report.unapplied,
        "artifacts": report.artifacts,
        "history": report.past,
        "findings": dict(Counter(fault.kind.value for fault in report.findings)),
        "repaired": len(report.findings) - len(report.unrepaired),
        "stale": len(report.stale),
        "orphans": len(report.orphans),
        **_of_trail(report.trail),
    }


def _in_words(report: AuditReport) -> str:
    places = ", ".join(f"{count} {place}" for place, count in report.places.items() if count)
    lines = [f"jobs: {report.jobs}" + (f" ({places})" if places else "")]
    if report.unapplied:
        lines.append(f"terminal events that are not applied yet: {report.unapplied}")
    if report.artifacts is None:
        lines.append("the object store was not read")
    else:
        lines.append(f"artifacts read: {report.artifacts}")
    if report.past is None:
        lines.append("the history was not read")
    else:
        lines.append(f"jobs compared with the history: {report.past}")
    lines.append(_trail_in_words(report.trail))
    if report.stale:
        lines.append(f"stale messages, which workers drop: {len(report.stale)}")
    if report.orphans:
        lines.append(f"orphaned artifacts, which retention removes: {len(report.orphans)}")
    if not report.findings:
        lines.append("no findings")
    else:
        repaired = len(report.findings) - len(report.unrepaired)
        lines.append(f"findings: {len(report.findings)}, repaired: {repaired}")
    return "\n".join(lines)
