"""The data folder of one machine: the files of `darkroom up`, and the lock.

| path | content |
|---|---|
| `redis/` | jobs and queues: Redis' append-only file, its configuration and its password |
| `store/` | the object store: the pictures |
| `history/` | the finished jobs: an SQLite database |
| `stand-ins/` | untrained models, made at the first start |
| `models/` | model files of `--model`, written at each start |
| `logs/` | one file per process; `*.previous.log` is the run before |
| `link-key` | the key that signs links to pictures |
| `webhook-key` | the key that webhooks' secrets are derived from |
| `proof-key` | the key that proves events between the parts |
| `root-key` | the API key of administrators, made by the first start with keys |
| `run.json` | the running processes (`run_record.py`) |
| `lock` | locked by the `up` that uses the folder |

Other users cannot enter the folder.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from darkroom.access.credentials import Credential
from darkroom.errors import SettingError

SECRET_BYTES = 32

OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""The permissions that only the owner of a data folder has."""

NAMES = frozenset(
    "redis store history stand-ins models gateway logs link-key webhook-key proof-key root-key".split()
    + "run.json lock .gitignore".split()
)
"""The names in a data folder. A folder restored from a backup may lack some."""

OF_FILE_SYSTEM = "lost+found"
"""In the root folder of a volume; belongs to root."""


class FolderLocked(Exception):
    """Another `up` uses the data folder."""


@dataclass(frozen=True)
class DataFolder:
    """A data folder by its absolute path."""

    path: Path

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def history(self) -> Path:
        return self.path / "history"

    @property
    def database_url(self) -> str:
        """The address of the history's database."""
        return f"sqlite+aiosqlite:///{quote(str(self.history / 'jobs.sqlite'))}"

    @property
    def stand_ins(self) -> Path:
        return self.path / "stand-ins"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def link_key(self) -> str:
        """The key that signs links, created at the first call."""
        return secret(self.path / "link-key")

    @property
    def webhook_key(self) -> str:
        """The key that webhooks' secrets are derived from, created at the first call."""
        return secret(self.path / "webhook-key")

    @property
    def proof_key(self) -> str:
        """The key that proves events, created at the first call."""
        return secret(self.path / "proof-key")

    @property
    def root_key_file(self) -> Path:
        return self.path / "root-key"

    @property
    def root_key(self) -> str:
        """The API key of administrators, created at the first call."""
        return secret(self.root_key_file, lambda: Credential.generate().text)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and lock it. Raises FolderLocked, and SettingError if it cannot be created.

        The system releases the lock when the process exits for any reason.
        """
        self.make()
        with (self.path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderLocked(str(self.path)) from None
            yield

    def make(self) -> None:
        """Create the folder and its subfolders if missing. Raises SettingError if that fails."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_private()
            (self.path / "lock").touch()
            (self.path / ".gitignore").write_text("# Made by `darkroom up`.\n*\n")
            for folder in (self.store, self.history, self.models, self.logs):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SettingError(f"{self.path}: cannot hold the data: {error.strerror}") from error

    def _make_private(self) -> None:
        """Make an existing folder private. Raises SettingError if another user owns something in it, or if it holds
        unrelated files, which other users may need.
        """
        entries = [entry for entry in os.scandir(self.path) if entry.name != OF_FILE_SYSTEM]
        foreign = [entry.path for entry in entries if entry.stat(follow_symlinks=False).st_uid != os.geteuid()]
        if self.path.stat().st_uid != os.geteuid():
            foreign.insert(0, str(self.path))
        if foreign:
            raise SettingError(f"{self.path}: cannot hold the data: {foreign[0]} belongs to another user")
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if not mode & OPEN_TO_OTHERS:
            return
        if not (self.path / "lock").exists() and not all(_is_ours(entry) for entry in entries):
            raise SettingError(
                f"{self.path}: cannot hold the data: other users may enter it, and it holds files that are not "
                "darkroom's. Choose a new folder, or make this one private (chmod go= FOLDER)"
            )
        self.path.chmod(mode & ~OPEN_TO_OTHERS)

    def new_log(self, name: str) -> Path:
        """The path of a new log; the log of the previous run is renamed."""
        log = self.logs / f"{name}.log"
        if log.exists():
            log.replace(self.logs / f"{name}.previous.log")
        return log


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether the entry belongs to a data folder, or is a data folder itself, such as one of `darkroom env`."""
    return entry.name in NAMES or Path(entry, "lock").exists()


def _random() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def secret(path: Path, make: Callable[[], str] = _random) -> str:
    """The secret in the file, which only its owner may read. A missing file is created with what `make` returns."""
    if not path.exists():
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(make())
        new.replace(path)
    return path.read_text()
