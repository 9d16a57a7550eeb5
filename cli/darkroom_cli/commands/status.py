"""`darkroom status`: one look at a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.jobs import State, read_value

from darkroom_cli.client import Client
from darkroom_cli.commands.watch import ending, made_by
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output


def status(client: Client, job_id: str, output: Output) -> int:
    """Say how the job is; that is done whatever became of it."""
    job = client.job(job_id)
    output.record(job)
    output.result(_sentence(job))
    for link in job["output_paths"]:
        output.result(f"  {link}")
    return DONE


def _sentence(job: Mapping[str, Any]) -> str:
    match read_value(State, job["state"]):
        case State.PENDING:
            place = job["place"]
            return f"The job {job['id']} waits" + (f" at place {place} in the queue." if place else ".")
        case State.RUNNING:
            return f"The job {job['id']} runs, {job['progress']} % done."
        case State.COMPLETED:
            return f"The job {job['id']} is completed ({made_by(job)}):"
    return ending(job)
