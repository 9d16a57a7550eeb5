"""What one part needs, with its hashes, out of the one lock: so that an image installs its own part and no other.

    python3 cli/darkroom_cli/local/part_lock.py core functions postgresql

Arguments are `core`, extras and dependency groups of `pyproject.toml`. Printed are the entries of `requirements.lock`
that these ask for, directly or through one another, as they stand there. The lock says with each entry who asks for it,
which is all that is read: nothing is resolved and nobody is asked. Run in the repository, or in a folder with both
files. It needs Python's own library alone, since the Dockerfiles run it before anything is installed.
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

_ASKS = re.compile(r"^    #(?: via|  ) +([A-Za-z0-9._-]+)", re.MULTILINE)
"""A comment that names who asks for the entry: `# via one`, or `#   each` below `# via`."""


@dataclass(frozen=True)
class Entry:
    """One version of a package in the lock: its text with hashes, and the names of who asks for it.

    Where that depends on Python's version, a package has several; the text says which is for which, and pip chooses.
    """

    name: str
    text: str
    asked_by: frozenset[str]


def main(arguments: Sequence[str], folder: Path = Path()) -> int:
    """Print the part's lock. Answers 2, after one line on stderr, for a name that is neither core, extra nor group."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    try:
        roots = asked_for(project, arguments)
    except KeyError as error:
        sys.stderr.write(f"{error.args[0]!r} is neither core nor an extra or a dependency group of pyproject.toml\n")
        return 2
    lock = entries((folder / "requirements.lock").read_text())
    chosen = closure(lock, roots)
    sys.stdout.write("".join(entry.text for entry in lock if entry.name in chosen))
    return 0


def asked_for(project: Mapping[str, Any], parts: Iterable[str]) -> set[str]:
    """The names of the packages that these parts ask for themselves. Raises KeyError with a name that is no part."""
    known = {
        **project["dependency-groups"],
        **project["project"]["optional-dependencies"],
        "core": project["project"]["dependencies"],
    }
    return {_name(requirement) for part in parts for requirement in known[part]}


def entries(lock: str) -> list[Entry]:
    """What is in a lock as `uv pip compile` writes it, in its order."""
    texts = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    return [Entry(_name(text), text, frozenset(_ASKS.findall(text))) for text in texts]


def closure(lock: Iterable[Entry], roots: Set[str]) -> set[str]:
    """The names of the roots, of all that they ask for, and so on."""
    chosen: set[str] = set()
    found = set(roots)
    while found:
        chosen |= found
        found = {entry.name for entry in lock if entry.asked_by & found} - chosen
    return chosen


def _name(requirement: str) -> str:
    """How the package that it begins with is called in the lock."""
    name, *_ = NAME.findall(requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
