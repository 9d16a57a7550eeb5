"""Before anything is installed: makes `.venv`, puts the locked versions into it, then hands on to `darkroom` there.

`make up` runs this file with whatever Python there is, so it needs nothing but the standard library, and its syntax is
old enough for an old Python to reach the sentence that refuses it:

    python3 cli/darkroom_cli/bootstrap.py up [ARGUMENTS of darkroom up]

Without a command it only installs. A stamp in `.venv` says what was installed, so the second time nothing is done. A
marker beside it says that an installation has begun: where a run finds one, the last was interrupted, and it begins
anew.
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
"""The oldest Python that the lock is made for: Debian 12's own, on which the gate runs all tests."""

NEWEST_WITH_REDIS = (3, 12)
"""The newest Python that the wheel of the embedded Redis exists for (the extra `local`)."""

OLDEST_REDIS = (6, 2)
"""The ledger keeps to the commands of this version."""

LOCKS = ("requirements.lock", "requirements-torch.txt", "pyproject.toml")
"""What is installed follows from these files."""

PIP_SETTINGS = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
"""The settings of pip that say where packages come from, and the variables by which uv, which reads none of them, is
given the same."""

ANY_INDEX = "unsafe-best-match"

STAMP = "darkroom-installed"
MARKER = "darkroom-installing"
LOG = "darkroom-install.log"

SHOWN_LINES = 30
"""Lines of the log that a failure shows: pip says what is the matter in its last ones."""

TICK_S = 1.0
"""How often a step's line tells the seconds, on a terminal."""

CLEAR_LINE = "\r\033[K"
"""Back to the beginning of a terminal's line, and nothing on it."""

OUTPUT_LIMIT_S = 20
"""For a command that prints what it knows and ends; pip needs a second to start."""

FAILED = 1
INTERRUPTED = 130


class SetupError(Exception):
    """The environment cannot be made; the message is for the user."""


def main(arguments: list[str] | None = None) -> int:
    """Install where needed, then become `darkroom ARGUMENTS`. Answers an exit status when that could not be done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    root = Path(__file__).resolve().parent.parent.parent
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        refuse_python(sys.version_info[:3], platform.python_implementation())
        refuse_without_redis()
        install(root)
    except SetupError as error:
        _say(f"darkroom: {error}")
        return FAILED
    except KeyboardInterrupt:
        _say("\ndarkroom: interrupted; the next `make up` begins the installation again")
        return INTERRUPTED
    if not arguments:
        return 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    program = str(root / ".venv" / "bin" / "darkroom")
    return os.execv(program, [program, *arguments])  # noqa: S606 - it takes our place: no shell, no parent to wait


def refuse_python(version: tuple[int, ...], implementation: str) -> None:
    """Raises SetupError, in one sentence, for a Python that the locked versions are not for."""
    if version >= OLDEST and implementation == "CPython":
        return
    raise SetupError(
        f"this is {implementation} {_dotted(version)}, and darkroom needs CPython {_dotted(OLDEST)} or newer: "
        f"`make up PYTHON=python{_dotted(OLDEST[:2])}` selects another one"
    )


def refuse_without_redis() -> None:
    """Raises SetupError, in one sentence, where no Redis comes with darkroom and the machine has none either."""
    if has_embedded_redis() or os.environ.get("DARKROOM_REDIS_URL"):
        return
    oldest = _dotted(OLDEST_REDIS)
    needed = f"a redis-server of version {oldest} or newer on the PATH, or DARKROOM_REDIS_URL, is needed here"
    newest = _dotted(NEWEST_WITH_REDIS)
    why = f"darkroom brings its own Redis for CPython up to {newest} on Linux x86_64 only"
    found = shutil.which("redis-server")
    if found is None:
        raise SetupError(f"{needed}: {why}")
    version = server_version(found)
    if version < OLDEST_REDIS:
        raise SetupError(f"{needed}, and {found} is version {_dotted(version)}: {why}")


def has_embedded_redis() -> bool:
    """Whether the wheel with a redis-server in it is for this platform."""
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and platform.python_implementation() == "CPython"
        and sys.version_info[:2] <= NEWEST_WITH_REDIS
        and platform.libc_ver()[0] == "glibc"
    )


def server_version(binary: str) -> tuple[int, int]:
    """The version of a redis-server; 0.0 where it does not say."""
    match = re.search(r"\bv=(\d+)\.(\d+)", _output([binary, "--version"]))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def install(root: Path) -> None:
    """Make `.venv` hold exactly what is locked there. Raises SetupError with the end of pip's own words."""
    folder = root / ".venv"
    with (root / LOCKS[0]).open("rb") as lock:
        # Two at once would write into each other's files: the second waits, and finds the work done.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another installation is running here: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        fingerprint = fingerprint_of(root)
        if is_installed(folder, fingerprint):
            return
        if (folder / MARKER).exists():
            _say("The last installation was interrupted: beginning anew.")
            shutil.rmtree(folder)
        _say(f"Setting up {folder}, once; it takes a minute.")
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
    """Whether the environment was made whole, of these locks and by this Python."""
    try:
        same = (folder / STAMP).read_text() == fingerprint
    except OSError:
        return False
    return same and not (folder / MARKER).exists() and (folder / "bin" / "darkroom").exists()


def fingerprint_of(root: Path) -> str:
    """Names what is to be installed, by which Python, and where: an environment does not work in another folder."""
    digest = hashlib.sha256()
    for name in LOCKS:
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    digest.update(f"{sys.version}\n{sys.base_prefix}\n{root}".encode())
    return digest.hexdigest()


def steps(root: Path) -> list[tuple[str, list[str]]]:
    """The commands of an installation in their order, each with a title.

    uv installs the lock, which is complete, in a twentieth of the time that pip takes. pip installs uv, and torch:
    which build of torch that is depends on pip's configuration. torch finds everything that it depends on.
    """
    folder = root / ".venv"
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-compile"]
    uv = [str(folder / "bin" / "uv"), "pip"]
    into = ["--python", python]
    return [
        ("making the environment", [sys.executable, "-m", "venv", str(folder)]),
        ("installing uv", [*pip, "--no-deps", "--require-hashes", "-r", str(uv_lock(root))]),
        (
            "installing the locked versions",
            # Hashes decide which file is the right one, so that each index may offer it, as with pip.
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
    """A file with uv's own entry of the lock, hashes included."""
    path = root / ".venv" / "uv.lock"
    entry = re.search(r"^uv==.*?(?=^\S|\Z)", (root / LOCKS[0]).read_text(), re.MULTILINE | re.DOTALL)
    path.write_text(entry[0] if entry else "")
    return path


def uv_variables(pip_settings: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that make uv read from where pip reads.

    `pip_settings` is the output of `pip config list`; a variable that the environment has already stays as it is.
    """
    found = re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", pip_settings, re.MULTILINE)
    return {
        PIP_SETTINGS[name]: value
        for name, value in found
        if name in PIP_SETTINGS and PIP_SETTINGS[name] not in environment
    }


def _run(title: str, command: list[str], *, log: Path, root: Path) -> None:
    """One step: a line that says it, with its seconds; what the command says goes into the log."""
    began = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        # Not told of a Ctrl-C by the terminal, but by us: so it has ended before we do.
        process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while process.poll() is None:
                if sys.stderr.isatty():
                    _say(f"{CLEAR_LINE}  {title} … {time.monotonic() - began:.0f} s", end="")
                try:
                    process.wait(TICK_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    back = CLEAR_LINE if sys.stderr.isatty() else ""
    if process.returncode != 0:
        _say(f"{back}  {title}: failed after {time.monotonic() - began:.0f} s")
        words = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        raise SetupError("\n".join([f"the last words of {log}:", *(f"  {line}" for line in words)]))
    _say(f"{back}  {title}: {time.monotonic() - began:.0f} s")


def _output(command: list[str]) -> str:
    """Standard output of a short command; empty where it cannot be run or does not finish."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=OUTPUT_LIMIT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
