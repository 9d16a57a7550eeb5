"""`darkroom dead-letters`: list, show, redrive and purge jobs whose attempts are used up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from darkroom_cli.client import Client
from darkroom_cli.commands.watch import hints
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

Letter = Mapping[str, Any]
"""A dead letter in the server's representation."""


def list_letters(client: Client, output: Output) -> int:
    """Print one line per dead letter, most recently failed first."""
    found = False
    for letter in client.dead_letters():
        found = True
        output.record(letter)
        output.result(f"{letter['id']}  {letter['ended_at']}  {letter['model']}  {_error(letter)}")
    if not found:
        output.info("There are no dead letters.")
    return DONE


def show(client: Client, job_id: str, output: Output) -> int:
    """Print why the job failed, each attempt, and the event that requested the job."""
    letter = client.dead_letter(job_id)
    output.record(letter)
    output.result(f"The job {letter['id']} of model {letter['model']} failed at {letter['ended_at']}: {_error(letter)}")
    for attempt in letter["attempts"]:
        why = ": ".join(attempt[name] for name in ("reason", "message") if attempt[name])
        span = f"{attempt['started_at']} to {attempt['ended_at'] or '?'}"
        output.result(f"  attempt {attempt['number']}, {span}, {attempt['worker']}: {why or attempt['outcome']}")
    output.result(json.dumps(letter["event"], indent=2, ensure_ascii=False))
    return DONE


def redrive(client: Client, job_id: str, edits: Mapping[str, Any], output: Output) -> int:
    """Make a new job of the dead letter and print its id. A repeated redrive returns the same job."""
    receipt = client.redrive(job_id, edits)
    output.record(receipt)
    output.result(str(receipt["id"]))
    output.info(hints(client, str(receipt["id"])))
    return DONE


def purge(client: Client, job_id: str, output: Output) -> int:
    """Remove a dead letter from the list."""
    client.purge(job_id)
    output.record({"id": job_id, "purged": True})
    output.result(f"The dead letter {job_id} is purged.")
    return DONE


def purge_all(client: Client, output: Output) -> int:
    """Purge all dead letters."""
    answer = client.purge_all()
    output.record(answer)
    output.result(f"dead letters purged: {answer['purged']}")
    return DONE


def _error(letter: Letter) -> str:
    return f"{letter['error']['kind']}: {letter['error']['message']}"
