"""The throughput of webhooks of one courier, and the effect of one hanging receiver on the others.

Jobs are driven through the ledger, each with its own webhook, so that only the courier is measured. It has its own core
if there are two. When terminal events are *applied*, as the result function does, the deliveries are stored.
Throughput: a backlog of deliveries to twenty receivers, stored while the courier is stopped. Delays: at a constant
rate, from just before `mark_applied` to the complete post at the receiver, with twenty responsive receivers and with
one of them hanging.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from darkroom.jobs import State, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, Submission
from darkroom.webhooks.subscriptions import Webhook
from darkroom_cli.local import redis_server
from darkroom_cli.local.processes import Process

from darkroom_loadtest.measurement.figures import Figure, Goal, percentile, report
from darkroom_loadtest.measurement.rig import BenchmarkFailed, Cores, Rig, on_cores, run_benchmark, signal_group

BENCH = "courier"

POOL = "bench"
RECEIVERS = 20

RATE = 100
"""Deliveries per second while delays are measured: far below the courier's throughput, so that only the deliveries to a
hanging receiver queue.
"""

HANG_TIMEOUT_S = 5.0
"""The courier's timeout, short enough for several timeouts in each run."""

SLICES = 2
"""Slices of a run, alternately with and without the hanging receiver, so that other load affects both."""

END_SEQ = 3
"""The `seq` of the terminal entry in a job's log: accepted, started, completed."""

TIMEOUT_S = 120.0
"""Timeout of all deliveries of a run."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-courier", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs per kind (default: 3)")
    parser.add_argument("--deliveries", type=int, default=2000, help="deliveries per run (default: 2000)")
    options = parser.parse_args(arguments)
    return run_benchmark(lambda rig: measure(rig, runs=options.runs, deliveries=options.deliveries))


def measure(rig: Rig, *, runs: int, deliveries: int) -> None:
    """Run all measurements and write the report."""
    began = time.monotonic()
    cores = Cores.of_this_machine()
    ports = [redis_server.free_port() for _ in range(RECEIVERS + 1)]
    with on_cores(cores.others):
        receivers = rig.start("receivers", "darkroom_loadtest.clients.receivers", *map(str, ports))
        bench = Bench(rig, receivers)
        *good, last = [f"http://127.0.0.1:{port}/" for port in ports]
        hanging = f"{last}hang"
        with on_cores(cores.measured):
            courier = rig.start(
                "courier",
                "darkroom_courier",
                own={
                    "K_SINK": good[0],
                    "DARKROOM_WEBHOOK_ALLOW": "127.0.0.1",
                    "DARKROOM_DELIVERY_RATE": "6000000",  # no limit by the receivers' rate
                    "DARKROOM_DELIVERY_TIMEOUT_S": str(HANG_TIMEOUT_S),
                },
            )
        bench.courier = courier
        bench.delays(good, deliveries=10 * RECEIVERS)  # opens connections and asks the receivers for consent
        per_s, alone, beside = [], [], []
        others = good[:-1]
        for run in range(1, runs + 1):
            per_s.append(bench.throughput(good, deliveries=deliveries))
            without, with_it = [], []
            for _ in range(SLICES):
                without += bench.delays(good, deliveries=deliveries // SLICES, counted=others)
                with_it += bench.delays([*others, hanging], deliveries=deliveries // SLICES, counted=others)
            alone.append(percentile(without, 99))
            beside.append(percentile(with_it, 99))
            print(
                f"run {run}: {per_s[-1]:.0f} deliveries per second; 99 %: {alone[-1]:.1f} ms, {beside[-1]:.1f} ms "
                "beside a hanging receiver",
                flush=True,
            )
    shift = [100 * (more / less - 1) for more, less in zip(beside, alone, strict=True)]
    figures = [
        Figure(name="courier_deliveries_per_s", unit="/s", runs=per_s),
        Figure(name="courier_p99_ms", unit="ms", runs=alone),
        Figure(name="courier_p99_shift_percent", unit="%", runs=shift, goal=Goal(most=10)),
    ]
    notes = [
        f"courier_p99_ms: from applied to posted, at {RATE} deliveries per second to {RECEIVERS} receivers.",
        f"courier_p99_shift_percent: the increase for {RECEIVERS - 1} receivers while the last one hangs.",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


class Bench:
    """Creates jobs, applies their terminal events, and reads the times of delivery."""

    def __init__(self, rig: Rig, receivers: Process) -> None:
        self._rig = rig
        self._log: Path = receivers.program.log
        self.courier = receivers
        rig.ledger.run(calls.announce_pool(POOL, models=[POOL]))

    def throughput(self, urls: Sequence[str], *, deliveries: int) -> float:
        """Deliveries per second, from the first post to the last, of a backlog."""
        signal_group(self.courier, signal.SIGSTOP)
        ids = [self._running(urls[number % len(urls)]) for number in range(deliveries)]
        for job_id in ids:
            self._end(job_id)
        signal_group(self.courier, signal.SIGCONT)
        delivered = sorted(self._await(ids).values())
        return 1000 * (len(delivered) - 1) / (delivered[-1] - delivered[0])

    def delays(self, urls: Sequence[str], *, deliveries: int, counted: Sequence[str] | None = None) -> list[float]:
        """The delays of the deliveries to the counted receivers in ms, at a constant rate."""
        counted = counted or urls
        jobs = [(self._running(url), url) for url in (urls[number % len(urls)] for number in range(deliveries))]
        applied: dict[str, float] = {}
        next_at = time.monotonic()
        for job_id, url in jobs:
            time.sleep(max(0.0, next_at - time.monotonic()))
            next_at += 1 / RATE
            at = self._end(job_id)
            if url in counted:
                applied[job_id] = at
        delivered = self._await(list(applied))
        for job_id, url in jobs:
            if url not in counted:  # leave no deliveries to the next run
                self._rig.ledger.run(calls.delete_job(job_id, tenant="default"))
        return [delivered[job_id] - at for job_id, at in applied.items()]

    def _running(self, url: str) -> str:
        """Create a running job."""
        ledger, job_id = self._rig.ledger, new_job_id(time.time_ns() // 1_000_000)
        job = Submission(
            job_id=job_id,
            tenant="default",
            model=POOL,
            pool=POOL,
            input={"prompt": "a lighthouse at dusk"},
            fields={},
            run_timeout=60,
            webhook=Webhook(url),
        )
        accepted = ledger.run(calls.accept(job, backlog_limit=1_000_000))
        if not isinstance(accepted, Accepted):
            raise BenchmarkFailed(f"a job was refused: {accepted}")
        ledger.run(calls.claim(job_id, token=job_id, worker="bench"))
        return job_id

    def _end(self, job_id: str) -> float:
        """Complete the job, mark it archived, and apply its end; returns the time of the latter (ms)."""
        ledger = self._rig.ledger
        ledger.run(calls.finish(job_id, token=job_id, outcome=State.COMPLETED, data={"artifacts": []}))
        ledger.run(calls.mark_archived(job_id, seq=END_SEQ))
        at = 1000 * time.monotonic()
        ledger.run(calls.mark_applied(job_id, seq=END_SEQ))
        return at

    def _await(self, ids: Sequence[str]) -> dict[str, float]:
        """Wait for all deliveries; returns their times in ms."""
        wanted = set(ids)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            delivered: dict[str, float] = {}
            for line in self._log.read_text().splitlines():
                job_id, _, at = line.partition(" ")
                if job_id in wanted and at:
                    delivered.setdefault(job_id, float(at))
            if len(delivered) == len(wanted):
                return delivered
            if not self.courier.is_alive or time.monotonic() > deadline:
                raise BenchmarkFailed(f"{len(wanted) - len(delivered)} of {len(wanted)} deliveries were not made")
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
