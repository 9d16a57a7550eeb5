"""The output of the command line: results on stdout, progress and errors on stderr.

With `--json` stdout carries only JSON, one object per line, and stderr only errors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from darkroom.errors import PermanentError


class NotWritten(PermanentError):
    """Standard output cannot be written, for example because the disk is full."""

    slug, title = "not-written", "The output could not be written"


class Output:
    """The output of a command. A closed reader (a closed terminal, `| head`) does not stop the command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def info(self, text: str) -> None:
        """Write a progress line to stderr; nothing with `--json`."""
        if not self.as_json:
            self.error(text)

    def error(self, text: str) -> None:
        """Write an error line to stderr, also with `--json`."""
        with suppress(OSError, ValueError):
            _write(sys.stderr, text)

    def result(self, text: str) -> None:
        """Write a line of the result to stdout; nothing with `--json`. Raises NotWritten."""
        if not self.as_json:
            _write_result(text)

    def record(self, members: Mapping[str, Any]) -> None:
        """Write an object of the result to stdout as JSON; nothing without `--json`. Raises NotWritten."""
        if self.as_json:
            _write_result(json.dumps(members, ensure_ascii=False))

    def content(self, content: bytes) -> None:
        """Write the bytes of a picture to stdout. Raises NotWritten."""
        try:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        except OSError as error:
            _abandon_stdout(error)


def _write_result(text: str) -> None:
    try:
        _write(sys.stdout, text)
    except ValueError:  # closed before the command started
        return
    except OSError as error:
        _abandon_stdout(error)


def _abandon_stdout(error: OSError) -> None:
    """Redirect stdout to the null device: the rest of the buffer would fail again, with a stack trace, at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        raise NotWritten(f"standard output: {error.strerror}") from error


def _write(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()
