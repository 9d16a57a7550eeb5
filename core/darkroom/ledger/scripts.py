"""The text of the ledger's Lua scripts, and the digests by which Redis knows them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources


@cache
def texts() -> Mapping[str, bytes]:
    """The text of each script by its name, preceded by the parts of the prelude that it needs."""
    folder = resources.files("darkroom.ledger") / "lua"
    prelude = (folder / "prelude.lua").read_bytes()
    found = {
        entry.name.removesuffix(".lua"): entry.read_bytes()
        for room in folder.iterdir()
        if room.is_dir()
        for entry in room.iterdir()
    }
    return {name: _needed(prelude, text) + text for name, text in found.items()}


def _needed(prelude: bytes, script: bytes) -> bytes:
    """The parts of the prelude that a script uses, and those that they use in turn. A name in code counts as a use.

    Redis creates each function anew in every call: creating all of them took 10 µs, a tenth to a half of a call.
    """
    needed: list[bytes] = []
    words = _words(script)
    for part in reversed(re.split(rb"^(?=local )", prelude, flags=re.MULTILINE)):
        defined = _DEFINED.match(part)
        if defined is None or defined[1] in words:
            needed.append(part)
            words |= _words(part)
    return b"".join(reversed(needed))


def _words(text: bytes) -> set[bytes]:
    return set(re.findall(rb"\w+", _COMMENT.sub(b"", text)))


_DEFINED = re.compile(rb"local (?:function )?(\w+)")
_COMMENT = re.compile(rb"^ *--.*$", re.MULTILINE)


@cache
def digest(script: str) -> str:
    return hashlib.sha1(texts()[script], usedforsecurity=False).hexdigest()
