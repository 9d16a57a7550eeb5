"""The benchmarks in their shortest form: each runs, prints its table, writes its file, and leaves no process.

Speed is not tested.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from baselines import task
from darkroom.catalogue.models import Catalogue
from darkroom.settings import load
from darkroom_loadtest.bench.run import module_of
from darkroom_loadtest.clients.generator import RequestPlan, RequestRun
from darkroom_loadtest.measurement.figures import Figure, Goal, percentile, table
from darkroom_loadtest.profiling.capacity import UnitCosts
from darkroom_worker.celery_app import configuration
from darkroom_worker.settings import WorkerSettings

from tests.operator.control_plane import needed_assets
from tests.ports import free_port
from tests.waiting import eventually

DEADLINE_S = 300

SHORT: Mapping[str, tuple[str, ...]] = {
    "submit": ("--runs=1", "--requests=64", "--rate-seconds=0.1"),
    "latency": ("--runs=1", "--jobs=3"),
    "worker": ("--runs=1", "--jobs=10", "--engine-seconds=0.2"),
    "courier": ("--runs=1", "--deliveries=40"),
    "policy": ("--runs=1", "--coarse", "--hours=3"),
    "job": ("--runs=1", "--jobs=20"),
    "broadcast": ("--runs=1", "--subscribers=60", "--large=70"),
    "fairness": ("--runs=1", "--flood=300"),
    "operator": ("--runs=1", "--pools=4", "--jobs=3", "--ticks=2", "--lost=2"),
}

FIGURES: Mapping[str, set[str]] = {
    "submit": {
        *("submit_vs_seed", "submit_vs_limit", "submit_p95_ms_at_200rps"),
        *("submit_keys_vs_open", "verify_us"),
    },
    "latency": {"latency_start_p50_ms", "latency_ws_p50_ms", "latency_ws_p99_ms", "latency_vs_celery"},
    "worker": {"worker_overhead_vs_celery_task", "engine_overhead_percent"},
    "courier": {"courier_deliveries_per_s", "courier_p99_ms", "courier_p99_shift_percent"},
    "policy": {"policy_replica_hours_vs_keda", "policy_replica_hours_vs_keda_tuned", "policy_busy_kills"},
    "job": {
        *("job_record_bytes", "job_log_bytes", "job_calls", "step_calls", "run_redis_us", "observe_worker_us"),
        "redis_bytes_waiting_4000_emoji",
    },
    "broadcast": {
        *("broadcast_vs_starlette", "broadcast_vs_websockets", "broadcast_p99_ms", "broadcast_vs_starlette_at_70"),
        *("socket_kib", "late_subscriber_p99_ms"),
    },
    "fairness": {"fair_p95_vs_solo", "fair_weight_error"},
    "operator": {
        *("operator_patch_p50_ms", "operator_patch_p99_ms", "operator_tick_cpu_ms_1000", "operator_rss_mb_1000"),
        *("operator_redis_roundtrips_1000", "recovery_pod_deleted_p99_s"),
    },
}
"""The figures of each benchmark with a stable name; there may be more."""

EVERYTHING = ("name", "value", "unit", "runs", "goal", "ours", "baseline")
"""The members of a figure; the last three are optional."""


class Benchmark:
    """A benchmark's process, in its own folder, which all its processes have in their environment."""

    def __init__(self, name: str, folder: Path, repository: Path, *more: str) -> None:
        self.name = name
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        roots = ("core", "functions", "operator", "worker-images", "courier", "cli", "loadtest", ".")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module_of(name), *SHORT[name], *more],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(str(repository / root) for root in roots),
                "TMPDIR": str(self.temporary),
                "KUBEBUILDER_ASSETS": os.environ.get("KUBEBUILDER_ASSETS", ""),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self) -> tuple[int, str]:
        """The exit status and the output."""
        said, _ = self._process.communicate(timeout=DEADLINE_S)
        return self._process.returncode, said

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def processes(self) -> list[int]:
        """The processes that it started and that still run."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # exited, or of another user
        return [pid for pid in found if pid != self._process.pid]

    def left(self) -> list[object]:
        """The remaining processes and files."""
        return [*self.processes(), *self.temporary.iterdir()]


@pytest.mark.parametrize("name", SHORT)
def test_a_benchmark_prints_and_writes_its_figures_and_leaves_no_process(
    name: str, tmp_path: Path, repository: Path
) -> None:
    if name == "operator":
        needed_assets()
    benchmark = Benchmark(name, tmp_path, repository)

    status, said = benchmark.wait()

    assert status == 0, said
    written = json.loads((tmp_path / ".bench" / f"{name}.json").read_text())
    assert set(written) == {"bench", "machine", "figures"}
    assert written["bench"] == name
    assert "Python" in written["machine"]
    figures: list[dict[str, Any]] = written["figures"]
    assert {figure["name"] for figure in figures} >= FIGURES[name]
    for figure in figures:
        assert {"name", "value", "unit", "runs"} <= set(figure) <= set(EVERYTHING)
        assert isinstance(figure["value"], float)
        assert figure["runs"]
        assert figure["name"] in said
    if name == "job":
        check_costs({figure["name"]: figure["value"] for figure in figures})
    assert benchmark.left() == []


def check_costs(seen: Mapping[str, float]) -> None:
    """The figures that are independent of the machine agree with the capacity model."""
    costs = UnitCosts()
    assert 6 <= seen["job_calls"] < 6.5  # a call with a late reply is repeated
    assert seen["step_calls"] == pytest.approx(1, rel=0.1)
    assert seen["job_log_bytes"] == pytest.approx(costs.log_bytes, rel=0.1)
    assert seen["worker_connections"] == pytest.approx(costs.worker_connections, abs=2)
    places = costs.ended_bytes - seen["job_record_bytes"] - seen["job_log_bytes"]
    assert 0 < places < 1500, "in the index of its tenant, the news, the set of those to be forgotten, the queue"


def test_the_benchmark_of_fairness_fails_without_the_fair_step(tmp_path: Path, repository: Path) -> None:
    benchmark = Benchmark("fairness", tmp_path, repository, "--by-arrival")

    status, said = benchmark.wait()

    assert status == 1, said
    assert "missed: fair_p95_vs_solo, fair_weight_error" in said
    assert benchmark.left() == []


def test_an_interrupted_benchmark_leaves_no_process(tmp_path: Path, repository: Path) -> None:
    benchmark = Benchmark("worker", tmp_path, repository)
    eventually(lambda: len(benchmark.processes()) > 1, what="Redis and a worker")

    benchmark.interrupt()
    status, said = benchmark.wait()

    assert (status, "interrupted" in said) == (130, True), said
    assert benchmark.left() == []


def test_the_baseline_worker_has_the_settings_of_ours(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("DARKROOM_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("DARKROOM_STORE", "file:///nowhere")
    monkeypatch.setenv("DARKROOM_POOL", "instant")
    (model,) = (model for model in Catalogue.load([repository / "loadtest" / "models"]) if model.pool == "instant")
    ours = configuration(load(WorkerSettings), (model,))
    assert {name: ours[name] for name in task.WORKER_SETTINGS} == task.WORKER_SETTINGS


def test_a_ratio_is_the_median_of_pairs_and_has_its_operands() -> None:
    figure = Figure.ratio("a_vs_b", ours=[10.0, 30.0, 80.0], baseline=[10.0, 10.0, 20.0], goal=Goal(least=2))
    assert (figure.value, list(figure.runs)) == (3.0, [1.0, 3.0, 4.0])
    assert table([figure]).splitlines()[-1].split() == ["a_vs_b", "30", "10", "3", "≥", "2", "yes"]


@pytest.mark.parametrize(
    ("goal", "value", "is_met"),
    [
        (Goal(least=2), 2.0, True),
        (Goal(least=2), 1.99, False),
        (Goal(most=10), 10.0, True),
        (Goal(most=10), 10.1, False),
    ],
    ids=str,
)
def test_a_goal_is_met_at_its_limit(goal: Goal, value: float, is_met: bool) -> None:
    assert goal.is_met(value) is is_met


@pytest.mark.parametrize(("percent", "expected"), [(50, 50.0), (95, 95.0), (99, 99.0), (100, 100.0), (1, 1.0)])
def test_a_percentile_is_by_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


async def test_latency_counts_from_the_due_time_of_a_request() -> None:
    """All were due within 0.1 s, and none is answered before a second has passed."""
    answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}"
    go_on = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError):  # the client has closed
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(2)
                await go_on.wait()
                writer.write(answer)

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    plan = RequestPlan(port=port, path="/", body="{}", connections=2, requests=20, limit_s=10, rate=200)
    loading = asyncio.create_task(RequestRun(plan).run())
    await asyncio.sleep(1)
    go_on.set()
    outcome = await loading
    server.close()
    for writer in writers:
        writer.close()
    assert (outcome.answered, outcome.refused) == (20, 0)
    assert outcome.p50_ms >= 900
