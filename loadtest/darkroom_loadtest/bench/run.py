"""All benchmarks in sequence, and one table of their figures.

Each is a process and writes `.bench/NAME.json`; the table is made from these files. With `--repeat` all are run that
many times, and with `--into FOLDER` the files are copied there, a folder for each repetition, for `make bench-compare`.
The machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from darkroom_loadtest.measurement.figures import FOLDER, Findings, read, table
from darkroom_loadtest.measurement.rig import INTERRUPTED

BENCHES = ("submit", "latency", "worker", "job", "courier", "broadcast", "operator", "policy", "fairness")

NEEDS: Mapping[str, str] = {"operator": "KUBEBUILDER_ASSETS"}
"""The variable without which a benchmark is skipped."""

TIMEOUT_S = 900.0
"""Timeout of one benchmark. The longest takes a third of that on two idle cores."""

GRACE_S = 60.0
"""Grace period of an interrupted benchmark."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "benches", nargs="*", metavar="NAME", help=f"benchmarks, of {', '.join(BENCHES)} (default: all)"
    )
    parser.add_argument("--repeat", type=int, default=1, help="number of repetitions (default: 1)")
    parser.add_argument("--into", type=Path, help="a folder for copies of the files, for bench-compare")
    options = parser.parse_args(arguments)
    if unknown := set(options.benches) - set(BENCHES):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}")
    chosen = [name for name in BENCHES if name in (options.benches or BENCHES)]
    commands = {name: [sys.executable, "-m", module_of(name)] for name in chosen}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_all(commands, repeat=options.repeat, into=options.into)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def run_all(commands: Mapping[str, Sequence[str]], *, repeat: int, into: Path | None) -> int:
    """Run the benchmarks and print the table; returns the exit status, which is independent of goals."""
    began = time.monotonic()
    skipped: dict[str, str] = {}
    for number in range(1, repeat + 1):
        for name, command in commands.items():
            if NEEDS.get(name, "PATH") not in os.environ:
                skipped[name] = f"{NEEDS[name]} is not set"
                continue
            print(f"\n== {name}" + (f", {number} of {repeat}" if repeat > 1 else ""), flush=True)
            written = FOLDER / f"{name}.json"
            written.unlink(missing_ok=True)
            if not _run(command) or not written.exists():
                skipped[name] = "it failed"
            elif into is not None:
                kept = into / str(number)
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(written, kept)
    found = [read(FOLDER / f"{name}.json") for name in commands if (FOLDER / f"{name}.json").exists()]
    print(f"\n{summary(found, skipped)}\n\n{time.monotonic() - began:.0f} s in all")
    return 1 if "it failed" in skipped.values() else 0


def summary(found: Sequence[Findings], skipped: Mapping[str, str]) -> str:
    """The table, and the number of goals that are met."""
    figures = [figure for findings in found for figure in findings.figures]
    goals = [figure for figure in figures if figure.goal is not None]
    missed = [figure.name for figure in goals if figure.goal is not None and not figure.goal.is_met(figure.value)]
    lines = sorted({findings.machine for findings in found})
    lines += ["", table(figures), "", f"{len(goals) - len(missed)} of {len(goals)} goals are met"]
    lines += [f"missed: {name}" for name in missed]
    lines += [f"without {name}: {why}" for name, why in skipped.items()]
    return "\n".join(lines)


def module_of(name: str) -> str:
    """The module of a benchmark."""
    return "darkroom_loadtest.policy.bench" if name == "policy" else f"darkroom_loadtest.bench.{name}"


def _run(command: Sequence[str]) -> bool:
    """Whether the benchmark succeeded in time. Its session is its own, so that it receives Ctrl-C once, from here."""
    process = subprocess.Popen(command, start_new_session=True)
    with _ended(process):
        try:
            return process.wait(TIMEOUT_S) == 0
        except subprocess.TimeoutExpired:
            print(f"not done within {TIMEOUT_S:g} s", flush=True)
            return False


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop the benchmark when the block ends for any reason."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
