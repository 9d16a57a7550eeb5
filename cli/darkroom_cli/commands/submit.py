"""`darkroom submit`: one request for a job, sent as a CloudEvent, and followed to its end unless told otherwise."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cloudevents.http import CloudEvent
from darkroom.cloudevents.event import REQUESTED
from darkroom.errors import InvalidInput

from darkroom_cli.client import Client
from darkroom_cli.commands.watch import follow, hints
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output
from darkroom_cli.terminal.pictures import Destination

SOURCE = "/darkroom-cli"
"""With an id drawn for each call it names the request for ever, so sending it twice makes one job."""

ID_BYTES = 16


@dataclass(frozen=True)
class JobRequest:
    """The model (None: the server's default) and its parameters."""

    model: str | None
    parameters: Mapping[str, Any]


def submit(client: Client, request: JobRequest, output: Output, *, destination: Destination | None) -> int:
    """Send it, and follow it where its pictures have a destination; returns the exit status."""
    receipt = client.submit(_event(request))
    job_id = str(receipt["id"])
    if destination is None or not destination.is_stdout:
        output.record(receipt)
    if destination is not None:
        return follow(client, job_id, output, destination=destination)
    output.result(job_id)
    output.say(hints(client, job_id))
    return DONE


def parameters(given: Sequence[str], *, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Parameters from `NAME=VALUE`, values read as JSON where they are, beside those that have options of their own.

    Raises InvalidInput, for one that is given twice, too.
    """
    read = dict(options)
    for text in given:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise InvalidInput(f"-p {text}: is not NAME=VALUE")
        if name in read:
            raise InvalidInput(f"-p {text}: {name} is given twice")
        read[name] = _value(value)
    return read


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _event(request: JobRequest) -> CloudEvent:
    """Made with the public SDK, as any other client would."""
    data: dict[str, Any] = {"input": dict(request.parameters)}
    if request.model is not None:
        data["model"] = request.model
    return CloudEvent({"id": secrets.token_hex(ID_BYTES), "source": SOURCE, "type": REQUESTED}, data)
