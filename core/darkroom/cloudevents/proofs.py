"""Proofs of events: an HMAC in an extension attribute, by which a receiver knows that darkroom made the event.

Events pass a Broker, which everything in its cluster may reach. The courier and `submit` prove what they post;
`result`, `undelivered` and `submit` check it before they use an event. What only forwards events needs no trust.

A Broker may change the form of an event: binary or structured mode, the case of header names, white space and escapes
in JSON, the precision of a time, attributes of its own. So the proof covers values, not bytes on the wire: the
HMAC-SHA-256 of `LABEL`, and of one JSON object in UTF-8 with its names sorted and without white space. Its member
`attributes` has those of `PROVEN` that the event has: as text, and the times as UTC with microseconds. Its member
`data` is the event's data, null where it has none; a number without a fraction is an integer (`1.0` is `1`).
Everything else may change: the content type, the trace, and extensions of others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any

from pydantic import SecretStr

from darkroom import times
from darkroom.cloudevents.attributes import canonical
from darkroom.cloudevents.event import Event
from darkroom.errors import ProofRefused

PROOF = "darkroomproof"
"""The extension with the proof."""

KEY_ID = "darkroomkey"
"""The extension with the id of the API key that submitted a job request (`darkroom_functions/submission/stamps.py`)."""

PROVEN = ("id", "source", "type", "subject", "time", "tenant", "sequence", "expirytime", KEY_ID)
"""The attributes that a proof covers: identity, meaning and owner of an event."""

TIMES = frozenset({"time", "expirytime"})
"""Attributes that are times: a Broker may write them anew, as those in Go do."""

LABEL = b"darkroom-event-1\n"
"""What is proven, and the version of its form. It separates these HMACs from others with the same key."""


@dataclass(frozen=True)
class Proofs:
    """Proves events and checks proofs. `keys`: the newest first, which proves; all of them are accepted."""

    keys: Sequence[SecretStr]

    def prove(self, event: Event) -> Event:
        """The event with its proof. Raises ValueError for data that is not JSON."""
        proof = _encoded(_mac(self.keys[0], _proven(event)))
        return replace(event, extensions={**event.extensions, PROOF: proof})

    def check(self, event: Event) -> None:
        """Raises ProofRefused unless the event has a proof by one of the keys."""
        proof = event.extensions.get(PROOF)
        if proof is None:
            raise ProofRefused(f"the event has no proof of its origin ({PROOF})")
        given, proven = canonical(proof).encode(), _proven(event)
        # Every key is tried, so that the time does not depend on which one made the proof.
        matches = [hmac.compare_digest(given, _encoded(_mac(key, proven)).encode()) for key in self.keys]
        if not any(matches):
            raise ProofRefused(f"the proof of the event ({PROOF}) does not match its attributes and data")


def _mac(key: SecretStr, proven: bytes) -> bytes:
    return hmac.digest(key.get_secret_value().encode(), proven, hashlib.sha256)


def _encoded(mac: bytes) -> str:
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def _proven(event: Event) -> bytes:
    """The bytes that a proof covers."""
    attributes: dict[str, str] = {}
    for name in PROVEN:
        value = event.extensions.get(name) if name not in _CORE else getattr(event, name)
        if value is not None:
            attributes[name] = _instant(canonical(value)) if name in TIMES else canonical(value)
    value = {"attributes": attributes, "data": _plain(event.data)}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return LABEL + text.encode()


_CORE = frozenset({"id", "source", "type", "subject", "time"})


def _instant(text: str) -> str:
    """A time in one form; a text that is none stays as it is."""
    try:
        return times.parse(text).astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):
        return text


def _plain(value: Any) -> Any:
    """A JSON value whose numbers without a fraction are integers, since many readers of JSON make no difference."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    return value
