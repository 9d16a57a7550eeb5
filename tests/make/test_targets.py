"""The targets of the Makefile: DRY_RUN=1 prints what they would do, and they run under dash; shellcheck reads them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.make.targets import ENVIRONMENTS, ROOT, make, program, targets
from tests.test_layout import committed_files

OF_ENVIRONMENTS = ("api", "celery", "flower", "redis-keys", "redis-info", "redis-flush")
OF_CLUSTER = (
    *("setup-cluster", "deploy-services", "deploy-app", "deploy-balancer", "start-workshop"),
    *("api-ui", "flower-ui", "show-ui", "remove-app", "clean-all"),
)

PLACES = {"dev": "database 4", "demo": "database 2", "test": "database 3"}

STAND_IN = """\
#!/bin/sh
printf '%s %s\\n' "${0##*/}" "$*" >> "$SEEN"
"""
"""A program that records its calls."""

K3D = (
    STAND_IN
    + """\
case "$1 $2" in
  'cluster list') test -e "$SEEN.cluster" ;;
  'cluster create') : > "$SEEN.cluster" ;;
  'cluster delete') rm "$SEEN.cluster" ;;
esac
"""
)

KUBECTL = (
    STAND_IN
    + """\
for image in dev.local/darkroom-courier:1 docker.io/library/redis:7 dev.local/darkroom-functions:1; do
  [ "$1" != kustomize ] || printf '  image: %s\\n' "$image"
done
"""
)

PODMAN = (
    STAND_IN
    + """\
[ "$1" != image ] || test -e "$SEEN.images"
"""
)

MAKE = (
    STAND_IN
    + """\
: > "$SEEN.images"
"""
)


def only(folder: Path, *names: str) -> None:
    """Create a folder for PATH with these programs, and dash as the shell."""
    (folder / "sh").symlink_to(program("dash"))
    for name in names:
        (folder / name).symlink_to(program(name))


def test_every_documented_target_exists() -> None:
    of_environments = {f"{part}-{name}" for part in OF_ENVIRONMENTS for name in ENVIRONMENTS}
    assert of_environments | {*OF_CLUSTER, "run-loadtest"} <= set(targets())


@pytest.mark.parametrize("target", OF_CLUSTER)
def test_a_dry_run_of_a_step_needs_neither_a_cluster_nor_its_programs(target: str, tmp_path: Path) -> None:
    only(tmp_path, "cat", "dirname", "sed")
    done = make(target, f"SHELL={tmp_path / 'sh'}", "DRY_RUN=1", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_dry_run_of_an_environment_prints_its_database() -> None:
    names = [f"{part}-{name}" for name in ENVIRONMENTS for part in OF_ENVIRONMENTS]
    done = make(*names, f"SHELL={program('dash')}", "DRY_RUN=1")
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if "database" in line]
    expected = [(PLACES[name], f"darkroom-{name}") for name in ENVIRONMENTS for _ in OF_ENVIRONMENTS]
    assert len(printed) == len(expected)
    for line, words in zip(printed, expected, strict=True):
        assert all(word in line for word in words), line


def test_a_dry_run_of_a_load_test_prints_its_plan() -> None:
    done = make("run-loadtest", f"SHELL={program('dash')}", "DRY_RUN=1", "PROFILE=ten-users", "SHAPE=burst-from-zero")
    assert done.returncode == 0, done.stderr
    assert "profile ten-users, shape burst-from-zero" in done.stdout


def test_a_dry_run_installs_nothing() -> None:
    done = make("celery-dev", "DRY_RUN=1", "BIN=nowhere")
    assert done.returncode == 2
    assert "nowhere/python does not exist: run make setup first" in done.stderr


def test_the_hooks_of_pre_commit_run_the_commands_of_lint() -> None:
    (group,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = {hook["entry"].removeprefix("env ").replace(" --force-exclude", "") for hook in group["hooks"]}
    recipe = make("lint", "--dry-run", "--always-make", "BIN=.venv/bin").stdout.splitlines()
    commands = {line.removesuffix(" .") for line in recipe if re.search(r"\.venv/bin/(ruff|mypy|lint)", line)}
    assert len(commands) == 4
    assert commands < entries


def test_shellcheck_has_no_findings(tmp_path: Path) -> None:
    """For each target's recipes as make runs them, and for the scripts."""
    for target in targets():
        lines = make(target, "--dry-run", "--always-make")
        assert lines.returncode == 0, lines.stderr
        (tmp_path / target).write_text(lines.stdout)
    shebangs = {path: re.match(rb"#!.*[/ ](ba|da|)sh\b", path.read_bytes()[:100]) for path in committed_files()}
    scripts = {path: found[1] == b"ba" for path, found in shebangs.items() if found}
    assert {ROOT / ".ci" / "run", ROOT / "knative" / "cluster.sh"} <= scripts.keys()
    of_dash = [*tmp_path.iterdir(), *(path for path, is_bash in scripts.items() if not is_bash)]
    of_bash = [path for path, is_bash in scripts.items() if is_bash]
    for shell, files in (("dash", of_dash), ("bash", of_bash)):
        command = [program("shellcheck"), f"--shell={shell}", *map(str, files)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class StandIns:
    """Stand-ins for the programs of a step; each records its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = folder / "seen"
        for name, text in {"docker": STAND_IN, "k3d": K3D, "kubectl": KUBECTL, "podman": PODMAN, "make": MAKE}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(self, target: str) -> subprocess.CompletedProcess[str]:
        """Run the step as the Makefile's recipe does."""
        self.seen.write_text("")
        variables = {"PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}", "SEEN": str(self.seen)}
        return subprocess.run(
            [program("dash"), ROOT / "knative" / "cluster.sh", target],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        return self.seen.read_text().splitlines()


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path)


def test_the_local_cluster_is_set_up_repeatedly(stand_ins: StandIns) -> None:
    assert stand_ins.run("start-workshop").returncode == 0
    first = stand_ins.calls
    assert stand_ins.run("start-workshop").returncode == 0
    again = stand_ins.calls

    assert [call.split()[2] for call in first if call.startswith("k3d cluster") and "list" not in call] == ["create"]
    assert [call.split()[2] for call in again if call.startswith("k3d cluster") and "list" not in call] == ["start"]
    assert [call for call in first if call.startswith("make")] == ["make images"]
    assert [call for call in again if call.startswith("make")] == []
    for calls in (first, again):
        (saved,) = (call for call in calls if call.startswith("podman save"))
        (of_pool,) = set(re.findall(r"image: (\S+)", (ROOT / "knative/samples/pools-cpu.yaml").read_text()))
        ours = ("dev.local/darkroom-courier:1", "dev.local/darkroom-functions:1", of_pool)
        assert saved.endswith(" ".join(("images.tar", *ours)))
        applied = [call.partition("--kustomize ")[2] for call in calls if "--kustomize" in call]
        overlay = "knative/overlays/k3d"
        assert applied == [
            f"{overlay} --selector app.kubernetes.io/component=services",
            overlay,
            f"{overlay} --selector app.kubernetes.io/component=gateway",
        ]


def test_no_step_changes_another_cluster(stand_ins: StandIns) -> None:
    for target in OF_CLUSTER:
        stand_ins.run(target)
        for call in stand_ins.calls:
            if call.startswith("kubectl") and call != "kubectl kustomize knative/overlays/k3d":
                assert call.startswith("kubectl --context k3d-darkroom "), call
            if call.startswith("k3d cluster"):
                assert call.split()[3] == "darkroom"


@pytest.mark.parametrize("target", ["deploy-services", "deploy-app", "deploy-balancer", "api-ui", "flower-ui"])
def test_a_step_without_its_cluster_names_the_step_that_creates_it(target: str, stand_ins: StandIns) -> None:
    done = stand_ins.run(target)
    assert done.returncode == 1
    assert "`make setup-cluster` creates it" in done.stderr
    assert [call for call in stand_ins.calls if not call.startswith("k3d cluster list")] == []


@pytest.mark.parametrize("lacking", ["docker", "k3d", "kubectl"])
def test_a_step_names_each_missing_program_and_its_source(lacking: str, tmp_path: Path) -> None:
    for name in {"docker", "k3d", "kubectl"} - {lacking}:
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    only(tmp_path, "dirname")
    done = make("setup-cluster", f"SHELL={tmp_path / 'sh'}", PATH=str(tmp_path), SEEN=str(tmp_path / "seen"))
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "is not installed" in line)
    assert re.match(rf"{lacking} is not installed; .*https://", line)
    assert not (tmp_path / "seen").exists()
