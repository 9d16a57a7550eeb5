"""The outcome of a run, and the number of users over time: pure functions."""

from __future__ import annotations

from typing import Any

import pytest
from darkroom_loadtest.load import hostile
from darkroom_loadtest.load.outcome import JobView, LoadOutcome, judge
from darkroom_loadtest.load.profiles import PROFILES, SCALES, SHAPES, LoadPlan, Thresholds, height
from darkroom_loadtest.load.prompts import PROMPTS

JOB = "01890000-0000-7000-8000-000000000001"


def note(kind: str, at: float = 100.0, **about: Any) -> dict[str, Any]:
    return {"kind": kind, "at": at, **about}


OFFERED = note("offered", way="rest")
ACCEPTED = note("accepted", 100.1, job=JOB, way="rest", ms=5.0)
ENDED = note("ended", 101.0, job=JOB, state="completed", event=f"{JOB}:end", ms=900.0, way="socket")


def view(state: str = "completed") -> dict[str, JobView]:
    return {JOB: JobView(JOB, state, created=100.0, started=100.2, ended=100.9, worker="w")}


def judged(
    *notes: dict[str, Any],
    jobs: dict[str, JobView] | None = None,
    audit: int | None = 0,
    backlog: int | None = 0,
) -> LoadOutcome:
    known = view() if jobs is None else jobs
    return judge(notes, known, audit_findings=audit, backlog_at_end=backlog, thresholds=Thresholds())


def missed(outcome: LoadOutcome) -> list[str]:
    return [check.name for check in outcome.missed]


def test_an_accepted_and_notified_job_passes() -> None:
    outcome = judged(OFFERED, ACCEPTED, ENDED)
    assert missed(outcome) == []
    assert outcome.end_to_end is not None
    assert outcome.end_to_end.p95 == 900.0


FAULTS: dict[str, tuple[list[dict[str, Any]], dict[str, JobView] | None, int | None]] = {
    "lost": ([OFFERED, ACCEPTED, ENDED], {}, 0),
    "doubled": ([OFFERED, ACCEPTED, ENDED, {**ENDED, "state": "failed", "ms": None}], None, 0),
    "unnotified": ([OFFERED, OFFERED, ACCEPTED], None, 0),
    "audit_findings": ([OFFERED, ACCEPTED, ENDED], None, 1),
    "failed": ([OFFERED, ACCEPTED, {**ENDED, "state": "failed"}], view("failed"), 0),
    "errors": ([OFFERED, ACCEPTED, ENDED, note("error", what="a socket failed")], None, 0),
    "hostile_let_in": (
        [OFFERED, ACCEPTED, ENDED, note("hostile", case="x", refused=False, status=500, ms=1.0)],
        None,
        0,
    ),
    "refused_otherwise": (
        [OFFERED, ACCEPTED, ENDED, note("refused", way="rest", status=429, reason="x", retry_after=None, ms=1.0)],
        None,
        0,
    ),
    "refused_percent": (
        [OFFERED, ACCEPTED, ENDED, note("refused", way="rest", status=429, reason="x", retry_after="1", ms=1.0)],
        None,
        0,
    ),
    "not_cancelled": ([OFFERED, ACCEPTED, ENDED, note("cancelled", job=JOB, receipt="dequeued")], None, 0),
    "submit_p95_ms": ([OFFERED, {**ACCEPTED, "ms": 501.0}, ENDED], None, 0),
    "end_to_end_p95_s": ([OFFERED, ACCEPTED, {**ENDED, "ms": 30_001.0}], None, 0),
    "settle_s": ([OFFERED, ACCEPTED, {**ENDED, "at": 161.0}], None, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_exceeds_its_threshold(name: str) -> None:
    notes, jobs, audit = FAULTS[name]
    assert name in missed(judged(*notes, jobs=jobs, audit=audit))


def test_unknown_values_do_not_pass() -> None:
    outcome = judged(OFFERED, ACCEPTED, ENDED, audit=None, backlog=None)
    assert missed(outcome) == ["audit_findings", "backlog_at_end"]


def test_a_remaining_backlog_is_found() -> None:
    assert missed(judged(OFFERED, ACCEPTED, ENDED, backlog=1)) == ["backlog_at_end"]


def test_a_run_without_accepted_jobs_does_not_pass() -> None:
    assert "submit_p95_ms" in missed(judged())


def test_a_repeated_terminal_message_is_one_end() -> None:
    assert missed(judged(OFFERED, ACCEPTED, ENDED, {**ENDED, "ms": None})) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_stays_within_its_peak_and_ends(shape: str) -> None:
    heights = [height(SHAPES[shape], part / 1000) for part in range(1000)]
    assert max(heights) == pytest.approx(1, abs=0.01)
    assert min(heights) >= 0
    assert height(SHAPES[shape], 1.0) == 0
    assert shape in SCALES


def test_a_burst_starts_from_zero() -> None:
    assert [height(SHAPES["burst-from-zero"], part) for part in (0.1, 0.2, 0.39, 0.5)] == [0, 1, 1, 0]


def test_a_plan_survives_encoding() -> None:
    profile = PROFILES["ten-then-thirty"]
    duration_s, peak_per_s = SCALES[profile.shape]
    plan = LoadPlan(
        profile="ten-then-thirty",
        shape=profile.shape,
        host="http://127.0.0.1:8000",
        duration_s=duration_s,
        peak_per_s=peak_per_s,
        pace_s=profile.pace_s,
        spawn_per_s=profile.spawn_per_s,
        kinds=profile.kinds,
        model="sd",
        parameters={"width": 64},
        wait_s=50,
        settle_s=60,
        thresholds=profile.thresholds,
    )
    assert LoadPlan.decode(plan.encode()) == plan
    # Ten per minute is one user every six seconds, thirty are three.
    assert [plan.users(at) for at in (0, duration_s * 0.75, duration_s)] == [1, 3, 0]


def test_an_unknown_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="submit_p95_ms"):
        Thresholds().but({"submit_p96_ms": 1})


def test_there_are_71_prompts() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) == 71


def test_a_refusal_is_a_4xx_with_problem_details() -> None:
    assert hostile.is_refused(422, "application/problem+json; charset=utf-8")
    assert not hostile.is_refused(422, "text/html")
    assert not hostile.is_refused(500, "application/problem+json")
    assert not hostile.is_refused(202, "application/json")
