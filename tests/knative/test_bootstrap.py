"""The bootstrap Job: it creates missing Secrets with random values, with only the rights of its account."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.knative.bootstrap_program import PROGRAM
from tests.knative.rendering import Object, find, main_container, of_kind, variables_of
from tests.operator.control_plane import ControlPlane

ACCOUNT = "darkroom-bootstrap"


class Bootstrap:
    """The Job's container in a namespace of its own, with its command, variables and token."""

    def __init__(self, cluster: ControlPlane, objects: list[Object], folder: Path) -> None:
        self.namespace = f"b-{secrets.token_hex(6)}"
        self._cluster, self._folder = cluster, folder
        self._job = main_container(find(objects, "Job", ACCOUNT))
        self._variables = variables_of(objects, self._job, {})
        cluster.kubectl("create", "namespace", self.namespace)
        rights = [
            each
            for kind in ("ServiceAccount", "Role", "RoleBinding")
            for each in of_kind(objects, kind)
            if each["metadata"]["name"] == ACCOUNT
        ]
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": rights})
        cluster.kubectl(
            "apply", "-f", "-", given=given.replace('"namespace": "darkroom"', f'"namespace": "{self.namespace}"')
        )
        (folder / "token").write_text(self.token)
        (folder / "namespace").write_text(self.namespace)
        (folder / "ca.crt").write_text(cluster.authority.read_text())

    @property
    def token(self) -> str:
        return self._cluster.token_of(self.namespace, ACCOUNT)

    def run(self) -> subprocess.CompletedProcess[str]:
        assert self._job["command"] == ["python", "/etc/bootstrap/bootstrap.py"]
        host = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._cluster.port)}
        environment = {"PATH": os.environ["PATH"], "SERVICE_ACCOUNT": str(self._folder), **host, **self._variables}
        return subprocess.run(
            [sys.executable, "-I", PROGRAM, *self._job["args"]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def secret(self, name: str) -> dict[str, str]:
        found = self._cluster.find(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        assert found is not None, name
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}


@pytest.fixture
def job(cluster: ControlPlane, rendered: dict[str, list[Object]], tmp_path: Path) -> Iterator[Bootstrap]:
    made = Bootstrap(cluster, rendered["k3d"], tmp_path)
    yield made
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


def test_it_creates_every_secret_and_a_repeat_changes_none(job: Bootstrap, bootstrap: ModuleType) -> None:
    first = job.run()
    assert first.returncode == 0, first.stderr
    made = {name: job.secret(name) for name in bootstrap.SECRETS}
    again = job.run()
    assert again.returncode == 0, again.stderr
    assert {name: job.secret(name) for name in bootstrap.SECRETS} == made


def test_it_logs_no_secret(job: Bootstrap, bootstrap: ModuleType) -> None:
    done = job.run()
    values = [value for name in bootstrap.SECRETS for value in job.secret(name).values()]
    assert [value for value in values if value in done.stdout + done.stderr] == []


def test_all_values_differ(bootstrap: ModuleType) -> None:
    settings = {"DARKROOM_NAMESPACE": "darkroom", "REDIS_DATABASE": "0"}
    made = [value for _ in range(2) for make in bootstrap.SECRETS.values() for value in make(settings).values()]
    assert len(set(made)) == len(made)


def test_an_existing_secret_is_not_changed(job: Bootstrap, cluster: ControlPlane) -> None:
    cluster.kubectl("-n", job.namespace, "create", "secret", "generic", "darkroom-keys", "--from-literal=link-key=mine")
    assert job.run().returncode == 0
    assert job.secret("darkroom-keys") == {"link-key": "mine"}


@pytest.mark.parametrize(
    ("verb", "kind"),
    [("get", "secrets"), ("list", "secrets"), ("patch", "secrets"), ("delete", "secrets"), ("create", "pods")],
)
def test_its_account_has_no_other_right(verb: str, kind: str, job: Bootstrap, cluster: ControlPlane) -> None:
    account = f"--as=system:serviceaccount:{job.namespace}:{ACCOUNT}"
    cluster.kubectl("-n", job.namespace, "auth", "can-i", "create", "secrets", account)
    cluster.kubectl("-n", job.namespace, "auth", "can-i", verb, kind, account, fails=True)


def test_without_its_rights_it_fails_with_an_error(job: Bootstrap, cluster: ControlPlane) -> None:
    cluster.kubectl("-n", job.namespace, "delete", "rolebinding", ACCOUNT)
    done = job.run()
    assert done.returncode != 0
    assert "403" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("darkroom-nothing",)], ids=["none", "unknown"])
def test_it_rejects_unknown_names(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "darkroom-redis" in done.stderr
