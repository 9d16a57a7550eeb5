"""The fields `RateLimit-Policy` and `RateLimit`: structured fields, by which a client is never refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import http_sf
import pytest
from darkroom.access.limits import Limits, Owner, Quota
from darkroom.errors import DarkroomError
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted
from darkroom_functions.http.rate_limits import LIMIT_FIELD, POLICY_FIELD, rate_limit_fields
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.core.timed_jobs import TimedJobs

Fields = dict[str, dict[str, Any]]
"""The items of a field: their parameters by name."""


def parsed(value: str) -> Fields:
    """A List of Strings with parameters, by the rules of RFC 9651."""
    items: Any = http_sf.parse(value.encode(), tltype="list")
    return dict(items)


@pytest.fixture
def jobs(redis_url: str, namespace: str) -> Any:
    jobs = TimedJobs(redis_url, namespace)
    yield jobs
    jobs.remove_all()
    jobs.close()


def test_each_limit_is_an_item_with_its_unit() -> None:
    limits = Limits(
        submissions_per_minute=90,
        burst=3,
        waiting_jobs=10,
        waiting_bytes=2**53,
        images_per_day=50,
        images_per_month=500,
        gpu_seconds_per_day=60,
        gpu_seconds_per_month=600,
    )
    quotas = [
        Quota.of(Owner.KEY, name, limits, remaining=1, reset_s=None if name.startswith("waiting") else 7)
        for name in limits.model_dump()
        if name not in {"burst", "running_jobs"}
    ]
    fields = rate_limit_fields(quotas)
    assert parsed(fields[POLICY_FIELD]) == {
        "key-submissions-per-minute": {"q": 3, "w": 2},
        "key-waiting-jobs": {"q": 10, "qu": "concurrent-requests"},
        "key-waiting-bytes": {"q": 999_999_999_999_999, "qu": "content-bytes"},
        "key-images-per-day": {"q": 50, "qu": "images", "w": 86_400},
        "key-images-per-month": {"q": 500, "qu": "images"},
        "key-gpu-seconds-per-day": {"q": 60, "qu": "gpu-seconds", "w": 86_400},
        "key-gpu-seconds-per-month": {"q": 600, "qu": "gpu-seconds"},
    }
    of_limits = parsed(fields[LIMIT_FIELD])
    assert of_limits.keys() == parsed(fields[POLICY_FIELD]).keys()
    assert of_limits["key-submissions-per-minute"] == {"r": 1, "t": 7}
    assert of_limits["key-waiting-jobs"] == {"r": 1}


def test_without_a_limit_there_is_no_field() -> None:
    assert rate_limit_fields(()) == {}


OVERHEAD = 8 * 1024
"""Bytes of a job beside its body, at most (docs/access.md)."""


@dataclass
class Client:
    """A client that knows of its limits what the fields of the last response say, and obeys them."""

    jobs: TimedJobs
    limits: dict[str, Limits]
    policies: Fields = field(default_factory=dict)
    remaining: Fields = field(default_factory=dict)
    read_at: int = 0
    unfinished: list[str] = field(default_factory=list)
    waiting: int = 0

    def submit(self, images: int) -> None:
        cost = {"requests": 1, "images": images, "gpu-seconds": 1, "content-bytes": 200 + OVERHEAD}
        cost["concurrent-requests"] = 1
        for name, parameters in self.policies.items():
            needed, now = cost[parameters.get("qu", "requests")], self.remaining[name]
            if needed > parameters["q"]:
                return  # more than the whole quota
            if needed > now["r"] and "t" not in now:
                self.finish_all()
                event("waited for its jobs")
            elif needed > now["r"]:
                self.jobs.now = max(self.jobs.now, self.read_at + now["t"] * 1000)
                event(f"waited for {name}")
        job = self.jobs.submission(images=images, run_timeout=2.0, key_id="a-key", **self.limits)
        answer = self.jobs.run(calls.accept(job, backlog_limit=10_000, now=self.jobs.now))
        assert not isinstance(answer, DarkroomError), answer.detail
        self.read(answer)
        self.unfinished.append(answer.job_id)

    def read(self, answer: Accepted) -> None:
        fields = rate_limit_fields(answer.quotas)
        self.policies, self.remaining = parsed(fields[POLICY_FIELD]), parsed(fields[LIMIT_FIELD])
        self.read_at = self.jobs.now

    def finish_all(self) -> None:
        for job_id in list(self.unfinished):
            self.finish(job_id)

    def finish(self, job_id: str) -> None:
        """Run a job within the time that was reserved for it."""
        self.unfinished.remove(job_id)
        reserved = int(self.jobs.redis.hget(self.jobs.key("job", job_id), "reserved"))
        images = self.jobs.record(job_id).images or 1
        self.jobs.start(job_id, token=job_id)
        self.jobs.now += reserved
        self.jobs.finish(job_id, token=job_id, data={"artifacts": [{}] * images})


LIMITS = st.builds(
    Limits,
    submissions_per_minute=st.none() | st.integers(1, 600),
    burst=st.none() | st.integers(1, 5),
    waiting_jobs=st.none() | st.integers(1, 5),
    waiting_bytes=st.none() | st.integers(1, 5).map(lambda jobs: jobs * 2 * OVERHEAD),
    images_per_day=st.none() | st.integers(4, 20),
    images_per_month=st.none() | st.integers(4, 40),
    gpu_seconds_per_day=st.none() | st.integers(1, 60),
    gpu_seconds_per_month=st.none() | st.integers(1, 100),
).filter(lambda limits: limits.model_dump(exclude={"burst"}, exclude_none=True))

MOVES = st.lists(st.integers(1, 4) | st.sampled_from([0, 0, -1, -90_000, -50_000_000]), max_size=40)
"""A positive number: a submission with so many images; 0: a job runs; a negative one: so many ms pass."""


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tenant=LIMITS, key=LIMITS, moves=MOVES)
@example(tenant=Limits(images_per_day=40), key=Limits(submissions_per_minute=13, burst=4), moves=[1] * 4)
def test_a_client_that_obeys_the_fields_is_never_refused(
    jobs: TimedJobs, tenant: Limits, key: Limits, moves: list[int]
) -> None:
    jobs.redis.delete(jobs.ledger.keys.limits("default"), jobs.ledger.keys.limits("default", "a-key"))
    client = Client(jobs, {"tenant_limits": tenant, "key_limits": key})
    for move in moves:
        if move > 0:
            client.submit(move)
        elif move < 0:
            jobs.now -= move
        elif client.unfinished:
            client.finish(client.unfinished[0])
    client.finish_all()


def test_a_client_that_ignores_the_fields_is_refused(jobs: TimedJobs) -> None:
    """The test of the test."""
    client = Client(jobs, {"tenant_limits": Limits(submissions_per_minute=60, burst=2)})
    client.submit(1)
    client.submit(1)
    client.remaining["tenant-submissions-per-minute"]["r"] = 1
    with pytest.raises(AssertionError, match="the limit of tenant default is reached"):
        client.submit(1)
