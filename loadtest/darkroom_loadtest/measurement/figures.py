"""Figures: the results of a benchmark, as a table and as `.bench/NAME.json`.

`{"bench", "machine", "figures": [{"name", "value", "unit", "runs"}]}`, where `value` is the median of `runs`. A figure
may have a goal, `"goal": {"least" or "most"}`, and a ratio has its operands, `"ours"` and `"baseline"`.

A figure is measured several times, alternating with its baseline; its value is the median of the runs.
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
"""The folder of the figures, in the current folder. Git ignores it."""

HEADINGS = ("figure", "ours", "baseline", "ratio", "goal", "met")


@dataclass(frozen=True)
class Goal:
    """The goal of a figure: at least `least`, or at most `most`."""

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
    """One figure. A ratio has its operands in `ours` and `baseline`."""

    name: str
    unit: str
    runs: Sequence[float]
    goal: Goal | None = None
    ours: Sequence[float] = ()
    baseline: Sequence[float] = ()

    @classmethod
    def ratio(cls, name: str, *, ours: Sequence[float], baseline: Sequence[float], goal: Goal | None = None) -> Figure:
        """Ours divided by the baseline, run by run, since adjacent runs had the same conditions."""
        runs = [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]
        return cls(name=name, unit="ratio", runs=runs, goal=goal, ours=ours, baseline=baseline)

    @property
    def value(self) -> float:
        return median(self.runs)

    def encode(self) -> dict[str, Any]:
        members: dict[str, Any] = {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "runs": list(self.runs),
            "goal": self.goal and self.goal.encode(),
            "ours": list(self.ours),
            "baseline": list(self.baseline),
        }
        return {key: value for key, value in members.items() if value not in (None, [])}

    @classmethod
    def decode(cls, members: Mapping[str, Any]) -> Figure:
        return cls(
            name=members["name"],
            unit=members["unit"],
            runs=members["runs"],
            goal=Goal(**members["goal"]) if "goal" in members else None,
            ours=members.get("ours", ()),
            baseline=members.get("baseline", ()),
        )


@dataclass(frozen=True)
class Findings:
    """The results of one benchmark."""

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
    """A table with a line per figure."""
    return align([HEADINGS, *(_row(figure) for figure in figures)])


def align(rows: Sequence[Sequence[str]]) -> str:
    """A table of rows of equal length, the first of which has the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write(bench: str, figures: Sequence[Figure], *, machine: str) -> Path:
    """Write `.bench/NAME.json`; returns its path."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{bench}.json"
    found = [figure.encode() for figure in figures]
    path.write_text(json.dumps({"bench": bench, "machine": machine, "figures": found}, indent=2) + "\n")
    return path


def read(path: Path) -> Findings:
    """Read a file of `write`. Raises OSError, ValueError, KeyError."""
    members = json.loads(path.read_text())
    return Findings(members["bench"], members["machine"], [Figure.decode(figure) for figure in members["figures"]])


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of the values by the nearest-rank method."""
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
    """The machine's processor, cores and system."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def _processor() -> str:
    """The processor's name by Linux, or by Python."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
