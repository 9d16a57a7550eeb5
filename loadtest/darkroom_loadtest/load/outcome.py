"""The outcome of a run in figures: from the clients' journal (`journal.py`), the job views, and the audit.

Pure functions. The clients' list of 202 responses defines the jobs; the system only provides their outcome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median

from darkroom_loadtest.load.journal import Note
from darkroom_loadtest.load.profiles import Thresholds
from darkroom_loadtest.measurement.figures import percentile

TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})
FAILED = frozenset({"failed", "expired"})

WINDOWS = 40
"""Points of a curve over time: more would show noise in a run of a minute."""

SHOWN = 10
"""Maximum number of jobs and errors that are listed."""


@dataclass(frozen=True)
class JobView:
    """A job's view; times are seconds since the epoch, by the system's clock."""

    id: str
    state: str
    created: float
    started: float | None
    ended: float | None
    worker: str | None


@dataclass(frozen=True)
class Latency:
    """Percentiles in ms, and the number of values."""

    count: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Latency | None:
        if not values:
            return None
        return cls(len(values), *(percentile(values, percent) for percent in (50, 95, 99)))


@dataclass(frozen=True)
class TimeWindow:
    """A part of the run: rates per second, images per minute."""

    at_s: float
    offered: float
    accepted: float
    refused: float
    images_per_min: float
    submit: Latency | None
    start: Latency | None
    end_to_end: Latency | None


@dataclass(frozen=True)
class EngineOverhead:
    """Medians in ms of the time around the engine.

    `attempt` is from the claim to the end, including the engine; `between` is from a worker's previous end to its next
    start if that job was already waiting, and `between_percent` its share of both; `notified` is from the end to the
    client.
    """

    attempt: float | None
    between: float | None
    between_percent: float | None
    notified: float | None


@dataclass(frozen=True)
class ThresholdCheck:
    """A threshold. It is met if the value is known and at most the limit, or if there is no limit."""

    name: str
    value: float | None
    limit: float | None

    @property
    def is_met(self) -> bool:
        return self.limit is None or (self.value is not None and self.value <= self.limit)


@dataclass(frozen=True, kw_only=True)
class LoadOutcome:
    """The whole outcome. `began` is the time of the first submission in seconds since the epoch; 0 without any."""

    began: float
    offered: int
    accepted: int
    refused: Mapping[str, int]
    ends: Mapping[str, int]
    lost: Sequence[str]
    doubled: Sequence[str]
    unnotified: Sequence[str]
    hostile: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, int]
    submit: Latency | None
    start: Latency | None
    end_to_end: Latency | None
    by_way: Mapping[str, Latency | None]
    images_per_min: float
    settle_s: float | None
    around: EngineOverhead
    windows: Sequence[TimeWindow]
    checks: Sequence[ThresholdCheck]

    @property
    def missed(self) -> list[ThresholdCheck]:
        return [check for check in self.checks if not check.is_met]


def judge(
    notes: Iterable[Note],
    jobs: Mapping[str, JobView],
    *,
    audit_findings: int | None,
    backlog_at_end: int | None,
    thresholds: Thresholds,
) -> LoadOutcome:
    """`audit_findings` and `backlog_at_end` are None if unknown, which is not zero."""
    by_kind: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        by_kind[note["kind"]].append(note)
    accepted = {note["job"]: note for note in by_kind["accepted"]}
    ended = _first_ends(by_kind["ended"])
    terminal = {job for job in accepted if job in jobs and jobs[job].state in TERMINAL}
    doubled = _doubled(by_kind) & accepted.keys()
    lost = sorted(accepted.keys() - terminal)
    unnotified = sorted(terminal - ended.keys())
    ends = Counter(jobs[job].state for job in terminal)
    submit = Latency.of([note["ms"] for note in accepted.values() if note["ms"] is not None])
    end_to_end = Latency.of([note["ms"] for note in ended.values()])
    errors = Counter(note["what"] for note in by_kind["error"])
    settle_s = _settle_s(by_kind, ended)
    otherwise = sum(note["status"] != 429 or note["retry_after"] is None for note in by_kind["refused"])
    measured = {
        "lost": len(lost),
        "doubled": len(doubled),
        "unnotified": len(unnotified),
        "audit_findings": audit_findings,
        "failed": sum(ends[state] for state in FAILED),
        "not_cancelled": sum(
            note["receipt"] != "too_late" and jobs[note["job"]].state != "cancelled"
            for note in by_kind["cancelled"]
            if note["job"] in terminal
        ),
        "errors": errors.total(),
        "hostile_let_in": sum(not note["refused"] for note in by_kind["hostile"]),
        "refused_otherwise": otherwise,
        "refused_percent": 100 * len(by_kind["refused"]) / max(1, len(by_kind["offered"])),
        # Unknown without an accepted job.
        "submit_p95_ms": submit.p95 if submit else None,
        "end_to_end_p95_s": end_to_end.p95 / 1000 if end_to_end else None,
        "settle_s": settle_s,
        "backlog_at_end": backlog_at_end,
    }
    windows = _windows(by_kind, ended)
    return LoadOutcome(
        began=min((note["at"] for note in by_kind["offered"]), default=0.0),
        offered=len(by_kind["offered"]),
        accepted=len(accepted),
        refused=dict(Counter(map(_refusal, by_kind["refused"]))),
        ends=dict(ends),
        lost=lost,
        doubled=sorted(doubled),
        unnotified=unnotified,
        hostile=_hostile(by_kind["hostile"]),
        errors=dict(errors.most_common(SHOWN)),
        submit=submit,
        start=Latency.of([note["ms"] for note in by_kind["started"]]),
        end_to_end=end_to_end,
        by_way=_by_way(accepted, ended),
        images_per_min=_images_per_min(jobs, accepted),
        settle_s=settle_s,
        around=_around([jobs[job] for job in terminal], ended),
        windows=windows,
        checks=[ThresholdCheck(name, measured[name], limit) for name, limit in asdict(thresholds).items()],
    )


def _refusal(note: Note) -> str:
    header = "without Retry-After" if note["retry_after"] is None else "with Retry-After"
    return f"{note['status']} {note['reason']}, {header}"


def _first_ends(notes: Sequence[Note]) -> dict[str, Note]:
    """The first terminal message by job; repeated messages have no time."""
    found: dict[str, Note] = {}
    for note in notes:
        if note["ms"] is not None:
            found.setdefault(note["job"], note)
    return found


def _doubled(by_kind: Mapping[str, Sequence[Note]]) -> set[str]:
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for note in by_kind.get("ended", ()):
        seen[note["job"]].add((note["event"], note["state"]))
    twice = {job for job, ends in seen.items() if len(ends) > 1}
    promised = Counter(note["job"] for note in by_kind.get("accepted", ()))
    shared = {job for job, count in promised.items() if count > 1}
    return twice | shared | {note["job"] for note in by_kind.get("doubled", ())}


def _settle_s(by_kind: Mapping[str, Sequence[Note]], ended: Mapping[str, Note]) -> float | None:
    if not by_kind.get("offered") or not ended:
        return None
    last_offer = max(note["at"] for note in by_kind["offered"])
    return max(0.0, float(max(note["at"] for note in ended.values()) - last_offer))


def _hostile(notes: Sequence[Note]) -> dict[str, dict[str, int]]:
    """By case, the number of responses by status, and whether a request was not refused."""
    cases: dict[str, Counter[str]] = defaultdict(Counter)
    for note in notes:
        cases[note["case"]][f"{note['status']}{'' if note['refused'] else ' NOT REFUSED'}"] += 1
    return {case: dict(counts) for case, counts in sorted(cases.items())}


def _by_way(accepted: Mapping[str, Note], ended: Mapping[str, Note]) -> dict[str, Latency | None]:
    ways: dict[str, list[float]] = defaultdict(list)
    for job, note in ended.items():
        if job in accepted:
            ways[accepted[job]["way"]].append(note["ms"])
    return {way: Latency.of(values) for way, values in sorted(ways.items())}


def _images_per_min(jobs: Mapping[str, JobView], accepted: Mapping[str, Note]) -> float:
    """Completed jobs between the first submission and the last end, by the system's clock."""
    done = [jobs[job] for job in accepted if job in jobs and jobs[job].state == "completed"]
    ends = [job.ended for job in done if job.ended is not None]
    if not ends:
        return 0.0
    return 60 * len(ends) / max(1.0, max(ends) - min(job.created for job in done))


def _around(jobs: Sequence[JobView], ended: Mapping[str, Note]) -> EngineOverhead:
    by_worker: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    notified: list[float] = []
    for job in jobs:
        if job.state != "completed" or job.started is None or job.ended is None:
            continue
        by_worker[job.worker or ""].append((job.started, job.ended, job.created))
        if job.id in ended:
            notified.append(1000 * (ended[job.id]["at"] - job.ended))
    attempts = [1000 * (end - start) for spans in by_worker.values() for start, end, _ in spans]
    between = [
        1000 * (start - before)
        for spans in map(sorted, by_worker.values())
        for (_, before, _), (start, _, created) in pairwise(spans)
        if created < before <= start
    ]
    attempt = median(attempts) if attempts else None
    gap = median(between) if between else None
    part = 100 * gap / (gap + attempt) if gap is not None and attempt else None
    return EngineOverhead(attempt, gap, part, median(notified) if notified else None)


def _windows(by_kind: Mapping[str, Sequence[Note]], ended: Mapping[str, Note]) -> list[TimeWindow]:
    """The run in windows of equal length. A latency belongs to the window in which it ended."""
    series = {kind: by_kind.get(kind, ()) for kind in ("offered", "accepted", "refused", "started")}
    series["ended"] = list(ended.values())
    times = [note["at"] for notes in series.values() for note in notes]
    if not times:
        return []
    began = min(times)
    width = max(1.0, (max(times) - began) / WINDOWS)
    parts: dict[int, dict[str, list[Note]]] = defaultdict(lambda: defaultdict(list))
    for kind, notes in series.items():
        for note in notes:
            parts[int((note["at"] - began) / width)][kind].append(note)
    found = []
    for number in range(max(parts) + 1):
        part = parts[number]
        images = sum(note["state"] == "completed" for note in part["ended"])
        found.append(
            TimeWindow(
                at_s=(number + 0.5) * width,
                offered=len(part["offered"]) / width,
                accepted=len(part["accepted"]) / width,
                refused=len(part["refused"]) / width,
                images_per_min=60 * images / width,
                submit=Latency.of([note["ms"] for note in part["accepted"] if note["ms"] is not None]),
                start=Latency.of([note["ms"] for note in part["started"]]),
                end_to_end=Latency.of([note["ms"] for note in part["ended"]]),
            )
        )
    return found
