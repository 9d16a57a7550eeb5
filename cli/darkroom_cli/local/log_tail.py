"""The end of a process' log, for people: what `up` shows when the process did not start.

Our parts log one JSON object a line (`darkroom.logs`), with whole stack traces in it; other programs write what they
like. The file has all of it, so what is shown may be short.
"""

from __future__ import annotations

import json
from pathlib import Path

LINES = 15
"""So many lines are looked at: what ended a process is in its last ones."""

WIDTH = 300
"""Characters of one line."""

NOT_SHOWN = frozenset({"event", "exception", "level", "logger", "part", "timestamp"})


def log_tail(log: Path) -> str:
    """The last lines, indented. Where there are errors among them, or lines that are not ours, only those."""
    entries = [_entry(line) for line in log.read_text(errors="replace").splitlines()[-LINES:]]
    matters = [text for text, matter in entries if matter]
    shown = dict.fromkeys(matters or [text for text, _ in entries])
    return "\n".join(f"  {text[:WIDTH]}" for text in shown)


def _entry(line: str) -> tuple[str, bool]:
    """The line for people, and whether it tells of something wrong."""
    try:
        members = json.loads(line)
        event = str(members["event"])
    except (ValueError, KeyError, TypeError):
        return line, True
    words = [f"{name}={value}" for name, value in members.items() if name not in NOT_SHOWN]
    reason = str(members.get("exception", "")).strip().splitlines()[-1:]
    return " ".join([event, *words, *reason]), members.get("level") in ("error", "critical")
