"""The trace context: one id that goes with a job from its submission through the queue to what is told of it.

It travels as `traceparent`, in HTTP headers, in CloudEvents and in the queue's messages, as W3C Trace Context has it
(https://www.w3.org/TR/trace-context/, section 3.2).
"""

from __future__ import annotations

import re

RANDOM_BYTES = 24
"""What a new trace id and a new parent id take together."""

# Version ff is invalid, and so are ids of only zeros; a later version may be longer.
_TRACEPARENT = re.compile(
    "(?:00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    "|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?)"
)


def traceparent_of(value: object) -> str | None:
    """`value` where it is a well-formed traceparent, else None: a malformed one is ignored, as the standard asks."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def new_traceparent(fresh: bytes) -> str:
    """A trace that begins here, of RANDOM_BYTES fresh bytes. Not sampled: nothing has been recorded of it yet."""
    digits = fresh.hex()
    return f"00-{digits[:32]}-{digits[32:]}-00"
