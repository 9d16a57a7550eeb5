"""CloudEvents over HTTP, valid and invalid, as data: `tests/core/vectors/`, one file per mode.

The parser is tested with them (`tests/core/test_events.py`), and submit with the same requests over real HTTP. To add a
case is to add an object to a file:

- `id` names it, `mode` is what its sender meant (`binary`, `structured`, `batch`), `reason` says why it is here.
- `headers` and `body` are the request; `body_base64` stands in for a body that is not UTF-8.
- `valid` says that every event in it is one; `job` of a valid one, that each also asks for a job: it is of the
  requested type, and its data, if any, is an object with a prompt.
- An invalid one has `error`, the slug of the problem, and `field`, one of those that the problem must name. A batch
  that is read has `verdicts` instead: for each event null, or the one field that its error must name.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkroom.cloudevents import strict_json
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import BATCH_TYPE

FOLDER = Path(__file__).resolve().parent / "core" / "vectors"
MODES = ("binary", "structured", "batch")


@dataclass(frozen=True)
class Vector:
    """One request with its expected result; the module's docstring describes the fields."""

    id: str
    mode: str
    headers: Mapping[str, str]
    body: bytes
    valid: bool
    reason: str
    job: bool
    error: str | None
    field: str | None
    verdicts: tuple[str | None, ...] | None

    @classmethod
    def decode(cls, raw: Mapping[str, Any]) -> Vector:
        encoded = raw.get("body_base64")
        return cls(
            id=raw["id"],
            mode=raw["mode"],
            headers=raw["headers"],
            body=raw["body"].encode() if encoded is None else base64.b64decode(encoded),
            valid=raw["valid"],
            reason=raw["reason"],
            job=raw.get("job", False),
            error=raw.get("error"),
            field=raw.get("field"),
            verdicts=tuple(raw["verdicts"]) if "verdicts" in raw else None,
        )


def load() -> list[Vector]:
    """All vectors, in the order of their files."""
    return [
        Vector.decode(raw)
        for mode in MODES
        for raw in json.loads((FOLDER / f"{mode}.json").read_text(encoding="utf-8"))
    ]


def encode_batch(events: Iterable[Event]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a batch of events. No part of darkroom sends one."""
    return {"content-type": BATCH_TYPE}, strict_json.encode([event.encode_structured() for event in events])
