"""Where a job's pictures are saved: `<job id>.png` here, or what `--output` names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from darkroom.errors import InvalidInput

from darkroom_cli.client import Client


@dataclass(frozen=True)
class Destination:
    """A file, or a folder for files named by the job."""

    path: Path
    is_folder: bool

    @classmethod
    def parse(cls, text: str) -> Destination:
        """From `--output`: a folder where there is one, or where it ends in a slash. Raises InvalidInput."""
        path = Path(text).expanduser()
        is_folder = path.is_dir() or text.endswith(os.sep)
        holder = path if path.is_dir() else path.parent
        if not holder.is_dir() or not os.access(holder, os.W_OK):
            raise InvalidInput(f"--output {text}: nothing can be written into {holder}")
        return cls(path, is_folder)

    def file(self, job_id: str, *, number: int, of: int, suffix: str) -> Path:
        """Where picture `number` (from 1) goes; several share one name with a number each."""
        tail = f"-{number}" if of > 1 else ""
        if self.is_folder:
            return self.path / f"{job_id}{tail}{suffix}"
        return self.path.with_name(f"{self.path.stem}{tail}{self.path.suffix or suffix}")


def save(client: Client, links: Sequence[str], job_id: str, destination: Destination) -> list[Path]:
    """Fetch each picture and write it whole. Raises InvalidInput where it cannot be written."""
    files = []
    for number, link in enumerate(links, start=1):
        suffix = Path(urlsplit(link).path).suffix
        file = destination.file(job_id, number=number, of=len(links), suffix=suffix)
        content = client.picture(link)
        fresh = file.with_name(f".{file.name}.part")
        try:
            file.parent.mkdir(exist_ok=True)
            fresh.write_bytes(content)
            fresh.replace(file)
        except OSError as error:
            raise InvalidInput(f"{file}: cannot be written: {error.strerror}") from error
        files.append(file)
    return files
