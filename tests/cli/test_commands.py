"""The client commands: their requests, output, files and exit statuses."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse

from tests.cli.stage import JOB, PICTURE, Stage, message, says, view
from tests.darkroom_command import TIMEOUT_S, command, darkroom, environment

PROBLEM = "application/problem+json"

DONE = message(3, "completed", progress=100, output_paths=["x"], content_id="abc")


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_submit_sends_the_prompt_and_the_parameters(stage: Stage, tmp_path: Path) -> None:
    arguments = ["submit", "a lighthouse", "--model", "sd", "--width", "832", "--seed", "0", "--negative-prompt", "fog"]
    more = ["-p", "guidance=4.5", "-p", "scheduler=euler", "-p", 'note="5"', "--no-wait", "--url", stage.url]
    assert darkroom([*arguments, *more], folder=tmp_path).returncode == 0
    ((method, path, body),) = stage.asked
    assert (method, path) == ("POST", "/")
    event = json.loads(body)
    assert event["type"] == "dev.darkroom.job.requested"
    assert event["data"] == {
        "model": "sd",
        "input": {
            "prompt": "a lighthouse",
            "width": 832,
            "seed": 0,
            "negative_prompt": "fog",
            "guidance": 4.5,
            "scheduler": "euler",
            "note": "5",
        },
    }


def test_with_no_wait_stdout_has_the_id_only(stage: Stage, tmp_path: Path) -> None:
    done = darkroom(["submit", "a lighthouse", "--no-wait", "--url", stage.url], folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{JOB}\n")
    assert f"watch {JOB}" in done.stderr
    assert f"cancel {JOB}" in done.stderr


def test_the_queue_position_and_the_progress_are_shown(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="pending", place=3), view(stage.url, state="completed", pictures=1)]
    stage.scenes = [
        says(
            [
                message(1, "pending"),
                message(2, "running", progress=25),
                message(3, "running", progress=50),
                {**DONE, "seq": 4},
            ]
        )
    ]
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "pending, position 3 in the queue",
        "running, 25 %",
        "running, 50 %",
        "completed, 100 %",
    ]


def test_the_picture_is_saved_and_printed_with_its_seed_and_model(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="completed", pictures=1)]
    stage.scenes = [says([DONE])]
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path)
    assert (tmp_path / f"{JOB}.png").read_bytes() == PICTURE
    assert done.stdout == f"{JOB}.png  (by flux stand-in, untrained weights, seed 7)\n"


@pytest.mark.parametrize(
    ("output", "pictures", "files"),
    [
        ("dusk.png", 1, ["dusk.png"]),
        ("dusk.png", 2, ["dusk-1.png", "dusk-2.png"]),
        ("dusk", 1, ["dusk.png"]),
        ("dusk.v2", 1, ["dusk.v2.png"]),
        ("dusk.PNG", 1, ["dusk.PNG"]),
        (".", 2, [f"{JOB}-1.png", f"{JOB}-2.png"]),
        ("new/", 1, [f"new/{JOB}.png"]),
    ],
)
def test_pictures_are_saved_to_the_output_option(
    stage: Stage, tmp_path: Path, output: str, pictures: int, files: list[str]
) -> None:
    stage.views = [view(stage.url, state="completed", pictures=pictures)]
    stage.scenes = [says([DONE])]
    done = darkroom(["watch", JOB, "--output", output, "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()) == sorted(files)


def test_each_picture_is_named_with_its_own_seed(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="completed", pictures=3, record={"seeds": [7, 8, 9]})]
    stage.scenes = [says([DONE])]
    done = darkroom(["submit", "a lighthouse", "--images", "3", "--url", stage.url], folder=tmp_path)
    assert [line.rpartition("seed ")[2] for line in done.stdout.splitlines()] == ["7)", "8)", "9)"]


def test_the_picture_goes_to_standard_output(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="completed", pictures=1)]
    stage.scenes = [says([DONE])]
    arguments = command("submit", "a lighthouse", "-o", "-", "--url", stage.url)
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment(), capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, PICTURE)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_without_force(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="completed", pictures=1)]
    (tmp_path / "dusk.png").write_bytes(b"mine")
    arguments = ["submit", "a lighthouse", "-o", "dusk.png", "--url", stage.url]
    done = darkroom(arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "darkroom: --output dusk.png: the file exists; --force overwrites it\n"
    assert (tmp_path / "dusk.png").read_bytes() == b"mine"
    assert stage.asked == []
    stage.scenes = [says([DONE])]
    assert darkroom([*arguments, "--force"], folder=tmp_path).returncode == 0
    assert (tmp_path / "dusk.png").read_bytes() == PICTURE


def test_if_a_picture_cannot_be_written_the_job_and_its_links_are_printed(stage: Stage, tmp_path: Path) -> None:
    """An existing numbered file is detected only when the pictures are saved."""
    stage.views = [view(stage.url, state="completed", pictures=2)]
    stage.scenes = [says([DONE])]
    (tmp_path / "dusk-2.png").write_bytes(b"mine")
    done = darkroom(["submit", "a lighthouse", "-o", "dusk.png", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 2
    assert JOB in done.stderr
    assert f"{stage.url}/artifacts/1.png" in done.stderr
    assert "dusk-2.png: the file exists" in done.stderr
    assert (tmp_path / "dusk-2.png").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".*.part"))


def test_a_cancelled_job_that_is_cancelled_again_is_cancelled(stage: Stage, tmp_path: Path) -> None:
    stage.cancellation = JSONResponse({"job_id": JOB, "receipt": "interrupting", "status": "cancelled"})
    done = darkroom(["cancel", JOB, "--url", stage.url], folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"The job {JOB} is cancelled.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "a", "lighthouse", "at", "dusk"], 'quote the prompt: darkroom submit "a lighthouse at dusk"'),
        (["submit", "a lighthouse", "--widht", "64"], "unrecognized arguments: --widht 64"),
        (["cancel", JOB, JOB], f"unrecognized arguments: {JOB}"),
        (["dead-letters", "list", "more"], "unrecognized arguments: more"),
    ],
    ids=["prompt", "option", "argument", "action"],
)
def test_an_argument_error_shows_the_usage_of_its_command(
    stage: Stage, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = darkroom(arguments, folder=tmp_path, DARKROOM_URL=stage.url)
    named = " ".join(arguments[: 2 if arguments[0] == "dead-letters" else 1])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: darkroom {named} ")
    assert words in done.stderr
    assert stage.asked == []


@pytest.mark.parametrize("arguments", [["models"], ["list"], ["submit", "a lighthouse"]], ids=" ".join)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_is_one_line_and_exits_with_1(
    stage: Stage, tmp_path: Path, arguments: list[str], *, as_json: bool
) -> None:
    stage.views = [view(stage.url, state="completed", pictures=1)]
    stage.jobs = [view(stage.url, state="failed", created_at="2026-11-30T00:00:00Z", prompt="a lighthouse")]
    stage.scenes = [says([DONE])]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*arguments, *(["--json"] if as_json else []), "--url", stage.url),
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "darkroom: standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_closed_reader_does_not_stop_the_command(stage: Stage, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("models", "--url", stage.url),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        words = process.stderr.read()
        assert (process.wait(TIMEOUT_S), words) == (0, "")


def test_jobs_are_listed_with_the_given_filters(stage: Stage, tmp_path: Path) -> None:
    stage.jobs = [view(stage.url, state="failed", created_at="2026-11-30T00:00:00Z", prompt="a  lighthouse\n" * 20)]
    done = darkroom(["list", "--state", "failed", "--model", "flux", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.split()[:4] == [JOB, "2026-11-30T00:00:00Z", "failed", "flux"]
    assert line.endswith("…")
    assert stage.queries == [{"state": "failed", "model": "flux"}]


def test_a_list_ends_at_its_limit(stage: Stage, tmp_path: Path) -> None:
    shown = view(stage.url, state="failed", created_at="2026-11-30T00:00:00Z", prompt=None)
    stage.jobs = [{**shown, "id": f"{number}"} for number in range(5)]
    done = darkroom(["list", "--limit", "3", "--json", "--url", stage.url], folder=tmp_path)
    assert [each["id"] for each in lines_of(done.stdout)] == ["0", "1", "2"]
    assert done.stderr == ""


def test_a_job_is_deleted(stage: Stage, tmp_path: Path) -> None:
    done = darkroom(["delete", JOB, "--url", stage.url], folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"The job {JOB} is deleted.\n")
    assert stage.asked == [("DELETE", f"/api/v1/generation-jobs/{JOB}", b"")]


def test_subscriptions_are_created_listed_and_deleted(stage: Stage, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = darkroom(["subscriptions", *arguments, "--url", stage.url], folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("list") == ""
    assert run("create", "https://a.example/", "--event", "completed", "--model", "sd") == "sub_1\n"
    assert json.loads(stage.asked[-1][2]) == {"url": "https://a.example/", "events": ["completed"], "models": ["sd"]}
    assert run("list") == "sub_1  enabled  https://a.example/  completed\n"
    assert run("secret", "sub_1") == "whsec_x\n"
    assert run("delete", "sub_1") == "The subscription sub_1 is deleted.\n"
    assert run("list") == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_can_complete_the_commands(tmp_path: Path, shell: str) -> None:
    done = darkroom(["completion", shell], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dead-letters" in done.stdout


def test_bash_completes_a_command(tmp_path: Path) -> None:
    (tmp_path / "complete").write_text(darkroom(["completion", "bash"], folder=tmp_path).stdout)
    program = """. ./complete
    COMP_WORDS=(darkroom sub) COMP_CWORD=1
    $(complete -p darkroom | sed 's/.*-F //; s/ .*//')
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert sorted(done.stdout.split()) == ["submit", "subscriptions"], done.stderr


def test_watch_without_output_prints_the_links(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="completed", pictures=1)]
    stage.scenes = [says([DONE])]
    done = darkroom(["watch", JOB, "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{stage.url}/artifacts/0.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("state", ["failed", "cancelled", "expired"])
def test_a_job_without_a_picture_exits_with_1_and_prints_the_reason(stage: Stage, tmp_path: Path, state: str) -> None:
    stage.views = [view(stage.url, state=state, error={"kind": "deadline", "message": "it took too long"})]
    stage.scenes = [says([message(2, state, error="it took too long")])]
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"The job {JOB} is {state}: it took too long"


def test_with_json_stdout_has_an_object_per_line_and_the_job_last(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="completed", pictures=1)]
    stage.scenes = [says([message(1, "pending"), message(2, "running", progress=50), DONE])]
    done = darkroom(["submit", "a lighthouse", "--json", "--url", stage.url], folder=tmp_path)
    receipt, *messages, job = lines_of(done.stdout)
    assert receipt["id"] == JOB
    assert [each["seq"] for each in messages] == [1, 2, 3]
    assert job["state"] == "completed"
    assert job["files"] == [f"{JOB}.png"]
    assert done.stderr == ""


def test_a_broken_socket_is_reopened_after_the_last_message(stage: Stage, tmp_path: Path) -> None:
    """Each message is printed once, even if a server repeats some."""
    running = view(stage.url, state="running")
    stage.views = [running, view(stage.url, state="completed", pictures=1)]
    stage.scenes = [
        says([message(1, "running"), message(2, "running", progress=10)]),
        says([message(3, "running", progress=20)]),
        says([message(3, "running", progress=20), {**DONE, "seq": 4}]),
    ]
    done = darkroom(["watch", JOB, "--json", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [each["seq"] for each in lines_of(done.stdout)[:-1]] == [1, 2, 3, 4]
    assert stage.since == [None, "2", "3"]


def test_after_a_gap_the_numbers_restart(stage: Stage, tmp_path: Path) -> None:
    running = view(stage.url, state="running")
    stage.views = [running, view(stage.url, state="completed", pictures=1)]
    gap = {"type": "gap", "job_id": JOB, "reason": "the log ends before that"}
    stage.scenes = [
        says([message(7, "running", progress=50)]),
        says([gap, message(2, "running", progress=10)]),
        says([DONE]),
    ]
    done = darkroom(["watch", JOB, "--json", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [each["seq"] for each in lines_of(done.stdout)[:-1]] == [7, 2, 3]
    assert stage.since == [None, "7", "2"]


def test_without_a_socket_the_job_is_polled(stage: Stage, tmp_path: Path) -> None:
    running = view(stage.url, state="running", progress=50)
    stage.views = [running, running, view(stage.url, state="completed", pictures=1)]
    done = darkroom(["watch", JOB, "--output", ".", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{JOB}.png").read_bytes() == PICTURE
    assert done.stderr.splitlines() == ["running, 50 %", "completed, 100 %"]


def test_ctrl_c_while_waiting_keeps_the_job_and_prints_how_to_resume(stage: Stage, tmp_path: Path) -> None:
    stage.views = [view(stage.url, state="running")]
    stage.scenes = [says([message(2, "running", progress=10)], then="silence")]
    process = subprocess.Popen(
        command("submit", "a lighthouse", "--url", stage.url),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "running, 10 %\n"
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert f"watch {JOB} --output . --url {stage.url}" in words
    assert f"cancel {JOB} --url {stage.url}" in words
    assert "Traceback" not in words


def test_a_refusal_names_each_field_as_given(stage: Stage, tmp_path: Path) -> None:
    faults = [
        {"field": "data.input.width", "detail": "must be at most 2048"},
        {"field": "data.model", "detail": "is not the name of a model"},
    ]
    detail = "data.input.width must be at most 2048; data.model is not the name of a model"
    problem = {"title": "The request is not valid", "status": 422, "detail": detail, "errors": faults}
    stage.submission = JSONResponse(problem, 422, media_type=PROBLEM)
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "darkroom: The request is not valid",
        "  width must be at most 2048",
        "  model is not the name of a model",
    ]
    done = darkroom(["submit", "a lighthouse", "--json", "--url", stage.url], folder=tmp_path)
    assert lines_of(done.stdout) == [{"error": problem}]


def test_an_unavailable_server_exits_with_3(stage: Stage, tmp_path: Path) -> None:
    problem = {"title": "No worker pool serves this model", "status": 503, "detail": "no worker pool"}
    stage.submission = JSONResponse(problem, 503, {"Retry-After": "30"}, media_type=PROBLEM)
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr == "darkroom: no worker pool; try again in 30 s\n"


@pytest.mark.parametrize(
    "arguments",
    [["submit", "a lighthouse"], ["watch", JOB], ["status", JOB], ["cancel", JOB], ["models"]],
    ids=" ".join,
)
def test_an_unreachable_server_is_one_line_and_exits_with_3(arguments: list[str], tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = darkroom(arguments, folder=tmp_path, DARKROOM_URL=url)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert url in line


def test_another_program_at_the_address_is_reported(stage: Stage, tmp_path: Path) -> None:
    stage.submission = HTMLResponse("<h1>It works!</h1>")
    done = darkroom(["submit", "a lighthouse", "--url", stage.url], folder=tmp_path)
    assert done.returncode == 3
    assert "not a darkroom server" in done.stderr


def test_an_unknown_job_exits_with_2(stage: Stage, tmp_path: Path) -> None:
    for arguments in (["watch", JOB], ["status", JOB]):
        done = darkroom([*arguments, "--url", stage.url], folder=tmp_path)
        assert (done.returncode, done.stderr) == (2, "darkroom: there is no such job\n")


@pytest.mark.parametrize(
    ("receipt", "state", "status"),
    [("dequeued", "cancelled", 0), ("interrupting", "running", 0), ("too_late", "failed", 1), ("paused", "paused", 0)],
)
def test_cancel_prints_the_outcome(stage: Stage, tmp_path: Path, receipt: str, state: str, status: int) -> None:
    stage.cancellation = JSONResponse({"job_id": JOB, "receipt": receipt, "status": state})
    done = darkroom(["cancel", JOB, "--json", "--url", stage.url], folder=tmp_path)
    assert done.returncode == status
    assert lines_of(done.stdout) == [{"job_id": JOB, "receipt": receipt, "status": state}]
    assert (JOB in done.stderr) == (status != 0), "stderr is for what went wrong"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"state": "pending", "place": 2}, "is pending, at position 2"),
        ({"state": "running", "progress": 40}, "is running, 40 % done"),
        ({"state": "completed", "pictures": 1}, "is completed (by flux stand-in"),
        ({"state": "failed", "error": {"kind": "deadline", "message": "too long"}}, "is failed: too long"),
    ],
    ids=lambda value: value["state"] if isinstance(value, dict) else "",
)
def test_status_exits_with_0_for_every_state(stage: Stage, tmp_path: Path, members: dict[str, Any], words: str) -> None:
    stage.views = [view(stage.url, **members)]
    done = darkroom(["status", JOB, "--url", stage.url], folder=tmp_path)
    assert done.returncode == 0
    assert words in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["submit", "a lighthouse", "-p", "guidance"],
        ["submit", "a lighthouse", "--width", "wide"],
        ["submit", "a lighthouse", "--output", "no/such/folder/a.png"],
        ["submit", "a lighthouse", "--output", "/proc/a.png"],
        ["submit", "a lighthouse", "--output", "a.jpg"],
        ["submit", "a lighthouse", "--output", "-", "--json"],
        ["submit", "a lighthouse", "--width", "64", "-p", "width=128"],
        ["submit", "a lighthouse", "-p", "prompt=another"],
        ["submit", "a lighthouse", "-p", "steps=1", "-p", "steps=2"],
        ["list", "--limit", "0"],
        ["submit", "a lighthouse", "--url", "ftp://elsewhere"],
        ["watch"],
        ["develop"],
        [],
    ],
    ids=" ".join,
)
def test_invalid_arguments_exit_with_2_before_anything_is_sent(
    stage: Stage, tmp_path: Path, arguments: list[str]
) -> None:
    done = darkroom(arguments, folder=tmp_path, DARKROOM_URL=stage.url)
    assert done.returncode == 2
    assert [list(each) for each in lines_of(done.stdout)] == ([["error"]] if "--json" in arguments else [])
    assert "Traceback" not in done.stderr
    assert stage.asked == []


def test_an_invalid_address_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    done = darkroom(["models"], folder=tmp_path, DARKROOM_URL="nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("darkroom: DARKROOM_URL='nowhere'")


def test_the_help_documents_every_exit_status(tmp_path: Path) -> None:
    words = darkroom(["--help"], folder=tmp_path).stdout
    assert [line.split()[0] for line in words.partition("exit status:\n")[2].splitlines()] == [
        "0",
        "1",
        "2",
        "3",
        "130",
    ]
