"""The files that a job's pictures are saved to: `<job id>.png` in the current folder, or the value of `--output`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from darkroom.errors import InvalidInput

from darkroom_cli.client import Client
from darkroom_cli.terminal.output import Output

STDOUT = "-"
"""`--output -`: write the picture to standard output."""

OTHER_FORMATS = frozenset({".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".jxl", ".tif", ".tiff", ".webp"})
"""Suffixes of formats that no server makes: a file with such a name would have another format."""


@dataclass(frozen=True)
class PictureTarget:
    """A file, a folder for files named by the job, or standard output. Existing files are kept unless `overwrite`."""

    path: Path
    is_folder: bool
    overwrite: bool = False
    is_stdout: bool = False

    @classmethod
    def parse(cls, text: str, *, overwrite: bool) -> PictureTarget:
        """Parse `--output`: an existing folder, a new folder if it ends with a slash, or a file. Raises InvalidInput.

        An unwritable target is refused here, before a job is submitted.
        """
        path = Path(text).expanduser()
        if text == STDOUT:
            return cls(path, is_folder=False, is_stdout=True)
        is_folder = path.is_dir() or text.endswith(os.sep)
        if not is_folder and path.suffix.lower() in OTHER_FORMATS:
            raise InvalidInput(f"--output {text}: pictures are PNG; name the file {path.with_suffix('.png')}")
        if not is_folder and not overwrite and path.exists():
            raise InvalidInput(f"--output {text}: the file exists; --force overwrites it")
        parent = path if path.is_dir() else path.parent
        try:
            with tempfile.TemporaryFile(dir=parent):
                pass
        except OSError as error:
            raise InvalidInput(f"--output {text}: cannot write into {parent}: {error.strerror}") from error
        return cls(path, is_folder, overwrite)

    def file(self, job_id: str, *, number: int, of: int, suffix: str) -> Path:
        """The file of picture `number` (from 1); several pictures have numbered names."""
        tail = f"-{number}" if of > 1 else ""
        if self.is_folder:
            return self.path / f"{job_id}{tail}{suffix}"
        is_named = self.path.suffix.lower() == suffix
        stem = self.path.stem if is_named else self.path.name
        return self.path.with_name(f"{stem}{tail}{self.path.suffix if is_named else suffix}")


def save(client: Client, links: Sequence[str], job_id: str, target: PictureTarget, output: Output) -> list[Path]:
    """Download and write the pictures; returns the files. Raises InvalidInput if a file cannot be written."""
    if target.is_stdout:
        if len(links) > 1:
            raise InvalidInput(f"--output {STDOUT}: standard output can hold one picture, and the job has {len(links)}")
        for link in links:
            output.content(client.picture(link))
        return []
    files = []
    for number, link in enumerate(links, start=1):
        suffix = Path(urlsplit(link).path).suffix
        file = target.file(job_id, number=number, of=len(links), suffix=suffix)
        _write(file, client.picture(link), overwrite=target.overwrite)
        files.append(file)
    return files


def _write(file: Path, content: bytes, *, overwrite: bool) -> None:
    """Write the file atomically."""
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(exist_ok=True)
        part.write_bytes(content)
        if overwrite:
            part.replace(file)
        else:
            os.link(part, file)  # fails where the file exists
            part.unlink()
    except FileExistsError as error:
        part.unlink()
        raise InvalidInput(f"{file}: the file exists; --force overwrites it") from error
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}") from error
