"""`darkroom watch`, and the second half of `darkroom submit`: a job followed to its end, its pictures saved."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from darkroom.errors import InvalidInput, TemporaryError
from darkroom.jobs import State

from darkroom_cli.client import Client, Message
from darkroom_cli.exits import DONE, FAILED, INTERRUPTED
from darkroom_cli.local import welcome
from darkroom_cli.terminal import progress
from darkroom_cli.terminal.output import Output
from darkroom_cli.terminal.pictures import Destination, save


def watch(client: Client, job_id: str, output: Output, *, destination: Destination | None) -> int:
    """Follow the job; returns the exit status."""
    client.job(job_id)  # fails at once where there is no such job, or no server
    return follow(client, job_id, output, destination=destination)


def follow(client: Client, job_id: str, output: Output, *, destination: Destination | None) -> int:
    """Show the job's progress, save its pictures where a destination is given, and report how it finished."""
    try:
        _show(client, job_id, output)
    except KeyboardInterrupt:
        output.complain(f"The job goes on. {hints(client, job_id)}")
        return INTERRUPTED
    except TemporaryError:
        output.complain(f"The job was accepted, and goes on as soon as it can. {hints(client, job_id)}")
        raise
    job = client.job(job_id)
    completed = job["state"] == State.COMPLETED
    links = job["output_paths"]
    try:
        files = [str(file) for file in save(client, links, job_id, destination, output)] if destination else []
    except InvalidInput:
        output.record({**job, "files": []})
        output.complain("\n  ".join([f"The job {job_id} is completed. Its pictures:", *links]))
        raise
    if destination is not None and destination.is_stdout:
        return DONE if completed else _unfinished(job, output)
    output.record({**job, "files": files})
    if not completed:
        return _unfinished(job, output)
    for number, place in enumerate(files or links):
        output.result(f"{place}  ({made_by(job, number)})")
    return DONE


def _unfinished(job: Mapping[str, Any], output: Output) -> int:
    output.complain(ending(job))
    return FAILED


def hints(client: Client, job_id: str) -> str:
    """How to come back to the job, as it can be typed."""
    program = welcome.own_program()
    where = "" if client.url == welcome.DEFAULT_URL else f" --url {client.url}"
    return (
        f"To follow it and save its pictures, or to cancel it:\n"
        f"  {program} watch {job_id} --output .{where}\n"
        f"  {program} cancel {job_id}{where}"
    )


def ending(job: Mapping[str, Any]) -> str:
    """What became of a job that has no pictures."""
    error = job["error"]
    return f"The job {job['id']} is {job['state']}" + (f": {error['message']}" if error else ".")


def made_by(job: Mapping[str, Any], number: int = 0) -> str:
    """The model that made picture `number` (from 0), and the seed that makes it again."""
    seeds = (job.get("record") or {}).get("seeds") or [job["input"].get("seed")]
    seed = seeds[number] if number < len(seeds) else None
    return f"by {job['model_served']}" + ("" if seed is None else f", seed {seed}")


def _show(client: Client, job_id: str, output: Output) -> None:
    last: Message | None = None
    place: int | None = None
    with progress.display(output) as display:
        for message in client.updates(job_id):
            if message is not None:
                output.record(message)
                last = message
            if last is None:
                continue
            if last["state"] == State.PENDING:
                with suppress(TemporaryError):
                    place = client.job(job_id)["place"]
            display.show(progress.words_for(last, place), last.get("progress") or 0)
