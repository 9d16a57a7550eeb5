"""What the tests of the whole system share: one `darkroom up` for all that do not end it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import System


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running system. Whoever ends something in it starts one of their own."""
    running = System(tmp_path_factory.mktemp("system"))
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.fixture
def own_system(tmp_path: Path, system: System) -> Iterator[System]:
    """A system of the test's own, not started yet. Its stand-ins are there already."""
    shutil.copytree(system.folder / ".darkroom" / "stand-ins", tmp_path / ".darkroom" / "stand-ins")
    own = System(tmp_path)
    yield own
    own.end()
