"""The command `darkroom` as a process with its own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.parts import ROOTS

ROOT = Path(__file__).resolve().parent.parent

TIMEOUT_S = 60
"""A timeout far above what a command takes on a busy machine."""


def command(*arguments: str) -> list[str]:
    """The command line of `darkroom ARGUMENTS`, from this checkout."""
    return [sys.executable, "-m", "darkroom_cli", *arguments]


def environment(**own: str) -> dict[str, str]:
    """The environment of a shell: none of darkroom's variables except those of the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    return kept | {"PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ROOTS)} | own


def darkroom(arguments: Sequence[str], *, folder: Path, **own: str) -> subprocess.CompletedProcess[str]:
    """Run `darkroom ARGUMENTS` in `folder` to its end; `own` adds variables to its environment."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**own),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
