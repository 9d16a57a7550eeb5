"""Symptoms: what a check of the doctor observed, with its severity and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MINUTE_S = 60
HOUR_S = 3600


class Severity(StrEnum):
    """`PROBLEM`: jobs are lost, refused or stuck, or will be. `WARNING`: it may become a problem."""

    PROBLEM = "problem"
    WARNING = "warning"


@dataclass(frozen=True)
class Symptom:
    """The observation of a check, and its remedy."""

    severity: Severity
    seen: str
    remedy: str


def problem(seen: str, remedy: str) -> Symptom:
    return Symptom(Severity.PROBLEM, seen, remedy)


def ago(seconds: float) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.0f} h"


def mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
