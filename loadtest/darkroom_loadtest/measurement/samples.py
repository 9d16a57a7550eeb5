"""Samples of a running system: memory and descriptors of each process, memory and keys of Redis, and their slopes.

    with Sampler(lambda: {"functions": 4711, "worker": 4712}, redis=client, every_s=5) as sampler:
        ...  # the load
    for trend in trends(sampler.samples, after_s=300):
        print(trend)

Children are sampled as well, `worker/1` for the first child of `worker`. A sample reads `/proc` and Redis' INFO and
takes a few milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from darkroom.logs import logger
from redis.exceptions import RedisError

HOUR_S = 3600.0

REDIS = "redis"

FEWEST = 3
"""Values that a slope needs; of two, one outlier would define it."""

_log = logger(__name__)


@dataclass(frozen=True)
class Sample:
    """The system at `at_s` after the sampler's start. `values` by series: `functions rss`, `redis keys` and so on."""

    at_s: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Trend:
    """The trend of one series. `slope` is the Theil-Sen estimator per hour, the median of the slopes of all pairs."""

    series: str
    unit: str
    first: float
    last: float
    most: float
    slope: float

    def __str__(self) -> str:
        numbers = f"{self.first:8.1f} → {self.last:8.1f} (max {self.most:.1f}) {self.unit}"
        return f"{self.series:24} {numbers}, {self.slope:+.2f} per hour"


class Sampler:
    """A context manager that samples in a thread. Processes that have exited are left out.

    `pids` is called before each sample, so that a restarted process is found under its name.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]], *, redis: Any, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._pids = pids
        self._redis = redis
        self._every_s = every_s
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                values = {**of_processes(self._pids()), **of_redis(self._redis)}
                self.samples.append(Sample(time.monotonic() - self._began, values))
            except Exception:  # one missing sample must not stop the later ones
                _log.exception("sample_failed")
            if self._over.wait(self._every_s):
                return


def of_processes(pids: Mapping[str, int]) -> dict[str, float]:
    """`NAME rss` in MB and `NAME descriptors` of each running process and its children."""
    values: dict[str, float] = {}
    for name, pid in tree_of(pids).items():
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            resident = next(line for line in lines if line.startswith("VmRSS:"))  # a zombie has none
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            values |= {f"{name} rss": int(resident.split()[1]) / 1024, f"{name} descriptors": descriptors}
    return values


def tree_of(pids: Mapping[str, int]) -> dict[str, int]:
    """The processes, and their children as `NAME/1`, `NAME/2`, in the order of their pids."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has exited
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = list(pids.items())
    for name, pid in found:  # grows during the iteration
        found.extend((f"{name}/{number}", child) for number, child in enumerate(sorted(children.get(pid, [])), start=1))
    return dict(found)


def of_redis(client: Any) -> dict[str, float]:
    """`redis used` in MB, all keys, those without a time to live, and connections. Empty while Redis is unavailable."""
    with suppress(RedisError):
        info = client.info()
        spaces = [info[name] for name in info if name.startswith("db")]
        keys, expire = (sum(space[what] for space in spaces) for what in ("keys", "expires"))
        return {
            f"{REDIS} used": info["used_memory"] / 2**20,
            f"{REDIS} keys": keys,
            f"{REDIS} keys that stay": keys - expire,
            f"{REDIS} connections": info["connected_clients"],
        }
    return {}


def trends(samples: Sequence[Sample], *, after_s: float) -> list[Trend]:
    """The trend of each series after `after_s`, the warm-up."""
    series: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        if sample.at_s >= after_s:
            for name, value in sample.values.items():
                series.setdefault(name, []).append((sample.at_s, value))
    return [_trend(name, points) for name, points in sorted(series.items()) if len(points) >= FEWEST]


def _trend(series: str, points: Sequence[tuple[float, float]]) -> Trend:
    slopes = [(after - before) / (later - earlier) for (earlier, before), (later, after) in combinations(points, 2)]
    values = [value for _, value in points]
    return Trend(
        series=series,
        unit="MB" if series.endswith((" rss", " used")) else "",
        first=values[0],
        last=values[-1],
        most=max(values),
        slope=HOUR_S * median(slopes),
    )
