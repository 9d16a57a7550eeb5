"""Days to scale for: when jobs come, and how long each runs. The same seed is the same day, on every machine.

How long a job runs is heavy-tailed (lognormal): half of them take less than 8 s, one in a hundred more than two
minutes, and the longest are cut at a quarter of an hour, as a run timeout does.
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
"""At 16 s a job in the mean: 1.3 workers' work."""

PEAK_PER_S, NIGHT_PER_S = 0.18, 0.005
"""Of the diurnal day: at noon three workers' work, at midnight next to nothing."""

QUIET_PER_S = 0.004
BURSTS = 30
BURST_JOBS = (10, 120)
BURST_S = (20.0, 300.0)
"""Of the bursty day: somebody submits a batch, about thirty times, of so many jobs within so long; a job every four
minutes otherwise."""


def steady(dice: random.Random) -> Iterator[float]:
    """The same all day."""
    return _thinned(dice, STEADY_PER_S, lambda _: 1.0)


def diurnal(dice: random.Random) -> Iterator[float]:
    """Much at noon, little at night."""
    lowest = NIGHT_PER_S / PEAK_PER_S
    return _thinned(dice, PEAK_PER_S, lambda at: lowest + (1 - lowest) * math.sin(math.pi * at / DAY_S) ** 2)


def bursty(dice: random.Random) -> Iterator[float]:
    """Batches at any time, and little between them."""
    yield from _thinned(dice, QUIET_PER_S, lambda _: 1.0)
    for _ in range(BURSTS):
        start, lasts = dice.uniform(0, DAY_S), dice.uniform(*BURST_S)
        for _ in range(dice.randint(*BURST_JOBS)):
            yield start + dice.uniform(0, lasts)


def _thinned(dice: random.Random, highest_per_s: float, share: Callable[[float], float]) -> Iterator[float]:
    """Independent arrivals, at a rate that is `share(time)` of the highest."""
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
    """The jobs of a day, in the order in which they come."""
    dice = random.Random(f"{kind} {seed}")
    arrivals = sorted(at for at in KINDS[kind](dice) if at < DAY_S)
    return [
        SimulatedJob(int(at * 1000), int(1000 * min(dice.lognormvariate(math.log(MEDIAN_S), SIGMA), LONGEST_S)))
        for at in arrivals
    ]
