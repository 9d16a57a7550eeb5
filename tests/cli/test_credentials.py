"""The key of the commands: where it is read, which requests carry it, and what a refusal advises."""

from __future__ import annotations

from pathlib import Path

import pytest
from darkroom.access.credentials import Credential
from starlette.responses import JSONResponse

from tests.cli.stage import JOB, Stage, message, on_stage, says, view
from tests.darkroom_command import darkroom

KEY = Credential.generate()
PROBLEM = "application/problem+json"

CALLS = [
    ["submit", "a lighthouse", "--no-wait"],
    ["status", JOB],
    ["list"],
    ["cancel", JOB],
    ["delete", JOB],
    ["models"],
    ["subscriptions", "list"],
    ["subscriptions", "create", "https://receiver.example/"],
    ["subscriptions", "secret", "sub_1"],
    ["subscriptions", "delete", "sub_1"],
]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "the.key"
    path.write_text(f"{KEY.text}\n")
    return path


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_every_request_carries_the_key(stage: Stage, tmp_path: Path, arguments: list[str]) -> None:
    stage.views = [view(stage.url, state="completed", pictures=1)]
    done = darkroom([*arguments, "--url", stage.url], folder=tmp_path, DARKROOM_KEY=KEY.text)
    assert done.returncode == 0, done.stderr
    assert stage.credentials
    assert {credential for _, credential in stage.credentials} == {f"Bearer {KEY.text}"}
    assert KEY.text not in done.stdout + done.stderr


def test_the_key_of_a_file_is_sent_over_sockets_too_and_not_with_the_link_of_a_picture(
    stage: Stage, tmp_path: Path, key_file: Path
) -> None:
    stage.views = [view(stage.url, state="running"), view(stage.url, state="completed", pictures=1)]
    stage.scenes = [says([message(2, "completed", progress=100)])]
    done = darkroom(
        ["watch", JOB, "--output", ".", "--url", stage.url], folder=tmp_path, DARKROOM_KEY_FILE=str(key_file)
    )
    assert done.returncode == 0, done.stderr
    sent = dict(stage.credentials)
    assert sent.pop("/artifacts/0.png") is None
    assert f"/ws/jobs/{JOB}" in sent
    assert set(sent.values()) == {f"Bearer {KEY.text}"}


def test_the_key_is_not_sent_to_the_other_host_of_a_link(stage: Stage, tmp_path: Path) -> None:
    with on_stage(Stage()) as other:
        stage.views = [view(other.url, state="completed", pictures=1)]
        stage.scenes = [says([message(2, "completed", progress=100)])]
        done = darkroom(["watch", JOB, "--output", ".", "--url", stage.url], folder=tmp_path, DARKROOM_KEY=KEY.text)
        assert done.returncode == 0, done.stderr
        assert other.credentials == [("/artifacts/0.png", None)]


def test_a_key_in_both_variables_is_refused(stage: Stage, tmp_path: Path, key_file: Path) -> None:
    done = darkroom(
        ["list", "--url", stage.url], folder=tmp_path, DARKROOM_KEY=KEY.text, DARKROOM_KEY_FILE=str(key_file)
    )
    assert (done.returncode, done.stderr) == (
        2,
        "darkroom: DARKROOM_KEY and DARKROOM_KEY_FILE are both set: unset one of them\n",
    )
    assert stage.credentials == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (KEY.text[:-1], "is not a complete key"),
        (KEY.text[:-1] + ("a" if KEY.text[-1] != "a" else "b"), "its checksum does not match"),
        ("two words", "has one line"),
        (f"{KEY.text}\n{KEY.text}", "has one line"),
        ("clé", "has one line"),
    ],
    ids=["cut", "mistyped", "words", "two lines", "not ascii"],
)
@pytest.mark.parametrize("variable", ["DARKROOM_KEY", "DARKROOM_KEY_FILE"])
def test_an_invalid_key_names_its_variable_and_is_not_sent_or_shown(
    stage: Stage, tmp_path: Path, variable: str, text: str, fault: str
) -> None:
    value = text
    if variable == "DARKROOM_KEY_FILE":
        (tmp_path / "key").write_text(text)
        value = "key"
    done = darkroom(["list", "--url", stage.url], folder=tmp_path, **{variable: value})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"darkroom: {variable}=")
    assert fault in line
    assert text not in done.stderr
    assert stage.credentials == []


@pytest.mark.parametrize(("name", "reason"), [("missing", "No such file"), (".", "Is a directory")])
def test_a_key_file_that_cannot_be_read_is_named(stage: Stage, tmp_path: Path, name: str, reason: str) -> None:
    done = darkroom(["list", "--url", stage.url], folder=tmp_path, DARKROOM_KEY_FILE=str(tmp_path / name))
    assert done.returncode == 2
    assert done.stderr.startswith(f"darkroom: DARKROOM_KEY_FILE={tmp_path / name}: cannot be read: {reason}")


def test_empty_variables_are_unset(stage: Stage, tmp_path: Path) -> None:
    done = darkroom(["list", "--url", stage.url], folder=tmp_path, DARKROOM_KEY="", DARKROOM_KEY_FILE="")
    assert done.returncode == 0, done.stderr
    assert {credential for _, credential in stage.credentials} == {None}


@pytest.mark.parametrize(
    ("status", "slug", "has_key", "advice"),
    [
        (401, "credential-refused", False, "set DARKROOM_KEY to a key, or DARKROOM_KEY_FILE to a file with one"),
        (401, "credential-refused", True, "check DARKROOM_KEY, or ask an administrator for a new key"),
        (403, "scope-missing", True, "use a key with that scope; `darkroom keys create TENANT"),
        (403, "model-not-permitted", True, "use a key for that model, or another --model"),
    ],
)
def test_a_refused_key_is_one_line_with_the_remedy(
    stage: Stage, tmp_path: Path, status: int, slug: str, has_key: bool, advice: str
) -> None:
    problem = {"type": f"https://darkroom.dev/problems/{slug}", "status": status, "detail": "the reason"}
    stage.submission = JSONResponse(problem, status, media_type=PROBLEM)
    own = {"DARKROOM_KEY": KEY.text} if has_key else {}
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path, **own)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"darkroom: the reason: {advice}")


def test_a_key_that_may_submit_and_not_read_names_the_accepted_job(stage: Stage, tmp_path: Path) -> None:
    """No view: the stage refuses reads with a permanent error."""
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path, DARKROOM_KEY=KEY.text)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"The job {JOB} was accepted and continues."
