"""A flame graph and a table of functions of a process under load.

`submit`: one function process under the closed load of `bench-submit`. `worker`: a worker's parent and child with an
instant engine, as in `bench-worker`. py-spy samples their stacks from outside, some hundred times per second; it needs
root or CAP_SYS_PTRACE.

The output is `.bench/profile-NAME.svg`, for a browser, and `.bench/profile-NAME.txt`, a line per stack with its number
of samples. The two cover consecutive periods.
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
from darkroom_loadtest.clients.generator import RequestPlan
from darkroom_loadtest.measurement.figures import FOLDER
from darkroom_loadtest.measurement.rig import SHOWN_CHARS, BenchmarkFailed, Cores, Rig, on_cores, run_benchmark

RATE_HZ = 250

MARGIN_S = 10.0
"""The load lasts this much longer than the sampling: py-spy takes seconds to start on a busy machine."""

JOBS_PER_S = 1500
"""More than a worker's throughput, so that its backlog lasts."""

LINES = 25

WAY_IN = 0.8
"""Functions above this share of the time, with no time of their own, are left out of the table."""

_PROCESS = re.compile(r'(process \d+):"[^"]*";')
_FRAME = re.compile(r"(.+) \(([^()]+?)(?::\d+)?\)")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="profile", description=__doc__)
    parser.add_argument("what", choices=("submit", "worker"), help="the process to sample")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of sampling per file (default: 8)")
    options = parser.parse_args(arguments)
    load = under_submissions if options.what == "submit" else with_a_backlog
    return run_benchmark(lambda rig: profile(rig, options.what, load, seconds=options.seconds))


def profile(rig: Rig, what: str, load: Callable[[Rig, float], Iterator[int]], *, seconds: float) -> None:
    """Sample and write the files. `load` yields the pid of the process under load, for at least that long."""
    FOLDER.mkdir(exist_ok=True)
    graph, stacks = FOLDER / f"profile-{what}.svg", FOLDER / f"profile-{what}.txt"
    with contextmanager(load)(rig, 2 * seconds + MARGIN_S) as pid:
        for path, form in ((graph, "flamegraph"), (stacks, "raw")):
            _sample(pid, path, form, seconds)
    for process, seen in of_processes(stacks.read_text().splitlines()).items():
        print(f"\n{process}\n\n{table(seen)}")
    print(f"\nwritten to {graph} and {stacks}")


def under_submissions(rig: Rig, seconds: float) -> Iterator[int]:
    """One submit process under a closed load."""
    cores = Cores.of_this_machine()
    with on_cores(cores.measured):
        server = rig.serve("submit", "darkroom_functions.serve", "submit")
    rig.ledger.run(calls.announce_pool("flux", models=["flux"]))
    plan = RequestPlan(server.port, "/flux", submit.BODY, submit.CONNECTIONS, sys.maxsize, seconds)
    with on_cores(cores.others):
        generator = rig.start("generator", "darkroom_loadtest.clients.generator", json.dumps(asdict(plan)))
    rig.wait(lambda: rig.redis.dbsize() > submit.CONNECTIONS, what=generator)
    yield server.process.pid


def with_a_backlog(rig: Rig, seconds: float) -> Iterator[int]:
    """A worker with a backlog that outlasts the sampling."""
    worker = rig.start_worker(bench_worker.POOL)
    with bench_worker.paused(worker):
        for number in range(int(JOBS_PER_S * seconds)):
            bench_worker.submit(rig, seed=number)
    yield worker.pid


def of_processes(lines: Iterable[str]) -> dict[str, Counter[tuple[str, ...]]]:
    """The number of samples of each stack, by process; frames are `function (file)`, outermost first.

    py-spy puts the names of the parent and the child before a child's frames; a name may contain semicolons.
    """
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        *_, last = _PROCESS.finditer(stack)
        frames = stack[last.end() :].split(";")
        found.setdefault(last[1], Counter())[tuple(_frame(frame) for frame in frames)] += int(count)
    return found


def table(seen: Mapping[tuple[str, ...], int]) -> str:
    """The functions with the most time, with and without their callees."""
    whole: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for stack, count in seen.items():
        own[stack[-1]] += count
        for frame in set(stack):
            whole[frame] += count
    total = sum(seen.values())
    rows = [(frame, whole[frame] / total, own[frame] / total) for frame, _ in whole.most_common()]
    shown = [row for row in rows if row[1] < WAY_IN or row[2] > 1 - WAY_IN][:LINES]
    return "\n".join(["  total    self", *(f"{share:6.1%}  {itself:6.1%}  {frame}" for frame, share, itself in shown)])


def _frame(frame: str) -> str:
    """`name (file:line)` without the line, and with a shortened path."""
    found = _FRAME.fullmatch(frame)
    if found is None:
        return frame
    name, path = found.groups()
    return f"{name} ({'/'.join(path.split('/')[-2:])})"


def _sample(pid: int, path: Path, form: str, seconds: float) -> None:
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(pid), "--subprocesses"]
    command += ["--format", form, "--output", str(path), "--rate", str(RATE_HZ), "--duration", str(math.ceil(seconds))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * seconds + 60, check=False)
    if done.returncode != 0 or not path.exists():
        raise BenchmarkFailed(f"py-spy did not sample the process:\n{(done.stdout + done.stderr)[-SHOWN_CHARS:]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
