"""Scale-ins while jobs arrive at the worst moment: no busy worker is removed.

The workers are stand-ins that run the ledger's real `claim`, and the operator's real `drain` decides who goes. A
stand-in whose pod is to end while it runs a job was interrupted.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.driven_jobs import DrivenJobs
from tests.operator.conftest import Stage
from tests.operator.kubelet import Kubelet
from tests.operator.worker_standins import StandIns
from tests.waiting import eventually

SCALE_INS = 500
MOST_REPLICAS = 24
ENOUGH_WITHOUT_DRAIN = 300
"""Replicas that are removed without the protection before an interruption must have been observed."""

LONG_S = 900.0

HOLD_S = 0.15
"""How long a stand-in runs a job."""

WITHOUT_DRAIN = """
import darkroom.ledger.scripts

whole = dict(darkroom.ledger.scripts.texts())
marking = b"redis.call('HSET', worker_key(worker.name), 'draining_until', now + tonumber(a.ttl_ms))"
assert marking in whole["drain"]
whole["drain"] = whole["drain"].replace(marking, b"")
darkroom.ledger.scripts.texts = lambda: whole
"""
"""The operator removes idle workers that still claim jobs."""


class BusyStandIns(StandIns):
    """Stand-ins that claim and run jobs. `ended` counts removed pods, `interrupted` names the busy ones of them."""

    def __init__(self, redis_url: str, prefix: str, jobs: DrivenJobs) -> None:
        super().__init__(redis_url, prefix)
        self.ended = 0
        self.interrupted: list[str] = []
        self._jobs = jobs
        self._until: dict[str, float] = {}
        self._ending: set[str] = set()
        self._random = random.Random(20261120)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stand-ins", daemon=True)
        self._lock = threading.Lock()
        self.failure: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)
        if self.failure is not None:
            raise self.failure

    def end(self, name: str) -> bool:
        """Drain as a worker does: it claims no more jobs, and its job, if any, is counted as interrupted."""
        with self._lock:
            if name not in self._ending:
                self._ending.add(name)
                self.ended += 1
                if name in self.busy:
                    self.interrupted.append(name)
            return super().end(name)

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._lock:
                    self._finish_what_is_due()
                    self._take_one()
                time.sleep(0.002)
        except Exception as error:  # raised by `stop`, in the thread of the test
            self.failure = error

    def _finish_what_is_due(self) -> None:
        for pod, until in list(self._until.items()):
            if time.monotonic() >= until:
                del self._until[pod]
                self.complete(pod)

    def _take_one(self) -> None:
        free = [pod for pod in self.pods if pod not in self.busy and pod not in self._ending]
        if not free:
            return
        message = self._jobs.redis.rpop(f"{self._jobs.namespace}:celery:pool.flux")
        if message is None:
            return
        found = re.search(rb'"id": ?"([0-9a-f-]{36})"', message)
        assert found is not None
        pod = self._random.choice(free)
        if self.claim(pod, found[1].decode()) is None:
            self._until[pod] = time.monotonic() + HOLD_S


@pytest.fixture
def jobs(stage: Stage) -> Iterator[DrivenJobs]:
    driven = DrivenJobs(stage.redis_url, stage.prefix)
    yield driven
    driven.close()


@pytest.fixture
def busy(stage: Stage, kubelet: Kubelet, jobs: DrivenJobs) -> Iterator[BusyStandIns]:
    workers = BusyStandIns(stage.redis_url, stage.prefix, jobs)
    kubelet.workers = workers
    workers.start()
    yield workers
    workers.stop()


def shake(stage: Stage, jobs: DrivenJobs, busy: BusyStandIns, *, until: Any) -> None:
    """Jobs arrive in bursts and singly between them, so that replicas are about to be removed whenever one arrives."""
    stage.apply("flux", maxReplicas=MOST_REPLICAS, scaleDown={"idleSeconds": 1})
    eventually(lambda: jobs.redis.sismember(f"{stage.prefix}:pools", "flux"), what="the pool is announced")
    chance = random.Random(5)
    deadline = time.monotonic() + LONG_S
    while not until():
        assert time.monotonic() < deadline, f"{busy.ended} replicas went"
        assert busy.failure is None, busy.failure
        for _ in range(MOST_REPLICAS):
            jobs.submit(pool="flux", model="flux")
        rest = time.monotonic() + chance.uniform(1.5, 3.0)
        while time.monotonic() < rest:
            jobs.submit(pool="flux", model="flux")
            time.sleep(chance.uniform(0.02, 0.1))


def test_no_busy_worker_is_removed_in_hundreds_of_scale_ins(stage: Stage, jobs: DrivenJobs, busy: BusyStandIns) -> None:
    stage.operator().lead()
    shake(stage, jobs, busy, until=lambda: busy.ended >= SCALE_INS)
    assert busy.interrupted == []


def test_without_drain_a_busy_worker_is_removed(
    stage: Stage, jobs: DrivenJobs, busy: BusyStandIns, tmp_path: Path
) -> None:
    """The test above detects an interruption."""
    (tmp_path / "hook").mkdir()
    operator = stage.operator()
    operator.sabotage(tmp_path / "hook", WITHOUT_DRAIN)
    operator.lead()
    shake(stage, jobs, busy, until=lambda: busy.interrupted or busy.ended >= ENOUGH_WITHOUT_DRAIN)
    assert busy.interrupted
