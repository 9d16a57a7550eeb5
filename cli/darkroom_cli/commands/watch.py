"""`darkroom watch`, and the second half of `darkroom submit`: follow a job and save its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from darkroom.errors import InvalidInput, PermanentError, TemporaryError
from darkroom.jobs import State

from darkroom_cli import following
from darkroom_cli.address import DEFAULT_URL
from darkroom_cli.client import Client
from darkroom_cli.exits import DONE, FAILED, INTERRUPTED
from darkroom_cli.local import welcome
from darkroom_cli.terminal import progress
from darkroom_cli.terminal.output import Output
from darkroom_cli.terminal.pictures import PictureTarget, save


def watch(client: Client, job_id: str, output: Output, *, target: PictureTarget | None) -> int:
    """Follow the job; returns the exit status."""
    client.job(job_id)  # fails immediately if there is no such job, or no server
    return follow(client, job_id, output, target=target)


def follow(client: Client, job_id: str, output: Output, *, target: PictureTarget | None) -> int:
    """Show the job's progress, save its pictures where a target is given, and report how it finished."""
    try:
        _show(client, job_id, output)
    except KeyboardInterrupt:
        output.error(f"The job continues. {hints(client, job_id)}")
        return INTERRUPTED
    except TemporaryError:
        output.error(f"The job was accepted and continues when the server can. {hints(client, job_id)}")
        raise
    except PermanentError:  # the key may not read, or has been disabled meanwhile
        output.error(f"The job {job_id} was accepted and continues.")
        raise
    job = client.job(job_id)
    completed = job["state"] == State.COMPLETED
    links = job["output_paths"]
    try:
        files = [str(file) for file in save(client, links, job_id, target, output)] if target else []
    except InvalidInput:
        output.record({**job, "files": []})
        output.error("\n  ".join([f"The job {job_id} is completed. Its pictures:", *links]))
        raise
    if target is not None and target.is_stdout:
        return DONE if completed else _unfinished(job, output)
    output.record({**job, "files": files})
    if not completed:
        return _unfinished(job, output)
    for number, location in enumerate(files or links):
        output.result(f"{location}  ({made_by(job, number)})")
    return DONE


def _unfinished(job: Mapping[str, Any], output: Output) -> int:
    output.error(outcome(job))
    return FAILED


def hints(client: Client, job_id: str) -> str:
    """Shell commands that follow or cancel the job."""
    program = welcome.own_program()
    where = "" if client.url == DEFAULT_URL else f" --url {client.url}"
    return (
        f"To follow the job and save its pictures, or to cancel it:\n"
        f"  {program} watch {job_id} --output .{where}\n"
        f"  {program} cancel {job_id}{where}"
    )


def outcome(job: Mapping[str, Any]) -> str:
    """The outcome of a job without pictures."""
    error = job["error"]
    return f"The job {job['id']} is {job['state']}" + (f": {error['message']}" if error else ".")


def made_by(job: Mapping[str, Any], number: int = 0) -> str:
    """The model of picture `number` (from 0), and the seed that reproduces it."""
    seeds = (job.get("record") or {}).get("seeds") or [job["input"].get("seed")]
    seed = seeds[number] if number < len(seeds) else None
    return f"by {job['model_served']}" + ("" if seed is None else f", seed {seed}")


def _show(client: Client, job_id: str, output: Output) -> None:
    last: following.Message | None = None
    position: int | None = None
    with progress.display(output) as display:
        for message in following.follow(client, job_id):
            if message is not None:
                output.record(message)
                last = message
            if last is None:
                continue
            if last["state"] == State.PENDING:
                with suppress(TemporaryError):
                    position = client.job(job_id)["place"]
            display.show(progress.describe(last, position), last.get("progress") or 0)
