"""The reaction time of the operator, and its costs with a thousand pools.

A real control plane (`KUBEBUILDER_ASSETS`, as for the operator's tests) and a real operator with its own role. A job is
submitted to an empty pool; the time counts from before the submission until the API server's watch reports the changed
replicas. The cost of a tick is the operator's processor time while the system is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from darkroom.errors import NoPool
from darkroom.jobs import State, UnknownValue, new_job_id
from darkroom.ledger import calls
from darkroom.ledger.calls import Accepted, Submission
from darkroom.ledger.keys import Keys
from darkroom_cli.local.processes import Process

from darkroom_loadtest.measurement.figures import Figure, Goal, percentile, report
from darkroom_loadtest.measurement.rig import (
    NAMESPACE,
    REPOSITORY,
    ROOTS,
    BenchmarkFailed,
    Rig,
    processor_s,
    run_benchmark,
)
from tests.operator.control_plane import ControlPlane, assets
from tests.operator.kubelet import Kubelet
from tests.operator.worker_standins import StandIns
from tests.ports import free_port

BENCH = "operator"

NAMESPACE_OF_POOLS = "bench"
"""The Kubernetes namespace of the pools."""

PAUSE_S = 0.05
"""Pause between two submissions, longer than the reaction to the last one."""

LIMIT_S = 60.0
"""Timeout of operations that take milliseconds."""

SETTLE_LIMIT_S = 600.0
"""Timeout until the operator has created the objects of all pools."""

IDLE_S = 3.0
"""The controllers are idle after this long without an event of a Deployment."""

TICK_S = 1.0

PING = b"*1\r\n$4\r\nPING\r\n"
"""The health check of the subscribed connection, every ten seconds; not part of a tick."""

QUIET_S = 0.05
"""A request after this long without a reply on the same connection starts another round trip; shorter gaps are within
one long pipeline, which Redis answers while it is being sent."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench-operator", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs per measurement (default: 3)")
    parser.add_argument("--pools", type=int, default=1000, help="number of pools (default: 1000)")
    parser.add_argument(
        "--jobs", type=int, default=100, help="submissions per run, each to another pool (default: 100)"
    )
    parser.add_argument("--ticks", type=int, default=15, help="ticks per run of the cost measurement (default: 15)")
    parser.add_argument("--lost", type=int, default=20, help="pods deleted under a running job per run (default: 20)")
    options = parser.parse_args(arguments)
    if options.jobs * options.runs > options.pools:
        parser.error("each submission needs a pool of its own: --pools must be --runs times --jobs or more")
    sizes = Sizes(**vars(options))
    return run_benchmark(lambda rig: measure(rig, sizes))


@dataclass(frozen=True)
class Sizes:
    """The amounts to measure: see the arguments of `main`."""

    runs: int
    pools: int
    jobs: int
    ticks: int
    lost: int


def measure(rig: Rig, sizes: Sizes) -> None:
    """Run all measurements and write the report."""
    programs = assets()
    if programs is None:
        raise BenchmarkFailed("KUBEBUILDER_ASSETS is not a folder with etcd, kube-apiserver and the other programs")
    began = time.monotonic()
    plane = ControlPlane(programs, rig.folder / "control-plane")
    try:
        plane.start()
        with plane.front() as server:
            figures = _measure(rig, plane, server, sizes)
    finally:
        plane.stop()
    notes = [
        f"all with {sizes.pools} pools, on a control plane on the same machine",
        "operator_patch: from before the submission to the API server's watch event with changed replicas",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    report(BENCH, figures, redis=rig.redis_version, notes=notes)


def _measure(rig: Rig, plane: ControlPlane, server: str | None, sizes: Sizes) -> list[Figure]:
    counter = TurnCounter(_port_of(rig.redis_url))
    try:
        _install_definitions(plane)
        operator = _start_operator(rig, plane, server, redis_port=counter.port_behind)
        pid = operator.pid
        began = time.monotonic()
        names = [f"pool-{number}" for number in range(sizes.pools)]
        for name in names:
            _make(plane, _pool(name))
        replicas = ReplicaWatch(plane)
        replicas.start()
        _until(lambda: len(replicas.known) >= sizes.pools, what="all Deployments", limit_s=SETTLE_LIMIT_S)
        print(f"{sizes.pools} pools after {time.monotonic() - began:.0f} s", flush=True)
        _until(
            lambda: rig.redis.scard(Keys(NAMESPACE).pools) >= sizes.pools,
            what="all pools announced",
            limit_s=SETTLE_LIMIT_S,
        )
        cpu_ms, p50, p99 = [], [], []
        untouched = iter(names)
        for run in range(1, sizes.runs + 1):
            _until(lambda: replicas.silent_s > IDLE_S, what="the end of events of Deployments", limit_s=SETTLE_LIMIT_S)
            _await_idle(pid)
            cpu_ms.append(_tick_cost_ms(pid, sizes.ticks))
            took_ms = [_reaction_ms(rig, replicas, next(untouched)) for _ in range(sizes.jobs)]
            p50.append(percentile(took_ms, 50))
            p99.append(percentile(took_ms, 99))
            print(
                f"run {run}: a tick {cpu_ms[-1]:.0f} ms, changed after {p50[-1]:.0f} ms (99 %: {p99[-1]:.0f})",
                flush=True,
            )
        rss_mb = _resident_mb(pid)
        recovery = [_recovery_p99_s(rig, plane, f"lost-{run}", sizes.lost) for run in range(sizes.runs)]
        # A second operator, since the proxy that counts round trips slows it down: the times above are without it.
        rig.stop(operator)
        counter.start()
        _await_idle(_start_operator(rig, plane, server, redis_port=counter.port).pid)
        turns = [counter.turns_per(TICK_S, sizes.ticks) for _ in range(sizes.runs)]
    finally:
        counter.stop()
    return [
        Figure(name="operator_patch_p50_ms", unit="ms", runs=p50),
        Figure(name="operator_patch_p99_ms", unit="ms", runs=p99, goal=Goal(most=250)),
        Figure(name="operator_tick_cpu_ms_1000", unit="ms", runs=cpu_ms, goal=Goal(most=100)),
        Figure(name="operator_rss_mb_1000", unit="MB", runs=[rss_mb], goal=Goal(most=200)),
        Figure(name="operator_redis_roundtrips_1000", unit="round trips", runs=turns, goal=Goal(most=1)),
        Figure(name="recovery_pod_deleted_p99_s", unit="s", runs=recovery, goal=Goal(most=2)),
    ]


def _install_definitions(plane: ControlPlane) -> None:
    """Install the definition of worker pools and the operator's role."""
    shipped = REPOSITORY / "knative" / "base" / "operator"
    for body in yaml.safe_load_all((shipped / "workerpools.yaml").read_text()):
        plane.kubectl("apply", "--server-side", "-f", "-", given=json.dumps(plane.fitted(body)))
    plane.kubectl("wait", "--for=condition=Established", "crd/workerpools.darkroom.dev", "--timeout=60s")
    plane.kubectl("create", "namespace", NAMESPACE_OF_POOLS)
    plane.kubectl("-n", NAMESPACE_OF_POOLS, "apply", "-f", str(shipped / "rbac.yaml"))


def _start_operator(rig: Rig, plane: ControlPlane, server: str | None, *, redis_port: int) -> Process:
    """A leading operator that reaches Redis at this port; `server` is a proxy of the API server."""
    config = rig.folder / "operator.kubeconfig"
    token = plane.token_of(NAMESPACE_OF_POOLS, "darkroom-operator")
    config.write_text(plane.kubeconfig(token, server=server, namespace=NAMESPACE_OF_POOLS))
    port = free_port()
    own = {
        "PYTHONPATH": ":".join(str(REPOSITORY / root) for root in (*ROOTS, "operator")),
        "KUBECONFIG": str(config),
        "DARKROOM_REDIS_URL": rig.redis_url.replace(f":{_port_of(rig.redis_url)}", f":{redis_port}"),
        "DARKROOM_WATCH_NAMESPACE": NAMESPACE_OF_POOLS,
        "DARKROOM_PROBE_PORT": str(port),
        "DARKROOM_RECONCILE_INTERVAL_S": str(TICK_S),
    }
    process = rig.start("operator", "darkroom_operator", own=own)
    rig.wait(lambda: _answers(f"http://127.0.0.1:{port}/readyz"), what=process)
    return process


def _port_of(redis_url: str) -> int:
    port = urlsplit(redis_url).port
    assert port is not None
    return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - our own address
            return bool(reply.status == 200)
    except OSError:
        return False


def _pool(name: str, **spec: object) -> dict[str, object]:
    template = {"spec": {"containers": [{"name": "worker", "image": "worker"}]}}
    body = {"models": [name], "maxReplicas": 100, "template": template, **spec}
    return {
        "apiVersion": "darkroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": name},
        "spec": body,
    }


def _make(plane: ControlPlane, pool: dict[str, object]) -> None:
    plane.ask("POST", f"/apis/darkroom.dev/v1alpha1/namespaces/{NAMESPACE_OF_POOLS}/workerpools", pool)


def _submit(rig: Rig, pool: str) -> str:
    job_id = new_job_id(int(time.time() * 1000))
    job = Submission(
        job_id=job_id,
        tenant="bench",
        model=pool,
        pool=pool,
        input={},
        fields={},
        run_timeout=600.0,
    )
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while not isinstance(accepted := rig.ledger.run(calls.accept(job, backlog_limit=10_000)), Accepted):
        # The operator announces a pool shortly after it has created its Deployment.
        if not isinstance(accepted, NoPool) or time.monotonic() > deadline:
            raise BenchmarkFailed(f"a job was refused: {accepted}")
        time.sleep(0.01)
    return job_id


def _reaction_ms(rig: Rig, replicas: ReplicaWatch, pool: str) -> float:
    """From before the submission until the API server reports more replicas."""
    time.sleep(PAUSE_S)
    began = time.perf_counter()
    _submit(rig, pool)
    _until(lambda: replicas.known.get(f"darkroom-{pool}", (0, 0.0))[0] > 0, what=f"replicas of {pool}", limit_s=LIMIT_S)
    return 1000 * (replicas.known[f"darkroom-{pool}"][1] - began)


def _recovery_p99_s(rig: Rig, plane: ControlPlane, pool: str, lost: int) -> float:
    """From the deletion of a pod whose worker runs a job until that job is pending again."""
    kubelet = Kubelet(plane, NAMESPACE_OF_POOLS, of_pool=pool)
    standins = StandIns(rig.redis_url, NAMESPACE)
    kubelet.workers = standins
    kubelet.start()
    try:
        _make(plane, _pool(pool, minReplicas=lost, scaleDown={"idleSeconds": 3600}))
        _until(lambda: len(standins.pods) >= lost, what=f"workers of {pool}", limit_s=LIMIT_S)
        took: list[float] = []
        for pod in list(standins.pods)[:lost]:
            job_id = _submit(rig, pool)
            if (dropped := standins.claim(pod, job_id)) is not None:
                raise BenchmarkFailed(f"a claim was dropped: {dropped}")
            began = time.perf_counter()
            plane.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE_OF_POOLS}/pods/{pod}", {"gracePeriodSeconds": 0})
            _until(
                lambda job_id=job_id: _state(rig, job_id) is State.PENDING,  # type: ignore[misc]
                what="the job is pending again",
                limit_s=LIMIT_S,
            )
            took.append(time.perf_counter() - began)
            rig.ledger.run(calls.cancel(job_id, tenant=None))
        return percentile(took, 99)
    finally:
        kubelet.stop()


def _state(rig: Rig, job_id: str) -> State | UnknownValue | None:
    record = rig.ledger.job(job_id)
    return None if record is None else record.state


def _tick_cost_ms(pid: int, ticks: int) -> float:
    before = processor_s(pid)
    time.sleep(ticks * TICK_S)
    return 1000 * (processor_s(pid) - before) / ticks


def _resident_mb(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def _await_idle(pid: int) -> None:
    """Wait until the cost of the operator's ticks is stable."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    last = _tick_cost_ms(pid, 5)
    while time.monotonic() < deadline:
        now = _tick_cost_ms(pid, 5)
        if abs(now - last) < 0.1 * max(now, last):
            return
        last = now
    raise BenchmarkFailed("the operator does not become idle")


def _until(condition: Callable[[], object], *, what: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"not within {limit_s} s: {what}")
        time.sleep(0.001)


class ReplicaWatch:
    """The watch of Deployments: `known` has the replicas by name, with the time of the event."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.known: dict[str, tuple[int, float]] = {}
        self._received_at = 0.0
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """Seconds since the last event."""
        return time.perf_counter() - self._received_at

    def _run(self) -> None:
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self._plane.url}/apis/apps/v1/namespaces/{NAMESPACE_OF_POOLS}/deployments?watch=1&timeoutSeconds=3000",
            headers=self._plane.headers,
        )
        context = ssl.create_default_context(cafile=str(self._plane.authority))
        try:
            with urllib.request.urlopen(request, context=context) as reply:  # noqa: S310 - as above
                for line in reply:
                    at = self._received_at = time.perf_counter()
                    deployment = json.loads(line)["object"]
                    name, replicas = deployment["metadata"]["name"], deployment["spec"]["replicas"]
                    if self.known.get(name, (None, 0.0))[0] != replicas:
                        self.known[name] = (replicas, at)
        except OSError:
            return  # the control plane has stopped


@dataclass
class _Line:
    answered_at: float = 0.0


class TurnCounter:
    """A proxy between the operator and Redis that counts round trips: requests after a reply and a short pause."""

    def __init__(self, port_behind: int) -> None:
        self.port = free_port()
        self.port_behind = port_behind
        self._turns = 0
        self._conversations: set[asyncio.Task[None]] = set()
        self._stop: Callable[[], object] = lambda: None
        self._open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="turns", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._open.wait(LIMIT_S)

    def stop(self) -> None:
        self._stop()
        if self._thread.is_alive():
            self._thread.join(10)

    def turns_per(self, tick_s: float, ticks: int) -> float:
        """Round trips per tick."""
        before = self._turns
        time.sleep(tick_s * ticks)
        return (self._turns - before) / ticks

    async def _serve(self) -> None:
        stopping, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stopping.set)
        server = await asyncio.start_server(self._begin, "127.0.0.1", self.port)
        self._open.set()
        await stopping.wait()
        server.close()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.create_task(self._converse(reader, writer))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self.port_behind)
        line = _Line()
        pumps = [
            asyncio.create_task(self._pump(reader, to_there, line, asks=True)),
            asyncio.create_task(self._pump(there, writer, line, asks=False)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        writer.close()
        to_there.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: _Line, *, asks: bool
    ) -> None:
        while piece := await reader.read(64 * 1024):
            now = time.monotonic()
            if not asks:
                line.answered_at = now
            elif now - line.answered_at > QUIET_S and piece != PING:
                self._turns += 1
                line.answered_at = now
            writer.write(piece)
            await writer.drain()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
