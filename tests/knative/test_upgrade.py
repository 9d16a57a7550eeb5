"""An upgrade as in docs/operations.md: what `make images` and `kubectl apply` replace, and what they keep.

The tags and a setting change; a real API server takes the manifests before and after, and counts the generations.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.knative.rendering import KNATIVE, SERVING, Object, current_names, find, kubectl, of_kind, render
from tests.knative.test_overlays import accept
from tests.operator.control_plane import ControlPlane

OURS = ("functions", "courier", "operator", "flower", "gateway", "worker-cpu", "worker-diffusers")
WORKLOADS = {("Deployment", None), ("StatefulSet", None), ("Service", SERVING)}

Generations = dict[tuple[str, str], int]


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """A copy of knative/ for a test to change."""
    folder = tmp_path / "knative"
    shutil.copytree(KNATIVE, folder)
    return folder


def set_tags(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "tags.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def rendered_of(folder: Path) -> list[Object]:
    program = kubectl()
    assert program is not None
    return render(program, folder / "overlays" / "k3d")


def workloads(objects: list[Object]) -> dict[tuple[str, str], Object]:
    found = [each for kind, version in WORKLOADS for each in of_kind(objects, kind, version=version)]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def replaced(before: list[Object], after: list[Object]) -> set[tuple[str, str]]:
    """The workloads whose template differs, so that their pods are replaced."""
    old, new = workloads(before), workloads(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name]["spec"]["template"] != new[name]["spec"]["template"]}


FUNCTIONS = {("Service", name) for name in ("submit", "jobs", "result", "undelivered")}
PARTS = FUNCTIONS | {("Deployment", name) for name in ("courier", "flower", "gateway", "darkroom-operator")}
"""Our workloads that always run; pools follow the operator and their own images."""


def test_new_images_replace_exactly_our_parts(manifests: Path, cluster: ControlPlane) -> None:
    before = rendered_of(manifests)
    done = set_tags(manifests, *(f"dev.local/darkroom-{name}=0.1.0-0123456789ab" for name in OURS))
    assert done.returncode == 0, done.stderr
    after = rendered_of(manifests)
    assert replaced(before, after) == PARTS
    images = {
        line.partition("image: ")[2] for path in manifests.rglob("*.yaml") for line in path.read_text().splitlines()
    }
    assert {
        image for image in images if image.startswith("dev.local/") and not image.endswith("-0123456789ab")
    } == set()

    assert accept(cluster, without_jobs(before)) == []
    old = generations(cluster, before)
    assert accept(cluster, without_jobs(after)) == []
    new = generations(cluster, after)
    assert {name for name in old if new[name] > old[name]} == PARTS


def test_a_new_tag_reaches_the_pools_of_the_samples(manifests: Path) -> None:
    set_tags(manifests, "dev.local/darkroom-worker-cpu=mine")
    pools = of_kind(list(yaml.safe_load_all((manifests / "samples" / "pools-cpu.yaml").read_text())), "WorkerPool")
    found = {
        container["image"]
        for pool in pools
        for kind in ("initContainers", "containers")
        for container in pool["spec"]["template"]["spec"][kind]
    }
    assert found == {"dev.local/darkroom-worker-cpu:mine"}


def test_one_new_image_replaces_only_its_part(manifests: Path) -> None:
    before = rendered_of(manifests)
    set_tags(manifests, "dev.local/darkroom-courier=0.1.0-0123456789ab")
    assert replaced(before, rendered_of(manifests)) == {("Deployment", "courier")}


def test_an_unknown_image_is_rejected(manifests: Path) -> None:
    done = set_tags(manifests, "dev.local/darkroom-courier=1", "dev.local/darkroom-curier=2")
    assert done.returncode == 2
    assert done.stderr == "no manifest names the image dev.local/darkroom-curier\n"
    assert (manifests / "base" / "kustomization.yaml").read_text() == (KNATIVE / "base/kustomization.yaml").read_text()


def test_a_changed_setting_replaces_the_parts_that_use_it(manifests: Path) -> None:
    before = rendered_of(manifests)
    overlay = manifests / "overlays" / "k3d" / "kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("http://localhost:8000", "http://localhost:9000"))
    after = rendered_of(manifests)
    assert replaced(before, after) == PARTS, "the operator too: it puts the new name into the templates of pools"
    operator = find(after, "Deployment", "darkroom-operator")["spec"]["template"]["spec"]["containers"][0]
    given = {each["name"]: each.get("value") for each in operator["env"]}
    names = (given["DARKROOM_SETTINGS_MAP"], given["DARKROOM_MODELS_MAP"])
    assert names == tuple(current_names(after).values())


def test_a_changed_model_replaces_the_parts_that_use_it(manifests: Path) -> None:
    before = rendered_of(manifests)
    (manifests / "base" / "models.example.toml").write_text("# another\n")
    readers = {("Service", "submit"), ("Service", "jobs"), ("Deployment", "darkroom-operator")}
    assert replaced(before, rendered_of(manifests)) == readers


FORMER_OBJECTS = {("ksvc", "dead-letter"), ("sinkbinding", "dead-letter")}
"""Objects of 0.1 that have another name now, without ConfigMaps: `kubectl apply` leaves them."""


def test_the_operations_guide_deletes_each_object_that_was_renamed(repository: Path) -> None:
    guide = (repository / "docs" / "operations.md").read_text()
    (command,) = re.findall(r"^kubectl -n darkroom delete (.*) --ignore-not-found$", guide, re.MULTILINE)
    assert {tuple(each.split("/")) for each in command.split()} == FORMER_OBJECTS


def test_a_renamed_function_reaches_redis_until_it_is_deleted() -> None:
    """The Broker may still send it the events that it failed to deliver just before the upgrade."""
    path = KNATIVE / "components" / "networkpolicies" / "networkpolicies.yaml"
    redis = find(list(yaml.safe_load_all(path.read_text())), "NetworkPolicy", "redis")
    (functions, _) = redis["spec"]["ingress"][0]["from"]
    (label,) = functions["podSelector"]["matchExpressions"]
    assert {name for kind, name in FORMER_OBJECTS if kind == "ksvc"} < set(label["values"])


def without_jobs(objects: list[Object]) -> list[Object]:
    """A finished Job of the previous version is deleted before an upgrade (`ttlSecondsAfterFinished`)."""
    return [each for each in objects if each["kind"] != "Job"]


def generations(cluster: ControlPlane, objects: list[Object]) -> Generations:
    """The generation of each workload."""
    found: Generations = {}
    for (kind, name), each in workloads(objects).items():
        group = each["apiVersion"]
        path = f"/apis/{group}/namespaces/darkroom/{kind.lower()}s/{name}"
        found[kind, name] = cluster.ask("GET", path)["metadata"]["generation"]
    return found
