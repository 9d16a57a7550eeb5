"""`make` as tests call it: from this checkout, without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.darkroom_command import environment

ROOT = Path(__file__).resolve().parent.parent.parent

TIMEOUT_S = 300
"""Longer than any step takes on a busy machine."""

ENVIRONMENTS = ("dev", "demo", "test")

OF_OUTER_MAKE = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS"}
"""Variables that `make test ARGS=...` passes to every make that it starts."""


def make(*arguments: str, folder: Path = ROOT, given: str = "", **own: str) -> subprocess.CompletedProcess[str]:
    """Run `make ARGUMENTS` in `folder`, with this Python's packages."""
    command = [program("make"), f"--makefile={ROOT / 'Makefile'}", "--no-print-directory"]
    return subprocess.run(
        [*command, f"BIN={Path(sys.executable).parent}", *arguments],
        cwd=folder,
        env={name: value for name, value in environment(**own).items() if name not in OF_OUTER_MAKE},
        input=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def targets() -> list[str]:
    """The targets that `make help` lists."""
    listed = re.findall(r"^  ([a-z-]+(?: [a-z-]+)*)", make("help").stdout, re.MULTILINE)
    return " ".join(listed).split()


def program(name: str) -> str:
    """The path of a program that tests need besides Python; in CI none may be missing."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        if "CI" in os.environ:
            raise LookupError(f"there is no {name} on this machine")
        pytest.skip(f"there is no {name} on this machine")
    return found
