"""All benchmarks, one after another, and one table of what they found.

Each is a process of its own and writes `.bench/NAME.json`; the table is made of these files. With `--repeat` each is
run so many times, in turn with the others, and with `--into FOLDER` the files are kept there, a folder for each time:
that is what `make bench-compare` compares. Nothing else should run on the machine.
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

from darkroom_loadtest.bench.figures import FOLDER, Findings, read, table
from darkroom_loadtest.bench.rig import INTERRUPTED

BENCHES = ("submit", "latency", "worker", "job", "courier", "broadcast", "operator", "policy")

NEEDS: Mapping[str, str] = {"operator": "KUBEBUILDER_ASSETS"}
"""The variable without which a benchmark is left out."""

LIMIT_S = 900.0
"""For one benchmark. The longest takes a third of that on two idle cores."""

END_LIMIT_S = 60.0
"""For one that was interrupted to end what it started."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("benches", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--repeat", type=int, default=1, help="how many times each (default 1)")
    parser.add_argument("--into", type=Path, help="a folder that keeps the files, for bench-compare")
    options = parser.parse_args(arguments)
    if unknown := set(options.benches) - set(BENCHES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    chosen = [name for name in BENCHES if name in (options.benches or BENCHES)]
    commands = {name: [sys.executable, "-m", f"darkroom_loadtest.bench_{name}"] for name in chosen}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_all(commands, repeat=options.repeat, into=options.into)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def run_all(commands: Mapping[str, Sequence[str]], *, repeat: int, into: Path | None) -> int:
    """Run them, and print the table; answers the exit status, which a goal that was missed does not change."""
    began = time.monotonic()
    left_out: dict[str, str] = {}
    for number in range(1, repeat + 1):
        for name, command in commands.items():
            if NEEDS.get(name, "PATH") not in os.environ:
                left_out[name] = f"{NEEDS[name]} is not set"
                continue
            print(f"\n== {name}" + (f", {number} of {repeat}" if repeat > 1 else ""), flush=True)
            written = FOLDER / f"{name}.json"
            written.unlink(missing_ok=True)
            if not _run(command) or not written.exists():
                left_out[name] = "it failed"
            elif into is not None:
                kept = into / str(number)
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(written, kept)
    found = [read(FOLDER / f"{name}.json") for name in commands if (FOLDER / f"{name}.json").exists()]
    print(f"\n{summary(found, left_out)}\n\n{time.monotonic() - began:.0f} s in all")
    return 1 if "it failed" in left_out.values() else 0


def summary(found: Sequence[Findings], left_out: Mapping[str, str]) -> str:
    """The one table, and what it comes to."""
    figures = [figure for findings in found for figure in findings.figures]
    goals = [figure for figure in figures if figure.goal is not None]
    missed = [figure.name for figure in goals if figure.goal is not None and not figure.goal.is_met(figure.value)]
    lines = sorted({findings.machine for findings in found})
    lines += ["", table(figures), "", f"{len(goals) - len(missed)} of {len(goals)} goals are met"]
    lines += [f"missed: {name}" for name in missed]
    lines += [f"without {name}: {why}" for name, why in left_out.items()]
    return "\n".join(lines)


def _run(command: Sequence[str]) -> bool:
    """Whether it ended well, in time. It is in a session of its own, so that a Ctrl-C reaches it once: from here."""
    process = subprocess.Popen(command, start_new_session=True)
    with _ended(process):
        try:
            return process.wait(LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            print(f"not done within {LIMIT_S:g} s", flush=True)
            return False


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """However the block ends, the benchmark has ended by then, and what it started."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
