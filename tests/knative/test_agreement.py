"""Manifests and code agree: settings, variables, event types, pools and queues, prefixes, users of Redis."""

from __future__ import annotations

import os
import runpy
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from darkroom.catalogue.models import Catalogue
from darkroom.cloudevents import event as events
from darkroom.jobs import TERMINAL, JobEvent
from darkroom.ledger import queues
from darkroom.settings import PREFIX, Settings
from darkroom_cli.environments import environment as named_environment
from darkroom_courier.settings import CourierSettings, LedgerTimes
from darkroom_functions import assembly
from darkroom_functions.settings import (
    AccessSettings,
    JobsSettings,
    ResultSettings,
    ServeSettings,
    SubmitSettings,
    UndeliveredSettings,
)
from darkroom_operator import pools
from darkroom_operator.settings import OperatorSettings
from darkroom_worker.settings import WorkerSettings
from pydantic.fields import FieldInfo

from tests.knative.rendering import (
    KNATIVE,
    OVERLAYS,
    SERVING,
    Object,
    config_map,
    find,
    main_container,
    of_kind,
    sample,
    variables_of,
)

Rendered = dict[str, list[Object]]

FUNCTIONS: dict[str, tuple[type[Settings], ...]] = {
    "submit": (SubmitSettings, ServeSettings, AccessSettings),
    "jobs": (JobsSettings, ServeSettings, AccessSettings),
    "result": (ResultSettings, ServeSettings, AccessSettings),
    "undelivered": (UndeliveredSettings, ServeSettings, AccessSettings),
}

GIVEN = {"PORT", "K_SINK", "K_CE_OVERRIDES", "DARKROOM_POOL", "DARKROOM_DRAIN_GRACE_S", "DARKROOM_PROBE_PORT"}
"""Variables that Knative, a SinkBinding or the operator sets."""

IN_MANIFESTS = GIVEN | {
    *("DARKROOM_REDIS_URL", "DARKROOM_DATABASE_URL", "DARKROOM_LINK_KEY", "DARKROOM_WEBHOOK_KEYS"),
    *("DARKROOM_PROOF_KEYS", "DARKROOM_ROOT_KEY", "DARKROOM_SINK_TOKEN_FILE"),
    *("DARKROOM_HOST", "DARKROOM_MODELS", "DARKROOM_TENANTS_FILE"),
}
"""Settings in the manifest of their part or in a Secret, and not in the ConfigMap."""

OBJECT_STORE = {"AWS_ENDPOINT", "AWS_REGION", "AWS_ALLOW_HTTP"}
"""Variables of the object store's library."""

ENVIRONMENTS = {"dev": "4", "demo": "2", "test": "3"}
"""The Redis databases of the environments."""


def settings_of(kinds: Iterable[type[Settings]]) -> dict[str, FieldInfo]:
    """Every variable of these settings."""
    return {
        str(field.validation_alias or f"{PREFIX}{name.upper()}"): field
        for kind in kinds
        for name, field in kind.model_fields.items()
    }


def required(kinds: Iterable[type[Settings]]) -> set[str]:
    return {name for name, field in settings_of(kinds).items() if field.is_required()}


EVERY = settings_of((*(kind for kinds in FUNCTIONS.values() for kind in kinds), CourierSettings, WorkerSettings))


def example(objects: list[Object]) -> dict[str, str]:
    described: dict[str, str] = yaml.safe_load(config_map(objects, "darkroom-settings")["data"]["_example"])
    return described


def written(value: Any) -> str:
    """A default as the value of a variable."""
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_example_describes_each_setting_and_no_other(rendered: Rendered) -> None:
    undocumented = settings_of((LedgerTimes,)).keys()
    assert set(example(rendered["k3d"])) == (EVERY.keys() - IN_MANIFESTS - undocumented) | OBJECT_STORE


def test_the_example_has_the_defaults(rendered: Rendered) -> None:
    without = {"DARKROOM_PUBLIC_URL", "DARKROOM_STORE", "DARKROOM_RETENTION_DAYS", "DARKROOM_WEBHOOK_ALLOW"}
    without |= {"DARKROOM_ALLOWED_HOSTS", "DARKROOM_ALLOWED_ORIGINS"}
    without |= {"DARKROOM_OIDC_ISSUER", "DARKROOM_OIDC_AUDIENCE"}
    described = {name: value for name, value in example(rendered["k3d"]).items() if name not in without | OBJECT_STORE}
    assert described == {name: written(EVERY[name].default) for name in described}


def test_each_key_of_the_example_has_the_description_of_the_code_as_its_comment(rendered: Rendered) -> None:
    text = config_map(rendered["k3d"], "darkroom-settings")["data"]["_example"]
    for block in text.strip().split("\n\n"):
        *comment, last = block.splitlines()
        assert comment
        assert all(line.startswith("# ") for line in comment), block
        assert not last.startswith("#"), block
        name = last.partition(":")[0]
        if name not in OBJECT_STORE:
            description = " ".join((EVERY[name].description or "").split())
            assert " ".join(line.removeprefix("# ") for line in comment).startswith(f"{description} For "), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_key_of_the_settings_is_described(overlay: str, rendered: Rendered) -> None:
    data = config_map(rendered[overlay], "darkroom-settings")["data"]
    assert data.keys() - {"_example"} <= example(rendered[overlay]).keys()


def test_a_setting_has_the_same_type_and_default_in_every_part() -> None:
    """All parts share the ConfigMap, so settings of the same name must be equal."""
    parts: tuple[tuple[type[Settings], ...], ...] = (*FUNCTIONS.values(), (CourierSettings,), (WorkerSettings,))
    by_part = [settings_of(kinds) for kinds in parts]
    for one in by_part:
        for other in by_part:
            for name in (one.keys() & other.keys()) - IN_MANIFESTS:
                assert one[name].description == other[name].description, name


def _secrets(bootstrap: ModuleType) -> dict[str, dict[str, str]]:
    settings = {"DARKROOM_NAMESPACE": "any", "REDIS_DATABASE": "0"}
    return {name: make(settings) for name, make in bootstrap.SECRETS.items()}


def _names(container: Object) -> set[str]:
    return {variable["name"] for variable in container.get("env", [])}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_variables_that_it_needs_and_no_other(
    name: str, rendered: Rendered, bootstrap: ModuleType
) -> None:
    for overlay in OVERLAYS:
        container = main_container(find(rendered[overlay], "Service", name, version=SERVING))
        assert _names(container) <= settings_of(FUNCTIONS[name]).keys(), overlay
        environment = variables_of(rendered[overlay], container, _secrets(bootstrap))
        assert required(FUNCTIONS[name]) <= environment.keys(), overlay
        assert container["command"] == ["python", "-m", "darkroom_functions.serve", name.replace("-", "_")]


def test_there_is_a_knative_service_for_each_function(rendered: Rendered) -> None:
    services = of_kind(rendered["k3d"], "Service", version=SERVING)
    assert {each["metadata"]["name"].replace("-", "_") for each in services} == set(assembly.FUNCTIONS)


def test_the_courier_has_the_variables_that_it_needs_and_no_other(rendered: Rendered, bootstrap: ModuleType) -> None:
    for overlay in OVERLAYS:
        container = main_container(find(rendered[overlay], "Deployment", "courier"))
        assert _names(container) <= settings_of((CourierSettings,)).keys(), overlay
        environment = variables_of(rendered[overlay], container, _secrets(bootstrap)) | {
            "K_SINK": "from the SinkBinding"
        }
        assert required((CourierSettings,)) <= environment.keys(), overlay


def test_the_operator_has_the_prefix_and_the_namespace_of_the_environment(rendered: Rendered) -> None:
    for overlay in OVERLAYS:
        container = main_container(find(rendered[overlay], "Deployment", "darkroom-operator"))
        assert _names(container) <= settings_of((OperatorSettings,)).keys(), overlay
        assert required((OperatorSettings,)) | {"DARKROOM_NAMESPACE"} <= _names(container), overlay


def test_workers_of_the_pools_have_the_variables_that_they_need(rendered: Rendered, bootstrap: ModuleType) -> None:
    for pool in of_kind(sample("pools"), "WorkerPool"):
        container = main_container(pool)
        environment = variables_of(rendered["k3d"], container, _secrets(bootstrap))
        assert required((WorkerSettings,)) <= environment.keys() | GIVEN
        assert _names(container) <= settings_of((WorkerSettings,)).keys() | {"HF_HOME"}


def test_a_pool_of_the_samples_is_the_pool_of_its_models() -> None:
    """Its name is that of the queue of the models' jobs."""
    catalogue = Catalogue.load()
    samples = of_kind(sample("pools"), "WorkerPool")
    assert {name for pool in samples for name in pool["spec"]["models"]} == {model.name for model in catalogue}
    for pool in samples:
        queues_of = {queues.queue_name(catalogue.get(name).pool) for name in pool["spec"]["models"]}
        assert queues_of == {queues.queue_name(pool["metadata"]["name"])}


@pytest.mark.parametrize("overlay", ["gpu", "prod"])
def test_the_quota_allows_the_maximum_of_the_samples_pools(overlay: str, rendered: Rendered) -> None:
    """The quota limits the sum of all pools."""
    samples = of_kind(sample("pools"), "WorkerPool")
    wanted = sum(pool["spec"]["maxReplicas"] * pool["spec"]["gpu"]["count"] for pool in samples)
    quota = find(rendered[overlay], "ResourceQuota", "darkroom-gpus")
    assert quota["spec"]["hard"] == {"requests.nvidia.com/gpu": str(wanted)}


def test_the_specifications_of_the_samples_pools_are_valid() -> None:
    for pool in of_kind(sample("pools"), "WorkerPool"):
        made = pools.read_spec({**pool, "metadata": {**pool["metadata"], "uid": "any"}})
        assert made.gpus == 1


def test_the_triggers_select_the_events_that_the_functions_accept(rendered: Rendered) -> None:
    def types(trigger: str) -> set[str]:
        filters = find(rendered["k3d"], "Trigger", trigger)["spec"]["filters"]
        return {each["exact"]["type"] for one in filters for each in one.get("any", [one])}

    published = {JobEvent.STARTED, *(JobEvent(state) for state in TERMINAL)}
    assert types("applied") == {events.type_of(event) for event in published}
    assert types("requested") == {events.REQUESTED}


def test_each_trigger_and_the_broker_have_a_dead_letter_sink(rendered: Rendered) -> None:
    for each in [*of_kind(rendered["k3d"], "Trigger"), *of_kind(rendered["k3d"], "Broker")]:
        sink = each["spec"]["delivery"]["deadLetterSink"]["ref"]
        assert find(rendered["k3d"], sink["kind"], sink["name"], version=sink["apiVersion"])


def test_references_name_existing_objects(rendered: Rendered) -> None:
    """References of Triggers and SinkBindings, which are not validated until they are used."""
    objects = rendered["k3d"]
    for trigger in of_kind(objects, "Trigger"):
        assert find(objects, "Broker", trigger["spec"]["broker"])
        subscriber = trigger["spec"]["subscriber"]["ref"]
        assert find(objects, subscriber["kind"], subscriber["name"], version=subscriber["apiVersion"])
    for binding in of_kind(objects, "SinkBinding"):
        for end in (binding["spec"]["subject"], binding["spec"]["sink"]["ref"]):
            assert find(objects, end["kind"], end["name"], version=end["apiVersion"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_of_a_pod_is_created_or_documented_as_needed(
    overlay: str, rendered: Rendered, bootstrap: ModuleType
) -> None:
    """By the bootstrap Job, or by hand as the first lines of the overlay describe."""
    job = main_container(find(rendered[overlay], "Job", "darkroom-bootstrap"))
    made = set(job["args"])
    assert made <= set(bootstrap.SECRETS)
    by_hand = (KNATIVE / "overlays" / overlay / "kustomization.yaml").read_text().partition("apiVersion")[0]
    for name in set(bootstrap.SECRETS) - made:
        assert f"`{name}`" in by_hand
    for name in made:
        assert f"`{name}`" not in by_hand


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_has_a_database_and_prefix(environment: str, rendered: Rendered, bootstrap: ModuleType) -> None:
    container = main_container(find(rendered[environment], "Job", "darkroom-bootstrap"))
    values = variables_of(rendered[environment], container, {})
    assert values == {"DARKROOM_NAMESPACE": f"darkroom-{environment}", "REDIS_DATABASE": ENVIRONMENTS[environment]}
    secret = bootstrap.redis_secret(values)
    assert {url.rpartition("/")[2] for name, url in secret.items() if name != "users.acl"} == {
        ENVIRONMENTS[environment]
    }


def test_an_environment_has_the_same_database_on_one_machine() -> None:
    own = named_environment.ENVIRONMENTS
    assert {name: str(each.database) for name, each in own.items()} == ENVIRONMENTS
    assert {name: each.namespace for name, each in own.items()} == {name: f"darkroom-{name}" for name in ENVIRONMENTS}


def test_a_step_of_make_applies_its_own_objects(rendered: Rendered) -> None:
    """`knative/cluster.sh` selects objects by this label."""

    def labelled(name: str) -> set[tuple[str, str]]:
        of_all = [(each, each["metadata"].get("labels", {})) for each in rendered["k3d"]]
        chosen = [each for each, labels in of_all if labels.get("app.kubernetes.io/component") == name]
        return {(each["kind"], each["metadata"]["name"]) for each in chosen}

    stores = {(kind, name) for kind in ("Service", "StatefulSet") for name in ("redis", "postgresql", "s3")}
    secrets = {(kind, "darkroom-bootstrap") for kind in ("Job", "Role", "RoleBinding", "ServiceAccount")}
    settings = {("Namespace", "darkroom"), ("ConfigMap", "redis")}
    settings.add(("ConfigMap", config_map(rendered["k3d"], "darkroom-settings")["metadata"]["name"]))
    assert labelled("services") == stores | secrets | settings | {("ConfigMap", "bootstrap")}
    assert labelled("gateway") >= {("Deployment", "gateway"), ("Service", "gateway")}


def test_flower_uses_the_broker_options_of_the_workers(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    program = KNATIVE / "base" / "flower" / "darkroom_flower.py"
    assert config_map(rendered["k3d"], "flower")["data"][program.name] == program.read_text()
    for name, value in {
        "FLOWER_BASIC_AUTH": "a:b",
        "DARKROOM_REDIS_URL": "redis://h/0",
        PREFIX + "NAMESPACE": "n",
    }.items():
        monkeypatch.setitem(os.environ, name, value)
    app = runpy.run_path(str(program))["app"]
    options = queues.transport_options("n", "any")
    assert app.conf.broker_transport_options["global_keyprefix"] == options["global_keyprefix"]


def test_the_bootstrap_job_runs_the_program_that_is_tested(rendered: Rendered) -> None:
    job = find(rendered["k3d"], "Job", "darkroom-bootstrap")
    (volume,) = job["spec"]["template"]["spec"]["volumes"]
    program = KNATIVE / "base" / "bootstrap" / "bootstrap.py"
    assert find(rendered["k3d"], "ConfigMap", volume["configMap"]["name"])["data"][program.name] == program.read_text()


def test_the_example_of_a_model_is_valid(rendered: Rendered, tmp_path: Path) -> None:
    text = config_map(rendered["k3d"], "darkroom-models")["data"]["_example"]
    (tmp_path / "example.toml").write_text(text)
    assert Catalogue.load([tmp_path]).get(tomllib.loads(text)["name"]).pool == "flux"


def test_functions_and_workers_read_the_same_models(rendered: Rendered) -> None:
    parts = [find(rendered["k3d"], "Service", name, version=SERVING) for name in ("submit", "jobs")]
    for each in [*parts, *of_kind(sample("pools"), "WorkerPool")]:
        container = main_container(each)
        folder = {variable["name"]: variable.get("value") for variable in container["env"]}["DARKROOM_MODELS"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == folder]
        volumes = each["spec"]["template"]["spec"]["volumes"]
        (volume,) = [volume for volume in volumes if volume["name"] == mount["name"]]
        models = config_map(rendered["k3d"], "darkroom-models")["metadata"]["name"]
        assert volume["configMap"]["name"] == ("darkroom-models" if each["kind"] == "WorkerPool" else models)


def test_redis_is_open_to_the_pods_that_need_it_by_their_labels(rendered: Rendered) -> None:
    """The policy selects the label that the operator sets on workers."""
    (pool, *_) = of_kind(sample("pools"), "WorkerPool")
    made = pools.deployment(pools.read_spec({**pool, "metadata": {**pool["metadata"], "uid": "any"}}), config_maps={})
    label = made["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
    policy = find(rendered["gpu"], "NetworkPolicy", "redis")
    named = {
        value
        for peer in policy["spec"]["ingress"][0]["from"]
        for expression in peer["podSelector"]["matchExpressions"]
        for value in expression["values"]
    }
    assert label in named
    assert {"courier", "darkroom-operator", "flower", "submit", "jobs", "result", "undelivered"} <= named
