"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.stage import Stage, on_stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A server with responses that the test defines."""
    with on_stage(Stage()) as running:
        yield running
