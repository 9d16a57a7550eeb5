"""`darkroom up`: the printed commands work, a job can be followed and cancelled, and all processes stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis
from PIL import Image

from tests.darkroom_command import darkroom
from tests.gateway.running import fault as gateway_fault
from tests.system.running import START_LIMIT_S, System, nothing_is_left_of
from tests.waiting import eventually

PARTS = {"functions", "courier", "worker", "redis"} | (set() if gateway_fault() else {"gateway"})

SMALL = {"model": "sd", "width": 64, "height": 64, "steps": 1}
"""Parameters of a job that completes at once."""

LONG = {"model": "sd", "width": 832, "height": 1216, "steps": 50, "images": 4}
"""Parameters of a job that runs until the test has acted on it."""


def picture_of(done: subprocess.CompletedProcess[str], folder: Path) -> Image.Image:
    """The picture that the first line on stdout names, opened."""
    assert done.returncode == 0, done.stderr
    with Image.open(folder / done.stdout.split()[0]) as picture:
        picture.load()
        return picture


def test_the_printed_curl_line_gives_a_picture(system: System) -> None:
    answer = system.shell(system.ready["curl"])
    assert answer.returncode == 0, answer.stderr
    receipt = json.loads(answer.stdout)
    assert receipt["status"] == "pending"
    picture = picture_of(system.run("watch", receipt["id"], "--output", "."), system.folder)
    assert picture.size == (1024, 1024)
    assert picture.format == "PNG"


def test_the_printed_submit_line_gives_a_picture_with_its_parameters(system: System) -> None:
    done = system.shell(system.ready["submit"])
    picture = picture_of(done, system.folder)
    assert "untrained" in done.stdout
    assert "seed" in done.stdout
    assert "untrained" in json.dumps(picture.info)


def test_up_prints_the_next_commands(own_system: System) -> None:
    own_system.launch(as_json=False)
    printed = own_system.folder / "up.out"
    eventually(lambda: "Logs: " in printed.read_text(), what="`darkroom up` to be ready", deadline_s=START_LIMIT_S)
    lines = [line.strip() for line in printed.read_text().splitlines()]
    (submit,) = (line for line in lines if ' submit "' in line)
    picture_of(own_system.shell(submit), own_system.folder)
    assert any(line.startswith("curl ") for line in lines)


def test_with_json_stderr_is_empty_without_errors(system: System) -> None:
    assert system.words == ""


def test_the_same_seed_gives_the_same_picture(system: System) -> None:
    arguments = ["submit", "a lighthouse at dusk", "--model", "sd", "--width", "64", "--height", "64", "--seed", "7"]
    first, second = (system.run(*arguments, "--output", f"{name}.png") for name in ("first", "second"))
    assert "seed 7" in first.stdout
    assert picture_of(first, system.folder).tobytes() == picture_of(second, system.folder).tobytes()


def test_each_picture_of_a_job_is_saved(system: System) -> None:
    folder = system.folder / "several"
    folder.mkdir()
    done = system.run("submit", "x", "--model", "sd", "--width", "64", "--images", "3", "--output", "several")
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("*.png"))) == 3


def test_with_json_a_program_can_follow_a_job(system: System) -> None:
    done = system.run("submit", "x", "--model", "sd", "--width", "64", "--height", "64", "--json")
    assert done.returncode == 0, done.stderr
    receipt, *messages, job = [json.loads(line) for line in done.stdout.splitlines()]
    assert {message["job_id"] for message in messages} == {receipt["id"]}
    assert messages[-1]["status"] == "completed"
    assert (job["state"], job["model_served"]) == ("completed", "sd stand-in, untrained weights")
    assert (system.folder / job["files"][0]).exists()


def test_a_running_and_a_waiting_job_can_be_cancelled(system: System) -> None:
    running = system.submit(**LONG)
    system.wait_for(running, "running")
    waiting = system.submit(**SMALL)
    assert f"{waiting} is pending, at position 1" in system.run("status", waiting).stdout
    assert "will not run" in system.run("cancel", waiting).stdout
    assert "will be stopped" in system.run("cancel", running).stdout
    watched = system.run("watch", running)
    assert watched.returncode == 1
    assert f"{running} is cancelled" in watched.stderr
    assert system.job(waiting)["attempts"] == []
    assert system.run("cancel", running).returncode == 0


def test_a_finished_job_cannot_be_cancelled(system: System) -> None:
    job_id = system.submit(**SMALL)
    system.wait_for(job_id, "completed")
    done = system.run("cancel", job_id, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["receipt"] == "too_late"


def test_the_models_are_marked_as_untrained(system: System) -> None:
    done = system.run("models", "--json")
    models = {model["name"]: model for model in map(json.loads, done.stdout.splitlines())}
    assert models["flux"]["served"] == "flux stand-in, untrained weights"
    assert models["sd"]["served"] == "sd stand-in, untrained weights"
    assert "flux, the default" in system.run("models").stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["submit", "x", "--width", "77"], "width must be a multiple of 16"),
        (["submit", "x", "-p", "depth=3"], "depth is not a parameter"),
        (["submit", "x", "--model", "unheard-of"], "flux, sd"),
        (["submit", ""], "prompt"),
        (["watch", "7"], "not the id of a job"),
        (["cancel", "01a1f9a8-143a-7476-8857-eac16dc07095"], "there is no job"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_argument_is_named_and_exits_with_2(system: System, arguments: list[str], word: str) -> None:
    done = system.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_up_in_the_same_folder_is_refused_and_disturbs_nothing(system: System) -> None:
    done = darkroom(["up", "--port", "0"], folder=system.folder)
    assert done.returncode == 1
    assert system.url in done.stderr
    assert system.processes.keys() == PARTS


def test_every_process_has_only_the_environment_that_it_needs(system: System) -> None:
    for name, process in system.processes.items():
        variables = {
            entry.partition("=")[0] for entry in Path(f"/proc/{process.pid}/environ").read_text().split("\0") if entry
        }
        assert "PYTEST_CURRENT_TEST" not in variables, name
        for secret in ("DARKROOM_LINK_KEY", "DARKROOM_WEBHOOK_KEYS", "DARKROOM_PROOF_KEYS"):
            assert (secret in variables) == (name in {"functions", "courier"}), name
        assert ("DARKROOM_REDIS_URL" in variables) == (name not in {"redis", "gateway"}), name


def test_no_secret_is_in_a_log_or_on_a_command_line(system: System) -> None:
    data = system.folder / ".darkroom"
    secrets = [(data / name).read_text() for name in ("link-key", "webhook-key", "proof-key", "redis/password")]
    texts = [log.read_text(errors="replace") for log in (data / "logs").iterdir()]
    texts += [Path(f"/proc/{process.pid}/cmdline").read_text() for process in system.processes.values()]
    assert [secret for secret in secrets for text in texts if secret in text] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_every_process_as_ctrl_c_does(own_system: System, number: signal.Signals) -> None:
    own_system.start()
    processes = own_system.processes
    assert processes.keys() == PARTS
    assert own_system.signal(number) == 0
    nothing_is_left_of(list(processes.values()))
    assert own_system.processes == {}


def test_jobs_and_pictures_survive_a_ctrl_c_in_the_middle_of_the_work(own_system: System) -> None:
    """A finished, a running and a waiting job: none is lost, and none has failed."""
    own_system.start()
    finished = own_system.submit(**SMALL)
    own_system.wait_for(finished, "completed")
    running = own_system.submit(**LONG | {"images": 1, "steps": 30})
    own_system.wait_for(running, "running")
    waiting = own_system.submit(**SMALL)
    processes = own_system.processes
    assert own_system.signal(signal.SIGINT) == 0
    nothing_is_left_of(list(processes.values()))

    own_system.start()
    assert own_system.run("watch", finished, "--output", "finished.png").returncode == 0
    assert (own_system.folder / "finished.png").exists()
    for job_id in (running, waiting):
        job = own_system.wait_for(job_id, "completed", "failed")
        assert (job["state"], job["attempts_counted"]) == ("completed", 0)
        assert httpx.get(job["output_paths"][0], trust_env=False).status_code == 200


def test_a_process_that_dies_is_started_again_and_no_job_is_lost(own_system: System) -> None:
    own_system.start()
    for name in sorted(PARTS, reverse=True):
        dead = own_system.processes[name]
        os.kill(dead.pid, signal.SIGKILL)
        eventually(partial(own_system.is_back, dead), what=f"{name} to be started again")
        assert f"{name} was killed by SIGKILL" in own_system.words
    eventually(lambda: _answers(own_system.url), what="the functions to serve again")
    job_id = own_system.submit(**SMALL)
    assert own_system.run("watch", job_id).returncode == 0


def test_ctrl_c_during_the_start_stops_the_started_processes(own_system: System) -> None:
    process = own_system.launch()
    eventually(lambda: "worker" in own_system.processes or process.poll() is not None, what="the worker to be started")
    processes = own_system.processes
    assert own_system.signal(signal.SIGINT) == 130
    nothing_is_left_of(list(processes.values()))


def test_a_model_that_cannot_be_loaded_is_named_and_stops_up(own_system: System) -> None:
    (own_system.folder / "empty").mkdir()
    process = own_system.launch("--model", "sd=empty")
    assert process.wait(START_LIMIT_S) == 1
    assert f"model sd does not load from {own_system.folder / 'empty'}" in own_system.words
    assert own_system.processes == {}


def test_local_weights_replace_a_stand_in(own_system: System) -> None:
    """The weights are a copy of the stand-in's; they are not marked as untrained any more."""
    weights = own_system.folder / "weights"
    shutil.copytree(own_system.folder / ".darkroom" / "stand-ins" / "sd-standin", weights)
    own_system.start("--model", "sd=weights")
    job = own_system.wait_for(own_system.submit(**SMALL), "completed")
    assert job["model_served"] == "sd"


def test_an_existing_redis_is_used_and_not_stopped(own_system: System, redis_url: str, namespace: str) -> None:
    own_system.variables |= {"DARKROOM_REDIS_URL": redis_url, "DARKROOM_NAMESPACE": namespace}
    own_system.start()
    assert own_system.processes.keys() == PARTS - {"redis"}
    own_system.wait_for(own_system.submit(**SMALL), "completed")
    assert own_system.signal(signal.SIGTERM) == 0
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()


def test_processes_of_a_killed_up_are_stopped_by_the_next(own_system: System) -> None:
    own_system.start()
    job_id = own_system.submit(**SMALL)
    own_system.wait_for(job_id, "completed")
    left = list(own_system.processes.values())
    own_system.signal(signal.SIGKILL)
    assert {process.name for process in left if process.is_alive} == PARTS

    own_system.start()
    nothing_is_left_of(left)
    assert "An earlier `darkroom up` was killed" in own_system.words
    assert own_system.job(job_id)["state"] == "completed"


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/v1/models", trust_env=False).is_success
    except httpx.TransportError:
        return False
