"""The manifests in knative/ as kustomize renders them, and functions to search them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from darkroom_operator.settings import MODELS_MAP, SETTINGS_MAP

from tests.operator.control_plane import assets

Object = dict[str, Any]

KNATIVE = Path(__file__).resolve().parent.parent.parent / "knative"
OVERLAYS = ("k3d", "dev", "demo", "test", "gpu", "prod")
SAMPLES = ("pools", "pools-cpu", "job", "subscription")

COMPONENTS_SINCE = 21
"""The minor version of the first kubectl whose kustomize knows components."""

DEADLINE_S = 60

SERVING = "serving.knative.dev/v1"


def kubectl() -> Path | None:
    """A kubectl whose kustomize supports components, or None. That of a 1.20 control plane is older."""
    beside = assets()
    for candidate in (shutil.which("kubectl"), beside and beside / "kubectl"):
        if candidate is not None:
            said = json.loads(_output(Path(candidate), "version", "--client", "--output=json"))
            if int(said["clientVersion"]["minor"].rstrip("+")) >= COMPONENTS_SINCE:
                return Path(candidate)
    return None


def render(program: Path, folder: Path) -> list[Object]:
    """The objects of a kustomization. Fails with the errors and deprecations of kustomize."""
    return [each for each in yaml.safe_load_all(_output(program, "kustomize", str(folder))) if each]


def sample(name: str) -> list[Object]:
    return list(yaml.safe_load_all((KNATIVE / "samples" / f"{name}.yaml").read_text()))


def find(objects: Sequence[Object], kind: str, name: str, *, version: str | None = None) -> Object:
    """The only object of this kind and name, and of the API version if two have a kind of the name."""
    (found,) = [each for each in of_kind(objects, kind, version=version) if each["metadata"]["name"] == name]
    return found


def config_map(objects: Sequence[Object], name: str) -> Object:
    """The only ConfigMap that kustomize named by `name` and a hash of its contents."""
    (found,) = [each for each in of_kind(objects, "ConfigMap") if plain_name(each["metadata"]["name"]) == name]
    return found


def plain_name(name: str) -> str:
    """The name of a ConfigMap without the hash that kustomize adds."""
    return re.sub(r"-[a-z0-9]{10}$", "", name)


def current_names(objects: Sequence[Object]) -> dict[str, str]:
    """The current names of ConfigMaps by the names that templates of pools use."""
    return {name: config_map(objects, name)["metadata"]["name"] for name in (SETTINGS_MAP, MODELS_MAP)}


def of_kind(objects: Sequence[Object], kind: str, *, version: str | None = None) -> list[Object]:
    return [each for each in objects if each["kind"] == kind and version in (None, each["apiVersion"])]


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod specification by its object."""
    for each in objects:
        template = each.get("spec", {}).get("template")
        if isinstance(template, dict) and "containers" in template.get("spec", {}):
            yield f"{each['kind']} {each['metadata'].get('name', 'sample')}", template["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def main_container(workload: Object) -> Object:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    found: Object = container
    return found


def variables_of(
    objects: Sequence[Object], container: Object, secrets: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """The container's environment as a kubelet resolves it. Fails for a reference to a missing object."""
    settings = {each["metadata"]["name"]: each["data"] for each in of_kind(objects, "ConfigMap")}
    settings |= {plain_name(name): data for name, data in settings.items()}  # by which a pool's template names them
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        ((kind, reference),) = source.items()
        environment |= (settings if kind == "configMapRef" else secrets)[reference["name"]]
    for variable in container.get("env", []):
        if "value" in variable:
            value = re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], variable["value"])
            environment[variable["name"]] = value
            continue
        ((kind, reference),) = variable["valueFrom"].items()
        if kind == "fieldRef":
            assert reference["fieldPath"] == "metadata.namespace"
            (namespace,) = of_kind(objects, "Namespace")
            environment[variable["name"]] = namespace["metadata"]["name"]
            continue
        values = settings if kind == "configMapKeyRef" else secrets
        environment[variable["name"]] = values[reference["name"]][reference["key"]]
    return environment


def _output(program: Path, *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return done.stdout
