"""The data folder of one machine: where everything that `darkroom up` keeps lies, and who has it.

| path below it | what |
|---|---|
| `redis/` | jobs and queues: Redis' append-only file, its configuration and its password |
| `store/` | the object store: the pictures |
| `history/` | the jobs that have ended: an SQLite database |
| `stand-ins/` | untrained models, made at the first start |
| `models/` | model files of `--model`, written at each start |
| `logs/` | one file per process; `*.previous.log` is the run before |
| `link-key` | signs the links to pictures |
| `webhook-key` | what webhooks are signed with is made of it |
| `run.json` | who runs (`run_record.py`) |
| `lock` | held by the `up` that has the folder |

Only the three secrets and the lock matter to other processes of the same user; the folder is closed to everybody else.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from darkroom.errors import SettingError

SECRET_BYTES = 32

OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""The permissions that a data folder gives to its owner alone."""

NAMES = frozenset(
    "redis store history stand-ins models gateway logs link-key webhook-key run.json lock .gitignore".split()
)
"""What a data folder holds. One that is restored from a backup need not hold all of it."""

OF_FILE_SYSTEM = "lost+found"
"""In the root folder of a volume, and root's."""


class FolderTaken(Exception):
    """Another `up` has the data folder."""


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
        """The address of the history."""
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
        """The key that signs links, made at the first call."""
        return secret(self.path / "link-key")

    @property
    def webhook_key(self) -> str:
        """The key that signatures of webhooks come from, made at the first call."""
        return secret(self.path / "webhook-key")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and have it alone. Raises FolderTaken, and SettingError where it cannot be made.

        The lock is the system's: it ends with the process, however that ends.
        """
        self.make()
        with (self.path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderTaken(str(self.path)) from None
            yield

    def make(self) -> None:
        """Make it with its folders, where it is not there yet. Raises SettingError where it cannot be made."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._close()
            (self.path / "lock").touch()
            (self.path / ".gitignore").write_text("# Made by `darkroom up`.\n*\n")
            for folder in (self.store, self.history, self.models, self.logs):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SettingError(f"{self.path}: cannot hold the data: {error.strerror}") from error

    def _close(self) -> None:
        """Close a folder that was there before to other users. Raises SettingError where they may have put something
        into it, or where it holds more than data folders (those of `darkroom env`): others may need to enter it.
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
                "darkroom's. Name a new folder, or close this one first (chmod go= FOLDER)"
            )
        self.path.chmod(mode & ~OPEN_TO_OTHERS)

    def new_log(self, name: str) -> Path:
        """A log that begins now; the one of the run before is kept beside it."""
        log = self.logs / f"{name}.log"
        if log.exists():
            log.replace(self.logs / f"{name}.previous.log")
        return log


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether a data folder has an entry of this name, or it is a data folder itself, such as one of `darkroom env`."""
    return entry.name in NAMES or Path(entry, "lock").exists()


def secret(path: Path) -> str:
    """The secret in the file, which only its owner may read. Where there is none it is drawn, and written whole."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(SECRET_BYTES))
        fresh.replace(path)
    return path.read_text()
