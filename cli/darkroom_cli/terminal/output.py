"""The output of the command line: results on stdout; the way there and errors on stderr.

With `--json` stdout carries one JSON object a line and nothing else, and stderr carries errors alone.
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
    """Standard output took no more of the results: the disk is full, say."""

    slug, title = "not-written", "The output could not be written"


class Output:
    """Where a command writes. A reader who has gone away (a closed terminal, `| head`) ends no command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """Write a line about the way to the result, for people: nothing with `--json`."""
        if not self.as_json:
            self.complain(text)

    def complain(self, text: str) -> None:
        """Write a line about what went wrong, for people, with `--json` too."""
        with suppress(OSError, ValueError):
            _write(sys.stderr, text)

    def result(self, text: str) -> None:
        """Write a line of the result, for people: nothing with `--json`. Raises NotWritten."""
        if not self.as_json:
            _write_result(text)

    def record(self, members: Mapping[str, Any]) -> None:
        """Write an object of the result, for programs: nothing without `--json`. Raises NotWritten."""
        if self.as_json:
            _write_result(json.dumps(members, ensure_ascii=False))

    def content(self, content: bytes) -> None:
        """Write the bytes of a picture. Raises NotWritten."""
        try:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        except OSError as error:
            _give_up_stdout(error)


def _write_result(text: str) -> None:
    try:
        _write(sys.stdout, text)
    except ValueError:  # it was closed before the command began
        return
    except OSError as error:
        _give_up_stdout(error)


def _give_up_stdout(error: OSError) -> None:
    """Write nothing more there: what is left in the buffer would fail again, with a stack trace, as Python exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        raise NotWritten(f"standard output: {error.strerror}") from error


def _write(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()
