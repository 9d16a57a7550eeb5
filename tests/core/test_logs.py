"""Logs: each line of a process is one JSON object, whoever wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from darkroom import times


@pytest.fixture
def said(repository: Path) -> Any:
    """What a process that runs these lines, logs configured, says on stderr: each line decoded."""

    def run(*lines: str, level: str = "logging.INFO") -> list[dict[str, Any]]:
        program = "\n".join(
            (
                "import logging, structlog",
                "from darkroom import logs",
                f"logs.configure('worker', level={level})",
                "log = logs.logger('darkroom_worker.run')",
                *lines,
            )
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": str(repository / "core")},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == ""
        return [json.loads(line) for line in done.stderr.splitlines()]

    return run


def test_an_event_is_a_line_with_its_fields(said: Any) -> None:
    (line,) = said("log.info('claimed', job='j-1', attempt=2, none=None)")
    times.parse(line.pop("timestamp"))
    assert line == {
        "event": "claimed",
        "level": "info",
        "part": "worker",
        "job": "j-1",
        "attempt": 2,
        "none": None,
    }


def test_what_libraries_log_has_the_same_form(said: Any) -> None:
    (line,) = said("logging.getLogger('uvicorn.error').warning('started on %s', 8000)")
    assert (line["event"], line["level"], line["logger"]) == ("started on 8000", "warning", "uvicorn.error")
    assert line["part"] == "worker"
    times.parse(line["timestamp"])


def test_what_is_bound_to_a_job_is_on_every_line(said: Any) -> None:
    lines = said(
        "with structlog.contextvars.bound_contextvars(job='j-1'):",
        "    log.info('ours')",
        "    logging.getLogger('theirs').info('theirs')",
        "log.info('after')",
    )
    assert [line.get("job") for line in lines] == ["j-1", "j-1", None]


@pytest.mark.parametrize("logger", ["log", "logging.getLogger('theirs')"])
def test_an_exception_is_one_line_with_its_trace(said: Any, logger: str) -> None:
    (line,) = said("try:", "    1 / 0", "except ZeroDivisionError:", f"    {logger}.exception('failed')")
    assert (line["event"], line["level"]) == ("failed", "error")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_no_value_breaks_the_line(said: Any) -> None:
    (line,) = said(
        "class Odd:",
        "    def __repr__(self): return 'odd'",
        r"log.info('two\nlines \u2028 \U0001f5fc', value=Odd(), many=[Odd()], lone='\ud800', of={'a': b'b'})",
    )
    assert line["event"] == "two\nlines \u2028 \U0001f5fc"
    assert (line["value"], line["many"], line["lone"]) == ("odd", ["odd"], "\ud800")


@pytest.mark.parametrize("logger", ["log", "logging.getLogger('theirs')"])
def test_what_is_below_the_level_is_not_said(said: Any, logger: str) -> None:
    lines = said(f"{logger}.info('quiet')", f"{logger}.warning('loud')", level="logging.WARNING")
    assert [line["event"] for line in lines] == ["loud"]


def test_a_line_is_said_once_however_often_logs_are_configured(said: Any) -> None:
    lines = said("logs.configure('again')", "log.info('ours')", "logging.getLogger('theirs').info('theirs')")
    assert [(line["event"], line["part"]) for line in lines] == [("ours", "again"), ("theirs", "again")]
