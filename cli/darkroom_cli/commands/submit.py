"""`darkroom submit`: submit a job as a CloudEvent, and follow it by default."""

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
from darkroom_cli.terminal.pictures import PictureTarget

SOURCE = "/darkroom-cli"
"""With the random id of each call it identifies the request, so that a repeated request makes one job."""

ID_BYTES = 16


@dataclass(frozen=True)
class JobRequest:
    """The model (None: the server's default) and its parameters."""

    model: str | None
    parameters: Mapping[str, Any]


def submit(client: Client, request: JobRequest, output: Output, *, target: PictureTarget | None) -> int:
    """Submit the job, and follow it if a target is given; returns the exit status."""
    receipt = client.submit(_event(request))
    job_id = str(receipt["id"])
    if target is None or not target.is_stdout:
        output.record(receipt)
    if target is not None:
        return follow(client, job_id, output, target=target)
    output.result(job_id)
    output.info(hints(client, job_id))
    return DONE


def parameters(given: Sequence[str], *, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Parameters from `NAME=VALUE`, with values parsed as JSON if valid, and those from `options`.

    Raises InvalidInput, also for a parameter that is given twice.
    """
    read = dict(options)
    for text in given:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise InvalidInput(f"-p {text} is not NAME=VALUE")
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
    """The CloudEvent of the request, made with the public SDK."""
    data: dict[str, Any] = {"input": dict(request.parameters)}
    if request.model is not None:
        data["model"] = request.model
    return CloudEvent({"id": secrets.token_hex(ID_BYTES), "source": SOURCE, "type": REQUESTED}, data)
