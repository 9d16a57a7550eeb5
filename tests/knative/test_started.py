"""The processes of the manifests start with exactly their command, variables and port, and pass their probes."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import redis
import trustme
from darkroom.catalogue.models import Catalogue
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import encode_structured
from darkroom.jobs import new_job_id
from darkroom.ledger import calls
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect
from darkroom_functions.http.routes import JOB_REQUESTS

from tests.driven_jobs import DrivenJobs
from tests.knative.bootstrap_program import PROGRAM
from tests.knative.rendering import SERVING, Object, find, main_container, of_kind, sample, variables_of
from tests.parts import PROOFS, Functions, environment
from tests.ports import free_port
from tests.redis_server import RedisKind
from tests.waiting import eventually

Rendered = dict[str, list[Object]]
Users = dict[str, str]

STOP_DEADLINE_S = 60
PREFIX = "darkroom"

FLOWER_PATHS = (
    *("/", "/workers", "/worker/w-1", "/task/j-1", "/tasks", "/tasks/datatable", "/broker", "/metrics", "/api/workers"),
    *("/api/tasks", "/api/task/types", "/api/task/info/j-1", "/api/queues/length"),
)
"""Paths of Flower that need its password. `/healthcheck`, the path of the probes, needs none."""

SECRETS = ("darkroom-keys", "darkroom-proof", "darkroom-root", "darkroom-flower", "darkroom-s3")

PLACES = ("submit", "jobs", "result", "undelivered", "courier", "flower")


class Started:
    """The only container of a workload as a process. Mounted files are in a folder of the test."""

    def __init__(
        self, workload: Object, objects: list[Object], secrets: dict[str, dict[str, str]], folder: Path
    ) -> None:
        self.container = main_container(workload)
        self.log = folder / "log"
        values = variables_of(objects, self.container, secrets)
        for volume in workload["spec"]["template"]["spec"].get("volumes", []):
            (mount,) = [m for m in self.container["volumeMounts"] if m["name"] == volume["name"]]
            place = folder / volume["name"]
            place.mkdir()
            for name, text in find(objects, "ConfigMap", volume["configMap"]["name"])["data"].items():
                (place / name).write_text(text)
            values = {name: str(place) if value == mount["mountPath"] else value for name, value in values.items()}
        (port,) = self.container["ports"]
        self.port: int = port["containerPort"]
        if workload["apiVersion"] == SERVING:
            values["PORT"] = str(self.port)
        for binding in of_kind(objects, "SinkBinding"):
            subject = binding["spec"]["subject"]
            if (subject["kind"], subject["name"]) == (workload["kind"], workload["metadata"]["name"]):
                values |= {"K_SINK": "http://broker.invalid/darkroom/default", "K_CE_OVERRIDES": ""}
        own = environment("", "")
        self.environment = {
            **values,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, (values.get("PYTHONPATH"), own["PYTHONPATH"]))),
        }

    def start(self) -> None:
        eventually(self._port_is_free, what=f"no other process has port {self.port}")
        program, *arguments = self.container["command"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable if program == "python" else program, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
            )

    def passes(self, probe: str) -> bool:
        """Whether the probe of this name in its manifest succeeds."""
        asked = self.container[probe]["httpGet"]
        assert asked.get("port", self.port) in {self.port, self.container["ports"][0].get("name")}
        if self._process.poll() is not None:
            raise AssertionError(f"it ended:\n{self.log.read_text()}")
        try:
            url = f"http://127.0.0.1:{self.port}{asked['path']}"
            return httpx.get(url, trust_env=False, timeout=10).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.wait(STOP_DEADLINE_S)

    def _port_is_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", self.port))
            except OSError:
                time.sleep(0.2)
                return False
            return True


@pytest.mark.parametrize("users", [RedisKind.EMBEDDED], indirect=True)
@pytest.mark.parametrize("name", PLACES)
def test_each_part_starts_with_its_manifest_and_passes_its_probes(
    name: str, users: Users, rendered: Rendered, bootstrap: ModuleType, tmp_path: Path
) -> None:
    objects = rendered["k3d"]
    kind, version = ("Deployment", "apps/v1") if name in ("courier", "flower") else ("Service", SERVING)
    secrets = {
        "darkroom-redis": users,
        "darkroom-database": {"url": f"sqlite+aiosqlite:///{tmp_path}/history.sqlite"},
        **{each: bootstrap.SECRETS[each]({}) for each in SECRETS},
    }
    part = Started(find(objects, kind, name, version=version), objects, secrets, tmp_path)
    part.start()
    try:
        for probe in ("readinessProbe", "livenessProbe"):
            eventually(lambda probe=probe: part.passes(probe), what=f"{name}: {probe}")  # type: ignore[misc]
    finally:
        status = part.stop()
    assert status == 0, part.log.read_text()


def test_flower_does_not_start_without_credentials(rendered: Rendered, bootstrap: ModuleType, tmp_path: Path) -> None:
    redis_secret = bootstrap.redis_secret({"DARKROOM_NAMESPACE": PREFIX, "REDIS_DATABASE": "0"})
    secrets = {"darkroom-redis": redis_secret, "darkroom-flower": {"basic-auth": ""}}
    objects = rendered["k3d"]
    flower = Started(find(objects, "Deployment", "flower"), objects, secrets, tmp_path)
    flower.start()
    assert flower._process.wait(STOP_DEADLINE_S) != 0
    assert "FLOWER_BASIC_AUTH is not set" in flower.log.read_text()


@pytest.mark.parametrize("users", [RedisKind.EMBEDDED], indirect=True)
def test_flower_requires_its_password(users: Users, rendered: Rendered, bootstrap: ModuleType, tmp_path: Path) -> None:
    secrets = {"darkroom-redis": users, "darkroom-flower": bootstrap.flower_secret({})}
    objects = rendered["k3d"]
    flower = Started(find(objects, "Deployment", "flower"), objects, secrets, tmp_path)
    flower.start()
    try:
        eventually(lambda: flower.passes("readinessProbe"), what="Flower is ready")
        login = secrets["darkroom-flower"]["basic-auth"]
        header = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{flower.port}", trust_env=False, timeout=30) as client:
            for path in FLOWER_PATHS:
                assert client.get(path).status_code == 401, path
            for path in ("/api/tasks", "/metrics"):
                assert client.get(path, headers=header).status_code == 200, path
    finally:
        flower.stop()


def test_without_a_password_a_connection_may_only_ping(users: Users) -> None:
    address = ("127.0.0.1", int(users["port"]))
    commands = (("GET", f"{PREFIX}:never"), ("INFO",), ("PUBLISH", f"{PREFIX}:wake", "1"), ("KEYS", "*"))
    with redis.Redis(*address, username="probe", password="any") as client:
        assert client.ping()
        for command in commands:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
    with redis.Redis(*address) as client:
        for command in (("PING",), *commands):
            with pytest.raises(redis.exceptions.AuthenticationError):
                client.execute_command(*command)
    for password in ("", "any"):
        with (
            redis.Redis(*address, username="default", password=password) as client,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            client.ping()


def test_parts_on_other_hosts_can_connect_to_every_build_of_redis(users: Users) -> None:
    """Protected mode rejects every address except 127.0.0.1; other loopback addresses stand for other hosts."""
    with socket.create_connection(("127.0.0.1", int(users["port"])), source_address=("127.0.0.2", 0)) as remote:
        remote.sendall(b"AUTH probe any\r\nPING\r\n")
        answers = remote.makefile("rb")
        assert [answers.readline(), answers.readline()] == [b"+OK\r\n", b"+PONG\r\n"]


def _is_empty_or_an_event(answer: httpx.Response) -> bool:
    """Knative's rule for a subscriber's response, in binary and in structured mode."""
    assert answer.is_success, answer.text
    names = ("ce-id", "ce-source", "ce-type", "ce-specversion")
    is_event = all(name in answer.headers for name in names)
    return not answer.content or is_event or answer.headers["content-type"] == "application/cloudevents+json"


def _event(kind: str, **more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "type": kind, "source": "/tests", "id": "1", "data": {"model": "flux"}, **more}


def _subscribers(objects: list[Object]) -> set[str]:
    """The Services to which Knative delivers events, and whose responses it validates."""
    found = set()
    for each in (*of_kind(objects, "Trigger"), *of_kind(objects, "Broker")):
        spec = each["spec"]
        for address in (spec.get("subscriber"), spec["delivery"]["deadLetterSink"]):
            if address is not None:
                found.add(address["ref"]["name"])
    return found


@pytest.mark.parametrize("users", [RedisKind.EMBEDDED], indirect=True)
def test_responses_of_subscribers_are_empty_or_an_event(users: Users, rendered: Rendered, tmp_path: Path) -> None:
    """For each address of a Trigger or a dead-letter sink, also for a repeat. Knative would retry anything else."""
    with connect(users["operator"]) as client:
        Ledger(client, PREFIX).run(calls.announce_pool("flux", models=[model.name for model in Catalogue.load()]))
    jobs = DrivenJobs(users["admin"], PREFIX)
    job_id = jobs.completed()
    end = f"{jobs.end_seq(job_id):020}"
    jobs.close()
    common = {"subject": job_id, "data": {}}
    sent = {
        "submit": [_event("dev.darkroom.job.requested")],
        "result": [
            _event("dev.darkroom.job.completed", sequence=end, **common),
            _event("dev.darkroom.job.started", sequence=f"{2:020}", **common),
            _event("dev.darkroom.job.failed", **{**common, "subject": new_job_id(1), "sequence": f"{3:020}"}),
            _event("dev.darkroom.subscription.disabled", **common),
        ],
        "undelivered": [_event("dev.another.event", knativeerrorcode="500")],
    }
    assert sent.keys() == _subscribers(rendered["k3d"])
    for name, events in sent.items():
        function = name.replace("-", "_")
        part = Functions(function, environment=environment(users["functions"], PREFIX), log=tmp_path / name)
        part.start()
        try:
            for event in (each for each in events for _ in range(2)):
                headers, body = encode_structured(PROOFS.prove(Event.decode_structured(event)))
                answer = httpx.post(part.url, headers=headers, content=body, trust_env=False)
                assert _is_empty_or_an_event(answer), (name, event)
        finally:
            part.stop()


def test_the_subscriber_of_the_samples_responds_with_an_empty_body(tmp_path: Path) -> None:
    printer = find(sample("subscription"), "Service", "printer", version=SERVING)
    program, *arguments = main_container(printer)["command"]
    assert program == "python"
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env={"PORT": str(port)}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        send: Callable[[], httpx.Response | None] = lambda: _posted(port)  # noqa: E731 - tried until it listens
        answer = eventually(send, what="the printer listens")
        assert answer is not None
        assert (answer.status_code, answer.content) == (204, b"")
        assert "dev.darkroom.job.completed" in log.read_text()
    finally:
        process.terminate()
    assert process.wait(STOP_DEADLINE_S) == 0


def _posted(port: int) -> httpx.Response | None:
    try:
        return httpx.post(f"http://127.0.0.1:{port}/", json=_event("dev.darkroom.job.completed"), trust_env=False)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("program", ["the job of the samples", "bootstrap"])
def test_a_program_that_runs_as_process_1_handles_sigterm(program: str, tmp_path: Path, rendered: Rendered) -> None:
    """For process 1 of a container the kernel drops SIGTERM unless the process handles it; its default action, which
    any other process ends by, shows as a negative status. Here each program waits for an answer that does not come.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": f"{server.getsockname()[1]}"}
        if program == "bootstrap":
            job = main_container(find(rendered["k3d"], "Job", "darkroom-bootstrap"))
            command = [str(PROGRAM), *job["args"]]
            settings = {**address, **variables_of(rendered["k3d"], job, {}), "SERVICE_ACCOUNT": str(tmp_path)}
            for name in ("token", "namespace"):
                (tmp_path / name).write_text("x")
            trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.crt"))
        else:
            (job,) = sample("job")
            command = main_container(job)["command"][1:]
            settings = {"INGRESS": f"http://127.0.0.1:{server.getsockname()[1]}", "EVENT_ID": "one", "KEY": "dk_any"}
        process = subprocess.Popen([sys.executable, *command], env=settings)
        try:
            server.settimeout(STOP_DEADLINE_S)
            connection, _ = server.accept()
            with connection:
                process.terminate()
                assert process.wait(STOP_DEADLINE_S) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_the_job_of_the_samples_posts_an_event_that_submit_accepts(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """`submit` posts it to the Broker, which is `submit` itself here: a Trigger would deliver the event to it."""
    with connect(redis_url) as client:
        Ledger(client, namespace).run(calls.announce_pool("flux", models=["flux"]))
    submit = Functions("submit", environment=environment(redis_url, namespace), log=tmp_path / "submit")
    submit.environment["K_SINK"] = submit.url
    submit.start()
    try:
        (job,) = sample("job")
        program, *arguments = main_container(job)["command"]
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments],
            env={"INGRESS": submit.url + JOB_REQUESTS, "EVENT_ID": "a-lighthouse-1", "KEY": "dk_any"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with connect(redis_url) as client:
            assert len(list(client.scan_iter(f"{namespace}:job:*"))) == 1
    finally:
        submit.stop()
