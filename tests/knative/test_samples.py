"""The samples fit the intended nodes, and serve the models of the docs' examples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from darkroom_operator import pools

from tests.knative.rendering import KNATIVE, SERVING, Object, containers, find, of_kind, pods, sample

UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

QUEUE_PROXY_CPU = 0.025
"""The request of Knative's container in each pod of a function (`queue-sidecar-cpu-request` of config-deployment)."""

OVERLAY_CPU = 0.5
"""The most that a whole overlay for one node may request: Knative's own parts request some 1.5 of a laptop's cores."""


@dataclass(frozen=True)
class Node:
    """A node for a scheduler: its free resources, its labels, and its taints."""

    free: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()


LAPTOP = Node({"cpu": 2 - OVERLAY_CPU, "memory": 6 * 2**30})
"""Two cores and 8 GiB, after the overlay is scheduled."""


def with_gpu(product: str) -> Node:
    """A machine with one GPU, with the labels and taints of NVIDIA's operator."""
    free: dict[str, float] = {"cpu": 8, "memory": 128 * 2**30, "nvidia.com/gpu": 1}
    return Node(free, {"nvidia.com/gpu.product": product}, ("nvidia.com/gpu",))


WRITTEN_FOR = {
    "pools-cpu": [LAPTOP],
    "pools": [with_gpu("NVIDIA-L40S"), with_gpu("NVIDIA-L4")],
    "job": [LAPTOP],
    "subscription": [LAPTOP],
}
"""The nodes of each sample; each pod must fit one of them."""


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS.get(unit, 1)


def requested(pod: Object) -> dict[str, float]:
    """The requests of the pod: the sum of its containers, or the largest init container. A limit alone is a request."""

    def of(container: Object) -> dict[str, float]:
        resources = container.get("resources", {})
        wanted = {**resources.get("limits", {}), **resources.get("requests", {})}
        return {name: quantity(value) for name, value in wanted.items()}

    total: dict[str, float] = {}
    for container in pod["containers"]:
        for name, value in of(container).items():
            total[name] = total.get(name, 0) + value
    for container in pod.get("initContainers", []):
        for name, value in of(container).items():
            total[name] = max(total.get(name, 0), value)
    return total


def unplaced(pod: Object, node: Node) -> list[str]:
    """The reasons why the pod does not fit the node."""
    why = [
        f"{name}: {value} of {node.free.get(name, 0)}"
        for name, value in requested(pod).items()
        if value > node.free.get(name, 0)
    ]
    why += [f"label {name}" for name, value in pod.get("nodeSelector", {}).items() if node.labels.get(name) != value]
    tolerated = {each.get("key") for each in pod.get("tolerations", [])}
    return why + [f"taint {name}" for name in node.taints if name not in tolerated]


def sample_pods(name: str) -> Iterator[Object]:
    """The pods of a sample; for a pool the one that the operator creates."""
    for each in sample(name):
        if each["kind"] == "WorkerPool":
            pool = pools.read_spec({**each, "metadata": {**each["metadata"], "uid": "any"}})
            yield pools.deployment(pool, config_maps={})["spec"]["template"]["spec"]
    yield from (pod for what, pod in pods(sample(name)) if not what.startswith("WorkerPool"))


@pytest.mark.parametrize("name", WRITTEN_FOR)
def test_each_pod_of_a_sample_fits_the_intended_node(name: str) -> None:
    found = list(sample_pods(name))
    assert found
    for pod in found:
        assert [] in [unplaced(pod, node) for node in WRITTEN_FOR[name]]


def test_a_pod_with_a_gpu_does_not_fit_a_laptop() -> None:
    """The test above detects it."""
    (first, *_) = sample_pods("pools")
    assert {reason.split(":")[0] for reason in unplaced(first, LAPTOP)} >= {"nvidia.com/gpu"}


@pytest.mark.parametrize("overlay", ["k3d", "dev", "demo", "test"])
def test_an_overlay_for_one_node_requests_half_a_core_at_most(overlay: str, rendered: dict[str, list[Object]]) -> None:
    total = 0.0
    for each in rendered[overlay]:
        for _, pod in pods([each]):
            cpu = requested(pod)["cpu"]
            if each["apiVersion"] == SERVING:
                annotations = each["spec"]["template"]["metadata"].get("annotations", {})
                replicas = max(1, int(annotations.get("autoscaling.knative.dev/min-scale", 0)))
                cpu += QUEUE_PROXY_CPU
            else:
                replicas = each["spec"].get("replicas", 1)
            total += replicas * cpu
    assert total <= OVERLAY_CPU


ROOT = KNATIVE.parent

SHOWN = re.compile(r"(?:localhost:\d+|\$BASE)/(?:sync/)?([a-z][a-z0-9-]*)(?=[\s'\"\\]|$)|\"model\": ?\"([\w-]+)\"")
"""A model in an example: the path of its route, or the field of a submission."""

NO_MODELS = {"", "events", "docs", "healthz", "openapi"}


def models_shown(paths: Sequence[Path]) -> set[str]:
    found = {name for path in paths for match in SHOWN.findall(path.read_text()) for name in match}
    return found - NO_MODELS


@pytest.mark.parametrize("pool_sample", ["pools", "pools-cpu"])
def test_the_pools_of_each_sample_serve_every_model_of_the_examples(pool_sample: str) -> None:
    examples = [ROOT / "README.md", KNATIVE / "README.md", KNATIVE / "cluster.sh", *(ROOT / "docs").glob("*.md")]
    examples += [KNATIVE / "samples" / f"{name}.yaml" for name in ("job", "subscription")]
    shown = models_shown(examples)
    assert "flux" in shown
    assert shown <= {model for pool in of_kind(sample(pool_sample), "WorkerPool") for model in pool["spec"]["models"]}


def test_the_init_container_makes_the_stand_ins_of_the_sample() -> None:
    """The sample's model files name the folders that `darkroom_worker.standins` writes."""
    applied = sample("pools-cpu")
    files = find(applied, "ConfigMap", "darkroom-standins")["data"]
    for pool in of_kind(applied, "WorkerPool"):
        for model in pool["spec"]["models"]:
            assert f'source = "/weights/{model}-standin"' in files[f"{model}.toml"]
        (init, _) = containers(pool["spec"]["template"]["spec"])
        assert init["command"][-2:] == ["darkroom_worker.standins", "/weights"]


@pytest.mark.parametrize("name", ["pools", "pools-cpu"])
def test_workers_are_probed_over_http_at_their_port(name: str) -> None:
    for pool in of_kind(sample(name), "WorkerPool"):
        (worker,) = pool["spec"]["template"]["spec"]["containers"]
        for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
            assert worker[probe].get("httpGet") == {"path": path, "port": pools.PROBE_PORT}


def test_the_pools_of_a_sample_differ_only_in_their_model() -> None:
    """YAML documents cannot share common parts."""
    flux, sd = of_kind(sample("pools-cpu"), "WorkerPool")
    flux["metadata"]["name"], flux["spec"]["models"] = sd["metadata"]["name"], sd["spec"]["models"]
    assert flux == sd
