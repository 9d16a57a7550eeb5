"""`darkroom up` before any part serves: the lock, leftovers of a killed `up`, the port, and invalid settings.

Successful runs are tested in tests/system.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from darkroom_cli.exits import INTERRUPTED
from darkroom_cli.local import redis_server
from darkroom_cli.local.child_environment import environment
from darkroom_cli.local.data_folder import DataFolder, secret
from darkroom_cli.local.processes import ProcessIdentity, RecordedProcess
from darkroom_cli.local.run_record import RunRecord
from darkroom_cli.local.stop_signals import StopRequested, StopSignals
from darkroom_cli.terminal.log_tail import log_tail

from tests.darkroom_command import command, darkroom
from tests.darkroom_command import environment as darkroom_environment
from tests.waiting import eventually

SLEEP = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that another program uses, at which `up` stops."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def recorded(folder: Path, process: subprocess.Popen[bytes], *, started: str | None = None) -> None:
    """Record `process` as the worker of a killed `up`."""
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    data = folder / ".darkroom"
    data.mkdir()
    worker = RecordedProcess("worker", process.pid, started or identity.started, grace_s=5)
    RunRecord(pid=1, url="http://127.0.0.1:8000", processes=(worker,)).write(data / "run.json")


def test_a_used_port_is_one_line(taken_port: int, tmp_path: Path) -> None:
    done = darkroom(["up", "--port", str(taken_port)], folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"port {taken_port}" in line
    assert "--port" in line


def test_processes_of_a_killed_up_are_stopped_first(
    taken_port: int, tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    recorded(tmp_path, sleeper)
    done = darkroom(["up", "--port", str(taken_port)], folder=tmp_path)
    assert f"worker ({sleeper.pid})" in done.stderr
    eventually(lambda: sleeper.poll() is not None, what="the end of what the record named")
    assert not (tmp_path / ".darkroom" / "run.json").exists()


def test_a_reused_pid_is_left_alone(taken_port: int, tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    recorded(tmp_path, sleeper, started="another time")
    done = darkroom(["up", "--port", str(taken_port)], folder=tmp_path)
    assert done.returncode == 1
    assert "stopping" not in done.stderr
    assert sleeper.poll() is None


def test_an_unreadable_record_is_reported_and_ignored(taken_port: int, tmp_path: Path) -> None:
    (tmp_path / ".darkroom").mkdir()
    (tmp_path / ".darkroom" / "run.json").write_text('{"processes": 7}')
    done = darkroom(["up", "--port", str(taken_port)], folder=tmp_path)
    assert done.returncode == 1
    assert "run.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_up_with_the_same_data_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / ".darkroom"
    folder.mkdir()
    RunRecord(pid=4711, url="http://127.0.0.1:8000", processes=()).write(folder / "run.json")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = darkroom(["up"], folder=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "http://127.0.0.1:8000" in line
    assert "4711" in line
    assert (folder / "run.json").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DARKROOM_REDIS_URL", "http://not-a-redis"),
        ("DARKROOM_PUBLIC_URL", "not an address"),
        ("DARKROOM_NAMESPACE", "Not A Namespace"),
        ("DARKROOM_MODELS", "/no/such/folder"),
        ("DARKROOM_HOME", "/proc/darkroom"),
    ],
)
def test_an_invalid_setting_is_one_line_and_exits_with_2(variable: str, value: str, tmp_path: Path) -> None:
    done = darkroom(["up", "--port", "0"], folder=tmp_path, **{variable: value})
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert variable in last or value in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "http"],
        ["--port", "70000"],
        ["--model", "flux"],
        ["--model", "flux=/no/such/folder"],
        ["--model", "unheard-of=org/name"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_an_invalid_argument_is_named_and_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    done = darkroom(["up", "--port", "0", *arguments], folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert arguments[-1].split("=")[0] in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_an_unavailable_redis_is_reported_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        url = f"redis://:hidden-word@127.0.0.1:{port}/0"
        done = darkroom(["up", "--port", "0"], folder=tmp_path, DARKROOM_REDIS_URL=url)
    assert done.returncode == 1
    assert "DARKROOM_REDIS_URL" in done.stderr
    assert "hidden-word" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("signals", "hurries"),
    [
        ([(0.0, signal.SIGINT)], False),
        ([(0.0, signal.SIGINT), (0.1, signal.SIGINT)], False),
        ([(0.0, signal.SIGINT), (3.0, signal.SIGINT)], True),
        ([(0.0, signal.SIGTERM), (3.0, signal.SIGINT)], True),
        ([(0.0, signal.SIGHUP), (3.0, signal.SIGHUP)], False),
        ([(0.0, signal.SIGTERM), (3.0, signal.SIGTERM)], False),
    ],
    ids=["one", "one handed on twice", "two", "after SIGTERM", "a terminal closes", "a manager insists"],
)
def test_only_a_second_ctrl_c_requests_an_immediate_shutdown(
    signals: list[tuple[float, signal.Signals]], hurries: bool
) -> None:
    times = iter([at for at, _ in signals])
    with StopSignals(clock=lambda: next(times)).watched() as stop:
        stop.check()
        for _, number in signals:
            os.kill(os.getpid(), number)
        with pytest.raises(StopRequested):
            stop.check()
        assert stop.hurry() == hurries


def test_up_waits_with_progress_until_redis_has_loaded_its_data(tmp_path: Path) -> None:
    """The file is small but takes seconds to load: it has Lua scripts."""
    data = tmp_path / ".darkroom" / "redis"
    data.mkdir(parents=True)
    slow = b"local n = 0 for i = 1, 30000 do n = n + i % 7 end"
    parts = [b"EVAL", slow, b"0"]
    call = b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
    (data / "appendonly.aof").write_bytes(call * 12 * 1024)  # Redis serves other clients after each 1024
    words: list[str] = []
    with subprocess.Popen(
        command("up", "--port", "0"),
        cwd=tmp_path,
        env=darkroom_environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            words.append(line)
            if "redis: ready" in line:
                process.send_signal(signal.SIGTERM)
    assert any("redis: reading its data" in line and "% loaded" in line for line in words), words
    assert any("redis: ready" in line for line in words), words
    assert process.returncode == INTERRUPTED, words


def test_a_record_that_cannot_be_written_is_one_line_and_all_processes_stop(tmp_path: Path) -> None:
    data = tmp_path / ".darkroom"
    data.mkdir(mode=0o700)
    (data / "run.new").mkdir()  # the temporary file of the record
    lines: list[str] = []
    with subprocess.Popen(
        command("up", "--port", "0"),
        cwd=tmp_path,
        env=darkroom_environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "redis: ready" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == INTERRUPTED, lines
    assert len([line for line in lines if "run.json" in line]) == 1, lines
    assert not any("Traceback" in line for line in lines), lines
    address = redis_server.address(data / "redis")
    assert address is not None
    assert redis_server.find(address) is None, "Redis still runs"


def test_secrets_are_created_once_and_private(tmp_path: Path) -> None:
    first = secret(tmp_path / "key")
    assert len(first) >= 32
    assert secret(tmp_path / "key") == first
    assert secret(tmp_path / "other") != first
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_the_data_folder_is_private_and_ignored_by_git(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    with folder.locked():
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert (folder.path / ".gitignore").read_text().endswith("*\n")


def test_a_new_log_keeps_the_previous_one(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    with folder.locked():
        folder.new_log("worker").write_text("before")
        assert not folder.new_log("worker").exists()
        assert (folder.logs / "worker.previous.log").read_text() == "before"


def test_a_process_inherits_only_the_variables_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HF_TOKEN": "x",
        "https_proxy": "x",
        "DARKROOM_HOME": "x",
        "DARKROOM_LINK_TTL_S": "60",
        "DARKROOM_PROBE_PORT": "9101",
    }.items():
        monkeypatch.setenv(name, value)
    function = environment({"DARKROOM_POOL": "local"}, PORT="8000")
    assert {"PATH", "DARKROOM_LINK_TTL_S", "DARKROOM_POOL", "PORT"} <= function.keys()
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "https_proxy", "DARKROOM_HOME"} & function.keys()
    worker = environment({}, for_worker=True)
    assert {"HF_TOKEN", "https_proxy"} <= worker.keys()
    assert not {"AWS_SECRET_ACCESS_KEY", "DARKROOM_PROBE_PORT"} & worker.keys()


def test_a_record_is_read_as_written(tmp_path: Path) -> None:
    record = RunRecord(7, "http://127.0.0.1:8000", (RecordedProcess("redis", 8, "boot 9", 3.0),))
    record.write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json") == record
    assert json.loads((tmp_path / "run.json").read_text())["processes"][0]["name"] == "redis"
    assert RunRecord.read(tmp_path / "none.json") is None


def test_the_end_of_a_log_is_short_and_shows_the_error(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    trace = "Traceback (most recent call last):\n  File somewhere\nOSError: no weights"
    entries = [
        {"event": "loading", "level": "info", "model": "sd"},
        {
            "event": "not_loaded",
            "level": "error",
            "model": "sd",
            "exception": trace,
            "timestamp": "t",
            "part": "worker",
        },
    ]
    log.write_text("\n".join(map(json.dumps, [*entries, *entries])))
    assert log_tail(log) == "  not_loaded model=sd OSError: no weights"
    log.write_text(json.dumps(entries[0]) + "\nTraceback: it is not ours\n")
    assert log_tail(log) == "  Traceback: it is not ours"
    log.write_text(json.dumps(entries[0]))
    assert log_tail(log) == "  loading model=sd"
