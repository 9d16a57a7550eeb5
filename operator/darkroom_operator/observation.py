"""The observation of a pool: what the decision is made of, and the state of its replicas over time.

`control.py` builds an observation in each round, and `metrics.py` exports the states of replicas.
"""

from __future__ import annotations

import time

from darkroom.ledger.calls import Reading
from darkroom.scaling.decision import PoolObservation

from darkroom_operator.kubernetes.state import PoolState


def count_time(pool: PoolState) -> None:
    """Add the replica-seconds since the last round, by state."""
    now = time.monotonic()
    since, pool.counted_at = pool.counted_at, now
    if since is None:
        return
    for state, number in replicas_by_state(pool).items():
        if number:
            pool.replica_seconds[state] = pool.replica_seconds.get(state, 0.0) + number * (now - since)


def replicas_by_state(pool: PoolState) -> dict[str, int]:
    """Number of pods by state, as far as it is known."""
    pods = sum(pod.counts for pod in pool.pods.values())
    reading = pool.reading or Reading()
    broken = sum(pool.broken().values())
    known = {
        "idle": reading.idle,
        "busy": reading.busy,
        "draining": reading.marked + reading.draining,
        "faulty": max(reading.faulty, broken),
    }
    return {"starting": max(pods - sum(known.values()), 0), **known}


def observation_of(pool: PoolState, now_ms: int, *, stays_faulty: int) -> PoolObservation:
    deployment = pool.deployment
    return PoolObservation(
        reading=pool.reading,
        replicas=deployment.replicas if deployment is not None else 0,
        ready=sum(pod.counts and pod.ready_ms is not None for pod in pool.pods.values()),
        broken=pool.broken(),
        unplaced=pool.unplaced(now_ms),
        rolling=deployment is not None and deployment.rolling,
        cold_start_seconds=pool.cold_start_s,
        stays_faulty=stays_faulty,
    )
