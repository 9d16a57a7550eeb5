"""The keys of a load, for a server that requires them: each user of locust has one, in turn.

They are in the file that DARKROOM_LOAD_KEYS names, one per line, for a load of several tenants; or in DARKROOM_KEY, or
in the file that DARKROOM_KEY_FILE names, as for the command line. Only the standard library is used here: in a cluster
locust's image has no other modules of darkroom.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SEVERAL = "DARKROOM_LOAD_KEYS"
ONE = "DARKROOM_KEY"
OF_FILE = "DARKROOM_KEY_FILE"


class NoKeys(Exception):
    """The keys cannot be read; the message names the variable."""


def read(environment: Mapping[str, str]) -> Sequence[str]:
    """The keys; empty where none is set. Raises NoKeys."""
    if path := environment.get(SEVERAL):
        lines = [line.strip() for line in _content(SEVERAL, path).splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise NoKeys(f"{SEVERAL}={path}: it has no key")
        return keys
    if key := environment.get(ONE):
        return [key.strip()]
    if path := environment.get(OF_FILE):
        return [_content(OF_FILE, path).strip()]
    return []


def in_turn(keys: Sequence[str]) -> Iterator[str | None]:
    """The key of each next user; None for all without keys."""
    return itertools.cycle(keys or [None])


def headers(key: str | None) -> dict[str, str]:
    """The header of a request with the key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


def _content(variable: str, path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise NoKeys(f"{variable}={path}: it cannot be read: {error.strerror}") from None
