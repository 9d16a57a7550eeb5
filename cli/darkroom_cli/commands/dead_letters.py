"""`darkroom dead-letters`: jobs whose attempts are used up: listed, shown, redriven, purged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from darkroom_cli.client import Client
from darkroom_cli.commands.watch import hints
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

Letter = Mapping[str, Any]
"""A dead letter as the server shows it."""


def list_letters(client: Client, output: Output) -> int:
    """One line for each, the last that ended first."""
    found = False
    for letter in client.dead_letters():
        found = True
        output.record(letter)
        output.result(f"{letter['id']}  {letter['ended_at']}  {letter['model']}  {_error(letter)}")
    if not found:
        output.say("There are no dead letters.")
    return DONE


def show(client: Client, job_id: str, output: Output) -> int:
    """Why the job failed, each of its attempts, and the event that asked for it."""
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
    """Make a new job of it, and say its id. Asked again, the server answers as the first time."""
    slip = client.redrive(job_id, edits)
    output.record(slip)
    output.result(str(slip["id"]))
    output.say(hints(client, str(slip["id"])))
    return DONE


def purge(client: Client, job_id: str, output: Output) -> int:
    """Let it be a dead letter no more."""
    client.purge(job_id)
    output.record({"id": job_id, "purged": True})
    output.result(f"The dead letter {job_id} is purged.")
    return DONE


def purge_all(client: Client, output: Output) -> int:
    """As `purge`, all there are."""
    answer = client.purge_all()
    output.record(answer)
    output.result(f"dead letters purged: {answer['purged']}")
    return DONE


def _error(letter: Letter) -> str:
    return f"{letter['error']['kind']}: {letter['error']['message']}"
