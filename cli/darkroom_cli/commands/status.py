"""`darkroom status`: show a job's current state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.jobs import State, read_value

from darkroom_cli.client import Client
from darkroom_cli.commands.watch import made_by, outcome
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output


def status(client: Client, job_id: str, output: Output) -> int:
    """Print the job's state. The exit status is 0 for every state."""
    job = client.job(job_id)
    output.record(job)
    output.result(_describe(job))
    for link in job["output_paths"]:
        output.result(f"  {link}")
    return DONE


def _describe(job: Mapping[str, Any]) -> str:
    match read_value(State, job["state"]):
        case State.PENDING:
            place = job["place"]
            return f"The job {job['id']} is pending" + (f", at position {place} of the queue." if place else ".")
        case State.RUNNING:
            return f"The job {job['id']} is running, {job['progress']} % done."
        case State.COMPLETED:
            return f"The job {job['id']} is completed ({made_by(job)}):"
    return outcome(job)
