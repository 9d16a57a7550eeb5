"""`darkroom doctor`: find problems of an installation and print remedies."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from darkroom.checks.doctor import Diagnosis, diagnose
from darkroom.checks.examination import examine
from darkroom.checks.ledger_checks import Limits
from darkroom.history.store import History
from darkroom.ledger.connection import connect_async

from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.local import installation
from darkroom_cli.local.installation import Installation
from darkroom_cli.terminal.output import Output


def doctor(data: Path | None, output: Output) -> int:
    """Run the checks and print the findings. Any finding is a failure."""
    diagnosis = asyncio.run(_examine(installation.find(data)))
    _print(diagnosis, output)
    return FAILED if diagnosis.findings else DONE


async def _examine(where: Installation) -> Diagnosis:
    limits = Limits(backlog=where.backlog_limit, backlog_bytes=where.backlog_bytes)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect_async(where.redis_url))
        history = History(where.history) if where.history else None
        if history is not None:
            stack.push_async_callback(history.aclose)
        return diagnose(await examine(client, where.namespace, limits, history=history), limits)


def _print(diagnosis: Diagnosis, output: Output) -> None:
    for finding in diagnosis.findings:
        symptom = finding.symptom
        output.record(
            {"check": finding.check, "severity": symptom.severity, "seen": symptom.seen, "remedy": symptom.remedy}
        )
        output.result(f"{symptom.severity}: {finding.check}: {symptom.seen}\n  remedy: {symptom.remedy}")
    found = {finding.check for finding in diagnosis.findings}
    output.record(
        {
            "findings": len(diagnosis.findings),
            "found": [name for name in diagnosis.made if name in found],
            "fine": [name for name in diagnosis.made if name not in found],
            "not_made": list(diagnosis.not_made),
        }
    )
    fine = ", ".join(name for name in diagnosis.made if name not in found)
    output.result(f"fine: {fine or 'nothing'}")
    if diagnosis.not_made:
        output.result(f"not checked: {', '.join(diagnosis.not_made)}")
