"""What the courier's tests ask for: a sink, jobs that they drive by hand, and couriers as processes."""

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
    """Starts a courier; what it is told beside the address of Redis and the sink is given by name."""
    started: list[Part] = []

    def courier(redis: str = redis_url, **told: str) -> Part:
        settings = environment(redis, namespace, K_SINK=sink.url, **told)
        part = Part("darkroom_courier", environment=settings, log=tmp_path / f"courier-{len(started)}.log")
        started.append(part)
        part.start()
        return part

    yield courier
    for part in started:
        part.stop()
