"""`darkroom replay`: recompute a pool's decision log, and simulate another policy with its jobs.

Each entry of the log has the decision and all of its inputs, so that the same code reproduces it exactly. A difference
means that the rules have changed. For the simulation the log also provides the number of jobs between two entries, the
duration of a job and of a cold start: both policies are run on these in simulated time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from darkroom.errors import InvalidInput, NotFound
from darkroom.ledger import reads
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.scaling import fields, specification
from darkroom.scaling.decision import decide
from darkroom.scaling.decision_log import DecisionEntry
from darkroom.scaling.policy import ScalingPolicy
from darkroom.scaling.simulation import PolicyScaler, SimulatedJob, SimulationResult, simulate
from darkroom.times import iso

from darkroom_cli.exits import DONE, FAILED
from darkroom_cli.local import installation
from darkroom_cli.local.installation import Installation
from darkroom_cli.terminal.output import Output

COLD_START_S = 60.0
"""The default without a measured one: a guess, for a running GPU node and a pulled image."""

SHOWN = 5
"""Maximum number of differences in the text output; JSON has all."""


@dataclass(frozen=True)
class ReplayOptions:
    """The command's arguments."""

    pool: str
    policy: Path | None
    data: Path | None


@dataclass(frozen=True)
class Difference:
    """A decision that is not reproduced: the recorded and the recomputed entry."""

    recorded: DecisionEntry
    now: DecisionEntry


def replay(options: ReplayOptions, output: Output) -> int:
    """Recompute the decisions and print the differences; with a policy also simulate that."""
    policy = None if options.policy is None else read_policy(options.policy)
    entries = asyncio.run(_read(installation.find(options.data), options.pool))
    if not entries:
        raise NotFound(f"there are no decisions for a pool {options.pool!r}")
    found = differences(entries)
    for difference in found:
        output.record(_as_record(difference))
    for difference in found[:SHOWN]:
        output.result(_in_words(difference))
    summary = {"decisions": len(entries), "different": len(found), "from": _time(entries[0]), "to": _time(entries[-1])}
    output.record(summary)
    output.result(f"decisions: {len(entries)}, from {summary['from']} to {summary['to']}, different now: {len(found)}")
    if policy is not None:
        _print_simulation(entries, policy, output)
    return FAILED if found else DONE


def read_policy(path: Path) -> ScalingPolicy:
    """The policy of a YAML or JSON file: a `WorkerPool`, or the spec of one. Raises InvalidInput."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"--policy {path}: {error}") from error
    spec = content.get("spec", content) if isinstance(content, Mapping) else None
    if not isinstance(spec, Mapping):
        raise InvalidInput(f"--policy {path}: is neither a WorkerPool nor the spec of one")
    if faults := fields.unknown(spec):
        problems = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults)
        raise InvalidInput(f"--policy {path}: {problems}", fields=faults)
    return specification.read_policy(spec)


async def _read(where: Installation, pool: str) -> list[DecisionEntry]:
    async with connect_async(where.redis_url) as client:
        texts = await reads.decisions(AsyncLedger(client, where.namespace), pool)
    try:
        return [DecisionEntry.decode(text) for text in texts]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"the decision log of {pool!r} was written by another version: {error!r}") from error


def differences(entries: Sequence[DecisionEntry]) -> list[Difference]:
    """The decisions that are not reproduced exactly."""
    found = []
    for entry in entries:
        decision, after = decide(entry.observation, entry.policy, entry.history, entry.at)
        again = replace(entry, decision=decision, after=after)
        if again.encode() != entry.encode():
            found.append(Difference(entry, again))
    return found


@dataclass(frozen=True)
class RecordedLoad:
    """The recorded jobs, with arrival and duration, and the duration of a cold start. In ms, from `origin`."""

    jobs: Sequence[SimulatedJob]
    origin: int
    until: int
    cold_start_ms: int
    replicas: int


def recorded_load(entries: Sequence[DecisionEntry]) -> RecordedLoad:
    """The jobs of a log; arrivals between two entries are spread evenly. Raises InvalidInput."""
    origin, jobs = entries[0].at, []
    service = next((ms for each in entries if (ms := _service_ms(each)) is not None), None)
    if service is None:
        raise InvalidInput("the log has no duration of a job: none has completed yet")
    arrived, since = 0, 0
    for entry in entries:
        reading, at = entry.observation.reading, entry.at - origin
        if reading is None:
            continue
        service = service if reading.service_ms is None else reading.service_ms
        if entry is entries[0]:
            came = reading.jobs
        else:  # Redis may have been emptied meanwhile
            came = reading.arrivals - arrived if reading.arrivals >= arrived else reading.arrivals
        jobs += [SimulatedJob(since + (at - since) * number // came, int(service)) for number in range(1, came + 1)]
        arrived, since = reading.arrivals, at
    cold = next((each.observation.cold_start_seconds for each in reversed(entries) if _cold(each)), None)
    return RecordedLoad(
        jobs=jobs,
        origin=origin,
        until=entries[-1].at - origin,
        cold_start_ms=int(1000 * (COLD_START_S if cold is None else cold)),
        replicas=entries[0].observation.replicas,
    )


def _service_ms(entry: DecisionEntry) -> float | None:
    return None if entry.observation.reading is None else entry.observation.reading.service_ms


def _cold(entry: DecisionEntry) -> bool:
    return entry.observation.cold_start_seconds is not None


def _print_simulation(entries: Sequence[DecisionEntry], policy: ScalingPolicy, output: Output) -> None:
    jobs = recorded_load(entries)
    output.result(f"\n{len(jobs.jobs)} jobs, simulated with a cold start of {jobs.cold_start_ms / 1000:g} s:")
    output.result(f"{'':24}{'wait p50':>10}{'wait p95':>10}{'replica-seconds':>17}{'kills':>7}")
    for name, of in (("the policy of the log", entries[-1].policy), ("the policy of the file", policy)):
        scaler = PolicyScaler(of, cold_start_ms=jobs.cold_start_ms, origin=jobs.origin)
        outcome = simulate(
            jobs.jobs, scaler, cold_start_ms=jobs.cold_start_ms, until=jobs.until, replicas=jobs.replicas
        )
        output.record({"simulated": name, **_numbers(outcome), "policy": of.spec()})
        output.result(
            f"{name:24}{outcome.wait(50):>8.1f} s{outcome.wait(95):>8.1f} s{outcome.replica_seconds:>17.0f}"
            f"{outcome.kills:>7}"
        )
    taken = replica_seconds(entries)
    output.record({"recorded_replica_seconds": taken})
    output.result(f"recorded replica-seconds: {taken:.0f}")


def _numbers(outcome: SimulationResult) -> dict[str, Any]:
    return {
        "jobs": len(outcome.waits),
        "wait_p50_s": outcome.wait(50),
        "wait_p95_s": outcome.wait(95),
        "replica_seconds": outcome.replica_seconds,
        "kills": outcome.kills,
        "unfinished": outcome.unfinished,
    }


def replica_seconds(entries: Sequence[DecisionEntry]) -> float:
    """The replica-seconds of the log: each decision holds until the next."""
    return sum(entry.decision.replicas * (later.at - entry.at) for entry, later in pairwise(entries)) / 1000


def _time(entry: DecisionEntry) -> str:
    return iso(entry.at)


def _as_record(difference: Difference) -> dict[str, Any]:
    recorded, now = difference.recorded.decision, difference.now.decision
    return {
        "at": _time(difference.recorded),
        "recorded": {"replicas": recorded.replicas, "reason": recorded.reason, "inputs": dict(recorded.inputs)},
        "now": {"replicas": now.replicas, "reason": now.reason, "inputs": dict(now.inputs)},
    }


def _in_words(difference: Difference) -> str:
    recorded, now = difference.recorded.decision, difference.now.decision
    return (
        f"{_time(difference.recorded)}: {recorded.replicas} ({recorded.reason}) was decided, "
        f"the recomputed decision is {now.replicas} ({now.reason})"
    )
