"""env/: the examples list all settings, contain no password, and agree with the code; precedence of settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from darkroom.settings import PREFIX, Settings, former_name
from darkroom_cli.environments.environment import ENVIRONMENTS, LEDGER_USERS, EnvironmentSettings
from darkroom_courier.settings import CourierSettings, LedgerTimes
from darkroom_functions.settings import (
    AccessSettings,
    JobsSettings,
    ResultSettings,
    ServeSettings,
    SubmitSettings,
    UndeliveredSettings,
)
from darkroom_operator.settings import OperatorSettings
from darkroom_worker.settings import WorkerSettings
from pydantic import SecretStr

from tests.darkroom_command import darkroom, environment
from tests.knative import bootstrap_program
from tests.knative.rendering import KNATIVE
from tests.redis_server import RedisKind, needed_binary

KINDS: tuple[type[Settings], ...] = (
    *(EnvironmentSettings, SubmitSettings, JobsSettings, ResultSettings, UndeliveredSettings, ServeSettings),
    *(AccessSettings, CourierSettings, WorkerSettings),
)

DECIDED = {
    f"{PREFIX}{name}"
    for name in (
        *("NAMESPACE", "POOL", "STORE", "LINK_KEY", "WEBHOOK_KEYS", "PROOF_KEYS", "HOST", "PROBE_PORT"),
        *("AUTH", "ROOT_KEY"),
    )
}
"""Variables that the environment itself sets."""

OF_FLOWER = {"FLOWER_BASIC_AUTH", "FLOWER_MAX_TASKS"}


def example(repository: Path) -> str:
    return (repository / "env" / ".env.example").read_text()


def described(text: str) -> dict[str, tuple[str, str]]:
    """By name: the comment of a variable, and its value."""
    found = {}
    for block in text.split("\n\n"):
        *words, last = block.strip().splitlines()
        if variable := re.fullmatch(r"#?(\w+)=(.*)", last):
            found[variable[1]] = (" ".join(line.removeprefix("# ") for line in words), variable[2])
    return found


def settings() -> dict[str, object]:
    """The default of each variable that commands and parts read, without Knative's own."""
    return {
        f"{PREFIX}{name.upper()}": None if field.is_required() else field.default
        for kind in reversed(KINDS)
        for name, field in kind.model_fields.items()
        if field.validation_alias is None and name not in LedgerTimes.model_fields
    }


def written(value: object) -> str:
    """A default as the example writes it; empty if there is none."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, (int, str, Path)) else ""


def test_the_example_describes_each_variable_that_may_be_set_and_no_other(repository: Path) -> None:
    assert described(example(repository)).keys() == (settings().keys() - DECIDED) | OF_FLOWER


def test_the_example_has_the_description_and_the_default_of_the_code(repository: Path) -> None:
    said = described(example(repository))
    texts = {
        f"{PREFIX}{name.upper()}": " ".join((field.description or "").split())
        for kind in reversed(KINDS)
        for name, field in kind.model_fields.items()
    }
    for name, default in settings().items():
        if name in said:
            words, value = said[name]
            assert value == written(default), name
            assert words.startswith(texts[name]), name


FORMER_NAMES = {
    CourierSettings: {
        "POSTS": "SINK_CONCURRENCY",
        "POST_TIMEOUT_S": "SINK_TIMEOUT_S",
        "DELIVERIES": "DELIVERY_CONCURRENCY",
        "DELIVERIES_PER_TARGET": "DELIVERY_CONCURRENCY_PER_TARGET",
        "TICK_S": "POLL_INTERVAL_S",
        "LEASE_S": "ATTEMPT_LEASE_S",
        "RETENTION_EVERY_S": "RETENTION_INTERVAL_S",
        "HEALTH_PORT": "PROBE_PORT",
    },
    OperatorSettings: {
        "TICK_S": "RECONCILE_INTERVAL_S",
        "LEASE_S": "ELECTION_LEASE_S",
        "PORT": "PROBE_PORT",
    },
    ResultSettings: {"LOOK_EVERY_S": "STREAM_CHECK_INTERVAL_S"},
}
"""Variables of 0.1 that have another name now, by the part that reads them. They go with the next version."""


@pytest.mark.parametrize("kind", [*KINDS, OperatorSettings], ids=lambda kind: kind.__name__)
def test_a_renamed_setting_is_read_under_its_former_name(kind: type[Settings]) -> None:
    found = {former_name(field): name.upper() for name, field in kind.model_fields.items()}
    found.pop(None, None)
    assert found == {PREFIX + former: current for former, current in FORMER_NAMES.get(kind, {}).items()}


@pytest.mark.parametrize(
    ("part", "former"),
    [
        (["darkroom_courier"], "DARKROOM_POSTS"),
        (["darkroom_operator"], "DARKROOM_TICK_S"),
        (["darkroom_functions.serve", "result"], "DARKROOM_LOOK_EVERY_S"),
    ],
    ids=["courier", "operator", "functions"],
)
def test_a_part_logs_a_former_name_as_a_json_line(part: Sequence[str], former: str, tmp_path: Path) -> None:
    """The process stops afterwards, since its other settings are missing."""
    command = [sys.executable, "-m", *part]
    variables = environment(**{former: "1"})
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert (line["event"], line["level"], line["variable"]) == ("setting_renamed", "warning", former)


def test_the_example_sets_nothing(repository: Path, tmp_path: Path) -> None:
    """Above all no password: a required variable is empty, all others are comments."""
    assert re.findall(r"^\w+=.+$", example(repository), re.MULTILINE) == []
    to_be_set = re.findall(r"^(\w+)=$", example(repository), re.MULTILINE)
    assert to_be_set == ["DARKROOM_REDIS_PASSWORD", "FLOWER_BASIC_AUTH"]
    assert "database 4 of 127.0.0.1:6379" in output_of(tmp_path, {"env/.env": example(repository)})


def redis_example(repository: Path) -> str:
    return (repository / "env" / "redis.conf.example").read_text()


@pytest.mark.parametrize("kind", list(RedisKind))
def test_redis_refuses_to_start_with_the_example_as_it_is(kind: RedisKind, repository: Path, tmp_path: Path) -> None:
    binary = needed_binary(kind)
    (tmp_path / "env").mkdir()
    done = subprocess.run(
        [binary, repository / "env" / "redis.conf.example"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Error in user declaration" in done.stdout + done.stderr


def test_the_example_has_the_users_and_the_rights_of_a_cluster(repository: Path) -> None:
    bootstrap = bootstrap_program.load()
    places = [(environment.namespace, str(environment.database)) for environment in ENVIRONMENTS.values()]
    as_in_a_cluster = {user: "admin" if user == "operator" else user for user in LEDGER_USERS}
    lines = re.findall(r"^user (.*)$", redis_example(repository), re.MULTILINE)
    assert lines == [
        *(line.removeprefix("user ") for line in bootstrap.REDIS_OWN_USERS),
        *(
            f"{user} on #set-a-password {bootstrap.redis_rights(as_in_a_cluster[user], *places)}"
            for user in LEDGER_USERS
        ),
    ]


def test_the_example_keeps_jobs_as_a_cluster_does(repository: Path) -> None:
    def directives(text: str) -> set[str]:
        return {line for line in text.splitlines() if line and not line.startswith(("#", "user ", "aclfile ", "dir "))}

    in_cluster = directives((KNATIVE / "base" / "redis" / "redis.conf").read_text())
    assert directives(redis_example(repository)) == in_cluster | {"bind 127.0.0.1", "port 6379"}
    assert {"appendonly yes", "maxmemory-policy noeviction"} <= in_cluster


ANY = {"DARKROOM_NAMESPACE": "any", "REDIS_DATABASE": "0"}

URL = "DARKROOM_REDIS_URL=redis://{}:7000"


def output_of(folder: Path, files: Mapping[str, str], **own: str) -> str:
    """The output of `darkroom env dev keys --dry-run` with these files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n")
    done = darkroom(["env", "dev", "keys", "--dry-run"], folder=folder, **own)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("files", "own", "host"),
    [
        ({}, {}, "127.0.0.1:6379"),
        ({"env/.env": URL.format("all")}, {}, "all:7000"),
        ({"env/.env": URL.format("all"), "env/.env.dev": URL.format("own")}, {}, "own:7000"),
        ({"env/.env": URL.format("all"), "env/.env.dev": "DARKROOM_REDIS_URL="}, {}, "all:7000"),
        ({"env/.env": URL.format("all"), "env/.env.demo": URL.format("another")}, {}, "all:7000"),
        ({"env/.env.dev": URL.format("own")}, {"DARKROOM_REDIS_URL": "redis://process"}, "process:6379"),
    ],
    ids=["default", "file", "own-file", "empty", "another's-file", "process"],
)
def test_the_process_counts_before_the_environments_file_before_the_file_before_the_default(
    files: Mapping[str, str], own: Mapping[str, str], host: str, tmp_path: Path
) -> None:
    assert f"database 4 of {host}," in output_of(tmp_path, files, **own)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("DARKROOM_NAMESPACE=darkroom", "dev has the prefix 'darkroom-dev'"),
        ("DARKROOM_REDIS_URL=redis://h/2", "the database of dev is 4, not 2"),
        ("DARKROOM_REDIS_URL=unix:///redis", "support redis:// and rediss://"),
        ("DARKROOM_HOME", "DARKROOM_HOME has no value"),
    ],
)
def test_settings_of_another_environment_are_rejected(line: str, words: str, tmp_path: Path) -> None:
    assert words in output_of(tmp_path, {"env/.env": line})


@pytest.mark.parametrize(("name", "action"), [("prod", "flush"), ("production", "info"), ("staging", "flush")])
def test_production_and_unknown_environments_are_rejected(name: str, action: str, tmp_path: Path) -> None:
    done = darkroom(["env", name, action], folder=tmp_path)
    assert done.returncode == 2
    assert name in done.stderr
    assert "dev, demo, test" in done.stderr


def test_flower_does_not_start_without_credentials(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "knative").symlink_to(repository / "knative")
    done = darkroom(["env", "demo", "flower"], folder=tmp_path)
    assert done.returncode == 2
    assert "FLOWER_BASIC_AUTH is not set" in done.stderr


@pytest.mark.parametrize("action", ["api", "worker", "flower", "keys", "info", "flush"])
def test_without_redis_each_command_explains_how_to_start_one(action: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "knative").symlink_to(repository / "knative")
    done = darkroom(
        ["env", "dev", action],
        folder=tmp_path,
        DARKROOM_REDIS_URL="redis://127.0.0.1:1",
        FLOWER_BASIC_AUTH="any:password",
    )
    assert done.returncode == 3
    assert "no Redis answers at database 4 of 127.0.0.1:1; start one: `redis-server env/redis.conf`" in done.stderr
