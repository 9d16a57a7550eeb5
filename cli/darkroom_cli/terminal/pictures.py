"""Where a job's pictures are saved: `<job id>.png` here, or where `--output` leads."""

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
"""`--output -`: the picture itself goes to standard output."""

OTHER_FORMATS = frozenset({".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".jxl", ".tif", ".tiff", ".webp"})
"""Endings of pictures that no server makes: a file of that name would hold something else."""


@dataclass(frozen=True)
class Destination:
    """A file, a folder for files named by the job, or standard output. Files that exist are kept unless `overwrite`."""

    path: Path
    is_folder: bool
    overwrite: bool = False
    is_stdout: bool = False

    @classmethod
    def parse(cls, text: str, *, overwrite: bool) -> Destination:
        """From `--output`: a folder where there is one, or where it ends in a slash. Raises InvalidInput.

        What cannot be written is found now, before a job is made for it.
        """
        path = Path(text).expanduser()
        if text == STDOUT:
            return cls(path, is_folder=False, is_stdout=True)
        is_folder = path.is_dir() or text.endswith(os.sep)
        if not is_folder and path.suffix.lower() in OTHER_FORMATS:
            raise InvalidInput(f"--output {text}: pictures are PNG; name the file {path.with_suffix('.png')}")
        if not is_folder and not overwrite and path.exists():
            raise InvalidInput(f"--output {text}: the file exists; --force overwrites it")
        holder = path if path.is_dir() else path.parent
        try:
            with tempfile.TemporaryFile(dir=holder):
                pass
        except OSError as error:
            raise InvalidInput(f"--output {text}: nothing can be written into {holder}: {error.strerror}") from error
        return cls(path, is_folder, overwrite)

    def file(self, job_id: str, *, number: int, of: int, suffix: str) -> Path:
        """Where picture `number` (from 1) goes; several share one name with a number each."""
        tail = f"-{number}" if of > 1 else ""
        if self.is_folder:
            return self.path / f"{job_id}{tail}{suffix}"
        is_named = self.path.suffix.lower() == suffix
        stem = self.path.stem if is_named else self.path.name
        return self.path.with_name(f"{stem}{tail}{self.path.suffix if is_named else suffix}")


def save(client: Client, links: Sequence[str], job_id: str, destination: Destination, output: Output) -> list[Path]:
    """Fetch each picture and write it whole; returns the files. Raises InvalidInput where one cannot be written."""
    if destination.is_stdout:
        if len(links) > 1:
            raise InvalidInput(f"--output {STDOUT}: standard output takes one picture, and the job has {len(links)}")
        for link in links:
            output.content(client.picture(link))
        return []
    files = []
    for number, link in enumerate(links, start=1):
        suffix = Path(urlsplit(link).path).suffix
        file = destination.file(job_id, number=number, of=len(links), suffix=suffix)
        _write(file, client.picture(link), overwrite=destination.overwrite)
        files.append(file)
    return files


def _write(file: Path, content: bytes, *, overwrite: bool) -> None:
    """The file is there whole or not at all."""
    fresh = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(exist_ok=True)
        fresh.write_bytes(content)
        if overwrite:
            fresh.replace(file)
        else:
            os.link(fresh, file)  # fails where the file exists
            fresh.unlink()
    except FileExistsError as error:
        fresh.unlink()
        raise InvalidInput(f"{file}: the file exists; --force overwrites it") from error
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be written: {error.strerror}") from error
