"""Simulated days: arrivals and durations of jobs. A seed defines the same day on every machine.

Durations are heavy-tailed (lognormal): half of the jobs take less than 8 s, one in a hundred more than two minutes, and
the longest are cut at 15 minutes, as by a run timeout.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping

from darkroom.scaling.simulation import SimulatedJob

DAY_S = 24 * 3600

SEEDS = (20261120, 7, 1839)
"""Committed: three days of each kind."""

MEDIAN_S, SIGMA, LONGEST_S = 8.0, 1.2, 900.0

STEADY_PER_S = 0.08
"""With a mean duration of 16 s: the load of 1.3 workers."""

PEAK_PER_S, NIGHT_PER_S = 0.18, 0.005
"""The diurnal day: the load of three workers at noon, almost none at midnight."""

QUIET_PER_S = 0.004
BURSTS = 30
BURST_JOBS = (10, 120)
BURST_S = (20.0, 300.0)
"""The bursty day: about thirty batches with this range of jobs and durations; a job every four minutes otherwise."""


def steady(dice: random.Random) -> Iterator[float]:
    """A constant rate."""
    return _thinned(dice, STEADY_PER_S, lambda _: 1.0)


def diurnal(dice: random.Random) -> Iterator[float]:
    """A high rate at noon, a low rate at night."""
    lowest = NIGHT_PER_S / PEAK_PER_S
    return _thinned(dice, PEAK_PER_S, lambda at: lowest + (1 - lowest) * math.sin(math.pi * at / DAY_S) ** 2)


def bursty(dice: random.Random) -> Iterator[float]:
    """Batches at random times, with few jobs between them."""
    yield from _thinned(dice, QUIET_PER_S, lambda _: 1.0)
    for _ in range(BURSTS):
        start, lasts = dice.uniform(0, DAY_S), dice.uniform(*BURST_S)
        for _ in range(dice.randint(*BURST_JOBS)):
            yield start + dice.uniform(0, lasts)


def _thinned(dice: random.Random, highest_per_s: float, share: Callable[[float], float]) -> Iterator[float]:
    """Independent arrivals, at a rate of `share(time)` times the highest."""
    at = dice.expovariate(highest_per_s)
    while at < DAY_S:
        if dice.random() < share(at):
            yield at
        at += dice.expovariate(highest_per_s)


KINDS: Mapping[str, Callable[[random.Random], Iterator[float]]] = {
    "steady": steady,
    "diurnal": diurnal,
    "bursty": bursty,
}


def day(kind: str, seed: int) -> list[SimulatedJob]:
    """The jobs of a day in order of arrival."""
    dice = random.Random(f"{kind} {seed}")
    arrivals = sorted(at for at in KINDS[kind](dice) if at < DAY_S)
    return [
        SimulatedJob(int(at * 1000), int(1000 * min(dice.lognormvariate(math.log(MEDIAN_S), SIGMA), LONGEST_S)))
        for at in arrivals
    ]
