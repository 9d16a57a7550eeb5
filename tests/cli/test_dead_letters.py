"""`darkroom dead-letters` against the real functions: output, effects and exit statuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd

from tests.darkroom_command import darkroom
from tests.functions.api import Api, serving

UNKNOWN_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"


@pytest.fixture
def api(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[Api]:
    with serving(redis_url, namespace, tmp_path) as api:
        yield api


def dead(api: Api, **given: Any) -> str:
    """A job of the default model whose attempts are used up."""
    job_id = api.submit({"prompt": "a lighthouse", "seed": 7, **given})
    for number in range(3):
        api.jobs.start(job_id, token=f"{number}")
        error = {"kind": "transient", "message": "hiccup"}
        ended = api.jobs.run(calls.retry(job_id, token=f"{number}", error=error, delay_ms=0))
    assert ended is AttemptEnd.FAILED
    return job_id


def letters(api: Api, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return darkroom(["dead-letters", *arguments, "--url", api.functions.url], folder=folder)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_dead_letters_are_listed_shown_redriven_and_purged(api: Api, tmp_path: Path) -> None:
    done = letters(api, tmp_path, "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "There are no dead letters.\n")

    first, second, third = (dead(api) for _ in range(3))
    done = letters(api, tmp_path, "list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [third, second, first]
    assert done.stdout.splitlines()[0].endswith("  flux  transient: hiccup")
    assert [letter["id"] for letter in lines_of(letters(api, tmp_path, "list", "--json"))] == [third, second, first]

    done = letters(api, tmp_path, "show", first)
    assert done.returncode == 0, done.stderr
    assert [f"  attempt {number}," in done.stdout for number in (1, 2, 3)] == [True] * 3
    assert json.loads(done.stdout[done.stdout.index("{") :])["subject"] == first
    (letter,) = lines_of(letters(api, tmp_path, "show", first, "--json"))
    assert (letter["id"], len(letter["attempts"])) == (first, 3)

    done = letters(api, tmp_path, "redrive", first, "-p", "prompt=a cat", "-p", "steps=2")
    assert done.returncode == 0, done.stderr
    new = api.job(done.stdout.strip())
    assert new["redrive_of"] == first
    assert (new["prompt"], new["input"]["steps"], new["seed"]) == ("a cat", 2, 7)
    assert f"watch {new['id']}" in done.stderr
    assert letters(api, tmp_path, "redrive", first).stdout.strip() == new["id"]

    done = letters(api, tmp_path, "purge", second)
    assert (done.returncode, done.stdout) == (0, f"The dead letter {second} is purged.\n")
    (counted,) = lines_of(letters(api, tmp_path, "purge", "--all", "--json"))
    assert counted == {"purged": 1}
    assert letters(api, tmp_path, "list").stdout == ""


def test_more_dead_letters_than_a_page_are_all_listed(api: Api, tmp_path: Path) -> None:
    ids = [dead(api) for _ in range(21)]
    assert [letter["id"] for letter in lines_of(letters(api, tmp_path, "list", "--json"))] == ids[::-1]


def test_an_invalid_action_is_reported_and_exits_with_2(api: Api, tmp_path: Path) -> None:
    for action in ("show", "redrive", "purge"):
        done = letters(api, tmp_path, action, UNKNOWN_ID)
        assert (done.returncode, done.stderr) == (2, f"darkroom: there is no dead letter {UNKNOWN_ID}\n")
    done = letters(api, tmp_path, "redrive", dead(api), "-p", "colour=red")
    assert done.returncode == 2
    assert "colour" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["purge"], ["purge", UNKNOWN_ID, "--all"], []], ids=["none", "both", "no action"]
)
def test_purge_needs_an_id_or_all(arguments: list[str], tmp_path: Path) -> None:
    done = darkroom(["dead-letters", *arguments], folder=tmp_path)
    assert done.returncode == 2
    assert "usage: darkroom dead-letters" in done.stderr
