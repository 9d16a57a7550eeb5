"""`darkroom audit`: check that every job is in one place, and that its artifacts are those that were published."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.artifacts import ArtifactStore
from darkroom.checks.audit import Fault, StaleMessage
from darkroom.checks.auditor import Auditor, AuditReport
from darkroom.history.store import History
from darkroom.ledger.connection import connect_async

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


def audit(options: AuditOptions, output: Output) -> int:
    """Run the audit and print the report. Findings that were not repaired are a failure."""
    found = installation.find(options.data)
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
        return await Auditor(client, where.namespace, store=store, history=history).audit(repair=options.repair)


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
