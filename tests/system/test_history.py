"""Finished jobs of `darkroom up`, in its data folder."""

from __future__ import annotations

import redis

from tests.system.running import System
from tests.waiting import eventually

SMALL = {"model": "flux", "prompt": "a lighthouse at dusk", "width": 64, "height": 64, "steps": 1}


def redis_of(system: System) -> redis.Redis:
    """A client of the Redis that `up` started."""
    lines = (system.folder / ".darkroom" / "redis" / "redis.conf").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines if " " in line and not line.startswith("#"))
    return redis.Redis(port=int(settings["port"]), password=settings["requirepass"])


def test_a_job_that_expired_in_redis_is_still_shown_and_its_picture_served(system: System) -> None:
    job_id = system.submit(**SMALL)
    before = system.wait_for(job_id, "completed")
    with redis_of(system) as client:
        eventually(lambda: client.pttl(f"darkroom:job:{job_id}") > 0, what="its time to live")
        client.delete(f"darkroom:job:{job_id}", f"darkroom:log:{job_id}")
    after = system.job(job_id)
    links = {"output_paths", "artifacts"}  # they depend on the time
    assert {**after, **dict.fromkeys(links)} == {**before, **dict.fromkeys(links)}
    assert after["artifacts"][0]["sha256"] == before["content_id"]
    assert (system.folder / ".darkroom" / "history" / "jobs.sqlite").exists()
