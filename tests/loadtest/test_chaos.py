"""No job is lost or doubled while all parts fail; and without one protection the chaos run fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import ROOTS

LIMIT_S = 240
"""A short run takes a minute, a directed one half of that, and more on a busy machine."""


def chaos(repository: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A short `make chaos`; its figures are in `folder`."""
    roots = [str(repository / root) for root in (*ROOTS, "loadtest")]
    return subprocess.run(
        [sys.executable, "-m", "darkroom_loadtest.chaos.run", "--short", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def figures(folder: Path, bench: str) -> dict[str, float]:
    report = json.loads((folder / ".bench" / f"{bench}.json").read_text())
    return {figure["name"]: figure["value"] for figure in report["figures"]}


def test_no_job_is_lost_or_doubled_in_a_chaos_run(repository: Path, tmp_path: Path) -> None:
    storm = chaos(repository, tmp_path)
    said = storm.stdout + storm.stderr
    assert storm.returncode == 0, said
    found = figures(tmp_path, "chaos")
    assert found["chaos_jobs"] >= 200, said
    assert (found["chaos_lost"], found["chaos_twice"], found["chaos_false_attempts"]) == (0, 0, 0), said


@pytest.mark.parametrize(
    ("protection", "figure"),
    [
        ("reaper", "chaos_lost"),
        ("sweep", "chaos_lost"),
        ("outbox", "chaos_lost"),
        ("fencing", "chaos_twice"),
        ("attempt-keys", "chaos_twice"),
    ],
)
def test_without_one_protection_the_chaos_run_fails(
    protection: str, figure: str, repository: Path, tmp_path: Path
) -> None:
    storm = chaos(repository, tmp_path, "--without", protection)
    said = storm.stdout + storm.stderr
    assert storm.returncode == 1, said
    assert figures(tmp_path, f"chaos-without-{protection}")[figure] > 0, said
