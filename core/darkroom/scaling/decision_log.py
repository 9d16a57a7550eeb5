"""The decision log of a pool: entries with a decision and its inputs, and the continuation from them.

The operator appends entries through the ledger and continues from the newest one after a restart (`resume`).
`darkroom replay` decides again on each entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from darkroom.jobs import read_value
from darkroom.scaling.decision import Decision, PoolObservation, ScalingHistory
from darkroom.scaling.policy import Paused, ScalingPolicy
from darkroom.scaling.specification import read_policy

KEPT_WHILE_BUSY_S = 10
"""The pause between two entries of the decision log that differ only in the number of jobs: as long as a short job."""

KEPT_WHILE_QUIET_S = 300
"""The pause between two equal entries: the log of an idle pool still shows that the operator runs."""

RESUMED_WITHIN_S = KEPT_WHILE_QUIET_S + 60
"""A log whose newest entry is younger is continuous: at most a minute is missing, for a restart."""


@dataclass(frozen=True, kw_only=True)
class DecisionEntry:
    """One entry of a pool's decision log: a decision with all of its inputs, and the history after it."""

    at: int
    policy: ScalingPolicy
    observation: PoolObservation
    history: ScalingHistory
    decision: Decision
    after: ScalingHistory

    def encode(self) -> str:
        """As JSON text; equal entries give equal text."""
        members = {
            "at": self.at,
            "policy": self.policy.spec(),
            "observation": asdict(self.observation),
            "history": asdict(self.history),
            "decision": asdict(self.decision),
            "after": asdict(self.after),
        }
        return json.dumps(members, sort_keys=True, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str | bytes) -> DecisionEntry:
        """The counterpart of `encode`. Members that this version does not know are ignored."""
        members = json.loads(text)
        return cls(
            at=members["at"],
            policy=_logged_policy(members["policy"]),
            observation=PoolObservation.from_json(members["observation"]),
            history=ScalingHistory.from_json(members["history"]),
            decision=Decision.from_json(members["decision"]),
            after=ScalingHistory.from_json(members["after"]),
        )


def _logged_policy(spec: Mapping[str, Any]) -> ScalingPolicy:
    """The policy of an entry; a later version may have paused it in a way that is unknown here."""
    paused = read_value(Paused, spec["paused"])
    return replace(read_policy({**spec, "paused": Paused.NONE}), paused=paused)


def is_recorded(entry: DecisionEntry, before: DecisionEntry | None) -> bool:
    """Whether `entry` is written to the decision log, after the entry `before`.

    Every decision that changes the replicas, and every change of the reason, is recorded. Entries between them are
    recorded at intervals, so that `darkroom replay` can apply another policy to the same jobs.
    """
    if before is None or entry.decision.replicas != entry.observation.replicas or entry.decision.replace:
        return True
    if entry.decision.reason != before.decision.reason or entry.policy != before.policy:
        return True
    moves = entry.observation.reading != before.observation.reading
    return entry.at - before.at >= (KEPT_WHILE_BUSY_S if moves else KEPT_WHILE_QUIET_S) * 1000


def resume(last: DecisionEntry | None, *, replicas: int, now: int) -> ScalingHistory:
    """The history for the first decision of a process. `last` is the newest entry of the decision log.

    The replicas that were wanted last count as wanted until now, since a log has no entry while nothing changes.
    Without a log, and after a longer gap, the existing replicas count as wanted: unknown time is no idle time.
    """
    history = ScalingHistory() if last is None else last.after
    is_continued = last is not None and 0 <= now - last.at <= RESUMED_WITHIN_S * 1000
    wanted = last.decision.inputs.get("wanted", replicas) if last is not None and is_continued else replicas
    peaks = (*((at, peak) for at, peak in history.peaks if peak > wanted), (now, wanted))
    return replace(history, peaks=peaks, short_since=history.short_since if is_continued else None)
