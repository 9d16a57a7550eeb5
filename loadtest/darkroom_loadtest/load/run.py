"""`make run-loadtest`: load against a running darkroom, and a report of the thresholds.

A plan is made from a profile and a shape (`profiles.py`). Locust runs it in processes of its own (`users.py`), since
gevent patches its process. If Redis can be reached, the backlog, the workers and the memory are read meanwhile. Then
the views of all accepted jobs are read, `darkroom audit` runs, and the outcome (`outcome.py`) is written as a page and
as JSON (`report.py`). The exit status is 1 if a threshold is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from darkroom.errors import DarkroomError
from darkroom.ledger.connection import connect
from darkroom_cli.local import installation
from darkroom_cli.local.data_folder import DataFolder
from darkroom_cli.local.run_record import RunRecord
from darkroom_cli.problems import Unreachable

from darkroom_loadtest.load import journal, keys, report
from darkroom_loadtest.load.gauges import Gauge, Gauges
from darkroom_loadtest.load.outcome import TERMINAL, JobView, LoadOutcome, judge
from darkroom_loadtest.load.profiles import PLAN_VARIABLE, PROFILES, SCALES, SHAPES, LoadPlan
from darkroom_loadtest.measurement.figures import FOLDER, this_machine
from darkroom_loadtest.measurement.samples import Sampler, Trend, trends

LOCUSTFILE = Path(__file__).resolve().with_name("locustfile.py")

HOST = "http://127.0.0.1:8000"
"""The default address of `darkroom up`."""

MODEL = "sd"
PARAMETERS = '{"width": 64, "height": 64, "steps": 4}'
"""The smallest picture of the stand-in, to load darkroom and not the engine."""

WAIT_S = 50
"""The `wait` of waiting users; below the functions' limit, 55 s."""

CAPACITY_JOBS = 24
"""Concurrent jobs to measure the capacity: some seconds of work, and less than the limit of the backlog."""

CAPACITY_TIMEOUT_S = 120
HTTP_TIMEOUT_S = 30
LATE_S = 10.0
"""Additional time for unfinished jobs after the run."""

PAGE = 100
SAMPLE_S = 2.0
WARM_UP = 0.25
"""Share of the run that is warm-up, in which memory grows."""

GONE_S = 30.0
"""After this long without a response the load is stopped. A restart of darkroom is shorter."""

SILENT_PART = 1 / 6
"""After this share of that time the server is reported as unavailable, while the load continues."""

STOP_GRACE_S = 30
FAILED, INTERRUPTED = 1, 130

WEB_PORT = 8089
"""Locust's default."""


class CannotRun(Exception):
    """A precondition of the run is missing; the message names it."""


@dataclass
class Observed:
    """Values read during the load; empty if Redis could not be reached."""

    gauges: list[Gauge] = field(default_factory=list)
    memory: list[Trend] = field(default_factory=list)
    remark: str | None = None


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        plan = _plan(options)
    except ValueError as error:
        parser.error(str(error))
    if options.write_plan:
        options.write_plan.write_text(json.dumps(json.loads(plan.encode()), indent=2) + "\n")
        return 0
    if options.dry_run:
        print(_in_words(plan, options))
        return 0
    try:
        return run(plan, options)
    except (CannotRun, keys.NoKeys) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except httpx.HTTPError as error:
        sys.stderr.write(f"{plan.host} is unavailable: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def run(plan: LoadPlan, options: argparse.Namespace) -> int:
    """Run the load and write the report; returns the exit status."""
    began, started = datetime.now(UTC), time.monotonic()
    capacity = None
    with _client(plan, next(keys.in_turn(keys.read(os.environ)))) as client:
        _check_ready(client)
        if plan.peak_per_s == 0 and options.judge is None:
            capacity = _capacity(client, plan)
            plan = _at_rate(plan, 2 * capacity)
    folder = (options.report or FOLDER / "load" / f"{plan.profile}-{plan.shape}-{began:%Y%m%d-%H%M%S}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    notes = options.judge or folder / "client.jsonl"
    seen = Observed()
    if options.judge is None:
        print(_in_words(plan, options), flush=True)
        notes.write_text("")
        seen = _under_load(plan, options, folder, notes)
    with ExitStack() as stack:
        clients = [stack.enter_context(_client(plan, key)) for key in keys.read(os.environ) or (None,)]
        accepted = {note["job"] for note in journal.read(notes) if note["kind"] == "accepted"}
        try:
            jobs = _views(clients, accepted)
        except httpx.HTTPError as error:
            jobs = {}
            seen.remark = f"{plan.host} is unavailable ({error}): none of the {len(accepted)} jobs could be read"
            print(seen.remark, flush=True)
    audit, findings = _audit(options)
    outcome = judge(
        journal.read(notes),
        jobs,
        audit_findings=findings,
        backlog_at_end=seen.gauges[-1].backlog if seen.gauges else None,
        thresholds=plan.thresholds,
    )
    page = report.write(
        report.LoadRun(
            plan=plan,
            outcome=outcome,
            began=f"{began:%Y-%m-%d %H:%M} UTC",
            wall_s=time.monotonic() - started,
            capacity_per_s=capacity,
            gauges=seen.gauges,
            memory=seen.memory,
            audit=audit,
            remark=seen.remark,
            versions=_versions(),
            machine=this_machine(),
            load_average=" ".join(f"{load:.1f}" for load in os.getloadavg()),
        ),
        folder,
    )
    _print(outcome, page)
    return FAILED if outcome.missed or seen.remark else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run-loadtest", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="smoke", help="kinds of users, and thresholds")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="load over time (default: the profile's)")
    parser.add_argument("--host", default=HOST, help=f"address of darkroom (default: {HOST})")
    parser.add_argument("--duration", type=float, help="duration in seconds (default: the shape's)")
    parser.add_argument("--rate", type=float, help="requests per second at the peak (default: the shape's)")
    parser.add_argument("--model", default=MODEL, help=f"model of the jobs (default: {MODEL})")
    parser.add_argument("--parameters", default=PARAMETERS, help="parameters of each job besides its prompt, as JSON")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=MAX",
        help="change a threshold; NAME=none removes the limit",
    )
    parser.add_argument("--data", type=Path, help="the data folder of `darkroom up`, for the audit and the backlog")
    parser.add_argument(
        "--no-audit", action="store_true", help="run without the audit, for a server whose Redis cannot be reached"
    )
    parser.add_argument("--workers", type=int, default=0, help="number of locust worker processes on this machine")
    parser.add_argument("--ui", action="store_true", help="serve locust's web UI on this machine until Ctrl-C")
    parser.add_argument("--web-port", type=int, default=WEB_PORT, help=f"port of the web UI (default: {WEB_PORT})")
    parser.add_argument("--report", type=Path, help="the folder of the report (default: .bench/load/...)")
    parser.add_argument(
        "--judge", type=Path, metavar="CLIENT_JSONL", help="make no load; report on a journal of locust in a cluster"
    )
    parser.add_argument(
        "--write-plan", type=Path, metavar="FILE", help="write the plan for locust in a cluster, and exit"
    )
    parser.add_argument(
        "--server-timeout",
        type=float,
        default=GONE_S,
        metavar="SECONDS",
        help=f"stop after this long without a response (default: {GONE_S:g})",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and do nothing")
    return parser


def _plan(options: argparse.Namespace) -> LoadPlan:
    """The plan of the options. Raises ValueError."""
    profile = PROFILES[options.profile]
    shape = options.shape or profile.shape
    duration_s, peak_per_s = SCALES[shape]
    parameters = json.loads(options.parameters)
    if not isinstance(parameters, dict):
        raise ValueError("--parameters must be a JSON object")
    changes: dict[str, float | None] = {}
    for text in options.threshold:
        name, _, most = text.partition("=")
        changes[name] = None if most == "none" else float(most)
    if options.no_audit:
        changes["audit_findings"] = changes["backlog_at_end"] = None
    if options.judge:
        changes["backlog_at_end"] = None  # unknown for a past run
    return LoadPlan(
        profile=options.profile,
        shape=shape,
        host=options.host.rstrip("/"),
        duration_s=options.duration or duration_s,
        peak_per_s=options.rate or peak_per_s,
        pace_s=profile.pace_s,
        spawn_per_s=profile.spawn_per_s,
        kinds=profile.kinds,
        model=options.model,
        parameters=parameters,
        wait_s=WAIT_S,
        settle_s=2 * (profile.thresholds.settle_s or 60),
        thresholds=profile.thresholds.but(changes),
    )


def _at_rate(plan: LoadPlan, per_s: float) -> LoadPlan:
    return LoadPlan.decode(json.dumps(json.loads(plan.encode()) | {"peak_per_s": per_s}))


def _in_words(plan: LoadPlan, options: argparse.Namespace) -> str:
    times = [plan.duration_s * part / 10 for part in range(10)]
    rates = (
        " ".join(f"{plan.rate(at):.2g}" for at in times)
        if plan.peak_per_s
        else "twice the capacity, which is measured first"
    )
    return "\n".join(
        [
            f"profile {plan.profile}, shape {plan.shape}: {plan.duration_s:g} s against {plan.host}",
            f"  users: {', '.join(plan.kinds)}; each submits every {plan.pace_s:g} s",
            f"  requests per second, by tenth of the run: {rates}",
            f"  jobs: model {plan.model}, {json.dumps(plan.parameters)}",
            f"  locust: {' '.join(_locust(plan, options))}",
        ]
    )


def _client(plan: LoadPlan, key: str | None) -> httpx.Client:
    return httpx.Client(base_url=plan.host, timeout=HTTP_TIMEOUT_S, trust_env=False, headers=keys.headers(key))


def _check_ready(client: httpx.Client) -> None:
    """Raises CannotRun where jobs cannot be read. Probes are not answered to callers from outside."""
    try:
        answer = client.get("/api/v1/generation-jobs/", params={"limit": "1"})
    except httpx.TransportError as error:
        raise CannotRun(f"no server answers at {client.base_url}: {error}. Is `darkroom up` running?") from error
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        why = answer.json().get("detail", answer.status_code)
        raise CannotRun(f"{client.base_url}: {why}: set {keys.ONE}, or {keys.SEVERAL} to a file with a key per line")
    if not answer.is_success:
        raise CannotRun(f"{client.base_url} is not ready: {answer.status_code} {answer.text[:300]}")


def _capacity(client: httpx.Client, plan: LoadPlan) -> float:
    """Jobs per second, from the first end to the last of concurrent jobs, while no worker is idle."""
    body = {"prompt": "capacity", **plan.parameters}
    ids = set()
    for _ in range(CAPACITY_JOBS):
        answer = client.post(f"/{plan.model}", json=body)
        if answer.status_code != httpx.codes.ACCEPTED:
            raise CannotRun(f"the capacity cannot be measured: {answer.status_code} {answer.text[:300]}")
        ids.add(answer.json()["job_id"])
    deadline = time.monotonic() + CAPACITY_TIMEOUT_S
    while True:
        views = _list(client, ids)
        ends = [view.ended for view in views.values() if view.ended is not None]
        if len(ends) == len(ids) and max(ends) > min(ends):
            return (len(ends) - 1) / (max(ends) - min(ends))
        if time.monotonic() > deadline:
            raise CannotRun(f"{len(ids)} jobs have not finished in {CAPACITY_TIMEOUT_S} s: is a worker running?")
        time.sleep(1)


def _locust(plan: LoadPlan, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", plan.host]
    command += ["--stop-timeout", "10", "--exit-code-on-error", "0"]
    if options.ui:
        command += ["--web-host", "127.0.0.1", "--web-port", str(options.web_port)]
    else:
        command += ["--headless", "--only-summary"]
    if options.workers:
        command += ["--processes", str(options.workers)]
    return command


def _environment(plan: LoadPlan, notes: Path) -> dict[str, str]:
    roots = os.pathsep.join([str(LOCUSTFILE.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": roots, PLAN_VARIABLE: plan.encode(), journal.FILE_VARIABLE: str(notes)}


def _under_load(plan: LoadPlan, options: argparse.Namespace, folder: Path, notes: Path) -> Observed:
    """Run locust, and read the gauges meanwhile."""
    seen = Observed()
    with ExitStack() as stack:
        gauges, sampler = _gauges(options, stack)
        log = stack.enter_context((folder / "locust.log").open("wb"))
        output = None if options.ui else log
        process = subprocess.Popen(
            _locust(plan, options),
            env=_environment(plan, notes),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        status, seen.remark = _await(process, plan, gone_s=options.server_timeout)
    if status != 0 and not options.ui:
        raise CannotRun(f"locust exited with {status}; its log is {folder / 'locust.log'}")
    if gauges is not None and sampler is not None:
        seen.gauges = gauges.read
        began = sampler.samples[0].at_s
        whole = sampler.samples[-1].at_s - began
        seen.memory = trends(sampler.samples, after_s=began + WARM_UP * whole)
    return seen


def _await(process: subprocess.Popen[bytes], plan: LoadPlan, *, gone_s: float) -> tuple[int, str | None]:
    """The exit status of locust, and the reason if it was stopped early.

    A Ctrl-C, or a server without a response for `gone_s`, stops locust in order; the report follows.
    """
    answered, is_reported = time.monotonic(), False
    try:
        with httpx.Client(base_url=plan.host, timeout=gone_s * SILENT_PART, trust_env=False) as client:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(1), None
                with suppress(httpx.TransportError):
                    client.get("/healthz")  # any status is a response
                    if is_reported:
                        print(f"{plan.host} responds again", flush=True)
                    answered, is_reported = time.monotonic(), False
                silent_s = time.monotonic() - answered
                if silent_s > gone_s * SILENT_PART and not is_reported:
                    is_reported = True
                    print(
                        f"{plan.host} is unavailable; the load stops after {gone_s:g} s without a response", flush=True
                    )
                if silent_s > gone_s:
                    _stop(process)
                    return 0, f"{plan.host} was unavailable for {silent_s:.0f} s: the load was stopped"
    except KeyboardInterrupt:
        _stop(process)
        return 0, None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _gauges(options: argparse.Namespace, stack: ExitStack) -> tuple[Gauges | None, Sampler | None]:
    """Both, running until the stack closes; None if Redis cannot be reached."""
    try:
        found = installation.find(options.data)
        client = stack.enter_context(connect(found.redis_url))
        client.ping()
    except (DarkroomError, Unreachable, OSError) as error:
        print(f"backlog and memory are not read: {error}", flush=True)
        return None, None
    gauges = stack.enter_context(Gauges(client, found.namespace))
    return gauges, stack.enter_context(Sampler(lambda: _pids(options.data), redis=client, every_s=SAMPLE_S))


def _pids(data: Path | None) -> Mapping[str, int]:
    """The processes of the `darkroom up` on this machine; empty without one."""
    settings = DataFolder((data or Path(os.environ.get("DARKROOM_HOME", ".darkroom"))).absolute())
    try:
        record = RunRecord.read(settings.record)
    except ValueError:
        return {}
    return {each.name: each.pid for each in record.processes} if record else {}


def _views(clients: Sequence[httpx.Client], accepted: set[str]) -> dict[str, JobView]:
    """The views of the accepted jobs, which each client's tenant lists. Unfinished jobs get LATE_S more time."""
    deadline = time.monotonic() + LATE_S
    while True:
        views: dict[str, JobView] = {}
        for client in clients:
            views |= _list(client, accepted - views.keys())
        if all(job in views and views[job].state in TERMINAL for job in accepted) or time.monotonic() > deadline:
            return views
        time.sleep(1)


def _list(client: httpx.Client, wanted: set[str]) -> dict[str, JobView]:
    """Read pages, newest jobs first, until all wanted jobs are found or the pages end."""
    found: dict[str, JobView] = {}
    query: dict[str, str] = {"limit": str(PAGE)}
    while wanted - found.keys():
        answer = client.get("/api/v1/generation-jobs/", params=query)
        answer.raise_for_status()
        page = answer.json()
        found |= {view["id"]: _view(view) for view in page["jobs"] if view["id"] in wanted}
        if not page.get("next"):
            break
        query["after"] = page["next"]
    return found


def _view(raw: Mapping[str, Any]) -> JobView:
    return JobView(
        id=raw["id"],
        state=raw["state"],
        created=_seconds(raw["created_at"]) or 0.0,
        started=_seconds(raw["started_at"]),
        ended=_seconds(raw["ended_at"]),
        worker=raw["worker"],
    )


def _seconds(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


def _audit(options: argparse.Namespace) -> tuple[dict[str, Any] | str, int | None]:
    """The summary of `darkroom audit` and its number of findings; or the reason why they are unknown."""
    if options.no_audit:
        return "skipped (--no-audit)", None
    command = [sys.executable, "-m", "darkroom_cli", "audit", "--json"]
    command += ["--data", str(options.data)] if options.data else []
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    summary = next((line for line in lines if "findings" in line), None)
    if summary is None:
        return f"it exited with {ended.returncode}: {(ended.stderr or ended.stdout).strip()[-500:]}", None
    return {**summary, "found": [line for line in lines if "finding" in line]}, sum(summary["findings"].values())


def _versions() -> dict[str, str]:
    names = ("darkroom", "locust", "celery", "redis", "functions-framework", "uvicorn")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "from the checkout" if name == "darkroom" else "not installed here"


def _print(outcome: LoadOutcome, page: Path) -> None:
    print(
        f"offered {outcome.offered}, accepted {outcome.accepted}, refused {sum(outcome.refused.values())}; "
        f"{outcome.images_per_min:.0f} images per minute; lost {len(outcome.lost)}, doubled {len(outcome.doubled)}"
    )
    for check in outcome.checks:
        if check.limit is not None:
            value = "unknown" if check.value is None else f"{check.value:.4g}"
            print(f"  {'ok  ' if check.is_met else 'MISS'} {check.name}: {value} (at most {check.limit:g})")
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
