"""Logs: one JSON object a line on stderr, an event's name and its fields, such as `{"event": "claimed", "job": …}`.

Each entry module calls `configure` once. Libraries (uvicorn, Celery, kopf) log in the same format. Logging never raises
an exception: a line that cannot be written, as on a full disk, is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any, TextIO, cast

import structlog

LOG_HEADERS = ("httpcore", "uvicorn.error", "websockets")
"""Loggers that write the headers of requests at DEBUG, with the credentials in them. uvicorn passes its own one to
websockets.
"""


class Lines:
    """Standard error, line by line and unbuffered. `write` drops lines that it cannot write, and never raises.

    A full disk, a closed descriptor and a closed pipe are handled alike. The first line that can be written again is
    preceded by one with the number of dropped lines.
    """

    def __init__(self, descriptor: int | None, *, part: str) -> None:
        self._descriptor = descriptor
        self._part = part
        self._dropped = 0
        self._is_torn = False
        self._one_at_a_time = threading.Lock()

    def write(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace")
        with self._one_at_a_time:
            if self._dropped:
                data = self._about_dropped() + data
            try:
                self._write(data)
                self._dropped = 0
            except OSError:
                self._dropped += 1

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            raise OSError("the process has no standard error")
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
            self._is_torn = bool(left)

    def _about_dropped(self) -> bytes:
        event = {"event": "log_lines_dropped", "lines": self._dropped, "level": "warning", "part": self._part}
        return (b"\n" if self._is_torn else b"") + json.dumps(event).encode() + b"\n"


def _rendered(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
    """The line of an event. If a field cannot be rendered, the line has the standard fields only."""
    try:
        return str(_json(logger, method, event))
    except Exception as error:
        known = ("event", "level", "timestamp", "part", "job")
        kept = {name: event[name] for name in known if isinstance(event.get(name), str)}
        return json.dumps({**kept, "unrendered": type(error).__name__})


_json = structlog.processors.JSONRenderer()


def configure(part: str, *, level: int = logging.INFO, pool: str | None = None) -> None:
    """Write all logs of this process, including those of libraries, as JSON lines with the part and a worker's pool."""
    whose = {"part": part} if pool is None else {"part": part, "pool": pool}
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]

    def name_part(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.update(whose)
        return event

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            name_part,
            _rendered,
        ],
    )
    lines = Lines(None if sys.stderr is None else sys.stderr.fileno(), part=part)
    handler = logging.StreamHandler(lines)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in LOG_HEADERS:
        logging.getLogger(name).setLevel(max(level, logging.INFO))
    # darkroom's own lines bypass `logging`, which takes five times as long: submit writes one for every job.
    structlog.configure(
        processors=[*shared, name_part, _rendered],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", lines)),  # it uses `write` and `flush` only
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger for one module; `logger(__name__).info("claimed", job=…)`."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return bound
