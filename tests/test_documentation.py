"""What the documents say of the code is so: files that they name exist, and the model that they show is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from darkroom.catalogue.models import Catalogue

ROOTS = ("", "core/darkroom", "functions/darkroom_functions", "worker-images/darkroom_worker")
"""Where a name in backticks may be meant from: a table's row names the folder once."""


def architecture(repository: Path) -> str:
    return (repository / "ARCHITECTURE.md").read_text()


def test_every_file_that_the_architecture_names_is_there(repository: Path) -> None:
    named = set(re.findall(r"`([\w./-]+\.(?:py|lua|toml))`", architecture(repository)))
    assert len(named) > 40
    folders = [repository / root for root in ROOTS]
    folders += [repository / "courier/darkroom_courier", repository / "cli/darkroom_cli"]
    folders += [repository / "operator/darkroom_operator"]
    missing = {name for name in named if not any((folder / name).is_file() for folder in folders)}
    assert not missing


def test_every_script_is_in_the_transition_table(repository: Path) -> None:
    scripts = {path.stem for path in (repository / "core/darkroom/ledger/lua").glob("*/*.lua")}
    rows = [line.split("|")[1] for line in architecture(repository).splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert scripts <= named


def test_the_model_that_the_architecture_shows_is_one(repository: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", architecture(repository), re.DOTALL)
    (tmp_path / "lighthouses.toml").write_text(example)
    assert Catalogue.load([tmp_path]).get("lighthouses").parameters["steps"].maximum == pytest.approx(30)
