"""`darkroom up` with keys, as users meet it: the first key, the tutorial of docs/access.md, and each command."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from darkroom.access.credentials import Credential
from darkroom_cli.exits import DONE, FAILED

from tests.darkroom_command import command, darkroom, environment
from tests.system.running import END_LIMIT_S, System, nothing_is_left_of
from tests.waiting import eventually

SMALL = ("--model", "sd", "--width", "64", "--height", "64", "--steps", "1")


@pytest.fixture
def admin(keyed_system: System) -> dict[str, str]:
    """The variables of an administrator's commands."""
    return {"DARKROOM_URL": keyed_system.url, "DARKROOM_KEY_FILE": str(keyed_system.ready["key_file"])}


@pytest.fixture
def tenant(admin: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A new tenant, by the name of the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:60].strip("-")
    done = darkroom(["tenants", "create", name], folder=tmp_path, **admin)
    assert done.returncode == 0, done.stderr
    return name


def as_json(arguments: list[str], folder: Path, **variables: str) -> list[dict[str, Any]]:
    """The objects that a command prints with --json."""
    done = darkroom([*arguments, "--json"], folder=folder, **variables)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def new_key(tenant: str, *scopes: str, folder: Path, **admin: str) -> str:
    wanted = [text for scope in scopes for text in ("--scope", scope)]
    (made,) = as_json(["keys", "create", tenant, "--name", "test", *wanted], folder, **admin)
    return str(made["key"])


def test_the_tutorial_runs_as_it_is_written(keyed_system: System, repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs/access.md").read_text()
    tutorial = page.partition("## Tutorial")[2].partition("\n## ")[0]
    first, *blocks = re.findall(r"```sh\n(.*?)```", tutorial, re.DOTALL)
    assert first == 'make up ARGS="--host 0.0.0.0"\n'
    assert len(blocks) == 5

    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "darkroom"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m darkroom_cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".darkroom").mkdir()
    (tmp_path / ".darkroom" / "root-key").write_text(Path(keyed_system.ready["key_file"]).read_text())
    script = "set -e\n" + "\n".join(blocks).replace("http://localhost:8000", keyed_system.url)
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=tmp_path,
        env=environment(DARKROOM_URL=keyed_system.url, PATH=os.pathsep.join((str(program.parent), os.environ["PATH"]))),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * END_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused, as it should be" in done.stdout
    assert "lacks the scope submit" in done.stderr
    assert list(tmp_path.glob("*.png"))
    assert Credential.parse((tmp_path / "website.key").read_text().strip()) is not None
    assert stat.S_IMODE((tmp_path / "website.key").stat().st_mode) == 0o600
    assert not (tmp_path / "maria.key").exists()


def test_the_first_start_prints_a_key_and_the_second_one_its_file(own_system: System) -> None:
    own_system.launch("--host", "0.0.0.0", as_json=False)
    first = _output_once_ready(own_system)
    file = own_system.folder / ".darkroom" / "root-key"
    key = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first.count(key) == 1
    assert f"DARKROOM_KEY=$(cat {file.relative_to(own_system.folder)})" in first
    before = list(own_system.processes.values())
    own_system.signal(signal.SIGINT)
    nothing_is_left_of(before)

    own_system.launch("--host", "0.0.0.0", as_json=False)
    second = _output_once_ready(own_system)
    assert file.read_text() == key
    assert key not in second
    assert f"DARKROOM_KEY=$(cat {file.relative_to(own_system.folder)})" in second
    url = re.findall(r"ready at (\S+)", second)[0]
    done = darkroom(["tenants", "list"], folder=own_system.folder, DARKROOM_URL=url, DARKROOM_KEY=key)
    assert (done.returncode, done.stdout) == (0, "default  weight 1\n"), done.stderr
    (line,) = (line for line in second.splitlines() if "| curl" in line)
    sent = own_system.shell(f"export DARKROOM_KEY='{key}'; {line.strip()}")
    assert json.loads(sent.stdout)["status"] == "pending", sent.stderr


def _output_once_ready(system: System) -> str:
    output = system.folder / "up.out"
    eventually(lambda: "Ctrl-C stops darkroom" in output.read_text(), what="`up` to be ready", deadline_s=300)
    return output.read_text()


def test_on_loopback_no_request_needs_a_key(system: System) -> None:
    assert "key" not in system.ready
    assert not (system.folder / ".darkroom" / "root-key").exists()
    assert system.run("list").returncode == 0


def test_every_command_works_with_a_key_and_names_what_is_missing_without(
    keyed_system: System, admin: dict[str, str], tenant: str, tmp_path: Path
) -> None:
    key = new_key(tenant, "submit", "read", "cancel", "manage", folder=tmp_path, **admin)
    own = {"DARKROOM_URL": keyed_system.url, "DARKROOM_KEY": key}
    done = darkroom(["submit", "a lighthouse", *SMALL, "--json"], folder=tmp_path, **own)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout.splitlines()[-1])
    assert Path(tmp_path, job["files"][0]).read_bytes().startswith(b"\x89PNG")
    (made,) = as_json(["subscriptions", "create", "http://localhost:9/"], tmp_path, **own)
    calls = [
        ["status", job["id"]],
        ["watch", job["id"]],
        ["list"],
        ["models"],
        ["dead-letters", "list"],
        ["dead-letters", "purge", "--all"],
        ["subscriptions", "list"],
        ["subscriptions", "secret", made["id"]],
        ["subscriptions", "delete", made["id"]],
        ["delete", job["id"]],
    ]
    for arguments in calls:
        without = darkroom(arguments, folder=tmp_path, DARKROOM_URL=keyed_system.url)
        if arguments != ["models"]:  # is public
            assert without.returncode == 2, arguments
            (line,) = without.stderr.splitlines()
            assert line.endswith("set DARKROOM_KEY to a key, or DARKROOM_KEY_FILE to a file with one")
        done = darkroom(arguments, folder=tmp_path, **own)
        assert done.returncode == 0, (arguments, done.stderr)
        assert key not in done.stdout + done.stderr
    cancelled = darkroom(["cancel", job["id"]], folder=tmp_path, **own)
    assert cancelled.returncode == 2, "the job is deleted"


def test_a_tenant_is_shown_changed_disabled_and_deleted(admin: dict[str, str], tenant: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = darkroom(arguments, folder=tmp_path, **admin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    limits = ("--limit", "running_jobs=4", "--limit", "images_per_day=100")
    assert run("tenants", "change", tenant, "--weight", "2.5", *limits).split("  ") == [
        tenant,
        "weight 2.5",
        "running_jobs=4",
        "images_per_day=100\n",
    ]
    changed = run("tenants", "change", tenant, "--limit", "running_jobs=none", "--limit", "waiting_jobs=0")
    assert "running_jobs" not in changed
    assert {"weight 2.5", "images_per_day=100", "waiting_jobs=0"} <= set(changed.strip().split("  "))
    assert run("tenants", "disable", tenant).strip().endswith("disabled")
    assert run("tenants", "show", tenant).splitlines()[0].endswith("disabled")
    assert not run("tenants", "enable", tenant).strip().endswith("disabled")
    key_id = Credential.parse(run("keys", "create", tenant, "--name", "x").strip())
    assert key_id is not None
    refused = darkroom(["tenants", "delete", tenant], folder=tmp_path, **admin)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"darkroom: the tenant {tenant} has keys: delete them first\n",
    )
    assert key_id.key_id in run("tenants", "show", tenant)
    run("keys", "delete", key_id.key_id)
    assert run("keys", "list", "--tenant", tenant) == ""
    run("tenants", "delete", tenant)
    assert darkroom(["tenants", "show", tenant], folder=tmp_path, **admin).returncode == 2


def test_a_key_is_shown_changed_rotated_and_deleted(
    keyed_system: System, admin: dict[str, str], tenant: str, tmp_path: Path
) -> None:
    key = new_key(tenant, "read", folder=tmp_path, **admin)
    credential = Credential.parse(key)
    assert credential is not None
    own = {"DARKROOM_URL": keyed_system.url, "DARKROOM_KEY": key}
    assert darkroom(["list"], folder=tmp_path, **own).returncode == 0
    lacking = darkroom(["submit", "a lighthouse", "--no-wait"], folder=tmp_path, **own)
    assert lacking.returncode == 2
    assert lacking.stderr.startswith(f"darkroom: the credential {credential.key_id} lacks the scope submit: use a key")
    changes = ["--scope", "submit", "--scope", "read", "--model", "sd", "--name", "poster", "--limit", "burst=2"]
    expires = ["--expires", "2099-01-01T00:00:00Z"]
    (changed,) = as_json(["keys", "change", credential.key_id, *changes, *expires], tmp_path, **admin)
    assert changed["scopes"] == ["submit", "read"]
    assert (changed["models"], changed["name"], changed["limits"]) == (["sd"], "poster", {"burst": 2})
    assert changed["expires_at"].startswith("2099")
    (changed,) = as_json(["keys", "change", credential.key_id, "--expires", "never"], tmp_path, **admin)
    assert changed["expires_at"] is None
    eventually(
        lambda: darkroom(["submit", "x", *SMALL, "--no-wait"], folder=tmp_path, **own).returncode == 0,
        what="the new scope to count",
    )
    other = darkroom(["submit", "x", "--model", "flux", "--no-wait"], folder=tmp_path, **own)
    assert (other.returncode, "use a key for that model" in other.stderr) == (2, True), other.stderr

    rotated = darkroom(["keys", "rotate", credential.key_id, "--overlap", "3600"], folder=tmp_path, **admin)
    second = rotated.stdout.strip()
    assert rotated.returncode == 0
    assert "only this time" not in rotated.stdout
    for text in (key, second):
        assert darkroom(["list"], folder=tmp_path, DARKROOM_URL=keyed_system.url, DARKROOM_KEY=text).returncode == 0
    shown = darkroom(["keys", "show", credential.key_id], folder=tmp_path, **admin)
    assert "the previous secret is still valid" in shown.stdout
    for action in ("disable", "delete"):
        done = darkroom(["keys", action, credential.key_id], folder=tmp_path, **admin)
        assert done.returncode == 0, done.stderr
        assert key not in done.stdout
    refused = darkroom(["list"], folder=tmp_path, **own)
    assert refused.returncode == 2
    assert refused.stderr.rstrip().endswith("check DARKROOM_KEY, or ask an administrator for a new key")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tenants", "create", "Studio"], "lower-case letters, digits and hyphens"),
        (["tenants", "create", "x", "--limit", "jobs=1"], "is not a field: use submissions_per_minute"),
        (["tenants", "create", "x", "--limit", "running_jobs=many"], "is not a whole number"),
        (["tenants", "create", "x", "--limit", "running_jobs"], "is not NAME=NUMBER"),
        (["tenants", "create", "x", "--limit", "running_jobs=0"], "must be greater than or equal to 1"),
        (["tenants", "create", "x", "--weight", "0"], "must be greater than 0"),
        (["tenants", "create", "default"], "the tenant default exists"),
        (["tenants", "change", "default"], "nothing to change"),
        (["tenants", "show", "nope"], "there is no tenant nope"),
        (["keys", "create", "nope", "--name", "x"], "there is no tenant nope"),
        (["keys", "create", "default", "--name", "x", "--model", "nope"], "is not a model"),
        (["keys", "create", "default", "--name", "x", "--expires", "tomorrow"], "RFC 3339"),
        (["keys", "create", "default"], "--name"),
        (["keys", "list", "--tenant", "nope"], "there is no tenant nope"),
        (["keys", "show", "nope"], "is not the id of a key"),
        (["keys", "rotate", "aaaaaaaaaaaa"], "there is no key aaaaaaaaaaaa"),
        (["keys", "rotate", "aaaaaaaaaaaa", "--overlap", "-1"], "--overlap"),
        (["keys", "change", "aaaaaaaaaaaa"], "nothing to change"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_commands_name_the_fault(
    admin: dict[str, str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = darkroom(arguments, folder=tmp_path, **admin)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_is_disabled_while_a_job_is_followed_ends_the_command(
    keyed_system: System, admin: dict[str, str], tenant: str, tmp_path: Path
) -> None:
    key = new_key(tenant, "submit", "read", "cancel", folder=tmp_path, **admin)
    credential = Credential.parse(key)
    assert credential is not None
    own = {"DARKROOM_URL": keyed_system.url, "DARKROOM_KEY": key}
    large = ["submit", "x", "--model", "sd", "--width", "512", "--height", "512", "--steps", "50", "--images", "4"]
    process = subprocess.Popen(
        command(*large),
        cwd=tmp_path,
        env=environment(**own),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith(("pending", "running"))
    (job,) = as_json(["list"], tmp_path, **own)
    assert darkroom(["keys", "disable", credential.key_id], folder=tmp_path, **admin).returncode == 0
    _, words = process.communicate(timeout=END_LIMIT_S)
    assert process.returncode == 2, words
    assert f"The job {job['id']} was accepted and continues." in words or "completed" in words  # by then it may be
    assert f"darkroom: the key {credential.key_id} is disabled: check DARKROOM_KEY" in words
    assert darkroom(["keys", "enable", credential.key_id], folder=tmp_path, **admin).returncode == 0
    eventually(
        lambda: darkroom(["cancel", job["id"]], folder=tmp_path, **own).returncode in {DONE, FAILED},
        what="the enabled key to be accepted again; FAILED: the job has finished by then",
    )
