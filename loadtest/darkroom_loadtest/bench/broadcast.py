"""The throughput and latency of broadcasts by one result process, and the memory of a socket.

Thousands of sockets follow one common job, or a job each. The events come from the ledger's scripts, over Redis, as in
production; the baselines receive theirs over Redis too. The measured process has its own core; Redis, the subscribers
(`subscribers.py`) and this program share the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from darkroom import updates
from darkroom.errors import DarkroomError
from darkroom.jobs import JobEvent, State, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import Call, Submission
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from darkroom.ledger.records import LogEntry
from darkroom.links import Links
from pydantic import SecretStr

from darkroom_loadtest.clients.jobs import JobClient
from darkroom_loadtest.clients.subscribers import SubscriberReport, allow_sockets
from darkroom_loadtest.measurement.figures import Figure, Goal, percentile, report
from darkroom_loadtest.measurement.rig import (
    NAMESPACE,
    REPOSITORY,
    ROOTS,
    BenchmarkFailed,
    Cores,
    FunctionServer,
    Rig,
    on_cores,
    processor_s,
    run_benchmark,
)

BENCH = "broadcast"

POOL = "instant"
TENANT = "default"
TOKEN = "bench"
STEPS = 1_000_000
"""More steps than any job takes here, so that its progress stays below 100."""

LEASE_MS = 3_600_000
"""Longer than any measurement, so that no lease expires."""

ONE_BY_ONE, ONE_BY_ONE_LARGE = 40, 10
"""Sequential events of one run: the next is published when all sockets have the previous one."""

BURST, BURST_TO_EACH = 100, 10
"""Concurrent events of one run, and per job with a job each: fewer than a socket's buffer, so that none is closed."""

LATE = 100
"""Sockets of one run that are opened after their job has finished."""

WARM_UP = 50
"""Sockets before those whose memory counts, so that code and buffers are loaded."""

SETTLE_S = 0.5
"""Pause before the memory of idle sockets is read, and before a burst."""

TIMEOUT_S = 60.0
"""Timeout of operations that take seconds."""

AT_ONCE = 500
"""Calls of the ledger, or messages of a baseline, per round trip."""

ROOM_PER_SOCKET = 256 * 1024
"""Free memory that is required per socket of the large run, in bytes, for both ends and the kernel."""


Publish = Callable[[int], None]
"""Publishes that many events, to the common job or to each job."""


@dataclass(frozen=True)
class Audience:
    """The sockets of one target: their paths, the number of initial messages, and the publisher of events."""

    paths: Sequence[str]
    snapshots: int
    publish: Publish


@dataclass
class BroadcastTarget:
    """A measured server with its values by run: messages per second of processor time, ms, KiB, shares."""

    name: str
    server: FunctionServer
    per_s: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    burst_per_s: list[float] = field(default_factory=list)
    each_per_s: list[float] = field(default_factory=list)
    large_per_s: list[float] = field(default_factory=list)
    large_p99_ms: list[float] = field(default_factory=list)
    late_p99_ms: list[float] = field(default_factory=list)
    kib: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


class SubscriberProcess:
    """The process of the subscribers, as a context manager; one command at a time."""

    def __init__(self) -> None:
        paths = os.pathsep.join(str(REPOSITORY / root) for root in ROOTS)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "darkroom_loadtest.clients.subscribers"],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,  # the process exits when it is closed
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C stops this program, which stops the subscribers
        )

    def __enter__(self) -> SubscriberProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def watching(self, server: FunctionServer, audience: Audience, *, times: bool = False) -> Iterator[OpenSockets]:
        """Open the sockets of an audience; `times`: record arrival times."""
        self.send({"open": server.port, "paths": list(audience.paths), "times": times})
        self.receive()
        watch = OpenSockets(self, len(audience.paths), 0)
        watch.expect(audience.snapshots)
        watch.arrived()
        time.sleep(SETTLE_S)
        yield watch
        self.send({"close": True})
        self.receive()

    def send(self, command: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def receive(self) -> SubscriberReport:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkFailed("the subscribers' process failed")
        return SubscriberReport(**json.loads(line))


@dataclass
class OpenSockets:
    """The open sockets, and the number of messages that each has received."""

    subscribers: SubscriberProcess
    sockets: int
    received: int

    def expect(self, messages: int) -> None:
        """Expect that many more messages on each socket."""
        self.received += messages
        self.subscribers.send({"until": self.received, "limit_s": TIMEOUT_S})

    def arrived(self) -> SubscriberReport:
        """Wait until all sockets have the expected messages."""
        seen = self.subscribers.receive()
        if seen.lost or seen.sockets != self.sockets:
            raise BenchmarkFailed(f"of {self.sockets} sockets {seen.lost} were closed, {seen.sockets} are left")
        if seen.late:
            raise BenchmarkFailed(f"{seen.late} sockets did not receive all messages within {TIMEOUT_S} s")
        return seen


class BroadcastJobs:
    """Jobs of darkroom, driven through the ledger in place of submit and a worker."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._op = 0

    def running(self, count: int) -> list[str]:
        """Create running jobs."""
        job_ids = [new_job_id(time.time_ns() // 1_000_000) for _ in range(count)]
        self._run([calls.accept(_submission(job_id), backlog_limit=10_000_000) for job_id in job_ids])
        self._run([calls.claim(job_id, token=TOKEN, worker=BENCH, lease_ms=LEASE_MS) for job_id in job_ids])
        return job_ids

    def completed(self, count: int) -> list[str]:
        """Create completed jobs."""
        job_ids = self.running(count)
        data: dict[str, Any] = {"artifacts": []}
        self._run([calls.finish(job_id, token=TOKEN, outcome=State.COMPLETED, data=data) for job_id in job_ids])
        return job_ids

    def audience(self, job_ids: Sequence[str], sockets: int) -> Audience:
        """That many sockets over the jobs; an event is a step of each job."""

        def step(events: int) -> None:
            batch = []
            for _ in range(events):
                self._op += 1
                batch += [
                    calls.progress(job_id, token=TOKEN, op=self._op, step=self._op, steps=STEPS, publish=True)
                    for job_id in job_ids
                ]
            if len(batch) == 1:
                self._rig.ledger.run(batch[0])
            else:
                self._run(batch)

        paths = [f"/ws/jobs/{job_ids[number % len(job_ids)]}" for number in range(sockets)]
        return Audience(paths, snapshots=1, publish=step)

    def _run(self, batch: Sequence[Call[Any]]) -> None:
        asyncio.run(self._run_each(batch))

    async def _run_each(self, batch: Sequence[Call[Any]]) -> None:
        async with connect_async(self._rig.redis_url) as client:
            ledger = AsyncLedger(client, NAMESPACE)
            for first in range(0, len(batch), AT_ONCE):
                for answer in await ledger.run_each(batch[first : first + AT_ONCE]):
                    if isinstance(answer, DarkroomError):
                        raise BenchmarkFailed(f"the ledger refused: {answer.detail}")


def _submission(job_id: str) -> Submission:
    return Submission(
        job_id=job_id,
        tenant=TENANT,
        model=POOL,
        pool=POOL,
        input={"prompt": "a lighthouse at dusk"},
        fields={},
        run_timeout=LEASE_MS / 1000,
    )


def _channels(rig: Rig, names: Sequence[str], sockets: int) -> Audience:
    """That many sockets of a baseline over Redis channels; an event is a message on each channel."""
    entry = LogEntry(new_job_id(0), 42, JobEvent.PROGRESSED, State.RUNNING, 0, {"progress": 42})
    text = json.dumps(updates.message(entry, Links("", SecretStr(""), 0), now_s=0))

    def publish(events: int) -> None:
        for _ in range(events):
            for first in range(0, len(names), AT_ONCE):
                pipeline = rig.redis.pipeline(transaction=False)
                for name in names[first : first + AT_ONCE]:
                    pipeline.publish(name, text)
                pipeline.execute()

    return Audience([f"/{names[number % len(names)]}" for number in range(sockets)], snapshots=0, publish=publish)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-broadcast", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per server (default: 5)")
    parser.add_argument("--subscribers", type=int, default=1000, help="number of sockets (default: 1000)")
    parser.add_argument("--large", type=int, default=5000, help="sockets of an additional run; 0: none (default: 5000)")
    options = parser.parse_args(arguments)
    cores = Cores.of_this_machine()
    with on_cores(cores.others):
        return run_benchmark(
            lambda rig: measure(rig, cores, runs=options.runs, subscribers=options.subscribers, large=options.large)
        )


def measure(rig: Rig, cores: Cores, *, runs: int, subscribers: int, large: int) -> None:
    """Run all measurements and write the report."""
    began = time.monotonic()
    notes: list[str] = []
    if not allow_sockets(subscribers):
        raise BenchmarkFailed(f"this machine does not allow {subscribers} open sockets (`ulimit -Hn`)")
    if large and not (allow_sockets(large) and _free_memory() > large * ROOM_PER_SOCKET):
        notes.append(f"without the run of {large} sockets: too few files or too little memory")
        large = 0
    rig.ledger.run(calls.announce_pool(POOL, models=[POOL]))
    with on_cores(cores.measured):
        ours = BroadcastTarget("darkroom", rig.serve("result", "darkroom_functions.serve", "result"))
        starlette = BroadcastTarget("starlette", rig.serve("starlette", "baselines.starlette_fanout"))
        bare = BroadcastTarget("websockets", rig.serve("websockets", "baselines.websockets_broadcast"))
    jobs = BroadcastJobs(rig)
    one, many = jobs.running(1), jobs.running(subscribers)
    names = [f"one-{number}" for number in range(subscribers)]
    to_each = {ours.name: jobs.audience(many, subscribers), starlette.name: _channels(rig, names, subscribers)}
    with SubscriberProcess() as process:
        for run in range(1, runs + 1):
            for side in (ours, starlette, bare):
                to_all = jobs.audience(one, subscribers) if side is ours else _channels(rig, ["all"], subscribers)
                _one_by_one(process, side, to_all)
                side.burst_per_s.append(_burst(process, side, to_all, BURST))
                if side.name in to_each:
                    side.each_per_s.append(_burst(process, side, to_each[side.name], BURST_TO_EACH))
                    side.kib.append(_socket_kib(rig, cores, process, side, to_each[side.name]))
                print(
                    f"run {run}: {side.name:10} {side.per_s[-1]:6.0f}/s sequential, 99 % within {side.p99_ms[-1]:.0f} "
                    f"ms; {side.burst_per_s[-1]:6.0f}/s concurrent",
                    flush=True,
                )
            ours.late_p99_ms.append(_late_p99_ms(process, ours, jobs, jobs.audience(one, subscribers)))
        if large:
            _one_by_one_large(process, ours, jobs.audience(one, large))
            _one_by_one_large(process, starlette, _channels(rig, ["all"], large))
    notes += [_shares(side) for side in (ours, starlette, bare)]
    notes.append(f"{time.monotonic() - began:.0f} s in all")
    report(BENCH, _figures(ours, starlette, bare, large), redis=rig.redis_version, notes=notes)


def _figures(ours: BroadcastTarget, starlette: BroadcastTarget, bare: BroadcastTarget, large: int) -> list[Figure]:
    figures = [
        Figure.ratio("broadcast_vs_starlette", ours=ours.per_s, baseline=starlette.per_s, goal=Goal(least=0.8)),
        Figure.ratio("broadcast_vs_websockets", ours=ours.per_s, baseline=bare.per_s),
        Figure(name="broadcast_p99_ms", unit="ms", runs=ours.p99_ms),
        Figure(name="starlette_p99_ms", unit="ms", runs=starlette.p99_ms),
        Figure.ratio("burst_vs_starlette", ours=ours.burst_per_s, baseline=starlette.burst_per_s),
        Figure.ratio("each_vs_starlette", ours=ours.each_per_s, baseline=starlette.each_per_s),
        Figure(name="late_subscriber_p99_ms", unit="ms", runs=ours.late_p99_ms, goal=Goal(most=100)),
        Figure(name="socket_kib", unit="KiB", runs=ours.kib, goal=Goal(most=40)),
        Figure(name="starlette_socket_kib", unit="KiB", runs=starlette.kib),
    ]
    if large:
        figures += [
            Figure.ratio(f"broadcast_vs_starlette_at_{large}", ours=ours.large_per_s, baseline=starlette.large_per_s),
            Figure(name=f"broadcast_p99_ms_at_{large}", unit="ms", runs=ours.large_p99_ms),
        ]
    return figures


def _one_by_one(subscribers: SubscriberProcess, side: BroadcastTarget, audience: Audience) -> None:
    """Throughput and latency of single events."""
    per_s, p99_ms = _broadcast(subscribers, side, audience, ONE_BY_ONE)
    side.per_s.append(per_s)
    side.p99_ms.append(p99_ms)


def _one_by_one_large(subscribers: SubscriberProcess, side: BroadcastTarget, audience: Audience) -> None:
    per_s, p99_ms = _broadcast(subscribers, side, audience, ONE_BY_ONE_LARGE)
    side.large_per_s.append(per_s)
    side.large_p99_ms.append(p99_ms)


def _broadcast(
    subscribers: SubscriberProcess, side: BroadcastTarget, audience: Audience, events: int
) -> tuple[float, float]:
    """Messages per second, and the ms from before an event until 99 % of the sockets have it."""
    seconds, times_ms = 0.0, []
    with subscribers.watching(side.server, audience, times=True) as watch:
        used = _running_s(side.server)
        for _ in range(events):
            watch.expect(1)
            began = time.perf_counter()
            audience.publish(1)
            seen = watch.arrived()
            seconds += seen.ended - began
            times_ms += [1000 * (at - began) for at in seen.arrived[0]]
        used = _running_s(side.server) - used
    side.busy.append(used / seconds)
    return len(audience.paths) * events / used, percentile(times_ms, 99)


def _burst(subscribers: SubscriberProcess, side: BroadcastTarget, audience: Audience, events: int) -> float:
    """Messages per second when that many events are published at once."""
    with subscribers.watching(side.server, audience) as watch:
        watch.expect(events)
        used = _running_s(side.server)
        audience.publish(events)
        watch.arrived()
        return len(audience.paths) * events / (_running_s(side.server) - used)


def _running_s(server: FunctionServer) -> float:
    """Seconds that the process had a core, in nanoseconds if Linux counts them: a rate by this time is independent of
    other load on the machine.
    """
    pid = server.process.pid
    ns = sum(int(thread.read_text().split()[0]) for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return ns / 1e9 if ns else processor_s(pid)


def _late_p99_ms(
    subscribers: SubscriberProcess, side: BroadcastTarget, jobs: BroadcastJobs, audience: Audience
) -> float:
    """From before a socket is opened until it has the terminal message of a finished job, beside idle sockets."""
    times = []
    with subscribers.watching(side.server, audience), JobClient(side.server.port) as client:
        for job_id in jobs.completed(LATE):
            began = time.perf_counter()
            last = client.await_end(job_id)
            times.append(1000 * (last.at - began))
    return percentile(times, 99)


def _socket_kib(
    rig: Rig, cores: Cores, subscribers: SubscriberProcess, side: BroadcastTarget, audience: Audience
) -> float:
    """The memory that an idle socket adds to a new process, in KiB."""
    module, *more = side.server.process.program.command[2:]
    with on_cores(cores.measured):
        server = rig.serve(f"{side.name}-memory", module, *more)
    try:
        with subscribers.watching(server, replace(audience, paths=audience.paths[:WARM_UP])):
            pass
        before = _resident_kib(server.process.pid)
        with subscribers.watching(server, audience):
            return (_resident_kib(server.process.pid) - before) / len(audience.paths)
    finally:
        rig.stop(server.process)


def _resident_kib(pid: int) -> int:
    return int(_field(Path(f"/proc/{pid}/status"), "VmRSS"))


def _free_memory() -> int:
    """Free memory in bytes."""
    return 1024 * int(_field(Path("/proc/meminfo"), "MemAvailable"))


def _field(path: Path, name: str) -> str:
    """The number in the line with that name."""
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return line.split()[1]


def _shares(side: BroadcastTarget) -> str:
    """The share of time that the process was running; its core is idle between two events."""
    return f"{side.name:10} was running for {median(side.busy):4.0%} of the time between an event and its last socket"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
