"""`darkroom watch`, and the second half of `darkroom submit`: a job followed to its end, its pictures saved."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from darkroom.errors import TemporaryError
from darkroom.jobs import State

from darkroom_cli import progress, welcome
from darkroom_cli.client import Client, Message
from darkroom_cli.exits import DONE, FAILED, INTERRUPTED
from darkroom_cli.output import Output
from darkroom_cli.pictures import Destination, save


def watch(client: Client, job_id: str, output: Output, *, destination: str | None) -> int:
    """Follow the job; answers the exit status."""
    place = None if destination is None else Destination.parse(destination)
    client.job(job_id)  # what is not there, or cannot be reached, is said at once
    return follow(client, job_id, output, destination=place)


def follow(client: Client, job_id: str, output: Output, *, destination: Destination | None) -> int:
    """Show the job's way to its end, save its pictures where a destination is given, and say what became of it."""
    try:
        _show(client, job_id, output)
    except KeyboardInterrupt:
        output.say(f"The job goes on. {hints(client, job_id)}")
        return INTERRUPTED
    except TemporaryError:
        output.say(f"The job was accepted, and goes on as soon as it can. {hints(client, job_id)}")
        raise
    job = client.job(job_id)
    completed = job["state"] == State.COMPLETED
    links = job["output_paths"]
    files = [str(file) for file in save(client, links, job_id, destination)] if destination else []
    output.record({**job, "files": files})
    if not completed:
        output.say(ending(job))
        return FAILED
    for place in files or links:
        output.result(f"{place}  ({made_by(job)})")
    return DONE


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


def made_by(job: Mapping[str, Any]) -> str:
    """What really made the pictures, and the seed that makes them again."""
    seed = job["input"].get("seed")
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
