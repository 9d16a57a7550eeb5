"""A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager, on free loopback ports.

The programs are where `KUBEBUILDER_ASSETS` says, the layout that controller-runtime's envtest defines. There is no node
and no kubelet: pods are made and never run, unless a test stands in for the kubelet (`kubelet.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.operator.down_conversion import Conversion, older
from tests.ports import free_port
from tests.waiting import eventually

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")

START_DEADLINE_S = 120.0
STOP_DEADLINE_S = 30.0

CONTROLLERS = ("deployment", "replicaset", "disruption", "garbagecollector", "namespace", "serviceaccount")
"""The controllers that pools need: Deployments, ReplicaSets and garbage collection."""

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}
"""The audit policy: requests of service accounts with user, object and response status."""

JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


def assets() -> Path | None:
    """The folder of the programs, or None if it is not set."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named or not all((Path(named) / program).is_file() for program in PROGRAMS):
        return None
    return Path(named)


def needed_assets() -> Path:
    """The folder of the programs. Without it the test is skipped, but not in the gate."""
    programs = assets()
    if programs is None:
        why = "KUBEBUILDER_ASSETS names no folder with etcd, kube-apiserver and the others"
        if "CI" in os.environ:
            raise LookupError(why)
        pytest.skip(why)
    return programs


class ControlPlane:
    """One control plane with its data in `folder`. Each of its processes is stopped by its pid."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._etcd_port, self._peer_port, self.port = free_port(), free_port(), free_port()
        self._token = secrets.token_hex(16)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """The credentials of the cluster's admin."""
        return {"Authorization": f"Bearer {self._token}"}

    @property
    def authority(self) -> Path:
        """The certificate that the API server signs its own with."""
        return self._folder / "certificates" / "apiserver.crt"

    def start(self) -> None:
        """Start, and return once pods can be created. Raises RuntimeError with a log if it does not start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "tokens.csv").write_text(f"{self._token},admin,admin,system:masters\n")
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (self._folder / "accounts.key").write_bytes(pem)
        self.admin_config.write_text(self.kubeconfig(self._token))
        (self._folder / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
        self._launch(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-cluster=default=http://127.0.0.1:{self._peer_port}",
            "--unsafe-no-fsync",
        )
        self.start_api_server()
        self._launch(
            "kube-controller-manager",
            f"--kubeconfig={self.admin_config}",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            f"--controllers={','.join(CONTROLLERS)}",
            f"--service-account-private-key-file={self._folder / 'accounts.key'}",
            f"--secure-port={free_port()}",
            *(["--port=0"] if self.is_old else []),  # newer ones have no second, open port to be switched off
            "--bind-address=127.0.0.1",
        )

    @cached_property
    def is_old(self) -> bool:
        """Whether it lacks policy/v1, and with it rules in CEL: then what is shipped must be converted for it."""
        return self.find("/apis/policy/v1") is None

    def fitted(self, manifest: Any) -> Any:
        """The manifest as this server accepts it, converted if the server is an old one."""
        return older(manifest) if self.is_old else manifest

    @contextmanager
    def front(self) -> Iterator[str | None]:
        """The address that the operator uses in place of the API server's own, where that one is too old for it."""
        if not self.is_old:
            yield None
            return
        conversion = Conversion(self.port, str(self.authority))
        conversion.start()
        try:
            yield conversion.url
        finally:
            conversion.stop()

    def start_api_server(self) -> None:
        """Start the API server, also after `stop_api_server`."""
        accounts = self._folder / "accounts.key"
        self._launch(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={self._folder / 'certificates'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",  # it would wait for a controller that makes tokens
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts}",
            f"--service-account-signing-key-file={accounts}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            f"--audit-policy-file={self._folder / 'audit-policy.json'}",
            f"--audit-log-path={self._audit_log}",
        )
        eventually(self._is_up, what="the API server serves", deadline_s=START_DEADLINE_S)

    def stop_api_server(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._end("kube-apiserver", number)

    def stop(self) -> None:
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self._end(name, signal.SIGTERM if name == "etcd" else signal.SIGKILL)
        shutil.rmtree(self._folder / "etcd", ignore_errors=True)

    @property
    def admin_config(self) -> Path:
        return self._folder / "admin.kubeconfig"

    def kubeconfig(self, token: str, *, server: str | None = None, namespace: str = "default") -> str:
        """A kubeconfig, as JSON, which is YAML. `server` is another address in front of the API server."""
        cluster: dict[str, object] = {"server": server or self.url}
        if server is None:
            cluster["certificate-authority"] = str(self.authority)
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
                "current-context": "test",
            }
        )

    def kubectl(self, *arguments: str, given: str | None = None, fails: bool = False) -> str:
        """Run kubectl as the cluster's admin. Returns its output, or its error if it `fails`."""
        done = subprocess.run(
            [
                self._programs / "kubectl",
                f"--kubeconfig={self.admin_config}",
                f"--cache-dir={self._folder}",
                *arguments,
            ],
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    def explains(self, kind: str) -> bool:
        """Whether the schema of the kind is published, which happens seconds after the kind."""
        try:
            return bool(self.kubectl("explain", kind))
        except AssertionError:
            return False

    def ask(self, method: str, path: str, body: object = None, *, kind: str = JSON, token: str | None = None) -> Any:
        """One request, as the admin without a `token`. Raises urllib's HTTPError."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token or self._token}", "Content-Type": kind},
        )
        context = ssl.create_default_context(cafile=str(self.authority))
        with urllib.request.urlopen(request, timeout=30, context=context) as reply:
            return json.load(reply)

    def find(self, path: str) -> Any:
        """The object, or None."""
        try:
            return self.ask("GET", path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def token_of(self, namespace: str, account: str) -> str:
        """A token of a ServiceAccount, as in its pods."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        token: str = self.ask("POST", path, body)["status"]["token"]
        return token

    @property
    def _audit_log(self) -> Path:
        return self._folder / "audit.log"

    def asked_by(self, namespace: str, account: str) -> list[dict[str, Any]]:
        """The entries of the audit log for requests of this ServiceAccount; a watch has two."""
        whole, _, _ = self._audit_log.read_text().rpartition("\n")
        found = map(json.loads, whole.splitlines())
        return [each for each in found if each["user"]["username"] == f"system:serviceaccount:{namespace}:{account}"]

    def log(self, program: str) -> str:
        return (self._folder / f"{program}.log").read_text(errors="replace")

    def _is_up(self) -> bool:
        process = self._running["kube-apiserver"]
        if process.poll() is not None:
            raise RuntimeError(f"kube-apiserver ended:\n{self.log('kube-apiserver')[-4000:]}")
        try:
            self.ask("GET", "/api/v1/namespaces/default")
        except (OSError, ValueError):
            time.sleep(0.1)
            return False
        return True

    def _launch(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.log").open("ab") as log:
            self._running[program] = subprocess.Popen(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )

    def _end(self, program: str, number: signal.Signals) -> None:
        process = self._running.pop(program, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
