"""The trace context: one id that accompanies a job from its submission through the queue to its events.

It is carried as `traceparent` in HTTP headers, CloudEvents and the queue's messages, as W3C Trace Context defines it
(https://www.w3.org/TR/trace-context/, section 3.2).
"""

from __future__ import annotations

import re

RANDOM_BYTES = 24
"""The bytes of a new trace id and a new parent id together."""

MAX_CHARS = 256
"""The longest value that is stored with a job. Today's version has 55 characters, later ones may have more."""

_TRACE_ID = slice(3, 35)  # after version, before parent id and flags

# No version ff, no id of zeros only; after version 00 nothing follows the flags, after a later one more may.
_TRACEPARENT = re.compile("(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def traceparent_of(value: object) -> str | None:
    """`value` where it is a well-formed traceparent, else None: a malformed one is ignored, as the standard asks."""
    if not isinstance(value, str) or len(value) > MAX_CHARS or not (value.isascii() and value.isprintable()):
        return None
    match = _TRACEPARENT.fullmatch(value)
    return None if match is None or (match[1] == "00" and match[2]) else value


def in_logs(traceparent: str | None) -> dict[str, str]:
    """The field of a log line with the id of the trace, if there is one."""
    return {"trace_id": traceparent[_TRACE_ID]} if traceparent else {}


def new_traceparent(random_bytes: bytes) -> str:
    """A new trace, of RANDOM_BYTES random bytes. It is not sampled: nothing has been recorded of it yet."""
    digits = random_bytes.hex()
    return f"00-{digits[:32]}-{digits[32:]}-00"
