"""A load test: it passes on a correct system, fails by its thresholds, and writes a page that a browser shows.

The system is real, with an instant engine. gevent is confined to locust's processes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from darkroom.access.credentials import Credential
from darkroom.ledger import calls
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect
from darkroom_loadtest.load.profiles import SHAPES, LoadPlan

from tests.conftest import RedisServers
from tests.knative.rendering import kubectl
from tests.parts import ROOTS, Functions, Part, environment
from tests.ports import free_port
from tests.redis_server import RedisKind
from tests.waiting import eventually

POOL = "instant"
LIMIT_S = 240
"""A short run takes ten seconds."""

HOWEVER_SLOW = [f"--threshold={name}=none" for name in ("submit_p95_ms", "end_to_end_p95_s", "settle_s")]
"""Speed is not tested."""


@dataclass(frozen=True)
class System:
    """The system's addresses for a run."""

    url: str
    variables: dict[str, str]
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        common = ["--host", self.url, "--model", POOL, "--parameters", "{}"]
        return [sys.executable, "-m", "darkroom_loadtest.load.run", *common, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command until it exits."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


@pytest.fixture(scope="module")
def system(redis_servers: RedisServers, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """All parts, as in `darkroom up` with keys. The load's keys belong to two tenants."""
    folder = tmp_path_factory.mktemp("load")
    namespace = f"load-{secrets.token_hex(4)}"
    redis_url = redis_servers(RedisKind.EMBEDDED).url
    variables = environment(
        redis_url, namespace, DARKROOM_MODELS=str(repository / "loadtest" / "models"), DARKROOM_AUTH="keys"
    )
    root = Credential.generate().text
    with ExitStack() as stack:
        client = stack.enter_context(connect(redis_url))
        ledger = Ledger(client, namespace)
        ledger.run(calls.announce_pool(POOL, models=[POOL]))
        functions = Functions("all", environment=variables, log=folder / "functions.log")
        stack.callback(functions.stop)
        functions.start()
        courier = Part(
            "darkroom_courier",
            environment={**variables, "K_SINK": f"{functions.url}/events", "DARKROOM_ROOT_KEY": root},
            log=folder / "courier.log",
        )
        worker = Part("darkroom_worker", environment={**variables, "DARKROOM_POOL": POOL}, log=folder / "worker.log")
        for part in (courier, worker):
            stack.callback(part.stop)
            part.start()
        eventually(lambda: ledger.run(calls.observe(POOL)).idle, what="a worker that is ready")
        roots = os.pathsep.join(str(repository / root) for root in (*ROOTS, "loadtest"))
        file = folder / "keys"
        file.write_text("\n".join(["# one per tenant", *tenant_keys(functions.url, root)]))
        variables = {**variables, "PYTHONPATH": roots, "HOME": str(folder), "DARKROOM_LOAD_KEYS": str(file)}
        yield System(functions.url, variables, folder)


def tenant_keys(url: str, root: str) -> list[str]:
    """The keys of two new tenants."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {root}"}, trust_env=False) as client:
        eventually(lambda: client.get("/api/v1/tenants").is_success, what="the root key to be published")
        keys = []
        for tenant in ("studio", "agency"):
            client.post("/api/v1/tenants", json={"name": tenant}).raise_for_status()
            body = {"tenant": tenant, "name": "load", "scopes": ["submit", "read", "cancel"]}
            keys.append(client.post("/api/v1/keys", json=body).raise_for_status().json()["key"])
        return keys


@dataclass(frozen=True)
class Report:
    """The files of a run."""

    ended: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return found


def test_a_load_without_a_key_names_the_variables_to_set(system: System) -> None:
    without = replace(system, variables={**system.variables, "DARKROOM_LOAD_KEYS": ""})
    ended = without.run("--no-audit")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.endswith("set DARKROOM_KEY, or DARKROOM_LOAD_KEYS to a file with a key per line")


def test_a_dead_server_ends_the_run_with_a_report(system: System, tmp_path: Path) -> None:
    dying = Functions("all", environment=system.variables, log=tmp_path / "functions.log")
    dying.start()
    report = tmp_path / "report"
    process = subprocess.Popen(
        [
            *replace(system, url=dying.url).command("--duration=120", "--rate=3", "--report", str(report)),
            "--server-timeout=6",
        ],
        cwd=system.folder,
        env=system.variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        notes = report / "client.jsonl"
        eventually(lambda: notes.exists() and "accepted" in notes.read_text(), what="the first job")
        dying.signal(signal.SIGKILL)
        printed, _ = process.communicate(timeout=LIMIT_S)
    finally:
        dying.stop()
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert f"{dying.url} is unavailable; the load stops after 6 s without a response" in printed
    figures = json.loads((report / "report.json").read_text())
    assert "the load was stopped" in figures["remark"] or "none of the" in figures["remark"]
    assert (report / "report.html").exists()


@pytest.fixture(scope="module")
def smoke(system: System) -> Report:
    """The smoke profile, shortened."""
    report = system.folder / "smoke"
    return Report(system.run("--duration=8", "--rate=3", "--report", str(report), *HOWEVER_SLOW), report)


def test_the_smoke_profile_passes_on_a_correct_system(smoke: Report) -> None:
    assert smoke.ended.returncode == 0, smoke.ended.stdout + smoke.ended.stderr
    outcome = smoke.figures["outcome"]
    assert smoke.figures["passed"]
    assert outcome["accepted"] > 5
    assert outcome["accepted"] == outcome["offered"] == sum(outcome["ends"].values())
    assert (outcome["lost"], outcome["doubled"], outcome["unnotified"], outcome["errors"]) == ([], [], [], {})
    assert set(outcome["by_way"]) == set(smoke.figures["plan"]["kinds"]) - {"hostile"}
    assert smoke.figures["audit"]["jobs"] >= outcome["accepted"]
    assert smoke.figures["audit"]["findings"] == {}
    assert len(smoke.figures["gauges"]) > 3


def test_all_hostile_input_was_refused(smoke: Report) -> None:
    answers = [answer for counts in smoke.figures["outcome"]["hostile"].values() for answer in counts]
    assert len(smoke.figures["outcome"]["hostile"]) > 20
    assert all(re.fullmatch(r"4\d\d", answer) for answer in answers)
    assert any(case.startswith("credential:") for case in smoke.figures["outcome"]["hostile"])


def test_the_jobs_of_two_tenants_were_followed_and_no_key_was_written(smoke: Report, system: System) -> None:
    keys = Path(system.variables["DARKROOM_LOAD_KEYS"]).read_text().splitlines()[1:]
    for key in keys:
        listed = httpx.get(
            f"{system.url}/api/v1/generation-jobs/", headers={"authorization": f"Bearer {key}"}, trust_env=False
        )
        assert listed.json()["jobs"]
        assert [path.name for path in smoke.folder.iterdir() if key in path.read_text()] == []


def test_a_browser_shows_the_report_without_an_error(smoke: Report, tmp_path: Path) -> None:
    assert "Passed: every threshold is met." in in_a_browser(smoke.page, tmp_path)


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - {"smoke"}))
def test_a_browser_shows_the_report_of_every_shape(system: System, shape: str, tmp_path: Path) -> None:
    report = Report(
        system.run("--profile=jobs", f"--shape={shape}", "--duration=4", "--rate=4", "--report", str(tmp_path / "run")),
        tmp_path / "run",
    )
    assert report.figures["outcome"]["lost"] == [], report.ended.stdout + report.ended.stderr
    assert f"jobs, {shape}" in in_a_browser(report.page, tmp_path)


def in_a_browser(page: Path, folder: Path) -> str:
    """The page as rendered by a browser, with all plots and without errors."""
    chromium = shutil.which("chromium")
    if chromium is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed")
    assert chromium, "chromium is not installed"
    shown = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom"),
            page.as_uri(),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("<svg") == 6
    return shown.stdout


def test_the_page_is_self_contained(smoke: Report) -> None:
    page = smoke.page.read_text()
    assert "<script" not in page
    assert set(re.findall(r'(?:src|href)="(?!#)([^"]*)"', page)) == {"data:,"}
    # matplotlib's markup has internal links.
    assert all(target.startswith("#") for target in re.findall(r'xlink:href="([^"]*)"', page))


def test_a_run_that_exceeds_a_threshold_fails(system: System, tmp_path: Path) -> None:
    """With a master of locust and two workers, whose notes are merged."""
    ended = system.run(
        "--profile=jobs",
        "--duration=4",
        "--rate=4",
        "--workers=2",
        "--threshold=submit_p95_ms=0",
        f"--report={tmp_path}",
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert "MISS submit_p95_ms" in said
    figures = Report(ended, tmp_path).figures
    assert not figures["passed"]
    assert figures["outcome"]["accepted"] == figures["outcome"]["offered"] > 0, said
    assert (figures["outcome"]["lost"], figures["outcome"]["unnotified"]) == ([], []), said


def test_the_web_ui_is_served_until_ctrl_c_before_the_report(system: System, tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            system.command("--ui", f"--web-port={port}", f"--report={tmp_path}"),
            cwd=system.folder,
            env=system.variables,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(
            lambda: _answers(f"http://127.0.0.1:{port}/") or process.poll() is not None, what="the web UI to answer"
        )
        assert process.poll() is None, (tmp_path / "said").read_text()
        process.send_signal(signal.SIGINT)
        # No job was accepted, so the latencies are unknown: a run without load does not pass.
        assert process.wait(LIMIT_S) == 1, (tmp_path / "said").read_text()
        assert (tmp_path / "report.html").exists()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_run_without_a_server_is_reported(system: System, tmp_path: Path) -> None:
    ended = system.run(f"--host=http://127.0.0.1:{free_port()}", f"--report={tmp_path}")
    assert ended.returncode == 1
    assert "Is `darkroom up` running?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_plan_of_a_cluster_can_be_written(system: System, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    ended = system.run(f"--write-plan={plan}", "--profile=jobs", "--rate=20")
    assert ended.returncode == 0, ended.stderr
    assert LoadPlan.decode(plan.read_text()).peak_per_s == 20


def test_a_dry_run_prints_the_plan(system: System) -> None:
    ended = system.run("--dry-run", "--profile=ten-users")
    assert ended.returncode == 0
    assert "profile ten-users" in ended.stdout
    assert "locustfile.py" in ended.stdout


def test_a_journal_of_a_cluster_is_judged_without_load(smoke: Report, system: System, tmp_path: Path) -> None:
    clients = smoke.folder / "client.jsonl"
    ended = system.run(f"--judge={clients}", f"--report={tmp_path}", *HOWEVER_SLOW)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert Report(ended, tmp_path).figures["outcome"]["accepted"] == smoke.figures["outcome"]["accepted"]


def test_the_cluster_has_all_imports_of_locust(repository: Path, tmp_path: Path) -> None:
    """With only the files of the ConfigMap and the plan: darkroom is not in that image."""
    program = kubectl()
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("no kubectl of 1.21 or newer on the PATH")
    assert program, "no kubectl of 1.21 or newer on the PATH"
    rendered = subprocess.run(
        [program, "kustomize", repository / "loadtest"], capture_output=True, text=True, check=True, timeout=LIMIT_S
    ).stdout
    objects = [each for each in yaml.safe_load_all(rendered) if each]
    (files,) = (each["data"] for each in objects if each["kind"] == "ConfigMap")
    folder = tmp_path / "darkroom_loadtest" / "load"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    listed = subprocess.run(
        [sys.executable, "-P", "-m", "locust", "--locustfile", folder / "locustfile.py", "--list"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "DARKROOM_LOAD_PLAN": files["plan.json"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert "BatchUser" in listed.stdout + listed.stderr
    jobs = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "Job"}
    (locust,) = jobs["load-master"]["template"]["spec"]["containers"]
    assert f"--expect-workers {jobs['load-worker']['parallelism']}" in locust["command"][-1]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False
