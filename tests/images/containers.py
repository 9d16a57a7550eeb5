"""Containers as a kubelet starts them: from the pod of a manifest, by podman.

Command, variables, user, volumes, read-only root, capabilities and privileges are those of the manifest. A volume of a
ConfigMap or a Secret is a folder with its values, an emptyDir an empty folder. The names of other services resolve to
the container's loopback, where bridges lead to the servers of the test (`networks.py`).
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import httpx

from tests.images.networks import Bridge, give_address, inside
from tests.knative.rendering import Object, find, variables_of

DEADLINE_S = 300

PAUSE_S = 0.5
"""The pause between two probes, each of which starts a process."""

NAMESPACE = "darkroom"

SERVICES = ("redis", "postgresql", *(f"{name}.{NAMESPACE}.svc.cluster.local" for name in ("submit", "jobs", "result")))
"""Names that a cluster's DNS would know."""

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

OF_A_USER = ("HOME", "LOGNAME", "USER")
"""podman sets HOME by itself. No program may rely on these variables, unless the manifest sets them."""

PASSWD = "root:x:0:0:root:/root:/bin/bash\n"
"""The container's users: podman adds the one of `--user` to a file that is not mounted, and containerd does not."""

Secrets = Mapping[str, Mapping[str, str]]


class Podman:
    """podman on this machine, with the settings that work within a container too."""

    def __init__(self, settings: Path) -> None:
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}

    def __call__(self, *arguments: str, more: Mapping[str, str] | None = None) -> str:
        """The output of a command. Fails with its error."""
        done = self.tried(*arguments, more=more)
        assert done.returncode == 0, f"podman {arguments[0]}: {done.stderr}"
        return done.stdout.strip()

    def tried(self, *arguments: str, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman", *arguments],
            env={**self.environment, **(more or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


class Pod:
    """The containers of one pod, in sequence: `run` for one that exits by itself, `start` for the last."""

    def __init__(self, podman: Podman, spec: Object, objects: Sequence[Object], secrets: Secrets, folder: Path) -> None:
        """`objects` are the other objects of the namespace, among them its ConfigMaps."""
        self._podman = podman
        self.spec = spec
        self._objects, self._secrets, self._folder = objects, secrets, folder
        self._volumes = {volume["name"]: self._volume(volume) for volume in spec.get("volumes", [])}
        self._name = ""
        self._container: Object = {}
        self._nameless: list[str] = []
        self._pid = 0
        self._bridges: list[Bridge] = []

    def run(self, container: Object, tag: str, *, to: Mapping[int, int], **given: str) -> str:
        """Start the container and wait for its exit, with status 0. Returns its log."""
        self.start(container, tag, to=to, **given)
        try:
            status = self._podman("wait", self._name)
            said = self.log()
        finally:
            self.remove()
        assert status == "0", said
        return said

    def start(self, container: Object, tag: str, *, to: Mapping[int, int], **given: str) -> None:
        """Start the container from its image with this `tag`. `to` maps ports of its loopback to ports of this machine,
        `given` has the variables that the cluster adds.
        """
        self._container = container
        self._name = f"darkroom-test-{container['name']}-{uuid4().hex[:8]}"
        environment = {**variables_of(self._objects, _without_fields(container), self._secrets), **given}
        self._nameless = nameless(environment)
        arguments = [argument for name in environment for argument in ("--env", name)]
        arguments += [argument for name in SERVICES for argument in ("--add-host", f"{name}:127.0.0.1")]
        for mount in container.get("volumeMounts", []):
            mode = "ro" if mount.get("readOnly") else "rw"
            arguments += ["--volume", f"{self._volumes[mount['name']]}:{mount['mountPath']}:{mode}"]
        if (self._folder / "account").is_dir():
            arguments += ["--volume", f"{self._folder / 'account'}:{ACCOUNT}:ro"]
        (self._folder / "passwd").write_text(PASSWD)
        arguments += ["--volume", f"{self._folder / 'passwd'}:/etc/passwd:ro"]
        arguments += ["--entrypoint", json.dumps([*self._nameless, *self._command_of(container, tag)])]
        context = {**self.spec.get("securityContext", {}), **container["securityContext"]}
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        user = ":".join(str(context[name]) for name in ("runAsUser", "runAsGroup") if name in context)
        arguments += ["--user", user, "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL"]
        arguments += ["--security-opt=no-new-privileges", "--network=none", "--hostname", self._name]
        self._podman(
            "create",
            "--name",
            self._name,
            *arguments,
            _image(container, tag),
            *container.get("args", []),
            more=environment,
        )
        self._podman("init", self._name)  # its network is there, and nothing runs in it yet
        self._pid = int(self._podman("inspect", "--format", "{{.State.Pid}}", self._name))
        give_address(self._pid)
        self._bridges = [Bridge(self._pid, port=port, to=ours) for port, ours in to.items()]
        self._podman("start", self._name)

    def with_account(self, token: str, authority: Path) -> None:
        """Mount the credentials of a ServiceAccount."""
        place = self._folder / "account"
        place.mkdir()
        for name, text in {"namespace": NAMESPACE, "token": token, "ca.crt": authority.read_text()}.items():
            (place / name).write_text(text)

    def passes(self, probe: Object) -> bool:
        """Whether the container passes this probe. Fails if it has exited."""
        if self._succeeds(probe):
            return True
        if self._podman("inspect", "--format", "{{.State.Running}}", self._name) != "true":
            raise AssertionError("the container has exited")
        time.sleep(PAUSE_S)
        return False

    def stop(self) -> int:
        """The exit status after SIGTERM."""
        self._podman("kill", "--signal=TERM", self._name)
        return int(self._podman("wait", self._name))

    def _succeeds(self, probe: Object) -> bool:
        if "exec" in probe:
            return self._podman.tried("exec", self._name, *self._nameless, *probe["exec"]["command"]).returncode == 0
        asked = probe["httpGet"]
        port = asked.get("port")
        if not isinstance(port, int):  # a name, or the only port, which Knative probes
            (only,) = self._container["ports"]
            assert port in (None, only.get("name"))
            port = only["containerPort"]
        try:
            with inside(self._pid):
                url = f"http://127.0.0.1:{port}{asked['path']}"
                return httpx.get(url, trust_env=False, timeout=10).is_success
        except (httpx.TransportError, FileNotFoundError):  # a container that has ended has no network
            return False

    def _command_of(self, container: Object, tag: str) -> list[str]:
        """The manifest's command, or else that of the image, as Kubernetes composes the two."""
        if "command" in container:
            command: list[str] = container["command"]
            return command
        shown = self._podman("image", "inspect", "--format", "{{json .Config}}", _image(container, tag))
        config = json.loads(shown)
        default = [] if "args" in container else config.get("Cmd") or []
        return [*(config.get("Entrypoint") or []), *default]

    def folder_of(self, volume: str) -> Path:
        """The folder of one of its volumes."""
        return self._volumes[volume]

    def log(self) -> str:
        done = self._podman.tried("logs", self._name)
        return done.stdout + done.stderr

    def remove(self) -> None:
        for bridge in self._bridges:
            bridge.close()
        self._podman.tried("rm", "--force", "--time=0", self._name)  # where it did not come to be, there is none

    def _volume(self, volume: Object) -> Path:
        place: Path = self._folder / volume["name"]
        place.mkdir()
        if "configMap" in volume:
            for name, text in find(self._objects, "ConfigMap", volume["configMap"]["name"])["data"].items():
                (place / name).write_text(text)
        else:
            assert volume["emptyDir"] == {}
            place.chmod(0o777)
        return place


def nameless(environment: Mapping[str, str]) -> list[str]:
    """The prefix of a command that removes the variables of a user, except those in `environment`."""
    return ["env", *(f"--unset={name}" for name in OF_A_USER if name not in environment)]


def _image(container: Object, tag: str) -> str:
    return f"{container['image'].rpartition(':')[0]}:{tag}"


def _without_fields(container: Object) -> Object:
    """The container with the namespace in place of references to it: `fieldRef` and `$(NAMESPACE)`."""
    container = copy.deepcopy(container)
    for variable in container.get("env", []):
        if "fieldRef" in variable.get("valueFrom", {}):
            assert variable.pop("valueFrom")["fieldRef"]["fieldPath"] == "metadata.namespace"
            variable["value"] = NAMESPACE
        elif "value" in variable:
            variable["value"] = variable["value"].replace("$(NAMESPACE)", NAMESPACE)
    return container
