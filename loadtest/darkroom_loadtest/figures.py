"""Figures: what a benchmark found, as a table for people and as `.bench/NAME.json` for programs.

A figure is measured several times, its baseline in turn with it; the median of the runs is its value.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

FOLDER = Path(".bench")
"""Where the figures are written, below the folder that the benchmark is started in. Git ignores it."""

HEADINGS = ("figure", "ours", "baseline", "ratio", "goal", "met")


@dataclass(frozen=True)
class Goal:
    """What a figure is to reach: at least `least`, or at most `most`."""

    least: float | None = None
    most: float | None = None

    def is_met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure. Where it is a ratio, `ours` and `baseline` are what it comes from: only the table shows them."""

    name: str
    unit: str
    runs: Sequence[float]
    goal: Goal | None = None
    ours: Sequence[float] = ()
    baseline: Sequence[float] = ()

    @classmethod
    def ratio(cls, name: str, *, ours: Sequence[float], baseline: Sequence[float], goal: Goal | None = None) -> Figure:
        """Ours divided by the baseline, run by run: neighbours in time had the same machine."""
        runs = [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]
        return cls(name=name, unit="ratio", runs=runs, goal=goal, ours=ours, baseline=baseline)

    @property
    def value(self) -> float:
        return median(self.runs)


def report(bench: str, figures: Sequence[Figure], *, redis: str, notes: Sequence[str]) -> None:
    """Print the table and the notes, and write the file. `redis` is the server's version."""
    machine = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    machine += f", Python {platform.python_version()}, Redis {redis}"
    print(f"\n{bench}: medians, on {machine}\n")
    print(table(figures))
    print("\n".join(["", *notes]))
    print(f"\nwritten to {write(bench, figures, machine=machine)}")


def table(figures: Sequence[Figure]) -> str:
    """A line per figure."""
    rows = [HEADINGS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write(bench: str, figures: Sequence[Figure], *, machine: str) -> Path:
    """Write `.bench/NAME.json`, and say where that is."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{bench}.json"
    found = [
        {"name": figure.name, "value": figure.value, "unit": figure.unit, "runs": list(figure.runs)}
        for figure in figures
    ]
    path.write_text(json.dumps({"bench": bench, "machine": machine, "figures": found}, indent=2) + "\n")
    return path


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that is no less than `percent` of them (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def _row(figure: Figure) -> tuple[str, ...]:
    value = f"{_short(figure.value)} {figure.unit}"
    met = "" if figure.goal is None else "yes" if figure.goal.is_met(figure.value) else "NO"
    goal = "" if figure.goal is None else str(figure.goal)
    if not figure.baseline:
        return (figure.name, value, "", "", goal, met)
    ours, baseline = _short(median(figure.ours)), _short(median(figure.baseline))
    return (figure.name, ours, baseline, _short(figure.value), goal, met)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _processor() -> str:
    """The processor as Linux names it, or what Python knows of it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
