"""The end of a process' log in a readable form, which `up` shows when the process did not start.

The parts log one JSON object per line (`darkroom.logs`), including stack traces; other programs log plain text. The
excerpt may be short, since the file has the whole log.
"""

from __future__ import annotations

import json
from pathlib import Path

LINES = 15
"""The number of lines to read: the reason of an exit is in the last ones."""

WIDTH = 300
"""Maximum number of characters of a line."""

NOT_SHOWN = frozenset({"event", "exception", "level", "logger", "part", "timestamp"})


def log_tail(log: Path) -> str:
    """The last lines, indented. If some are errors or not JSON, only those."""
    entries = [_entry(line) for line in log.read_text(errors="replace").splitlines()[-LINES:]]
    errors = [text for text, is_error in entries if is_error]
    shown = dict.fromkeys(errors or [text for text, _ in entries])
    return "\n".join(f"  {text[:WIDTH]}" for text in shown)


def _entry(line: str) -> tuple[str, bool]:
    """The line in a readable form, and whether it reports an error."""
    try:
        members = json.loads(line)
        event = str(members["event"])
    except (ValueError, KeyError, TypeError):
        return line, True
    words = [f"{name}={value}" for name, value in members.items() if name not in NOT_SHOWN]
    reason = str(members.get("exception", "")).strip().splitlines()[-1:]
    return " ".join([event, *words, *reason]), members.get("level") in ("error", "critical")
