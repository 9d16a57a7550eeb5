"""Fixtures of the system tests: one `darkroom up` for all tests that do not stop it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import System


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running system. A test that stops a part of it uses `own_system`."""
    running = System(tmp_path_factory.mktemp("system"))
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.fixture
def own_system(tmp_path: Path, system: System) -> Iterator[System]:
    """A separate system, not started yet. It has the stand-in models."""
    shutil.copytree(system.folder / ".darkroom" / "stand-ins", tmp_path / ".darkroom" / "stand-ins")
    own = System(tmp_path)
    yield own
    own.end()


@pytest.fixture(scope="session")
def keyed_system(tmp_path_factory: pytest.TempPathFactory, system: System) -> Iterator[System]:
    """A running system that requires keys, as on another address than loopback."""
    folder = tmp_path_factory.mktemp("keyed")
    shutil.copytree(system.folder / ".darkroom" / "stand-ins", folder / ".darkroom" / "stand-ins")
    keyed = System(folder)
    try:
        keyed.start("--host", "0.0.0.0")
        yield keyed
    finally:
        keyed.end()
