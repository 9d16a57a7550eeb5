"""Jobs that a test drives by hand through the real ledger, at times of its own: nothing here reads a clock.

One pool; submitters, workers and the courier are the test. `DrivenJobs` (tests/driven_jobs.py) is the same for tests of
the parts, whose clock is Redis'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from darkroom.jobs import State, UnknownValue, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import (
    Accepted,
    AttemptEnd,
    Call,
    Cancelled,
    Claim,
    LeaseStatus,
    ReleaseReason,
    Submission,
    WorkerState,
)
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect
from darkroom.ledger.records import JobRecord, LogEntry, decode_live

T = TypeVar("T")

POOL = "local"
TENANT = "default"
WORKER = "one"
TOKEN = "token"
START_MS = 1_800_000_000_000
HICCUP = {"kind": "transient", "message": "hiccup"}

READERS: dict[str, Callable[[bytes], tuple[Any, ...]]] = {
    "hash": lambda key: ("HGETALL", key),
    "zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    "set": lambda key: ("SMEMBERS", key),
    "list": lambda key: ("LRANGE", key, 0, -1),
    "stream": lambda key: ("XRANGE", key, "-", "+"),
    "string": lambda key: ("GET", key),
}
"""How a key of each type is read whole."""


class TimedJobs:
    """The pool's jobs. `now` (ms) is the time of every call that names no other; it moves when the test moves it."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.redis: Any = connect(redis_url)
        self.namespace = namespace
        self.ledger = Ledger(self.redis, namespace)
        self.now = START_MS
        self.revision = 0
        self.run(calls.announce_pool(POOL, models=["sd"], now=self.now))

    def close(self) -> None:
        self.redis.close()

    def run(self, call: Call[T]) -> T:
        return self.ledger.run(call)

    # -- submitters ----------------------------------------------------------------------------------------------------

    def submission(self, **more: Any) -> Submission:
        """A submission as the function `submit` makes it; `more` are its fields."""
        job_id = more.pop("job_id", None) or new_job_id(self.now)
        job: dict[str, Any] = {
            "job_id": job_id,
            "tenant": TENANT,
            "model": "sd",
            "pool": POOL,
            "input": {"prompt": "a lighthouse at dusk"},
            "fields": {"user_id": "anna"},
            "run_timeout": 600.0,
        }
        return Submission(**{**job, **more})

    def submit(self, **more: Any) -> str:
        """Submit a job that is accepted; returns its id."""
        answer = self.run(calls.accept(self.submission(**more), backlog_limit=10_000, now=self.now))
        assert isinstance(answer, Accepted), answer
        return answer.job_id

    def cancel(self, job_id: str, *, tenant: str | None = TENANT) -> Cancelled:
        return self.run(calls.cancel(job_id, tenant=tenant, now=self.now))

    # -- running limits ------------------------------------------------------------------------------------------------

    def limit(self, tenant: str, running: int | None, *, key_id: str | None = None) -> None:
        """Publish the running limit of a tenant, or of one of its keys; 0 disables the tenant."""
        self.revision += 1
        limits: dict[str, Any] = {} if not running else {"limits": {"running_jobs": running}}
        entry = {"name": tenant, **limits, **({"disabled": True} if running == 0 else {})}
        name = f"tenant:{tenant}"
        if key_id is not None:
            name, entry = f"key:{key_id}", {"id": key_id, "tenant": tenant, **limits}
        entries = {name: f"{self.revision} {json.dumps(entry)}"}
        self.run(calls.publish_access(entries, now=self.now))

    # -- workers -------------------------------------------------------------------------------------------------------

    def worker(self, name: str = WORKER, state: WorkerState = WorkerState.READY) -> None:
        """Send the heartbeat of a worker."""
        self.run(calls.register_worker(name, pool=POOL, state=state, pod="", models=["sd"], now=self.now))

    def receive_message(self) -> str | None:
        """The job of the next message in the Celery list, received as kombu does; None where it is empty."""
        message = self.redis.rpop(self.list_key)
        return None if message is None else job_of(message)

    def claim(self, job_id: str, *, token: str = TOKEN, worker: str = WORKER) -> Claim:
        return self.run(calls.claim(job_id, token=token, worker=worker, now=self.now))

    def start(self, job_id: str, *, token: str = TOKEN, worker: str = WORKER) -> str:
        """A worker claims the job, whose message leaves the list with that."""
        claim = self.claim(job_id, token=token, worker=worker)
        assert claim.attempt is not None, claim
        return job_id

    def running(self, **more: Any) -> str:
        """A job that was submitted and started."""
        return self.start(self.submit(**more))

    def progress(self, job_id: str, *, op: int, step: int, steps: int, publish: bool = True) -> LeaseStatus:
        return self.run(
            calls.progress(job_id, token=TOKEN, op=op, step=step, steps=steps, publish=publish, now=self.now)
        )

    def renew(self, job_id: str) -> LeaseStatus:
        return self.run(calls.renew(job_id, token=TOKEN, now=self.now))

    def finish(
        self, job_id: str, *, outcome: State = State.COMPLETED, data: dict[str, Any] | None = None, token: str = TOKEN
    ) -> AttemptEnd:
        if data is None:
            data = {"artifacts": []} if outcome is State.COMPLETED else {"error": HICCUP}
        return self.run(calls.finish(job_id, token=token, outcome=outcome, data=data, now=self.now))

    def retry(self, job_id: str, *, delay_ms: int = 10_000, token: str = TOKEN) -> AttemptEnd:
        return self.run(calls.retry(job_id, token=token, error=HICCUP, delay_ms=delay_ms, now=self.now))

    def release(
        self,
        job_id: str,
        reason: ReleaseReason,
        *,
        token: str | None = TOKEN,
        worker: str | None = None,
        detail: str = "gone",
    ) -> AttemptEnd:
        return self.run(calls.release(job_id, reason=reason, detail=detail, token=token, worker=worker, now=self.now))

    # -- the courier ---------------------------------------------------------------------------------------------------

    def reap(self) -> list[str]:
        return self.run(calls.reap(POOL, now=self.now))

    def reap_until(self, time: int) -> list[str]:
        """Reap each second up to `time`, as a courier does; `time` becomes `now`. Returns the reaped jobs."""
        reaped = self.reap()
        while self.now < time:
            self.now = min(self.now + 1_000, time)
            reaped += self.reap()
        return reaped

    def sweep(self) -> list[str]:
        return self.run(calls.sweep(POOL, now=self.now))

    def promote(self) -> list[str]:
        return self.run(calls.promote(POOL, now=self.now))

    def expire(self) -> list[str]:
        return self.run(calls.expire(now=self.now))

    def lease(self, *, owner: str = "courier", call: str, limit: int = 10) -> list[str]:
        return self.run(calls.lease_relays(owner=owner, call=call, limit=limit, now=self.now))

    # -- what is there -------------------------------------------------------------------------------------------------

    def record(self, job_id: str) -> JobRecord:
        record = self.ledger.job(job_id)
        assert record is not None
        return record

    def state(self, job_id: str) -> State | UnknownValue:
        return self.record(job_id).state

    def log(self, job_id: str) -> list[LogEntry]:
        entries = self.redis.xrange(self.key("log", job_id))
        words = ("event", "state", "at", "data")
        return [
            decode_live(job_id, b"\n".join([entry_id.split(b"-")[0], *(fields[word.encode()] for word in words)]))
            for entry_id, fields in entries
        ]

    def listed(self) -> list[str]:
        """The jobs whose messages are in the Celery list, the next first."""
        return [job_of(message) for message in reversed(self.redis.lrange(self.list_key, 0, -1))]

    def members(self, kind: str) -> set[str]:
        """The pool's jobs that are `waiting`, `dispatched`, `due` or `running`."""
        return {member.decode() for member in self.redis.zrange(self.key(kind, POOL), 0, -1)}

    def outbox(self) -> set[str]:
        return {member.decode() for member in self.redis.zrange(self.key("outbox"), 0, -1)}

    def counter(self, name: str) -> int:
        """The value of this counter."""
        return int(self.redis.hget(self.key("counters"), name) or 0)

    def everything(self) -> dict[str, Any]:
        """All stored values, and which of them have a time to live, without the counters of refused calls."""
        keys = [key for key in self.redis.scan_iter(self.key("*"), 1000) if not key.endswith(b":counters")]
        pipeline = self.redis.pipeline(transaction=False)
        for key in keys:
            pipeline.type(key)
            pipeline.ttl(key)
        replies = pipeline.execute()
        kinds, limits = replies[::2], replies[1::2]
        for key, kind in zip(keys, kinds, strict=True):
            pipeline.execute_command(*READERS[kind.decode()](key))
        contents = pipeline.execute()
        return {key.decode(): (content, limit > 0) for key, content, limit in zip(keys, contents, limits, strict=True)}

    def remove_all(self) -> None:
        """Delete all keys of these jobs, so that later tests read little more than their own."""
        keys = list(self.redis.scan_iter(self.key("*"), 1000))
        if keys:
            self.redis.unlink(*keys)

    def key(self, *parts: str) -> str:
        return ":".join((self.namespace, *parts))

    @property
    def list_key(self) -> str:
        return self.key("celery", f"pool.{POOL}")


def job_of(message: bytes) -> str:
    """The job that a message of the Celery list names."""
    tag = json.loads(message)["properties"]["delivery_tag"]
    found = re.fullmatch(r"(.+):\d+", tag)
    assert found is not None, tag
    return found[1]
