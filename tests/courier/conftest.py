"""Fixtures of the courier's tests: a sink, jobs that a test drives, and couriers as processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.courier.sink import Sink
from tests.driven_jobs import DrivenJobs
from tests.parts import Part, environment

Start = Callable[..., Part]


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink().running() as running:
        yield running


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(redis_url, namespace)
    yield driven
    driven.close()


@pytest.fixture
def start(redis_url: str, namespace: str, sink: Sink, tmp_path: Path) -> Iterator[Start]:
    """Starts a courier; further settings are given by name."""
    started: list[Part] = []

    def courier(redis: str = redis_url, **more: str) -> Part:
        settings = environment(redis, namespace, K_SINK=sink.url, **more)
        part = Part("darkroom_courier", environment=settings, log=tmp_path / f"courier-{len(started)}.log")
        started.append(part)
        part.start()
        return part

    yield courier
    for part in started:
        part.stop()
