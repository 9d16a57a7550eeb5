"""The command `darkroom` as tests call it: a process of its own, with an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.parts import ROOTS

ROOT = Path(__file__).resolve().parent.parent

PATIENCE_S = 60
"""Far longer than anything here takes on a busy machine; a test that waits so long has failed."""


def command(*arguments: str) -> list[str]:
    """The command line of `darkroom ARGUMENTS`, from this checkout."""
    return [sys.executable, "-m", "darkroom_cli", *arguments]


def environment(**own: str) -> dict[str, str]:
    """What a shell would hand over: nothing of darkroom's but what a test asks for."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    return kept | {"PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ROOTS)} | own


def darkroom(arguments: Sequence[str], *, folder: Path, **own: str) -> subprocess.CompletedProcess[str]:
    """Run `darkroom ARGUMENTS` in `folder` to its end; `own` are variables of its environment."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**own),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
