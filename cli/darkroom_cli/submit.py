"""`darkroom submit`: one request for a job, sent as a CloudEvent, and followed to its end unless told otherwise."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudevents.http import CloudEvent
from darkroom.errors import InvalidInput
from darkroom.events import REQUESTED

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE
from darkroom_cli.output import Output
from darkroom_cli.pictures import Destination
from darkroom_cli.watch import follow, hints

SOURCE = "/darkroom-cli"
"""With an id drawn for each call it names the request for ever, so sending it twice makes one job."""

ID_BYTES = 16


@dataclass(frozen=True)
class Wish:
    """What is asked for: the model (None: the server's default) and its parameters."""

    model: str | None
    parameters: Mapping[str, Any]


def submit(client: Client, wish: Wish, output: Output, *, destination: str, wait: bool) -> int:
    """Send it and follow it; answers the exit status."""
    place = Destination.parse(destination) if wait else None
    slip = client.submit(_event(wish))
    job_id = str(slip["id"])
    output.record(slip)
    if place is not None:
        return follow(client, job_id, output, destination=place)
    output.result(job_id)
    output.say(hints(client, job_id))
    return DONE


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """Parameters from `NAME=VALUE`, values read as JSON where they are. Raises InvalidInput."""
    read = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise InvalidInput(f"-p {text}: is not NAME=VALUE")
        read[name] = _value(value)
    return read


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _event(wish: Wish) -> CloudEvent:
    """Made with the public SDK, as a client of somebody else would."""
    data: dict[str, Any] = {"input": dict(wish.parameters)}
    if wish.model is not None:
        data["model"] = wish.model
    return CloudEvent({"id": secrets.token_hex(ID_BYTES), "source": SOURCE, "type": REQUESTED}, data)
