"""Replica hours against wait: our policy compared with other autoscalers, on simulated days.

Each autoscaler is simulated with many settings (the sweep). The result of a setting is the 95th percentile of waits and
the replica hours. The results that no other result of the same autoscaler beats in both form its frontier. Two
autoscalers are compared at equal wait: for waits along the other's frontier, the hours of our cheapest setting that
waits no longer, divided by the hours of the other's cheapest setting. The figure is the median of these ratios by day,
which does not depend on the density of the other's settings. Only the simulation runs (`darkroom.scaling.simulation`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from darkroom.scaling.policy import ScaleDown, ScalingPolicy
from darkroom.scaling.simulation import PolicyScaler, Scaler, simulate

from darkroom_loadtest.measurement.figures import FOLDER, Figure, Goal, report
from darkroom_loadtest.measurement.rig import INTERRUPTED
from darkroom_loadtest.policy.days import KINDS, SEEDS, day
from darkroom_loadtest.policy.rivals import Fixed, Keda, KedaSettings, QueueDelay

BENCH = "policy"

HOUR_MS = 3_600_000
COLD_START_MS = 60_000
MOST = 40
"""Maximum number of replicas of any autoscaler."""

WAITS = 41
SHORTEST_S = 1.0
"""The number of compared waits; those below a second count as a second."""

OURS, KEDA, TUNED, RUNPOD, FIXED = "darkroom", "KEDA", "KEDA tuned", "queue delay", "fixed"
SIDES = (OURS, KEDA, TUNED, RUNPOD, FIXED)

BURSTY = "bursty"
"""The kind of day with goals. The others have a coarser sweep, on one day each."""


@dataclass(frozen=True)
class Setting:
    """One setting of one autoscaler. Numbers by name, as in the table."""

    side: str
    numbers: tuple[tuple[str, float], ...]

    def scaler(self) -> Scaler:
        number = dict(self.numbers)
        least = int(number.get("min", 0))
        match self.side:
            case "darkroom":
                return PolicyScaler(_policy(number), cold_start_ms=COLD_START_MS)
            case "queue delay":
                return QueueDelay(
                    delay=int(number["delay_s"] * 1000), idle=int(number["idle_s"] * 1000), least=least, most=MOST
                )
            case "fixed":
                return Fixed(int(number["replicas"]))
        poll_s, window_s = (30, 300) if self.side == KEDA else (5, 60)
        return Keda(
            KedaSettings(
                target=number["target"],
                least=least,
                most=MOST,
                poll=poll_s * 1000,
                stabilisation=window_s * 1000,
                cooldown=window_s * 1000,
                counts_unacked=self.side == TUNED,
            )
        )


@dataclass(frozen=True)
class PolicyResult:
    """The result of a setting on a day. Waits are in seconds."""

    kind: str
    seed: int
    side: str
    numbers: tuple[tuple[str, float], ...]
    p50: float
    p95: float
    hours: float
    kills: int
    unfinished: int


def _policy(number: Mapping[str, float]) -> ScalingPolicy:
    return ScalingPolicy(
        min_replicas=int(number["min"]),
        max_replicas=MOST,
        jobs_per_replica=int(number["jobs"]) if "jobs" in number else None,
        wait_seconds=number.get("wait_s"),
        scale_down=ScaleDown(idle_seconds=number["idle_s"]),
    )


def settings(*, coarse: bool) -> Iterator[Setting]:
    """All settings of the sweep. A coarse sweep has some of each autoscaler."""
    least = (0,) if coarse else (0, 1, 4)
    idle = (30, 60, 300) if coarse else (10, 20, 30, 60)
    waits = (5, 120, 300) if coarse else (5, 70, 90, 120, 150, 200, 300, 600)
    depths = (1, 3) if coarse else (1, 2, 3, 4, 5, 6, 8, 12, 20)
    targets = (1, 2, 5) if coarse else (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 25)
    for wait_s, idle_s in itertools.product(waits, idle):
        yield _setting(OURS, wait_s=wait_s, idle_s=idle_s, min=0)
    for few in least[1:]:
        for wait_s, idle_s in itertools.product((5, 90, 150), (20, 60)):
            yield _setting(OURS, wait_s=wait_s, idle_s=idle_s, min=few)
    for jobs, idle_s in itertools.product(depths, idle):
        yield _setting(OURS, jobs=jobs, idle_s=idle_s, min=0)
    for side, target, few in itertools.product((KEDA, TUNED), targets, least):
        yield _setting(side, target=target, min=few)
    for delay_s, idle_s in itertools.product(
        (4,) if coarse else (1, 4, 15, 60), (5, 60) if coarse else (5, 30, 60, 300)
    ):
        yield _setting(RUNPOD, delay_s=delay_s, idle_s=idle_s)
    for replicas in (2, 4, 8) if coarse else (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40):
        yield _setting(FIXED, replicas=replicas)


def _setting(side: str, **numbers: float) -> Setting:
    return Setting(side, tuple(numbers.items()))


def measured(kind: str, seed: int, setting: Setting, hours: float) -> PolicyResult:
    """The result of one setting on the first hours of one day."""
    until = int(hours * HOUR_MS)
    jobs = [job for job in day(kind, seed) if job.arrival < until]
    outcome = simulate(jobs, setting.scaler(), cold_start_ms=COLD_START_MS, until=until, seed=seed)
    return PolicyResult(
        kind,
        seed,
        setting.side,
        setting.numbers,
        outcome.wait(50),
        outcome.wait(95),
        outcome.replica_seconds / 3600,
        outcome.kills,
        outcome.unfinished,
    )


def frontier(points: Sequence[PolicyResult]) -> list[PolicyResult]:
    """The results that no other beats in both values, shortest wait first."""
    best: list[PolicyResult] = []
    for point in sorted(points, key=lambda each: (each.p95, each.hours)):
        if not best or point.hours < best[-1].hours:
            best.append(point)
    return best


def ratios(ours: Sequence[PolicyResult], other: Sequence[PolicyResult]) -> list[float]:
    """The ratios of our hours to the other's at equal wait, for `WAITS` waits along the other's frontier, evenly spaced
    by logarithm; waits shorter than all of ours are left out.
    """
    edge = frontier(other)
    shortest, longest = max(edge[0].p95, SHORTEST_S), max(edge[-1].p95, SHORTEST_S)
    waits = [shortest * (longest / shortest) ** (step / (WAITS - 1)) for step in range(WAITS)]
    waits[-1] = longest  # independent of rounding
    pairs = [(_cheapest(ours, wait), _cheapest(edge, wait)) for wait in waits]
    return [mine / theirs for mine, theirs in pairs if mine is not None and theirs is not None]


def _cheapest(points: Sequence[PolicyResult], wait: float) -> float | None:
    return min((each.hours for each in points if each.p95 <= wait), default=None)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-policy", description=__doc__)
    parser.add_argument("--runs", type=int, default=len(SEEDS), help=f"bursty days (at most {len(SEEDS)}, the default)")
    parser.add_argument("--coarse", action="store_true", help="run a coarse sweep, as a smoke test")
    parser.add_argument("--hours", type=float, default=24.0, help="hours of each day (default: 24, all)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        points = measure(SEEDS[: max(options.runs, 1)], coarse=options.coarse, hours=options.hours)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    publish(points, took_s=time.monotonic() - began)
    return 0


def measure(seeds: Sequence[int], *, coarse: bool, hours: float) -> list[PolicyResult]:
    """All results, computed on all cores in parallel."""
    days = [(kind, seeds[0], setting, hours) for kind in KINDS if kind != BURSTY for setting in settings(coarse=True)]
    days += [(BURSTY, seed, setting, hours) for seed in seeds for setting in settings(coarse=coarse)]
    cores = ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        return list(cores.map(measured, *zip(*days, strict=True), chunksize=4))
    finally:
        cores.shutdown(cancel_futures=True)


def publish(points: Sequence[PolicyResult], *, took_s: float) -> None:
    """Write the figures, all frontiers as a table, the results as a file, and the plot."""
    figures = [
        _compared("policy_replica_hours_vs_keda", points, BURSTY, KEDA, Goal(most=0.7)),
        _compared("policy_replica_hours_vs_keda_tuned", points, BURSTY, TUNED, Goal(most=0.9)),
        _compared("policy_replica_hours_vs_queue_delay", points, BURSTY, RUNPOD),
        _compared("policy_replica_hours_vs_fixed", points, BURSTY, FIXED),
    ]
    for kind in KINDS:
        if kind != BURSTY:
            figures += [
                _compared(f"policy_replica_hours_vs_keda_{kind}", points, kind, KEDA),
                _compared(f"policy_replica_hours_vs_keda_tuned_{kind}", points, kind, TUNED),
            ]
    figures += [
        Figure(name="policy_busy_kills", unit="jobs", runs=[float(_kills(points, OURS))], goal=Goal(most=0)),
        Figure(name="keda_busy_kills_a_day", unit="jobs", runs=_kills_a_day(points, KEDA)),
        Figure(name="keda_tuned_busy_kills_a_day", unit="jobs", runs=_kills_a_day(points, TUNED)),
    ]
    not_comparable = [figure.name for figure in figures if not figure.runs]
    figures = [figure for figure in figures if figure.runs]
    for kind in KINDS:
        print(f"\n{kind} day, frontiers: the wait of 95 % of the jobs, replica hours, jobs interrupted\n")
        print("\n".join(_rows(points, kind)))
    FOLDER.mkdir(exist_ok=True)
    listed = FOLDER / "policy-points.json"
    listed.write_text(json.dumps([{**asdict(point), "numbers": dict(point.numbers)} for point in points]) + "\n")
    plot = draw(points, FOLDER / "policy.svg")
    notes = [
        "Ratios are of replica hours at equal p95 wait: the median along the other's frontier, day by day.",
        _range_note(points),
        f"{len(points)} days were simulated; all results are in {listed}, the plot is {plot}.",
        *(f"{name}: ours waits longer on all of the other's frontier." for name in not_comparable),
        f"{took_s:.0f} s in all",
    ]
    report(BENCH, figures, redis="not used", notes=notes)


def _of(points: Sequence[PolicyResult], kind: str, side: str, seed: int | None = None) -> list[PolicyResult]:
    return [each for each in points if each.kind == kind and each.side == side and seed in {None, each.seed}]


def _seeds(points: Sequence[PolicyResult], kind: str) -> list[int]:
    return sorted({each.seed for each in points if each.kind == kind}, key=SEEDS.index)


def _compared(name: str, points: Sequence[PolicyResult], kind: str, side: str, goal: Goal | None = None) -> Figure:
    runs: list[float] = []
    for seed in _seeds(points, kind):
        found = ratios(_of(points, kind, OURS, seed), _of(points, kind, side, seed))
        runs += [median(found)] if found else []
    return Figure(name=name, unit="ratio", runs=runs, goal=goal)


def _kills(points: Sequence[PolicyResult], side: str) -> int:
    return sum(each.kills for each in points if each.side == side)


def _kills_a_day(points: Sequence[PolicyResult], side: str) -> list[float]:
    """Interrupted jobs per bursty day, by the median setting on the frontier."""
    days = [_of(points, BURSTY, side, seed) for seed in _seeds(points, BURSTY)]
    return [median(float(each.kills) for each in frontier(of_day)) for of_day in days]


def _range_note(points: Sequence[PolicyResult]) -> str:
    """A note with the range of ratios along the frontier."""
    words = []
    for side in (KEDA, TUNED):
        found = [
            ratio
            for seed in _seeds(points, BURSTY)
            for ratio in ratios(_of(points, BURSTY, OURS, seed), _of(points, BURSTY, side, seed))
        ]
        words.append(f"against {side} from {min(found):.2f} to {max(found):.2f}" if found else f"{side}: none")
    return f"Over the bursty frontiers the ratio ranges {'; '.join(words)}."


def _rows(points: Sequence[PolicyResult], kind: str) -> Iterator[str]:
    seed = _seeds(points, kind)[0]
    for side in SIDES:
        for point in frontier(_of(points, kind, side, seed)):
            numbers = " ".join(f"{name}={value:g}" for name, value in point.numbers)
            yield f"{side:12} {point.p95:8.1f} s {point.hours:8.1f} h {point.kills:5d}   {numbers}"


def draw(points: Sequence[PolicyResult], path: Path) -> Path:
    """Plot all results and the frontiers, a panel per day."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(KINDS), figsize=(6 * len(KINDS), 5), layout="constrained")
    for panel, kind in zip(panels, KINDS, strict=True):
        seed = _seeds(points, kind)[0]
        for number, side in enumerate(SIDES):
            own = _of(points, kind, side, seed)
            best = frontier(own)
            colour = f"C{number}"
            panel.plot([each.p95 for each in own], [each.hours for each in own], ".", color=colour, alpha=0.25)
            edge = [each.p95 for each in best], [each.hours for each in best]
            panel.step(*edge, where="post", marker="o", color=colour, label=side)
        panel.set(title=f"{kind} day", xlabel="wait of 95 % of the jobs (s)", ylabel="replica hours")
        panel.set_xscale("symlog", linthresh=10)
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
