"""Dashboards, alerts and docs use only metrics that the processes export, and alerts fire when they should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from darkroom.ledger import calls
from darkroom_operator.kubernetes.state import ClusterState
from darkroom_operator.metrics import serving

from tests.conftest import RedisServers
from tests.driven_jobs import DrivenJobs
from tests.knative.conftest import _lacks
from tests.knative.rendering import KNATIVE, SERVING, Object, find, main_container
from tests.parts import Functions, Part, environment
from tests.ports import free_port
from tests.redis_server import RedisKind
from tests.served_metrics import Served, ask
from tests.waiting import eventually

MONITORING = KNATIVE / "components" / "monitoring"
WITH_MONITORING = ("gpu", "prod")
DEADLINE_S = 60

NAME = re.compile(r"\bdarkroom_\w+")


@pytest.fixture(scope="module")
def processes(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """The metrics of courier and functions after an event of each kind, and those of the operator without a pool."""
    folder = tmp_path_factory.mktemp("monitored")
    redis_url = redis_servers(RedisKind.EMBEDDED).url
    with ExitStack() as stack:
        variables = environment(redis_url, "t-monitored")
        functions = Functions("all", environment=variables, log=folder / "functions")
        functions.start()
        stack.callback(functions.stop)
        port = free_port()
        more = {"K_SINK": f"{functions.url}/events", "DARKROOM_PROBE_PORT": str(port)}
        courier = Part("darkroom_courier", environment={**variables, **more}, log=folder / "courier")
        courier.start()
        stack.callback(courier.stop)
        jobs = DrivenJobs(redis_url, "t-monitored")
        stack.callback(jobs.close)
        jobs.completed()
        dead = jobs.submit(max_attempts=1)
        jobs.start(dead)
        error = {"kind": "transient", "message": "no"}
        jobs.run(calls.retry(dead, token="token", error=error, delay_ms=0))
        assert httpx.get(f"{functions.url}/api/v1/models", trust_env=False, timeout=60).is_success

        def all_published() -> Served | None:
            try:
                said = ask(port)
            except httpx.TransportError:
                return None
            return said if said.value("darkroom_job_submit_to_result_seconds_count") == 2 else None

        said = eventually(all_published, what="both jobs are counted, and their events published")
        assert said is not None
        yield {"courier": said, "functions": ask(functions.port)}


async def _operator() -> dict[str, str]:
    """The operator's metrics and their types without a pool."""
    port = free_port()
    async with (
        serving(ClusterState(), healthy=lambda: (200, {}), ready=lambda: (200, {}), host="127.0.0.1", port=port),
        httpx.AsyncClient(trust_env=False) as client,
    ):
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))


@pytest.fixture
async def kinds(processes: Mapping[str, Served]) -> dict[str, str]:
    """The type of every exported metric by name."""
    return {name: kind for said in processes.values() for name, kind in said.kinds.items()} | await _operator()


def documented(repository: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of each metric in docs/metrics.md."""
    rows = re.findall(
        r"^\| `(darkroom_\w+)` \| (\w+) \| [^|]+ \| ([^|]+) \| [^|]+ \|$",
        (repository / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    return {name: (kind, frozenset(labels.split(", ")) - {"–"}) for name, kind, labels in rows}


def test_the_docs_describe_each_metric_and_no_other(kinds: dict[str, str], repository: Path) -> None:
    assert {name: kind for name, (kind, _) in documented(repository).items()} == kinds


def test_the_docs_list_the_labels(processes: Mapping[str, Served], repository: Path) -> None:
    said = {name: labels for each in processes.values() for name, labels in each.labels.items()}
    assert len(said) > 15
    assert {name: documented(repository)[name][1] for name in said} == said


def series_of(kinds: Mapping[str, str]) -> set[str]:
    """The names that a query may contain."""
    suffixes = ("_bucket", "_sum", "_count")
    histograms = {name + suffix for name, kind in kinds.items() if kind == "histogram" for suffix in suffixes}
    return histograms | {name for name, kind in kinds.items() if kind != "histogram"}


def queries() -> list[str]:
    """The queries of the dashboard, including those of its variables."""
    dashboard = json.loads((MONITORING / "darkroom.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert len(asked) > 30
    return asked


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_the_dashboard_queries_existing_metrics(kinds: dict[str, str]) -> None:
    named = {name for query in queries() for name in NAME.findall(query)}
    assert named <= series_of(kinds)
    # And shows all that there is: but for what only alerts are made of.
    unseen = {name for name in kinds if not any(each.startswith(name) for each in named)}
    of_alerts = {"darkroom_pool_demand_known", "darkroom_pool_foreign_messages_total", "darkroom_tenants_file_valid"}
    assert unseen <= of_alerts


def test_the_alerts_query_existing_metrics(kinds: dict[str, str]) -> None:
    named = {name for alert in alerts() for name in NAME.findall(alert["expr"])}
    assert named <= series_of(kinds)


def test_queries_use_existing_labels(repository: Path) -> None:
    """Checks labels in braces, except those that Prometheus adds."""
    labels_of = {name: labels for name, (_, labels) in documented(repository).items()}
    for query in (*queries(), *(alert["expr"] for alert in alerts())):
        for series, matchers in re.findall(r"\b(darkroom_\w+)\{([^}]*)\}", query):
            name = series if series in labels_of else re.sub("_(bucket|sum|count)$", "", series)
            wanted = set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) - {"namespace", "pod"}
            assert wanted <= labels_of[name], query


@pytest.fixture(scope="module")
def promtool() -> Path:
    """The tool `promtool`, of Debian's package `prometheus`."""
    program = shutil.which("promtool")
    if program is None:
        _lacks("no promtool on the PATH")
    return Path(program or "")


def run(promtool: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [promtool, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=os.sep
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_fires_when_it_should_and_not_before(promtool: Path) -> None:
    cases = Path(__file__).with_name("alerts.yaml")
    run(promtool, "test", "rules", cases)
    tested = [each for case in yaml.safe_load(cases.read_text())["tests"] for each in case["alert_rule_test"]]
    assert {each["alertname"] for each in tested if each.get("exp_alerts")} == {alert["alert"] for alert in alerts()}


def test_prometheus_accepts_its_configuration(promtool: Path, tmp_path: Path) -> None:
    """Debian's build lacks Kubernetes: the discovery of pods is compared with Prometheus' docs by hand."""
    settings = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    (job,) = settings["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["darkroom"]}}]
    job["static_configs"] = [{"targets": ["localhost:8080"]}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(MONITORING / "rules.yaml", tmp_path)
    run(promtool, "check", "config", tmp_path / "prometheus.yaml")


@pytest.mark.parametrize("overlay", WITH_MONITORING)
def test_each_pod_with_metrics_has_annotations_for_prometheus(overlay: str, rendered: dict[str, list[Object]]) -> None:
    objects = rendered[overlay]
    functions = [
        find(objects, "Service", name, version=SERVING) for name in ("submit", "jobs", "result", "undelivered")
    ]
    for workload in (
        *functions,
        find(objects, "Deployment", "courier"),
        find(objects, "Deployment", "darkroom-operator"),
    ):
        said = workload["spec"]["template"]["metadata"]["annotations"]
        assert said["prometheus.io/scrape"] == "true"
        ports = [str(port["containerPort"]) for port in main_container(workload)["ports"]]
        assert ports == [said["prometheus.io/port"]]
    for name, keys in (
        ("darkroom-prometheus", {"prometheus.yaml", "rules.yaml"}),
        ("darkroom-dashboard", {"darkroom.json"}),
    ):
        assert find(objects, "ConfigMap", name)["data"].keys() == keys


@pytest.mark.parametrize("overlay", WITH_MONITORING)
def test_network_policies_allow_prometheus(overlay: str, rendered: dict[str, list[Object]]) -> None:
    door = {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "ports": [{"port": 8080}],
    }
    for name in ("functions", "metrics"):
        assert door in find(rendered[overlay], "NetworkPolicy", name)["spec"]["ingress"]
