"""Logs: one JSON object a line on stderr, an event's name and its fields, such as `{"event": "claimed", "job": …}`.

Each entry module calls `configure` once. What libraries log (uvicorn, Celery, kopf) comes out in the same form.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure(part: str, *, level: int = logging.INFO, pool: str | None = None) -> None:
    """All logs of this process, ours and the libraries', as JSON lines that name the part and a worker's pool."""
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
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Our own lines do not pass through `logging`: that takes five times as long, and submit writes one for every job.
    structlog.configure(
        processors=[*shared, name_part, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger for one module; `logger(__name__).info("claimed", job=…)`."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return bound
