"""Figures: what a benchmark found, as a table for people and as `.bench/NAME.json` for programs.

`{"bench", "machine", "figures": [{"name", "value", "unit", "runs"}]}`, where `value` is the median of `runs`; a figure
that has them also says `"goal": {"least" or "most"}`, and, for a ratio, what it comes from: `"ours"`, `"baseline"`.

A figure is measured several times, its baseline in turn with it; the median of the runs is its value.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

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

    def encode(self) -> dict[str, float]:
        return {"least": self.least} if self.least is not None else {"most": self.most or 0.0}

    def __str__(self) -> str:
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure. Where it is a ratio, `ours` and `baseline` are what it comes from."""

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

    def encode(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "runs": list(self.runs),
            "goal": self.goal and self.goal.encode(),
            "ours": list(self.ours),
            "baseline": list(self.baseline),
        }
        return {key: value for key, value in told.items() if value not in (None, [])}

    @classmethod
    def decode(cls, told: Mapping[str, Any]) -> Figure:
        return cls(
            name=told["name"],
            unit=told["unit"],
            runs=told["runs"],
            goal=Goal(**told["goal"]) if "goal" in told else None,
            ours=told.get("ours", ()),
            baseline=told.get("baseline", ()),
        )


@dataclass(frozen=True)
class Findings:
    """What one benchmark wrote."""

    bench: str
    machine: str
    figures: Sequence[Figure]


def report(bench: str, figures: Sequence[Figure], *, redis: str, notes: Sequence[str]) -> None:
    """Print the table and the notes, and write the file. `redis` is the server's version."""
    machine = f"{this_machine()}, Python {platform.python_version()}, Redis {redis}"
    print(f"\n{bench}: medians, on {machine}\n")
    print(table(figures))
    print("\n".join(["", *notes]))
    print(f"\nwritten to {write(bench, figures, machine=machine)}")


def table(figures: Sequence[Figure]) -> str:
    """A line per figure."""
    return align([HEADINGS, *(_row(figure) for figure in figures)])


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each, the first of which are the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write(bench: str, figures: Sequence[Figure], *, machine: str) -> Path:
    """Write `.bench/NAME.json`, and say where that is."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{bench}.json"
    found = [figure.encode() for figure in figures]
    path.write_text(json.dumps({"bench": bench, "machine": machine, "figures": found}, indent=2) + "\n")
    return path


def read(path: Path) -> Findings:
    """What `write` wrote. Raises OSError, and ValueError or KeyError where it is not that."""
    told = json.loads(path.read_text())
    return Findings(told["bench"], told["machine"], [Figure.decode(figure) for figure in told["figures"]])


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


def this_machine() -> str:
    """Its processor, cores and system."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def _processor() -> str:
    """The processor as Linux names it, or what Python knows of it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
