"""The commands and receivers of docs/webhooks.md, against `darkroom up`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.system.running import System
from tests.waiting import eventually

SMALL = {"model": "sd", "width": 64, "height": 64, "steps": 1}
JOBS = "/api/v1/generation-jobs/"
SUBSCRIPTIONS = "/api/v1/subscriptions"


class Receiver:
    """One of the documented receivers, as a process."""

    def __init__(self, command: list[str], *, port: int, folder: Path, **variables: str) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self._log = folder / f"receiver-{port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env={"PATH": os.environ["PATH"], **variables}, stdout=log, stderr=subprocess.STDOUT
            )

    def is_there(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            httpx.get(self.url, trust_env=False)
        except httpx.TransportError:
            return False
        return True

    def of(self, job_id: str) -> list[str]:
        """Its output about a job: a line for each event that it accepted."""
        return [line for line in self._log.read_text().splitlines() if job_id in line]

    def await_events(self, job_id: str, *events: str) -> None:
        """Wait until it has accepted exactly these events, in this order."""
        lines = [f"dev.darkroom.job.{event} {job_id} {event}" for event in events]
        eventually(lambda: len(self.of(job_id)) >= len(lines), what=f"{events} of {job_id} to be received")
        assert self.of(job_id) == lines

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


StartReceiver = Callable[..., Receiver]


@pytest.fixture
def start(system: System, repository: Path) -> Iterator[StartReceiver]:
    """Starts `receive_webhooks.<kind>`, which trusts `secret` (py) or the keys of the system (mjs)."""
    started: list[Receiver] = []

    def receiver(kind: str, *, secret: str, tenant: str = "default") -> Receiver:
        port = free_port()
        program = str(repository / "docs" / "clients" / f"receive_webhooks.{kind}")
        if kind == "py":
            command = [sys.executable, program, str(port)]
        else:
            node = shutil.which("node")
            assert node is not None, "the receiver in JavaScript needs node"
            command = [node, program, str(port), system.url, tenant]
        started.append(Receiver(command, port=port, folder=system.folder, WEBHOOK_SECRET=secret))
        eventually(started[-1].is_there, what=f"receive_webhooks.{kind} to listen")
        return started[-1]

    yield receiver
    for each in started:
        each.stop()


def call(system: System, method: str, path: str, **more: Any) -> Any:
    """The JSON of a successful response."""
    response = httpx.request(method, system.url + path, trust_env=False, **more)
    assert response.is_success, response.text
    return response.json() if response.content else None


def typed(system: System, line: str, receiver: Receiver) -> Any:
    """Run a command of docs/webhooks.md against the running system; returns its JSON output."""
    line = line.replace("http://localhost:8000", system.url).replace("http://localhost:9000/", receiver.url)
    done = system.shell(line.replace("curl ", "curl --silent --show-error --fail ", 1))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def lines(repository: Path) -> list[str]:
    """The two requests of docs/webhooks.md: for one job, and for all."""
    text = (repository / "docs" / "webhooks.md").read_text()
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("kind", ["py", "mjs"])
def test_the_webhook_of_a_job_receives_each_event_once_and_recognises_a_repeat(
    system: System, start: StartReceiver, lines: list[str], kind: str
) -> None:
    receiver = start(kind, secret=call(system, "GET", "/api/v1/webhook-secret")["secret"])
    job_id = typed(system, lines[0], receiver)["job_id"]
    system.wait_for(job_id, "completed")
    receiver.await_events(job_id, "started", "completed")

    started, completed = call(system, "GET", f"{JOBS}{job_id}/deliveries")["deliveries"]
    assert (started["event"], completed["event"]) == ("started", "completed")
    path = f"{JOBS}{job_id}/deliveries/{completed['id']}"
    call(system, "POST", f"{path}/redeliver")
    eventually(lambda: call(system, "GET", path)["state"] == "delivered", what="it to be delivered once more")
    tries = call(system, "GET", path)["tries"]
    assert [(each["number"], each["status"]) for each in tries] == [(1, 204), (2, 204)]
    receiver.await_events(job_id, "started", "completed")


@pytest.mark.parametrize("kind", ["py", "mjs"])
def test_a_subscription_receives_all_jobs_of_its_models_also_after_a_rotation(
    system: System, start: StartReceiver, lines: list[str], kind: str
) -> None:
    unknown = start(kind, secret=call(system, "GET", "/api/v1/webhook-secret")["secret"])
    path = f"{SUBSCRIPTIONS}/{typed(system, lines[1], unknown)['id']}"
    try:
        receiver = start(kind, secret=call(system, "GET", f"{path}/secret")["secret"])
        call(system, "PATCH", path, json={"url": receiver.url, "models": ["sd"]})
        call(system, "POST", f"{path}/rotate-secret")
        job_id = system.submit(**SMALL)
        receiver.await_events(job_id, "completed")
    finally:
        call(system, "DELETE", path)


@pytest.mark.parametrize("kind", ["py", "mjs"])
def test_a_receiver_refuses_what_is_not_for_it(system: System, start: StartReceiver, kind: str) -> None:
    """The event is another tenant's; the list of deliveries has the refusal and the time of the next attempt."""
    receiver = start(kind, secret="whsec_" + "A" * 43 + "=", tenant="another-tenant")
    job_id = system.submit(**SMALL, webhook=receiver.url)
    path = f"{JOBS}{job_id}/deliveries"
    eventually(lambda: any(each["tries"] for each in call(system, "GET", path)["deliveries"]), what="a try")
    (delivery,) = call(system, "GET", path)["deliveries"]
    assert (delivery["state"], delivery["tries"][0]["status"]) == ("open", 401)
    assert delivery["due_at"] > delivery["tries"][0]["at"]
    assert receiver.of(job_id) == []


@pytest.mark.parametrize("kind", ["py", "mjs"])
def test_a_receiver_refuses_unsigned_posts(system: System, start: StartReceiver, kind: str) -> None:
    receiver = start(kind, secret=call(system, "GET", "/api/v1/webhook-secret")["secret"])
    headers = {"webhook-id": "1", "webhook-timestamp": f"{time.time():.0f}", "webhook-signature": "v1,eA== v1a,eA=="}
    for sent in (headers, headers | {"webhook-timestamp": "now"}, {}):
        assert httpx.post(receiver.url, content=b"{}", headers=sent, trust_env=False).status_code == 401


def test_internal_receivers_are_this_machine_and_those_of_the_setting(own_system: System) -> None:
    own_system.variables |= {"DARKROOM_WEBHOOK_ALLOW": "receiver.internal"}
    own_system.start()
    for url, status in (
        ("http://receiver.internal/", 202),
        ("http://127.0.0.1:1/", 202),
        ("http://localhost:1/", 202),
        ("http://other.internal/", 422),
        ("http://10.0.0.1/", 422),
    ):
        answer = httpx.post(own_system.url + JOBS, json={"webhook": url}, trust_env=False)
        assert answer.status_code == status, url


def test_with_a_public_url_this_machine_is_no_allowed_receiver(own_system: System) -> None:
    own_system.variables |= {"DARKROOM_PUBLIC_URL": "https://darkroom.example"}
    own_system.start()
    for url in ("http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]:1/"):
        answer = httpx.post(own_system.url + JOBS, json={"webhook": url}, trust_env=False)
        assert answer.status_code == 422, url
