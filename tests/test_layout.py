"""The layout of the repository: roots, packages, targets and imports, as CONTRIBUTING.md describes them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("core", "functions", "operator", "worker-images", "courier", "cli")
ROOTS = (*SOURCE_ROOTS, "knative", "loadtest", "tests")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = tuple(map(Path, PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]))

HEAVY = ("celery", "diffusers", "functions_framework", "kopf", "starlette", "torch", "transformers", "uvicorn")
"""Libraries that importing a package must not import; its modules import them where they need them."""

TREES = "|".join(("work", "farm", "root", "opt/wheels", "opt/pypi", "tmp/try"))
REGISTRIES = "|".join(("pypi" + ".org", "python" + "hosted", "registry." + "npmjs", "download." + "pytorch"))
PLACES = re.compile(rf"(?<![\w.~-])/(?:{TREES})[/-]|{REGISTRIES}")
"""Folders of the machines this is developed on, and hosts that packages come from: pip, uv and npm know theirs."""


def run(*command: str, **environment: str) -> str:
    """The output of a command in the repository root; a failing one fails the test with its output."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def committed_files() -> list[Path]:
    """Every file that is committed or could be: what git does not ignore."""
    listing = run("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_is_a_folder_and_no_package(root: str) -> None:
    assert (ROOT / root).is_dir()
    assert not (ROOT / root / "__init__.py").exists()


@pytest.mark.parametrize("root", [*SOURCE_ROOTS, "loadtest"])
def test_a_source_root_holds_packages_and_no_loose_module(root: str) -> None:
    assert list((ROOT / root).glob("*.py")) == []


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_every_package_of_the_wheel_exists(package: Path) -> None:
    assert (ROOT / package / "__init__.py").is_file()


def test_the_folder_operator_does_not_shadow_pythons_operator() -> None:
    """The root is first on the path, and without `site` (-S) nothing has imported `operator` before."""
    program = "import operator; operator.itemgetter; print(operator.__file__)"
    assert Path(run(sys.executable, "-S", "-c", program).strip()).parent == Path(os.__file__).parent


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_importing_a_package_does_nothing(package: Path) -> None:
    """No socket, no process, no variable read from the environment, none of the heavy libraries."""
    program = f"""
import json, os, sys
sys.path[:0] = {[str(ROOT / "core"), str(ROOT / package.parent)]}
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.split(".")[0] in ("socket", "subprocess") else None)
class Watched(dict):
    def __getitem__(self, name): seen.append(name); return super().__getitem__(name)
    def get(self, name, default=None): seen.append(name); return super().get(name, default)
os.environ = Watched(os.environ)
import {package.name}
print(json.dumps(seen + [name for name in {HEAVY} if name in sys.modules]))
"""
    assert json.loads(run(sys.executable, "-c", program)) == []


def test_make_help_lists_every_target() -> None:
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^  ([a-z-]+(?: [a-z-]+)*)", run("make", "--no-print-directory", "help"), re.MULTILINE)
    assert sorted(" ".join(listed).split()) == sorted(" ".join(rules).split())


def test_no_committed_file_names_a_machine_or_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in committed_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if PLACES.search(line)
    ]
    assert found == []


def test_no_pattern_has_a_possessive_quantifier() -> None:
    """CPython 3.11.2 matches them wrongly (https://github.com/python/cpython/issues/106052)."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {text}"
        for path in committed_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"
        for node in _literals(ast.parse(path.read_text()))
        for text in [_as_text(node)]
        if _has_possessive_quantifier(text)
    ]
    assert found == []


def _literals(tree: ast.Module) -> list[ast.Constant | ast.JoinedStr]:
    """All literals but docstrings."""
    nodes = list(ast.walk(tree))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return [node for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docstrings]


def _as_text(node: ast.Constant | ast.JoinedStr) -> str:
    """The literal's text, with a letter in the place of each value of an f-string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)


def _has_possessive_quantifier(text: str) -> bool:
    """Whether `text`, read as a regular expression, has one; a text that is no regular expression has none."""
    try:
        re.compile(text)
    except (re.error, OverflowError):
        return False
    # Outside a class of characters, and not escaped: what quantifies, followed by a plus sign.
    bare = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", text)
    return re.search(r"[*+?}]\+", bare) is not None


def test_torch_is_named_in_its_own_file_and_not_locked() -> None:
    """Its builds for CPU and CUDA have one version and different hashes."""
    locked = re.findall(r"^([\w.-]+)==\S+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    required = re.findall(r"^([\w.-]+)==\S+", (ROOT / "requirements-torch.txt").read_text(), re.MULTILINE)
    assert required == ["torch"]
    assert locked
    assert [name for name in locked if name == "torch" or name.startswith(("nvidia-", "triton"))] == []


def test_the_wheel_carries_the_scripts_of_the_ledger_and_the_migrations(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    data = [path for path in (ROOT / "core").rglob("*") if path.suffix in {".lua", ".toml"}]
    data += (ROOT / "core" / "darkroom" / "history" / "migrations").rglob("*.py")
    assert data
    assert [path for path in data if path.relative_to(ROOT / "core").as_posix() not in inside] == []


def test_actions_are_named_by_commit() -> None:
    """A tag can be moved to other code. The version stands beside the commit, for readers."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
    used = [line for path in workflows for line in re.findall(r"^.*\buses:.*$", path.read_text(), re.MULTILINE)]
    assert used
    assert [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v[0-9.]+$", line)] == []
