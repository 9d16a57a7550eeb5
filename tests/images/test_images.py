"""Each image runs as its manifest starts it, passes its probes, and exits with status 0 on SIGTERM."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from darkroom_operator import pools

from tests.images.conftest import TAG, WORTH_MB, Secrets
from tests.images.containers import NAMESPACE, PASSWD, Pod, Podman, nameless
from tests.knative.rendering import SERVING, Object, current_names, find, main_container, sample, variables_of
from tests.operator.control_plane import ControlPlane
from tests.waiting import eventually

START_DEADLINE_S = 300
"""A worker imports torch, on a busy machine."""

PLACES = {
    "submit": SERVING,
    "jobs": SERVING,
    "result": SERVING,
    "undelivered": SERVING,
    "courier": "apps/v1",
    "flower": "apps/v1",
    "gateway": "apps/v1",
}

MEGABYTE = 1_000_000

BAKED = "dev.local/darkroom-worker-baked"


def test_images_are_small(images: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    said = [f"  darkroom-{name}: {size / MEGABYTE:.0f} MB over its base" for name, size in images.items()]
    with capsys.disabled():
        sys.stderr.write("\n".join(["", *said, ""]))  # for readers of the gate's output
    assert {name for name in ("functions", "courier", "operator") if images[name] > WORTH_MB * MEGABYTE} == set()


@pytest.mark.parametrize("name", PLACES)
def test_each_part_runs_from_its_image(
    name: str, podman: Podman, objects: list[Object], secrets: Secrets, behind: dict[int, int], tmp_path: Path
) -> None:
    version = PLACES[name]
    workload = find(objects, "Service" if version == SERVING else "Deployment", name, version=version)
    given = {"PORT": "8080"} if version == SERVING else {}
    if name == "courier":
        given |= {"K_SINK": "http://broker.invalid/darkroom/default", "K_CE_OVERRIDES": ""}
    pod = Pod(podman, workload["spec"]["template"]["spec"], objects, secrets, tmp_path)
    starts_and_ends(pod, behind, given)


def test_the_operator_runs_from_its_image(
    podman: Podman,
    objects: list[Object],
    secrets: Secrets,
    behind: dict[int, int],
    cluster: ControlPlane,
    tmp_path: Path,
) -> None:
    """With the rights of its own account: it acquires the Lease."""
    operator = find(objects, "Deployment", "darkroom-operator")
    pod = Pod(podman, operator["spec"]["template"]["spec"], objects, secrets, tmp_path)
    pod.with_account(cluster.token_of(NAMESPACE, "darkroom-operator"), cluster.authority)
    given = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    starts_and_ends(pod, {**behind, 443: cluster.port}, given)


@pytest.fixture(scope="module")
def pool(podman: Podman, objects: list[Object], secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    """A pod of the sample without a GPU, as the operator creates it, after its init container has made the weights."""
    applied = sample("pools-cpu")
    asked = find(applied, "WorkerPool", "sd")
    made = pools.deployment(
        pools.read_spec({**asked, "metadata": {**asked["metadata"], "uid": "any"}}), config_maps=current_names(objects)
    )
    pod = Pod(podman, made["spec"]["template"]["spec"], [*objects, *applied], secrets, tmp_path_factory.mktemp("pool"))
    for first in pod.spec["initContainers"]:
        pod.run(first, TAG, to={})
    return pod


def test_a_worker_runs_from_its_image_with_weights_of_an_init_container(pool: Pod, behind: dict[int, int]) -> None:
    starts_and_ends(pool, behind, {})


def test_a_worker_runs_with_weights_that_are_baked_in(
    pool: Pod, behind: dict[int, int], podman: Podman, repository: Path, tmp_path: Path
) -> None:
    """As docs/images.md describes, with the same weights, and without a volume for them."""
    shown = dict(re.findall(r"```(dockerfile|toml baked)\n(.*?)```", (repository / "docs/images.md").read_text(), re.S))
    (tmp_path / "Dockerfile").write_text(shown["dockerfile"])
    (tmp_path / "sd.toml").write_text(shown["toml baked"])
    shutil.copytree(pool.folder_of("weights") / "sd-standin", tmp_path / "sd")
    cpu = f"BASE=dev.local/darkroom-worker-cpu:{TAG}"
    podman("build", "--network=host", "--build-arg", cpu, "--tag", f"{BAKED}:{TAG}", str(tmp_path))

    (container,) = copy.deepcopy(pool.spec["containers"])
    container["image"] = f"{BAKED}:any"
    container["volumeMounts"] = [each for each in container["volumeMounts"] if each["name"] in ("models", "tmp")]
    (folders,) = [variable for variable in container["env"] if variable["name"] == "DARKROOM_MODELS"]
    folders["value"] = "/etc/darkroom/models:/etc/darkroom/baked"
    starts_and_ends(pool, behind, {}, container)


def test_the_image_of_a_worker_can_fetch_from_the_hub(
    podman: Podman, images: dict[str, int], repository: Path, tmp_path: Path
) -> None:
    """The image has the command of docs/images.md with its options; nothing is downloaded."""
    assert "worker-cpu" in images
    (text,) = re.findall(r"```yaml volume\n(.*?)```", (repository / "docs/images.md").read_text(), re.DOTALL)
    container = main_container(yaml.safe_load(text))
    program, verb, *_ = container["command"]
    environment = variables_of([], container, {})
    image = f"dev.local/darkroom-worker-cpu:{TAG}"
    entrypoint = json.dumps([*nameless(environment), program])
    (tmp_path / "passwd").write_text(PASSWD)
    mount = f"{tmp_path / 'passwd'}:/etc/passwd:ro"
    variables = [argument for name in environment for argument in ("--env", name)]
    arguments = ("run", "--rm", "--network=none", "--volume", mount, *variables, "--entrypoint", entrypoint)
    assert "--local-dir" in podman(*arguments, image, verb, "--help", more=environment)


def starts_and_ends(
    pod: Pod, behind: Mapping[int, int], given: Mapping[str, str], container: Object | None = None
) -> None:
    """Start the pod's only container, or another in its place; it must pass its probes and exit with status 0."""
    container = container or pod.spec["containers"][0]
    try:
        pod.start(container, TAG, to=behind, **given)
        for name in ("readinessProbe", "livenessProbe"):
            probe = container[name]
            what = f"{container['name']}: {name}"
            eventually(lambda probe=probe: pod.passes(probe), what=what, deadline_s=START_DEADLINE_S)  # type: ignore[misc]
        assert pod.stop() == 0
    except AssertionError as error:
        raise AssertionError(f"{error}\n{pod.log()}") from error
    finally:
        pod.remove()
