"""Fixtures of the worker's tests: the stand-ins, made once, and the catalogue that names them."""

from __future__ import annotations

from pathlib import Path

import pytest
from darkroom.catalogue.models import Catalogue
from darkroom_worker.standins import make_stand_ins


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the session's stand-ins, read only."""
    folder = tmp_path_factory.mktemp("stand-ins")
    make_stand_ins(folder)
    return folder


@pytest.fixture(scope="session")
def catalogue(stand_ins: Path) -> Catalogue:
    """`flux` and `sd`, served by the stand-ins."""
    return Catalogue.load([stand_ins / "models"])
