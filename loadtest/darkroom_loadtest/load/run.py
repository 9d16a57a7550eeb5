"""`make run-loadtest`: load against a running darkroom, and a report that says whether it held.

A plan is made of a profile and a shape (`profiles.py`) and carried out by locust in processes of its own (`users.py`),
since gevent patches whatever is in its process. Beside it the backlog, the workers and the memory are read where Redis
can be reached. Afterwards each job of the client's own list is asked for, `darkroom audit` looks, and the outcome
(`outcome.py`) is written as a page and as JSON (`load_report.py`). The exit status is 1 where a threshold is passed.
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
from darkroom_cli.client import Unreachable
from darkroom_cli.local import installation
from darkroom_cli.local.data_folder import DataFolder
from darkroom_cli.local.run_record import RunRecord

from darkroom_loadtest.bench.figures import FOLDER, this_machine
from darkroom_loadtest.bench.samples import Sampler, Trend, trends
from darkroom_loadtest.chaos import journal
from darkroom_loadtest.load import report
from darkroom_loadtest.load.gauges import Gauge, Gauges
from darkroom_loadtest.load.outcome import TERMINAL, JobView, Outcome, judge
from darkroom_loadtest.profiling.profiles import PLAN_VARIABLE, PROFILES, SCALES, SHAPES, Plan

LOCUSTFILE = Path(__file__).resolve().parents[1] / "locustfile.py"

HOST = "http://127.0.0.1:8000"
"""Where `darkroom up` serves unless told otherwise."""

MODEL = "sd"
PARAMETERS = '{"width": 64, "height": 64, "steps": 4}'
"""The smallest picture of the stand-in: what is loaded is darkroom, not the engine."""

WAIT_S = 50
"""What callers prefer to wait at most; below the functions' own limit, 55 s."""

CAPACITY_JOBS = 24
"""So many at once, to measure the capacity: more than a few seconds of work, and less than a backlog holds."""

CAPACITY_LIMIT_S = 120
HTTP_LIMIT_S = 30
LATE_S = 10.0
"""What a job that its client has not seen end may take to be seen as ended, when all else is over."""

PAGE = 100
SAMPLE_S = 2.0
FILLS_UP = 0.25
"""Of the run: before, memory grows as everything is used for the first time."""

GONE_S = 30.0
"""After so long without an answer the load is stopped: a restart of darkroom takes less."""

SILENT_PART = 1 / 6
"""After this part of that time the server is reported as away, while the load goes on."""

STOP_GRACE_S = 30
FAILED, INTERRUPTED = 1, 130

WEB_PORT = 8089
"""Locust's own."""


class CannotRun(Exception):
    """What the run needs is not there; the message says what."""


@dataclass
class Seen:
    """What was read beside the load; nothing where Redis could not be reached."""

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
    except CannotRun as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except httpx.HTTPError as error:
        sys.stderr.write(f"{plan.host} does not answer: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def run(plan: Plan, options: argparse.Namespace) -> int:
    """The load, the report, and the exit status."""
    began, started = datetime.now(UTC), time.monotonic()
    capacity = None
    with _client(plan) as client:
        _see_that_it_answers(client)
        if plan.peak_per_s == 0 and options.judge is None:
            capacity = _capacity(client, plan)
            plan = _at_rate(plan, 2 * capacity)
    folder = (options.report or FOLDER / "load" / f"{plan.profile}-{plan.shape}-{began:%Y%m%d-%H%M%S}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    notes = options.judge or folder / "client.jsonl"
    seen = Seen()
    if options.judge is None:
        print(_in_words(plan, options), flush=True)
        notes.write_text("")
        seen = _under_load(plan, options, folder, notes)
    with _client(plan) as client:
        accepted = {note["job"] for note in journal.read(notes) if note["kind"] == "accepted"}
        try:
            jobs = _views(client, accepted)
        except httpx.HTTPError as error:
            jobs = {}
            seen.remark = f"{plan.host} does not answer ({error}): none of the {len(accepted)} jobs could be read"
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
        report.Run(
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
    _say(outcome, page)
    return FAILED if outcome.missed or seen.remark else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run-loadtest", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="smoke", help="who calls, and the thresholds")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="how many over time; each profile has its own")
    parser.add_argument("--host", default=HOST, help=f"where darkroom is ({HOST})")
    parser.add_argument("--duration", type=float, help="seconds; each shape has its own")
    parser.add_argument("--rate", type=float, help="requests a second at the peak; each shape has its own")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--parameters", default=PARAMETERS, help="of each job beside its prompt, as JSON")
    parser.add_argument("--threshold", action="append", default=[], metavar="NAME=MOST", help="NAME=none: any number")
    parser.add_argument("--data", type=Path, help="the data folder of `darkroom up`, for the audit and the backlog")
    parser.add_argument("--no-audit", action="store_true", help="where Redis cannot be reached: a run without its word")
    parser.add_argument("--workers", type=int, default=0, help="processes of locust beside its master, on this machine")
    parser.add_argument("--ui", action="store_true", help="locust's web UI on this machine; Ctrl-C ends it")
    parser.add_argument("--web-port", type=int, default=WEB_PORT, help=f"where the web UI is ({WEB_PORT})")
    parser.add_argument("--report", type=Path, help="the folder to write to (.bench/load/...)")
    parser.add_argument(
        "--judge", type=Path, metavar="CLIENT_JSONL", help="no load: report on that of a cluster's locust"
    )
    parser.add_argument(
        "--write-plan", type=Path, metavar="FILE", help="write the plan, for a cluster's locust, and end"
    )
    parser.add_argument(
        "--server-timeout",
        type=float,
        default=GONE_S,
        metavar="SECONDS",
        help=f"stop when the server does not answer for so long ({GONE_S:g})",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    """Raises ValueError for what cannot be one."""
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
        changes["backlog_at_end"] = None  # it was not read beside that run
    return Plan(
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


def _at_rate(plan: Plan, per_s: float) -> Plan:
    return Plan.decode(json.dumps(json.loads(plan.encode()) | {"peak_per_s": per_s}))


def _in_words(plan: Plan, options: argparse.Namespace) -> str:
    times = [plan.duration_s * part / 10 for part in range(10)]
    rates = (
        " ".join(f"{plan.rate(at):.2g}" for at in times) if plan.peak_per_s else "twice the capacity, measured first"
    )
    return "\n".join(
        [
            f"profile {plan.profile}, shape {plan.shape}: {plan.duration_s:g} s against {plan.host}",
            f"  callers: {', '.join(plan.kinds)}; each asks every {plan.pace_s:g} s",
            f"  requests a second, in tenths of the run: {rates}",
            f"  jobs: model {plan.model}, {json.dumps(plan.parameters)}",
            f"  locust: {' '.join(_locust(plan, options))}",
        ]
    )


def _client(plan: Plan) -> httpx.Client:
    return httpx.Client(base_url=plan.host, timeout=HTTP_LIMIT_S, trust_env=False)


def _see_that_it_answers(client: httpx.Client) -> None:
    try:
        is_ready = client.get("/readyz").is_success
    except httpx.TransportError as error:
        raise CannotRun(f"nobody answers at {client.base_url}: {error}. Is `darkroom up` running?") from error
    if not is_ready:
        raise CannotRun(f"{client.base_url} is not ready")


def _capacity(client: httpx.Client, plan: Plan) -> float:
    """Jobs a second: so many at once, and the time from the first end to the last, in which no worker waited."""
    body = {"prompt": "capacity", **plan.parameters}
    ids = set()
    for _ in range(CAPACITY_JOBS):
        answer = client.post(f"/{plan.model}", json=body)
        if answer.status_code != httpx.codes.ACCEPTED:
            raise CannotRun(f"the capacity cannot be measured: {answer.status_code} {answer.text[:300]}")
        ids.add(answer.json()["job_id"])
    deadline = time.monotonic() + CAPACITY_LIMIT_S
    while True:
        views = _list(client, ids)
        ends = [view.ended for view in views.values() if view.ended is not None]
        if len(ends) == len(ids) and max(ends) > min(ends):
            return (len(ends) - 1) / (max(ends) - min(ends))
        if time.monotonic() > deadline:
            raise CannotRun(f"{len(ids)} jobs have not ended in {CAPACITY_LIMIT_S} s: is a worker running?")
        time.sleep(1)


def _locust(plan: Plan, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", plan.host]
    command += ["--stop-timeout", "10", "--exit-code-on-error", "0"]
    if options.ui:
        command += ["--web-host", "127.0.0.1", "--web-port", str(options.web_port)]
    else:
        command += ["--headless", "--only-summary"]
    if options.workers:
        command += ["--processes", str(options.workers)]
    return command


def _environment(plan: Plan, notes: Path) -> dict[str, str]:
    roots = os.pathsep.join([str(LOCUSTFILE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": roots, PLAN_VARIABLE: plan.encode(), journal.FILE_VARIABLE: str(notes)}


def _under_load(plan: Plan, options: argparse.Namespace, folder: Path, notes: Path) -> Seen:
    """Run locust to its end, with the gauges read beside it."""
    seen = Seen()
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
        raise CannotRun(f"locust ended with {status}; its log is {folder / 'locust.log'}")
    if gauges is not None and sampler is not None:
        seen.gauges = gauges.read
        began = sampler.samples[0].at_s
        whole = sampler.samples[-1].at_s - began
        seen.memory = trends(sampler.samples, after_s=began + FILLS_UP * whole)
    return seen


def _await(process: subprocess.Popen[bytes], plan: Plan, *, gone_s: float) -> tuple[int, str | None]:
    """The exit status of locust, and why it was stopped, if it was.

    A Ctrl-C goes to locust too, which ends in order; the report follows. So does a server that has not answered for
    `gone_s`.
    """
    answered, is_reported = time.monotonic(), False
    try:
        with httpx.Client(base_url=plan.host, timeout=gone_s * SILENT_PART, trust_env=False) as client:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(1), None
                with suppress(httpx.TransportError):
                    client.get("/healthz")  # any status is an answer
                    if is_reported:
                        print(f"{plan.host} answers again", flush=True)
                    answered, is_reported = time.monotonic(), False
                silent_s = time.monotonic() - answered
                if silent_s > gone_s * SILENT_PART and not is_reported:
                    is_reported = True
                    print(f"{plan.host} does not answer; the load stops if that lasts {gone_s:g} s", flush=True)
                if silent_s > gone_s:
                    _stop(process)
                    return 0, f"{plan.host} did not answer for {silent_s:.0f} s: the load was stopped"
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
    """Both, running until the stack ends; none where Redis cannot be reached."""
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
    """The processes of the `darkroom up` on this machine, where there is one."""
    settings = DataFolder((data or Path(os.environ.get("DARKROOM_HOME", ".darkroom"))).absolute())
    try:
        record = RunRecord.read(settings.record)
    except ValueError:
        return {}
    return {each.name: each.pid for each in record.processes} if record else {}


def _views(client: httpx.Client, accepted: set[str]) -> dict[str, JobView]:
    """The jobs of the client's list as the system shows them. Who has not ended gets a little more time."""
    deadline = time.monotonic() + LATE_S
    while True:
        views = _list(client, accepted)
        if all(job in views and views[job].state in TERMINAL for job in accepted) or time.monotonic() > deadline:
            return views
        time.sleep(1)


def _list(client: httpx.Client, wanted: set[str]) -> dict[str, JobView]:
    """Pages, the newest jobs first, until all that are wanted were there, or the pages end."""
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
    """The summary of `darkroom audit` and how much it found; or why nothing is known."""
    if options.no_audit:
        return "not asked for (--no-audit)", None
    command = [sys.executable, "-m", "darkroom_cli", "audit", "--json"]
    command += ["--data", str(options.data)] if options.data else []
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    summary = next((line for line in lines if "findings" in line), None)
    if summary is None:
        return f"it ended with {ended.returncode}: {(ended.stderr or ended.stdout).strip()[-500:]}", None
    return {**summary, "found": [line for line in lines if "finding" in line]}, sum(summary["findings"].values())


def _versions() -> dict[str, str]:
    names = ("darkroom", "locust", "celery", "redis", "functions-framework", "uvicorn")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "from the checkout" if name == "darkroom" else "not installed here"


def _say(outcome: Outcome, page: Path) -> None:
    print(
        f"offered {outcome.offered}, accepted {outcome.accepted}, refused {sum(outcome.refused.values())}; "
        f"{outcome.images_per_min:.0f} images a minute; lost {len(outcome.lost)}, doubled {len(outcome.doubled)}"
    )
    for check in outcome.checks:
        if check.limit is not None:
            value = "not known" if check.value is None else f"{check.value:.4g}"
            print(f"  {'ok  ' if check.is_met else 'MISS'} {check.name}: {value} (at most {check.limit:g})")
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
