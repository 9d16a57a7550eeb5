"""The installation: creates `.venv`, installs the locked versions into it, then runs `darkroom` from there.

`make up` runs this file with the Python on the PATH. It needs only the standard library, and its syntax is old enough
for an old Python to reach the error message that refuses that version:

    python3 cli/darkroom_cli/bootstrap.py up [ARGUMENTS of darkroom up]

Without a command it only installs. A stamp in `.venv` identifies the installed versions, so that the next run does
nothing. A marker beside it exists during an installation: a run that finds one starts from scratch, since the previous
installation was interrupted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

OLDEST = (3, 11, 2)
"""The oldest Python that the lock supports: Debian 12's, on which CI runs all tests."""

NEWEST_WITH_REDIS = (3, 12)
"""The newest Python that has a wheel of the embedded Redis (the extra `local`)."""

OLDEST_REDIS = (6, 2)
"""The ledger uses only commands of this version."""

LOCKS = ("requirements.lock", "requirements-torch.txt", "pyproject.toml")
"""The files that define the installation."""

PIP_SETTINGS = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
"""pip's settings of package indexes, and the variables that set the same for uv, which does not read pip's."""

ANY_INDEX = "unsafe-best-match"

STAMP = "darkroom-installed"
MARKER = "darkroom-installing"
LOG = "darkroom-install.log"

SHOWN_LINES = 30
"""Last lines of the log that a failure shows: they have pip's error message."""

UPDATE_EVERY_S = 1.0
"""Interval of updates of a step's seconds on a terminal."""

CLEAR_LINE = "\r\033[K"
"""Returns to the start of a terminal's line and clears it."""

OUTPUT_TIMEOUT_S = 20
"""For a command that prints its configuration or version; pip needs a second to start."""

FAILED = 1
INTERRUPTED = 130


class SetupError(Exception):
    """The environment cannot be created; the message is for the user."""


def main(arguments: list[str] | None = None) -> int:
    """Install if needed, then replace this process by `darkroom ARGUMENTS`. Returns an exit status on failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    root = Path(__file__).resolve().parent.parent.parent
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        refuse_python(sys.version_info[:3], platform.python_implementation())
        refuse_without_redis()
        install(root)
    except SetupError as error:
        _print(f"darkroom: {error}")
        return FAILED
    except KeyboardInterrupt:
        _print("\ndarkroom: interrupted; the next `make up` restarts the installation")
        return INTERRUPTED
    if not arguments:
        return 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    program = str(root / ".venv" / "bin" / "darkroom")
    return os.execv(program, [program, *arguments])  # noqa: S606 - no shell, and no parent that waits


def refuse_python(version: tuple[int, ...], implementation: str) -> None:
    """Raises SetupError for a Python that the locked versions do not support."""
    if version >= OLDEST and implementation == "CPython":
        return
    raise SetupError(
        f"this is {implementation} {_dotted(version)}, and darkroom needs CPython {_dotted(OLDEST)} or newer: "
        f"`make up PYTHON=python{_dotted(OLDEST[:2])}` selects another one"
    )


def refuse_without_redis() -> None:
    """Raises SetupError if neither an embedded nor an installed Redis is available."""
    if has_embedded_redis() or os.environ.get("DARKROOM_REDIS_URL"):
        return
    oldest = _dotted(OLDEST_REDIS)
    needed = f"a redis-server of version {oldest} or newer on the PATH, or DARKROOM_REDIS_URL, is needed here"
    newest = _dotted(NEWEST_WITH_REDIS)
    why = f"darkroom includes a Redis for CPython up to {newest} on Linux x86_64 only"
    found = shutil.which("redis-server")
    if found is None:
        raise SetupError(f"{needed}: {why}")
    version = server_version(found)
    if version < OLDEST_REDIS:
        raise SetupError(f"{needed}, and {found} is version {_dotted(version)}: {why}")


def has_embedded_redis() -> bool:
    """Whether the wheel with a redis-server supports this platform."""
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and platform.python_implementation() == "CPython"
        and sys.version_info[:2] <= NEWEST_WITH_REDIS
        and platform.libc_ver()[0] == "glibc"
    )


def server_version(binary: str) -> tuple[int, int]:
    """The version of a redis-server; (0, 0) if unknown."""
    match = re.search(r"\bv=(\d+)\.(\d+)", _output([binary, "--version"]))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def install(root: Path) -> None:
    """Install exactly the locked versions into `.venv`. Raises SetupError with the last lines of the log."""
    folder = root / ".venv"
    with (root / LOCKS[0]).open("rb") as lock:
        # Serialize concurrent installations: the second one waits and finds everything installed.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _print("Another installation is running: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        fingerprint = fingerprint_of(root)
        if is_installed(folder, fingerprint):
            return
        if (folder / MARKER).exists():
            _print("The last installation was interrupted: starting again.")
            shutil.rmtree(folder)
        _print(f"Setting up {folder}, once; this takes a minute.")
        (folder / STAMP).unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        (folder / MARKER).touch()
        settings = _output([sys.executable, "-m", "pip", "config", "list"])
        os.environ.update(uv_variables(settings, os.environ))
        for title, command in steps(root):
            _run(title, command, log=folder / LOG, root=root)
        (folder / STAMP).write_text(fingerprint)
        (folder / MARKER).unlink()


def is_installed(folder: Path, fingerprint: str) -> bool:
    """Whether the environment is complete and was made from these locks by this Python."""
    try:
        same = (folder / STAMP).read_text() == fingerprint
    except OSError:
        return False
    return same and not (folder / MARKER).exists() and (folder / "bin" / "darkroom").exists()


def fingerprint_of(root: Path) -> str:
    """A hash of the locks, the Python and the folder: an environment cannot be moved."""
    digest = hashlib.sha256()
    for name in LOCKS:
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    digest.update(f"{sys.version}\n{sys.base_prefix}\n{root}".encode())
    return digest.hexdigest()


def steps(root: Path) -> list[tuple[str, list[str]]]:
    """The commands of an installation in order, each with a title.

    uv installs the complete lock in a twentieth of pip's time. pip installs uv and torch, since pip's configuration
    selects the build of torch. The lock includes torch's dependencies.
    """
    folder = root / ".venv"
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-compile"]
    uv = [str(folder / "bin" / "uv"), "pip"]
    into = ["--python", python]
    return [
        ("creating the environment", [sys.executable, "-m", "venv", str(folder)]),
        ("installing uv", [*pip, "--no-deps", "--require-hashes", "-r", str(uv_lock(root))]),
        (
            "installing the locked versions",
            # Hashes identify the files, so that any index may provide them, as with pip.
            [*uv, "install", *into, "--no-deps", "--require-hashes", "-r", LOCKS[0], "--index-strategy", ANY_INDEX],
        ),
        ("installing torch, the largest part", [*pip, "-r", "requirements-torch.txt"]),
        (
            "installing darkroom itself",
            [*uv, "install", *into, "--no-deps", "--no-build-isolation", "--editable", "."],
        ),
        ("checking that nothing is missing", [*uv, "check", *into]),
    ]


def uv_lock(root: Path) -> Path:
    """A file with uv's entry of the lock, including hashes."""
    path = root / ".venv" / "uv.lock"
    entry = re.search(r"^uv==.*?(?=^\S|\Z)", (root / LOCKS[0]).read_text(), re.MULTILINE | re.DOTALL)
    path.write_text(entry[0] if entry else "")
    return path


def uv_variables(pip_settings: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that make uv use the indexes of pip.

    `pip_settings` is the output of `pip config list`. Variables that the environment already has are left out.
    """
    found = re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", pip_settings, re.MULTILINE)
    return {
        PIP_SETTINGS[name]: value
        for name, value in found
        if name in PIP_SETTINGS and PIP_SETTINGS[name] not in environment
    }


def _run(title: str, command: list[str], *, log: Path, root: Path) -> None:
    """Run one step: shows its title and seconds; the command's output goes to the log."""
    began = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        # A session of its own: a Ctrl-C reaches only this process, which then kills the command before it exits.
        process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while process.poll() is None:
                if sys.stderr.isatty():
                    _print(f"{CLEAR_LINE}  {title} … {time.monotonic() - began:.0f} s", end="")
                try:
                    process.wait(UPDATE_EVERY_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    back = CLEAR_LINE if sys.stderr.isatty() else ""
    if process.returncode != 0:
        _print(f"{back}  {title}: failed after {time.monotonic() - began:.0f} s")
        lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        raise SetupError("\n".join([f"the last lines of {log}:", *(f"  {line}" for line in lines)]))
    _print(f"{back}  {title}: {time.monotonic() - began:.0f} s")


def _output(command: list[str]) -> str:
    """Standard output of a short command; empty if the command cannot be run or does not finish."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=OUTPUT_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _print(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
