"""The checks of the doctor: one pure function per check, and their table.

`examination.py` reads the system; a check is a rule with a threshold, applied to the result. Each finding states a
symptom and its remedy (`darkroom doctor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.checks.ledger_checks import LEDGER_CHECKS, Limits
from darkroom.checks.redis_checks import REDIS_CHECKS
from darkroom.checks.symptoms import Symptom, problem
from darkroom.checks.system import SystemInfo


@dataclass(frozen=True)
class Finding:
    """A symptom under the name of its check."""

    check: str
    symptom: Symptom


@dataclass(frozen=True)
class Diagnosis:
    """The findings, the completed checks, and those that could not be made."""

    findings: Sequence[Finding]
    made: Sequence[str]
    not_made: Sequence[str]


def diagnose(system: SystemInfo, limits: Limits) -> Diagnosis:
    """Make all checks that are possible. The findings are in the order of the checks."""
    findings: list[Finding] = []
    made = ["redis-reachable"]
    if system.error is not None:
        remedy = (
            "check that Redis runs, that DARKROOM_REDIS_URL names it, and that its user may run INFO and darkroom's "
            "commands"
        )
        findings.append(Finding("redis-reachable", problem(system.error, remedy)))
    if system.redis is not None:
        made += REDIS_CHECKS
        for name, of_redis in REDIS_CHECKS.items():
            findings += [Finding(name, symptom) for symptom in of_redis(system.redis)]
    if system.ledger is not None:
        made += LEDGER_CHECKS
        for name, of_ledger in LEDGER_CHECKS.items():
            findings += [Finding(name, symptom) for symptom in of_ledger(system.ledger, limits)]
    return Diagnosis(findings, made, [name for name in (*REDIS_CHECKS, *LEDGER_CHECKS) if name not in made])
