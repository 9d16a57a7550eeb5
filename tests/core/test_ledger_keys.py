"""The names of Redis' keys: `ledger/keys.py` and the scripts' prelude define the same ones."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from darkroom.ledger.keys import PENDING_STARTS, Keys

from tests.core.timed_jobs import TimedJobs

LUA = resources.files("darkroom.ledger") / "lua"
PRELUDE = (LUA / "prelude.lua").read_text()
CELERY = {"celery_prefix", "unacked"}
"""Keys that Celery's transport alone writes."""


def lua_name(name: str) -> str:
    return name if name.endswith("_channel") else f"{name}_key"


def _quoted(words: list[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


def own_names() -> dict[str, list[str]]:
    """The keys of `Keys`, each with its arguments."""
    names: dict[str, list[str]] = {}
    for name, member in vars(Keys).items():
        if isinstance(member, property):
            names[name] = []
        elif not name.startswith("_"):
            code = member.__code__
            names[name] = list(code.co_varnames[1 : code.co_argcount])
    return {name: arguments for name, arguments in names.items() if name not in CELERY}


def test_the_prelude_and_the_module_name_the_same_keys(jobs: TimedJobs) -> None:
    names = own_names()
    calls = [
        f"{lua_name(name)}({', '.join(repr(each) for each in of)})" if of else lua_name(name)
        for name, of in names.items()
    ]
    script = f"{PRELUDE}\nreturn {{{', '.join(calls)}}}"

    in_lua = [key.decode() for key in jobs.redis.eval(script, 1, "namespace")]

    keys = Keys("namespace")
    ours = [getattr(keys, name)(*of) if of else getattr(keys, name) for name, of in names.items()]
    assert in_lua == ours
    assert len(set(ours)) == len(ours)


def test_the_prelude_has_no_key_that_the_module_lacks() -> None:
    functions = re.findall(r"^local function (\w+)_key\(", PRELUDE, re.MULTILINE)
    functions += re.findall(r"^local function (\w+_channel)\(", PRELUDE, re.MULTILINE)
    constants = re.findall(r"^local (\w+)_key =", PRELUDE, re.MULTILINE)
    constants += re.findall(r"^local (\w+_channel) =", PRELUDE, re.MULTILINE)
    assert sorted([*functions, *constants]) == sorted(own_names())


SCRIPTS = {file.name: file.read_text() for room in LUA.iterdir() if room.is_dir() for file in room.iterdir()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_spells_a_key_of_its_own(script: str) -> None:
    assert not re.search(r"\bP \.\.", SCRIPTS[script])


def test_the_field_of_pending_starts_is_named_once() -> None:
    assert f"local PENDING_STARTS = '{PENDING_STARTS}'" in PRELUDE
