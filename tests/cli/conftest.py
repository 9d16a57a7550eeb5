"""What the command line's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.stage import Stage, on_stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A server that says what the test wants."""
    with on_stage(Stage()) as running:
        yield running
