"""Jobs that a test drives through the real ledger, instead of submit and a worker."""

from __future__ import annotations

import hashlib
import time
from typing import Any, TypeVar

from darkroom.artifacts import artifact_key
from darkroom.jobs import Artifact, State, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, AttemptEnd, Call, Submission, WorkerState
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect
from darkroom.ledger.records import JobRecord

T = TypeVar("T")

POOL = "local"
TENANT = "default"
WORKER = "worker-1"


class DrivenJobs:
    """One pool with one worker, which is the test."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.redis: Any = connect(redis_url)
        self.namespace = namespace
        self._ledger = Ledger(self.redis, namespace)
        self.run(calls.announce_pool(POOL, models=["sd"]))

    def close(self) -> None:
        self.redis.close()

    def run(self, call: Call[T]) -> T:
        return self._ledger.run(call)

    def submit(self, *, tenant: str = TENANT, **more: Any) -> str:
        """Submit a job that waits, and return its id. `more` are fields of its Submission."""
        job_id = new_job_id(int(time.time() * 1000))
        job = {
            "job_id": job_id,
            "tenant": tenant,
            "model": "sd",
            "pool": POOL,
            "input": {"prompt": "a lighthouse at dusk"},
            "fields": {"user_id": "anna"},
            "run_timeout": 600.0,
        }
        accepted = self.run(calls.accept(Submission(**{**job, **more}), backlog_limit=10_000))
        assert isinstance(accepted, Accepted), accepted
        return accepted.job_id

    def start(self, job_id: str, *, token: str = "token", lease_ms: int = calls.LEASE_MS) -> str:
        """Claim the job as a worker. Returns the token."""
        claim = self.run(calls.claim(job_id, token=token, worker=WORKER, lease_ms=lease_ms))
        assert claim.attempt is not None, claim
        return token

    def progress(self, job_id: str, *, step: int, steps: int, token: str = "token") -> None:
        self.run(calls.progress(job_id, token=token, op=step, step=step, steps=steps, publish=True))

    def complete(self, job_id: str, *, token: str = "token", pictures: int = 1) -> list[Artifact]:
        """Complete the attempt with made-up pictures. Returns their artifacts."""
        artifacts = [_artifact(job_id, index) for index in range(pictures)]
        data = {
            "artifacts": [artifact.encode() for artifact in artifacts],
            "record": {"seed": 1},
            "model_served": "sd-untrained",
            "attempt": 1,
            "worker": WORKER,
            "run_ms": 12,
        }
        self._end(job_id, State.COMPLETED, data, token)
        return artifacts

    def fail(self, job_id: str, *, message: str, token: str = "token") -> None:
        self._end(job_id, State.FAILED, {"error": {"kind": "transient", "message": message}}, token)

    def cancel(self, job_id: str) -> None:
        """Cancel a job that has not started."""
        assert self.run(calls.cancel(job_id, tenant=TENANT)).state is State.CANCELLED

    def expire(self, job_id: str) -> None:
        """Expire a job whose start deadline is in the past."""
        assert job_id in self.run(calls.expire())

    def completed(self, **more: Any) -> str:
        """Submit, start and complete a job, and return its id."""
        job_id = self.submit(**more)
        self.start(job_id)
        self.complete(job_id)
        return job_id

    def announce_worker(self) -> None:
        """Register a ready worker, so that the pool has a slot and its Celery list receives messages."""
        self.run(calls.register_worker(WORKER, pool=POOL, state=WorkerState.READY, pod="", models=["sd"]))

    def record(self, job_id: str) -> JobRecord:
        record = self._ledger.job(job_id)
        assert record is not None
        return record

    def state(self, job_id: str) -> State:
        return State(self.redis.hget(f"{self.namespace}:job:{job_id}", "state").decode())

    def end_seq(self, job_id: str) -> int:
        """The `seq` of the terminal log entry."""
        return int(self.redis.hget(f"{self.namespace}:job:{job_id}", "end_seq"))

    def outbox(self) -> list[str]:
        """Jobs whose terminal event is not applied."""
        return [item.decode() for item in self.redis.zrange(f"{self.namespace}:outbox", 0, -1)]

    def is_applied(self, job_id: str) -> bool:
        return bool(self.redis.hexists(f"{self.namespace}:job:{job_id}", "applied"))

    def _end(self, job_id: str, outcome: State, data: dict[str, Any], token: str) -> None:
        ended = self.run(calls.finish(job_id, token=token, outcome=outcome, data=data))
        assert ended is AttemptEnd(outcome.value), ended


def _artifact(job_id: str, index: int) -> Artifact:
    sha256 = hashlib.sha256(f"{job_id} {index}".encode()).hexdigest()
    key = artifact_key(tenant=TENANT, job_id=job_id, attempt=1, index=index, sha256=sha256, extension="png")
    return Artifact(key, sha256, "image/png", size=1234, width=832, height=1216)
