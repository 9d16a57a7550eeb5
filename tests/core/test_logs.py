"""Logs: each line of a process is one JSON object, also those of libraries."""

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
    """The decoded log lines of a process that runs this code with logs configured."""

    def run(*lines: str, level: str = "logging.INFO") -> list[dict[str, Any]]:
        program = "\n".join(
            (
                "import logging, structlog",
                "from darkroom import logs",
                f"logs.configure('worker', level={level})",
                "log = logs.logger('darkroom_worker.child.runner')",
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


def test_lines_of_libraries_have_the_same_form(said: Any) -> None:
    (line,) = said("logging.getLogger('uvicorn.error').warning('started on %s', 8000)")
    assert (line["event"], line["level"], line["logger"]) == ("started on 8000", "warning", "uvicorn.error")
    assert line["part"] == "worker"
    times.parse(line["timestamp"])


def test_bound_fields_are_on_every_line(said: Any) -> None:
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
def test_lines_below_the_level_are_not_written(said: Any, logger: str) -> None:
    lines = said(f"{logger}.info('quiet')", f"{logger}.warning('loud')", level="logging.WARNING")
    assert [line["event"] for line in lines] == ["loud"]


def test_a_line_is_written_once_however_often_logs_are_configured(said: Any) -> None:
    lines = said("logs.configure('again')", "log.info('ours')", "logging.getLogger('theirs').info('theirs')")
    assert [(line["event"], line["part"]) for line in lines] == [("ours", "again"), ("theirs", "again")]


@pytest.mark.parametrize("stderr", ["a full disk", "a reader that is gone", "a file of limited size"])
def test_a_line_that_cannot_be_written_is_dropped_and_counted(stderr: str, repository: Path, tmp_path: Path) -> None:
    breaking = {
        "a full disk": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
        "a reader that is gone": "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 2)",
        "a file of limited size": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1))\n"
        "os.dup2(os.open('small', os.O_WRONLY | os.O_CREAT), 2)",
    }
    program = f"""
import logging, os, resource
from darkroom import logs

logs.configure("worker")
log = logs.logger("darkroom_worker.child.runner")
{breaking[stderr]}
log.info("one")
logging.getLogger("theirs").warning("two")
log.info("three " * 10_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
os.dup2(os.open("large", os.O_WRONLY | os.O_CREAT), 2)
log.info("four")
log.info("five")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(repository / "core")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    dropped, *lines = [json.loads(line) for line in (tmp_path / "large").read_text().splitlines()]
    assert (dropped["event"], dropped["lines"], dropped["part"]) == ("log_lines_dropped", 3, "worker")
    assert [line["event"] for line in lines] == ["four", "five"]


def test_a_process_without_standard_error_runs(repository: Path, tmp_path: Path) -> None:
    """The next opened file may get its descriptor, and must receive no log lines."""
    program = """
import logging
from darkroom import logs

logs.configure("worker")
with open("data", "w") as data:
    logs.logger("darkroom_worker.child.runner").error("one")
    logging.getLogger("theirs").error("two")
    data.write("whole")
"""
    command = 'exec "$0" -c "$1" 2>&-'
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, program],
        env={"PYTHONPATH": str(repository / "core")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "data").read_text() == "whole"


def test_a_line_with_an_unrenderable_field_has_the_standard_fields(said: Any) -> None:
    (line,) = said(
        "class Odd:",
        "    def __repr__(self): raise ValueError",
        "log.info('claimed', job='j-1', value=Odd())",
    )
    assert (line["event"], line["job"], line["unrendered"]) == ("claimed", "j-1", "ValueError")
