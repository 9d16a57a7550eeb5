"""Changed figures between two versions of darkroom: `make bench-compare A=.bench/before B=.bench/after`.

A and B are folders with the files of benchmarks, directly or one level below (`make bench ARGS="--repeat 3 --into A"`).
For each figure, all runs in A are compared with all runs in B. The shift is the Hodges-Lehmann estimator, the median of
all differences. Its interval is that of the exact Mann-Whitney test, which assumes no distribution; a figure changed if
the interval excludes zero. At 99 % and some fifty figures, one in three comparisons of equal versions shows a change.
Fewer than five runs per side cannot show any.

Runs of one process are correlated: repeat the whole benchmark, not only its runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from darkroom_loadtest.bench.run import BENCHES
from darkroom_loadtest.measurement.figures import Figure, Findings, align, read

LEVEL = 0.99


@dataclass(frozen=True)
class Shift:
    """The shift from A to B: the estimate, and its confidence interval; None with too few runs."""

    estimate: float
    interval: tuple[float, float] | None

    @property
    def is_move(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-compare", description=__doc__)
    parser.add_argument("before", type=Path, metavar="A", help="folder of the version before")
    parser.add_argument("after", type=Path, metavar="B", help="folder of the version after")
    options = parser.parse_args(arguments)
    sides = [gather(folder) for folder in (options.before, options.after)]
    for folder, side in zip((options.before, options.after), sides, strict=True):
        if not side:
            sys.stderr.write(f"{folder} has no files of benchmarks\n")
            return 1
    print(report(*sides))
    return 0


def gather(folder: Path) -> list[Findings]:
    """All files of benchmarks in the folder and one level below; other files are ignored."""
    paths = [*folder.glob("*.json"), *folder.glob("*/*.json")]
    written = {f"{name}.json" for name in (*BENCHES, "chaos")}
    return [read(path) for path in sorted(paths) if path.name in written]


def report(before: Sequence[Findings], after: Sequence[Findings]) -> str:
    """A line per common figure, changed figures first."""
    lines = []
    machines = [sorted({findings.machine for findings in side}) for side in (before, after)]
    if machines[0] != machines[1]:
        lines += ["DIFFERENT MACHINES:", f"  A: {'; '.join(machines[0])}", f"  B: {'; '.join(machines[1])}", ""]
    ours, theirs = _figures(after), _figures(before)
    rows = [_row(theirs[name], ours[name]) for name in ours if name in theirs]
    rows.sort(key=lambda row: row[-1] in {"", TOO_FEW})
    headings = ("figure", "A", "B", "shift", f"{LEVEL:.0%} interval", "")
    lines.append(align([headings, *rows]))
    lines += [f"only in {side}: {name}" for side, name in _alone(theirs, ours)]
    return "\n".join(lines)


def shift(before: Sequence[float], after: Sequence[float], *, level: float = LEVEL) -> Shift:
    """The shift from `before` to `after`, in their unit."""
    differences = sorted(late - early for early in before for late in after)
    cut = _cut(len(before), len(after), level)
    interval = None if cut is None else (differences[cut], differences[-1 - cut])
    return Shift(median(differences), interval)


TOO_FEW = "too few runs"


def _row(before: Figure, after: Figure) -> tuple[str, ...]:
    moved = shift(before.runs, after.runs)
    unit = "" if after.unit == "ratio" else f" {after.unit}"
    values = [f"{value:.4g}{unit}" for value in (before.value, after.value)]
    interval = "" if moved.interval is None else " … ".join(_relative(edge, before.value) for edge in moved.interval)
    verdict = TOO_FEW if moved.interval is None else _verdict(moved, after) if moved.is_move else ""
    return (after.name, *values, _relative(moved.estimate, before.value), interval, verdict)


def _verdict(moved: Shift, figure: Figure) -> str:
    if figure.goal is None:
        return "changed"
    return "better" if (moved.estimate > 0) == (figure.goal.least is not None) else "WORSE"


def _relative(difference: float, to: float) -> str:
    """In percent of `to`, or absolute if `to` is zero."""
    return f"{difference / abs(to):+.1%}" if to else f"{difference:+.3g}"


def _figures(side: Sequence[Findings]) -> dict[str, Figure]:
    """The figures by name, with the runs of all files."""
    found: dict[str, Figure] = {}
    for findings in side:
        for figure in findings.figures:
            runs = [*found[figure.name].runs, *figure.runs] if figure.name in found else figure.runs
            found[figure.name] = Figure(name=figure.name, unit=figure.unit, runs=runs, goal=figure.goal)
    return found


def _alone(before: Mapping[str, Figure], after: Mapping[str, Figure]) -> list[tuple[str, str]]:
    return [("A", name) for name in before.keys() - after.keys()] + [
        ("B", name) for name in after.keys() - before.keys()
    ]


def _cut(few: int, many: int, level: float) -> int | None:
    """The number of differences that the interval cuts off at each end; None if the level cannot be reached.

    Mann-Whitney's U counts the differences below the true shift: the probability that U is below `k` is the error of
    cutting off `k` differences at one end.
    """
    total = math.comb(few + many, few)
    cut, below = -1, 0
    while below + _ways(few, many, cut + 1) <= (1 - level) / 2 * total:
        cut += 1
        below += _ways(few, many, cut)
    return cut if cut >= 0 else None


@cache
def _ways(few: int, many: int, u: int) -> int:
    """The number of orders of `few` and `many` values with exactly `u` inversions."""
    if u < 0 or u > few * many:
        return 0
    if few == 0 or many == 0:
        return 1
    return _ways(few - 1, many, u - many) + _ways(few, many - 1, u)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
