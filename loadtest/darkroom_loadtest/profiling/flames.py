"""Where the time of a process goes: a flame graph, and a table of it, of a process under load.

`submit`: one function process that takes submissions as fast as it can, as `bench-submit` has it. `worker`: a worker's
parent and child around an engine that takes no time, as `bench-worker` has it. py-spy looks at their stacks from
outside, some hundred times a second; it needs to be root, or to have CAP_SYS_PTRACE.

Written are `.bench/profile-NAME.svg`, to be opened in a browser, and `.bench/profile-NAME.txt`: a line for each stack,
with how often it was seen. The two are of seconds that follow each other.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from darkroom.ledger import calls

from darkroom_loadtest.bench import submit
from darkroom_loadtest.bench import worker as bench_worker
from darkroom_loadtest.bench.figures import FOLDER
from darkroom_loadtest.bench.rig import SHOWN_CHARS, BenchmarkFailed, Cores, Rig, on_cores, run_benchmark
from darkroom_loadtest.load.generator import Plan

RATE_HZ = 250

MARGIN_S = 10.0
"""The load goes on for so much longer than is looked at: py-spy takes seconds to begin on a busy machine."""

JOBS_PER_S = 1500
"""More than a worker does, so that its backlog lasts."""

LINES = 25

WAY_IN = 0.8
"""Functions that have this share of the time, and spend none of it themselves, are left out of the table."""

_PROCESS = re.compile(r'(process \d+):"[^"]*";')
_FRAME = re.compile(r"(.+) \(([^()]+?)(?::\d+)?\)")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="profile", description=__doc__)
    parser.add_argument("what", choices=("submit", "worker"))
    parser.add_argument("--seconds", type=float, default=8.0, help="to look, for each of the two files (default 8)")
    options = parser.parse_args(arguments)
    load = under_submissions if options.what == "submit" else with_a_backlog
    return run_benchmark(lambda rig: profile(rig, options.what, load, seconds=options.seconds))


def profile(rig: Rig, what: str, load: Callable[[Rig, float], Iterator[int]], *, seconds: float) -> None:
    """Everything, and the table. `load` answers the pid once the process works, for so many seconds at least."""
    FOLDER.mkdir(exist_ok=True)
    graph, stacks = FOLDER / f"profile-{what}.svg", FOLDER / f"profile-{what}.txt"
    with contextmanager(load)(rig, 2 * seconds + MARGIN_S) as pid:
        for path, form in ((graph, "flamegraph"), (stacks, "raw")):
            _look(pid, path, form, seconds)
    for process, seen in of_processes(stacks.read_text().splitlines()).items():
        print(f"\n{process}\n\n{table(seen)}")
    print(f"\nwritten to {graph} and {stacks}")


def under_submissions(rig: Rig, seconds: float) -> Iterator[int]:
    """One submit process with as many submissions as it takes."""
    cores = Cores.of_this_machine()
    with on_cores(cores.measured):
        server = rig.serve("submit", "darkroom_functions.serve", "submit")
    rig.ledger.run(calls.announce_pool("flux", models=["flux"]))
    plan = Plan(server.port, "/flux", submit.BODY, submit.CONNECTIONS, sys.maxsize, seconds)
    with on_cores(cores.others):
        generator = rig.start("generator", "darkroom_loadtest.load.generator", json.dumps(asdict(plan)))
    rig.wait(lambda: rig.redis.dbsize() > submit.CONNECTIONS, what=generator)
    yield server.process.pid


def with_a_backlog(rig: Rig, seconds: float) -> Iterator[int]:
    """A worker, with more jobs than it does in that time."""
    worker = rig.start_worker(bench_worker.POOL)
    with bench_worker.standing_still(worker):
        for number in range(int(JOBS_PER_S * seconds)):
            bench_worker.submit(rig, seed=number)
    yield worker.pid


def of_processes(lines: Iterable[str]) -> dict[str, Counter[tuple[str, ...]]]:
    """How often each stack was seen, by process; frames are `function (file)`, the outermost first.

    py-spy puts the frames of a child behind the parent's name and its own, whose arguments may have semicolons.
    """
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        *_, last = _PROCESS.finditer(stack)
        frames = stack[last.end() :].split(";")
        found.setdefault(last[1], Counter())[tuple(_frame(frame) for frame in frames)] += int(count)
    return found


def table(seen: Mapping[tuple[str, ...], int]) -> str:
    """The functions that take most of the time: with all that they call, and by themselves."""
    whole: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for stack, count in seen.items():
        own[stack[-1]] += count
        for frame in set(stack):
            whole[frame] += count
    total = sum(seen.values())
    rows = [(frame, whole[frame] / total, own[frame] / total) for frame, _ in whole.most_common()]
    shown = [row for row in rows if row[1] < WAY_IN or row[2] > 1 - WAY_IN][:LINES]
    return "\n".join(["in all  itself", *(f"{share:6.1%}  {itself:6.1%}  {frame}" for frame, share, itself in shown)])


def _frame(frame: str) -> str:
    """`name (file:line)` without the line, and with the end of a long path."""
    found = _FRAME.fullmatch(frame)
    if found is None:
        return frame
    name, path = found.groups()
    return f"{name} ({'/'.join(path.split('/')[-2:])})"


def _look(pid: int, path: Path, form: str, seconds: float) -> None:
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(pid), "--subprocesses"]
    command += ["--format", form, "--output", str(path), "--rate", str(RATE_HZ), "--duration", str(math.ceil(seconds))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * seconds + 60, check=False)
    if done.returncode != 0 or not path.exists():
        raise BenchmarkFailed(f"py-spy did not look at the process:\n{(done.stdout + done.stderr)[-SHOWN_CHARS:]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
