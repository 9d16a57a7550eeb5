"""Samples of a running system: values of processes and Redis, and slopes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from darkroom_loadtest.measurement.samples import Sample, Sampler, of_processes, trends
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.redis_server import RedisKind, RedisServer, needed_binary
from tests.waiting import eventually

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child; both exit when their standard input is closed."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


def test_memory_and_descriptors_include_children(
    parent: subprocess.Popen[bytes],
) -> None:
    pids = {"parent": parent.pid, "gone": 2**22 + 1}
    eventually(lambda: "parent/1 descriptors" in of_processes(pids), what="the child")
    values = of_processes(pids)
    assert {name.rpartition(" ")[0] for name in values} == {"parent", "parent/1"}
    assert 1 < values["parent rss"] < 1000
    assert values["parent descriptors"] >= 3


def test_a_sampler_continues_without_redis(tmp_path: Path) -> None:
    server = RedisServer(needed_binary(RedisKind.EMBEDDED), tmp_path)
    server.start()
    with redis.Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)) as client:
        client.set("stays", 1)
        client.set("goes", 1, ex=1000)
        with Sampler(dict, redis=client, every_s=0.01) as sampler:
            eventually(lambda: len(sampler.samples) >= 3, what="samples")
            server.stop()
            eventually(lambda: not sampler.samples[-1].values, what="a sample without Redis")
    first = sampler.samples[0].values
    assert (first["redis keys"], first["redis keys that stay"]) == (2, 1)
    assert first["redis used"] > 0


def test_a_slope_is_per_hour_and_robust_against_an_outlier() -> None:
    rising = [Sample(at_s, {"a rss": 100 + at_s / 3600, "b keys": 7}) for at_s in range(0, 600, 10)]
    rising[30] = Sample(300, {"a rss": 900, "b keys": 7})
    rising.append(Sample(600, {"a rss": 101, "only once": 1}))
    of_a, of_b = trends(rising, after_s=60)
    assert (of_a.series, of_a.unit, of_a.most) == ("a rss", "MB", 900)
    assert of_a.slope == pytest.approx(1, rel=0.1)
    assert (of_b.first, of_b.last, of_b.slope) == (7, 7, 0)
