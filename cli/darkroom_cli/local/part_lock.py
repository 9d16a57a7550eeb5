"""The lock of one part, with hashes, as a subset of the whole lock: an image installs its own part and no other.

    python3 cli/darkroom_cli/local/part_lock.py core functions postgresql

Arguments are `core`, extras and dependency groups of `pyproject.toml`. Prints the entries of `requirements.lock` that
these require, directly or indirectly, unchanged. Each entry of the lock names the packages that require it, and nothing
else is read: nothing is resolved, and no index is contacted. Run in the repository, or in a folder with both files. It
needs only Python's standard library, since the Dockerfiles run it before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_REQUIRED_BY = re.compile(r"^    #(?: via|  ) +([A-Za-z0-9._-]+)", re.MULTILINE)
"""A comment that names a package that requires the entry: `# via one`, or `#   each` below `# via`."""


@dataclass(frozen=True)
class LockEntry:
    """One version of a package in the lock: its text with hashes, and the packages that require it.

    A package whose version depends on Python's has several entries; the text has the markers, and pip chooses.
    """

    name: str
    text: str
    required_by: frozenset[str]


def main(arguments: Sequence[str], folder: Path = Path()) -> int:
    """Print the part's lock. Returns 2, with a line on stderr, for a name that is neither core, extra nor group."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    try:
        roots = required_by_parts(project, arguments)
    except KeyError as error:
        sys.stderr.write(f"{error.args[0]!r} is neither core nor an extra or a dependency group of pyproject.toml\n")
        return 2
    lock = entries((folder / "requirements.lock").read_text())
    chosen = closure(lock, roots)
    sys.stdout.write("".join(entry.text for entry in lock if entry.name in chosen))
    return 0


def required_by_parts(project: Mapping[str, Any], parts: Iterable[str]) -> set[str]:
    """The packages that these parts require directly. Raises KeyError with an unknown name."""
    known = {
        **project["dependency-groups"],
        **project["project"]["optional-dependencies"],
        "core": project["project"]["dependencies"],
    }
    return {_name(requirement) for part in parts for requirement in known[part]}


def entries(lock: str) -> list[LockEntry]:
    """The entries of a lock in the format of `uv pip compile`, in its order."""
    texts = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    return [LockEntry(_name(text), text, frozenset(_REQUIRED_BY.findall(text))) for text in texts]


def closure(lock: Iterable[LockEntry], roots: Set[str]) -> set[str]:
    """The names of the roots and of all packages that they require, directly or indirectly."""
    chosen: set[str] = set()
    found = set(roots)
    while found:
        chosen |= found
        found = {entry.name for entry in lock if entry.required_by & found} - chosen
    return chosen


def _name(requirement: str) -> str:
    """The normalized name of the package that a requirement starts with."""
    name, *_ = NAME.findall(requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
