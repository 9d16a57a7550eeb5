"""Commands for operators, which read Redis, the object store and the history directly: audit, doctor, replay."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from darkroom_cli.parsers.arguments import add_command, add_data
from darkroom_cli.terminal.output import Output

AUDIT = """\
For operators. Read all job data in Redis, in slices, and compare it with itself, the object store and the history:
every job is in exactly one place, its log has no gap, its terminal event is applied or pending, and its artifacts are
those that were published. The audit trail, a chain of hashes in the database, is computed again: a finding names its
first entry that was changed, removed or inserted. Findings are checked again after two seconds. Stale messages, which
no job needs, are listed but are not findings: workers drop them.

Redis, the store and the history are those of DARKROOM_REDIS_URL, DARKROOM_STORE and DARKROOM_DATABASE_URL. Without
DARKROOM_REDIS_URL they are those of the running `darkroom up`. With --repair the exit status is 0 if all findings were
repaired.
"""

DOCTOR = """\
For operators. Check Redis, the workers, the courier and the sink, and print a remedy for each finding. Workers that
report idle are sent a test message, which is not a job, to check that they consume their queue.

Redis is that of DARKROOM_REDIS_URL, or else that of the running `darkroom up`.
"""

REPLAY = """\
For operators. The operator logs each scaling decision for a pool together with its inputs. Compute all decisions again
and print the differences: there are none unless the rules have changed. With --policy, also simulate another policy
with the same jobs and print waits, replica-seconds and interrupted jobs.

Redis is that of DARKROOM_REDIS_URL, or else that of the running `darkroom up`. The exit status is 1 if a decision
differs.
"""


def add(commands: Any) -> None:
    audit = add_command(commands, "audit", "find orphaned, duplicated and inconsistent jobs", AUDIT, _run_audit)
    audit.add_argument("--repair", action="store_true", help="move each job to the place that its record defines")
    audit.add_argument(
        "--trail",
        action="store_true",
        help="only print the audit trail, oldest first, and verify it; with --json, export it",
    )
    audit.add_argument("--no-artifacts", action="store_true", help="do not read the artifacts")
    doctor = add_command(commands, "doctor", "find problems and print remedies", DOCTOR, _run_doctor)
    replay = add_command(commands, "replay", "recompute a pool's scaling, or try another policy", REPLAY, _run_replay)
    replay.add_argument("pool", metavar="POOL", help="the name of the worker pool")
    replay.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="a WorkerPool, or the spec of one, in YAML or JSON, to simulate",
    )
    for parser in (audit, doctor, replay):
        add_data(parser)


def _run_audit(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.audit import AuditOptions, audit

    return audit(
        AuditOptions(options.data, repair=options.repair, artifacts=not options.no_artifacts, trail=options.trail),
        output,
    )


def _run_doctor(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.doctor import doctor

    return doctor(options.data, output)


def _run_replay(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.replay import ReplayOptions, replay

    return replay(ReplayOptions(options.pool, options.policy, options.data), output)
